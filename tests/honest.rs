//! Honest programs run as they do without a sandbox, under the default policy,
//! whatever Go release they were built with.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use common::{Client, RELEASES, Running, Sandbox, root_or_skip, skip, tool_or_skip};
use nix::sys::signal::Signal::SIGTERM;

/// An example program with every release that it was built with.
fn every_release(name: &str, test: impl Fn(Sandbox, &str)) {
    let mut some = false;
    for release in RELEASES {
        match common::example_of(release, name) {
            Some(path) => {
                some = true;
                test(Sandbox::new(path), release);
            }
            None => skip(&format!("{name} was not built with Go {release}")),
        }
    }
    assert!(some, "run examples/build all first");
}

fn all_ok(sandbox: &Sandbox, release: &str) {
    let output = sandbox.run();
    let text = output.stdout();
    assert_eq!(output.code(), Some(0), "Go {release}: {output:?}");
    assert!(text.lines().filter(|line| line.starts_with("ok ")).count() > 15, "{text}");
    assert!(!text.contains("FAIL"), "Go {release}: {text}");
}

#[test]
fn what_servers_do_works_in_an_empty_network() {
    if root_or_skip() {
        every_release("exercise", |sandbox, release| all_ok(&sandbox, release));
    }
}

#[test]
fn what_servers_do_works_for_a_user() {
    if root_or_skip() {
        every_release("exercise", |sandbox, release| all_ok(&sandbox.unprivileged(), release));
    }
}

#[test]
fn what_clients_do_works_in_the_hosts_network() {
    if root_or_skip() {
        every_release("exercise", |sandbox, release| {
            all_ok(&sandbox.option("--network", "host").arg("-net"), release);
        });
    }
}

/// A Go program makes no code at run time, and so misses nothing.
#[test]
fn what_servers_do_works_where_nothing_written_is_executed() {
    if root_or_skip() {
        every_release("exercise", |sandbox, release| {
            all_ok(&sandbox.env("GOSANDBOX_PROCESS_WRITE_EXECUTE", "deny"), release);
        });
    }
}

/// The loader maps its libraries as code, and nothing else.
#[test]
fn a_dynamic_loader_works_where_nothing_written_is_executed() {
    if !root_or_skip() {
        return;
    }
    let sandbox = Sandbox::new("/usr/bin/true");
    let output = sandbox.env("GOSANDBOX_PROCESS_WRITE_EXECUTE", "deny").run();
    assert_eq!(output.code(), Some(0), "{output:?}");
}

/// `web`, and where it listens.
fn serve(sandbox: &Sandbox) -> (Running, SocketAddr) {
    let mut running = sandbox.clone().option("--listen", "0").start();
    let start = format!("gosandbox: tenant {}: listening on ", sandbox.tenant);
    let address = running.stderr_line(&start)[start.len()..].parse().unwrap();
    running.stderr_line("web: listening");
    (running, address)
}

fn drain(running: Running) {
    let sandbox = running.sandbox.clone();
    running.signal(SIGTERM);
    let output = running.wait();
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout(), "drained\n");
    sandbox.assert_nothing_left();
}

fn get(address: SocketAddr, path: &str) -> String {
    let answer = Client::tcp(address).unwrap().get(path).unwrap();
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.body
}

#[test]
fn a_server_stands_load() {
    if !root_or_skip() {
        return;
    }
    every_release("web", |sandbox, _| {
        let (running, address) = serve(&sandbox);
        let hello = format!("hello from {}\n", sandbox.tenant);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut client = Client::tcp(address).unwrap();
                    for _ in 0..500 {
                        assert_eq!(client.get("/").unwrap().body, hello);
                    }
                    for _ in 0..50 {
                        assert_eq!(get(address, "/"), hello);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..3 {
                    assert!(get(address, "/gc?mb=64").starts_with("64 MiB of garbage"));
                }
            });
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(get(address, "/file"), "written, synced, read\n");
                }
            });
            scope.spawn(|| {
                let child = format!("hello from a child of {}\n", sandbox.tenant);
                for _ in 0..10 {
                    assert_eq!(get(address, "/exec"), child);
                }
            });
        });
        drain(running);
    });
}

