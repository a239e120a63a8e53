//! What a filter answers to every call, for people to read.

use std::fmt::Write;

use serde::Serialize;

use super::explain::errno_name;
use super::groups::{ENOSYS, GROUPS, KILL, PROBED};
use super::parameters::{Kind, parameters};
use super::{Answer, Arch, Case, Clause, Condition, Operator, Rules, Verdict, Wanted, libc_errno};
use crate::policy::OnDeny;

/// A call and its answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The kernel's number for it.
    pub number: u32,
    /// Its name.
    pub call: &'static str,
    /// What in the policy its answer comes from: a group, "allow", "deny" or "kill";
    /// "fallback" and "never" are lists of our own, and "-" is everything else.
    pub from: &'static str,
    /// The first whose conditions hold is given.
    pub answers: Vec<Reply>,
}

/// One of the answers to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reply {
    /// When it is given: where one of these holds; always if there are none.
    #[serde(rename = "if", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
    /// "allowed", "broker", "killed" or the name of an errno.
    pub answer: String,
}

/// Every call of `arch` with what `rules` answer, in the order of the groups and
/// by number within them. `wanted` is what the policy says.
pub fn verdicts(rules: &Rules, arch: Arch, wanted: Wanted<'_>) -> Vec<Row> {
    let Wanted { groups, allow, deny, kill, .. } = wanted;
    let named = |list: &[String], call| list.iter().any(|name| name == call);
    let from = |call: &'static str| {
        let group = || GROUPS.iter().position(|g| g.calls.contains(&call) && named(groups, g.name));
        // As resolve has it: what comes later wins. The first is the order.
        match call {
            call if named(kill, call) => (105, "kill"),
            call if named(deny, call) => (101, "deny"),
            call if named(allow, call) => (100, "allow"),
            call if ENOSYS.contains(&call) || PROBED.contains(&call) => (102, "fallback"),
            call if KILL.contains(&call) => (103, "never"),
            _ => group().map_or((104, "-"), |index| (index, GROUPS[index].name)),
        }
    };
    let mut rows: Vec<(usize, Row)> = arch
        .calls()
        .map(|(call, number)| {
            let (order, from) = from(call);
            let other = Answer::Refuse(libc_errno::EPERM).into();
            let answers = answers(call, rules.get(call).unwrap_or(&other), rules.on_deny);
            (order, Row { number, call, from, answers })
        })
        .collect();
    rows.sort_by_key(|(order, row)| (*order, row.number));
    rows.into_iter().map(|(_, row)| row).collect()
}

/// The table as text, a line a call or more, and what is answered to everything
/// else.
pub fn verdict_table(rows: &[Row], arch: Arch) -> String {
    let widest = |column: fn(&Row) -> &str| rows.iter().map(|row| column(row).len()).max();
    let call = widest(|row| row.call).unwrap_or_default();
    let from = widest(|row| row.from).unwrap_or_default();
    let mut out = format!("number  {:<call$}  {:<from$}  answer\n", "call", "from");
    for row in rows {
        let start = format!("{:>6}  {:<call$}  {:<from$}  ", row.number, row.call, row.from);
        let indent = format!("\n{:width$}", "", width = start.len());
        let one_line = row.answers.iter().all(|answer| answer.conditions.len() < 2);
        let or = format!("{indent}  or ");
        let answers: Vec<String> = row
            .answers
            .iter()
            .map(|Reply { conditions, answer }| match conditions.as_slice() {
                [] => answer.clone(),
                conditions => format!("{answer} if {}", conditions.join(&or)),
            })
            .collect();
        let otherwise = if one_line { ", else ".to_owned() } else { format!("{indent}else ") };
        // Writing to a String cannot fail.
        _ = writeln!(out, "{start}{}", answers.join(&otherwise));
    }
    _ = writeln!(out, "other numbers: EPERM below {0}, ENOSYS from {0} on", arch.unknown_from());
    let execve = rows.iter().find(|row| row.call == "execve");
    if execve.is_some_and(|row| row.answers.iter().all(|reply| reply.answer != "allowed")) {
        out.push_str("execve: the one that starts the binary is let through\n");
    }
    out.push_str(match arch {
        // kernel/seccomp.c, seccomp_uprobe_exception.
        Arch::X86_64 => {
            "i386 and x32: killed\n\
             note: no filter sees uretprobe and uprobe (Linux 6.14 and later); a tracer outside puts \
             them into a program, and whoever else makes them gets SIGILL or ENXIO\n"
        }
        Arch::Aarch64 => "32-bit calls: killed\n",
    });
    out
}

