//! `gosandbox explain`: what a tenant was refused, in words, and the change to
//! its policy that would allow what can be allowed.

use std::io::Write;

use clap::Args;

use super::Status;
use crate::observe::denials::{self, Refusals, Refused};
use crate::observe::sink::say;
use crate::observe::state_file;
use crate::policy::{NetworkMode, OnDeny};
use crate::seccomp::{self, Remedy, Rules, Wanted};
use crate::value::Tenant;

/// Flags of `explain`.
#[derive(Debug, Args)]
pub(super) struct ExplainOptions {
    /// Whose refused calls
    tenant: Tenant,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Prints what the tenant's supervisors have recorded on stdout.
pub(super) fn explain(options: &ExplainOptions) -> Status {
    let fail = |why: String| {
        say(format_args!("tenant {}: explain: {why}", options.tenant));
        Status::Code(1)
    };
    let root = nix::unistd::geteuid().is_root();
    let Some(dir) = state_file::directory(root, |name| std::env::var_os(name)) else {
        return fail("there is no place where records are kept (set XDG_RUNTIME_DIR, for the tenant's start too)".to_owned());
    };
    let path = denials::path(&dir, &options.tenant);
    let refusals = match denials::read(&path) {
        Ok(refusals) => refusals,
        Err(e) => return fail(format!("{}: {}", path.display(), crate::value::cause(&e))),
    };
    let text = if options.json {
        match serde_json::to_string_pretty(&refusals) {
            Ok(text) => ascii(&text) + "\n",
            Err(e) => return fail(e.to_string()),
        }
    } else {
        text(&options.tenant, &refusals)
    };
    // `explain | head` is no failure.
    drop(std::io::stdout().write_all(text.as_bytes()));
    Status::Code(0)
}

/// The same JSON for a terminal: texts in it are the tenant's, and JSON lets DEL
/// and all above stand as they are (RFC 8259, 7), controls like U+009B among them.
/// Only texts have such characters.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || c == ' ' || c.is_ascii_graphic() {
            out.push(c);
        } else {
            let units = c
                .encode_utf16(&mut [0; 2])
                .iter()
                .map(|u| format!("\\u{u:04x}"))
                .collect::<String>();
            out.push_str(&units);
        }
    }
    out
}

fn text(tenant: &Tenant, refusals: &Refusals) -> String {
    if refusals.calls.is_empty() {
        return format!("{tenant}: nothing was refused since this machine started\n");
    }
    let rules = rules(refusals);
    let mut calls: Vec<&Refused> = refusals.calls.iter().collect();
    calls.sort_by_key(|refused| std::cmp::Reverse(refused.last));
    let mut out = String::new();
    let mut wanted: Vec<(&str, u64)> = Vec::new();
    for refused in calls {
        let remedy = Remedy::of(&rules, &refused.call);
        let times =
            if refused.count == 1 { "once".into() } else { format!("{} times", refused.count) };
        out.push_str(&format!(
            "{}, {times}, last {} ago\n    {}\n",
            seccomp::refused(&refused.call, &refused.args, &refused.texts, refused.errno),
            ago(denials::now().saturating_sub(refused.last)),
            remedy.words(&refused.call)
        ));
        if let Remedy::Allow(_) = remedy {
            match wanted.iter_mut().find(|(call, _)| *call == refused.call) {
                Some((_, count)) => *count += refused.count,
                None => wanted.push((&refused.call, refused.count)),
            }
        }
    }
    if wanted.is_empty() {
        return out;
    }
    out.push_str(&format!(
        "\nTo allow what can be, if {tenant} needs it:\n\n[syscalls]\nallow = [\n"
    ));
    for call in &refusals.allow {
        out.push_str(&format!("  {call:?},\n"));
    }
    wanted.sort_unstable();
    for (call, count) in wanted {
        out.push_str(&format!("  {call:?},  # refused {count} times\n"));
    }
    out.push_str("]\n");
    out
}

/// The rules under which the calls were refused, as far as their remedies depend
/// on them.
fn rules(refusals: &Refusals) -> Rules {
    let rules = seccomp::resolve(Wanted {
        groups: &refusals.groups,
        allow: &refusals.allow,
        deny: &refusals.deny,
        kill: &[],
        on_deny: OnDeny::Log,
        network: &NetworkMode::Private,
    });
    // A record of another version may name what this one does not know.
    rules.unwrap_or(Rules { calls: Vec::new(), on_deny: OnDeny::Log, watched: false })
}

/// Seconds as people say them.
fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(call: &str, count: u64) -> Refused {
        let (errno, args, texts) = (1, [0; 6], Vec::new());
        Refused { call: call.into(), errno, args, texts, count, first: 0, last: count }
    }

    #[test]
    fn only_what_may_be_allowed_is_proposed_and_what_was_allowed_stays() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let refusals = Refusals {
            groups: names(&["go-runtime", "files", "net-server"]),
            allow: names(&["memfd_create"]),
            deny: names(&["mkdirat"]),
            calls: ["unshare", "socket", "mkdirat", "wait4", "sync", "sync", "470"]
                .into_iter()
                .zip(1..)
                .map(|(call, count)| refused(call, count))
                .collect(),
        };
        let text = text(&"acme".parse().unwrap(), &refusals);
        let (_, proposal) = text.split_once("[syscalls]\n").unwrap();
        assert_eq!(
            proposal,
            "allow = [\n  \"memfd_create\",\n  \"sync\",  # refused 11 times\n  \"wait4\",  # refused 4 times\n]\n"
        );
        assert!(text.contains("unshare(unshare_flags=0x0) = EPERM, once, last "), "{text}");
        assert!(text.contains("no policy can allow it"), "{text}");
        assert!(text.contains("syscalls.deny has it"), "{text}");
    }

    #[test]
    fn json_holds_no_control_character_and_says_the_same() {
        let texts = vec!["\u{9b}31m\u{7f}\u{202e}\u{1b}\t\"\u{1f600}ä\n".to_owned()];
        let calls = vec![Refused { texts, ..refused("mount", 1) }];
        let refusals = Refusals { calls, ..Refusals::default() };
        let json = ascii(&serde_json::to_string_pretty(&refusals).unwrap());
        assert!(json.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)), "{json}");
        assert_eq!(serde_json::from_str::<Refusals>(&json).unwrap(), refusals);
    }

    #[test]
    fn nothing_was_refused() {
        let text = text(&"acme".parse().unwrap(), &Refusals::default());
        assert!(text.contains("nothing was refused"), "{text}");
    }
}
