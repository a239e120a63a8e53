//! Rules → BPF: one program with every answer, as a binary tree over ranges of
//! call numbers.
//!
//! A chain of compares, one a call, takes the kernel nine times as long to load
//! (`make bench-seccomp`): it compiles every instruction, and it runs the program
//! for every call number to fill its cache of constant answers (kernel/seccomp.c,
//! seccomp_cache_prepare). So the program is short, and as shallow for numbers
//! that nobody uses as for others. Only loads of number and architecture, jumps,
//! AND and returns stand in front of an answer without conditions, since that is
//! what the cache understands.

use syscalls::{aarch64, x86_64};

use super::{Answer, Clause, Condition, Operator, Rules, Verdict, Width, libc_errno};
use crate::policy::OnDeny;
use crate::sys::seccomp::Instruction;

/// An architecture that a filter can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// AMD64, without x32.
    X86_64,
    /// 64-bit ARM, little-endian.
    Aarch64,
}

impl Arch {
    /// The one this program was built for.
    pub const fn native() -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self::X86_64;
        #[cfg(target_arch = "aarch64")]
        return Self::Aarch64;
    }

    /// As uname(2) calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// AUDIT_ARCH_* of include/uapi/linux/audit.h.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    /// The number of a call, where this architecture has it.
    pub fn number(self, name: &str) -> Option<u32> {
        match self {
            Self::X86_64 => name.parse::<x86_64::Sysno>().ok().map(|n| n as u32),
            Self::Aarch64 => match name {
                "newfstatat" => Some(79),
                _ => name
                    .parse::<aarch64::Sysno>()
                    .ok()
                    .filter(|n| aarch64_name(*n) == Some(name))
                    .map(|n| n as u32),
            },
        }
    }

    /// Every call by name and number.
    pub fn calls(self) -> Box<dyn Iterator<Item = (&'static str, u32)>> {
        // Not Sysno::iter, which leaves the last one out (syscalls 0.8.1).
        match self {
            Self::X86_64 => Box::new(
                (0..x86_64::Sysno::table_size())
                    .filter_map(x86_64::Sysno::new)
                    .map(|n| (n.name(), n as u32)),
            ),
            Self::Aarch64 => Box::new(
                (0..aarch64::Sysno::table_size())
                    .filter_map(aarch64::Sysno::new)
                    .filter_map(|n| Some((aarch64_name(n)?, n as u32))),
            ),
        }
    }

    /// The name of a call, where this architecture has one of that number.
    pub fn call(self, number: u32) -> Option<&'static str> {
        let number = number as usize;
        match self {
            Self::X86_64 => x86_64::Sysno::new(number).map(|n| n.name()),
            Self::Aarch64 => aarch64::Sysno::new(number).and_then(aarch64_name),
        }
    }

    /// The errno for a number that is not a call: what the kernel would say of one
    /// that came later.
    pub(super) fn unlisted(self, number: u32) -> i32 {
        if number >= self.unknown_from() { libc_errno::ENOSYS } else { libc_errno::EPERM }
    }

    /// The first number that this program has never heard of.
    pub(super) fn unknown_from(self) -> u32 {
        match self {
            Self::X86_64 => x86_64::Sysno::last() as u32 + 1,
            Self::Aarch64 => aarch64::Sysno::last() as u32 + 1,
        }
    }
}

/// The kernel's name of a call, include/uapi/asm-generic/unistd.h: the crate has
/// another for one of them, and calls for 64-bit time that only 32-bit
/// architectures need and have.
fn aarch64_name(call: aarch64::Sysno) -> Option<&'static str> {
    match call.id() {
        79 => Some("newfstatat"),
        403..=423 => None,
        _ => Some(call.name()),
    }
}

// Operations: include/uapi/linux/bpf_common.h. LOAD is BPF_LD | BPF_W | BPF_ABS.
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQ: u16 = 0x15;
pub(super) const JUMP_GT: u16 = 0x25;
pub(super) const JUMP_GE: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

// Offsets in struct seccomp_data.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
pub(super) const ARGUMENTS: u32 = 16;

