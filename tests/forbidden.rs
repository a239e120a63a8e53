//! What a tenant must not be able to do: every attempt of the `probe` example,
//! the answer it has to get inside, and a control: the same attempt outside,
//! where it works, so that a probe which could never succeed proves nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Sandbox, TempDir, User, example, root_or_skip, status_line, tool_or_skip, within};
use nix::sched::CloneFlags;
use serde_json::Value;

/// Any of these answers; "" is a fact that is as it should be, "WORKS" that
/// what was tried has worked.
type Answers = &'static [&'static str];

const DENIED: Answers = &["EPERM"];
const KILLED: Answers = &["SIGSYS"];
const ABSENT: Answers = &["ENOSYS"];
const HIDDEN: Answers = &["ENOENT"];
const READ_ONLY: Answers = &["EROFS"];
const NOT_SO: Answers = &[""];
/// Covered by something that is empty or cannot be opened, or not there in this
/// kernel.
const COVERED: Answers = &["", "EACCES", "ENOENT"];
const NO_WAY_OUT: Answers = &["EACCES"];
const OWN_LOOPBACK: Answers = &["ECONNREFUSED"];
/// As a bound socket is answered.
const BOUND: Answers = &["EINVAL"];
const WORKS: Answers = &["WORKS"];

/// Attempts and the answers they have to get, whatever the network.
const EVERYWHERE: &[(&str, Answers)] = &[
    // New namespaces bring back capabilities, mounts change what is seen.
    ("mount", DENIED),
    ("umount", DENIED),
    ("pivot-root", DENIED),
    ("chroot", DENIED),
    ("setns", DENIED),
    ("unshare-user", DENIED),
    ("unshare-net", DENIED),
    ("unshare-mount", DENIED),
    ("clone-newuser", DENIED),
    ("clone-newuser-newns", DENIED),
    ("mount-setattr", DENIED),
    ("open-tree", DENIED),
    ("fsopen", DENIED),
    ("move-mount", DENIED),
    // Its flags lie in memory; runtimes fall back to clone.
    ("clone3", ABSENT),
    ("clone3-newuser", ABSENT),
    // Init has the tenant's id, so only the filter and hidepid keep it.
    ("kill-init-term", DENIED),
    ("kill-init-kill", DENIED),
    ("kill-init-0", DENIED),
    ("tgkill-init", DENIED),
    ("tkill-init", DENIED),
    ("rt-sigqueueinfo-init", DENIED),
    ("rt-tgsigqueueinfo-init", DENIED),
    ("pidfd-open-init", DENIED),
    // No pidfd, and /proc/1 to stand for one is not to be seen.
    ("pidfd-send-signal-init", HIDDEN),
    ("pidfd-getfd-init", DENIED),
    ("prlimit-init", DENIED),
    ("setpriority-init", DENIED),
    ("sched-setaffinity-init", DENIED),
    ("sched-setscheduler-init", DENIED),
    ("ioprio-set-init", DENIED),
    ("get-robust-list-init", DENIED),
    ("move-pages-init", DENIED),
    ("kcmp-init", DENIED),
    ("ptrace-attach-init", DENIED),
    ("process-vm-readv-init", DENIED),
    ("process-madvise-init", DENIED),
    ("hidepid-init", HIDDEN),
    ("read-init-environ", HIDDEN),
    ("enter-init-root", HIDDEN),
    // Parts of the kernel that a program falls back from.
    ("io-uring-setup", ABSENT),
    ("userfaultfd", ABSENT),
    ("no-such-call", ABSENT),
    ("bpf", DENIED),
    ("perf-event-open", DENIED),
    ("keyctl-session", DENIED),
    ("keyctl-read-session", DENIED),
    ("add-key", DENIED),
    ("request-key", DENIED),
    ("personality", DENIED),
    // Asking for these is no mistake of an honest program.
    ("reboot", KILLED),
    ("kexec-load", KILLED),
    ("init-module", KILLED),
    ("finit-module", KILLED),
    ("delete-module", KILLED),
    ("swapon", KILLED),
    ("swapoff", KILLED),
    ("iopl", KILLED),
    ("ioperm", KILLED),
    ("acct", KILLED),
    ("nfsservctl", KILLED),
    ("i386-getpid", KILLED),
    ("i386-socket", KILLED),
    ("x32-getpid", KILLED),
    ("x32-ptrace", KILLED),
    ("sethostname", DENIED),
    ("setdomainname", DENIED),
    ("settimeofday", DENIED),
    ("clock-settime", DENIED),
    ("adjtimex", DENIED),
    ("quotactl", DENIED),
    ("open-by-handle-at", DENIED),
    ("name-to-handle-at", DENIED),
    ("fanotify-init", DENIED),
    ("lookup-dcookie", DENIED),
    ("syslog", DENIED),
    ("dmesg", DENIED),
    ("modify-ldt", DENIED),
    ("uselib", DENIED),
    ("ustat", DENIED),
    // Files.
    ("mknod-char", DENIED),
    ("memfd-exec", DENIED),
    ("tmp-exec", DENIED),
    ("tmpdir-exec", DENIED),
    ("shm-exec", DENIED),
    ("tmp-mmap-exec", DENIED),
    ("cwd-exec", READ_ONLY),
    ("write-root", READ_ONLY),
    ("write-dev", READ_ONLY),
    // The mode answers before the mount does.
    ("write-etc", &["EACCES", "EROFS"]),
    ("write-exe", &["EACCES", "EROFS"]),
    ("read-shadow", HIDDEN),
    ("read-home", HIDDEN),
    ("see-sys", HIDDEN),
    ("write-cgroup", HIDDEN),
    ("dev-access", HIDDEN),
    ("write-proc-sys", READ_ONLY),
    ("write-proc-self-map", READ_ONLY),
    ("oom-score-lower", READ_ONLY),
    ("sysrq", COVERED),
    ("read-kcore", COVERED),
    ("read-proc-keys", COVERED),
    ("read-timer-list", COVERED),
    ("read-kallsyms-addresses", COVERED),
    ("read-kmsg", &["EACCES", "EPERM"]),
    // By the second wall: the mode of the devices allows it.
    ("write-random", &["EACCES"]),
    // What compilers at run time do, unless the policy denies it.
    ("map-write-execute", WORKS),
    ("write-then-execute", WORKS),
    ("map-execute-shared", WORKS),
    ("write-then-execute-key", DENIED),
    ("shm-execute", DENIED),
    // Of itself the kernel refuses it, where the filter lets it get there.
    ("memfd-sealed-exec", DENIED),
    ("exe-host-path", NOT_SO),
    ("host-paths-in-mountinfo", NOT_SO),
    ("cwd-leak", NOT_SO),
    ("chdir-proc-fd", NOT_SO),
    ("fd-leak", NOT_SO),
    // Processes.
    ("ptrace-traceme", DENIED),
    ("ptrace-sibling", DENIED),
    ("see-host-proc", NOT_SO),
    ("new-session-escape", NOT_SO),
    ("core-dump-enabled", NOT_SO),
    ("umask-open", NOT_SO),
    ("no-new-privs-off", NOT_SO),
    ("seccomp-off", NOT_SO),
    // Privileges.
    ("setuid-0", DENIED),
    ("setgid-0", DENIED),
    ("setgroups", DENIED),
    ("setgroups-none", DENIED),
    ("setfsuid-0", DENIED),
    ("capset-all", DENIED),
    ("ambient-raise", DENIED),
    ("securebits-clear", DENIED),
    ("setrlimit-raise", DENIED),
    ("prlimit-raise", DENIED),
    ("nice-lower", DENIED),
    ("sched-fifo", DENIED),
    // Terminals: by the filter, so EPERM and not ENOTTY, whatever stdio is.
    ("tiocsti", DENIED),
    ("tiocsti-high-bits", DENIED),
    ("tioclinux", DENIED),
    ("tioclinux-high-bits", DENIED),
    ("tiocsctty", DENIED),
    ("dev-tty", HIDDEN),
    // Sockets that no server needs, and whose modules asking would load.
    ("socket-packet", DENIED),
    ("socket-raw", DENIED),
    ("socket-ping", DENIED),
    ("socket-netlink-audit", DENIED),
    ("socket-netlink-diag", DENIED),
    ("socket-netlink-netfilter", DENIED),
    ("socket-netlink-uevent", DENIED),
    ("socket-alg", DENIED),
    ("socket-vsock", DENIED),
    ("socket-bluetooth", DENIED),
    ("socket-xdp", DENIED),
    ("socket-key", DENIED),
    ("socket-tipc", DENIED),
    ("siocgifconf-listener", DENIED),
    ("siocgifconf-high-bits", DENIED),
    ("listener-shutdown-rd", DENIED),
    ("listener-shutdown-rdwr", DENIED),
    ("listener-reuseport", DENIED),
    ("listener-defer-accept", DENIED),
];