fn answers(call: &str, verdict: &Verdict, on_deny: OnDeny) -> Vec<Reply> {
    let named = |answer: Answer| match answer {
        Answer::Allow => "allowed".to_owned(),
        Answer::Ask => "broker".to_owned(),
        Answer::Kill => "killed".to_owned(),
        Answer::Refuse(value) if on_deny == OnDeny::Kill && value != libc_errno::ENOSYS => {
            "killed".to_owned()
        }
        Answer::Errno(value) | Answer::Refuse(value) => errno_name(value),
    };
    let case = |case: &Case| Reply {
        conditions: joined(&case.clauses).iter().map(|clause| written(call, clause)).collect(),
        answer: named(case.answer),
    };
    let last = Reply { conditions: Vec::new(), answer: named(verdict.last) };
    verdict.cases.iter().map(case).chain([last]).collect()
}

/// A comparison with any of several values, or with none of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Test {
    argument: u8,
    mask: Option<u64>,
    /// As it is written.
    operator: &'static str,
    values: Vec<u64>,
}

impl Test {
    fn of(condition: &Condition) -> Self {
        let (mask, operator) = match condition.operator {
            Operator::Is(_) => (None, "=="),
            Operator::IsNot(_) => (None, "!="),
            Operator::Masked(mask, _) => (Some(mask), "=="),
            Operator::Less(_) => (None, "<"),
            Operator::AtMost(_) => (None, "<="),
            Operator::AtLeast(_) => (None, ">="),
            Operator::More(_) => (None, ">"),
        };
        let values = vec![condition.operator.number()];
        Self { argument: condition.argument, mask, operator, values }
    }

    /// Whether the two differ in nothing but their values.
    fn is_like(&self, other: &Self) -> bool {
        (self.argument, self.mask, self.operator) == (other.argument, other.mask, other.operator)
    }
}

/// The same clauses, as few as can be had by joining values: two that differ in
/// one equality only are one that accepts either value, and `a != 1 and a != 2`
/// is `a not in (1, 2)`.
fn joined(clauses: &[Clause]) -> Vec<Vec<Test>> {
    let mut out: Vec<Vec<Test>> = Vec::new();
    for clause in clauses {
        let mut tests: Vec<Test> = Vec::new();
        for test in clause.iter().map(Test::of) {
            match tests.iter_mut().find(|known| test.operator == "!=" && known.is_like(&test)) {
                Some(known) => known.values.extend(test.values),
                None => tests.push(test),
            }
        }
        out.push(tests);
    }
    while let Some((one, other, at)) = joinable(&out) {
        let gone = out.remove(other);
        let values = &mut out[one][at].values;
        for value in &gone[at].values {
            if !values.contains(value) {
                values.push(*value);
            }
        }
    }
    out
}

/// Two clauses that differ in the values of one equality, and which.
fn joinable(clauses: &[Vec<Test>]) -> Option<(usize, usize, usize)> {
    for (i, one) in clauses.iter().enumerate() {
        for (j, other) in clauses.iter().enumerate().skip(i + 1) {
            if one.len() != other.len() {
                continue;
            }
            let mut different = (0..one.len()).filter(|&at| one[at] != other[at]);
            match (different.next(), different.next()) {
                (Some(at), None) if one[at].operator == "==" && one[at].is_like(&other[at]) => {
                    return Some((i, j, at));
                }
                _ => {}
            }
        }
    }
    None
}

