//! What a tenant may ask of the kernel: groups of calls with reasons, the
//! verdict for each call, and the BPF program that gives it.
//!
//! One filter holds every answer. It is an allowlist: a call that nobody named
//! is EPERM, one that this program has never heard of is ENOSYS, so that a
//! newer runtime falls back to the older call. Foreign ABIs are killed. A call
//! that is refused goes to the broker first, which says so: allowed ones never
//! do, and cost nothing.

mod compile;
mod conditions;
mod disassemble;
mod explain;
mod foreign;
mod groups;
mod intersect;
mod memory;
pub mod oci;
mod parameters;
mod table;
mod verdicts;

pub use compile::{Arch, BROKER_CALLS, broker_filter, compile, init_filter};
pub use conditions::{Condition, OWN_SOCKET_OPTIONS, Operator, Width};
pub use disassemble::disassemble;
pub use explain::{Remedy, call, refused};
pub use groups::{GROUPS, Group};
pub use parameters::{Kind, Parameter, parameters, written};
pub use table::table;
pub use verdicts::{Reply, Row, verdict_table, verdicts};

use std::borrow::Cow;

use crate::policy::{NetworkMode, OnDeny, sections};

/// The answer to one system call: that of the first case that holds, else the
/// last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Answers on conditions.
    pub cases: Vec<Case>,
    /// What is answered where none of them holds.
    pub last: Answer,
}

/// One of several answers to a call, and when it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// It holds if every condition of one of these does.
    pub clauses: Vec<Clause>,
    /// What is answered then.
    pub answer: Answer,
}

/// Conditions that all have to hold.
pub type Clause = Vec<Condition>;

/// What is done with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Carried out.
    Allow,
    /// Not carried out; the caller gets this errno, and nobody hears of it: for
    /// what is asked for only to see whether it is there.
    Errno(i32),
    /// Not carried out; the caller gets this errno, or what [`OnDeny`] says.
    Refuse(i32),
    /// The process is ended by SIGSYS.
    Kill,
    /// The broker carries it out in the caller's place, or refuses.
    Ask,
}

impl Answer {
    /// Whether the call is carried out, by the kernel or by the broker.
    fn gives(self) -> bool {
        matches!(self, Self::Allow | Self::Ask)
    }
}

impl From<Answer> for Verdict {
    /// Whatever the arguments.
    fn from(last: Answer) -> Self {
        Self { cases: Vec::new(), last }
    }
}

impl Verdict {
    /// `answer` where one of the clauses holds, else `last`.
    fn when(clauses: Vec<Clause>, answer: Answer, last: Answer) -> Self {
        Self { cases: vec![Case { clauses, answer }], last }
    }

    /// Whether it is `answer`, whatever the arguments.
    pub fn is(&self, answer: Answer) -> bool {
        self.cases.is_empty() && self.last == answer
    }

    /// What is done with a call of these arguments.
    pub fn answer(&self, args: [u64; 6]) -> Answer {
        let holds = |clause: &Clause| clause.iter().all(|condition| condition.holds(args));
        let case = self.cases.iter().find(|case| case.clauses.iter().any(holds));
        case.map_or(self.last, |case| case.answer)
    }

    /// Every condition.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.cases.iter().flat_map(|case| &case.clauses).flatten()
    }

    fn answers(&self) -> impl Iterator<Item = Answer> {
        self.cases.iter().map(|case| case.answer).chain([self.last])
    }

    /// Whether the call is ever carried out.
    pub fn gives(&self) -> bool {
        self.answers().any(Answer::gives)
    }
}

/// The answers to every call, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Calls with an answer of their own, each once. Every other known call is
    /// refused with EPERM, every unknown one with ENOSYS.
    pub calls: Vec<(&'static str, Verdict)>,
    /// What becomes of a refused call.
    pub on_deny: OnDeny,
    /// The broker is told of what is allowed, too, and lets it go on: for
    /// `gosandbox learn`. Except what is in [`UNWATCHED`].
    pub watched: bool,
}

/// The group whose calls every Go program makes all the time: nobody learns
/// anything from them.
pub const UNWATCHED: &str = "go-runtime";

impl Rules {
    /// The answer to the call of this name, where it has one of its own.
    pub fn get(&self, name: &str) -> Option<&Verdict> {
        self.calls.iter().find(|(call, _)| *call == name).map(|(_, verdict)| verdict)
    }

