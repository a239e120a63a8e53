//! What a tenant may ask of the kernel: groups of calls with reasons, the
//! verdict for each call, and the BPF program that gives it.
//!
//! One filter holds every answer. It is an allowlist: a call that nobody named
//! is EPERM, one that this program has never heard of is ENOSYS, so that a
//! newer runtime falls back to the older call. Foreign ABIs are killed.

mod compile;
mod conditions;
mod groups;
mod parameters;
mod table;

pub use compile::{Arch, BROKER_CALLS, broker_filter, compile, init_filter};
pub use conditions::{Condition, OWN_SOCKET_OPTIONS, Operator, Width};
pub use groups::{GROUPS, Group};
pub use parameters::{Kind, Parameter, parameters, written};
pub use table::table;

use crate::policy::NetworkMode;

/// The answer to one system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Carried out.
    Allow,
    /// Not carried out; the caller gets this errno.
    Errno(i32),
    /// The process is ended by SIGSYS.
    Kill,
    /// The broker carries it out in the caller's place, or refuses.
    Ask,
    /// Carried out if every condition of one of the clauses holds.
    When(Vec<Vec<Condition>>, Otherwise),
    /// The same; the broker is asked where one of the second clauses holds.
    WhenOrAsk(Vec<Vec<Condition>>, Vec<Vec<Condition>>, i32),
}

impl Verdict {
    /// What is carried out on, for a call that is on conditions.
    pub fn clauses(&self) -> Option<&[Vec<Condition>]> {
        match self {
            Self::When(clauses, _) | Self::WhenOrAsk(clauses, ..) => Some(clauses),
            Self::Allow | Self::Errno(_) | Self::Kill | Self::Ask => None,
        }
    }

    /// Whether the broker may be asked.
    fn asks(&self) -> bool {
        matches!(self, Self::Ask | Self::When(_, Otherwise::Ask) | Self::WhenOrAsk(..))
    }
}

/// The answer to a call whose conditions do not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// As [`Verdict::Errno`].
    Errno(i32),
    /// As [`Verdict::Ask`].
    Ask,
}

/// The answers to every call, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Calls with an answer of their own, each once. Every other known call is
    /// EPERM.
    pub calls: Vec<(&'static str, Verdict)>,
}

impl Rules {
    /// The answer to the call of this name, where it has one of its own.
    pub fn get(&self, name: &str) -> Option<&Verdict> {
        self.calls.iter().find(|(call, _)| *call == name).map(|(_, verdict)| verdict)
    }

    /// How many calls are carried out, always or on conditions.
    pub fn allowed(&self) -> usize {
        self.count(|v| !matches!(v, Verdict::Errno(_) | Verdict::Kill))
    }

    /// The calls that the broker is asked about, always or on conditions.
    pub fn asked(&self) -> impl Iterator<Item = &'static str> {
        self.calls.iter().filter(|(_, verdict)| verdict.asks()).map(|(name, _)| *name)
    }

    /// How many are carried out on conditions.
    pub fn conditional(&self) -> usize {
        self.count(|v| v.clauses().is_some())
    }

    /// How many end the process.
    pub fn killing(&self) -> usize {
        self.count(|v| *v == Verdict::Kill)
    }

    fn count(&self, wanted: impl Fn(&Verdict) -> bool) -> usize {
        self.calls.iter().filter(|(_, verdict)| wanted(verdict)).count()
    }

    /// Gives `name` this answer and no other.
    fn set(&mut self, name: &'static str, verdict: Verdict) {
        self.calls.retain(|(call, _)| *call != name);
        self.calls.push((name, verdict));
    }
}

/// The rules of a policy.
///
/// # Errors
/// A group or a call of that name does not exist, or a call may not be given
/// out because it would open the sandbox.
pub fn resolve(
    groups: &[String],
    allow: &[String],
    deny: &[String],
    network: &NetworkMode,
) -> Result<Rules, String> {
    let mut rules = Rules { calls: Vec::with_capacity(256) };
    // These lists and the groups have no call in common, as a test makes sure,
    // so nothing has to be looked for.
    let fixed = |names: &'static [&'static str], verdict: Verdict| {
        names.iter().map(move |&name| (name, verdict.clone()))
    };
    rules.calls.extend(fixed(groups::ENOSYS, Verdict::Errno(libc_errno::ENOSYS)));
    rules.calls.extend(fixed(groups::KILL, Verdict::Kill));
    for (index, wanted) in groups.iter().enumerate() {
        let group = GROUPS.iter().find(|g| g.name == wanted).ok_or_else(|| {
            let known: Vec<_> = GROUPS.iter().map(|g| g.name).collect();
            format!(
                "no group of system calls is called {wanted:?} (there are {})",
                known.join(", ")
            )
        })?;
        if !groups[..index].contains(wanted) {
            let verdicts = group.calls.iter().map(|&c| (c, conditions::verdict(c, network)));
            rules.calls.extend(verdicts);
        }
    }
    for name in allow {
        let name = known(name)?;
        if groups::NEVER.contains(&name) {
            return Err(format!(
                "{name} is never given out: it would open the sandbox (leave it out)"
            ));
        }
        rules.set(name, conditions::verdict(name, network));
    }
    for name in deny {
        rules.set(known(name)?, Verdict::Errno(libc_errno::EPERM));
    }
    Ok(rules)
}