/// `family in (2, 10) and type & 0xf == 1`.
fn written(call: &str, clause: &[Test]) -> String {
    let tests: Vec<String> = clause
        .iter()
        .map(|test| {
            let parameter = parameters(call).get(usize::from(test.argument));
            let kind = parameter.map_or(Kind::Hex, |p| p.kind);
            let name =
                parameter.map_or_else(|| format!("arg{}", test.argument), |p| p.name.to_owned());
            let mask = match (test.mask, kind) {
                (None, _) => String::new(),
                (Some(mask), Kind::Mode) => format!(" & {}", kind.written(mask)),
                (Some(mask), _) => format!(" & {mask:#x}"),
            };
            let values: Vec<String> =
                test.values.iter().map(|&value| constant(kind, value)).collect();
            match (values.as_slice(), test.operator) {
                ([value], operator) => format!("{name}{mask} {operator} {value}"),
                (values, "!=") => format!("{name}{mask} not in ({})", values.join(", ")),
                (values, _) => format!("{name}{mask} in ({})", values.join(", ")),
            }
        })
        .collect();
    tests.join(" and ")
}

fn constant(kind: Kind, value: u64) -> String {
    match value {
        0..=9 => value.to_string(),
        // Not a number that anybody knows in decimal, or one that the kernel
        // would cut.
        value if kind.is_int() && value > 0xffff => format!("{value:#x}"),
        value => kind.written(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{self, NetworkMode};
    use crate::seccomp::resolve;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn table(groups: &[&str], allow: &[&str], deny: &[&str], network: &NetworkMode) -> Vec<Row> {
        let (groups, allow, deny) = (list(groups), list(allow), list(deny));
        let (groups, allow, deny) = (&*groups, &*allow, &*deny);
        let on_deny = OnDeny::Log;
        let wanted = Wanted { groups, allow, deny, kill: &[], on_deny, network };
        verdicts(&resolve(wanted).unwrap(), Arch::X86_64, wanted)
    }

    /// The lines of a call, without its number.
    fn lines<'a>(text: &'a str, call: &str) -> Vec<&'a str> {
        let is_start = |line: &str| line.split_whitespace().nth(1) == Some(call);
        let mut rest = text.lines().skip_while(|line| !is_start(line));
        let first = rest.next().unwrap_or_else(|| panic!("no {call} in {text}"));
        let more = rest.take_while(|line| line.starts_with("        ")).map(str::trim);
        [first[8..].trim()].into_iter().chain(more).collect()
    }

    /// The conditions of conditions.rs, in words.
    #[test]
    fn a_line_says_what_is_answered_and_why() {
        let rows = table(
            &["go-runtime", "c-runtime", "files", "net-server", "net-client"],
            &["kill", "mincore"],
            &["mlock"],
            &NetworkMode::Private,
        );
        let text = verdict_table(&rows, Arch::X86_64);
        for (call, expected) in [
            ("read", "go-runtime  allowed"),
            ("clone", "go-runtime  allowed if clone_flags & 0x7e020000 == 0, else EPERM"),
            ("arch_prctl", "go-runtime  allowed if option in (0x1002, 0x1003), else EPERM"),
            ("fcntl", "go-runtime  allowed if cmd not in (8, 10, 15, 1024, 1026), else EPERM"),
            (
                "prctl",
                "go-runtime  allowed if option in (1, 2, 3, 15, 16, 23, 27, 38, 39, 0x53564d41), \
                 else EPERM",
            ),
            ("mknodat", "files       allowed if mode & 0170000 == 010000, else EPERM"),
            ("sendto", "net-client  allowed if flags & 0x20000000 == 0, else EACCES"),
            ("shutdown", "net-server  allowed if how == 1, else broker"),
            ("connect", "net-client  broker"),
            ("kill", "allow       allowed if pid != 1, else EPERM"),
            ("mincore", "allow       allowed"),
            ("mlock", "deny        EPERM"),
            ("clone3", "fallback    ENOSYS"),
            ("reboot", "never       killed"),
            ("execve", "-           EPERM"),
        ] {
            let width = "set_mempolicy_home_node".len();
            assert_eq!(lines(&text, call), [format!("{call:<width$}  {expected}")]);
        }
        assert_eq!(
            lines(&text, "socket")[1..],
            [
                "or family == 1 and type & 0xf in (1, 5)",
                "or family in (2, 10) and type & 0xf == 1 and protocol in (0, 6, 262)",
                "or family in (2, 10) and type & 0xf == 2 and protocol in (0, 17)",
                "else EPERM",
            ]
        );
        let options = lines(&text, "setsockopt");
        assert!(options.contains(&"or level == 41 and optname in (26, 49, 67)"), "{options:?}");
        assert!(options.contains(&"else broker if level == 1 and optname == 15"), "{options:?}");
        assert!(text.contains("\nother numbers: EPERM below 470, ENOSYS from 470 on\n"), "{text}");
    }

    #[test]
    fn every_call_is_in_the_table_once_and_what_is_allowed_is_what_was_resolved() {
        for (name, _) in policy::shipped() {
            let policy = policy::load(Some(name), None, Vec::new(), false).unwrap();
            let wanted = Wanted::of(&policy.syscalls, &NetworkMode::Private);
            let rules = resolve(wanted).unwrap();
            for arch in [Arch::X86_64, Arch::Aarch64] {
                let rows = verdicts(&rules, arch, wanted);
                let mut calls: Vec<_> = rows.iter().map(|row| (row.call, row.number)).collect();
                let mut known: Vec<_> = arch.calls().collect();
                calls.sort_unstable();
                known.sort_unstable();
                assert_eq!(calls, known);
                for row in &rows {
                    let verdict = rules.get(row.call);
                    assert_eq!(row.from != "-", verdict.is_some(), "{row:?}");
                    assert!(row.answers.last().unwrap().conditions.is_empty(), "{row:?}");
                }
            }
        }
    }

    /// Joined clauses, with every value written out again, are the clauses.
    #[test]
    fn joining_changes_nothing() {
        let split = |tests: &[Test]| {
            let mut out: Vec<Vec<Test>> = vec![Vec::new()];
            for test in tests {
                let each = test.values.iter().map(|&v| Test { values: vec![v], ..test.clone() });
                let with = |clause: &Vec<Test>, more: Vec<Test>| [clause.clone(), more].concat();
                out = out
                    .iter()
                    .flat_map(|clause| match test.operator {
                        "!=" => vec![with(clause, each.clone().collect())],
                        _ => each.clone().map(|one| with(clause, vec![one])).collect(),
                    })
                    .collect();
            }
            out
        };
        let mut joins = 0;
        for network in [NetworkMode::Private, NetworkMode::Host] {
            let groups: Vec<String> = GROUPS.iter().map(|g| g.name.to_owned()).collect();
            let (groups, on_deny, network) = (&*groups, OnDeny::Log, &network);
            let wanted = Wanted { groups, allow: &[], deny: &[], kill: &[], on_deny, network };
            let rules = resolve(wanted).unwrap();
            for (call, verdict) in &rules.calls {
                let clauses = verdict.cases.first().map_or(&[][..], |case| &case.clauses);
                let each =
                    |clause: &Vec<Condition>| clause.iter().map(Test::of).collect::<Vec<_>>();
                let mut original: Vec<_> =
                    clauses.iter().flat_map(|clause| split(&each(clause))).collect();
                let joined = joined(clauses);
                joins += clauses.len() - joined.len();
                let mut again: Vec<_> = joined.iter().flat_map(|tests| split(tests)).collect();
                original.sort_unstable();
                again.sort_unstable();
                assert_eq!(again, original, "{call}");
            }
        }
        assert!(joins > 50, "{joins}");
    }
}
