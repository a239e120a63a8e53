//! `gosandbox dump`: goroutines over a listener without an end, or by SIGQUIT
//! with one, and of nobody else.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{
    Client, Sandbox, TempDir, User, example, go_or_skip, gosandbox, root_or_skip, wait_for,
};

fn dump(sandbox: &Sandbox, flags: &[&str]) -> Output {
    let mut command = Command::new(gosandbox());
    if let Some(user) = &sandbox.user {
        use std::os::unix::process::CommandExt;
        command = Command::new(user.reach(gosandbox()));
        command.uid(user.id).gid(user.id).env("XDG_RUNTIME_DIR", user.home());
    }
    command.arg("dump").args(flags).arg(&sandbox.tenant).stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn assert_failed(output: &Output, sandbox: &Sandbox, why: &str) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let line = format!("gosandbox: tenant {}: {why}", sandbox.tenant);
    assert!(said(output).starts_with(&line) && said(output).lines().count() == 1, "{output:?}");
}

/// A server with net/http/pprof, which no example has: it is for people who
/// look, and not for strangers.
fn server(dir: &TempDir) -> Option<PathBuf> {
    let go = go_or_skip("1.27")?;
    dir.file("go.mod", "module example.com/served\n\ngo 1.27\n");
    dir.file(
        "main.go",
        "package main\n\nimport (\n\t\"net/http\"\n\t_ \"net/http/pprof\"\n\t\"os\"\n)\n\n\
         func waitsForEver() { select {} }\n\n\
         func main() {\n\tgo waitsForEver()\n\tpanic(http.ListenAndServe(os.Args[1], nil))\n}\n",
    );
    let program = dir.path().join("served");
    let built = Command::new(go)
        .args(["build", "-o"])
        .arg(&program)
        .current_dir(dir.path())
        .env_clear()
        .env("HOME", dir.path())
        .env("GOCACHE", example("hello").ancestors().nth(3).unwrap().join("gocache/1.27"))
        .envs([
            ("GOTOOLCHAIN", "local"),
            ("GOPROXY", "off"),
            ("CGO_ENABLED", "0"),
            ("GOFLAGS", "-buildvcs=false"),
        ])
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(program)
}

#[test]
fn a_tenant_that_serves_pprof_is_asked_and_goes_on() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = server(&dir) else { return };
    for user in [false, true] {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let sandbox = Sandbox::new(&program);
        let sandbox = if user { sandbox.started_by(User::new()) } else { sandbox };
        let sandbox = sandbox
            .option("--listen", format!("tcp:{address}"))
            .inherit(socket, "listener")
            .arg(address.to_string());
        let running = sandbox.start();
        wait_for("an answer", || Client::tcp(address).ok()?.get("/debug/pprof/").ok());
        let output = dump(&sandbox, &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("goroutine ") && text.contains("main.waitsForEver"), "{text}");
        assert!(text.contains("\n\t/"), "lines of code begin with a tab: {text}");
        // It goes on.
        assert_eq!(Client::tcp(address).unwrap().get("/debug/pprof/").unwrap().status, 200);
        drop(running);
    }
}

#[test]
fn without_pprof_nothing_is_sent_and_with_stop_it_ends() {
    if !root_or_skip() {
        return;
    }
    let sandbox = Sandbox::example("web").option("--listen", "0");
    let mut running = sandbox.start();
    let line = running.stderr_line(&format!("gosandbox: tenant {}: listening on ", sandbox.tenant));
    let address = line.rsplit(' ').next().unwrap().trim().parse().unwrap();
    wait_for("an answer", || Client::tcp(address).ok()?.get("/").ok());
    let output = dump(&sandbox, &[]);
    assert_failed(&output, &sandbox, "no declared listener answers /debug/pprof/goroutine?debug=2");
    assert!(said(&output).contains("gosandbox dump --stop"), "{output:?}");
    assert_eq!(Client::tcp(address).unwrap().get("/").unwrap().status, 200, "it goes on");

    let output = dump(&sandbox, &["--stop"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(said(&output).contains("ended; its goroutines are"), "{output:?}");
    let ended = running.wait();
    // Go exits with 2 after it.
    assert_eq!(ended.code(), Some(2), "{ended:?}");
    let text = ended.stderr();
    assert!(text.contains("SIGQUIT: quit") && text.contains("\ngoroutine 1 "), "{text}");
    sandbox.assert_nothing_left();
    assert_failed(&dump(&sandbox, &["--stop"]), &sandbox, "not running here (");
}

#[test]
fn one_that_handles_sigquit_itself_is_said_to_run_still() {
    if !root_or_skip() {
        return;
    }
    let script = "trap 'echo handled' QUIT; echo ready; while :; do read -r line; done";
    let (stdin, keep) = std::io::pipe().unwrap();
    let sandbox = Sandbox::new("/bin/sh").stdin(stdin).args(["-c", script]);
    let mut running = sandbox.start();
    running.line("ready");
    let begun = Instant::now();
    assert_failed(&dump(&sandbox, &["--stop"]), &sandbox, "still running 10 s after SIGQUIT: ");
    assert!(begun.elapsed() < Duration::from_secs(30));
    running.line("handled");
    drop(keep);
}

/// A number that is another process's by now is left alone.
#[test]
fn a_state_file_of_the_dead_names_nobody() {
    if !root_or_skip() {
        return;
    }
    let sandbox = Sandbox::example("hello").started_by(User::new());
    let user = sandbox.user.as_ref().unwrap();
    let state = sandbox.state_file();
    std::fs::create_dir_all(state.parent().unwrap()).unwrap();
    let mut victim = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let text = format!(
        r#"{{"tenant":"{}","pid":{},"start_time":1,"listen":[],"cgroup":null,"missing":[]}}"#,
        sandbox.tenant,
        victim.id()
    );
    std::fs::write(&state, text).unwrap();
    std::os::unix::fs::chown(&state, Some(user.id), None).unwrap();
    assert_failed(&dump(&sandbox, &["--stop"]), &sandbox, "not running here (");
    assert!(victim.try_wait().unwrap().is_none(), "it was left alone");
    for broken in ["", "{", "[]", "\0"] {
        std::fs::write(&state, broken).unwrap();
        assert_failed(&dump(&sandbox, &["--stop"]), &sandbox, "not running here (");
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
}
