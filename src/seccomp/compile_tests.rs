//! The compiled program against the rules it was compiled from, and against
//! what seccompiler makes of the same rules. The kernel runs the programs
//! (`sys::evaluate`), so nothing here knows BPF.

use std::collections::BTreeMap;

use super::*;
use crate::policy::{self, NetworkMode, OnDeny};
use crate::seccomp::{Case, Wanted, resolve};
use crate::sys::evaluate::{Call, Gate, UNSEEN, evaluate};

/// Every number up to 600, and again with x32's bit.
fn numbers() -> impl Iterator<Item = u32> {
    let seen = |number: &u32| !UNSEEN.contains(number);
    (0..=600).chain(X32_BIT..=X32_BIT + 600).filter(seen)
}

/// What the kernel answers to each call, as the constants of the program.
fn answers(program: &[Instruction], calls: &[Call]) -> Vec<u32> {
    evaluate(program, Gate::Native, calls).unwrap()
}

/// A program for `arch` that says it is for this machine, so that the kernel
/// takes calls of its own for calls of that architecture.
fn as_native(mut program: Vec<Instruction>, arch: Arch) -> Vec<Instruction> {
    let [load, compare, ..] = program.as_mut_slice() else { panic!("too short") };
    assert_eq!((load.code, load.k), (LOAD, ARCHITECTURE));
    assert_eq!((compare.code, compare.k), (JUMP_EQ, arch.audit()));
    compare.k = Arch::native().audit();
    program
}

fn shipped_rules() -> Vec<(String, Rules)> {
    let mut all = Vec::new();
    for (name, _) in policy::shipped() {
        let policy = policy::load(Some(name), None, Vec::new(), false).unwrap();
        for mode in [NetworkMode::Private, NetworkMode::Host] {
            for on_deny in [OnDeny::Log, OnDeny::Errno, OnDeny::Kill] {
                let rules = resolve(Wanted { on_deny, ..Wanted::of(&policy.syscalls, &mode) });
                // Nothing is changed where a policy has the group exec.
                let rules = rules.unwrap().with_exec_key([7, 1 << 40 | 5, u64::MAX]);
                all.push((format!("{name} {mode:?} {on_deny:?}"), rules));
            }
        }
    }
    all
}

/// What the rules say of a call of this number.
fn verdict(rules: &Rules, arch: Arch, number: u32) -> Verdict {
    if arch == Arch::X86_64 && number >= X32_BIT {
        return Answer::Kill.into();
    }
    match arch.calls().find(|(_, n)| *n == number) {
        Some((name, _)) => rules.get(name).cloned().unwrap_or(Answer::Refuse(1).into()),
        None => {
            let newest = arch.calls().map(|(_, n)| n).max();
            Answer::Refuse(if Some(number) > newest { 38 } else { 1 }).into()
        }
    }
}

/// What a verdict says of a call with these arguments, without any BPF: what the
/// broker goes by, so that the two are held against each other.
fn expected(on_deny: OnDeny, verdict: &Verdict, args: [u64; 6]) -> u32 {
    match verdict.answer(args) {
        Answer::Allow => libc::SECCOMP_RET_ALLOW,
        Answer::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        Answer::Ask => libc::SECCOMP_RET_USER_NOTIF,
        Answer::Refuse(_) if on_deny == OnDeny::Log => libc::SECCOMP_RET_USER_NOTIF,
        Answer::Refuse(value) if on_deny == OnDeny::Kill && value != 38 => {
            libc::SECCOMP_RET_KILL_PROCESS
        }
        Answer::Errno(value) | Answer::Refuse(value) => {
            libc::SECCOMP_RET_ERRNO | value.cast_unsigned()
        }
    }
}