/// The one static copy of a call's name; an error for a name that is no call.
fn known(name: &str) -> Result<&'static str, String> {
    Arch::native().calls().find(|(known, _)| *known == name).map(|(known, _)| known).ok_or_else(
        || format!("no system call is called {name:?} on this machine (see syscalls(2))"),
    )
}

/// The three errno values that filters answer with. They are the same on every
/// architecture: include/uapi/asm-generic/errno-base.h.
mod libc_errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const EACCES: i32 = 13;
    pub(super) const ENOSYS: i32 = 38;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn unknown_names_are_errors_with_the_known_ones() {
        let error = resolve(&names(&["go"]), &[], &[], &NetworkMode::Private).unwrap_err();
        assert!(error.contains("go-runtime"), "{error}");
        let error = resolve(&[], &names(&["opne"]), &[], &NetworkMode::Private).unwrap_err();
        assert!(error.contains("\"opne\""), "{error}");
    }

    #[test]
    fn what_would_open_the_sandbox_is_never_given_out() {
        for name in groups::NEVER {
            let error = resolve(&[], &names(&[name]), &[], &NetworkMode::Host).unwrap_err();
            assert!(error.contains("never given out"), "{error}");
        }
    }

    #[test]
    fn deny_wins_over_groups_and_allow() {
        let rules = resolve(
            &names(&["files", "go-runtime"]),
            &names(&["openat"]),
            &names(&["openat"]),
            &NetworkMode::Private,
        )
        .unwrap();
        assert_eq!(*rules.get("openat").unwrap(), Verdict::Errno(1));
        assert_eq!(*rules.get("close").unwrap(), Verdict::Allow);
    }

    #[test]
    fn in_a_private_network_the_broker_is_asked() {
        let groups = names(&["net-server"]);
        let private = resolve(&groups, &[], &[], &NetworkMode::Private).unwrap();
        for call in ["connect", "bind", "listen"] {
            assert_eq!(*private.get(call).unwrap(), Verdict::Ask);
        }
        // Not even by the back door of an explicit allow.
        let forced = resolve(&groups, &names(&["connect"]), &[], &NetworkMode::Private).unwrap();
        assert_eq!(*forced.get("connect").unwrap(), Verdict::Ask);
        let host = resolve(&groups, &[], &[], &NetworkMode::Host).unwrap();
        assert_eq!(*host.get("connect").unwrap(), Verdict::Allow);
        assert_eq!(host.asked().count(), 0);
    }

    #[test]
    fn every_shipped_policy_stays_below_160_calls() {
        for (name, _) in policy::shipped() {
            let policy = policy::load(Some(name), None, Vec::new(), false).unwrap();
            let s = &policy.syscalls;
            let rules = resolve(&s.groups.value, &s.allow.value, &s.deny.value, &NetworkMode::Host)
                .unwrap();
            assert!(rules.allowed() <= 160, "{name}: {}", rules.allowed());
        }
    }

    /// `policies/derive` saw honest programs make these calls, each of which
    /// the default policy has to answer as they need it.
    #[test]
    fn the_default_policy_covers_what_was_observed() {
        let policy = policy::load(None, None, Vec::new(), false).unwrap();
        let s = &policy.syscalls;
        let rules =
            resolve(&s.groups.value, &s.allow.value, &s.deny.value, &NetworkMode::Host).unwrap();
        let observed = include_str!("../../policies/observed.tsv");
        let calls: Vec<&str> = observed
            .lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with("call\t"))
            .filter_map(|line| line.split('\t').next())
            .collect();
        assert!(calls.len() > 100, "{} is not what derive writes", calls.len());
        for call in calls {
            assert!(
                matches!(
                    rules.get(call),
                    Some(Verdict::Allow | Verdict::When(..) | Verdict::WhenOrAsk(..))
                ),
                "{call} was observed and is {:?}",
                rules.get(call)
            );
        }
    }

    /// The kernel's numbers and errno values are what libc says they are.
    #[test]
    fn numbers_agree_with_libc() {
        let number = |name| Arch::native().number(name);
        assert_eq!(number("openat"), u32::try_from(libc::SYS_openat).ok());
        assert_eq!(number("clone3"), u32::try_from(libc::SYS_clone3).ok());
        assert_eq!(number("seccomp"), u32::try_from(libc::SYS_seccomp).ok());
        assert_eq!(
            (libc_errno::EPERM, libc_errno::EACCES, libc_errno::ENOSYS),
            (libc::EPERM, libc::EACCES, libc::ENOSYS)
        );
    }
}
