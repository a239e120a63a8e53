//! What the system call filter costs: a call that it lets through, and making and loading it.
//!
//! A filter holds for the thread that installs it, so every run is a thread of its own. The sides of a row are measured in
//! turn, round after round; a ratio is the median of the rounds' ratios, not the ratio of two medians. Settings are
//! environment variables: README.md.

use std::collections::BTreeMap;
use std::env;
use std::hint::black_box;
use std::io;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Instant;

use gosandbox::policy::{self, NetworkMode, Policy};
use gosandbox::seccomp::{self, Answer, Arch, Clause, Condition, Operator, Rules, Wanted, Width};
use gosandbox::sys;
use gosandbox::sys::seccomp::Instruction;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::prctl::get_dumpable;
use nix::unistd::close;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

type Result<T> = std::result::Result<T, String>;

/// A call that the web policy carries out, what is compared first, and the call itself, which says whether it was.
type Allowed = (&'static str, &'static str, fn() -> bool);

const ALLOWED: [Allowed; 3] = [
    ("getppid", "nothing", || black_box(std::os::unix::process::parent_id()) > 0),
    ("fcntl(F_GETFD)", "command, with five", || fcntl(io::stdin(), FcntlArg::F_GETFD).is_ok()),
    ("prctl(PR_GET_DUMPABLE)", "option, third of ten", || get_dumpable().is_ok()),
];

/// Where a policy has no exec, this opens the one execve that starts the tenant; any numbers are as good.
const KEY: [u64; 3] = [1, 2, 3];

fn setting(name: &str, default: usize) -> Result<usize> {
    match env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}={text}: write a number")),
        Err(_) => Ok(default),
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds a call on a thread that has installed `filter`, if there is one.
fn calls(call: fn() -> bool, count: usize, filter: Option<&[Instruction]>) -> Result<f64> {
    thread::scope(|scope| {
        let run = || {
            if let Some(filter) = filter {
                load(filter, false)?;
            }
            let start = Instant::now();
            let done = (0..count).filter(|_| call()).count();
            let elapsed = start.elapsed();
            if done < count {
                return Err(format!("{} of {count} calls failed", count - done));
            }
            Ok(elapsed.as_nanos() as f64 / count as f64)
        };
        scope.spawn(run).join().map_err(|_| "a thread ended".to_owned())?
    })
}

/// Installs a filter on this thread, as the sandbox does it, and says how many microseconds that took.
fn load(filter: &[Instruction], listener: bool) -> Result<f64> {
    let start = Instant::now();
    let listener = match listener {
        true => sys::seccomp::install_with_listener(filter).map(Some),
        false => sys::seccomp::install(filter).map(|()| None),
    };
    let elapsed = micros(start);
    if let Some(listener) = listener.map_err(|errno| format!("seccomp: {errno}"))? {
        _ = close(listener);
    }
    Ok(elapsed)
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

fn rules(policy: &Policy, network: &NetworkMode) -> Result<Rules> {
    let process = &policy.process;
    seccomp::resolve(Wanted::of(&policy.syscalls, network))?
        .keep_code(process.write_execute.value, process.memfd_execute.value)
}

/// What seccompiler makes of the calls that are carried out, with their conditions. It knows one answer for all others.
fn by_seccompiler(
    rules: &Rules,
) -> std::result::Result<Vec<Instruction>, seccompiler::BackendError> {
    let condition = |c: &Condition| {
        let width = match c.width {
            Width::Int => SeccompCmpArgLen::Dword,
            Width::Long => SeccompCmpArgLen::Qword,
        };
        let (operator, value) = match c.operator {
            Operator::Is(value) => (SeccompCmpOp::Eq, value),
            Operator::IsNot(value) => (SeccompCmpOp::Ne, value),
            Operator::Masked(mask, value) => (SeccompCmpOp::MaskedEq(mask), value),
            Operator::Less(value) => (SeccompCmpOp::Lt, value),
            Operator::AtMost(value) => (SeccompCmpOp::Le, value),
            Operator::AtLeast(value) => (SeccompCmpOp::Ge, value),
            Operator::More(value) => (SeccompCmpOp::Gt, value),
        };
        SeccompCondition::new(c.argument, width, operator, value)
    };
    let rule = |clause: &Clause| {
        SeccompRule::new(clause.iter().map(condition).collect::<std::result::Result<_, _>>()?)
    };
    let mut chain = BTreeMap::new();
    for (call, verdict) in &rules.calls {
        let case = verdict.cases.first().filter(|case| case.answer == Answer::Allow);
        let clauses = match case {
            Some(case) => case.clauses.as_slice(),
            None if verdict.is(Answer::Allow) => &[],
            None => continue,
        };
        if let Some(number) = Arch::native().number(call) {
            let clauses = clauses.iter().map(rule).collect::<std::result::Result<_, _>>()?;
            chain.insert(i64::from(number), clauses);
        }
    }
    let arch = match Arch::native() {
        Arch::X86_64 => TargetArch::x86_64,
        Arch::Aarch64 => TargetArch::aarch64,
    };
    let filter = SeccompFilter::new(chain, SeccompAction::Errno(1), SeccompAction::Allow, arch)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect())
}

