//! The ways in and out of a private network: what an ordinary server that opens
//! its own listener and dials gets of the host's network, and what stays inside.
//! All of it is shown from outside, by a client or a server of the test; what is
//! refused has a control, where the same is reached.
//!
//! Each test has a network of its own in the host's place, so that ports can be
//! written down and nobody else is met there.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{
    Client, HOST_IDS, RELEASES, Running, Sandbox, TempDir, User, example_of, pids, root_or_skip,
    skip, status_line, tool_or_skip, wait_for, within,
};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrIn, bind, connect, getsockopt,
    listen, setsockopt, shutdown, socket, sockopt,
};
use serde_json::Value;

/// Runs a test in a new network with nothing in it but loopback.
fn apart(test: impl FnOnce() + Send) {
    if !root_or_skip() || tool_or_skip("ip").is_none() {
        return;
    }
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        test();
    };
    let ended = std::thread::scope(|scope| scope.spawn(body).join());
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {output:?}");
}

/// Started by root, and started by a user.
fn both(test: impl Fn(fn(Sandbox) -> Sandbox) + Send) {
    apart(move || {
        test(|sandbox| sandbox);
        test(Sandbox::unprivileged);
    });
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What a server at `to` says to a request within `patience`; nothing where it
/// does not, or nobody listens.
fn answer_of(to: SocketAddr, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    // A reset at the end takes nothing from what came.
    _ = stream.read_to_string(&mut text);
    text.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned())
}

const SOON: Duration = Duration::from_secs(20);
/// Long enough for an answer that is not to come.
const A_MOMENT: Duration = Duration::from_millis(300);

/// Waits until gosandbox has opened its listener, which takes connections then.
fn listening(running: &mut Running, address: &str) {
    let open = || (TcpStream::connect(at(address)).is_ok() || running.has_ended()).then_some(());
    wait_for("the listener", open);
    assert!(!running.has_ended(), "{}", running.stderr());
}

/// A server of the test, that says a line to everybody who connects. Ends when
/// dropped.
struct Outside {
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    listener: Arc<TcpListener>,
    server: Option<JoinHandle<()>>,
}

fn outside(address: &str) -> Outside {
    outside_with(TcpListener::bind(at(address)).unwrap())
}

fn outside_with(listener: TcpListener) -> Outside {
    let peers = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::new(listener);
    let (seen, accepts) = (Arc::clone(&peers), Arc::clone(&listener));
    let server = std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = accepts.accept() {
            seen.lock().unwrap().push(peer);
            _ = stream.write_all(b"outside\n");
        }
    });
    Outside { peers, listener, server: Some(server) }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // accept(2) gives up on a listener that is shut down.
        _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        self.server.take().map(JoinHandle::join);
    }
}

impl Outside {
    fn met(&self) -> usize {
        self.peers.lock().unwrap().len()
    }
}

/// The `binds` example, which is told what to do by way of a declared listener.
struct Binds {
    running: Running,
}

const CONTROL: &str = "127.0.0.1:8000";

fn binds(by: fn(Sandbox) -> Sandbox, options: &[(&str, &str)]) -> Binds {
    Binds::start(by(Sandbox::example("binds")), options)
}

impl Binds {
    fn start(sandbox: Sandbox, options: &[(&str, &str)]) -> Self {
        let sandbox = sandbox.option("--listen", format!("control=tcp:{CONTROL}"));
        let with = |sandbox: Sandbox, (name, value): &(&str, &str)| sandbox.option(name, value);
        let sandbox = options.iter().fold(sandbox, with);
        let mut running = sandbox.arg("-addr").arg(CONTROL).start();
        listening(&mut running, CONTROL);
        Self { running }
    }

    fn ask(&self, request: &str) -> Value {
        let told = Client::tcp(at(CONTROL)).and_then(|mut client| client.get(request));
        let answer = told.unwrap_or_else(|error| panic!("{request}: {error}: {self:?}"));
        serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{request}: {answer:?}"))
    }

    /// Asks for what has to succeed.
    fn done(&self, request: &str) -> Value {
        let answer = self.ask(request);
        assert!(answer["error"].is_null(), "{request}: {answer} {self:?}");
        answer
    }

    /// Asks for what has to fail with this errno.
    fn refused(&self, request: &str, errno: &str) {
        let answer = self.ask(request);
        assert_eq!(answer["errno"], errno, "{request}: {answer} {self:?}");
    }

    /// A dial that reaches a server of the test.
    fn reaches(&self, request: &str) -> Value {
        let answer = self.done(request);
        assert_eq!(answer["got"], "outside", "{request}: {answer} {self:?}");
        answer
    }

    /// How often the log has a line with this in it, of gosandbox's own.
    fn said(&self, text: &str) -> usize {
        let start = format!("gosandbox: tenant {}: ", self.running.sandbox.tenant);
        let log = self.running.stderr();
        log.lines().filter(|line| line.starts_with(&start) && line.contains(text)).count()
    }

    /// Waits for a line with this in it; says whether it came.
    fn says(&self, text: &str) -> bool {
        within(Duration::from_secs(3), || (self.said(text) > 0).then_some(())).is_some()
    }

    fn broker(&self) -> i32 {
        broker_of(&self.running)
    }
}

impl std::fmt::Debug for Binds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Binds").field(&self.running.stderr()).finish()
    }
}

fn broker_of(running: &Running) -> i32 {
    let supervisor = running.pid().to_string();
    wait_for("the broker", || {
        pids().into_iter().find(|&pid| {
            status_line(pid, "PPid").as_ref() == Some(&supervisor)
                && status_line(pid, "Name").as_deref() == Some("gosandbox-brok")
        })
    })
}

/// Processor time that a process has used.
fn cpu_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // proc_pid_stat(5): utime and stime, 14 and 15, in hundredths of a second.
    let ticks = |n: usize| fields[n - 3].parse::<u64>().unwrap();
    Duration::from_millis(10 * (ticks(14) + ticks(15)))
}

// ---- In: the declared listener.

#[test]
fn an_ordinary_server_gets_its_listener_with_every_go_release() {
    both(|by| {
        let mut tried = 0;
        for release in RELEASES.iter().flat_map(|r| [(*r).to_owned(), format!("{r}-own")]) {
            let Some(plain) = example_of(&release, "plain") else { continue };
            let sandbox =
                by(Sandbox::new(plain)).option("--listen", "8080").args(["-addr", ":8080"]);
            let mut running = sandbox.start();
            listening(&mut running, "127.0.0.1:8080");
            let answer = answer_of(at("127.0.0.1:8080"), SOON);
            let said = running.stderr();
            assert_eq!(answer.as_deref(), Some("hello from a plain server"), "{release}: {said}");
            assert!(!said.contains("bound"), "{release}: {said}");
            running.signal(SIGTERM);
            running.wait();
            sandbox.assert_nothing_left();
            tried += 1;
        }
        if tried < RELEASES.len() {
            skip("plain is not built with every Go release");
        }
        assert!(tried > 0);
    });
}

#[test]
fn a_server_that_takes_its_sockets_from_listen_fds_is_served_as_before() {
    both(|by| {
        let sandbox = by(Sandbox::example("web")).option("--listen", "8080");
        let mut running = sandbox.start();
        running.stderr_line("web: listening on 127.0.0.1:8080 (unknown)");
        let answer = answer_of(at("127.0.0.1:8080"), SOON).unwrap();
        assert_eq!(answer, format!("hello from {}", sandbox.tenant));
        running.signal(SIGTERM);
        let output = running.wait();
        assert_eq!(output.code(), Some(0), "{output:?}");
        assert_eq!(output.stdout(), "drained\n");
        sandbox.assert_nothing_left();
    });
}

