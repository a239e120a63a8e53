//! A tenant's life from start to end, and that nothing of it outlives it.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use common::{
    Client, Running, Sandbox, TempDir, User, root_or_skip, skip, tool_or_skip, wait_for, within,
};
use nix::sys::signal::Signal::{
    self, SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};

fn hello<const N: usize>(args: [&str; N]) -> Sandbox {
    Sandbox::example("hello").args(args)
}

/// Started by root, and started by a user.
fn both(test: impl Fn(fn(Sandbox) -> Sandbox)) {
    test(|sandbox| sandbox);
    test(Sandbox::unprivileged);
}

fn kill(pid: i32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn the_exit_status_passes_through() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        for status in ["0", "1", "3", "125", "255"] {
            let sandbox = by(hello(["exit", status]));
            let output = sandbox.run();
            assert_eq!(output.code(), status.parse().ok());
            assert_eq!(output.stderr(), "");
            sandbox.assert_nothing_left();
        }
        let output = by(hello(["panic"])).run();
        assert_eq!(output.code(), Some(2));
        assert!(output.stderr().contains("hello panics"), "{output:?}");
    });
}

#[test]
fn death_by_a_signal_passes_through() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        for (name, number) in
            [("TERM", 15), ("KILL", 9), ("SEGV", 11), ("ABRT", 6), ("SYS", 31), ("XCPU", 24)]
        {
            let sandbox = by(hello(["signal", name]));
            let output = sandbox.run();
            assert_eq!(output.signal(), Some(number), "{output:?}");
            // Of SIGSYS it says where it may come from.
            let why = if name == "SYS" { ", with which its filter answers " } else { "\n" };
            let tenant = &sandbox.tenant;
            let said =
                format!("gosandbox: tenant {tenant}: ended by signal {number} (SIG{name}){why}");
            assert!(output.stderr().starts_with(&said), "{output:?}");
            assert_eq!(output.stderr().lines().count(), 1, "{output:?}");
            sandbox.assert_nothing_left();
        }
    });
}

#[test]
fn no_such_binary_is_127() {
    if !root_or_skip() {
        return;
    }
    for path in ["/nowhere/app", "hello"] {
        let output = Sandbox::new(path).run();
        output.assert_refused(127, &format!("open binary: {path}: no such file ("));
    }
}

#[test]
fn what_cannot_be_executed_is_126() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let program = std::fs::read(common::example("hello")).unwrap();
    let mut foreign = program.clone();
    // e_machine: EM_AARCH64 for AMD64, and the other way round.
    let other = if cfg!(target_arch = "x86_64") { 183u16 } else { 62 };
    foreign[18..20].copy_from_slice(&other.to_le_bytes());
    let mut narrow = program.clone();
    narrow[4] = 1; // ELFCLASS32
    let mut core = program.clone();
    core[16] = 4; // ET_CORE
    let cases: [(&str, &[u8], u32, &str); 9] = [
        ("text", b"hello\n", 0o755, "not a 64-bit ELF executable ("),
        ("script", b"#!/bin/sh\necho hello\n", 0o755, "not a 64-bit ELF executable ("),
        ("empty", b"", 0o755, "not a 64-bit ELF executable ("),
        ("cut", &program[..100], 0o755, "damaged: program headers"),
        ("narrow", &narrow, 0o755, "not a 64-bit ELF executable ("),
        ("foreign", &foreign, 0o755, "built for another architecture (build it with GOARCH="),
        ("core", &core, 0o755, "not an executable (ELF type 4)"),
        ("mode", &program, 0o644, "not executable (chmod +x it)"),
        ("open", &program, 0o775, "writable by group or others (chmod go-w it)"),
    ];
    for (name, bytes, mode, why) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let sandbox = Sandbox::new(&path);
        let output = sandbox.run();
        output.assert_refused(126, &format!("open binary: {}: {why}", path.display()));
        sandbox.assert_nothing_left();
    }
    let output = Sandbox::new(dir.path()).run();
    output
        .assert_refused(126, &format!("open binary: {}: not a regular file", dir.path().display()));
}

#[test]
fn a_binary_that_the_tenant_may_not_execute_is_126() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let path = dir.path().join("app");
    std::fs::copy(common::example("hello"), &path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    let sandbox = Sandbox::new(&path);
    let output = sandbox.run();
    output.assert_refused(126, &format!("exec: {}: Permission denied (", path.display()));
    sandbox.assert_nothing_left();
}

