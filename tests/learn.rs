//! `gosandbox learn` writes a policy that is enough, and no more than that.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;
use std::path::Path;

use common::{Client, RELEASES, Sandbox, TempDir, example_of, root_or_skip, wait_for};
use nix::sys::signal::Signal::SIGTERM;

/// Learns what `sandbox` needs, into `file`.
fn learn(sandbox: &Sandbox, file: &Path) -> common::Output {
    sandbox.clone().command("learn").option("--output", file).run()
}

/// A directory that whoever starts the sandbox may write to.
fn place(sandbox: &Sandbox) -> TempDir {
    let dir = TempDir::new();
    if let Some(user) = &sandbox.user {
        std::os::unix::fs::chown(dir.path(), Some(user.id), Some(user.id)).unwrap();
    }
    dir
}

fn without_refusal(sandbox: Sandbox, policy: &Path) {
    let output = sandbox.option("--policy", policy).run();
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert!(!output.stderr().contains("refused"), "{output:?}");
}

/// Whatever the release, the program runs under what was learnt of it.
#[test]
fn what_was_learnt_is_enough() {
    if !root_or_skip() {
        return;
    }
    let start: Vec<Sandbox> = RELEASES
        .iter()
        .filter_map(|release| example_of(release, "exercise"))
        .map(Sandbox::new)
        .chain([Sandbox::example("exercise").unprivileged()])
        .collect();
    for sandbox in start {
        let dir = place(&sandbox);
        let file = dir.path().join("learnt.toml");
        let output = learn(&sandbox, &file);
        assert_eq!(output.code(), Some(0), "{output:?}");
        assert!(output.stdout().contains("ok files\n"), "{output:?}");
        let said = output.stderr();
        for word in [": calls openat(dfd=AT_FDCWD, ", ": against web:\n", ": - ", ": wrote "] {
            assert!(said.contains(word), "{word}: {said}");
        }
        let text = std::fs::read_to_string(&file).unwrap();
        // It connects to nobody.
        assert!(text.contains("\"inotify_init1\",") && !text.contains("\"sendmmsg\""), "{text}");
        without_refusal(sandbox, &file);
    }
}

/// Which calls may be made is learnt; never what would open the sandbox.
#[test]
fn what_no_policy_gives_is_not_learnt() {
    if !root_or_skip() {
        return;
    }
    // unshare, and memfd_create, which web does not give out.
    let calls = ["272,0x10000000", "319,s:x,9", "39"];
    if cfg!(not(target_arch = "x86_64")) {
        return common::skip("the numbers are those of x86_64");
    }
    let sandbox = Sandbox::example("calls").args(calls);
    let dir = TempDir::new();
    let file = dir.path().join("learnt.toml");
    let output = learn(&sandbox, &file);
    assert!(output.stdout().starts_with("272 result=-1 errno=1\n319 "), "{output:?}");
    assert!(output.stderr().contains("refused unshare("), "{output:?}");
    assert!(output.stderr().contains(": + 1 calls: memfd_create\n"), "{output:?}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"memfd_create\",  # once, ") && !text.contains("unshare"), "{text}");
    // A second run, of something else, adds to it.
    let other = Sandbox::example("calls").args(["324,0", "39"]).of(&sandbox);
    let said = learn(&other, &file).stderr();
    assert!(said.contains("calls membarrier(cmd=0, "), "{said}");
    let both = std::fs::read_to_string(&file).unwrap();
    assert!(both.contains(" in 2 runs. ") && both.contains("\"memfd_create\",  # once"), "{both}");
    assert!(both.contains("\"membarrier\",  # once"), "{both}");
    // What the parent denies stays denied.
    let strict =
        dir.file("parent.toml", "extends = \"web\"\n[syscalls]\ndeny = [\"memfd_create\"]\n");
    let file = dir.path().join("denied.toml");
    let output = learn(&sandbox.option("--policy", &strict), &file);
    assert!(output.stderr().contains("refused memfd_create("), "{output:?}");
}