#[test]
fn a_server_stands_load_for_a_user() {
    if !root_or_skip() {
        return;
    }
    let sandbox = Sandbox::example("web").unprivileged();
    let (running, address) = serve(&sandbox);
    let mut client = Client::tcp(address).unwrap();
    for _ in 0..500 {
        assert_eq!(client.get("/").unwrap().status, 200);
    }
    for path in ["/gc?mb=64", "/file", "/exec", "/env", "/whoami"] {
        get(address, path);
    }
    drain(running);
}

#[test]
fn a_server_speaks_tls() {
    if !root_or_skip() {
        return;
    }
    let Some(openssl) = tool_or_skip("openssl") else { return };
    every_release("web", |sandbox, release| {
        let (running, address) = serve(&sandbox.clone().arg("-tls"));
        // It says its handshake on stdout, and ends with its input.
        let mut client = Command::new(&openssl)
            .args(["s_client", "-quiet", "-ign_eof", "-connect", &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        std::io::Write::write_all(client.stdin.as_mut().unwrap(), request).unwrap();
        let output = client.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let hello = format!("hello from {}\n", sandbox.tenant);
        assert!(text.starts_with("HTTP/1.1 200 OK") && text.ends_with(&hello), "{release}: {text}");
        drain(running);
    });
}

/// A server that only serves keeps to the calls of `strict`, and what it does
/// besides is refused and named.
#[test]
fn a_plain_server_keeps_to_the_strict_policy() {
    if !root_or_skip() {
        return;
    }
    every_release("web", |sandbox, release| {
        let strict = sandbox.option("--policy", "strict");
        let (mut running, address) = serve(&strict);
        let mut client = Client::tcp(address).unwrap();
        for _ in 0..200 {
            assert_eq!(client.get("/").unwrap().status, 200);
        }
        for path in ["/gc?mb=64", "/env", "/whoami"] {
            get(address, path);
        }
        assert!(!running.stderr().contains("refused"), "Go {release}: {}", running.stderr());
        let answer = Client::tcp(address).unwrap().get("/exec").unwrap();
        assert_eq!(answer.status, 500, "{answer:?}");
        running.stderr_line(&format!("gosandbox: tenant {}: refused ", strict.tenant));
        drain(running);
    });
    // Listening by itself, with the broker's help.
    every_release("plain", |sandbox, release| {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let running = sandbox
            .option("--policy", "strict")
            .option("--listen", format!("tcp:{address}"))
            .args(["-addr", &address.to_string()])
            .start();
        let answer = common::wait_for("an answer", || Client::tcp(address).ok()?.get("/").ok());
        assert_eq!(answer.body, "hello from a plain server\n");
        assert!(!running.stderr().contains("refused"), "Go {release}: {}", running.stderr());
    });
}

#[test]
fn the_runtime_knows_its_limits() {
    if !root_or_skip() {
        return;
    }
    let cpus = std::thread::available_parallelism().unwrap().get();
    every_release("whoami", |sandbox, release| {
        let me = sandbox.json();
        let version = me["go"].as_str().unwrap();
        assert!(version.starts_with(&format!("go{release}")), "{version}");
        assert_eq!(me["gomaxprocs"], cpus.min(2));
        assert_eq!(me["gomemlimit"], 460 << 20);
    });
    let whoami = || Sandbox::example("whoami");
    let me = whoami().option("--memory", "100M").option("--cpu", "0.5").json();
    assert_eq!(me["gomaxprocs"], cpus.min(2), "never below two");
    assert_eq!(me["gomemlimit"], 90 << 20);
    let me = whoami().option("--maxprocs", "7").option("--memlimit", "33MiB").json();
    assert_eq!(me["gomaxprocs"], 7);
    assert_eq!(me["gomemlimit"], 33 << 20);
    let me = whoami().option("--maxprocs", "off").option("--memlimit", "off").json();
    assert_eq!(me["gomaxprocs"], cpus);
    assert_eq!(me["gomemlimit"], i64::MAX);
    assert!(!me["env"].to_string().contains("GOM"), "{}", me["env"]);
}

#[test]
fn the_panic_of_a_goroutine_is_quoted_and_ends_with_2() {
    if !root_or_skip() {
        return;
    }
    let sandbox = Sandbox::example("web");
    let (running, address) = serve(&sandbox);
    drop(Client::tcp(address).unwrap().get("/panic-goroutine"));
    let output = running.wait();
    assert_eq!(output.code(), Some(2), "{output:?}");
    assert!(output.stderr().contains("panic: a goroutine of web panics"), "{output:?}");
    sandbox.assert_nothing_left();
}