#[test]
fn a_server_that_is_asked_to_end_drains() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        for signal in [SIGTERM, SIGINT] {
            let sandbox = by(Sandbox::example("web").option("--listen", "0"));
            let mut running = sandbox.start();
            let address = address(&mut running);
            running.stderr_line("web: listening");
            // In the middle of a request.
            let request = std::thread::spawn(move || {
                Client::tcp(address).unwrap().get("/slow?d=1s").unwrap()
            });
            let connected = || {
                let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
                let port = format!(":{:04X} ", address.port());
                // Established, and taken from the queue: it has an inode.
                let taken = |line: &str| {
                    let fields: Vec<_> = line.split_whitespace().collect();
                    line.contains(&port) && fields[3] == "01" && fields[9] != "0"
                };
                (text.lines().skip(1).filter(|line| taken(line)).count() >= 2).then_some(())
            };
            wait_for("the request", connected);
            running.signal(signal);
            let output = running.wait();
            assert_eq!(output.code(), Some(0), "{output:?}");
            assert_eq!(output.stdout(), "drained\n");
            assert_eq!(request.join().unwrap().status, 200);
            sandbox.assert_nothing_left();
        }
    });
}

/// The address that `--listen 0` has got.
fn address(running: &mut Running) -> SocketAddr {
    let start = format!("gosandbox: tenant {}: listening on ", running.sandbox.tenant);
    running.stderr_line(&start)[start.len()..].parse().unwrap()
}

#[test]
fn who_does_not_end_in_time_is_killed() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        let sandbox = by(hello(["ignore-term"]).option("--grace", "1s"));
        let mut running = sandbox.start();
        running.line("ready");
        let asked = Instant::now();
        running.signal(SIGTERM);
        let output = running.wait();
        let took = asked.elapsed();
        assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&took), "{took:?}");
        assert_eq!(output.code(), Some(137), "{output:?}");
        let said =
            format!("gosandbox: tenant {}: killed: it did not end by itself\n", sandbox.tenant);
        assert_eq!(output.stderr(), said);
        sandbox.assert_nothing_left();
    });
}

#[test]
fn a_second_sigint_does_not_wait_and_a_second_sigterm_does() {
    if !root_or_skip() {
        return;
    }
    let sandbox = hello(["ignore-term"]).option("--grace", "1h");
    let mut running = sandbox.start();
    running.line("ready");
    running.signal(SIGTERM);
    running.signal(SIGTERM);
    assert!(within(Duration::from_secs(1), || running.has_ended().then_some(())).is_none());
    running.signal(SIGINT);
    let output = running.wait();
    assert_eq!(output.code(), Some(137), "{output:?}");
    sandbox.assert_nothing_left();

    let sandbox = hello(["ignore-term"]).option("--grace", "1h");
    let mut running = sandbox.start();
    running.line("ready");
    running.signal(SIGINT);
    assert!(within(Duration::from_secs(1), || running.has_ended().then_some(())).is_none());
    running.signal(SIGINT);
    assert_eq!(running.wait().code(), Some(137));
    sandbox.assert_nothing_left();
}

#[test]
fn other_signals_are_the_tenants_in_their_order() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        let mut running = by(hello(["signals"])).start();
        running.line("ready");
        let signals = [
            (SIGHUP, "got hangup"),
            (SIGUSR1, "got user defined signal 1"),
            (SIGUSR2, "got user defined signal 2"),
            (SIGWINCH, "got window changed"),
        ];
        for (signal, line) in signals {
            running.signal(signal);
            running.line(line);
        }
        running.signal(SIGTERM);
        let output = running.wait();
        assert_eq!(output.code(), Some(0), "{output:?}");
        let mut lines = vec!["ready"];
        lines.extend(signals.map(|(_, line)| line));
        lines.push("got terminated");
        assert_eq!(output.stdout().lines().collect::<Vec<_>>(), lines);
    });
}

#[test]
fn a_stopped_tenant_hears_that_it_shall_end() {
    if !root_or_skip() {
        return;
    }
    let mut running = hello(["signals"]).option("--grace", "1h").start();
    running.line("ready");
    let app = running.app();
    kill(app, SIGSTOP);
    wait_for("the stop", || common::status_line(app, "State")?.starts_with('T').then_some(()));
    running.signal(SIGTERM);
    let output = running.wait();
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert!(output.stdout().ends_with("got terminated\n"), "{output:?}");
}

/// What of the tenant is alive: processes, not files.
fn assert_dead(sandbox: &Sandbox) {
    wait_for("the end of every process", || {
        common::processes_of(&sandbox.tenant, sandbox.host_id()).is_empty().then_some(())
    });
}

#[test]
fn nothing_outlives_a_supervisor_that_is_killed_and_the_next_start_clears_up() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        for (args, ready) in [(["ignore-term"], "ready"), (["orphan"], "orphan")] {
            let sandbox = by(hello(args));
            let mut running = sandbox.start();
            running.line(ready);
            assert!(!common::processes_of(&sandbox.tenant, sandbox.host_id()).is_empty());
            running.signal(SIGKILL);
            assert_eq!(running.wait().signal(), Some(9));
            assert_dead(&sandbox);
            let next = hello(["exit", "0"]).of(&sandbox);
            let output = next.run();
            assert_eq!(output.code(), Some(0), "{output:?}");
            sandbox.assert_nothing_left();
        }
    });
}