#[test]
fn one_listener_is_taken_over_and_another_is_bound() {
    both(|by| {
        let sandbox = by(Sandbox::example("binds")).args(["-inherit", "given"]);
        let listen = [("--listen", "given=tcp:127.0.0.1:8081"), ("--listen", "8082")];
        let app = Binds::start(sandbox, &listen);
        app.done("/open?id=bound&addr=:8082");
        assert_eq!(answer_of(at("127.0.0.1:8081"), SOON).as_deref(), Some("given"));
        assert_eq!(answer_of(at("127.0.0.1:8082"), SOON).as_deref(), Some("bound"));
        // One and the same listener both ways, and the one that was taken over stays.
        app.done("/open?id=again&addr=127.0.0.1:8081");
        for _ in 0..20 {
            let answer = answer_of(at("127.0.0.1:8081"), SOON);
            assert!(matches!(answer.as_deref(), Some("given" | "again")), "{answer:?}");
        }
        app.done("/close?id=again");
        assert_eq!(answer_of(at("127.0.0.1:8081"), SOON).as_deref(), Some("given"));
    });
}

/// What Go's net does with an address: "tcp" and any wildcard give a socket of
/// IPv6 that takes IPv4 too, "tcp4" one of IPv4, "tcp6" one of IPv6 alone.
///
/// network, address, whether it is served; if not, where it is inside.
type Row = (&'static str, &'static str, Option<&'static str>);

const LOOPBACK: [Row; 10] = [
    ("tcp", ":8080", None),
    ("tcp", "127.0.0.1:8080", None),
    ("tcp", "localhost:8080", None),
    ("tcp", "0.0.0.0:8080", None),
    ("tcp", "[::]:8080", None),
    ("tcp", "[::1]:8080", Some("[::1]:8080")),
    ("tcp4", ":8080", None),
    ("tcp6", ":8080", Some("[::1]:8080")),
    ("tcp", "127.0.0.2:8080", Some("127.0.0.2:8080")),
    ("tcp", "127.0.0.1:8081", Some("127.0.0.1:8081")),
];

const ANY: [Row; 8] = [
    ("tcp", ":8080", None),
    ("tcp", "127.0.0.1:8080", None),
    ("tcp", "0.0.0.0:8080", None),
    ("tcp", "[::]:8080", None),
    ("tcp4", ":8080", None),
    ("tcp", "127.0.0.2:8080", None),
    ("tcp", "[::1]:8080", Some("[::1]:8080")),
    ("tcp6", ":8080", Some("[::1]:8080")),
];

const LOOPBACK_6: [Row; 7] = [
    ("tcp", ":8080", None),
    ("tcp", "[::1]:8080", None),
    ("tcp", "[::]:8080", None),
    ("tcp", "0.0.0.0:8080", None),
    ("tcp6", ":8080", None),
    ("tcp4", ":8080", Some("127.0.0.1:8080")),
    ("tcp", "127.0.0.1:8080", Some("127.0.0.1:8080")),
];

const ANY_6: [Row; 7] = [
    ("tcp", "127.0.0.1:8080", None),
    ("tcp", ":8080", None),
    ("tcp", "[::1]:8080", None),
    ("tcp", "[::]:8080", None),
    ("tcp", "0.0.0.0:8080", None),
    ("tcp4", ":8080", None),
    ("tcp6", ":8080", None),
];

/// Binds each address in turn and asks for it, outside and, where it is private,
/// inside. What went wrong, in words.
fn table(app: &Binds, declared: &str, rows: &[Row], from: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (n, (network, address, private)) in rows.iter().enumerate() {
        let id = format!("row{n}");
        let what = format!("declared {declared}, {network} {address}");
        app.done(&format!("/open?id={id}&network={network}&addr={address}"));
        for target in from {
            let patience = if private.is_some() { A_MOMENT } else { SOON };
            let answer = answer_of(at(target), patience);
            if (answer.as_ref() == Some(&id)) == private.is_some() {
                wrong.push(format!("{what}: {target} outside answers {answer:?}"));
            }
        }
        if let Some(inside) = private {
            let answer = app.ask(&format!("/get?url=http://{inside}/"));
            if answer["got"] != *id {
                wrong.push(format!("{what}: {inside} inside answers {answer}"));
            }
        }
        app.done(&format!("/close?id={id}"));
    }
    wrong
}

fn of_table(declared: &str, rows: &[Row], from: &[&str]) {
    both(|by| {
        let app = binds(by, &[("--listen", &format!("tcp:{declared}"))]);
        let wrong = table(&app, declared, rows, from);
        assert!(wrong.is_empty(), "{}\n{app:?}", wrong.join("\n"));
    });
}

#[test]
fn a_listener_on_127_0_0_1_is_for_ipv4_and_wildcards() {
    of_table("127.0.0.1:8080", &LOOPBACK, &["127.0.0.1:8080"]);
}

#[test]
fn a_listener_on_0_0_0_0_is_for_every_ipv4_address() {
    of_table("0.0.0.0:8080", &ANY, &["127.0.0.1:8080", "127.0.0.2:8080"]);
}

#[test]
fn a_listener_on_ipv6_loopback_is_for_ipv6_and_wildcards() {
    of_table("[::1]:8080", &LOOPBACK_6, &["[::1]:8080"]);
}

#[test]
fn a_listener_on_every_ipv6_address_is_for_ipv6_and_wildcards() {
    of_table("[::]:8080", &ANY_6, &["[::1]:8080", "127.0.0.1:8080"]);
}

#[test]
fn several_listeners_each_get_their_own() {
    both(|by| {
        let listen = ["8081", "tcp:0.0.0.0:8082", "tcp:[::1]:8083", "tcp:127.0.0.2:8081"];
        let app = binds(by, &listen.map(|address| ("--listen", address)));
        // The first that fits is the one.
        app.done("/open?id=two&addr=127.0.0.2:8081");
        app.done("/open?id=one&addr=:8081");
        app.done("/open?id=any&addr=:8082");
        app.done("/open?id=six&addr=[::1]:8083");
        for (address, id) in [
            ("127.0.0.1:8081", "one"),
            ("127.0.0.2:8081", "two"),
            ("127.0.0.1:8082", "any"),
            ("[::1]:8083", "six"),
        ] {
            assert_eq!(answer_of(at(address), SOON).as_deref(), Some(id), "{address}");
        }
    });
}

#[test]
fn a_unix_listener_is_got_by_its_path() {
    both(|by| {
        let sandbox = by(Sandbox::example("binds"));
        let dir = TempDir::new();
        let place = sandbox.user.as_ref().map_or(dir.path().to_owned(), |user| user.home());
        let path = place.join("app.sock");
        let listen = format!("unix:{}", path.display());
        let app = Binds::start(sandbox, &[("--listen", &listen)]);
        for id in ["first", "second"] {
            let open = format!("/open?network=unix&remove=1&id={id}&addr={}", path.display());
            app.done(&open);
            let answer = Client::unix(&path).unwrap().get("/").unwrap();
            assert_eq!(answer.body.trim(), id);
            // Go removes the path with the listener; the host's stays.
            app.done(&format!("/close?id={id}"));
            assert!(path.exists());
        }
        // Control: another path is one inside.
        app.done("/open?network=unix&id=other&addr=/tmp/other.sock");
        assert!(!Path::new("/tmp/other.sock").exists());
    });
}

#[test]
fn a_probe_of_port_0_is_no_declared_listener() {
    both(|by| {
        let mut sandbox = by(Sandbox::example("binds"));
        // Any port: gosandbox says which.
        sandbox = sandbox.option("--listen", "any=tcp:127.0.0.1:0");
        let mut app = Binds::start(sandbox, &[("--listen", "8080")]);
        let start = format!("gosandbox: tenant {}: listening on ", app.running.sandbox.tenant);
        let got = at(&app.running.stderr_line(&start)[start.len()..]);
        for address in ["127.0.0.1:0", ":0", "[::1]:0"] {
            let answer = app.done(&format!("/open?id=probe&addr={address}"));
            let port = at(answer["local"].as_str().unwrap()).port();
            assert!(port != 8080 && port != got.port() && port != 0, "{answer}");
            let host = if address.starts_with('[') { "[::1]" } else { "127.0.0.1" };
            let inside = app.done(&format!("/get?url=http://{host}:{port}/"));
            assert_eq!(inside["got"], "probe");
            assert!(TcpStream::connect(at(&format!("127.0.0.1:{port}"))).is_err());
            app.done("/close?id=probe");
        }
        assert_eq!(app.said("bound"), 0, "{app:?}");
        // Control: the port that any became is got by its number.
        app.done(&format!("/open?id=any&addr=:{}", got.port()));
        assert_eq!(answer_of(got, SOON).as_deref(), Some("any"));
    });
}

#[test]
fn a_listener_can_be_bound_again_and_by_two_at_once() {
    both(|by| {
        let app = binds(by, &[("--listen", "8080")]);
        let address = at("127.0.0.1:8080");
        for id in ["first", "second", "third"] {
            app.done(&format!("/open?id={id}&addr=:8080"));
            assert_eq!(answer_of(address, SOON).as_deref(), Some(id));
            app.done(&format!("/close?id={id}"));
            // Nobody is turned away meanwhile: whoever comes next answers.
            assert!(TcpStream::connect(address).is_ok());
        }
        for (closed, left) in [("a", "b"), ("b", "a")] {
            app.done("/open?id=a&addr=:8080");
            app.done("/open?id=b&addr=127.0.0.1:8080");
            for _ in 0..20 {
                let answer = answer_of(address, SOON);
                assert!(matches!(answer.as_deref(), Some("a" | "b")), "{answer:?}");
            }
            app.done(&format!("/close?id={closed}"));
            for _ in 0..5 {
                assert_eq!(answer_of(address, SOON).as_deref(), Some(left));
            }
            app.done(&format!("/close?id={left}"));
        }
    });
}

#[test]
fn a_socket_that_blocks_and_one_that_does_not_accept_as_they_should() {
    both(|by| {
        for (id, block) in [("blocks", "&block=1"), ("does-not", "")] {
            let app = binds(by, &[("--listen", "8080")]);
            app.done(&format!("/raw-open?id={id}&addr=0.0.0.0:8080&accept=1{block}"));
            // It waits for a while before anybody comes.
            std::thread::sleep(A_MOMENT);
            for _ in 0..5 {
                assert_eq!(answer_of(at("127.0.0.1:8080"), SOON).as_deref(), Some(id));
            }
            let state = app.done(&format!("/state?id={id}"));
            assert_eq!(state["nonblocking"], block.is_empty(), "{state}");
            assert_eq!(state["again"].as_u64() == Some(0), !block.is_empty(), "{state}");
            assert!(state["failure"].is_null(), "{state}");
            assert_eq!((&state["accepted"], &state["cloexec"]), (&5.into(), &true.into()));
        }
    });
}

/// What a program inside dials at its own declared address is itself.
#[test]
fn a_server_may_dial_itself_without_egress() {
    both(|by| {
        let listen = ["8080", "tcp:0.0.0.0:8081", "tcp:[::]:8082"];
        let app = binds(by, &listen.map(|address| ("--listen", address)));
        app.done("/open?id=self&addr=:8080");
        app.done("/open?id=six&addr=:8082");
        app.done("/open?id=any&addr=:8081");
        for (to, id) in [
            ("127.0.0.1:8080", "self"),
            ("localhost:8080", "self"),
            ("[::ffff:127.0.0.1]:8080", "self"),
            ("127.0.0.1:8081", "any"),
            ("[::1]:8082", "six"),
            ("127.0.0.1:8082", "six"),
        ] {
            let answer = app.done(&format!("/get?url=http://{to}/"));
            assert_eq!(answer["got"], id, "{to}");
        }
    });
}

/// 0.0.0.0 is no address of IPv6: who listens on the same port there is another.
#[test]
fn a_declared_wildcard_leads_to_nobody_else_on_the_host() {
    both(|by| {
        let other = outside("[::1]:8080");
        let app = binds(by, &[("--listen", "tcp:0.0.0.0:8080")]);
        app.refused("/dial?to=[::1]:8080", "ECONNREFUSED");
        assert_eq!(other.met(), 0);
        drop(app);
        // Control: where it is listed, it is reached.
        let options = [("--listen", "tcp:0.0.0.0:8080"), ("--egress", "[::1]:8080")];
        binds(by, &options).reaches("/dial?to=[::1]:8080");
    });
}

// ---- What nobody declared stays inside.

#[test]
fn an_undeclared_address_is_private_and_said_once() {
    both(|by| {
        let app = binds(by, &[]);
        let line = "bound tcp [::]:9090 inside its private network; \
                    to publish it, add listen = [\"tcp:[::]:9090\"]";
        for _ in 0..3 {
            app.done("/open?id=private&addr=:9090");
            assert!(app.says(line), "{app:?}");
            for outside in ["127.0.0.1:9090", "[::1]:9090"] {
                let error = TcpStream::connect(at(outside)).unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
            }
            for inside in ["127.0.0.1:9090", "[::1]:9090"] {
                let answer = app.done(&format!("/get?url=http://{inside}/"));
                assert_eq!(answer["got"], "private", "{inside}");
            }
            app.done("/close?id=private");
        }
        assert_eq!(app.said("bound tcp"), 1, "{app:?}");
        drop(app);
        // Control: with what the line says, it is published.
        let app = binds(by, &[("--listen", "tcp:[::]:9090")]);
        app.done("/open?id=public&addr=:9090");
        assert_eq!(answer_of(at("127.0.0.1:9090"), SOON).as_deref(), Some("public"));
        assert_eq!(app.said("bound tcp"), 0, "{app:?}");
    });
}

#[test]
fn plain_reaches_what_it_bound_and_nobody_else_does() {
    both(|by| {
        let sandbox = by(Sandbox::example("plain")).option("--listen", "8080");
        let running = sandbox.args(["-addr", ":9090"]).start();
        let line = "bound tcp [::]:9090 inside its private network";
        wait_for("the line", || running.stderr().contains(line).then_some(()));
        assert!(TcpStream::connect(at("127.0.0.1:9090")).is_err());
        assert_eq!(answer_of(at("127.0.0.1:8080"), A_MOMENT), None);
    });
}

// ---- listen(2) on what is shared.

#[test]
fn a_backlog_of_one_leaves_the_shared_queue_as_it_was() {
    both(|by| {
        let app = binds(by, &[("--listen", "8080")]);
        // Nobody accepts: what connects stays in the queue.
        let shared = app.done("/raw-open?id=shared&addr=0.0.0.0:8080&backlog=1");
        let longest = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let longest = longest.trim().parse::<u64>().unwrap().min(4096);
        assert_eq!(shared["backlog"], longest, "{shared}");
        let all: Vec<_> = (0..50)
            .map(|_| TcpStream::connect_timeout(&at("127.0.0.1:8080"), Duration::from_secs(2)))
            .collect();
        assert!(all.iter().all(Result::is_ok), "{:?}", all.iter().find(|r| r.is_err()));
        // Control: on a socket of its own it does what it says, any number of it.
        for (asked, expected) in [("1", 1), ("0", 0), ("100", 100), ("-1", longest)] {
            let own = format!("/raw-open?id=own&addr=127.0.0.1:9090&backlog={asked}");
            assert_eq!(app.done(&own)["backlog"], expected, "listen(fd, {asked})");
            app.done("/close?id=own");
        }
    });
}

// ---- Out: egress.

#[test]
fn a_listed_address_is_reached_and_an_unlisted_one_says_how() {
    both(|by| {
        let server = outside("127.0.0.1:7000");
        for to in ["127.0.0.1:7000", "[::1]:7000"] {
            // Loopback is the tenant's own, where nobody listens.
            let _six = (to.starts_with('[')).then(|| outside(to));
            let app = binds(by, &[]);
            for kind in ["dial", "raw-dial", "raw-dial?block=1"] {
                let mark = if kind.contains('?') { '&' } else { '?' };
                app.refused(&format!("/{kind}{mark}to={to}"), "ECONNREFUSED");
            }
            let rule = format!("egress = [\"{to}\"]");
            assert!(app.says(to) && app.says(&rule), "nothing names {to} and {rule}: {app:?}");
            drop(app);
            let app = binds(by, &[("--egress", to)]);
            app.reaches(&format!("/dial?to={to}"));
            app.reaches(&format!("/raw-dial?to={to}"));
            app.reaches(&format!("/raw-dial?block=1&to={to}"));
            // Another port of the same address is not listed.
            let other = to.replace("7000", "7001");
            let _other = outside(&other);
            app.refused(&format!("/dial?to={other}"), "ECONNREFUSED");
        }
        assert_eq!(server.met(), 3);
    });
}

/// Another machine, as far as a network goes: a second namespace behind a cable,
/// which has every address of some networks. And one of these is our own.
struct Far(File);

const FAR: [&str; 4] = ["203.0.113.0/24", "10.0.0.0/8", "169.254.0.0/16", "198.51.100.0/24"];

fn addresses() -> Far {
    let here = nix::unistd::gettid();
    let network = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        ip(&format!("link add far type veth peer name near netns {here}"));
        ip("link set far up");
        ip("address add 192.0.2.2/24 dev far");
        ip("-6 address add 2001:db8:1::2/64 dev far nodad");
        for network in FAR {
            ip(&format!("route add local {network} dev lo"));
        }
        ip("-6 route add local 2001:db8::/64 dev lo");
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let network = network.join().unwrap();
    ip("link set near up");
    ip("address add 192.0.2.1/24 dev near");
    ip("-6 address add 2001:db8:1::1/64 dev near nodad");
    for network in FAR {
        ip(&format!("route add {network} via 192.0.2.2"));
    }
    ip("-6 route add 2001:db8::/64 via 2001:db8:1::2");
    ip("address add 203.0.113.9/32 dev lo");
    Far(network)
}

impl Far {
    fn listen(&self, address: &'static str) -> Outside {
        let network = self.0.try_clone().unwrap();
        let listener = std::thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind(at(address)).unwrap()
        });
        outside_with(listener.join().unwrap())
    }
}