pub(super) const RET_KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const RET_ERRNO: u32 = 0x0005_0000;
pub(super) const RET_ALLOW: u32 = 0x7fff_0000;
/// SECCOMP_RET_USER_NOTIF.
pub(super) const RET_ASK: u32 = 0x7fc0_0000;

/// Set in the number of every x32 call: __X32_SYSCALL_BIT.
pub(super) const X32_BIT: u32 = 0x4000_0000;

fn errno(errno: i32) -> u32 {
    RET_ERRNO | (errno.unsigned_abs() & 0xffff)
}

/// The program for `rules`. Calls that `arch` does not have are left out.
pub fn compile(rules: &Rules, arch: Arch) -> Vec<Instruction> {
    let reversed = Vec::with_capacity(512);
    let mut program = Backwards { on_deny: rules.on_deny, reversed, answers: Vec::new() };
    let unknown_from = arch.unknown_from();
    let other = Leads::To(program.action(Answer::Refuse(libc_errno::EPERM)));
    let mut answers = vec![other; unknown_from as usize];
    for (name, verdict) in &rules.calls {
        if let Some(answer) = arch.number(name).and_then(|n| answers.get_mut(n as usize)) {
            let always = verdict.cases.is_empty().then(|| program.action(verdict.last));
            *answer = always.map_or(Leads::On(verdict), Leads::To);
        }
    }

    // Ranges by their first number, neighbours with the same answer joined.
    let mut ranges: Vec<Range<'_>> = (0..).zip(answers).collect();
    let unknown = program.action(Answer::Refuse(libc_errno::ENOSYS));
    ranges.push((unknown_from, Leads::To(unknown)));
    if arch == Arch::X86_64 {
        ranges.push((X32_BIT, Leads::To(RET_KILL_PROCESS)));
    }
    ranges.dedup_by(|later, earlier| later.1 == earlier.1);

    let kill = program.answer(RET_KILL_PROCESS);
    let entry = program.tree(&leaves(&ranges), unknown_from);
    program.load(NUMBER, entry);
    let entry = program.next();
    program.branch(JUMP_EQ, arch.audit(), entry, kill);
    program.load(ARCHITECTURE, program.next());
    program.finish()
}

/// What a number leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leads<'a> {
    /// The constant of a RETURN.
    To(u32),
    /// Conditions.
    On(&'a Verdict),
}

/// From this number to the next range.
type Range<'a> = (u32, Leads<'a>);

/// Ranges that one leaf of the tree answers: the first and every second after it
/// have the same answer, and those in between are single numbers, for which a
/// test for equality is enough. With more than two of them the others would be
/// looked at too often.
fn leaves<'a, 'b>(mut ranges: &'b [Range<'a>]) -> Vec<&'b [Range<'a>]> {
    let mut leaves = Vec::with_capacity(ranges.len());
    while let Some(first) = ranges.first() {
        let mut len = 1;
        while let [(single, _), after] = ranges.get(len..len + 2).unwrap_or_default()
            && after.0 == single + 1
            && after.1 == first.1
            && len < 5
        {
            len += 2;
        }
        let (leaf, rest) = ranges.split_at(len);
        leaves.push(leaf);
        ranges = rest;
    }
    leaves
}

/// A place in the program, counted from its end. Jumps in BPF go forward only,
/// so what is jumped to is written first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(usize);

/// A program under construction, last instruction first. Every branch names
/// both of its targets, so that anything may be put in front of anything.
struct Backwards {
    on_deny: OnDeny,
    reversed: Vec<Instruction>,
    answers: Vec<(u32, Place)>,
}

/// Conditional jumps have eight bits for the distance.
const REACH: usize = 255;

