//! The compiled program against the rules it was compiled from, and against
//! what seccompiler makes of the same rules. The kernel runs the programs
//! (`sys::evaluate`), so nothing here knows BPF.

use std::collections::BTreeMap;

use super::*;
use crate::policy::{self, NetworkMode, OnDeny};
use crate::seccomp::{Wanted, resolve};
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
        return Verdict::Kill;
    }
    match arch.calls().find(|(_, n)| *n == number) {
        Some((name, _)) => rules.get(name).cloned().unwrap_or(Verdict::Refuse(1)),
        None => {
            let newest = arch.calls().map(|(_, n)| n).max();
            Verdict::Refuse(if Some(number) > newest { 38 } else { 1 })
        }
    }
}

/// What a verdict says of a call with these arguments, without any BPF.
fn expected(on_deny: OnDeny, verdict: &Verdict, args: [u64; 6]) -> u32 {
    let refused = |value: i32| expected(on_deny, &Verdict::Refuse(value), args);
    match verdict {
        Verdict::Allow => libc::SECCOMP_RET_ALLOW,
        Verdict::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        Verdict::Ask => libc::SECCOMP_RET_USER_NOTIF,
        Verdict::Errno(value) => libc::SECCOMP_RET_ERRNO | value.cast_unsigned(),
        Verdict::Refuse(value) => match (on_deny, value) {
            (OnDeny::Log, _) => libc::SECCOMP_RET_USER_NOTIF,
            (OnDeny::Kill, 38) | (OnDeny::Errno, _) => {
                libc::SECCOMP_RET_ERRNO | value.cast_unsigned()
            }
            (OnDeny::Kill, _) => libc::SECCOMP_RET_KILL_PROCESS,
        },
        Verdict::When(clauses, _) if hold(clauses, args) => libc::SECCOMP_RET_ALLOW,
        Verdict::When(_, Otherwise::Refuse(value)) => refused(*value),
        Verdict::When(_, Otherwise::Kill) => libc::SECCOMP_RET_KILL_PROCESS,
        Verdict::When(_, Otherwise::Ask) => libc::SECCOMP_RET_USER_NOTIF,
        Verdict::WhenOrAsk(clauses, ..) if hold(clauses, args) => libc::SECCOMP_RET_ALLOW,
        Verdict::WhenOrAsk(_, ask, _) if hold(ask, args) => libc::SECCOMP_RET_USER_NOTIF,
        Verdict::WhenOrAsk(_, _, value) => refused(*value),
    }
}

/// Whether every condition of one of the clauses holds.
fn hold(clauses: &[Vec<Condition>], args: [u64; 6]) -> bool {
    let holds = |c: &Condition| {
        let value = args[usize::from(c.argument)];
        let value = if c.width == Width::Int { value & 0xffff_ffff } else { value };
        match c.operator {
            Operator::Is(v) => value == v,
            Operator::IsNot(v) => value != v,
            Operator::Masked(mask, v) => value & mask == v,
        }
    };
    clauses.iter().any(|clause| clause.iter().all(holds))
}

/// Arguments for a call with this verdict: for each argument that is compared,
/// the values around every constant it is compared with, each bit of a mask
/// turned over, the high half set and clear; all of them with all of the others.
/// The arguments that are not compared are once all clear and once all set.
fn boundary(verdict: &Verdict) -> Vec<[u64; 6]> {
    let second = match verdict {
        Verdict::WhenOrAsk(_, ask, _) => ask.as_slice(),
        _ => &[],
    };
    let mut all = vec![[0; 6], [u64::MAX; 6], [1, 1 << 32, 1 << 63, 0xffff_ffff, 0x1234_5678, 2]];
    let mut values: [Vec<u64>; 6] = Default::default();
    for condition in verdict.clauses().unwrap_or_default().iter().chain(second).flatten() {
        let values = &mut values[usize::from(condition.argument)];
        values.extend([0, 1, u64::from(u32::MAX), 1 << 32, 1 << 63, u64::MAX]);
        let (Operator::Is(v) | Operator::IsNot(v) | Operator::Masked(_, v)) = condition.operator;
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

/// seccompiler knows one answer besides Allow a filter, so the rules are cut
/// down to their allowed calls with their conditions; there the two agree on
/// every call and every interesting argument.
#[test]
fn agrees_with_seccompiler() {
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
        SeccompFilter, SeccompRule,
    };
    for (name, rules) in shipped_rules() {
        let mut map: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for (call, verdict) in &rules.calls {
            let Some(number) = Arch::X86_64.number(call) else {
                continue;
            };
            let clauses = match verdict {
                Verdict::Allow => Vec::new(),
                Verdict::When(clauses, _) | Verdict::WhenOrAsk(clauses, ..) => clauses
                    .iter()
                    .map(|clause| {
                        SeccompRule::new(
                            clause
                                .iter()
                                .map(|c| {
                                    let len =
                                        if c.width == Width::Int { Len::Dword } else { Len::Qword };
                                    let (op, value) = match c.operator {
                                        Operator::Is(v) => (Op::Eq, v),
                                        Operator::IsNot(v) => (Op::Ne, v),
                                        Operator::Masked(mask, v) => (Op::MaskedEq(mask), v),
                                    };
                                    SeccompCondition::new(c.argument, len, op, value).unwrap()
                                })
                                .collect(),
                        )
                        .unwrap()
                    })
                    .collect(),
                Verdict::Errno(_) | Verdict::Refuse(_) | Verdict::Kill | Verdict::Ask => continue,
            };
            map.insert(i64::from(number), clauses);
        }
        let filter = SeccompFilter::new(
            map,
            SeccompAction::Errno(1),
            SeccompAction::Allow,
            seccompiler::TargetArch::x86_64,
        )
        .unwrap();
        let theirs: seccompiler::BpfProgram = filter.try_into().unwrap();
        let theirs: Vec<Instruction> = theirs
            .iter()
            .map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k })
            .collect();
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
            (call, Verdict::When(clauses, Otherwise::Refuse(errno)))
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
    let mut clauses = || -> Vec<Vec<Condition>> {
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
                ][below(3)],
            }
        };
        (0..=below(3)).map(|_| (0..=below(2)).map(|_| condition(&mut below)).collect()).collect()
    };
    let calls = Arch::X86_64.calls().take(80).enumerate().map(|(i, (call, _))| {
        let verdict = match i % 3 {
            0 => Verdict::When(clauses(), Otherwise::Refuse(i32::try_from(i).unwrap() + 1)),
            1 => Verdict::When(clauses(), Otherwise::Ask),
            _ => Verdict::WhenOrAsk(clauses(), clauses(), 13),
        };
        (call, verdict)
    });
    let rules = Rules { calls: calls.collect(), on_deny: OnDeny::Errno, watched: false };
    let program = as_native(compile(&rules, Arch::X86_64), Arch::X86_64);
    let (calls, want) = tried(&rules, Arch::X86_64);
    compare("any", &calls, &answers(&program, &calls), &want);
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
