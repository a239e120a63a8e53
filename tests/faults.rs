//! Every step made to fail: the start fails with it, says which it was, and
//! leaves nothing behind. strace answers a system call in the kernel's place.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{Output, Sandbox, TempDir, User, root_or_skip, tool_or_skip};
use gosandbox::plan::Step;

/// How one step is made to fail: the call that is answered, and what its line
/// in a trace has in it.
struct Fault {
    step: Step,
    call: &'static str,
    line: &'static str,
    by: By,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Root,
    /// Where it is the only one who takes the step, or the only one whose
    /// supervisor does not make the same call before.
    User,
    /// Root, in a private network. strace counts calls for each process, so
    /// the others are made to fail where there is no broker to count as well.
    Private,
    /// Root, in a private network without a way in or out, and so without a
    /// broker.
    Alone,
    /// Root, with a program that is refused a call: the broker is made then.
    Refused,
    /// Root, with a policy that asks something of the binary.
    Asking,
}

impl By {
    const ALL: [Self; 6] =
        [Self::Root, Self::User, Self::Private, Self::Alone, Self::Refused, Self::Asking];

    /// A tenant with something in every step that is to fail.
    fn tenant(self, dir: &TempDir, user: Option<&Arc<User>>) -> Sandbox {
        match self {
            Self::Root | Self::User => tenant(dir, user, "host"),
            Self::Private => tenant(dir, user, "private"),
            Self::Alone => Sandbox::example("hello"),
            // memfd_create, executable. It stays to be ended, where nobody answers it.
            Self::Refused => {
                let calls = ["319,s:x,0x10", "sleep:1s"];
                Sandbox::example("calls").args(calls).option("--network", "host")
            }
            Self::Asking => tenant(dir, user, "host").env("GOSANDBOX_BINARY_STATIC", "true"),
        }
    }
}

const fn fault(step: Step, call: &'static str, line: &'static str) -> Fault {
    Fault { step, call, line, by: By::Root }
}

const fn private(step: Step, call: &'static str, line: &'static str) -> Fault {
    Fault { step, call, line, by: By::Private }
}

const fn alone(step: Step, call: &'static str, line: &'static str) -> Fault {
    Fault { step, call, line, by: By::Alone }
}

const fn refused(step: Step, call: &'static str, line: &'static str) -> Fault {
    Fault { step, call, line, by: By::Refused }
}

const fn asking(step: Step, call: &'static str, line: &'static str) -> Fault {
    Fault { step, call, line, by: By::Asking }
}

const fn of_user(step: Step, call: &'static str, line: &'static str) -> Fault {
    Fault { step, call, line, by: By::User }
}