    /// The calls that are carried out, always or on conditions.
    pub fn given(&self) -> impl Iterator<Item = &'static str> {
        self.calls.iter().filter(|(_, verdict)| verdict.gives()).map(|(name, _)| *name)
    }

    /// How many calls are carried out, always or on conditions.
    pub fn allowed(&self) -> usize {
        self.given().count()
    }

    /// The calls that the broker carries out, always or on conditions.
    pub fn asked(&self) -> impl Iterator<Item = &'static str> {
        let asks = |verdict: &Verdict| verdict.answers().any(|answer| answer == Answer::Ask);
        self.calls.iter().filter(move |(_, verdict)| asks(verdict)).map(|(name, _)| *name)
    }

    /// How many are carried out on conditions.
    pub fn conditional(&self) -> usize {
        self.count(|v| !v.cases.is_empty() && v.gives())
    }

    /// How many end the process.
    pub fn killing(&self) -> usize {
        self.count(|v| v.is(Answer::Kill))
    }

    /// What is done with the call of this number and these arguments.
    pub fn decide(&self, arch: Arch, number: u32, args: [u64; 6]) -> Answer {
        let Some(name) = arch.call(number) else {
            return Answer::Refuse(arch.unlisted(number));
        };
        self.get(name).map_or(Answer::Refuse(libc_errno::EPERM), |verdict| verdict.answer(args))
    }

    /// The arguments that the answer to this call depends on, the others zero.
    pub fn looked_at(&self, arch: Arch, number: u32, args: [u64; 6]) -> [u64; 6] {
        let verdict = arch.call(number).and_then(|name| self.get(name));
        let mut looked = [0; 6];
        for condition in verdict.into_iter().flat_map(Verdict::conditions) {
            let index = usize::from(condition.argument);
            if let (Some(looked), Some(&arg)) = (looked.get_mut(index), args.get(index)) {
                *looked = arg;
            }
        }
        looked
    }

    /// The same rules, which let through an execve whose three registers that
    /// execve has no use for hold `key`: the one that starts the tenant's binary,
    /// where its policy has none. The filter has to be there before the binary
    /// is; the tenant cannot know 192 random bits, which exec wipes from its
    /// registers and memory.
    fn with_exec_key(mut self, key: [u64; 3]) -> Self {
        let refused = Verdict::from(Answer::Refuse(libc_errno::EPERM));
        let mut verdict = self.get("execve").cloned().unwrap_or(refused);
        if !verdict.is(Answer::Allow) {
            let clauses = vec![conditions::key(3, key)];
            verdict.cases.insert(0, Case { clauses, answer: Answer::Allow });
            self.set("execve", verdict);
        }
        self
    }

    /// What the filter is compiled from: these rules, with the one execve that
    /// `key` opens, and where they are watched, every allowed call asked about.
    pub fn for_filter(&self, key: [u64; 3]) -> Cow<'_, Self> {
        if !self.watched {
            // A copy takes as long as compiling.
            let open = self.get("execve").is_some_and(|verdict| verdict.is(Answer::Allow));
            return if open {
                Cow::Borrowed(self)
            } else {
                Cow::Owned(self.clone().with_exec_key(key))
            };
        }
        let mut rules = self.clone();
        let unwatched = |name: &str| {
            GROUPS.iter().any(|group| group.name == UNWATCHED && group.calls.contains(&name))
        };
        for (name, verdict) in &mut rules.calls {
            if verdict.gives() && !unwatched(name) {
                *verdict = Answer::Ask.into();
            }
        }
        Cow::Owned(rules.with_exec_key(key))
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

/// What a policy says of system calls: `[syscalls]`.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Groups of calls.
    pub groups: &'a [String],
    /// Calls besides.
    pub allow: &'a [String],
    /// Calls that are refused although a group has them.
    pub deny: &'a [String],
    /// Calls that end the process.
    pub kill: &'a [String],
    /// What becomes of a refused call.
    pub on_deny: OnDeny,
    /// Whose network the calls are about.
    pub network: &'a NetworkMode,
}

impl<'a> Wanted<'a> {
    /// What `policy` says, for a tenant in `network`.
    pub fn of(policy: &'a sections::syscalls, network: &'a NetworkMode) -> Self {
        Self {
            groups: &policy.groups.value,
            allow: &policy.allow.value,
            deny: &policy.deny.value,
            kill: &policy.kill.value,
            on_deny: policy.on_deny.value,
            network,
        }
    }
}