#[test]
fn grandchildren_in_sessions_of_their_own_die_with_the_app() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        // Asked to end.
        let sandbox = by(hello(["orphan"]));
        let mut running = sandbox.start();
        running.line("orphan");
        let with_orphan = common::processes_of(&sandbox.tenant, sandbox.host_id()).len();
        assert!(with_orphan >= 3, "{with_orphan}");
        running.signal(SIGTERM);
        assert_eq!(running.wait().signal(), Some(15));
        sandbox.assert_nothing_left();
        // Killed behind the supervisor's back: first the app, then init.
        for init in [false, true] {
            let sandbox = by(hello(["orphan"]));
            let mut running = sandbox.start();
            running.line("orphan");
            kill(if init { running.init() } else { running.app() }, SIGKILL);
            let output = running.wait();
            assert_eq!(output.signal(), Some(9));
            let said = if init { "killed from outside" } else { "ended by signal 9 (SIGKILL)" };
            assert!(output.stderr().contains(said), "{output:?}");
            sandbox.assert_nothing_left();
        }
    });
}

#[test]
fn a_second_supervisor_of_a_tenant_is_refused() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        let sandbox = by(hello(["ignore-term"]));
        let mut running = sandbox.start();
        running.line("ready");
        let why = format!("state: already running under pid {} (", running.pid());
        sandbox.run().assert_refused(125, &why);
        // The first did not notice.
        assert!(!running.has_ended());
        assert!(sandbox.state_file().exists());
        drop(running);
        sandbox.assert_nothing_left();
    });
}

#[test]
fn the_state_file_says_what_runs_and_is_not_for_everybody() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        let sandbox = by(Sandbox::example("web").option("--listen", "0"));
        let mut running = sandbox.start();
        let address = address(&mut running);
        running.stderr_line("web: listening");
        let path = sandbox.state_file();
        let state: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(state["tenant"], sandbox.tenant.as_str());
        assert_eq!(state["pid"], running.pid());
        assert_eq!(state["listen"], serde_json::json!([format!("tcp:{address}")]));
        assert_eq!(path.metadata().unwrap().mode() & 0o137, 0);
        let dir = path.parent().unwrap().metadata().unwrap();
        assert_eq!(dir.mode() & 0o027, 0, "{:o}", dir.mode());
    });
}

#[test]
fn the_service_manager_is_told() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let hear = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut running = hello(["signals"]).env("NOTIFY_SOCKET", &path).start();
    assert_eq!(hear(), "READY=1\nSTATUS=running");
    running.line("ready");
    running.signal(SIGTERM);
    assert_eq!(hear(), "STOPPING=1\nSTATUS=asked to end, with time left to do it");
    assert_eq!(running.wait().code(), Some(0));
}

/// A pipe: the reading and the writing end.
fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap()
}

#[test]
fn a_flood_on_stderr_is_passed_on_or_counted() {
    if !root_or_skip() {
        return;
    }
    let output = hello(["stderr", "200000"]).run();
    assert_eq!(output.code(), Some(0));
    let text = output.stderr();
    let sent: usize = (1..=200_000).map(|n| format!("stderr line {n}\n").len()).sum();
    // The last word is gosandbox's, if something was dropped.
    let end = text.rfind("gosandbox: tenant").unwrap_or(text.len());
    let (passed, verdict) = text.split_at(end);
    let dropped: usize = verdict
        .split(": ")
        .nth(2)
        .map_or(0, |rest| rest.split(' ').next().unwrap().parse().unwrap());
    // A dropped piece may have cut a line in two, which changes no byte.
    assert!(passed.starts_with("stderr line 1\nstderr line 2\n"));
    let difference = (passed.len() + dropped).abs_diff(sent);
    assert!(difference <= 1, "{} + {dropped} of {sent}", passed.len());
}

#[test]
fn a_reader_of_stderr_that_is_stuck_holds_nothing_up() {
    if !root_or_skip() {
        return;
    }
    // Ends by itself.
    let (reader, writer) = pipe();
    let sandbox = hello(["stderr", "200000"]).stderr(writer);
    let output = sandbox.start().wait();
    assert_eq!(output.code(), Some(0));
    sandbox.assert_nothing_left();
    drop(reader);
}

#[test]
fn a_reader_of_stderr_that_is_stuck_does_not_delay_the_stop() {
    if !root_or_skip() {
        return;
    }
    let (reader, writer) = pipe();
    let sandbox = hello(["stderr", "2000000000"]).stderr(writer);
    let running = sandbox.start();
    let app = running.app();
    // Well into the flood: more was written than any pipe holds.
    wait_for("the flood", || {
        let io = std::fs::read_to_string(format!("/proc/{app}/io")).ok()?;
        let written = io.lines().find_map(|line| line.strip_prefix("wchar: "))?;
        (written.parse::<u64>().ok()? > 4 << 20).then_some(())
    });
    running.signal(SIGTERM);
    let output = running.wait();
    assert_eq!(output.signal(), Some(15), "{output:?}");
    sandbox.assert_nothing_left();
    drop(reader);
}