/// Attempts that `network = "host"` is about: private answer, host answer.
const BY_NETWORK: &[(&str, Answers, Answers)] = &[
    // The targets listen on the host's 127.0.0.1; the tenant's own is empty.
    ("connect-tcp", OWN_LOOPBACK, WORKS),
    ("connect-mptcp", OWN_LOOPBACK, WORKS),
    ("connect-udp", OWN_LOOPBACK, WORKS),
    ("connect-unix", NO_WAY_OUT, WORKS),
    ("unix-datagrams", DENIED, WORKS),
    // Sent into the empty network, where nothing answers in time.
    ("sendto-udp", &["EAGAIN", "EINTR"], WORKS),
    ("sendto-fastopen", NO_WAY_OUT, WORKS),
    ("sendmsg-fastopen", NO_WAY_OUT, WORKS),
    ("sendmmsg-fastopen", NO_WAY_OUT, WORKS),
    ("listener-rebind", BOUND, WORKS),
    ("listener-accepted-rebind", BOUND, WORKS),
    // The broker answers 0 and leaves the queue as long as it was.
    ("listener-backlog", NOT_SO, WORKS),
    ("listener-reconnect", NO_WAY_OUT, WORKS),
    // In the host's network the flag gets through, and meets a socket that still listens.
    ("listener-fastopen", NO_WAY_OUT, &["EISCONN"]),
];