fn reachable(to: &str) {
    let mut stream = TcpStream::connect_timeout(&at(to), SOON).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "outside\n", "{to}");
}

#[test]
fn an_unlisted_address_is_denied_with_the_rule_that_would_allow_it() {
    apart(|| {
        let far = addresses();
        let server = far.listen("[::]:7000");
        let user: fn(Sandbox) -> Sandbox = Sandbox::unprivileged;
        for by in [|sandbox| sandbox, user] {
            for to in ["203.0.113.5:7000", "[2001:db8::5]:7000", "10.1.2.3:7000"] {
                reachable(to);
                let before = server.met();
                let app = binds(by, &[("--egress", "203.0.113.6:7000")]);
                for request in ["/dial?to=", "/raw-dial?to=", "/raw-dial?block=1&to="] {
                    app.refused(&format!("{request}{to}"), "EACCES");
                }
                let text = app.ask(&format!("/dial?to={to}"))["error"].to_string();
                assert!(text.contains("permission denied"), "{text}");
                let line = format!("connect to {to} denied: to allow it, add egress = [\"{to}\"]");
                assert!(app.says(&line), "{app:?}");
                assert_eq!((app.said(&line), server.met()), (1, before), "{app:?}");
                drop(app);
                let app = binds(by, &[("--egress", to)]);
                app.reaches(&format!("/dial?to={to}"));
            }
        }
    });
}

