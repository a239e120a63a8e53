//! OCI seccomp profiles, with what Docker and Podman add to them, read as they
//! are.
//!
//! The format is that of the runtime specification (config-linux.md, "Seccomp");
//! what an entry means is what runc makes of it with libseccomp
//! (libcontainer/seccomp/seccomp_linux.go, seccomp_rule_add(3)). What gosandbox
//! cannot do, or could only guess, is an error that names the entry.

mod file;
mod read;

pub use read::parse;

use std::collections::{BTreeMap, BTreeSet};

use super::foreign::FOREIGN;
use super::{Answer, Arch, Case, Condition, intersect};

/// What a profile asks of the machine. Capabilities are not among it, because a
/// tenant has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whose numbers the calls have.
    pub arch: Arch,
    /// Version and major revision of the kernel, as (6, 1).
    pub kernel: (u32, u32),
}

/// Why a profile cannot be had: where in it, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {cause}")]
pub struct OciError {
    place: String,
    cause: String,
}

impl OciError {
    fn new(place: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { place: place.into(), cause: cause.into() }
    }
}

/// A profile that was read, for any machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    default: Answer,
    /// Each architecture with those that go with it; empty for whatever runs.
    architectures: Vec<Vec<String>>,
    entries: Vec<Rule>,
}

/// One of `syscalls`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    names: Vec<String>,
    answer: Answer,
    /// It matches where all of one of these hold.
    clauses: Vec<Vec<Condition>>,
    includes: Where,
    excludes: Where,
}

/// Where a rule applies, or does not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Where {
    arches: Vec<String>,
    caps: bool,
    kernel: Option<(u32, u32)>,
}

/// A profile on one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Whose calls these are.
    pub arch: Arch,
    /// The answer to a call that no entry names: an errno, or death.
    pub default: Answer,
    /// The answers to the others. Cases with different answers exclude each
    /// other; where none holds, the default is given.
    pub calls: BTreeMap<&'static str, Vec<Case>>,
    /// What is worth knowing, and makes nothing wider.
    pub notes: Vec<String>,
}

/// More sets of comparisons of one call no person wrote, and they are compared
/// in pairs.
const MAX_CLAUSES: usize = 128;

impl Arch {
    /// As OCI calls it.
    fn scmp(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
        }
    }

    /// As Docker calls it.
    fn docker(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }
}

/// Reads a profile for a machine.
///
/// # Errors
/// As [`parse`] and [`Document::profile`].
pub fn load(text: &str, facts: Facts) -> Result<Profile, OciError> {
    parse(text)?.profile(facts)
}

impl Rule {
    /// Whether it is meant for this machine and a process without capabilities.
    fn applies(&self, facts: Facts) -> bool {
        let here = |arches: &[String]| arches.iter().any(|arch| arch == facts.arch.docker());
        let since = |version: (u32, u32)| facts.kernel >= version;
        let Self { includes, excludes, .. } = self;
        !here(&excludes.arches)
            && !excludes.kernel.is_some_and(since)
            && (includes.arches.is_empty() || here(&includes.arches))
            && !includes.caps
            && includes.kernel.is_none_or(since)
    }
}

/// What one entry says of a call in one clause.
struct Said {
    entry: usize,
    answer: Answer,
    clause: Vec<Condition>,
}

impl Document {
    /// What the profile says on this machine.
    ///
    /// # Errors
    /// It is for other architectures, refuses a call that does not exist, or
    /// answers one in two ways.
    pub fn profile(&self, facts: Facts) -> Result<Profile, OciError> {
        let mut notes: Vec<String> = self.foreign_abis(facts.arch)?.into_iter().collect();
        let mut said: BTreeMap<&'static str, Vec<Said>> = BTreeMap::new();
        let mut unknown = BTreeSet::new();
        let calls: BTreeMap<&str, &'static str> =
            facts.arch.calls().map(|(name, _)| (name, name)).collect();
        for (entry, rule) in self.entries.iter().enumerate().filter(|(_, r)| r.applies(facts)) {
            for name in &rule.names {
                let fail = |cause: String| Err(OciError::new(at(entry, name), cause));
                let Some(call) = calls.get(name.as_str()).copied() else {
                    if !is_call(name) && !rule.answer.gives() {
                        return fail(
                            "no kernel has such a call (leave it out, or correct it)".into(),
                        );
                    }
                    if !is_call(name) {
                        unknown.insert(shown(name, 32));
                    }
                    continue;
                };
                let of_call = said.entry(call).or_default();
                for clause in &rule.clauses {
                    let again = |s: &Said| s.answer == rule.answer && s.clause == *clause;
                    if !of_call.iter().any(again) {
                        let clause = clause.clone();
                        of_call.push(Said { entry, answer: rule.answer, clause });
                    }
                }
                if of_call.len() > MAX_CLAUSES {
                    return fail(format!("more than {MAX_CLAUSES} sets of comparisons"));
                }
            }
        }
        if !unknown.is_empty() {
            notes.push(format!("allows what no kernel has: {}", list(unknown)));
        }
        let mut without_effect = Vec::new();
        let mut calls = BTreeMap::new();
        for (call, said) in said {
            calls.insert(call, cases(call, said, self.default, &mut without_effect)?);
        }
        if !without_effect.is_empty() {
            let entries = list(without_effect);
            notes.push(format!("answered by an earlier entry, so without effect: {entries}"));
        }
        Ok(Profile { arch: facts.arch, default: self.default, calls, notes })
    }

