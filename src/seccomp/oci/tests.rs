//! Profiles by hand, one feature each; the expected answers are what the
//! specification, runc's source or libseccomp's manual says of them.

use super::*;
use crate::policy::{NetworkMode, OnDeny};
use crate::seccomp::{
    Operator, Rules, Verdict, Wanted, Width, compile, conditions, groups, resolve_profile,
};

const HERE: Facts = Facts { arch: Arch::X86_64, kernel: (6, 1) };

/// A profile of these entries whose default is EPERM.
fn with(entries: &str) -> String {
    with_default("ERRNO", entries)
}

fn with_default(action: &str, entries: &str) -> String {
    format!(r#"{{"defaultAction": "SCMP_ACT_{action}", "syscalls": [{entries}]}}"#)
}

/// The action ERRNO with ENOSYS, as Podman writes it for its default.
const ENOSYS: &str = r#"ERRNO", "defaultErrnoRet": 38, "defaultErrno": "ENOSYS"#;

/// An entry for these calls, with what else it says.
fn entry(names: &str, action: &str, rest: &str) -> String {
    let names: Vec<_> = names.split_whitespace().map(|name| format!("\"{name}\"")).collect();
    let comma = if rest.is_empty() { "" } else { ", " };
    format!(r#"{{"names": [{}], "action": "SCMP_ACT_{action}"{comma}{rest}}}"#, names.join(", "))
}

/// Comparisons as (index, value, operator), or with valueTwo behind.
fn compare(comparisons: &[(u8, u64, &str)]) -> String {
    let args: Vec<_> = comparisons
        .iter()
        .map(|(index, value, op)| {
            let (op, two) = op.split_once(' ').unwrap_or((op, "0"));
            let (value, op) = (format!(r#""value": {value}"#), format!(r#""op": "SCMP_CMP_{op}""#));
            format!(r#"{{"index": {index}, {value}, "valueTwo": {two}, {op}}}"#)
        })
        .collect();
    format!("\"args\": [{}]", args.join(", "))
}

fn profile(entries: &str) -> Profile {
    load(&with(entries), HERE).unwrap()
}

fn error(text: &str) -> String {
    load(text, HERE).unwrap_err().to_string()
}

/// Whether one of the clauses holds, by the words of seccomp_rule_add(3).
fn hold(clauses: &[Vec<Condition>], args: [u64; 6]) -> bool {
    let holds = |condition: &Condition| {
        let value = args[usize::from(condition.argument)];
        let value = if condition.width == Width::Int { value & 0xffff_ffff } else { value };
        match condition.operator {
            Operator::Is(v) => value == v,
            Operator::IsNot(v) => value != v,
            Operator::Masked(mask, v) => value & mask == v,
            Operator::Less(v) => value < v,
            Operator::AtMost(v) => value <= v,
            Operator::AtLeast(v) => value >= v,
            Operator::More(v) => value > v,
        }
    };
    clauses.iter().any(|clause| clause.iter().all(holds))
}

/// What the profile answers to a call.
fn answer(profile: &Profile, call: &str, args: [u64; 6]) -> Answer {
    let cases = profile.calls.get(call).map_or(&[][..], Vec::as_slice);
    let holding: Vec<_> = cases.iter().filter(|case| hold(&case.clauses, args)).collect();
    assert!(holding.len() < 2, "{call} {args:x?} has {} answers", holding.len());
    holding.first().map_or(profile.default, |case| case.answer)
}

fn args(first: &[u64]) -> [u64; 6] {
    let mut args = [0; 6];
    args[..first.len()].copy_from_slice(first);
    args
}

#[test]
fn actions_and_errnos() {
    for (action, rest, expected) in [
        ("ALLOW", "", Answer::Allow),
        ("ERRNO", "", Answer::Refuse(libc::EPERM)),
        ("ERRNO", r#""errnoRet": 38"#, Answer::Refuse(38)),
        ("ERRNO", r#""errnoRet": 0"#, Answer::Refuse(0)),
        ("ERRNO", r#""errnoRet": 4095"#, Answer::Refuse(4095)),
        ("ERRNO", r#""errno": "ENOSYS""#, Answer::Refuse(libc::ENOSYS)),
        ("ERRNO", r#""errno": "EWOULDBLOCK""#, Answer::Refuse(libc::EWOULDBLOCK)),
        ("ERRNO", r#""errno": "EHWPOISON""#, Answer::Refuse(libc::EHWPOISON)),
        ("ERRNO", r#""errno": "22""#, Answer::Refuse(22)),
        ("ERRNO", r#""errno": "", "errnoRet": 7"#, Answer::Refuse(7)),
        ("ERRNO", r#""errno": "EINVAL", "errnoRet": 22"#, Answer::Refuse(22)),
        ("KILL", "", Answer::Kill),
        ("KILL_THREAD", "", Answer::Kill),
        ("KILL_PROCESS", "", Answer::Kill),
    ] {
        let profile = profile(&entry("read", action, rest));
        assert_eq!(answer(&profile, "read", args(&[])), expected, "{action} {rest}");
        assert_eq!(answer(&profile, "write", args(&[])), Answer::Refuse(libc::EPERM));
    }
    for (default, expected) in [
        (r#""SCMP_ACT_ERRNO""#, Answer::Refuse(libc::EPERM)),
        (
            r#""SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "defaultErrno": "ENOSYS""#,
            Answer::Refuse(38),
        ),
        (r#""SCMP_ACT_KILL""#, Answer::Kill),
        (r#""SCMP_ACT_KILL_PROCESS""#, Answer::Kill),
    ] {
        let text = format!(r#"{{"defaultAction": {default}, "syscalls": null}}"#);
        assert_eq!(load(&text, HERE).unwrap().default, expected, "{text}");
    }
}

#[test]
fn defaults_and_switches_that_cannot_be_expressed_are_errors() {
    let errno = "\"SCMP_ACT_ERRNO\"";
    for (default, rest, start) in [
        ("\"SCMP_ACT_ALLOW\"", "", "defaultAction: SCMP_ACT_ALLOW makes a list of what is refused"),
        ("\"SCMP_ACT_LOG\"", "", "defaultAction: SCMP_ACT_LOG cannot be expressed: it lets"),
        ("\"SCMP_ACT_TRACE\"", "", "defaultAction: SCMP_ACT_TRACE cannot"),
        ("\"SCMP_ACT_NOTIFY\"", "", "defaultAction: SCMP_ACT_NOTIFY cannot"),
        ("\"\"", "", "defaultAction: there is no action \"\""),
        (
            "\"SCMP_ACT_KILL\"",
            r#""defaultErrnoRet": 1"#,
            "defaultAction: SCMP_ACT_KILL has no errno",
        ),
        (errno, r#""defaultErrno": "ENOPE""#, "defaultAction: there is no errno \"ENOPE\""),
        (errno, r#""listenerPath": "/run/agent.sock""#, "listenerPath: "),
        (errno, r#""flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]"#, "flags: "),
        (
            errno,
            r#""flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"]"#,
            "flags: \"SECCOMP_FILTER_FLAG_LOG\" is not set",
        ),
        (
            errno,
            r#""architectures": ["SCMP_ARCH_AARCH64"]"#,
            "architectures: SCMP_ARCH_X86_64 is not among them",
        ),
        (
            errno,
            r#""architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_I386"]"#,
            "architectures: there is no architecture \"SCMP_ARCH_I386\"",
        ),
        (
            errno,
            r#""architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86"}]"#,
            "archMap: there are architectures as well",
        ),
        (errno, r#""seccomp": {}"#, "line 1, column 45: unknown field `seccomp`"),
        (errno, r#""defaultAction": """#, "line 1, column 51: duplicate field `defaultAction`"),
        (errno, r#""flags": [1]"#, "line 1, column 47: invalid type"),
    ] {
        let comma = if rest.is_empty() { "" } else { ", " };
        let text = format!(r#"{{"defaultAction": {default}{comma}{rest}}}"#);
        let said = error(&text);
        let found = said.starts_with(start) && said.lines().count() == 1;
        assert!(found, "{text}\n  {said}\n  {start}");
    }
    assert_eq!(error("{}"), "line 1, column 2: missing field `defaultAction`");
    let harmless = r#"{"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "", "flags": []}"#;
    load(harmless, HERE).unwrap();
    load(&harmless.replace("[]", "[\"SECCOMP_FILTER_FLAG_TSYNC\"]"), HERE).unwrap();
}

#[test]
fn entries_that_cannot_be_expressed_are_errors_that_name_them() {
    let number = |value: &str| compare(&[(0, 77, "EQ")]).replace("77", value);
    for (entry, start) in [
        (entry("read", "LOG", ""), "syscalls[1]: SCMP_ACT_LOG cannot be expressed"),
        (entry("read", "NOTIFY", ""), "syscalls[1]: SCMP_ACT_NOTIFY cannot"),
        (entry("read", "TRACE", r#""errnoRet": 5"#), "syscalls[1]: SCMP_ACT_TRACE cannot"),
        (entry("read", "TRAP", ""), "syscalls[1]: SCMP_ACT_TRAP cannot"),
        (entry("read", "ALOW", ""), "syscalls[1]: there is no action \"SCMP_ACT_ALOW\""),
        (entry("read", "ALLOW", r#""errnoRet": 1"#), "syscalls[1]: SCMP_ACT_ALLOW has no errno"),
        // A test of Docker's has this one, which the kernel would cut down.
        (
            entry("syslog", "ERRNO", r#""errnoRet": 12345"#),
            "syscalls[1]: errno 12345: it is 4095 at most",
        ),
        (
            entry("read", "ERRNO", r#""errnoRet": 1, "errno": "EINVAL""#),
            "syscalls[1]: errno is said to be 1 and 22",
        ),
        (entry("read", "ALLOW", r#""name": "write""#), "syscalls[1]: has both name and names"),
        (entry("", "ALLOW", ""), "syscalls[1]: names no call"),
        (entry("read", "ALLOW", r#""arg": []"#), "line 1, column 151: unknown field `arg`"),
        (
            entry("read", "ALLOW", &compare(&[(0, 1, "EQ"), (1, 1, "IS")])),
            "syscalls[1]: args[1]: there is no comparison \"SCMP_CMP_IS\"",
        ),
        (
            entry("read", "ALLOW", &compare(&[(6, 1, "EQ")])),
            "syscalls[1]: args[0]: a call has no argument 6",
        ),
        (entry("read", "ALLOW", &number("-1")), "line 1, column "),
        (entry("read", "ALLOW", &number("1.0")), "line 1, column "),
        (entry("read", "ALLOW", &number("18446744073709551616")), "line 1, column "),
        (
            entry("read", "ALLOW", r#""includes": {"minKernel": "five"}"#),
            "syscalls[1]: minKernel \"five\"",
        ),
        (
            entry("read", "ALLOW", r#""includes": {"minKernel": "6.1.2"}"#),
            "syscalls[1]: minKernel \"6.1.2\"",
        ),
        (
            entry("read", "ALLOW", r#""excludes": {"arches": ["x86_64"]}"#),
            "syscalls[1]: there is no architecture \"x86_64\" (write it as Docker does: amd64",
        ),
    ] {
        let first = r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW"}"#;
        let text = with(&format!("{first}, {entry}"));
        let said = error(&text);
        let found = said.starts_with(start) && said.lines().count() == 1;
        assert!(found, "{text}\n  {said}\n  {start}");
    }
}

/// config-linux.md: 64-bit values; seccomp_rule_add(3): what the comparisons mean.
#[test]
fn comparisons() {
    let high = 1 << 32;
    for (value, op, yes, no) in [
        (5, "EQ", vec![5], vec![4, 6, 5 | high]),
        (5, "EQ 6", vec![5], vec![6]),
        (5, "NE", vec![4, 6, 5 | high], vec![5]),
        (5, "LT", vec![0, 4], vec![5, 6, high, !0]),
        (5, "LE", vec![0, 5], vec![6, high, !0]),
        (5, "GE", vec![5, high, !0], vec![0, 4]),
        (5, "GT", vec![6, high, !0], vec![0, 5]),
        (!0, "EQ", vec![!0], vec![!0 >> 1, !0 >> 32]),
        (4 | high, "LT", vec![5, high | 3], vec![high | 4, 2 << 32]),
        // The mask is value and the datum valueTwo, itself masked.
        (12, "MASKED_EQ 8", vec![8, 9, 8 | high], vec![4, 12, 0]),
        (12, "MASKED_EQ 11", vec![8, 11], vec![4, 12]),
        (12, "MASKED_EQ", vec![0, 3, high], vec![4, 8]),
        (1 | high, "MASKED_EQ 4294967296", vec![high, high | 2], vec![0, 1, high | 1]),
        (!0, "MASKED_EQ 7", vec![7], vec![7 | high, 15]),
        (0, "MASKED_EQ 7", vec![0, !0], vec![]),
    ] {
        let profile = profile(&entry("lseek", "ALLOW", &compare(&[(2, value, op)])));
        let given =
            |value: u64| answer(&profile, "lseek", [!value, 0, value, 0, 0, 0]) == Answer::Allow;
        assert!(yes.iter().all(|&value| given(value)), "{value} {op}");
        assert!(!no.iter().any(|&value| given(value)), "{value} {op}");
    }
}

/// runc's matchCall: comparisons of several arguments must all hold, but when
/// one argument is compared twice, each of all comparisons is a rule of its own.
#[test]
fn comparisons_together() {
    let allowed =
        |profile: &Profile, first: &[u64]| answer(profile, "ioctl", args(first)) == Answer::Allow;
    let all = profile(&entry("ioctl", "ALLOW", &compare(&[(0, 1, "EQ"), (1, 7, "GT")])));
    assert!(allowed(&all, &[1, 8]) && !allowed(&all, &[1, 7]) && !allowed(&all, &[2, 8]));
    let any = compare(&[(0, 1, "EQ"), (0, 3, "EQ"), (1, 7, "GT")]);
    let any = profile(&entry("ioctl", "ALLOW", &any));
    assert!(allowed(&any, &[1, 0]) && allowed(&any, &[3, 0]) && allowed(&any, &[2, 8]));
    assert!(!allowed(&any, &[2, 7]));
    // Entries of one call are a union, and one without comparisons is all of it.
    let one = r#"{"name": "ioctl", "action": "SCMP_ACT_ALLOW", "args": []}"#;
    let other = entry("ioctl read", "ALLOW", &compare(&[(0, 1, "EQ")]));
    let two = profile(&format!("{other}, {one}"));
    assert!(allowed(&two, &[2]));
    assert_eq!(two.calls["ioctl"], [Case { clauses: vec![vec![]], answer: Answer::Allow }]);
}

/// Docker's setupSeccomp, for a process without capabilities.
#[test]
fn includes_and_excludes() {
    for (filter, here, arm, old) in [
        (r#""includes": {}, "excludes": {}"#, true, true, true),
        (r#""includes": null, "comment": "why""#, true, true, true),
        (r#""includes": {"arches": ["amd64", "x32"]}"#, true, false, true),
        (r#""includes": {"arches": ["arm", "arm64"]}"#, false, true, false),
        (r#""includes": {"arches": []}"#, true, true, true),
        (r#""excludes": {"arches": ["s390", "s390x"]}"#, true, true, true),
        (r#""excludes": {"arches": ["amd64"]}"#, false, true, false),
        (r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#, false, false, false),
        (r#""includes": {"caps": []}"#, true, true, true),
        (r#""excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}"#, true, true, true),
        (r#""includes": {"minKernel": "4.8"}"#, true, true, false),
        (r#""includes": {"minKernel": "6.1"}"#, true, true, false),
        (r#""includes": {"minKernel": "6.2"}"#, false, false, false),
        (r#""includes": {"minKernel": "10.0"}"#, false, false, false),
        (r#""excludes": {"minKernel": "6.1"}"#, false, false, true),
        (r#""excludes": {"minKernel": "6.10"}"#, true, true, true),
        (r#""includes": {"minKernel": "4.8", "arches": ["amd64"]}"#, true, false, false),
        (
            r#""includes": {"caps": ["CAP_X"]}, "excludes": {"caps": ["CAP_X"]}"#,
            false,
            false,
            false,
        ),
    ] {
        let text = with(&entry("read", "ALLOW", filter));
        for (facts, applies) in [
            (HERE, here),
            (Facts { arch: Arch::Aarch64, ..HERE }, arm),
            (Facts { kernel: (4, 7), ..HERE }, old),
        ] {
            let profile = load(&text, facts).unwrap();
            assert_eq!(profile.calls.contains_key("read"), applies, "{filter} {facts:?}");
        }
    }
}

#[test]
fn names_of_other_architectures_are_passed_over_and_misspelt_ones_are_not() {
    let names = "read _llseek chown32 socketcall set_tls riscv_flush_icache break renameat";
    for action in ["ALLOW", "ERRNO", "KILL"] {
        let profile = profile(&entry(names, action, ""));
        assert_eq!(profile.calls.keys().collect::<Vec<_>>(), [&"read", &"renameat"]);
        assert!(profile.notes.is_empty());
    }
    // open is x86_64's, and not the other's.
    let text = with(&entry("open openat", "KILL", ""));
    let arm = load(&text, Facts { arch: Arch::Aarch64, ..HERE }).unwrap();
    assert_eq!(arm.calls.keys().collect::<Vec<_>>(), [&"openat"]);
    // Tighter than meant is a note, wider an error.
    let profile = profile(&entry("raed write raed", "ALLOW", ""));
    assert_eq!(profile.notes, ["allows what no kernel has: raed"]);
    for action in ["ERRNO", "KILL"] {
        let said = error(&with(&entry("write raed\\u001b", action, "")));
        assert!(said.starts_with("syscalls[0] (raed\\u{1b}): no kernel has such a call"), "{said}");
    }
}

#[test]
fn one_call_has_one_answer() {
    let entry = |action: &str, comparisons: &[(u8, u64, &str)]| {
        entry("read socket", action, &compare(comparisons))
    };
    for (one, other) in [
        (entry("ALLOW", &[]), entry("ERRNO", &[])),
        (entry("ALLOW", &[]), entry("KILL", &[(0, 1, "EQ")])),
        (entry("ALLOW", &[(0, 1, "EQ")]), entry("KILL", &[(1, 1, "EQ")])),
        (entry("ALLOW", &[(0, 1, "NE")]), entry("KILL", &[(0, 2, "EQ")])),
        (entry("ALLOW", &[(0, 9, "LE")]), entry("ERRNO", &[(0, 9, "GE")])),
        (entry("ALLOW", &[(0, 9, "NE")]), entry("ERRNO", &[(0, 8, "LT")])),
        (entry("ALLOW", &[(0, 6, "MASKED_EQ 2")]), entry("ERRNO", &[(0, 1, "MASKED_EQ 1")])),
    ] {
        for text in [format!("{one}, {other}"), format!("{other}, {one}")] {
            let said = error(&with(&text));
            let start = "syscalls[1] (read): another answer than that of syscalls[0]";
            assert!(said.starts_with(start), "{text}\n  {said}");
        }
    }
    for (one, other) in [
        (entry("ALLOW", &[(0, 1, "EQ")]), entry("KILL", &[(0, 2, "EQ")])),
        (entry("ALLOW", &[(0, 1, "EQ")]), entry("KILL", &[(0, 1, "NE")])),
        (entry("ALLOW", &[(0, 9, "LT")]), entry("ERRNO", &[(0, 9, "GE")])),
        (entry("ALLOW", &[(0, 9, "LE")]), entry("ERRNO", &[(0, 9, "GT")])),
        (entry("ALLOW", &[(0, 9, "LE"), (1, 3, "EQ")]), entry("ERRNO", &[(1, 4, "EQ")])),
        (entry("ALLOW", &[(0, 1, "MASKED_EQ 1")]), entry("ERRNO", &[(0, 2, "EQ")])),
    ] {
        for text in [format!("{one}, {other}"), format!("{other}, {one}")] {
            load(&with(&text), HERE).unwrap_or_else(|e| panic!("{text}\n  {e}"));
        }
    }
    // What the default says anyway, for all of a call, leaves it to the others.
    let masked = entry("ALLOW", &[(0, 1, "EQ")]);
    for text in
        [format!("{masked}, {}", entry("ERRNO", &[])), format!("{}, {masked}", entry("ERRNO", &[]))]
    {
        let profile = profile(&text);
        assert_eq!(answer(&profile, "read", args(&[1])), Answer::Allow);
        assert_eq!(answer(&profile, "read", args(&[2])), Answer::Refuse(libc::EPERM));
        assert!(profile.notes.is_empty());
    }
    // Of two entries for all of a call, the first holds, and that is said.
    for (first, second, expected) in [
        ("ALLOW", "KILL", Answer::Allow),
        ("KILL", "ALLOW", Answer::Kill),
        ("KILL_THREAD", "KILL", Answer::Kill),
    ] {
        let profile = profile(&format!("{}, {}", entry(first, &[]), entry(second, &[])));
        assert_eq!(answer(&profile, "read", args(&[1])), expected);
        let said = "answered by an earlier entry, so without effect: syscalls[1] (read), \
                    syscalls[1] (socket)";
        let notes: &[&str] = if first == "KILL_THREAD" { &[] } else { &[said] };
        assert_eq!(profile.notes, notes);
    }
    // Said twice is said once; on another machine nothing is said against it.
    let twice = profile(&format!("{masked}, {}, {masked}", entry("ALLOW", &[])));
    assert_eq!(twice.calls["read"], [Case { clauses: vec![vec![]], answer: Answer::Allow }]);
    profile(
        r#"{"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
           {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_BPF"]}}"#,
    );
}

#[test]
fn programs_of_other_abis_are_killed_and_that_is_said() {
    let note = |architectures: &str, arch| {
        let text = format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", {architectures}}}"#);
        load(&text, Facts { arch, ..HERE }).unwrap().notes
    };
    let map = r#""archMap": [
        {"architecture": "SCMP_ARCH_X86_64",
         "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}]"#;
    let said = "calls of SCMP_ARCH_X32, SCMP_ARCH_X86 are killed all the same";
    assert_eq!(note(map, Arch::X86_64), [said]);
    assert!(note(map, Arch::Aarch64).is_empty());
    let list = r#""architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]"#;
    assert_eq!(note(list, Arch::X86_64), [said]);
    assert!(note(r#""architectures": ["SCMP_ARCH_NATIVE"]"#, Arch::Aarch64).is_empty());
    assert!(note(r#""architectures": []"#, Arch::X86_64).is_empty());
}

/// With these calls besides, those that gosandbox itself needs among them.
fn amended(
    profile: &Profile,
    allow: &[&str],
    deny: &[&str],
    network: &NetworkMode,
) -> Result<(Rules, Vec<String>), String> {
    let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let (allow, deny) = (names(&[allow, &["write", "exit_group"]].concat()), names(deny));
    let (allow, deny) = (allow.as_slice(), deny.as_slice());
    let (groups, kill, on_deny) = (&[][..], &[][..], OnDeny::Log);
    resolve_profile(profile, Wanted { groups, allow, deny, kill, on_deny, network })
}

fn rules(profile: &Profile, network: &NetworkMode) -> (Rules, Vec<String>) {
    amended(profile, &[], &[], network).unwrap()
}

#[test]
fn gosandboxs_own_walls_stay() {
    let names = "read mount ptrace clone3 reboot swapon connect clone landlock_create_ruleset";
    let entries = [
        entry(names, "ALLOW", ""),
        entry("acct", "ERRNO", "\"errnoRet\": 5"),
        entry("bpf", "ERRNO", "\"errnoRet\": 7"),
    ];
    let allowed = profile(&entries.join(", "));
    let (private, notes) = rules(&allowed, &NetworkMode::Private);
    let get = |name: &str| private.get(name).cloned();
    assert_eq!(get("read"), Some(Answer::Allow.into()));
    assert_eq!(get("openat"), None);
    assert_eq!((get("mount"), get("ptrace")), (None, None));
    assert_eq!(get("clone3"), Some(Answer::Errno(libc::ENOSYS).into()));
    assert_eq!(get("landlock_create_ruleset"), Some(Answer::Refuse(libc::ENOSYS).into()));
    assert_eq!(get("reboot"), Some(Answer::Kill.into()));
    assert_eq!(get("swapon"), Some(Answer::Kill.into()));
    assert_eq!(get("acct"), Some(Answer::Kill.into()));
    assert_eq!(get("bpf"), Some(Answer::Refuse(7).into()));
    assert_eq!(get("connect"), Some(Answer::Ask.into()));
    assert_eq!(get("clone"), Some(conditions::verdict("clone", &NetworkMode::Private)));
    assert_eq!(
        notes,
        ["allows what gosandbox never gives out (6): ptrace, mount, swapon, reboot, \
          clone3, landlock_create_ruleset"]
    );
    let (host, _) = rules(&allowed, &NetworkMode::Host);
    assert!(host.get("connect").unwrap().is(Answer::Allow));
    // As with groups, single calls are added and taken away after.
    let network = NetworkMode::Private;
    let (rules, _) = amended(&allowed, &["openat", "memfd_secret"], &["read"], &network).unwrap();
    assert!(rules.get("openat").unwrap().is(Answer::Allow));
    assert!(rules.get("memfd_secret").unwrap().is(Answer::Allow));
    assert!(rules.get("read").unwrap().is(Answer::Refuse(libc::EPERM)));
    assert!(amended(&allowed, &["mount"], &[], &network).is_err());
    // gosandbox itself has to say why a binary cannot be executed.
    let said = amended(&allowed, &[], &["exit_group"], &network).unwrap_err();
    assert!(said.starts_with("exit_group is not allowed"), "{said}");
}

/// A choice of the policy's that is of the whole call does not undo what a
/// profile says of its arguments.
#[test]
fn files_in_memory_are_executed_on_the_profiles_conditions_or_not_at_all() {
    use crate::policy::Permit::{Allow, Deny};
    let kept = |default: &str, rest: &str, memfd| {
        let text = with_default(default, &entry("memfd_create", "ALLOW", rest));
        let (rules, _) = rules(&load(&text, HERE).unwrap(), &NetworkMode::Private);
        rules.keep_code(Allow, memfd)
    };
    for default in ["ERRNO", ENOSYS, "KILL"] {
        let whole = kept(default, "", Allow).unwrap();
        assert!(whole.get("memfd_create").unwrap().is(Answer::Allow), "{default}");
        // MFD_HUGETLB not.
        let part = compare(&[(1, 4, "MASKED_EQ 0")]);
        let said = kept(default, &part, Allow).unwrap_err();
        assert!(said.starts_with("memfd_create: the profile lets through some"), "{said}");
        kept(default, &part, Deny).unwrap();
    }
}

/// A default other than EPERM is that of every call that has no other answer.
#[test]
fn the_default_is_of_every_call() {
    for (action, expected) in [("KILL_PROCESS", Answer::Kill), (ENOSYS, Answer::Refuse(38))] {
        let below = entry("readv", "ALLOW", &compare(&[(0, 3, "LT")]));
        let text = with_default(action, &format!("{}, {below}", entry("read", "ALLOW", "")));
        let (rules, _) = rules(&load(&text, HERE).unwrap(), &NetworkMode::Private);
        let given = ["read", "readv", "write", "exit_group"];
        for (name, _) in Arch::X86_64.calls().filter(|(name, _)| !given.contains(name)) {
            let ours = [groups::KILL, groups::ENOSYS, groups::PROBED];
            let own = ours.iter().any(|list| list.contains(&name));
            assert!(own || rules.get(name).is_some_and(|v| v.is(expected)), "{name}");
        }
        assert_eq!((rules.allowed(), rules.conditional()), (4, 1));
    }
}

/// Both have to hold: what the profile says, and what gosandbox says.
#[test]
fn a_profile_and_gosandboxs_conditions_both_hold() {
    let entries = [
        entry("personality", "ALLOW", &compare(&[(0, 0, "EQ"), (0, 8, "EQ")])),
        entry("clone", "ALLOW", &compare(&[(0, 0x7e02_0000, "MASKED_EQ")])),
        entry("shutdown", "ALLOW", &compare(&[(0, 100, "LT")])),
        entry("connect", "ALLOW", &compare(&[(2, 16, "EQ")])),
        entry("connect", "KILL", &compare(&[(2, 17, "EQ")])),
        entry("setsockopt", "ALLOW", &compare(&[(1, 1, "EQ")])),
    ];
    let profile = load(&with_default(ENOSYS, &entries.join(", ")), HERE).unwrap();
    let (rules, _) = rules(&profile, &NetworkMode::Private);
    let int =
        |argument, value| Condition { argument, width: Width::Int, operator: Operator::Is(value) };
    let long =
        |argument, value| Condition { argument, width: Width::Long, operator: Operator::Is(value) };
    let own = Answer::Refuse(libc::EPERM);
    // The profile gives 0 and 8, gosandbox 0 and 0xffffffff.
    let case = |clauses, answer| Case { clauses, answer };
    assert_eq!(
        rules.get("personality").unwrap(),
        &Verdict {
            cases: vec![
                case(vec![vec![long(0, 0)]], Answer::Allow),
                case(vec![vec![long(0, 8)]], own)
            ],
            last: Answer::Refuse(38)
        }
    );
    // The same mask twice is one.
    let namespaces =
        Condition { argument: 0, width: Width::Int, operator: Operator::Masked(0x7e02_0000, 0) };
    assert_eq!(
        rules.get("clone").unwrap(),
        &Verdict::when(vec![vec![namespaces]], Answer::Allow, Answer::Refuse(38))
    );
    let below = Condition { argument: 0, width: Width::Long, operator: Operator::Less(100) };
    assert_eq!(
        rules.get("shutdown").unwrap(),
        &Verdict {
            cases: vec![
                case(vec![vec![int(1, 1), below]], Answer::Allow),
                case(vec![vec![below]], Answer::Ask)
            ],
            last: Answer::Refuse(38)
        }
    );
    assert_eq!(
        rules.get("connect").unwrap(),
        &Verdict {
            cases: vec![
                case(vec![vec![long(2, 16)]], Answer::Ask),
                case(vec![vec![long(2, 17)]], Answer::Kill)
            ],
            last: Answer::Refuse(38)
        }
    );
    // Of the options, those of SOL_SOCKET; SO_REUSEPORT is asked about.
    let Verdict { cases, last } = rules.get("setsockopt").unwrap();
    assert_eq!(*last, Answer::Refuse(38));
    let level = long(1, 1);
    assert_eq!(cases[0].clauses.len(), 9);
    assert!(cases[0].clauses.iter().all(|clause| clause.contains(&level)));
    assert_eq!(cases[1], case(vec![vec![int(1, 1), int(2, 15), level]], Answer::Ask));
    assert_eq!(cases[2], case(vec![vec![level]], own));
    assert_eq!(rules.asked().collect::<Vec<_>>(), ["connect", "shutdown", "setsockopt"]);
}

/// More than the kernel takes is said before anything is started.
#[test]
fn a_filter_that_is_too_long_is_refused() {
    let many = |count: u64| -> Vec<_> { (0..count).map(|value| (0, value, "GT")).collect() };
    // Far enough apart that none shares its comparisons with the next.
    let calls = "read munmap readv mremap nanosleep accept wait4 getcwd readlink getdents64";
    let long = profile(&entry(calls, "ALLOW", &compare(&many(100))));
    let said = amended(&long, &[], &[], &NetworkMode::Private).unwrap_err();
    assert!(
        said.starts_with("the profile makes a filter of ") && said.contains("takes 4096"),
        "{said}"
    );
    let said = error(&with(&entry("read", "ALLOW", &compare(&many(129)))));
    assert_eq!(said, "syscalls[0]: more than 128 comparisons");
    let single: Vec<_> =
        many(129).into_iter().map(|one| entry("read", "ALLOW", &compare(&[one]))).collect();
    let said = error(&with(&single.join(", ")));
    assert_eq!(said, "syscalls[128] (read): more than 128 sets of comparisons");
    let entries = vec![r#"{"name": "read", "action": "SCMP_ACT_ALLOW"}"#; 1025].join(",");
    assert_eq!(error(&with(&entries)), "the file: more than 1024 entries in syscalls");
    assert_eq!(error(&" ".repeat((1 << 20) + 1)), "the file: larger than a megabyte");
    // As many names as a file holds take no time, and no line.
    let names: Vec<_> = (0..80_000).map(|n| format!("call{n}")).collect();
    let profile = profile(&entry(&names.join(" "), "ALLOW", ""));
    assert!(profile.notes[0].ends_with(" and 79976 more") && profile.notes[0].len() < 500);
}

#[path = "hostile_tests.rs"]
mod hostile;