/// Arguments for a call with this verdict: for each argument that is compared,
/// the values around every constant it is compared with, each bit of a mask
/// turned over, the high half set and clear; all of them with all of the others.
/// The arguments that are not compared are once all clear and once all set.
fn boundary(verdict: &Verdict) -> Vec<[u64; 6]> {
    let mut all = vec![[0; 6], [u64::MAX; 6], [1, 1 << 32, 1 << 63, 0xffff_ffff, 0x1234_5678, 2]];
    let mut values: [Vec<u64>; 6] = Default::default();
    for condition in verdict.conditions() {
        let values = &mut values[usize::from(condition.argument)];
        values.extend([0, 1, u64::from(u32::MAX), 1 << 32, 1 << 63, u64::MAX]);
        let v = condition.operator.number();
        values.extend([v, v.wrapping_add(1), v.wrapping_sub(1)]);
        values.extend([v << 32, v | v << 32, v | 1 << 32, v | 1 << 63]);
        if let Operator::Masked(mask, v) = condition.operator {
            values.extend([v | !mask, v | mask]);
            values.extend((0..64).filter(|bit| mask >> bit & 1 == 1).map(|bit| v ^ 1 << bit));
        }
    }
    if values.iter().all(Vec::is_empty) {
        return all;
    }
    for rest in [0, u64::MAX] {
        let mut product = vec![[rest; 6]];
        for (argument, values) in values.iter_mut().enumerate().filter(|(_, v)| !v.is_empty()) {
            values.sort_unstable();
            values.dedup();
            product = product
                .iter()
                .flat_map(|args| {
                    values.iter().map(move |&value| {
                        let mut args = *args;
                        args[argument] = value;
                        args
                    })
                })
                .collect();
        }
        all.append(&mut product);
    }
    all
}

/// Every number with the arguments that matter, and what the rules say of each.
fn tried(rules: &Rules, arch: Arch) -> (Vec<Call>, Vec<u32>) {
    let edges = [0xffff, X32_BIT - 1, X32_BIT + 0xffff, 1 << 31, u32::MAX];
    numbers()
        .chain(edges)
        .flat_map(|number| {
            let verdict = verdict(rules, arch, number);
            boundary(&verdict)
                .into_iter()
                .map(move |args| ((number, args), expected(rules.on_deny, &verdict, args)))
        })
        .unzip()
}

/// Fails at the first call on which the two differ.
fn compare(what: &str, calls: &[Call], got: &[u32], want: &[u32]) {
    assert!(calls.len() == got.len() && got.len() == want.len());
    for ((call, got), want) in calls.iter().zip(got).zip(want) {
        assert_eq!(
            got, want,
            "{what}: call {} with {:x?}: {got:#x}, not {want:#x}",
            call.0, call.1
        );
    }
}

#[test]
fn every_number_gets_the_answer_of_the_rules() {
    for (name, rules) in shipped_rules() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            let program = as_native(compile(&rules, arch), arch);
            let (calls, want) = tried(&rules, arch);
            assert!(calls.len() > 10_000, "{} is no test", calls.len());
            compare(&format!("{name} {arch:?}"), &calls, &answers(&program, &calls), &want);
        }
    }
}

#[test]
fn every_call_that_has_a_number_is_listed() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let calls: Vec<_> = arch.calls().collect();
        assert!(calls.iter().all(|(name, number)| arch.number(name) == Some(*number)));
        assert_eq!(calls.last().unwrap().1 + 1, arch.unknown_from());
    }
    let arm = |name| Arch::Aarch64.number(name);
    assert_eq!((arm("newfstatat"), arm("fstatat"), arm("ppoll_time64")), (Some(79), None, None));
    assert_eq!((arm("ppoll"), arm("pidfd_send_signal")), (Some(73), Some(424)));
    // include/uapi/asm-generic/unistd.h of Linux 6.17.
    assert!(Arch::Aarch64.calls().any(|call| call == ("file_setattr", 469)));
}