#[test]
fn a_reader_that_is_gone_is_the_tenants_affair_on_stdout_and_nobodys_on_stderr() {
    if !root_or_skip() {
        return;
    }
    let (reader, writer) = pipe();
    drop(reader);
    // Something that does not stop writing.
    let sandbox = hello(["cat", "/dev/zero"]).stdout(writer);
    // As without a sandbox: a Go program dies of SIGPIPE there.
    assert_eq!(sandbox.run().signal(), Some(13));
    sandbox.assert_nothing_left();
    let (reader, writer) = pipe();
    drop(reader);
    let sandbox = hello(["stderr", "10000"]).stderr(writer);
    assert_eq!(sandbox.run().code(), Some(0));
    sandbox.assert_nothing_left();
}

#[test]
fn stdin_is_passed_on() {
    if !root_or_skip() {
        return;
    }
    let inode = |fd: &OwnedFd| {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        link.to_str().unwrap().to_owned()
    };
    let (reader, mut writer) = {
        let (reader, writer) = pipe();
        (reader, std::fs::File::from(writer))
    };
    writer.write_all(b"something\n").unwrap();
    let expected = inode(&reader);
    let me = Sandbox::example("whoami").stdin(reader).json();
    assert_eq!(me["fds"]["0"]["target"], expected);
    let dir = TempDir::new();
    let file = std::fs::File::open(dir.file("input", "from the file")).unwrap();
    let output = hello(["cat", "/dev/stdin"]).stdin(file).run();
    assert_eq!(output.stdout(), "from the file", "{output:?}");
}

/// A datagram socket sends to whoever it is told, in the network it is from.
#[test]
fn a_socket_that_is_no_connection_is_no_stdin() {
    if !root_or_skip() {
        return;
    }
    let refused = |stdin: OwnedFd| {
        let output = hello(["cat", "/dev/null"]).stdin(stdin).run();
        output.assert_refused(125, "descriptors: stdin is a socket that is no stream connection");
    };
    refused(std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into());
    refused(std::os::unix::net::UnixDatagram::unbound().unwrap().into());
    refused(TcpListener::bind("127.0.0.1:0").unwrap().into());
    // Control.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let output = hello(["cat", "/dev/null"]).stdin(theirs).run();
    assert_eq!(output.code(), Some(0), "{output:?}");
    drop(ours);
}

#[test]
fn dev_stdout_and_dev_stderr_can_be_opened() {
    if !root_or_skip() {
        return;
    }
    // The pipes behind them are gosandbox's own, so nobody else can see to it.
    both(|by| {
        let output = by(hello(["write", "/dev/stdout", "a word\n"])).run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        assert_eq!(output.stdout(), "a word\n");
        let output = by(hello(["write", "/dev/stderr", "a word\n"])).run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        assert_eq!(output.stderr(), "a word\n");
    });
}

/// The listeners that `web` tells of.
fn listeners(answer: &common::Answer) -> Vec<String> {
    let me: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let list = me["listeners"].as_array().unwrap();
    list.iter().map(|l| l.as_str().unwrap().to_owned()).collect()
}

#[test]
fn sockets_are_handed_over() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        let dir = TempDir::new();
        let sandbox = by(Sandbox::example("web"));
        // Where whoever starts it may make a file.
        let place = dir.dir("run", sandbox.user.as_ref().map_or(0, |user| user.id));
        let path = place.join("web.sock");
        let mut sandbox = sandbox
            .option("--listen", "http=tcp:127.0.0.1:0")
            .option("--listen", format!("admin=unix:{}", path.display()));
        let v6 = TcpListener::bind("[::1]:0").is_ok();
        if v6 {
            sandbox = sandbox.option("--listen", "six=tcp:[::1]:0");
        } else {
            skip("no IPv6 here");
        }
        let mut running = sandbox.start();
        let v4: SocketAddr = address(&mut running);
        assert_eq!(v4.ip(), Ipv4Addr::LOCALHOST);
        let answer = Client::tcp(v4).unwrap().get("/").unwrap();
        assert_eq!(answer.body, format!("hello from {}\n", sandbox.tenant));
        let mut expected = vec![format!("http={v4}"), format!("admin={}", path.display())];
        if v6 {
            let start = format!("gosandbox: tenant {}: listening on [::1]:", sandbox.tenant);
            let port = running.stderr_line(&start)[start.len()..].to_owned();
            let address: SocketAddr = format!("[::1]:{port}").parse().unwrap();
            let answer = Client::tcp(address).unwrap().get("/").unwrap();
            assert_eq!(answer.body, format!("hello from {}\n", sandbox.tenant));
            expected.push(format!("six={address}"));
        }
        // Owner and group only, where nothing else is said.
        let about = path.metadata().unwrap();
        assert_eq!(about.mode() & 0o777, 0o660);
        let answer = Client::unix(&path).unwrap().get("/whoami").unwrap();
        assert_eq!(listeners(&answer), expected);
        running.signal(SIGTERM);
        let output = running.wait();
        assert_eq!(output.code(), Some(0), "{output:?}");
        assert!(!path.exists());
        sandbox.assert_nothing_left();
    });
}