/// A user cannot look into init, which is not dumpable: the lines of a user's
/// faults go by flags, not by paths.
const FAULTS: &[Fault] = &[
    fault(Step::State, "openat", "/run/gosandbox/"),
    asking(Step::Open, "memfd_create", ""),
    asking(Step::Open, "fcntl", "F_ADD_SEALS"),
    fault(Step::Listen, "bind", "AF_UNIX"),
    fault(Step::Sources, "openat", "\"bin\", O_"),
    fault(Step::Cgroup, "mkdir", "cgroup"),
    fault(Step::Groups, "setgroups", ""),
    fault(Step::Clone, "clone3", "CLONE_NEWUSER"),
    fault(Step::IdMap, "openat", "/uid_map"),
    of_user(Step::Trees, "open_tree", "/usr/bin"),
    fault(Step::Propagation, "mount", "MS_PRIVATE"),
    fault(Step::CgroupNamespace, "unshare", "CLONE_NEWCGROUP"),
    fault(Step::Hostname, "sethostname", ""),
    alone(Step::NewNetwork, "setns", "CLONE_NEWUSER"),
    alone(Step::Loopback, "ioctl", "SIOCSIFFLAGS"),
    alone(Step::JoinNetwork, "recvmsg", ""),
    fault(Step::BoundingSet, "prctl", "PR_CAPBSET_DROP"),
    fault(Step::Ids, "setresuid", ""),
    fault(Step::Ids, "prctl", "PR_SET_DUMPABLE"),
    fault(Step::DeathSignal, "prctl", "PR_SET_PDEATHSIG"),
    fault(Step::Keyring, "keyctl", ""),
    fault(Step::Rootfs, "mount", "\"tmpfs\", \"/tmp\""),
    fault(Step::Files, "mkdirat", "\"etc\""),
    fault(Step::Files, "symlinkat", "\"dev/fd\""),
    fault(Step::Devices, "move_mount", "\"dev/zero\""),
    fault(Step::Proc, "mount", "\"proc\", \"proc\""),
    fault(Step::Masks, "mount", "\"proc/acpi\""),
    of_user(Step::Masks, "mount_setattr", "AT_SYMLINK_NOFOLLOW|AT_RECURSIVE,"),
    fault(Step::Scratch, "mount", "\"tmpfs\", \"dev/shm\""),
    fault(Step::Binds, "move_mount", "\"usr/bin\""),
    fault(Step::Binary, "move_mount", "\"app/"),
    asking(Step::Binary, "mount", "\"tmpfs\", \"tmp\", \"tmpfs\", MS_NOSUID|MS_NODEV, "),
    asking(Step::Binary, "sendfile", ""),
    fault(Step::PivotRoot, "pivot_root", ""),
    fault(Step::PivotRoot, "umount2", "MNT_DETACH"),
    of_user(Step::ReadOnlyRoot, "mount_setattr", "AT_SYMLINK_NOFOLLOW,"),
    fault(Step::Capabilities, "capset", ""),
    fault(Step::Capabilities, "prctl", "PR_CAP_AMBIENT_CLEAR_ALL"),
    fault(Step::Capabilities, "prctl", "PR_SET_SECUREBITS"),
    fault(Step::NoNewPrivs, "prctl", "PR_SET_NO_NEW_PRIVS"),
    fault(Step::Fork, "clone", "CLONE_VFORK"),
    fault(Step::InitLock, "prctl", "PR_SET_NAME"),
    fault(Step::Session, "setsid", ""),
    fault(Step::Limits, "prlimit64", "RLIMIT_RTPRIO"),
    fault(Step::Descriptors, "dup3", ""),
    fault(Step::Landlock, "landlock_restrict_self", ""),
    fault(Step::Filter, "seccomp", "SECCOMP_SET_MODE_FILTER"),
    private(Step::Broker, "clone3", "flags=CLONE_PIDFD, "),
    fault(Step::Handover, "sendmsg", "SCM_RIGHTS"),
    refused(Step::BrokerNamespace, "setns", "CLONE_NEWUSER"),
    private(Step::BrokerRoot, "chroot", ""),
];

/// Steps that cannot be made to fail alone, and why.
const NOT_INJECTED: &[(Step, &str)] = &[
    (
        Step::AwaitIdMap,
        "its read is init's first, and the supervisor's own first read comes before; that the \
         supervisor may be gone by then is tested by killing it at every moment",
    ),
    (
        Step::Exec,
        "a call that strace answers has the number -1, for which the tenant's filter kills; a \
         binary that the tenant may not execute is tested with its life",
    ),
    (Step::Network, "only where a policy names one; a path that is none is tested with the others"),
    (
        Step::AwaitBroker,
        "its read is init's second, and the supervisor reads more before; that the broker may fail \
         is what the faults of its own steps show",
    ),
    (
        Step::BrokerIds,
        "init makes the same calls, the same number of them before; the sweep hits both",
    ),
    (
        Step::BrokerSources,
        "the supervisor opens more before; a directory that is missing is tested",
    ),
    (
        Step::BrokerAwait,
        "its recvmsg is its first, and init's first is at about the same time; the sweep hits both",
    ),
    (Step::BrokerLock, "init and app make the same calls, as often before; the sweep hits all"),
    (
        Step::Workdir,
        "its chdir is the app's first, and init's own first comes before; a directory that is \
         not there is tested with the rest of what a tenant sees",
    ),
];

/// A tenant with something in every step.
fn tenant(dir: &TempDir, user: Option<&Arc<User>>, network: &str) -> Sandbox {
    let place = match user {
        Some(user) => user.home(),
        None => dir.path().to_owned(),
    };
    let sandbox = Sandbox::example("hello")
        .option("--bind-ro", "/usr/bin")
        .option("--network", network)
        .option("--listen", format!("unix:{}/socket", place.display()));
    match user {
        Some(user) => sandbox.started_by(Arc::clone(user)),
        None => sandbox,
    }
}