impl Backwards {
    /// Where the instruction that was written last is.
    fn next(&self) -> Place {
        Place(self.reversed.len() - 1)
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Place {
        self.reversed.push(Instruction { code, jt, jf, k });
        self.next()
    }

    /// How many instructions lie between the one that will be written next and
    /// `target`.
    fn distance(&self, target: Place) -> usize {
        self.next().0 - target.0
    }

    /// A place that returns `value`, near enough to be jumped to.
    fn answer(&mut self, value: u32) -> Place {
        let known = self.answers.iter().position(|(known, _)| *known == value);
        if let Some(known) = known {
            let place = self.answers[known].1;
            // Two trampolines may come in between.
            if self.distance(place) + 2 <= REACH {
                return place;
            }
            let place = self.push(RETURN, 0, 0, value);
            self.answers[known].1 = place;
            return place;
        }
        let place = self.push(RETURN, 0, 0, value);
        self.answers.push((value, place));
        place
    }

    /// `target`, or something within reach that leads there.
    fn near(&mut self, target: Place) -> Place {
        if self.distance(target) + 2 <= REACH {
            return target;
        }
        let instruction = self.reversed[target.0];
        if instruction.code == RETURN {
            return self.answer(instruction.k);
        }
        // A program has at most 4096 instructions (BPF_MAXINSNS), which fits.
        #[allow(clippy::cast_possible_truncation)]
        let distance = self.distance(target) as u32;
        self.push(JUMP, 0, 0, distance)
    }

    /// If the accumulator compares as `code` says with `k`, `yes`, else `no`.
    fn branch(&mut self, code: u16, k: u32, yes: Place, no: Place) -> Place {
        let yes = self.near(yes);
        let no = self.near(no);
        // `near` has seen to it that both are within eight bits.
        #[allow(clippy::cast_possible_truncation)]
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(code, jt, jf, k)
    }

    /// Loads a word of seccomp_data and goes on with what was written last.
    fn load(&mut self, offset: u32, then: Place) {
        debug_assert_eq!(then, self.next(), "a load falls through");
        self.push(LOAD, 0, 0, offset);
    }

    /// The tree over `leaves`, which are sorted by their first number. The
    /// accumulator holds the number. The two halves have as many numbers below
    /// `end`, and not as many leaves: numbers are what the kernel tries.
    fn tree(&mut self, leaves: &[&[Range<'_>]], end: u32) -> Place {
        let start = |leaf: &[Range<'_>]| leaf.first().map_or(end, |range| range.0.min(end));
        match leaves {
            [] => self.given(Answer::Refuse(libc_errno::EPERM)),
            [leaf] => self.leaf(leaf),
            [first, .., last] => {
                let middle = u32::midpoint(start(first), start(last));
                let at = leaves.partition_point(|leaf| start(leaf) <= middle);
                let (low, high) = leaves.split_at(at.clamp(1, leaves.len() - 1));
                let yes = self.tree(high, end);
                let no = self.tree(low, end);
                self.branch(JUMP_GE, high[0][0].0, yes, no)
            }
        }
    }

    /// One answer, but for single numbers at every second place.
    fn leaf(&mut self, ranges: &[Range<'_>]) -> Place {
        let all = self.led(ranges[0].1);
        ranges.iter().skip(1).step_by(2).rev().fold(all, |otherwise, &(number, leads)| {
            let then = self.led(leads);
            self.branch(JUMP_EQ, number, then, otherwise)
        })
    }

    /// Where a number leads.
    fn led(&mut self, leads: Leads<'_>) -> Place {
        let verdict = match leads {
            Leads::To(value) => return self.answer(value),
            Leads::On(verdict) => verdict,
        };
        let last = self.given(verdict.last);
        verdict.cases.iter().rev().fold(last, |otherwise, case| {
            let yes = self.given(case.answer);
            self.any(&slices(&case.clauses), yes, otherwise)
        })
    }

    fn given(&mut self, answer: Answer) -> Place {
        self.answer(self.action(answer))
    }

    /// The constant that stands for an answer.
    fn action(&self, answer: Answer) -> u32 {
        match (answer, self.on_deny) {
            (Answer::Allow, _) => RET_ALLOW,
            (Answer::Errno(value), _) | (Answer::Refuse(value), OnDeny::Errno) => errno(value),
            (Answer::Refuse(libc_errno::ENOSYS), OnDeny::Kill) => errno(libc_errno::ENOSYS),
            (Answer::Refuse(_), OnDeny::Kill) | (Answer::Kill, _) => RET_KILL_PROCESS,
            (Answer::Refuse(_), OnDeny::Log) | (Answer::Ask, _) => RET_ASK,
        }
    }

    /// `yes` if one of the clauses holds. Where all of them begin by comparing
    /// the same bits with a value, these are loaded once, and what else a value
    /// asks for is looked at only there.
    fn any(&mut self, clauses: &[&[Condition]], yes: Place, no: Place) -> Place {
        if yes == no {
            // Refused in one of two ways, which are one where the broker is asked.
            return no;
        }
        let Some((offset, mask)) = common_field(clauses) else {
            return clauses.iter().rev().fold(no, |no, clause| self.all(clause, yes, no));
        };
        let mut values: Vec<u32> = Vec::new();
        for value in clauses.iter().filter_map(|clause| Some(field(clause.first()?)?.2)) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        let mut next = no;
        let mut written: Vec<(Vec<&[Condition]>, Place)> = Vec::new();
        for value in values.into_iter().rev() {
            let rest: Vec<&[Condition]> = clauses
                .iter()
                .filter(|clause| clause.first().and_then(field).is_some_and(|f| f.2 == value))
                .map(|clause| &clause[1..])
                .collect();
            let then = if rest.iter().any(|r| r.is_empty()) {
                yes
            } else if let Some((_, then)) = written.iter().find(|(other, _)| *other == rest) {
                *then
            } else {
                let then = self.any(&rest, yes, no);
                written.push((rest, then));
                then
            };
            next = self.branch(JUMP_EQ, value, then, next);
        }
        if mask != u32::MAX {
            self.push(AND, 0, 0, mask);
        }
        self.load(offset, self.next());
        self.next()
    }

    /// `yes` if every condition of the clause holds.
    fn all(&mut self, clause: &[Condition], yes: Place, no: Place) -> Place {
        clause.iter().rev().fold(yes, |then, condition| {
            // What this one loads is there still, if it is one half and has no mask.
            let load = Instruction { code: LOAD, jt: 0, jf: 0, k: low_half(*condition) };
            let kept = condition.width == Width::Int
                && matches!(condition.operator, Operator::Is(_) | Operator::IsNot(_));
            let mut then = then;
            if kept && then != yes && self.reversed.last() == Some(&load) {
                self.reversed.pop();
                then = self.next();
            }
            self.condition(*condition, then, no)
        })
    }

    fn condition(&mut self, condition: Condition, yes: Place, no: Place) -> Place {
        let (mask, value, yes, no) = match condition.operator {
            Operator::Is(value) => (u64::MAX, value, yes, no),
            Operator::IsNot(value) => (u64::MAX, value, no, yes),
            Operator::Masked(mask, value) => (mask, value, yes, no),
            Operator::AtLeast(value) => return self.order(JUMP_GE, condition, value, yes, no),
            Operator::Less(value) => return self.order(JUMP_GE, condition, value, no, yes),
            Operator::More(value) => return self.order(JUMP_GT, condition, value, yes, no),
            Operator::AtMost(value) => return self.order(JUMP_GT, condition, value, no, yes),
        };
        let low = low_half(condition);
        #[allow(clippy::cast_possible_truncation)] // the two halves
        let then = self.half(low, mask as u32, value as u32, yes, no);
        match condition.width {
            Width::Int => then,
            #[allow(clippy::cast_possible_truncation)]
            Width::Long => self.half(low + 4, (mask >> 32) as u32, (value >> 32) as u32, then, no),
        }
    }

    /// Compares one half of an argument. Both architectures are little-endian.
    fn half(&mut self, offset: u32, mask: u32, value: u32, yes: Place, no: Place) -> Place {
        self.branch(JUMP_EQ, value, yes, no);
        if mask != u32::MAX {
            self.push(AND, 0, 0, mask);
        }
        self.load(offset, self.next());
        self.next()
    }

    /// `yes` if the argument is greater than `value`, or with JUMP_GE equal to
    /// it: the low halves decide only between equal high ones.
    fn order(&mut self, code: u16, with: Condition, value: u64, yes: Place, no: Place) -> Place {
        let low = low_half(with);
        #[allow(clippy::cast_possible_truncation)] // the two halves
        let halves = (value as u32, (value >> 32) as u32);
        self.branch(code, halves.0, yes, no);
        self.load(low, self.next());
        if with.width == Width::Int {
            return self.next();
        }
        let equal = self.next();
        let not_more = self.branch(JUMP_EQ, halves.1, equal, no);
        self.branch(JUMP_GT, halves.1, yes, not_more);
        self.load(low + 4, self.next());
        self.next()
    }

    fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }
}

fn slices(clauses: &[Clause]) -> Vec<&[Condition]> {
    clauses.iter().map(Vec::as_slice).collect()
}

/// Where the low half of the condition's argument is.
fn low_half(condition: Condition) -> u32 {
    ARGUMENTS + 8 * u32::from(condition.argument)
}

/// Offset, mask and value of a comparison that is for equality and of one half.
fn field(condition: &Condition) -> Option<(u32, u32, u32)> {
    #[allow(clippy::cast_possible_truncation)] // an int is the low half
    match (condition.width, condition.operator) {
        (Width::Int, Operator::Is(value)) => Some((low_half(*condition), u32::MAX, value as u32)),
        (Width::Int, Operator::Masked(mask, value)) => {
            Some((low_half(*condition), mask as u32, value as u32))
        }
        _ => None,
    }
}

/// The offset and mask that all clauses begin with, if there are such.
fn common_field(clauses: &[&[Condition]]) -> Option<(u32, u32)> {
    let mut fields = clauses.iter().map(|clause| {
        let (offset, mask, _) = field(clause.first()?)?;
        Some((offset, mask))
    });
    let first = fields.next()??;
    fields.all(|other| other == Some(first)).then_some(first)
}

/// What the sandbox's init may do once it has made the app: wait for signals
/// and children, pass signals on, report, close, end. Anything else kills it.
///
/// # Errors
/// None with this fixed list; the type is seccompiler's.
pub fn init_filter() -> Result<Vec<Instruction>, seccompiler::Error> {
    only(&[
        libc::SYS_rt_sigtimedwait,
        libc::SYS_wait4,
        libc::SYS_kill,
        libc::SYS_write,
        libc::SYS_close_range,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
    ])
}

/// What the broker may do once it serves: read a waiting caller's address, take
/// a copy of its socket, do with sockets what it was asked to, answer. No exec,
/// no new process, no name in a file system made but a socket's.
pub const BROKER_CALLS: [libc::c_long; 36] = [
    // The listener, and what is asked there.
    libc::SYS_ioctl,
    libc::SYS_ppoll,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_vm_readv,
    libc::SYS_openat,
    libc::SYS_read,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_fchdir,
    libc::SYS_close,
    libc::SYS_fcntl,
    // Sockets.
    libc::SYS_socket,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_write,
    // Memory, time, the end.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_exit_group,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
];

/// The filter of [`BROKER_CALLS`]; anything else kills it.
///
/// # Errors
/// None with this fixed list; the type is seccompiler's.
pub fn broker_filter() -> Result<Vec<Instruction>, seccompiler::Error> {
    only(&BROKER_CALLS)
}

/// A filter that lets `calls` through and kills for every other.
fn only(calls: &[libc::c_long]) -> Result<Vec<Instruction>, seccompiler::Error> {
    let filter = seccompiler::SeccompFilter::new(
        calls.iter().map(|&call| (call, Vec::new())).collect(),
        seccompiler::SeccompAction::KillProcess,
        seccompiler::SeccompAction::Allow,
        match Arch::native() {
            Arch::X86_64 => seccompiler::TargetArch::x86_64,
            Arch::Aarch64 => seccompiler::TargetArch::aarch64,
        },
    )
    .map_err(seccompiler::Error::Backend)?;
    let program: seccompiler::BpfProgram =
        filter.try_into().map_err(seccompiler::Error::Backend)?;
    Ok(program
        .into_iter()
        .map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k })
        .collect())
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