/// i386 by its own gate, and what every other architecture looks like: the
/// kernel of this one running a filter for another.
#[test]
fn foreign_abis_are_killed() {
    let calls: Vec<Call> = numbers().chain([u32::MAX]).map(|number| (number, [0; 6])).collect();
    let i386: Vec<Call> = UNSEEN.iter().map(|&n| (n, [0; 6])).chain(calls.clone()).collect();
    let killed = |calls: &[Call]| vec![libc::SECCOMP_RET_KILL_PROCESS; calls.len()];
    for (name, rules) in shipped_rules() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            let program = compile(&rules, arch);
            if arch != Arch::native() {
                compare(&name, &calls, &answers(&program, &calls), &killed(&calls));
            } else if arch == Arch::X86_64 {
                match evaluate(&program, Gate::I386, &i386) {
                    Ok(got) => compare(&name, &i386, &got, &killed(&i386)),
                    // A kernel without that gate ends the caller by SIGSEGV.
                    Err(why) => assert_eq!(why, "ended by signal 11"),
                }
            }
        }
    }
}

/// What seccompiler makes of the allowed calls and their conditions. It knows one
/// answer besides Allow a filter, so every other is EPERM.
fn by_seccompiler(rules: &Rules) -> Vec<Instruction> {
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
        SeccompFilter, SeccompRule,
    };
    let condition = |c: &Condition| {
        let len = if c.width == Width::Int { Len::Dword } else { Len::Qword };
        let (op, value) = match c.operator {
            Operator::Is(v) => (Op::Eq, v),
            Operator::IsNot(v) => (Op::Ne, v),
            Operator::Masked(mask, v) => (Op::MaskedEq(mask), v),
            Operator::Less(v) => (Op::Lt, v),
            Operator::AtMost(v) => (Op::Le, v),
            Operator::AtLeast(v) => (Op::Ge, v),
            Operator::More(v) => (Op::Gt, v),
        };
        SeccompCondition::new(c.argument, len, op, value).unwrap()
    };
    let rule = |clause: &Clause| SeccompRule::new(clause.iter().map(condition).collect()).unwrap();
    let mut map: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, verdict) in &rules.calls {
        let Some(number) = Arch::X86_64.number(call) else { continue };
        let case = verdict.cases.first().filter(|case| case.answer == Answer::Allow);
        let allowed = match case {
            Some(case) => case.clauses.iter().map(rule).collect(),
            None if verdict.is(Answer::Allow) => Vec::new(),
            None => continue,
        };
        map.insert(i64::from(number), allowed);
    }
    let filter = SeccompFilter::new(
        map,
        SeccompAction::Errno(1),
        SeccompAction::Allow,
        seccompiler::TargetArch::x86_64,
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect()
}

/// The two compilers allow the same calls with the same arguments.
#[test]
fn agrees_with_seccompiler() {
    for (name, rules) in shipped_rules() {
        let theirs = by_seccompiler(&rules);
        let ours = as_native(compile(&rules, Arch::X86_64), Arch::X86_64);
        let theirs = as_native(theirs, Arch::X86_64);
        // seccompiler does not look for x32's bit, and so answers it as a mismatch.
        let (calls, _) = tried(&rules, Arch::X86_64);
        let allowed = |program: &[Instruction]| -> Vec<u32> {
            answers(program, &calls).iter().map(|&k| u32::from(k == RET_ALLOW)).collect()
        };
        compare(&name, &calls, &allowed(&ours), &allowed(&theirs));
    }
}

/// The rules of `go-runtime` with these calls besides, in a private network.
fn base(allow: &[&str], deny: &[&str]) -> Rules {
    let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let (groups, allow, deny) = (names(&["go-runtime"]), names(allow), names(deny));
    let (groups, allow, deny) = (groups.as_slice(), allow.as_slice(), deny.as_slice());
    let (network, on_deny) = (&NetworkMode::Private, OnDeny::Errno);
    resolve(Wanted { groups, allow, deny, kill: &[], on_deny, network }).unwrap()
}