#[test]
fn networks_and_any_port() {
    apart(|| {
        let far = addresses();
        let _far = [far.listen("[::]:7000"), far.listen("[::]:7001")];
        let _near = [outside("[::]:7000"), outside("[::]:7001")];
        reachable("203.0.113.9:7000");
        let rules =
            ["203.0.113.0/25:7000", "198.51.100.7:*", "[2001:db8::]/80:7001", "10.2.0.0/16:7000"];
        let user: fn(Sandbox) -> Sandbox = Sandbox::unprivileged;
        for by in [|sandbox| sandbox, user] {
            let app = binds(by, &rules.map(|rule| ("--egress", rule)));
            for to in [
                "203.0.113.1:7000",
                "203.0.113.127:7000",
                "198.51.100.7:7000",
                "198.51.100.7:7001",
                "[2001:db8::7]:7001",
                "10.2.255.1:7000",
            ] {
                app.reaches(&format!("/dial?to={to}"));
                app.reaches(&format!("/raw-dial?to={to}"));
            }
            for to in [
                "203.0.113.128:7000",
                "203.0.113.1:7001",
                "198.51.100.8:7000",
                "[2001:db8::7]:7000",
                "[2001:db8:0:0:1::7]:7001",
                "10.3.0.1:7000",
            ] {
                reachable(to);
                app.refused(&format!("/dial?to={to}"), "EACCES");
            }
            // In a listed network, but the host's own.
            app.refused("/dial?to=203.0.113.9:7000", "EACCES");
            let own = "connect to 203.0.113.9:7000 denied: a private, special or own address";
            assert!(app.says(own), "{app:?}");
            drop(app);
            let own = [("--egress", "203.0.113.0/24:*"), ("--egress", "203.0.113.9:7000")];
            let app = binds(by, &own);
            app.reaches("/dial?to=203.0.113.9:7000");
            app.refused("/dial?to=203.0.113.9:7001", "EACCES");
        }
    });
}

/// Whatever it is written as: everything is listed, and these are not meant.
#[test]
fn what_is_special_stays_shut_in_every_spelling() {
    apart(|| {
        let far = addresses();
        ip("route add local 192.0.2.77/32 dev lo");
        let servers = [far.listen("[::]:7000"), outside("[::]:7000")];
        let met = || servers.iter().map(Outside::met).sum::<usize>();
        let user: fn(Sandbox) -> Sandbox = Sandbox::unprivileged;
        for by in [|sandbox| sandbox, user] {
            let app = binds(by, &[("--egress", "0.0.0.0/0:*"), ("--egress", "[::]/0:*")]);
            // Control.
            app.reaches("/dial?to=198.51.100.1:7000");
            app.reaches("/raw-dial?family=6&to=198.51.100.1:7000");
            // The last leads to this machine though no interface has it.
            for to in
                ["10.0.0.1:7000", "169.254.169.254:7000", "203.0.113.9:7000", "192.0.2.77:7000"]
            {
                reachable(to);
                let before = met();
                app.refused(&format!("/dial?to={to}"), "EACCES");
                app.refused(&format!("/raw-dial?to={to}"), "EACCES");
                // The same in an address of IPv6, on a socket of IPv6.
                app.refused(&format!("/raw-dial?family=6&to={to}"), "EACCES");
                app.refused(&format!("/raw-dial?family=6&block=1&to={to}"), "EACCES");
                assert_eq!(met(), before, "{to}");
            }
            // The tenant's own loopback, in which nobody listens.
            for to in ["127.0.0.1:7000", "127.9.9.9:7000", "0.0.0.0:7000"] {
                reachable(to);
                let before = met();
                app.refused(&format!("/dial?to={to}"), "ECONNREFUSED");
                app.refused(&format!("/raw-dial?family=6&to={to}"), "ECONNREFUSED");
                assert_eq!(met(), before, "{to}");
            }
            for to in ["[::1]:7000", "[::]:7000"] {
                reachable(to);
                let before = met();
                app.refused(&format!("/dial?to={to}"), "ECONNREFUSED");
                app.refused(&format!("/raw-dial?block=1&to={to}"), "ECONNREFUSED");
                assert_eq!(met(), before, "{to}");
            }
        }
    });
}

/// A listed network of loopback addresses has one meaning for all of them.
#[test]
fn a_listed_loopback_network_is_reached_or_not_as_a_whole() {
    both(|by| {
        let _server = outside("0.0.0.0:7000");
        let app = binds(by, &[("--egress", "127.0.0.0/8:7000")]);
        let one = app.ask("/dial?to=127.0.0.1:7000");
        let two = app.ask("/dial?to=127.0.0.2:7000");
        assert_eq!(one["got"], two["got"], "127.0.0.1: {one}; 127.0.0.2: {two}; {app:?}");
    });
}