/// The rules of a policy. `deny` goes before `allow`, and `kill` before both.
///
/// # Errors
/// A group or a call of that name does not exist, a call may not be given out
/// because it would open the sandbox, or one is refused without which nothing
/// starts.
pub fn resolve(wanted: Wanted<'_>) -> Result<Rules, String> {
    let mut rules = fixed(wanted.on_deny);
    for (index, name) in wanted.groups.iter().enumerate() {
        let group = GROUPS.iter().find(|g| g.name == name).ok_or_else(|| {
            let known: Vec<_> = GROUPS.iter().map(|g| g.name).collect();
            format!("no group of system calls is called {name:?} (there are {})", known.join(", "))
        })?;
        if !wanted.groups[..index].contains(name) {
            let verdicts = group.calls.iter().map(|&c| (c, conditions::verdict(c, wanted.network)));
            rules.calls.extend(verdicts);
        }
    }
    amend(&mut rules, wanted)?;
    Ok(rules)
}

/// The rules of a profile, which takes the place of groups, and what is worth
/// knowing of them. What it allows is given out on gosandbox's own conditions;
/// what gosandbox never gives out, kills for or answers ENOSYS stays as it is.
///
/// # Errors
/// As [`resolve`]; or the kernel would not take a filter of that size.
pub fn resolve_profile(
    profile: &oci::Profile,
    wanted: Wanted<'_>,
) -> Result<(Rules, Vec<String>), String> {
    let mut rules = fixed(wanted.on_deny);
    let mut notes = profile.notes.clone();
    let mut kept = Vec::new();
    let refused = Verdict::from(Answer::Refuse(libc_errno::EPERM));
    for (name, _) in profile.arch.calls() {
        let cases = profile.calls.get(name).map_or(&[][..], Vec::as_slice);
        let has_own_answer = rules.get(name).is_some();
        let never = has_own_answer || groups::NEVER.contains(&name);
        if never && cases.iter().any(|case| case.answer == Answer::Allow) {
            kept.push(name);
        }
        if has_own_answer {
            continue;
        }
        let own = if never { refused.clone() } else { conditions::verdict(name, wanted.network) };
        let verdict = intersect::both(&own, cases, profile.default);
        if verdict != refused {
            rules.calls.push((name, verdict));
        }
    }
    if !kept.is_empty() {
        notes.push(format!(
            "allows what gosandbox never gives out ({}): {}",
            kept.len(),
            kept.join(", ")
        ));
    }
    amend(&mut rules, wanted)?;
    let length = compile(&rules.for_filter([0; 3]), profile.arch).len();
    if length > MAX_INSTRUCTIONS {
        return Err(format!(
            "the profile makes a filter of {length} instructions, and the kernel takes \
             {MAX_INSTRUCTIONS} (leave comparisons out)"
        ));
    }
    Ok((rules, notes))
}

/// BPF_MAXINSNS, include/uapi/linux/bpf_common.h.
const MAX_INSTRUCTIONS: usize = 4096;

/// What every tenant has: the calls that are answered ENOSYS or with death.
fn fixed(on_deny: OnDeny) -> Rules {
    let mut rules = Rules { calls: Vec::with_capacity(256), on_deny, watched: false };
    // These lists and the groups have no call in common, as a test makes sure,
    // so nothing has to be looked for.
    let fixed = |names: &'static [&'static str], answer: Answer| {
        names.iter().map(move |&name| (name, answer.into()))
    };
    rules.calls.extend(fixed(groups::PROBED, Answer::Errno(libc_errno::ENOSYS)));
    rules.calls.extend(fixed(groups::ENOSYS, Answer::Refuse(libc_errno::ENOSYS)));
    rules.calls.extend(fixed(groups::KILL, Answer::Kill));
    rules
}

/// Single calls are given out or taken away again.
fn amend(rules: &mut Rules, wanted: Wanted<'_>) -> Result<(), String> {
    for name in wanted.allow {
        let name = known(name)?;
        if groups::NEVER.contains(&name) {
            return Err(format!(
                "{name} is never given out: it would open the sandbox (leave it out)"
            ));
        }
        rules.set(name, conditions::verdict(name, wanted.network));
    }
    for name in wanted.deny {
        rules.set(known(name)?, Answer::Refuse(libc_errno::EPERM).into());
    }
    for name in wanted.kill {
        rules.set(known(name)?, Answer::Kill.into());
    }
    // What gosandbox's own code still calls under the filter, where the binary
    // cannot be executed. One that waited for a broker would wait for ever.
    for name in ["write", "exit_group"] {
        if !rules.get(name).is_some_and(|verdict| verdict.is(Answer::Allow)) {
            return Err(format!(
                "{name} is not allowed, without which no program can say why it ends (allow it)"
            ));
        }
    }
    Ok(())
}