    /// A note where the profile is for programs of other ABIs too.
    fn foreign_abis(&self, arch: Arch) -> Result<Option<String>, OciError> {
        let native = |name: &String| name == arch.scmp() || name == "SCMP_ARCH_NATIVE";
        let Some(group) = self.architectures.iter().find(|group| group.iter().any(native)) else {
            if self.architectures.is_empty() {
                return Ok(None);
            }
            let cause = format!("{} is not among them (add it, if it is meant)", arch.scmp());
            return Err(OciError::new("architectures", cause));
        };
        let others: BTreeSet<_> = group.iter().filter(|name| !native(name)).cloned().collect();
        Ok((!others.is_empty())
            .then(|| format!("calls of {} are killed all the same", list(others))))
    }
}

/// Whether some architecture of the kernel has a call of this name.
fn is_call(name: &str) -> bool {
    [Arch::X86_64, Arch::Aarch64].iter().any(|arch| arch.number(name).is_some())
        || FOREIGN.binary_search(&name).is_ok()
}

impl Said {
    /// Whether it is of the whole call, whatever its arguments.
    fn is_whole(&self) -> bool {
        self.clause.is_empty()
    }

    /// Whether it cannot be known which of the two is meant. Of two entries for
    /// the whole of a call the first holds, as in libseccomp (db.c, db_rule_add):
    /// Podman's own profile has such. One that repeats the default leaves the
    /// call to others that compare arguments, as in runc.
    fn is_against(&self, earlier: &Self, default: Answer) -> bool {
        let repeats = |said: &Self| said.answer == default;
        self.answer != earlier.answer
            && match (earlier.is_whole(), self.is_whole()) {
                (true, true) => repeats(earlier) || repeats(self),
                (true, false) => !repeats(earlier),
                (false, true) => !repeats(self),
                (false, false) => !intersect::contradict(&earlier.clause, &self.clause),
            }
    }
}

/// The answers to a call by what has to hold for them, and the entries that have
/// no effect, because the whole call was answered before.
fn cases(
    call: &str,
    said: Vec<Said>,
    default: Answer,
    without_effect: &mut Vec<String>,
) -> Result<Vec<Case>, OciError> {
    for (index, later) in said.iter().enumerate() {
        if let Some(earlier) = said[..index].iter().find(|s| later.is_against(s, default)) {
            return Err(OciError::new(
                at(later.entry, call),
                format!(
                    "another answer than that of syscalls[{}], and both may hold at once (leave \
                     one out, or let their comparisons exclude each other)",
                    earlier.entry
                ),
            ));
        }
    }
    let whole = said.iter().find(|s| s.is_whole() && s.answer != default).map(|s| s.answer);
    let mut cases: Vec<Case> = Vec::new();
    for Said { entry, answer, clause } in said {
        match cases.iter_mut().find(|case| case.answer == answer) {
            _ if clause.is_empty() && answer == default => {}
            _ if whole.is_some_and(|whole| whole != answer) => without_effect.push(at(entry, call)),
            _ if whole.is_some() => cases = vec![Case { clauses: vec![Vec::new()], answer }],
            Some(case) => case.clauses.push(clause),
            None => cases.push(Case { clauses: vec![clause], answer }),
        }
    }
    Ok(cases)
}

fn at(entry: usize, name: &str) -> String {
    format!("syscalls[{entry}] ({})", shown(name, 32))
}

/// A text of the file's in quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", shown(text, 32))
}

/// A text of the file's on a line of ours, and not too much of it.
fn shown(text: &str, most: usize) -> String {
    let cut: String = text.chars().take(most).collect();
    let more = if cut.len() < text.len() { "..." } else { "" };
    crate::value::escape(&cut) + more
}

/// The first of many names, and how many more there are.
fn list<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    const MOST: usize = 24;
    let mut names = names.into_iter();
    let first: Vec<T> = names.by_ref().take(MOST).collect();
    let first = first.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
