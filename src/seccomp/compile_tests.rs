//! The compiled program against the rules it was compiled from, and against
//! what seccompiler makes of the same rules.

use std::collections::BTreeMap;

use super::*;
use crate::policy::{self, NetworkMode, OnDeny};
use crate::seccomp::{Wanted, resolve};

/// Runs a program on one call, as the kernel would: the operations of classic
/// BPF that seccomp allows and that the two compilers use.
fn run(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&number.to_le_bytes());
    data[4..8].copy_from_slice(&arch.to_le_bytes());
    for (i, arg) in args.iter().enumerate() {
        data[16 + 8 * i..24 + 8 * i].copy_from_slice(&arg.to_le_bytes());
    }
    let (mut a, mut pc) = (0u32, 0usize);
    loop {
        let Instruction { code, jt, jf, k } = program[pc];
        let jump = |yes: bool| usize::from(if yes { jt } else { jf });
        pc += 1;
        match code {
            0x20 => {
                assert!(k.is_multiple_of(4) && k <= 60, "the kernel refuses load {k}");
                let at = k as usize;
                a = u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
            }
            0x54 => a &= k,
            0x05 => pc += k as usize,
            0x15 => pc += jump(a == k),
            0x25 => pc += jump(a > k),
            0x35 => pc += jump(a >= k),
            0x06 => return k,
            other => panic!("operation {other:#x}"),
        }
    }
}

fn shipped_rules() -> Vec<(String, Rules)> {
    let mut all = Vec::new();
    for (name, _) in policy::shipped() {
        let policy = policy::load(Some(name), None, Vec::new(), false).unwrap();
        for mode in [NetworkMode::Private, NetworkMode::Host] {
            for on_deny in [OnDeny::Log, OnDeny::Errno, OnDeny::Kill] {
                let rules =
                    resolve(Wanted { on_deny, ..Wanted::of(&policy.syscalls, &mode) }).unwrap();
                all.push((format!("{name} {mode:?} {on_deny:?}"), rules));
            }
        }
    }
    all
}

/// What the rules say of a call, without any BPF.
fn expected(rules: &Rules, arch: Arch, number: u32, args: [u64; 6]) -> u32 {
    if arch == Arch::X86_64 && number >= X32_BIT {
        return RET_KILL_PROCESS;
    }
    let Some((name, _)) = arch.calls().find(|(_, n)| *n == number) else {
        return refused(rules, if number >= arch.unknown_from() { 38 } else { 1 });
    };
    match rules.get(name) {
        None => refused(rules, 1),
        Some(Verdict::Refuse(value)) => refused(rules, *value),
        Some(Verdict::Allow) => RET_ALLOW,
        Some(Verdict::Kill) => RET_KILL_PROCESS,
        Some(Verdict::Ask) => RET_ASK,
        Some(Verdict::Errno(value)) => errno(*value),
        Some(Verdict::When(clauses, _)) if hold(clauses, args) => RET_ALLOW,
        Some(Verdict::When(_, Otherwise::Refuse(value))) => refused(rules, *value),
        Some(Verdict::When(_, Otherwise::Kill)) => RET_KILL_PROCESS,
        Some(Verdict::When(_, Otherwise::Ask)) => RET_ASK,
        Some(Verdict::WhenOrAsk(clauses, ..)) if hold(clauses, args) => RET_ALLOW,
        Some(Verdict::WhenOrAsk(_, ask, _)) if hold(ask, args) => RET_ASK,
        Some(Verdict::WhenOrAsk(_, _, value)) => refused(rules, *value),
    }
}