#[test]
fn a_policy_says_mode_and_group_of_a_unix_socket() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let path = dir.path().join("web.sock");
    let policy = dir.file(
        "policy.toml",
        &format!(
            "extends = \"web\"\n[network]\nlisten = [{{ unix = \"{}\", mode = \"0606\", group = \"54000\", name = \"web\" }}]\n",
            path.display()
        ),
    );
    let sandbox = Sandbox::example("web").option("--policy", policy);
    let mut running = sandbox.start();
    running.stderr_line("web: listening");
    let about = path.metadata().unwrap();
    assert_eq!((about.mode() & 0o777, about.gid()), (0o606, 54000));
    let answer = Client::unix(&path).unwrap().get("/whoami").unwrap();
    assert_eq!(listeners(&answer), [format!("web={}", path.display())]);
    // However it ends.
    kill(running.app(), SIGKILL);
    assert_eq!(running.wait().signal(), Some(9));
    assert!(!path.exists());
    sandbox.assert_nothing_left();
}

#[test]
fn an_address_that_is_taken_is_an_error_with_a_remedy() {
    if !root_or_skip() {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let dir = TempDir::new();
    let made = dir.path().join("made.sock");
    let sandbox = Sandbox::example("web")
        .option("--listen", format!("unix:{}", made.display()))
        .option("--listen", format!("tcp:{address}"));
    let output = sandbox.run();
    output.assert_refused(125, &format!("listen: tcp:{address}: Address already in use ("));
    assert!(!made.exists(), "the one before is let go");
    sandbox.assert_nothing_left();

    let path = dir.path().join("listens.sock");
    let listens = UnixListener::bind(&path).unwrap();
    let at = format!("unix:{}", path.display());
    let sandbox = Sandbox::example("web").option("--listen", &at);
    let output = sandbox.run();
    assert_eq!(output.code(), Some(125), "{output:?}");
    assert!(output.stderr().contains(&format!("listen: {at}: ")), "{output:?}");
    assert!(path.exists(), "somebody listens there");
    // Nobody does any more: it may be replaced.
    drop(listens);
    let mut running = sandbox.start();
    running.stderr_line("web: listening");
    running.signal(SIGTERM);
    assert_eq!(running.wait().code(), Some(0));
    // A file is never taken away.
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(sandbox.run().code(), Some(125));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn inherited_sockets_are_handed_on_when_none_is_declared() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let dir = TempDir::new();
        let path = dir.path().join("s");
        let unix = UnixListener::bind(&path).unwrap();
        let sandbox = by(Sandbox::example("web")).inherit(socket, "http").inherit(unix, "admin");
        let mut running = sandbox.start();
        running.stderr_line("web: listening");
        let answer = Client::tcp(address).unwrap().get("/whoami").unwrap();
        let both = [format!("http={address}"), format!("admin={}", path.display())];
        assert_eq!(listeners(&answer), both);
        running.signal(SIGTERM);
        assert_eq!(running.wait().code(), Some(0));
        assert!(path.exists(), "who made it removes it");
        sandbox.assert_nothing_left();
    });
}

#[test]
fn inherited_sockets_are_matched_by_name_and_by_address() {
    if !root_or_skip() {
        return;
    }
    let sockets = || {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = [0, 1].map(|n: usize| listeners[n].local_addr().unwrap());
        (listeners, addresses)
    };
    // Declared the other way round: the names and the order are the policy's.
    for named in [true, false] {
        let ([first, second], [a, b]) = sockets();
        let names = if named { ["one", "two"] } else { ["unknown", "something"] };
        let sandbox = Sandbox::example("web")
            .option("--listen", format!("two=tcp:{b}"))
            .option("--listen", format!("one=tcp:{a}"))
            .inherit(first, names[0])
            .inherit(second, names[1]);
        let mut running = sandbox.start();
        running.stderr_line("web: listening");
        for address in [a, b] {
            let answer = Client::tcp(address).unwrap().get("/whoami").unwrap();
            assert_eq!(listeners(&answer), [format!("two={b}"), format!("one={a}")]);
        }
        running.signal(SIGTERM);
        assert_eq!(running.wait().code(), Some(0));
    }
    // One inherited, the other opened, and nothing else held.
    let ([socket, free], [a, b]) = sockets();
    drop(free);
    let me = Sandbox::example("whoami")
        .option("--listen", format!("mine=tcp:{b}"))
        .option("--listen", format!("theirs=tcp:{a}"))
        .inherit(socket, "theirs")
        .json();
    let held = me["fds"].as_object().unwrap();
    let held: Vec<_> = held.iter().filter(|(_, fd)| fd["cloexec"] == false).collect();
    assert_eq!(held.len(), 5, "{held:?}");
    let environment = me["env"].to_string();
    assert!(environment.contains("\"LISTEN_FDS=2\""), "{environment}");
    assert!(environment.contains("\"LISTEN_FDNAMES=mine:theirs\""), "{environment}");
}