/// Where a policy denies it, nothing that was written becomes code, whatever else
/// is set in an argument; and what is no code is as it was.
#[test]
fn what_is_written_and_what_is_executed_are_apart() {
    use crate::policy::Permit::{Allow, Deny};
    const WRITE: u64 = 2;
    const EXECUTE: u64 = 4;
    let resolved = base(&["pkey_mprotect", "shmat"], &[]);
    let free = resolved.clone().keep_code(Allow, Deny).unwrap();
    assert_eq!(free, resolved);
    let held = resolved.keep_code(Deny, Deny).unwrap();
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let number = |call: &str| arch.number(call).unwrap();
        let mut calls: Vec<Call> = Vec::new();
        let mut shut: Vec<bool> = Vec::new();
        for high in [0, 1 << 32, 1 << 63] {
            for prot in (0..16).map(|prot| prot | high) {
                let code = prot & EXECUTE != 0;
                // The type of mapping in the low four bits: MAP_SHARED is 1,
                // MAP_PRIVATE 2, MAP_SHARED_VALIDATE 3, MAP_DROPPABLE 8.
                for flags in (0..64).map(|flags| flags | high) {
                    let private = flags & 0xf == 2;
                    calls.push((number("mmap"), [0, 1, prot, flags, 0, 0]));
                    shut.push(code && (prot & WRITE != 0 || !private));
                }
                for call in ["mprotect", "pkey_mprotect"] {
                    calls.push((number(call), [0, 1, prot, 0, 0, 0]));
                    shut.push(code);
                }
            }
            // SHM_EXEC, shmat(2).
            for (flags, code) in [(0, false), (0o10_000, false), (0o110_000, true)] {
                calls.push((number("shmat"), [0, 0, flags | high, 0, 0, 0]));
                shut.push(code);
            }
        }
        let program = |rules: &Rules| as_native(compile(rules, arch), arch);
        let all = vec![RET_ALLOW; calls.len()];
        compare("free", &calls, &answers(&program(&free), &calls), &all);
        let want: Vec<u32> =
            shut.iter().map(|&shut| if shut { errno(13) } else { RET_ALLOW }).collect();
        compare("held", &calls, &answers(&program(&held), &calls), &want);
    }
}

/// A file in memory is one that is never executed, unless the policy says so.
#[test]
fn files_in_memory_are_sealed() {
    use crate::policy::Permit::{Allow, Deny};
    let rules = |permit, deny| base(&["memfd_create"], deny).keep_code(Allow, permit).unwrap();
    let arch = Arch::native();
    let number = arch.number("memfd_create").unwrap();
    // MFD_CLOEXEC 1, MFD_ALLOW_SEALING 2, MFD_NOEXEC_SEAL 8, MFD_EXEC 16.
    let calls = [0, 3, 16, 8, 11].map(|flags| (number, [0, flags, 0, 0, 0, 0]));
    let got = |rules: &Rules| answers(&compile(rules, arch), &calls);
    let sealed = [errno(13), errno(13), errno(13), RET_ALLOW, RET_ALLOW];
    assert_eq!(got(&rules(Deny, &[])), sealed);
    assert_eq!(got(&rules(Allow, &[])), [RET_ALLOW; 5]);
    assert_eq!(got(&rules(Allow, &["memfd_create"])), [errno(1); 5]);
}