/// Where strace writes: a file that whoever runs it may make.
fn log_of(dir: &TempDir, user: Option<&Arc<User>>) -> PathBuf {
    match user {
        Some(user) => user.home().join("trace"),
        None => dir.path().join("trace"),
    }
}

fn traced(sandbox: &Sandbox, log: &Path, expressions: &[String]) -> Output {
    let mut words = vec!["strace".to_owned(), "-f".to_owned(), "-qq".to_owned()];
    words.extend(["-o".to_owned(), log.display().to_string()]);
    for expression in expressions {
        words.extend(["-e".to_owned(), expression.clone()]);
    }
    drop(std::fs::remove_file(log));
    sandbox.clone().wrapped(words).run()
}

/// A line of a trace where a call begins: who, which, the whole of it.
fn calls(log: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    log.lines().filter_map(|line| {
        let (pid, rest) = line.split_once(' ')?;
        let rest = rest.trim_start();
        let (call, _) = rest.split_once('(')?;
        call.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_').then_some((pid, call, rest))
    })
}

/// Which of its process's calls of that name the wanted one is. strace counts
/// for each process.
fn position(log: &str, fault: &Fault) -> usize {
    let of_call: Vec<_> = calls(log).filter(|(_, call, _)| *call == fault.call).collect();
    let (pid, _, _) = of_call
        .iter()
        .find(|(_, _, line)| line.contains(fault.line))
        .unwrap_or_else(|| panic!("no {} with {:?} in the trace", fault.call, fault.line));
    let own: Vec<_> = of_call.iter().filter(|(other, _, _)| other == pid).collect();
    1 + own.iter().position(|(_, _, line)| line.contains(fault.line)).unwrap()
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

/// Nothing is left, on the host's side neither.
fn assert_clean(sandbox: &Sandbox, place: &Path, mounts_before: &str) {
    sandbox.assert_nothing_left();
    assert!(!place.join("socket").exists(), "the socket's file is left");
    assert_eq!(mounts(), mounts_before);
}

#[test]
fn every_step_can_fail_and_says_so_and_leaves_nothing() {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return;
    }
    let before = mounts();
    for by in By::ALL {
        let dir = TempDir::new();
        let user = (by == By::User).then(User::new);
        let log = log_of(&dir, user.as_ref());
        let place = log.parent().unwrap().to_owned();
        let normal = by.tenant(&dir, user.as_ref());
        let output = traced(&normal, &log, &[]);
        assert_eq!(output.code(), Some(0), "{output:?}");
        let trace = std::fs::read_to_string(&log).unwrap();
        for fault in FAULTS.iter().filter(|fault| fault.by == by) {
            let sandbox = by.tenant(&dir, user.as_ref());
            let label = fault.step.label();
            let (call, when) = (fault.call, position(&trace, fault));
            // Seen where the test fails.
            println!("{label}: {call} number {when}");
            let output = traced(
                &sandbox,
                &log,
                &[format!("trace={call}"), format!("inject={call}:error=EIO:when={when}")],
            );
            output.assert_refused(125, &format!("{label}: "));
            assert!(output.stderr().contains("Input/output error"), "{output:?}");
            assert_clean(&sandbox, &place, &before);
        }
    }
}

/// EINVAL says that the kernel knows no such capability, and ends the loop. Said of
/// one that every kernel knows, it must not.
#[test]
fn a_bounding_set_that_cannot_be_emptied_is_not_taken_for_an_empty_one() {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return;
    }
    let dir = TempDir::new();
    let log = log_of(&dir, None);
    for when in [1, 41] {
        let sandbox = tenant(&dir, None, "host");
        let inject = format!("inject=prctl:error=EINVAL:when={when}");
        let output = traced(&sandbox, &log, &["trace=prctl".to_owned(), inject]);
        output.assert_refused(125, "bounding set: Invalid argument");
        sandbox.assert_nothing_left();
    }
}