#[test]
fn a_refusal_of_the_far_end_arrives_as_one() {
    apart(|| {
        let _far = addresses();
        let user: fn(Sandbox) -> Sandbox = Sandbox::unprivileged;
        for by in [|sandbox| sandbox, user] {
            let rules = ["127.0.0.1:7000", "203.0.113.5:7000"];
            let app = binds(by, &rules.map(|rule| ("--egress", rule)));
            for to in rules {
                app.refused(&format!("/dial?to={to}"), "ECONNREFUSED");
                app.refused(&format!("/raw-dial?block=1&to={to}"), "ECONNREFUSED");
                let answer = app.ask(&format!("/raw-dial?to={to}"));
                assert_eq!(answer["errno"], "ECONNREFUSED", "{answer}");
            }
            assert_eq!(app.said("denied"), 0, "{app:?}");
            // Control.
            let _server = outside("127.0.0.1:7000");
            app.reaches("/dial?to=127.0.0.1:7000");
        }
    });
}

/// A listener whose queue is full drops who comes next: tcp(7),
/// tcp_abort_on_overflow. The fillers keep it so.
fn full(address: &str) -> (TcpListener, Vec<OwnedFd>) {
    let SocketAddr::V4(to) = at(address) else { panic!("{address}") };
    let new = |flags| socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    let to = SockaddrIn::from(to);
    let listener = new(SockFlag::SOCK_CLOEXEC);
    setsockopt(&listener, sockopt::ReuseAddr, &true).unwrap();
    // A process that another test makes holds a copy of the last one's until its exec.
    wait_for("the port", || bind(listener.as_raw_fd(), &to).ok());
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let fillers = (0..4).map(|_| {
        let filler = new(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
        // EINPROGRESS, whether it gets a place or not.
        _ = connect(filler.as_raw_fd(), &to);
        filler
    });
    let fillers = fillers.collect();
    let patience = Duration::from_millis(500);
    assert!(TcpStream::connect_timeout(&at(address), patience).is_err(), "it is not full");
    (TcpListener::from(listener), fillers)
}

#[test]
fn a_dial_that_hangs_ends_by_its_own_deadline_and_holds_up_no_other() {
    both(|by| {
        let (hung, fillers) = full("127.0.0.1:7000");
        let _server = outside("127.0.0.1:7001");
        let rules = [("--egress", "127.0.0.1:7000"), ("--egress", "127.0.0.1:7001")];
        let app = binds(by, &rules);
        let quick = || {
            let answer = app.reaches("/dial?to=127.0.0.1:7001");
            assert!(answer["ms"].as_u64().unwrap() < 1000, "{answer}");
            let answer = app.reaches("/raw-dial?block=1&to=127.0.0.1:7001");
            assert!(answer["ms"].as_u64().unwrap() < 1000, "{answer}");
        };
        std::thread::scope(|scope| {
            let slow = scope.spawn(|| app.ask("/dial?timeout=1500ms&to=127.0.0.1:7000"));
            let blocked = scope.spawn(|| app.ask("/raw-dial?block=1&to=127.0.0.1:7000"));
            std::thread::sleep(A_MOMENT);
            quick();
            let slow = slow.join().unwrap();
            assert!(slow["error"].to_string().contains("i/o timeout"), "{slow}");
            assert!((1500..3000).contains(&slow["ms"].as_u64().unwrap()), "{slow}");
            assert!(!blocked.is_finished());
            quick();
            // The queue is taken, and the one that waited gets through.
            drop(fillers);
            let _hung = outside_with(hung);
            let blocked = blocked.join().unwrap();
            assert_eq!(blocked["got"], "outside", "{blocked}");
            assert_eq!((&blocked["first"], &blocked["nonblocking"]), (&"0".into(), &false.into()));
            assert_eq!(blocked["cloexec"], true, "{blocked}");
        });
    });
}

#[test]
fn a_tenant_that_waits_for_a_connection_can_be_ended() {
    both(|by| {
        let (_hung, _fillers) = full("127.0.0.1:7000");
        let app = binds(by, &[("--egress", "127.0.0.1:7000")]);
        // Nobody will hear the answer.
        let mut client = TcpStream::connect(at(CONTROL)).unwrap();
        let request = "GET /raw-dial?block=1&to=127.0.0.1:7000 HTTP/1.1\r\nHost: t\r\n\r\n";
        client.write_all(request.as_bytes()).unwrap();
        std::thread::sleep(A_MOMENT);
        let sandbox = app.running.sandbox.clone();
        let asked = Instant::now();
        app.running.signal(SIGTERM);
        let output = app.running.wait();
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        assert_eq!(output.signal(), Some(15), "{output:?}");
        sandbox.assert_nothing_left();
    });
}

/// (option, value) as `binds` sets them before it connects.
const OPTIONS: [(&str, u64); 11] = [
    ("keepalive", 1),
    ("nodelay", 1),
    ("keepidle", 77),
    ("keepintvl", 11),
    ("keepcnt", 5),
    ("user_timeout", 12345),
    ("linger", 7),
    ("tos", 0x28),
    ("ttl", 33),
    // The kernel doubles them: socket(7).
    ("sndbuf", 40000),
    ("rcvbuf", 60000),
];

#[test]
fn what_was_set_before_the_connection_holds_after_it() {
    both(|by| {
        let _server = outside("127.0.0.1:7000");
        let app = binds(by, &[("--egress", "127.0.0.1:7000")]);
        app.done("/open?id=own&addr=127.0.0.1:9090");
        for block in ["", "&block=1"] {
            // Control: a connection that stays inside, made by the kernel.
            let own = app.done(&format!("/raw-dial?options=1&to=127.0.0.1:9090{block}"));
            let got = app.reaches(&format!("/raw-dial?options=1&to=127.0.0.1:7000{block}"));
            let mut wrong = Vec::new();
            for (name, value) in OPTIONS {
                assert_eq!(own[name], value, "{name}: {own}");
                if got[name] != value {
                    wrong.push(format!("{name} is {} and not {value}", got[name]));
                }
            }
            assert!(wrong.is_empty(), "lost on the way: {}", wrong.join(", "));
        }
    });
}

/// The ones that servers live by, apart from what is rarely set.
#[test]
fn keepalive_and_nodelay_hold_after_the_connection() {
    both(|by| {
        let _server = outside("127.0.0.1:7000");
        let app = binds(by, &[("--egress", "127.0.0.1:7000")]);
        for block in ["", "&block=1"] {
            let got = app.reaches(&format!("/raw-dial?options=1&to=127.0.0.1:7000{block}"));
            for (name, value) in &OPTIONS[..6] {
                assert_eq!(got[name], *value, "{name}: {got}");
            }
            assert_eq!(got["nonblocking"], block.is_empty(), "{got}");
            assert_eq!(got["cloexec"], true, "{got}");
        }
    });
}

#[test]
fn many_dials_at_once_all_succeed() {
    both(|by| {
        let server = outside("127.0.0.1:7000");
        let app = binds(by, &[("--egress", "127.0.0.1:7000")]);
        let answer = app.done("/dial?count=500&timeout=20s&to=127.0.0.1:7000");
        assert_eq!(answer["outcomes"], serde_json::json!({"outside": 500}), "{app:?}");
        assert_eq!(server.met(), 500);
        // Inside too, by the same broker.
        app.done("/open?id=own&addr=127.0.0.1:9090");
        let answer = app.done("/dial?count=500&timeout=1s&to=127.0.0.1:9091");
        let outcomes = answer["outcomes"].as_object().unwrap();
        assert_eq!(outcomes.values().map(|n| n.as_u64().unwrap()).sum::<u64>(), 500);
        assert!(outcomes.keys().all(|key| key.ends_with("connection refused")), "{answer}");
    });
}

#[test]
fn both_ends_of_a_connection_have_the_same_names_for_it() {
    apart(|| {
        let far = addresses();
        let (near, far) = (outside("[::]:7000"), far.listen("[::]:7000"));
        let user: fn(Sandbox) -> Sandbox = Sandbox::unprivileged;
        for by in [|sandbox| sandbox, user] {
            let rules = ["127.0.0.1:7000", "[::1]:7000", "203.0.113.5:7000"];
            let app = binds(by, &rules.map(|rule| ("--egress", rule)));
            for to in rules {
                for request in ["/dial?to=", "/raw-dial?to=", "/raw-dial?block=1&to="] {
                    let answer = app.reaches(&format!("{request}{to}"));
                    assert_eq!(answer["remote"], to, "{answer}");
                    let server = if at(to).ip().is_loopback() { &near } else { &far };
                    let peer = *server.peers.lock().unwrap().last().unwrap();
                    let peer = SocketAddr::new(IpAddr::to_canonical(&peer.ip()), peer.port());
                    assert_eq!(answer["local"], peer.to_string(), "{answer}");
                }
            }
        }
    });
}

/// The host's resolver: it knows three names, and counts what it is asked.
fn resolver(asked: &Arc<Mutex<Vec<String>>>) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:53").unwrap();
    let asked = Arc::clone(asked);
    // Ends with the test's process.
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            // RFC 1035, 4.1: twelve bytes of header, then labels up to an empty one.
            let end = 12 + bytes[12..length].iter().position(|&b| b == 0).unwrap() + 1;
            let mut name = String::new();
            let mut at = 12;
            while bytes[at] != 0 {
                let next = at + 1 + usize::from(bytes[at]);
                name.push_str(std::str::from_utf8(&bytes[at + 1..next]).unwrap());
                name.push('.');
                at = next;
            }
            asked.lock().unwrap().push(name.clone());
            let address = match (name.as_str(), bytes[end + 1]) {
                ("api.example.com.", 1) => Some([203, 0, 113, 5]),
                ("inner.example.com.", 1) => Some([10, 0, 0, 1]),
                ("rebound.example.com.", 1) => Some([127, 0, 0, 1]),
                _ => None,
            };
            let mut reply = bytes[..end + 4].to_vec();
            reply[2..12].copy_from_slice(&[
                0x81,
                0x80,
                0,
                1,
                0,
                u8::from(address.is_some()),
                0,
                0,
                0,
                0,
            ]);
            if let Some(address) = address {
                // The name of the question, A, IN, a minute, four bytes.
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                reply.extend(address);
            }
            socket.send_to(&reply, from).unwrap();
        }
    });
}