/// A program of many conditions is longer than a conditional jump reaches.
#[test]
fn far_targets_are_reached() {
    let condition =
        |value| Condition { argument: 1, width: Width::Long, operator: Operator::Is(value) };
    let calls: Vec<(&'static str, Verdict)> = Arch::X86_64
        .calls()
        .map(|(call, number)| {
            let clauses = (0..3).map(|i| vec![condition(u64::from(number) * 10 + i)]).collect();
            let errno = i32::try_from(number % 100 + 1).unwrap();
            (call, Verdict::when(clauses, Answer::Allow, Answer::Refuse(errno)))
        })
        .take(150)
        .collect();
    let rules = Rules { calls, on_deny: OnDeny::Errno, watched: false };
    let program = as_native(compile(&rules, Arch::X86_64), Arch::X86_64);
    assert!(program.len() > 1000, "{} is no test", program.len());
    let (calls, want) = tried(&rules, Arch::X86_64);
    compare("far", &calls, &answers(&program, &calls), &want);
}

/// Conditions that no shipped policy has, in every mixture: both widths, masks
/// and values across both halves, clauses that begin alike and that do not,
/// values that a mask can never give.
#[test]
fn any_rules_are_compiled_to_what_they_say() {
    // A fixed sequence: Knuth's MMIX generator, its upper bits.
    let mut state = 5u64;
    let mut below = |bound: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % bound
    };
    let mut clauses = || -> Vec<Clause> {
        let condition = |below: &mut dyn FnMut(usize) -> usize| {
            let int = below(2) == 0;
            // An Int has no high half.
            let cut = |value: u64| if int { value & 0xffff_ffff } else { value };
            let value = cut([0, 1, 5, 0x10, 0xffff_ffff, 7 << 32, 1 << 32 | 1][below(7)]);
            let mask = cut([0xf, 0x11, 0xf << 32 | 1, u64::MAX, 0xffff_ffff][below(5)]);
            Condition {
                argument: u8::try_from(below(2)).unwrap(),
                width: if int { Width::Int } else { Width::Long },
                operator: [
                    Operator::Is(value),
                    Operator::IsNot(value),
                    Operator::Masked(mask, value),
                    Operator::Less(value),
                    Operator::AtMost(value),
                    Operator::AtLeast(value),
                    Operator::More(value),
                ][below(7)],
            }
        };
        (0..=below(3)).map(|_| (0..=below(2)).map(|_| condition(&mut below)).collect()).collect()
    };
    for round in 0..6 {
        let calls = Arch::X86_64.calls().take(80).enumerate().map(|(i, (call, _))| {
            let own = Answer::Refuse(i32::try_from(i).unwrap() + 1);
            let answers = [Answer::Allow, Answer::Ask, Answer::Kill, own, Answer::Errno(13)];
            let case = |n: usize, clauses| Case { clauses, answer: answers[(i + n) % 5] };
            let cases = (0..=i % 3).map(|n| case(n, clauses())).collect();
            (call, Verdict { cases, last: answers[(i + 4) % 5] })
        });
        let rules = Rules { calls: calls.collect(), on_deny: OnDeny::Errno, watched: false };
        let program = as_native(compile(&rules, Arch::X86_64), Arch::X86_64);
        let (calls, want) = tried(&rules, Arch::X86_64);
        compare(&format!("any {round}"), &calls, &answers(&program, &calls), &want);
    }
}

/// What init and the broker live under: their own calls, and death for others.
#[test]
fn our_own_processes_may_make_their_calls_and_no_others() {
    let calls: Vec<Call> = numbers().map(|number| (number, [0; 6])).collect();
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    let init = [
        libc::SYS_rt_sigtimedwait,
        libc::SYS_wait4,
        libc::SYS_kill,
        libc::SYS_write,
        libc::SYS_close_range,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
    ];
    for (name, program, own) in [
        ("broker", broker_filter().unwrap(), &BROKER_CALLS[..]),
        ("init", init_filter().unwrap(), &init),
    ] {
        let want: Vec<u32> = calls
            .iter()
            .map(|(call, _)| {
                let known = own.iter().any(|&own| number(own) == *call);
                if known { libc::SECCOMP_RET_ALLOW } else { libc::SECCOMP_RET_KILL_PROCESS }
            })
            .collect();
        compare(name, &calls, &answers(&program, &calls), &want);
    }
}