fn measure_calls(web: &[Instruction], rounds: usize) -> Result<()> {
    let count = setting("CALLS", 200_000)?;
    // BPF_RET | BPF_K, SECCOMP_RET_ALLOW: what any filter costs at all.
    let any = [Instruction { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 }];
    let filters = [None, Some(&any[..]), Some(web)];
    println!(
        "{:<23} {:<24} {:>9} {:>10} {:>9} {:>7} {:>7}",
        "call", "compared", "bare", "any filter", "web", "x bare", "x any"
    );
    for (name, compared, call) in ALLOWED {
        let mut times: [Vec<f64>; 3] = Default::default();
        for round in 0..rounds {
            // Who comes first changes, too.
            for turn in 0..filters.len() {
                let side = (round + turn) % filters.len();
                times[side].push(calls(call, count, filters[side])?);
            }
        }
        let ratio = |to: usize| {
            let mut ratios: Vec<f64> =
                times[2].iter().zip(&times[to]).map(|(web, other)| web / other).collect();
            median(&mut ratios)
        };
        let (bare, any) = (ratio(0), ratio(1));
        let [none, one, web] = times.each_mut().map(|times| median(times));
        println!(
            "{name:<23} {compared:<24} {none:>6.1} ns {one:>7.1} ns {web:>6.1} ns {bare:>7.2} {any:>7.2}"
        );
    }
    Ok(())
}

/// Who compiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compiler {
    Ours,
    Seccompiler,
}

/// A policy's rules resolved, compiled and loaded once: instructions, and microseconds for each.
fn make(policy: &Policy, network: &NetworkMode, compiler: Compiler) -> Result<(usize, [f64; 3])> {
    let start = Instant::now();
    let rules = rules(policy, network)?;
    let resolved = micros(start);
    let start = Instant::now();
    let filter = match compiler {
        Compiler::Ours => seccomp::compile(&rules.for_filter(KEY), Arch::native()),
        Compiler::Seccompiler => by_seccompiler(&rules).map_err(|e| e.to_string())?,
    };
    let compiled = micros(start);
    // BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF
    let listener = filter.iter().any(|i| i.code == 0x06 && i.k == 0x7fc0_0000);
    let loaded = thread::scope(|scope| scope.spawn(|| load(&filter, listener)).join())
        .map_err(|_| "a thread ended".to_owned())??;
    Ok((filter.len(), [resolved, compiled, loaded]))
}

fn shipped(name: &str) -> Result<Policy> {
    policy::load(Some(name), None, Vec::new(), false).map_err(|e| e.to_string())
}

/// What a launch does: all of it for the first time, in a process of its own.
fn make_in_new_process(row: usize) -> Result<f64> {
    let program = env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new(program).env(ONCE, row.to_string()).output();
    let output = output.map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// In its environment a process of [`make_in_new_process`] finds the number of its row.
const ONCE: &str = "BENCH_ONCE";

fn rows() -> Vec<(&'static str, NetworkMode, Compiler)> {
    let mut rows = Vec::new();
    for (name, _) in policy::shipped() {
        for network in [NetworkMode::Private, NetworkMode::Host] {
            for compiler in [Compiler::Ours, Compiler::Seccompiler] {
                rows.push((*name, network.clone(), compiler));
            }
        }
    }
    rows
}

fn measure_making(rounds: usize) -> Result<()> {
    println!(
        "\n{:<26} {:>12} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "policy", "instructions", "resolve", "compile", "load", "together", "at first"
    );
    let rows = rows();
    let mut measured: Vec<(usize, [Vec<f64>; 5])> = vec![Default::default(); rows.len()];
    for _ in 0..rounds {
        for ((name, network, compiler), measured) in rows.iter().zip(&mut measured) {
            let (instructions, times) = make(&shipped(name)?, network, *compiler)?;
            measured.0 = instructions;
            let together = times.iter().sum();
            for (list, time) in measured.1.iter_mut().zip(times.into_iter().chain([together])) {
                list.push(time);
            }
        }
    }
    // Later, since a process leaves nothing in the processor's caches for who comes next.
    for _ in 0..rounds.div_ceil(3) {
        for (i, measured) in measured.iter_mut().enumerate() {
            measured.1[4].push(make_in_new_process(i)?);
        }
    }
    for ((name, network, compiler), (instructions, mut times)) in rows.iter().zip(measured) {
        let what = match compiler {
            Compiler::Ours => format!("{name}, network {network}"),
            Compiler::Seccompiler => "  its calls by seccompiler".to_owned(),
        };
        print!("{what:<26} {instructions:>12}");
        for times in &mut times {
            print!(" {:>7.1} us", median(times));
        }
        println!();
    }
    Ok(())
}

fn bench() -> Result<()> {
    sys::privilege::no_new_privs().map_err(|errno| format!("no_new_privs: {errno}"))?;
    if let Ok(row) = env::var(ONCE) {
        let rows = rows();
        let row = row.parse().ok().and_then(|row: usize| rows.get(row));
        let (name, network, compiler) = row.ok_or("no such row")?;
        let (_, times) = make(&shipped(name)?, network, *compiler)?;
        println!("{}", times.iter().sum::<f64>());
        return Ok(());
    }
    let web = rules(&shipped("web")?, &NetworkMode::Private)?;
    measure_calls(&seccomp::compile(&web.for_filter(KEY), Arch::native()), setting("ROUNDS", 41)?)?;
    measure_making(setting("LOADS", 301)?)
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}