#[test]
fn inherited_sockets_that_were_not_meant_are_refused() {
    if !root_or_skip() {
        return;
    }
    let web = || Sandbox::example("web");
    let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = |sandbox: Sandbox, why: &str| {
        sandbox.run().assert_refused(125, &format!("listen: {why}"));
        sandbox.assert_nothing_left();
    };
    let listener = socket();
    let address = listener.local_addr().unwrap();
    refused(
        web().option("--listen", "own=tcp:127.0.0.1:0").inherit(listener, "other"),
        &format!("other: an inherited socket at tcp:{address} matches no declared listener ("),
    );
    let listener = socket();
    let address = listener.local_addr().unwrap();
    refused(
        web().option("--listen", "own=tcp:127.0.0.1:9").inherit(listener, "own"),
        &format!("own: the inherited socket of this name is at tcp:{address}, the declared one at"),
    );
    refused(
        web().inherit(UdpSocket::bind("127.0.0.1:0").unwrap(), "udp"),
        "descriptor 3 (udp): not a listening stream socket (",
    );
    let pair = UnixDatagram::pair().unwrap();
    refused(web().inherit(pair.0, "pair"), "descriptor 3 (pair): not a listening stream socket (");
    // Bound, and nobody has called listen.
    let stream = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    refused(web().inherit(stream, "idle"), "descriptor 3 (idle): not a listening stream socket (");
    refused(
        web().inherit(std::fs::File::open("/etc/passwd").unwrap(), "file"),
        "descriptor 3 (file): not a listening stream socket (",
    );
    let connected = {
        let listener = socket();
        std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    };
    refused(
        web().inherit(connected, "connected"),
        "descriptor 3 (connected): not a listening stream socket (",
    );
}

#[test]
fn sockets_that_were_meant_for_another_process_are_not_handed_on() {
    if !root_or_skip() {
        return;
    }
    let me = Sandbox::example("whoami")
        .descriptor(TcpListener::bind("127.0.0.1:0").unwrap(), 3)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_PID", "1")
        .json();
    let held = me["fds"].as_object().unwrap();
    assert!(!held.contains_key("3") || held["3"]["cloexec"] == true, "{held:?}");
    assert!(!me["env"].to_string().contains("LISTEN_"), "{}", me["env"]);
}

#[test]
fn the_end_may_come_at_any_moment_of_the_start() {
    if !root_or_skip() {
        return;
    }
    let user = User::new();
    for (signal, by_user) in [(SIGTERM, false), (SIGINT, false), (SIGTERM, true)] {
        for n in 0..50u64 {
            let mut sandbox = hello(["sleep", "1h"]).option("--listen", "0");
            if by_user {
                sandbox = sandbox.started_by(std::sync::Arc::clone(&user));
            }
            let begun = Instant::now();
            let running = sandbox.start();
            // The moments are spread over the time that a start takes.
            while begun.elapsed() < Duration::from_micros(n * 400) {
                std::hint::spin_loop();
            }
            running.signal(signal);
            let output = running.wait();
            // From us before it ran, from the tenant's own death after. Go ends
            // by the signal it got, and SIGINT comes to it as SIGTERM.
            let ended = output.signal();
            assert!([Some(signal as i32), Some(15)].contains(&ended), "{output:?}");
            if n % 10 == 0 {
                sandbox.assert_nothing_left();
            }
        }
    }
}

#[test]
fn a_supervisor_may_be_killed_at_any_moment_of_the_start() {
    if !root_or_skip() {
        return;
    }
    let user = User::new();
    for by_user in [false, true] {
        let mut sandbox = hello(["sleep", "1h"]).option("--listen", "0");
        if by_user {
            sandbox = sandbox.started_by(std::sync::Arc::clone(&user));
        }
        for n in 0..50u64 {
            let begun = Instant::now();
            let running = sandbox.start();
            while begun.elapsed() < Duration::from_micros(n * 400) {
                std::hint::spin_loop();
            }
            running.signal(SIGKILL);
            // The same tenant again: what the last one left is in the way of none.
            let output = running.wait();
            assert_eq!(output.signal(), Some(9), "{output:?}");
        }
        assert_dead(&sandbox);
        let last = hello(["exit", "0"]).of(&sandbox).run();
        assert_eq!(last.code(), Some(0), "{last:?}");
        sandbox.assert_nothing_left();
    }
}