fn refused(rules: &Rules, value: i32) -> u32 {
    match (rules.on_deny, value) {
        (OnDeny::Log, _) => RET_ASK,
        (OnDeny::Kill, 1 | 13) => RET_KILL_PROCESS,
        _ => errno(value),
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

/// Arguments around every constant that the rules compare with, the high half
/// set and clear.
fn interesting(rules: &Rules) -> Vec<u64> {
    let mut values = vec![0, 1, 2, u64::from(u32::MAX), u64::MAX, 1 << 32];
    for (_, verdict) in &rules.calls {
        let asked = match verdict {
            Verdict::WhenOrAsk(_, ask, _) => ask.as_slice(),
            _ => &[],
        };
        for condition in verdict.clauses().unwrap_or_default().iter().chain(asked).flatten() {
            let (Operator::Is(v) | Operator::IsNot(v) | Operator::Masked(v, _)) =
                condition.operator;
            values.extend([v, v.wrapping_add(1), v.wrapping_sub(1), v | 1 << 32, v | 1 << 63]);
        }
    }
    values.sort_unstable();
    values.dedup();
    values
}

#[test]
fn every_number_gets_the_answer_of_the_rules() {
    for (name, rules) in shipped_rules() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            let program = compile(&rules, arch);
            assert!(program.len() < 4096);
            let values = interesting(&rules);
            let edge = [X32_BIT - 1, X32_BIT, X32_BIT + 59, u32::MAX];
            for number in (0..=600).chain(edge) {
                let conditional =
                    arch.calls().find(|(_, n)| *n == number).is_some_and(|(call, _)| {
                        rules.get(call).is_some_and(|v| v.clauses().is_some())
                    });
                let sweep: &[u64] = if conditional { &values } else { &[0, u64::MAX] };
                for &value in sweep {
                    for argument in 0..4 {
                        let mut args = [0; 6];
                        args[argument] = value;
                        let got = run(&program, arch.audit(), number, args);
                        let want = expected(&rules, arch, number, args);
                        assert_eq!(got, want, "{name} {arch:?} call {number} args {args:x?}");
                    }
                }
            }
        }
    }
}

#[test]
fn foreign_abis_are_killed() {
    for (_, rules) in shipped_rules() {
        for (arch, other) in
            [(Arch::X86_64, 0x4000_0003), (Arch::Aarch64, 0x4000_0028), (Arch::X86_64, 0xc000_00b7)]
        {
            let program = compile(&rules, arch);
            for number in 0..600 {
                assert_eq!(run(&program, other, number, [0; 6]), RET_KILL_PROCESS);
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
        let ours = compile(&rules, Arch::X86_64);
        let values = interesting(&rules);
        let arch = Arch::X86_64.audit();
        for number in 0..600 {
            for &value in &values {
                for argument in 0..4 {
                    let mut args = [0; 6];
                    args[argument] = value;
                    assert_eq!(
                        run(&ours, arch, number, args) == RET_ALLOW,
                        run(&theirs, arch, number, args) == RET_ALLOW,
                        "{name} call {number} args {args:x?}"
                    );
                }
            }
        }
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
    let rules = Rules { calls, on_deny: OnDeny::Errno };
    let program = compile(&rules, Arch::X86_64);
    assert!(program.len() > 1000, "{} is no test", program.len());
    for number in 0..600 {
        for value in
            [0, u64::from(number) * 10, u64::from(number) * 10 + 2, u64::from(number) * 10 + 3]
        {
            let args = [0, value, 0, 0, 0, 0];
            assert_eq!(
                run(&program, Arch::X86_64.audit(), number, args),
                expected(&rules, Arch::X86_64, number, args)
            );
        }
    }
}

/// What init and the broker live under: their own calls, and death for others.
#[test]
fn our_own_processes_may_make_their_calls_and_no_others() {
    let arch = Arch::native().audit();
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    let broker = broker_filter().unwrap();
    let init = init_filter().unwrap();
    for call in 0..600 {
        let expected = if BROKER_CALLS.iter().any(|&known| number(known) == call) {
            RET_ALLOW
        } else {
            RET_KILL_PROCESS
        };
        assert_eq!(run(&broker, arch, call, [0; 6]), expected, "{call}");
    }
    let allowed = (0..600).filter(|&call| run(&init, arch, call, [0; 6]) == RET_ALLOW).count();
    assert_eq!(allowed, 8);
    for call in [libc::SYS_execve, libc::SYS_clone, libc::SYS_ptrace, libc::SYS_openat2] {
        assert_eq!(run(&broker, arch, number(call), [0; 6]), RET_KILL_PROCESS);
        assert_eq!(run(&init, arch, number(call), [0; 6]), RET_KILL_PROCESS);
    }
}