/// Init may fail before it has read the supervisor's go, which the kernel then
/// reports first: recv(2), ECONNRESET.
#[test]
fn the_word_of_an_init_that_fails_early_is_not_lost() {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return;
    }
    let dir = TempDir::new();
    let log = log_of(&dir, None);
    for _ in 0..30 {
        // Without a broker, whose own unshare would fail as well.
        let sandbox = tenant(&dir, None, "host");
        let words = ["trace=unshare".to_owned(), "inject=unshare:error=EIO".to_owned()];
        let output = traced(&sandbox, &log, &words);
        output.assert_refused(125, "cgroup namespace: Input/output error");
        sandbox.assert_nothing_left();
    }
}

/// Init may have ended before its maps are written, which the kernel refuses for
/// a process that is no more.
#[test]
fn the_word_of_an_init_that_ended_before_its_maps_is_not_lost() {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return;
    }
    let dir = TempDir::new();
    let user = User::new();
    let log = log_of(&dir, Some(&user));
    let sandbox = tenant(&dir, Some(&user), "private");
    let words = [
        "trace=open_tree,clone3".to_owned(),
        "inject=open_tree:error=EIO:when=1".to_owned(),
        "inject=clone3:delay_exit=200000".to_owned(),
    ];
    let output = traced(&sandbox, &log, &words);
    output.assert_refused(125, "bind source tree: ");
    sandbox.assert_nothing_left();
}

#[test]
fn no_step_is_forgotten() {
    for step in Step::ALL {
        let injected = FAULTS.iter().any(|fault| fault.step == *step);
        let excused = NOT_INJECTED.iter().any(|(other, _)| other == step);
        assert!(injected != excused, "{}: {injected} {excused}", step.label());
    }
    if !root_or_skip() {
        return;
    }
    // What a plan prints are steps, and no others.
    let dir = TempDir::new();
    for sandbox in [tenant(&dir, None, "private"), tenant(&dir, Some(&User::new()), "private")] {
        let plan = sandbox.command("plan").flag("--json").json();
        for step in plan["steps"].as_array().unwrap() {
            let label = common::text(&step["step"]);
            assert!(Step::ALL.iter().any(|known| known.label() == label), "{label}");
        }
    }
}

/// Calls that set-up is made of. One after the other, each of their uses fails.
const SWEPT: &[&str] = &[
    "clone3",
    "clone",
    "mount",
    "umount2",
    "pivot_root",
    "open_tree",
    "move_mount",
    "mount_setattr",
    "mkdirat",
    "mknodat",
    "symlinkat",
    "newfstatat",
    "prctl",
    "setresuid",
    "setresgid",
    "setgroups",
    "capset",
    "seccomp",
    "unshare",
    "sethostname",
    "socket",
    "ioctl",
    "keyctl",
    "setsid",
    "chdir",
    "prlimit64",
    "dup3",
    "close_range",
    "socketpair",
    "pipe2",
    "bind",
    "listen",
    "flock",
    "mkdir",
    "openat",
    "sendto",
    "rt_sigtimedwait",
    "wait4",
    "setns",
    "chroot",
    "fchdir",
    "sendmsg",
    "recvmsg",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
];

/// Failures that may be passed over, and why. Everything else has to end the
/// start: a protection is never missing in silence.
const HARMLESS: &[(&str, &str, &str)] = &[
    ("openat", "cgroup.controllers", "none are found, and the start says what it goes without"),
    ("openat", "cgroup.events", "only after the end"),
    ("openat", "memory.events", "only after the end"),
    ("openat", "/proc/self/fd/", "then it writes to what it was given, and asks before"),
    ("openat", "osrelease", "which kernel it is, for a structure that grew"),
    ("newfstatat", "(0, \"\"", "what stdin is; an open descriptor can be asked"),
    ("newfstatat", "(2, \"\"", "what stderr is; then nothing is said on it"),
    ("ioctl", "TCGETS", "is it a terminal"),
    ("ioctl", "TIOCGWINSZ", "how wide is it"),
    ("flock", "LOCK_UN", "closing lets go of it too"),
];

/// What an injected answer met.
enum Met {
    Nothing,
    /// A call of the tenant's own program.
    Tenant,
    /// A call of ours: its line.
    Us(String),
}