/// The children of a process: of a supervisor init first.
fn below(pid: i32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let all = std::fs::read_to_string(path).unwrap_or_default();
    all.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// The supervisor below strace, which forks for itself as well.
fn traced(running: &Running) -> i32 {
    let name = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    wait_for("the supervisor", || {
        below(running.pid()).into_iter().find(|&pid| name(pid) == "gosandbox\n")
    })
}

fn strace<const N: usize>(expressions: [&str; N]) -> Vec<String> {
    let words = ["strace", "-qq", "-o", "/dev/null"].map(str::to_owned);
    words.into_iter().chain(expressions.map(str::to_owned)).collect()
}

/// A handler is in place a moment before it knows what to do. Here strace makes
/// the moment long, and the signal comes in it.
#[test]
fn a_signal_that_comes_while_handlers_are_set_up_is_not_lost() {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return;
    }
    let slow = ["-e", "trace=rt_sigaction", "-e", "inject=rt_sigaction:delay_exit=150000"];
    let running = hello(["sleep", "1h"]).wrapped(strace(slow)).start();
    let supervisor = traced(&running);
    wait_for("the handler", || {
        let status = std::fs::read_to_string(format!("/proc/{supervisor}/status")).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        (caught >> (SIGTERM as i32 - 1) & 1 == 1).then_some(())
    });
    kill(supervisor, SIGTERM);
    let output = running.wait();
    assert_eq!(output.signal(), Some(15), "{output:?}");
}

/// An init that is late sees that its supervisor is dead, also while the broker,
/// which begins as a copy of the supervisor, is on its way.
#[test]
fn a_broker_is_not_taken_for_its_supervisor() {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return;
    }
    // Without a network of its own, and so without a maker of one, setns is the
    // broker's; sethostname is init's. Who learns has a broker from the start.
    let late = ["-f", "-e", "trace=setns,sethostname", "-e", "inject=setns:delay_enter=15000000"];
    let later = ["-e", "inject=sethostname:delay_enter=1000000"];
    let words = [strace(late), later.map(str::to_owned).to_vec()].concat();
    let running = hello(["sleep", "1h"]).command("learn").option("--network", "host");
    let running = running.wrapped(words).start();
    let supervisor = traced(&running);
    let (init, broker) = wait_for("init and the broker", || match below(supervisor)[..] {
        [init, broker] => Some((init, broker)),
        _ => None,
    });
    kill(supervisor, SIGKILL);
    let alive = |pid: i32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    wait_for("init's end", || (!alive(init)).then_some(()));
    assert!(alive(broker), "init has waited for it");
    running.wait();
}

/// Kills the supervisor while the maker of the network lives, with calls made late
/// as `injected` says. Who makes the network holds what the supervisor holds, and
/// may outlive it: the `others` must not take it for the supervisor.
fn ends_without_a_supervisor(sandbox: &Sandbox, others: usize, calls: &str, injected: &[&str]) {
    let trace = format!("trace={calls}");
    let injected = injected.iter().flat_map(|how| ["-e".to_owned(), format!("inject={how}")]);
    let words: Vec<_> = strace(["-f", "-e", &trace]).into_iter().chain(injected).collect();
    let running = sandbox.clone().wrapped(words).start();
    let supervisor = traced(&running);
    let others = wait_for("the maker", || {
        // The last to be made.
        let all = below(supervisor);
        (all.len() == others + 1).then(|| all[..others].to_vec())
    });
    // What it does takes a thousandth of that.
    std::thread::sleep(Duration::from_millis(300));
    kill(supervisor, SIGKILL);
    let alive = |pid: i32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(others.iter().all(|&pid| alive(pid)), "they are not late");
    for pid in others {
        wait_for("the end of init or broker", || (!alive(pid)).then_some(()));
    }
    running.wait();
}

/// Init is late to look whether there is a supervisor, and the maker, which is done,
/// to end: there must be nothing for init to go on with.
#[test]
fn init_does_not_take_the_maker_of_the_network_for_its_supervisor() {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return;
    }
    let late = ["exit_group:delay_enter=3000000", "sethostname:delay_enter=1000000"];
    ends_without_a_supervisor(&hello(["sleep", "1h"]), 1, "sethostname,exit_group", &late);
}

/// The broker is late to look, and late once more, to find no init. The second ioctl
/// is the maker's; of a first open_tree there is the supervisor's, before all that,
/// and the broker's.
#[test]
fn the_broker_does_not_take_the_maker_of_the_network_for_its_supervisor() {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return;
    }
    let late = [
        "ioctl:delay_exit=2000000:when=2",
        "setresuid:delay_enter=1000000",
        "open_tree:delay_enter=4000000:when=1",
    ];
    let sandbox = hello(["sleep", "1h"]).option("--listen", "0");
    ends_without_a_supervisor(&sandbox, 2, "ioctl,setresuid,open_tree", &late);
}