/// Attempts that spoil the socket that was handed over: each gets a fresh one.
fn spoils(name: &str) -> bool {
    name.starts_with("listener-")
}

fn table(host_network: bool) -> BTreeMap<&'static str, Answers> {
    let by_network = BY_NETWORK
        .iter()
        .map(|&(name, private, host)| (name, if host_network { host } else { private }));
    EVERYWHERE.iter().copied().chain(by_network).collect()
}

/// What a probe says, in one word.
fn answer(result: &Value) -> &str {
    let of = |name: &str| result[name].as_str().unwrap_or_default();
    if result["skipped"] == true {
        "SKIPPED"
    } else if result["ok"] == true {
        "WORKS"
    } else if of("signal").is_empty() {
        of("errno")
    } else {
        of("signal")
    }
}

type Results = BTreeMap<String, Value>;

/// What there is to be reached on the host, while this lives.
struct Targets {
    address: SocketAddr,
    dir: TempDir,
    _tcp: TcpListener,
    _unix: UnixListener,
    over: Arc<AtomicBool>,
}

impl Targets {
    fn new() -> Self {
        // One port for both, so that one variable names them.
        let (tcp, udp) = within(Duration::from_secs(10), || {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            let udp = UdpSocket::bind(tcp.local_addr().unwrap()).ok()?;
            Some((tcp, udp))
        })
        .unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let address = tcp.local_addr().unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let done = Arc::clone(&over);
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !done.load(Ordering::Relaxed) {
                if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    drop(udp.send_to(&buffer[..length], from));
                }
            }
        });
        let dir = TempDir::new();
        let path = dir.path().join("socket");
        let unix = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        Self { address, dir, _tcp: tcp, _unix: unix, over }
    }
}