fn met(log: &str) -> Met {
    let supervisor = log.split(' ').next().unwrap_or_default();
    // Init and the broker.
    let mut ours = Vec::new();
    let mut app = "";
    let mut ran = false;
    let mut begun = BTreeMap::new();
    let mut result = Met::Nothing;
    for line in log.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if rest.contains("clone3") && pid == supervisor && rest.contains(") = ") {
            ours.push(rest.rsplit(") = ").next().unwrap_or_default().trim());
        }
        if rest.starts_with("execve(\"/app/") {
            app = pid;
        }
        ran |= pid == app && rest.contains("execve") && rest.ends_with("= 0");
        if rest.contains("<unfinished") {
            begun.insert(pid, rest);
        }
        if !line.contains("(INJECTED)") {
            continue;
        }
        // A broker that fails answers nobody; whether that is heard before a
        // tenant ends that asks for nothing is a matter of luck.
        let broker = ours.get(1) == Some(&pid);
        let tenants = broker || ran && pid != supervisor && !ours.contains(&pid);
        // Where the line was cut in two, its beginning says what it was about.
        let whole = match begun.get(pid) {
            Some(begin) if rest.starts_with("<...") => format!("{begin} {rest}"),
            _ => rest.to_owned(),
        };
        result = match result {
            Met::Us(first) => Met::Us(first),
            _ if tenants => Met::Tenant,
            _ => Met::Us(whole),
        };
    }
    result
}

/// Every use of `call`, one after the other; what went wrong, in words.
fn sweep(call: &str, by: By, before: &str) -> Vec<String> {
    let dir = TempDir::new();
    let user = (by == By::User).then(User::new);
    let log = log_of(&dir, user.as_ref());
    let place = log.parent().unwrap().to_owned();
    let mut wrong = Vec::new();
    for when in 1.. {
        let sandbox = tenant(&dir, user.as_ref(), "private");
        let output = traced(
            &sandbox,
            &log,
            &[
                format!("trace={call},execve,clone3"),
                format!("inject={call}:error=EIO:when={when}"),
            ],
        );
        let trace = std::fs::read_to_string(&log).unwrap();
        let mut complain = |what: &str, line: &str| {
            wrong.push(format!("{call} number {when}: {what}: {line} {output:?}"));
        };
        match met(&trace) {
            Met::Nothing => break,
            Met::Tenant => {}
            Met::Us(line) => {
                let excused =
                    HARMLESS.iter().any(|(other, part, _)| *other == call && line.contains(part));
                if output.code() == Some(0) && !excused {
                    complain("it ran all the same", &line);
                }
                // Each process counts for itself, so the one that tells may be hit as well.
                let hits = trace.matches("(INJECTED)").count();
                if output.code() != Some(0) && output.stderr().is_empty() && hits == 1 {
                    complain("no word about it", &line);
                }
            }
        }
        let left = || {
            let mut left = sandbox.leftovers();
            if place.join("socket").exists() {
                left.push("the socket's file".to_owned());
            }
            if mounts() != before {
                left.push("mounts".to_owned());
            }
            left.is_empty().then_some(())
        };
        if common::within(std::time::Duration::from_secs(10), left).is_none() {
            complain("left behind", &sandbox.leftovers().join(", "));
            drop(std::fs::remove_file(place.join("socket")));
        }
    }
    wrong
}

fn sweep_all(calls: &[&'static str], by: By) {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return;
    }
    let before = mounts();
    let queue = Mutex::new(calls.iter().copied().collect::<VecDeque<_>>());
    let next = || queue.lock().unwrap().pop_front();
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut wrong = Vec::new();
                    while let Some(call) = next() {
                        wrong.extend(sweep(call, by, &before));
                    }
                    wrong
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn whichever_call_fails_nothing_is_missing_in_silence() {
    sweep_all(SWEPT, By::Root);
}

/// A user's init makes calls that root's supervisor makes for its.
#[test]
fn whichever_call_fails_for_a_user_nothing_is_missing_in_silence() {
    sweep_all(&["open_tree", "mount_setattr", "newfstatat", "openat", "seccomp"], By::User);
}