#[test]
fn listed_names_are_found_and_lead_no_further() {
    apart(|| {
        let far = addresses();
        let (server, near) = (far.listen("[::]:7000"), outside("0.0.0.0:7000"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        resolver(&asked);
        let dir = TempDir::new();
        let conf = dir.file("resolv.conf", "nameserver 127.0.0.1\n");
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let own_conf = |sandbox: Sandbox| {
            let words = ["unshare", "-m", "sh", "-c", script, conf.to_str().unwrap()];
            sandbox.wrapped(words)
        };
        let start =
            |rules: &[(&str, &str)]| Binds::start(own_conf(Sandbox::example("binds")), rules);
        let app = start(&[("--egress", "*.example.com:7000")]);
        let answer = app.reaches("/dial?to=api.example.com:7000");
        assert_eq!(answer["remote"], "203.0.113.5:7000");
        assert_eq!(server.met(), 1);
        // Its address, now that it is known, and no other port.
        app.reaches("/dial?to=203.0.113.5:7000");
        app.refused("/dial?to=api.example.com:7001", "EACCES");
        assert!(app.says("to allow it, add egress = [\"*.example.com:7001\"]"), "{app:?}");
        // An address that no name led to.
        app.refused("/dial?to=203.0.113.6:7000", "EACCES");
        // A name that leads into the host's networks, or to the tenant itself.
        app.refused("/dial?to=inner.example.com:7000", "EACCES");
        app.refused("/dial?to=rebound.example.com:7000", "ECONNREFUSED");
        // A name that is not listed is not asked for.
        let text = app.ask("/dial?to=api.example.org:7000")["error"].to_string();
        assert!(text.contains("no such host"), "{text}");
        assert!(app.says("look-up of api.example.org denied"), "{app:?}");
        drop(app);
        // The C library's resolver, which sends both questions by one sendmmsg.
        let getent = |name: &str| {
            let sandbox = own_conf(Sandbox::new("/usr/bin/getent"));
            sandbox.option("--egress", "*.example.com:7000").args(["ahosts", name]).run()
        };
        let found = getent("api.example.com");
        assert!(found.stdout().contains("203.0.113.5"), "{found:?}");
        assert_eq!(getent("api.example.org").code(), Some(2));
        assert!(asked.lock().unwrap().iter().all(|name| name.ends_with(".example.com.")));
        // Nobody is asked where no name is listed.
        let before = asked.lock().unwrap().len();
        let app = start(&[("--egress", "203.0.113.5:7000")]);
        app.reaches("/dial?to=203.0.113.5:7000");
        let text = app.ask("/dial?to=api.example.com:7000")["error"].to_string();
        assert!(text.contains("lookup api.example.com"), "{text}");
        assert_eq!((asked.lock().unwrap().len(), near.met()), (before, 0));
    });
}

/// What a socket of the host's network would open: each attempt works outside,
/// and none does in a tenant, whether it may connect to something or not.
#[test]
fn a_connection_of_the_hosts_network_leads_nowhere_else() {
    const ATTEMPTS: [(&str, &str); 9] = [
        ("share", "EPERM"),
        // EPROTONOSUPPORT: what was MPTCP is TCP outside.
        ("multipath", "93"),
        // The control inside: a socket of its own.
        ("share-own", "ok"),
        ("connect", "EISCONN"),
        ("dissolve", "EISCONN"),
        ("reconnect", "EISCONN"),
        ("rebind", "EINVAL"),
        ("listen", "EINVAL"),
        ("fastopen", "EACCES"),
    ];
    let all = || {
        ["accepted", "made"]
            .into_iter()
            .flat_map(|kind| ATTEMPTS.map(|(what, errno)| (format!("{kind}-{what}"), what, errno)))
    };
    let request = |to| format!("/lock?listen=127.0.0.1:8101&to={to}&other=127.0.0.1:7000");
    apart(|| {
        let _server = outside("127.0.0.1:7000");
        let control =
            Command::new(example_of("1.27", "binds").unwrap()).args(["-addr", CONTROL]).spawn();
        let _control = Child(control.unwrap());
        wait_for("the control", || TcpStream::connect(at(CONTROL)).ok());
        let answer = Client::tcp(at(CONTROL)).unwrap().get(&request("127.0.0.1:7000")).unwrap();
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        for (name, what, errno) in all() {
            // To be connected already is what the kernel says too.
            let expected = if what == "connect" { errno } else { "ok" };
            assert_eq!(answer[&name], expected, "{name}: {answer}");
        }
    });
    both(|by| {
        let (unlisted, listed) = (outside("127.0.0.1:7000"), outside("127.0.0.1:7001"));
        let door = ("--listen", "tcp:127.0.0.1:8101");
        for (options, to) in [
            (vec![door], "127.0.0.1:8101"),
            (vec![door, ("--egress", "127.0.0.1:7001")], "127.0.0.1:7001"),
        ] {
            let app = binds(by, &options);
            let answer = app.done(&request(to));
            for (name, _, errno) in all() {
                assert_eq!(answer[&name], errno, "{name}: {answer}");
            }
        }
        assert_eq!(unlisted.met(), 0);
        assert!(listed.met() > 0);
    });
}

/// A process that is ended when dropped.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

// ---- Unix sockets.

/// A unix socket of the test that everybody may connect to. It says a line and
/// remembers who came: uid and gid.
fn unix_outside(path: &Path) -> Arc<Mutex<Vec<(u32, u32)>>> {
    let listener = UnixListener::bind(path).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o666)).unwrap();
    let peers = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&peers);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let who = getsockopt(&stream, sockopt::PeerCredentials).unwrap();
            seen.lock().unwrap().push((who.uid(), who.gid()));
            _ = stream.write_all(b"outside\n");
        }
    });
    peers
}