/// Connects to an address over and over and resets the connection, while it
/// lives.
struct Knocker(Arc<AtomicBool>);

impl Knocker {
    fn at(address: SocketAddr) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&over);
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if let Ok(stream) = TcpStream::connect(address) {
                    // Close with a lingering time of zero is a reset: socket(7).
                    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                    nix::sys::socket::setsockopt(
                        &stream,
                        nix::sys::socket::sockopt::Linger,
                        &linger,
                    )
                    .unwrap();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self(over)
    }
}

impl Drop for Knocker {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A port that nobody uses.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Drop for Targets {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn parse(stdout: &[u8]) -> Results {
    serde_json::from_slice(stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(stdout)))
}

fn names_of_all() -> Vec<String> {
    let output = Command::new(example("probe")).arg("list").output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect()
}

#[test]
fn the_table_has_every_probe_and_no_other() {
    let known: BTreeSet<String> = names_of_all().into_iter().collect();
    let ours: BTreeSet<String> = table(false).keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(known, ours);
    assert_eq!(EVERYWHERE.len() + BY_NETWORK.len(), ours.len(), "a name stands there twice");
}

/// Runs every probe in a sandbox and holds the answers against the table.
fn inside(user: Option<Arc<User>>, network: &str) {
    let targets = Targets::new();
    // One probe waits for a connection that is reset.
    let knocked = free_port();
    let sandbox = |names: &[String]| {
        let waits = names.len() == 1 && names[0] == "listener-accepted-rebind";
        let port = if waits { knocked.port() } else { 0 };
        let sandbox = Sandbox::example("probe")
            .option("--network", network)
            .option("--listen", port.to_string())
            .option("--bind-ro", format!("{}:/host", targets.dir.path().display()))
            .option("--env", "PROBE_UNIX=/host/socket")
            .option("--env", format!("PROBE_CONNECT={}", targets.address))
            .option("--env", "PROBE_TIMEOUT=30s")
            .args(names);
        match &user {
            Some(user) => sandbox.started_by(Arc::clone(user)),
            None => sandbox,
        }
    };
    let _knocker = Knocker::at(knocked);
    let all = names_of_all();
    let (alone, together): (Vec<_>, Vec<_>) = all.into_iter().partition(|name| spoils(name));
    let mut results = Results::new();
    for names in alone.chunks(1).chain([&together[..]]) {
        let output = sandbox(names).run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        results.extend(parse(&output.stdout));
    }
    let wrong: Vec<String> = table(network == "host")
        .into_iter()
        .filter(|(name, answers)| !answers.contains(&answer(&results[*name])))
        .map(|(name, answers)| format!("{name}: {} instead of one of {answers:?}", results[name]))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_forbidden_works_for_a_tenant_of_root() {
    if root_or_skip() {
        inside(None, "private");
    }
}

#[test]
fn nothing_forbidden_works_for_a_tenant_of_root_in_the_hosts_network() {
    if root_or_skip() {
        inside(None, "host");
    }
}

#[test]
fn nothing_forbidden_works_for_a_tenant_of_a_user() {
    if root_or_skip() {
        inside(Some(User::new()), "private");
    }
}

#[test]
fn nothing_forbidden_works_for_a_tenant_of_a_user_in_the_hosts_network() {
    if root_or_skip() {
        inside(Some(User::new()), "host");
    }
}

/// What a policy says of code, on top of calls that it allows: each attempt and
/// its answers without that word and with it.
#[test]
fn what_was_written_is_not_executed_where_the_policy_denies_it() {
    if !root_or_skip() {
        return;
    }
    let tried = |allow: &str, key: &str, value: &str, names: &[&str]| {
        let output = Sandbox::example("probe")
            .env("GOSANDBOX_SYSCALLS_ALLOW", allow)
            .env(format!("GOSANDBOX_PROCESS_{key}"), value)
            .args(names)
            .run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        parse(&output.stdout)
    };
    let names = [
        "map-write-execute",
        "write-then-execute",
        "map-execute-shared",
        "write-then-execute-key",
        "shm-execute",
    ];
    let allow = r#"["pkey_mprotect", "shmget", "shmat", "shmctl"]"#;
    let free = tried(allow, "WRITE_EXECUTE", "allow", &names);
    let held = tried(allow, "WRITE_EXECUTE", "deny", &names);
    for name in names {
        let control = answer(&free[name]);
        let absent = OPTIONAL.contains(&name) && NOT_BUILT.contains(&control);
        assert!(control == "WORKS" || absent, "{name}: {}", free[name]);
        assert_eq!(answer(&held[name]), "EACCES", "{name}: {}", held[name]);
    }

    // Landlock has no say there: such a file is in no file system.
    let names = ["memfd-exec", "memfd-sealed-exec"];
    let allow = r#"["memfd_create", "execveat"]"#;
    let free = tried(allow, "MEMFD_EXECUTE", "allow", &names);
    let held = tried(allow, "MEMFD_EXECUTE", "deny", &names);
    assert_eq!(answer(&free["memfd-exec"]), "WORKS");
    let refused = (answer(&held["memfd-exec"]), &held["memfd-exec"]["detail"]);
    assert_eq!(refused, ("EACCES", &Value::from("memfd_create")));
    // MFD_NOEXEC_SEAL came with Linux 6.3: it may be made, and not executed.
    let sealed = (answer(&held["memfd-sealed-exec"]), &held["memfd-sealed-exec"]["detail"]);
    let old = ("EINVAL", &Value::from("memfd_create"));
    assert!(sealed == ("EACCES", &Value::from("execveat")) || sealed == old, "{sealed:?}");

    Sandbox::example("hello")
        .env("GOSANDBOX_SYSCALLS_ALLOW", "[\"memfd_create\"]")
        .env("GOSANDBOX_PROCESS_WRITE_EXECUTE", "deny")
        .run()
        .assert_refused(125, "seccomp filter: memfd_create: what is written into its file");
}

/// The same by what its headers ask for.
#[test]
fn a_program_whose_stack_is_executable_is_refused_where_the_policy_denies_it() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let mut program = std::fs::read(example("hello")).unwrap();
    // elf(5): e_phoff at 32, e_phnum at 56, 56 bytes a header; p_flags is its
    // second word.
    let word = |at: usize| u32::from_le_bytes(program[at..at + 4].try_into().unwrap());
    let first = word(32) as usize;
    let stack = (0..usize::from(program[56])).map(|n| first + 56 * n).find(|&at| {
        const PT_GNU_STACK: u32 = 0x6474_e551;
        word(at) == PT_GNU_STACK
    });
    program[stack.unwrap() + 4] |= 1;
    let path = dir.path().join("hello");
    std::fs::write(&path, program).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let sandbox = |path: &Path, value: &str| {
        Sandbox::new(path).env("GOSANDBOX_PROCESS_WRITE_EXECUTE", value).run()
    };
    assert_eq!(sandbox(&path, "allow").code(), Some(0));
    assert_eq!(sandbox(&example("hello"), "deny").code(), Some(0));
    let start = format!("open binary: {}: it asks for a stack or a segment", path.display());
    sandbox(&path, "deny").assert_refused(126, &start);
}

/// Of the host's paths, mountinfo tells those that were bound, the binary's
/// among them, and no other.
#[test]
fn mountinfo_names_no_host_path_but_those_that_were_bound() {
    if !root_or_skip() {
        return;
    }
    let me = Sandbox::example("whoami").json();
    let binary = example("whoami").canonicalize().unwrap();
    for mount in me["mounts"].as_array().unwrap() {
        let (root, point) = (common::text(&mount["root"]), common::text(&mount["point"]));
        let bound = root == "/"
            || Path::new(root) == Path::new(point)
            || binary.ends_with(root.trim_start_matches('/'))
            || mount["fstype"] == "devtmpfs"
            // An empty directory of the sandbox's own, as a cover.
            || (mount["fstype"] == "tmpfs" && point.starts_with("/proc/"))
            // A host where the file lies on a file system of its own.
            || point.ends_with(root);
        assert!(bound, "{mount}");
    }
}

/// A terminal: our side, the tenant's side.
fn terminal() -> (std::fs::File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: openpty fills in two descriptors; no name and no settings are
    // asked for.
    let ret = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(ret, 0);
    for fd in [ours, theirs] {
        // SAFETY: F_SETFD takes an integer.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: openpty has just made this descriptor, ours alone.
    let ours = unsafe { std::fs::File::from_raw_fd(ours) };
    // SAFETY: as above.
    let theirs = unsafe { OwnedFd::from_raw_fd(theirs) };
    (ours, theirs)
}

const ON_TERMINALS: [&str; 6] =
    ["tiocsti", "tiocsti-high-bits", "tioclinux", "tioclinux-high-bits", "tiocsctty", "dev-tty"];

/// Reads a terminal until nobody holds the other side.
fn drain(mut terminal: std::fs::File) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        // EIO is how a terminal says that it is over.
        drop(terminal.read_to_end(&mut all));
        all
    })
}