/// The rules for learning what a program needs: every call that any policy may
/// give out, on the conditions that any has, but for what this one refuses.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_watched(wanted: Wanted<'_>) -> Result<Rules, String> {
    let groups: Vec<String> = GROUPS.iter().map(|group| group.name.to_owned()).collect();
    let ours = [groups::NEVER, groups::KILL, groups::ENOSYS, groups::PROBED];
    let allow: Vec<String> = Arch::native()
        .calls()
        .map(|(name, _)| name)
        .filter(|name| !ours.iter().any(|list| list.contains(name)))
        .map(str::to_owned)
        .collect();
    let wanted = Wanted { groups: &groups, allow: &allow, on_deny: OnDeny::Log, ..wanted };
    Ok(Rules { watched: true, ..resolve(wanted)? })
}

/// The one static copy of a call's name; an error for a name that is no call.
fn known(name: &str) -> Result<&'static str, String> {
    let arch = Arch::native();
    arch.number(name).and_then(|number| arch.call(number)).ok_or_else(|| {
        format!("no system call is called {name:?} on this machine (see syscalls(2))")
    })
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

    const BASE: [&str; 4] = ["go-runtime", "files", "net-server", "net-client"];

    fn wanted(
        groups: &[&str],
        allow: &[&str],
        deny: &[&str],
        network: &NetworkMode,
    ) -> Result<Rules, String> {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        resolve(Wanted {
            groups: &names(groups),
            allow: &names(allow),
            deny: &names(deny),
            kill: &[],
            on_deny: OnDeny::Log,
            network,
        })
    }

    fn of(policy: &policy::Policy) -> Rules {
        resolve(Wanted::of(&policy.syscalls, &NetworkMode::Host)).unwrap()
    }

    #[test]
    fn unknown_names_are_errors_with_the_known_ones() {
        let error = wanted(&["go"], &[], &[], &NetworkMode::Private).unwrap_err();
        assert!(error.contains("go-runtime"), "{error}");
        let error = wanted(&[], &["opne"], &[], &NetworkMode::Private).unwrap_err();
        assert!(error.contains("\"opne\""), "{error}");
    }

    #[test]
    fn what_would_open_the_sandbox_is_never_given_out() {
        for name in groups::NEVER {
            let error = wanted(&[], &[name], &[], &NetworkMode::Host).unwrap_err();
            assert!(error.contains("never given out"), "{error}");
        }
    }

    #[test]
    fn deny_wins_over_groups_and_allow() {
        let rules = wanted(&BASE, &["openat"], &["openat"], &NetworkMode::Private).unwrap();
        assert!(rules.get("openat").unwrap().is(Answer::Refuse(1)));
        assert!(rules.get("close").unwrap().is(Answer::Allow));
    }

    #[test]
    fn in_a_private_network_the_broker_is_asked() {
        let private = wanted(&BASE, &[], &[], &NetworkMode::Private).unwrap();
        for call in ["connect", "bind", "listen"] {
            assert!(private.get(call).unwrap().is(Answer::Ask));
        }
        // Not even by the back door of an explicit allow.
        let forced = wanted(&BASE, &["connect"], &[], &NetworkMode::Private).unwrap();
        assert!(forced.get("connect").unwrap().is(Answer::Ask));
        let host = wanted(&BASE, &[], &[], &NetworkMode::Host).unwrap();
        assert!(host.get("connect").unwrap().is(Answer::Allow));
        assert_eq!(host.asked().count(), 0);
    }

    #[test]
    fn every_shipped_policy_stays_below_160_calls() {
        for (name, _) in policy::shipped() {
            let policy = policy::load(Some(name), None, Vec::new(), false).unwrap();
            let rules = of(&policy);
            let most = if *name == "strict" { 79 } else { 160 };
            assert!(rules.allowed() <= most, "{name}: {}", rules.allowed());
        }
    }

    /// `policies/derive` saw honest programs make these calls, each of which
    /// the default policy has to answer as they need it.
    #[test]
    fn the_default_policy_covers_what_was_observed() {
        let policy = policy::load(None, None, Vec::new(), false).unwrap();
        let rules = of(&policy);
        let observed = include_str!("../../policies/observed.tsv");
        let calls: Vec<&str> = observed
            .lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with("call\t"))
            .filter_map(|line| line.split('\t').next())
            .collect();
        assert!(calls.len() > 100, "{} is not what derive writes", calls.len());
        for call in calls {
            assert!(
                rules.get(call).is_some_and(Verdict::gives),
                "{call} was observed and is {:?}",
                rules.get(call)
            );
        }
    }

    /// include/uapi/asm-generic/unistd.h: the same number everywhere, and the
    /// last that is known.
    #[test]
    fn the_newest_call_is_known() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            assert!(arch.calls().any(|call| call == ("file_setattr", 469)), "{arch:?}");
        }
        wanted(&BASE, &["file_setattr"], &[], &NetworkMode::Private).unwrap();
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