#[test]
fn a_listed_unix_socket_is_reached_by_the_tenants_own_id() {
    apart(|| {
        let dir = TempDir::new();
        let path = dir.path().join("server.sock");
        let rule = format!("unix:{}", path.display());
        let request = format!("/dial?network=unix&to={}", path.display());
        let (known, id) = Sandbox::known("binds");
        assert!(HOST_IDS.contains(&id));
        let user = User::new();
        let of_user = Sandbox::example("binds").started_by(Arc::clone(&user));
        for (sandbox, id) in [(known, id), (of_user, user.id)] {
            // Its directory is there, and what is listed is the path.
            let app = Binds::start(sandbox, &[("--egress", &rule)]);
            app.refused(&request, "ENOENT");
            for _ in 0..2 {
                let peers = unix_outside(&path);
                let answer = app.reaches(&request);
                assert_eq!(answer["remote"], path.display().to_string());
                assert_eq!(*peers.lock().unwrap(), [(id, id)]);
                std::fs::remove_file(&path).unwrap();
                app.refused(&request, "ENOENT");
            }
        }
    });
}

/// A directory that the tenant can see under its own name, which none below /tmp
/// can be. Removed when dropped.
struct Seen(PathBuf);

impl Seen {
    fn new() -> Self {
        let path = Path::new("/var/tmp").join(format!("gosandbox-seen-{}", User::new().id));
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        Self(path)
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[test]
fn an_unlisted_unix_socket_that_is_seen_inside_is_denied() {
    both(|by| {
        let dir = Seen::new();
        let path = dir.0.join("server.sock");
        let peers = unix_outside(&path);
        let seen = dir.0.display().to_string();
        let app = binds(by, &[("--bind-ro", &seen)]);
        let request = format!("/dial?network=unix&to={}", path.display());
        app.refused(&request, "EACCES");
        let line = format!(
            "connect to {} denied: to allow it, add egress = [\"unix:{}\"]",
            path.display(),
            path.display()
        );
        assert!(app.says(&line), "{app:?}");
        // By a link of the tenant's own, and by a way round.
        app.done(&format!("/symlink?from=/tmp/link&to={}", path.display()));
        app.refused("/dial?network=unix&to=/tmp/link", "EACCES");
        app.refused(&format!("/dial?network=unix&to=/tmp/..{}", path.display()), "EACCES");
        app.done(&format!("/chdir?to={seen}"));
        app.refused("/dial?network=unix&to=server.sock", "EACCES");
        assert_eq!(peers.lock().unwrap().len(), 0);
        drop(app);
        let rule = format!("unix:{}", path.display());
        let app = binds(by, &[("--bind-ro", &seen), ("--egress", &rule)]);
        app.reaches(&request);
        assert_eq!(peers.lock().unwrap().len(), 1);
    });
}

/// A line that names a rule names one that can be written: paths are absolute.
#[test]
fn a_relative_unix_path_is_denied_without_a_rule_that_cannot_be_written() {
    both(|by| {
        let dir = Seen::new();
        let _peers = unix_outside(&dir.0.join("server.sock"));
        let seen = dir.0.display().to_string();
        let app = binds(by, &[("--bind-ro", &seen)]);
        app.done(&format!("/chdir?to={seen}"));
        app.refused("/dial?network=unix&to=server.sock", "EACCES");
        assert!(app.says("connect to server.sock denied"), "{app:?}");
        assert_eq!(app.said("unix:server.sock"), 0, "{app:?}");
    });
}

#[test]
fn unix_sockets_of_its_own_work_and_abstract_names_stay_inside() {
    both(|by| {
        let app = binds(by, &[]);
        app.done("/chdir?to=/tmp");
        for (at, to) in [
            ("/tmp/own.sock", "/tmp/own.sock"),
            ("relative.sock", "relative.sock"),
            ("./other.sock", "/tmp/other.sock"),
            ("/dev/shm/own.sock", "/dev/shm/own.sock"),
            ("@inside", "@inside"),
        ] {
            app.done(&format!("/open?network=unix&id={to}&addr={at}"));
            let answer = app.done(&format!("/dial?network=unix&timeout=200ms&to={to}"));
            assert_eq!(answer["remote"], at, "{answer}");
        }
        for gone in ["/tmp/own.sock", "/dev/shm/own.sock"] {
            assert!(!Path::new(gone).exists());
        }
        app.refused("/dial?network=unix&to=/tmp/nobody.sock", "ENOENT");
        assert_eq!(app.said("denied"), 0, "{app:?}");
        // Neither way, though it is the same network for abstract names outside.
        let abstract_name = |name: &str| {
            std::os::unix::net::SocketAddr::from_abstract_name(name.as_bytes()).unwrap()
        };
        assert!(UnixStream::connect_addr(&abstract_name("inside")).is_err());
        let name = abstract_name("outside");
        let _listener = UnixListener::bind_addr(&name).unwrap();
        UnixStream::connect_addr(&name).unwrap();
        app.refused("/dial?network=unix&to=@outside", "ECONNREFUSED");
        app.done("/open?network=unix&id=same&addr=@outside");
    });
}

#[test]
fn egress_that_cannot_be_is_refused_before_anything_runs() {
    both(|by| {
        let dir = TempDir::new();
        let host = by(Sandbox::example("hello"))
            .option("--network", "host")
            .option("--egress", "127.0.0.1:7000");
        host.run().assert_refused(
            125,
            "broker: egress: only a private network can be held to it \
             (leave it out, or choose network = \"private\")",
        );
        host.assert_nothing_left();
        let rule = format!("unix:{}/missing/server.sock", dir.path().display());
        let missing = by(Sandbox::example("hello")).option("--egress", &rule);
        let output = missing.run();
        output.assert_refused(125, "");
        let said = output.stderr();
        let remedy = "the directory of the socket has to be there when the tenant starts";
        for part in [rule.as_str(), "No such file or directory", remedy] {
            assert!(said.contains(part), "{part}: {said}");
        }
        missing.assert_nothing_left();
        // Control: with the directory, and no socket in it yet.
        dir.dir("missing", 0);
        let output = by(Sandbox::example("hello")).option("--egress", &rule).run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        // One that the tenant may not enter.
        let shut = dir.dir("shut", 0);
        std::fs::set_permissions(&shut, PermissionsExt::from_mode(0o700)).unwrap();
        let rule = format!("unix:{}/server.sock", shut.display());
        let closed = by(Sandbox::example("hello")).option("--egress", &rule);
        let output = closed.run();
        output.assert_refused(125, "");
        assert!(output.stderr().contains("may not enter the directory"), "{output:?}");
        closed.assert_nothing_left();
    });
}

/// Whoever may write the directory of a listed socket could put a link there.
#[test]
fn a_link_in_the_place_of_a_listed_unix_socket_leads_nowhere() {
    both(|by| {
        let dir = TempDir::new();
        let (listed, other) = (dir.path().join("server.sock"), dir.path().join("other.sock"));
        let peers = unix_outside(&other);
        let rule = format!("unix:{}", listed.display());
        let request = format!("/dial?network=unix&to={}", listed.display());
        let app = binds(by, &[("--egress", &rule)]);
        for target in ["other.sock", &other.display().to_string(), "../../../../etc/passwd"] {
            std::os::unix::fs::symlink(target, &listed).unwrap();
            app.refused(&request, "ECONNREFUSED");
            std::fs::remove_file(&listed).unwrap();
        }
        assert_eq!(peers.lock().unwrap().len(), 0);
        drop(app);
        // Control.
        let app = binds(by, &[("--egress", &format!("unix:{}", other.display()))]);
        app.reaches(&format!("/dial?network=unix&to={}", other.display()));
        drop(app);
        // And in a link on the way, or where the tenant writes, it is not begun.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let rule = format!("unix:{}/other.sock", link.display());
        let output = by(Sandbox::example("hello")).option("--egress", &rule).run();
        output.assert_refused(125, "egress socket: ");
        assert!(output.stderr().contains("symbolic links"), "{output:?}");
    });
}

#[test]
fn a_socket_where_the_tenant_writes_is_no_egress() {
    apart(|| {
        let dir = TempDir::new();
        let user = User::new();
        let place = dir.dir("place", user.id);
        let sandbox = Sandbox::example("hello")
            .started_by(user)
            .option("--bind", format!("{}:/data", place.display()))
            .option("--egress", format!("unix:{}/server.sock", place.display()));
        let output = sandbox.run();
        output.assert_refused(125, "egress socket: ");
        assert!(output.stderr().contains("which the tenant may write"), "{output:?}");
    });
}

/// A queue that stays full is waited for without work.
#[test]
fn a_full_queue_inside_costs_nothing() {
    both(|by| {
        let app = binds(by, &[]);
        app.done("/unix-full?path=/tmp/full.sock");
        let broker = broker_of(&app.running);
        let before = cpu_time(broker);
        std::thread::sleep(Duration::from_secs(2));
        let used = cpu_time(broker) - before;
        assert!(used <= Duration::from_millis(200), "{used:?} of 2 s");
    });
}

// ---- The broker itself.

/// Of the host's files it holds clones, above which there is nothing, and of the
/// supervisor's environment nothing.
#[test]
fn a_broker_holds_no_way_to_the_hosts_files() {
    both(|by| {
        let dir = TempDir::new();
        let rule = format!("unix:{}/server.sock", dir.path().display());
        let sandbox = by(Sandbox::example("binds")).env("WAYS_SECRET", "of the supervisor");
        let app = Binds::start(sandbox, &[("--egress", &rule)]);
        let broker = broker_of(&app.running);
        let id = |path: PathBuf| path.metadata().map(|data| (data.dev(), data.ino())).unwrap();
        let mut directories = 0;
        for entry in std::fs::read_dir(format!("/proc/{broker}/fd")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories += 1;
                assert_eq!(id(path.join("..")), id(path.clone()), "{}", path.display());
            }
        }
        // /proc and the directory of the socket.
        assert_eq!(directories, 2);
        let root = PathBuf::from(format!("/proc/{broker}/root/app"));
        assert!(root.join("binds").exists(), "its root is the tenant's");
        let environment = |pid| std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
        assert!(environment(app.running.pid()).contains("of the supervisor"), "the control");
        assert!(!environment(broker).contains("of the supervisor"));
        // Control: what is open in the ordinary way has something above it.
        let open = File::open(dir.path()).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
        assert_ne!(id(path.join("..")), id(path));
    });
}

/// Its port may be another's as well, to whom the connection would go.
#[test]
fn a_listener_whose_port_is_shared_is_not_dialled_for_its_tenant() {
    both(|by| {
        let new = || {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
            let fd = fd.unwrap();
            setsockopt(&fd, sockopt::ReusePort, &true).unwrap();
            let SocketAddr::V4(to) = at("127.0.0.1:8102") else { panic!() };
            bind(fd.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
            listen(&fd, Backlog::new(16).unwrap()).unwrap();
            TcpListener::from(fd)
        };
        let (own, _others) = (new(), outside_with(new()));
        let control = TcpListener::bind(at(CONTROL)).unwrap();
        let sandbox = by(Sandbox::example("binds"));
        let sandbox = sandbox.inherit(control, "control").inherit(own, "shared");
        let mut running = sandbox.arg("-addr").arg(CONTROL).start();
        listening(&mut running, CONTROL);
        let app = Binds { running };
        app.refused("/dial?to=127.0.0.1:8102", "ECONNREFUSED");
    });
}

#[test]
fn a_tenant_whose_broker_is_killed_ends_too() {
    both(|by| {
        let app = binds(by, &[("--listen", "8080")]);
        app.done("/open?id=served&addr=:8080");
        let sandbox = app.running.sandbox.clone();
        let broker = app.broker();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(broker), SIGKILL).unwrap();
        let output = app.running.wait();
        assert_eq!(output.code(), Some(137), "{output:?}");
        let verdict = format!(
            "gosandbox: tenant {}: killed: its broker ended, without which it has no way in or out\n",
            sandbox.tenant
        );
        assert_eq!(output.stderr(), verdict);
        assert!(TcpStream::connect(at("127.0.0.1:8080")).is_err());
        sandbox.assert_nothing_left();
    });
}

#[test]
fn a_flood_of_rubbish_is_answered_and_harms_nobody() {
    both(|by| {
        let _server = outside("127.0.0.1:7000");
        let app = binds(by, &[("--listen", "8080"), ("--egress", "127.0.0.1:7000")]);
        app.done("/open?id=served&addr=:8080");
        let broker = app.broker();
        let supervisor = app.running.pid();
        let before = cpu_time(supervisor);
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| app.ask("/flood?d=1500ms&threads=16"));
            let mut asked = 0;
            while !flood.is_finished() {
                let answer = answer_of(at("127.0.0.1:8080"), SOON);
                assert_eq!(answer.as_deref(), Some("served"), "{app:?}");
                asked += 1;
            }
            let flood = flood.join().unwrap();
            assert!(asked > 3 && flood["calls"].as_u64().unwrap() > 1000, "{asked} {flood}");
            let answers = flood["answers"].as_object().unwrap();
            for known in ["EBADF", "EFAULT", "EINVAL", "ENOTSOCK"] {
                assert!(answers.contains_key(known), "no {known}: {flood}");
            }
            let unheard = ["EPERM", "3", "38", "14"];
            assert!(unheard.iter().all(|name| !answers.contains_key(*name)), "{flood}");
        });
        let used = cpu_time(supervisor) - before;
        assert!(used < Duration::from_millis(300), "{used:?}");
        let lines = app.running.stderr().lines().count();
        assert!(lines < 40, "{lines} lines: {app:?}");
        assert_eq!(app.broker(), broker);
        // Whoever comes after it is served as ever.
        app.reaches("/dial?to=127.0.0.1:7000");
        app.reaches("/raw-dial?block=1&to=127.0.0.1:7000");
        app.done("/close?id=served");
        app.done("/open?id=again&addr=:8080");
        assert_eq!(answer_of(at("127.0.0.1:8080"), SOON).as_deref(), Some("again"));
    });
}