#[test]
fn nobody_types_into_the_supervisors_terminal() {
    if !root_or_skip() || tool_or_skip("setsid").is_none() {
        return;
    }
    for unprivileged in [false, true] {
        let (ours, theirs) = terminal();
        let mut sandbox = Sandbox::example("probe").args(ON_TERMINALS);
        if unprivileged {
            // The terminal is root's; the user gets it open.
            sandbox = sandbox.unprivileged();
        }
        let running = sandbox
            .wrapped(["setsid", "--ctty", "--wait"])
            .stdin(theirs.try_clone().unwrap())
            .stdout(theirs)
            .start();
        let sandbox = running.sandbox.clone();
        let text = drain(ours);
        // Its own copies of the terminal, or the reader would never see the end.
        let output = {
            let output = running.wait();
            drop(sandbox);
            output
        };
        assert_eq!(output.code(), Some(0), "{output:?}");
        let results = parse(&text.join().unwrap());
        let expected = table(false);
        for name in ON_TERMINALS {
            assert!(expected[name].contains(&answer(&results[name])), "{name}: {}", results[name]);
        }
    }
}

// The controls.

/// No control, and why not: for these the answer outside does not count.
const NO_CONTROL: &[(&str, &str)] = &[
    ("no-such-call", "no kernel has it"),
    ("host-paths-in-mountinfo", "it lists, and judges nothing"),
    ("nfsservctl", "no kernel has it any more"),
    ("lookup-dcookie", "no kernel has it any more"),
    ("write-proc-self-map", "a map is written once, and without one exec takes the privilege to"),
    ("memfd-sealed-exec", "the kernel refuses it to everybody"),
    ("uselib", "most kernels are built without it"),
    ("x32-getpid", "most kernels are built without that ABI"),
    ("x32-ptrace", "most kernels are built without that ABI"),
    ("tioclinux", "it takes a virtual console, which a test should not touch"),
    ("tioclinux-high-bits", "it takes a virtual console, which a test should not touch"),
];

