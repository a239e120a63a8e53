//! A refused call in words: what it was, why, and what would allow it.

use nix::errno::Errno;

use super::groups::{GROUPS, NEVER};
use super::{Answer, Rules, libc_errno, parameters, written};

/// What would allow a refused call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// `syscalls.allow` with its name, or `syscalls.groups` with this group, where
    /// it is in one.
    Allow(Option<&'static str>),
    /// To take it out of `syscalls.deny`.
    Undeny,
    /// Nothing: it is let through with some arguments, and these are not among
    /// them.
    Arguments,
    /// Nothing: with it the sandbox would be none.
    Never,
    /// Nothing: it is no call, or newer than this program.
    Unknown,
}

impl Remedy {
    /// For the call of this name, which `rules` refuse.
    pub fn of(rules: &Rules, call: &str) -> Self {
        let group = GROUPS.iter().find(|group| group.calls.contains(&call)).map(|g| g.name);
        if NEVER.contains(&call) {
            return Self::Never;
        }
        match rules.get(call) {
            Some(verdict) if verdict.is(Answer::Refuse(libc_errno::EPERM)) => Self::Undeny,
            Some(verdict) if verdict.gives() => Self::Arguments,
            _ if super::known(call).is_err() => Self::Unknown,
            _ => Self::Allow(group),
        }
    }

    /// The end of a sentence.
    pub fn words(&self, call: &str) -> String {
        match self {
            Self::Allow(None) => format!("to allow it: syscalls.allow = [\"{call}\"]"),
            Self::Allow(Some(group)) => {
                format!("to allow it: syscalls.allow = [\"{call}\"], or the group {group}")
            }
            Self::Undeny => "syscalls.deny has it".to_owned(),
            Self::Arguments => "other arguments are let through, these never".to_owned(),
            Self::Never => "no policy can allow it: it would open the sandbox".to_owned(),
            Self::Unknown => "it is none that this gosandbox knows".to_owned(),
        }
    }
}

/// The call as a person would write it, and what its caller got: `ptrace(…) =
/// EPERM`. `texts` are those that it points to, in the order of its arguments.
pub fn refused(call: &str, args: &[u64; 6], texts: &[String], errno: i32) -> String {
    format!("{} = {}", self::call(call, args, texts), errno_name(errno))
}

/// EPERM; or the number, where it has no name.
pub(super) fn errno_name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("errno {errno}"),
        known => format!("{known:?}"),
    }
}

/// The call as a person would write it.
pub fn call(call: &str, args: &[u64; 6], texts: &[String]) -> String {
    let mut read: [Option<&str>; 6] = [None; 6];
    let places = parameters(call).iter().zip(&mut read).filter(|(p, _)| p.kind.is_text());
    for ((_, place), text) in places.zip(texts) {
        *place = Some(text).filter(|text| !text.is_empty()).map(String::as_str);
    }
    let kind = if call.starts_with(|c: char| c.is_ascii_digit()) { "call " } else { "" };
    format!("{kind}{}", written(call, args, read))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{self, NetworkMode};
    use crate::seccomp::{Wanted, resolve};

    #[test]
    fn every_refusal_has_its_remedy() {
        let mut policy = policy::load(None, None, Vec::new(), false).unwrap();
        policy.syscalls.groups.value.retain(|group| group != "exec");
        policy.syscalls.deny.value.push("mkdirat".to_owned());
        let rules = resolve(Wanted::of(&policy.syscalls, &NetworkMode::Private)).unwrap();
        for (call, expected) in [
            ("memfd_create", Remedy::Allow(None)),
            ("landlock_add_rule", Remedy::Allow(None)),
            ("wait4", Remedy::Allow(Some("exec"))),
            ("execve", Remedy::Allow(Some("exec"))),
            ("mkdirat", Remedy::Undeny),
            ("socket", Remedy::Arguments),
            ("unshare", Remedy::Never),
            ("470", Remedy::Unknown),
        ] {
            assert_eq!(Remedy::of(&rules, call), expected, "{call}");
        }
    }

    #[test]
    fn texts_are_where_the_call_has_them() {
        let texts = ["/dev/sda".to_owned(), String::new()];
        let line = refused("mount", &[0x1000, 0x2000, 0, 0x20, 0, 0], &texts, 1);
        assert!(line.starts_with("mount(dev_name=\"/dev/sda\", dir_name=0x2000, "), "{line}");
        assert!(line.ends_with(" = EPERM"), "{line}");
        let line = refused("470", &[0; 6], &[], 38);
        assert!(line.starts_with("call 470(") && line.ends_with(") = ENOSYS"), "{line}");
    }
}