// ---- A network that somebody else has made.

#[test]
fn a_named_network_is_where_its_tenant_and_its_sockets_are() {
    apart(|| {
        let far = addresses();
        let near = outside("192.0.2.1:7000");
        let path = format!("ns:/proc/{}/fd/{}", std::process::id(), far.0.as_raw_fd());
        let web = Sandbox::example("web").option("--network", &path);
        let mut running = web.option("--listen", "tcp:192.0.2.2:7100").start();
        running.stderr_line("web: listening on 192.0.2.2:7100");
        let answer = answer_of(at("192.0.2.2:7100"), SOON).unwrap();
        assert!(answer.contains("hello from"), "{answer}");
        running.signal(SIGTERM);
        assert_eq!(running.wait().code(), Some(0));
        // Nothing stands between it and that network.
        let plain = Sandbox::example("plain").option("--network", &path);
        let running = plain.arg("-addr").arg("192.0.2.2:7102").start();
        let asked = || ask_plain("192.0.2.2:7102", "/dial?to=192.0.2.1:7000");
        let answer = within(SOON, asked).unwrap();
        assert_eq!(answer, "ok\n");
        wait_for("the connection", || (near.met() == 1).then_some(()));
        running.signal(SIGTERM);
        running.wait();

        let refused = |sandbox: Sandbox, start: &str| sandbox.run().assert_refused(125, start);
        let named =
            |path: &str| Sandbox::example("hello").option("--network", format!("ns:{path}"));
        refused(named("/etc/passwd"), "network namespace: /etc/passwd: ");
        refused(named("/nowhere"), "network namespace: /nowhere: ");
        refused(named("/nowhere").unprivileged(), "network namespace: only root ");
        let listed = named("/nowhere").option("--egress", "192.0.2.1:7000");
        refused(listed, "broker: egress: only a private network ");
    });
}

fn ask_plain(server: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&at(server), SOON).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: t\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}