/// Parts of a kernel that it may be built without; the control may say so.
const OPTIONAL: &[&str] = &[
    "kexec-load",
    "init-module",
    "finit-module",
    "delete-module",
    "iopl",
    "ioperm",
    "modify-ldt",
    "ustat",
    "quotactl",
    "acct",
    "swapon",
    "swapoff",
    "socket-alg",
    "socket-bluetooth",
    "socket-key",
    "socket-tipc",
    "socket-vsock",
    "socket-xdp",
    "connect-mptcp",
    "i386-getpid",
    "i386-socket",
    "shm-execute",
    "write-then-execute-key",
];

const NOT_BUILT: [&str; 5] =
    ["ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "SIGSEGV"];

/// Files that a kernel may be without.
const FILES: &[(&str, &str)] = &[
    ("read-kcore", "/proc/kcore"),
    ("sysrq", "/proc/sysrq-trigger"),
    ("read-timer-list", "/proc/timer_list"),
    ("read-proc-keys", "/proc/keys"),
];

/// Attempts on pid 1, and others, that need a pid namespace in which pid 1 is
/// nothing but another of root's processes; with a /proc of it.
const IN_A_PID_NAMESPACE: &[&str] = &[
    "kill-init-term",
    "kill-init-kill",
    "kill-init-0",
    "tgkill-init",
    "tkill-init",
    "rt-sigqueueinfo-init",
    "rt-tgsigqueueinfo-init",
    "pidfd-open-init",
    "pidfd-send-signal-init",
    "pidfd-getfd-init",
    "prlimit-init",
    "setpriority-init",
    "sched-setaffinity-init",
    "sched-setscheduler-init",
    "ioprio-set-init",
    "get-robust-list-init",
    "move-pages-init",
    "kcmp-init",
    "ptrace-attach-init",
    "process-vm-readv-init",
    "process-madvise-init",
    "hidepid-init",
    "read-init-environ",
    "enter-init-root",
    "new-session-escape",
    "socket-ping",
];

/// The probe, outside.
struct Control {
    command: Command,
}

impl Control {
    fn new<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Self {
        Self::with("exec \"$0\" \"$@\"", names)
    }

    /// A shell script that has the probe in `$0` and the names in `$@`.
    fn with<S: AsRef<str>>(script: &str, names: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).arg(example("probe"));
        command.args(names.into_iter().map(|name| name.as_ref().to_owned()));
        command.stdin(Stdio::null()).current_dir("/tmp").env("PROBE_TIMEOUT", "30s");
        Self { command }
    }

    fn targets(mut self, targets: &Targets) -> Self {
        self.command
            .env("PROBE_CONNECT", targets.address.to_string())
            .env("PROBE_UNIX", targets.dir.path().join("socket"));
        self
    }

    /// Does `prepare` in the new process, where only system calls may be made.
    fn prepared(
        mut self,
        prepare: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        // SAFETY: the callers make system calls only.
        unsafe { self.command.pre_exec(prepare) };
        self
    }

    fn run(mut self) -> Results {
        let output = self.command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        parse(&output.stdout)
    }
}