/// What makes the network may be killed by a filter that somebody put around all of
/// gosandbox.
#[test]
fn a_maker_of_networks_that_is_killed_is_told_of() {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return;
    }
    let killed = ["-f", "-e", "trace=setns", "-e", "inject=setns:signal=SIGKILL:when=1"];
    let sandbox = hello(["exit", "0"]).wrapped(strace(killed));
    let output = sandbox.run();
    output.assert_refused(125, "new network: No child processes (what makes it was killed: ");
    sandbox.assert_nothing_left();
}

/// Descriptors on their way by SCM_RIGHTS are counted for the whole user, and all
/// tenants of an ordinary user are that user: one that has more under way than a
/// supervisor may have open is in nobody's way.
#[test]
fn descriptors_that_others_have_under_way_do_not_stop_a_start() {
    const SENDER: &str = "
import array, os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
pair = socket.socketpair()
null = array.array('i', [os.open('/dev/null', os.O_RDONLY)] * 250)
for _ in range(6):
    pair[0].sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, null)])
print('sent', flush=True)
sys.stdin.read()
";
    if !root_or_skip() || tool_or_skip("python3").is_none() {
        return;
    }
    let user = User::new();
    let limit = |soft: u32| ["prlimit".to_owned(), format!("--nofile={soft}:4096")];
    let mut sender = std::process::Command::new("prlimit")
        .args(["--nofile=4096:4096", "python3", "-c", SENDER])
        .arg(user.id.to_string())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    std::io::Read::read_exact(sender.stdout.as_mut().unwrap(), &mut said).unwrap();
    for network in ["private", "host"] {
        let sandbox = hello(["exit", "0"]).option("--network", network);
        let output = sandbox.started_by(user.clone()).wrapped(limit(1024)).run();
        assert_eq!(output.code(), Some(0), "{network}: {output:?}");
    }
    // The control: where the hard limit is no higher, it says so.
    let words = ["prlimit", "--nofile=1024:1024"].map(str::to_owned);
    let sandbox = hello(["exit", "0"]).started_by(user.clone()).wrapped(words);
    let output = sandbox.run();
    output.assert_refused(125, "new network: Too many references: cannot splice (programs of ");
    drop(sender.stdin.take());
    sender.wait().unwrap();
    sandbox.assert_nothing_left();
}

/// Its last words are waited for, and not for ever.
#[test]
fn a_broker_that_hangs_keeps_nobody_from_ending() {
    if !root_or_skip() {
        return;
    }
    let running = hello(["sleep", "1h"]).option("--listen", "0").start();
    running.app();
    let broker = below(running.pid())[1];
    kill(broker, SIGSTOP);
    let begun = Instant::now();
    running.signal(SIGTERM);
    let sandbox = running.sandbox.clone();
    assert_eq!(running.wait().signal(), Some(SIGTERM as i32));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    sandbox.assert_nothing_left();
}

#[test]
fn twenty_tenants_at_once_do_not_get_into_each_others_way() {
    if !root_or_skip() {
        return;
    }
    let mut all: Vec<Running> =
        (0..20).map(|_| Sandbox::example("web").option("--listen", "0").start()).collect();
    for running in &mut all {
        let address = address(running);
        let answer = Client::tcp(address).unwrap().get("/").unwrap();
        assert_eq!(answer.body, format!("hello from {}\n", running.sandbox.tenant));
    }
    let ids: std::collections::BTreeSet<_> =
        all.iter().map(|running| running.sandbox.host_id()).collect();
    assert_eq!(ids.len(), 20);
    for running in &all {
        running.signal(SIGTERM);
    }
    for running in all {
        let sandbox = running.sandbox.clone();
        let output = running.wait();
        assert_eq!(output.code(), Some(0), "{output:?}");
        sandbox.assert_nothing_left();
    }
}

#[test]
fn who_takes_more_memory_than_it_has_is_killed_and_told_why() {
    if !root_or_skip() {
        return;
    }
    if !common::has_controllers() {
        common::tested_in_vm(
            "cgroup v2 has no memory controller here",
            "memory.sh",
            "the_limit_kills_its_tenant_and_nobody_else",
        );
        return;
    }
    let sandbox = hello(["alloc", "256"]).option("--memory", "64M").option("--memlimit", "off");
    let output = sandbox.run();
    assert_eq!(output.signal(), Some(9), "{output:?}");
    assert!(output.stderr().contains("out of memory: memory.max of 64M"), "{output:?}");
    sandbox.assert_nothing_left();
}

#[test]
fn a_fork_bomb_ends_at_its_limit() {
    if !root_or_skip() {
        return;
    }
    if !common::has_controllers() {
        common::tested_in_vm(
            "cgroup v2 has no pids controller here",
            "pids.sh",
            "a_fork_bomb_is_stopped",
        );
        return;
    }
    let sandbox = hello(["fork-bomb", "200"]).option("--pids", "64");
    let output = sandbox.run();
    let started: u32 = output
        .stdout()
        .strip_prefix("started ")
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{output:?}"));
    assert!(started < 64, "{started}");
    sandbox.assert_nothing_left();
}