#[test]
fn listeners_and_destinations_are_learnt() {
    if !root_or_skip() {
        return;
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sandbox = Sandbox::example("plain").args(["-addr", &free.to_string()]);
    let dir = TempDir::new();
    let file = dir.path().join("learnt.toml");
    let mut running = sandbox.clone().command("learn").option("-o", &file).start();
    running.stderr_line(&format!("gosandbox: tenant {}: listens at tcp:{free}", sandbox.tenant));
    running.signal(SIGTERM);
    running.wait();
    // Now it is served, by the policy alone.
    let served = sandbox.option("--policy", &file).start();
    let answer = wait_for("an answer", || Client::tcp(free).ok()?.get("/").ok());
    assert_eq!(answer.status, 200);
    assert!(!served.stderr().contains("refused"), "{}", served.stderr());

    let dials = |flags: &[&str], to: &str| {
        let sandbox = Sandbox::example("dials").args(["tcp", to, "1"]);
        let file = dir.path().join(format!("{}.toml", sandbox.tenant));
        let sandbox = flags.iter().fold(sandbox, |sandbox, flag| sandbox.flag(*flag));
        let said = learn(&sandbox, &file).stderr();
        (said, std::fs::read_to_string(&file).unwrap())
    };
    // An address that is nobody's: RFC 5737. In a network without a way there.
    let (said, text) = dials(&[], "192.0.2.7:9");
    assert!(said.contains("wants to connect to 192.0.2.7:9, and is refused"), "{said}");
    assert!(text.contains("\n  # \"192.0.2.7:9\",  # wanted, and refused\n"), "{text}");
    let (said, text) = dials(&["--allow-egress"], "192.0.2.7:9");
    assert!(said.contains("connects to 192.0.2.7:9\n"), "{said}");
    assert!(text.contains("\n  \"192.0.2.7:9\",  # once\n"), "{text}");
    // What is private has to be listed by hand.
    let (_, text) = dials(&["--allow-egress"], "10.0.0.7:9");
    assert!(text.contains("\n  # \"10.0.0.7:9\",  # wanted, and refused\n"), "{text}");
}

#[test]
fn binds_are_kept_as_far_as_they_were_used() {
    if !root_or_skip() {
        return;
    }
    let (sandbox, id) = Sandbox::known("hello");
    let dir = TempDir::new();
    let [data, spare, log] = ["data", "spare", "log"].map(|name| dir.dir(name, id));
    std::fs::write(data.join("x"), "text\n").unwrap();
    let sandbox = sandbox
        .option("--bind", format!("{}:/data", data.display()))
        .option("--bind", format!("{}:/spare", spare.display()))
        .option("--bind", format!("{}:/log", log.display()));
    let file = dir.path().join("learnt.toml");
    assert_eq!(learn(&sandbox.clone().args(["cat", "/data/x"]), &file).stdout(), "text\n");
    let text = std::fs::read_to_string(&file).unwrap();
    let kept = format!("read_only = [\"{}:/data\"]\n", data.display());
    assert!(text.contains(&kept) && !text.contains("read_write"), "{text}");
    assert!(text.contains(":/spare\" was never looked at\n"), "{text}");
    learn(&sandbox.args(["write", "/log/y", "text"]), &file);
    let text = std::fs::read_to_string(&file).unwrap();
    let written = format!("read_write = [\"{}:/log\"]\n", log.display());
    assert!(text.contains(&kept) && text.contains(&written), "{text}");
}

#[test]
fn nothing_of_anybody_elses_is_overwritten() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let file = dir.file("own.toml", "extends = \"web\"\n");
    let output = learn(&Sandbox::example("hello"), &file);
    let start = format!("learn: {}: was not written by gosandbox learn", file.display());
    output.assert_refused(125, &start);
    assert_eq!(output.stdout(), "", "it did not run");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "extends = \"web\"\n");
    // What does not start teaches nothing.
    let file = dir.path().join("none.toml");
    let output = learn(&Sandbox::example("hello").option("--workdir", "/nowhere"), &file);
    assert_eq!(output.code(), Some(125), "{output:?}");
    assert!(!file.exists());
}
