//! The groups as the Markdown table of `policies/SYSCALLS.md`.

use std::fmt::Write;

use super::groups::{ENOSYS, KILL, NEVER, PROBED};
use super::{Answer, GROUPS, conditions};
use crate::policy::NetworkMode;

/// The whole page. A test compares it with the file, so that the page cannot
/// drift from what is compiled.
pub fn table() -> String {
    let mut out = String::from(
        "# System calls by group\n\n\
         What a policy's `syscalls.groups` may name, and why each group is there. Calls marked * are let\n\
         through on conditions that `src/seccomp/conditions.rs` gives with their reasons. This page is\n\
         printed from the groups themselves (`make tables`).\n\n\
         | group | why | calls |\n|---|---|---|\n",
    );
    for group in GROUPS {
        let calls: Vec<String> = group
            .calls
            .iter()
            .map(|call| {
                let free = conditions::verdict(call, &NetworkMode::Private).is(Answer::Allow);
                format!("{call}{}", if free { "" } else { "\\*" })
            })
            .collect();
        // Writing to a String cannot fail.
        _ = writeln!(out, "| `{}` | {} | {} |", group.name, group.reason, calls.join(", "));
    }
    out.push_str("\nEvery other call is answered:\n\n| answer | why | calls |\n|---|---|---|\n");
    for (answer, why, calls) in [
        (
            "ENOSYS, unrecorded",
            "the C library asks for it each time and falls back; its flags lie in memory, where no filter sees them",
            PROBED,
        ),
        (
            "ENOSYS",
            "the program falls back to an older call; the same for calls newer than this program",
            ENOSYS,
        ),
        ("killed (SIGSYS)", "no honest server asks for it", KILL),
        ("EPERM", "everything else; of it, these cannot be allowed by a policy either", NEVER),
    ] {
        _ = writeln!(out, "| {answer} | {why} | {} |", calls.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_is_what_the_groups_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/SYSCALLS.md");
        if std::env::var_os("GOSANDBOX_UPDATE").is_some() {
            std::fs::write(path, super::table()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert_eq!(page, super::table(), "run `make tables` and look at the difference");
    }
}