fn no_new_privs() -> std::io::Result<()> {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Root in new namespaces, with nothing taken away.
fn in_a_pid_namespace() -> Results {
    let script = "
        mount -t proc proc /proc &&
        echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range;
        \"$0\" \"$@\"; exit $?";
    // The inner shell is pid 1.
    Control::with(&format!("/bin/sh -c '{script}' \"$0\" \"$@\"; exit $?"), IN_A_PID_NAMESPACE)
        .prepared(|| {
            use nix::mount::{MsFlags, mount};
            no_new_privs()?;
            let new = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
            nix::sched::unshare(new)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount::<str, str, str, str>(None, "/", None, private, None)?;
            Ok(())
        })
        .run()
}

/// Changed into a directory, without being in it, and with the host's root on a
/// descriptor: what a sandbox must not leave behind.
fn in_a_leaky_chroot() -> Results {
    let dir = TempDir::new();
    std::fs::copy(example("probe"), dir.path().join("probe")).unwrap();
    let root = std::fs::File::open("/").unwrap();
    let new_root = dir.path().to_owned();
    let mut command = Command::new("/probe");
    command.args(["cwd-leak", "chdir-proc-fd"]).stdin(Stdio::null());
    let mut control = Control { command }.prepared(move || {
        // SAFETY: dup2 takes integers.
        if unsafe { libc::dup2(root.as_raw_fd(), 15) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        nix::unistd::chdir("/usr")?;
        nix::unistd::chroot(&new_root)?;
        Ok(())
    });
    // Found by execve after the chroot.
    control.command.arg0("/probe");
    control.run()
}

/// From a file that has no name.
fn from_memory() -> Results {
    let flags = nix::sys::memfd::MFdFlags::empty();
    let memory = nix::sys::memfd::memfd_create("control", flags).unwrap();
    std::fs::File::from(memory.try_clone().unwrap())
        .write_all(&std::fs::read(example("probe")).unwrap())
        .unwrap();
    let mut command = Command::new(format!("/proc/self/fd/{}", memory.as_raw_fd()));
    command.arg("exe-host-path").stdin(Stdio::null());
    Control { command }.run()
}

/// On a terminal of its own that it is the leader of.
fn on_a_terminal() -> Results {
    let mut results = Results::new();
    for names in [&["tiocsti", "tiocsti-high-bits", "dev-tty"][..], &["tiocsctty"]] {
        let (ours, theirs) = terminal();
        let leads = names[0] != "tiocsctty";
        let mut control = Control::new(names).prepared(move || {
            no_new_privs()?;
            if leads {
                nix::unistd::setsid()?;
                // SAFETY: TIOCSCTTY takes an integer.
                if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
        control.command.stdin(theirs);
        results.extend(control.run());
        drop(ours);
    }
    results
}

#[test]
fn controls_outside_everything_works() {
    if !root_or_skip() {
        return;
    }
    let targets = Targets::new();
    let special = ["oom-score-lower", "fd-leak"];
    let elsewhere: BTreeSet<&str> = IN_A_PID_NAMESPACE
        .iter()
        .chain(&["cwd-leak", "chdir-proc-fd", "exe-host-path"])
        .chain(&special)
        .chain(&ON_TERMINALS)
        .copied()
        .collect();
    let plain: Vec<String> = names_of_all()
        .into_iter()
        .filter(|name| !elsewhere.contains(name.as_str()) && !spoils(name))
        .filter(|name| !name.starts_with("siocgifconf"))
        .collect();
    let mut results =
        Control::with("umask 022; exec \"$0\" \"$@\"", &plain).targets(&targets).run();
    results.extend(in_a_pid_namespace());
    results.extend(in_a_leaky_chroot());
    results.extend(from_memory());
    results.extend(on_a_terminal());
    // Above the lowest that it ever had, which it may go back to.
    let score = "echo 300 > /proc/self/oom_score_adj; exec \"$0\" \"$@\"";
    results.extend(Control::with(score, ["oom-score-lower"]).run());
    results.extend(Control::with("exec \"$0\" \"$@\" 8</etc/passwd", ["fd-leak"]).run());
    for name in names_of_all() {
        if spoils(&name) || name.starts_with("siocgifconf") {
            results.extend(with_a_socket(&name, &targets));
        }
    }

    let own = i32::try_from(std::process::id()).unwrap();
    let effective = u64::from_str_radix(&status_line(own, "CapEff").unwrap(), 16).unwrap();
    let may_raise_limits = effective >> 24 & 1 == 1;
    let excused = |name: &str, answer: &str| {
        let raising = ["setrlimit-raise", "prlimit-raise"].contains(&name);
        NO_CONTROL.iter().any(|(other, _)| *other == name)
            || (OPTIONAL.contains(&name) && NOT_BUILT.contains(&answer))
            || FILES.iter().any(|(other, file)| *other == name && !Path::new(file).exists())
            || (raising && !may_raise_limits)
    };
    let wrong: Vec<String> = table(false)
        .into_keys()
        .map(|name| (name, results.get(name)))
        .filter(|(name, result)| {
            let answer = result.map_or("MISSING", answer);
            answer != "WORKS" && !excused(name, answer)
        })
        .map(|(name, result)| format!("{name}: {result:?}"))
        .collect();
    assert!(wrong.is_empty(), "these prove nothing:\n{}", wrong.join("\n"));
}

/// One attempt on a listening socket at descriptor 3.
fn with_a_socket(name: &str, targets: &Targets) -> Results {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let _knocker = Knocker::at(socket.local_addr().unwrap());
    let fd = socket.as_raw_fd();
    let script = "export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" \"$@\"";
    let control = Control::with(script, [name]).targets(targets).prepared(move || {
        // SAFETY: dup2 takes integers; where they are the same it changes nothing.
        if unsafe { libc::dup2(fd, 3) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: F_SETFD takes an integer.
        unsafe { libc::fcntl(3, libc::F_SETFD, 0) };
        Ok(())
    });
    control.run()
}
