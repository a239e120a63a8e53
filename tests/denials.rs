//! A refused call names itself, and what is not refused costs nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{Sandbox, gosandbox, root_or_skip, text, wait_for};
use nix::sys::signal::Signal::SIGTERM;

/// Numbers of x86_64, which are others elsewhere.
#[cfg(target_arch = "x86_64")]
mod number {
    pub(crate) const EXECVE: &str = "59";
    pub(crate) const GETPPID: &str = "110";
    pub(crate) const MOUNT: &str = "165,s:/dev/sda,s:/mnt,s:ext4,0x20";
    pub(crate) const PTRACE: &str = "101,16,7";
    pub(crate) const MEMFD: &str = "319,s:x,9";
    pub(crate) const PACKET: &str = "41,17,3,0";
    pub(crate) const REBOOT: &str = "169,0,0,0,0";
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub(crate) const EXECVE: &str = "221";
    pub(crate) const GETPPID: &str = "173";
    pub(crate) const MOUNT: &str = "40,s:/dev/sda,s:/mnt,s:ext4,0x20";
    pub(crate) const PTRACE: &str = "117,16,7";
    pub(crate) const MEMFD: &str = "279,s:x,9";
    pub(crate) const PACKET: &str = "198,17,3,0";
    pub(crate) const REBOOT: &str = "142,0,0,0,0";
}

fn calls<const N: usize>(calls: [&str; N]) -> Sandbox {
    Sandbox::example("calls").args(calls)
}

/// Started by root, and by a user.
fn both(test: impl Fn(fn(Sandbox) -> Sandbox)) {
    test(|sandbox| sandbox);
    test(Sandbox::unprivileged);
}

/// What `gosandbox explain` prints of root's tenant.
fn explained(tenant: &str, flags: &[&str]) -> String {
    let output = Command::new(gosandbox()).arg("explain").args(flags).arg(tenant).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The process and its children, by the kernel's list.
fn children(pid: i32) -> usize {
    let path = format!("/proc/{pid}/task/{pid}/children");
    std::fs::read_to_string(path).unwrap().split_whitespace().count()
}

#[test]
fn a_refused_call_is_named_with_its_arguments() {
    if !root_or_skip() {
        return;
    }
    for network in ["private", "host"] {
        both(|by| {
            let output = by(calls([number::MOUNT, number::PTRACE, number::PACKET, "4096,1"]))
                .option("--network", network)
                .run();
            assert_eq!(output.code(), Some(0), "{output:?}");
            assert_eq!(output.stdout().matches("errno=1\n").count(), 3, "{output:?}");
            assert_eq!(output.stdout().matches("4096 result=-1 errno=38\n").count(), 1);
            for line in [
                "refused mount(dev_name=\"/dev/sda\", dir_name=\"/mnt\", type=\"ext4\", flags=0x20, data=0x0) = EPERM (no policy",
                "refused ptrace(request=16, pid=7, addr=0x0, data=0x0) = EPERM (no policy",
                "refused socket(family=17, type=3, protocol=0) = EPERM (other arguments",
                "refused call 4096(0x1, 0x0, 0x0, 0x0, 0x0, 0x0) = ENOSYS (it is none",
            ] {
                assert_eq!(output.stderr().matches(line).count(), 1, "{line}: {output:?}");
            }
            assert_eq!(output.stderr().lines().count(), 4, "{output:?}");
        });
    }
}

#[test]
fn a_flood_is_counted_and_shown_twice() {
    if !root_or_skip() {
        return;
    }
    let many = format!("5000*{}", number::MEMFD);
    let sandbox = calls([&many]);
    let output = sandbox.run();
    assert_eq!(output.stderr().lines().count(), 2, "{output:?}");
    let last = "= EPERM, 5000 times (to allow it: syscalls.allow = [\"memfd_create\"])\n";
    assert!(output.stderr().ends_with(last), "{output:?}");
    // A second run adds to it.
    calls([number::MEMFD, number::PTRACE]).of(&sandbox).run();
    let text_form = explained(&sandbox.tenant, &[]);
    assert!(text_form.contains("memfd_create(uname=\"x\", flags=0x9) = EPERM, 5001 times, last "));
    let proposal = "\n[syscalls]\nallow = [\n  \"memfd_create\",  # refused 5001 times\n]\n";
    assert!(text_form.ends_with(proposal), "{text_form}");
    // What it proposes does what it says.
    let allowed =
        calls([number::MEMFD]).env("GOSANDBOX_SYSCALLS_ALLOW", "[\"memfd_create\"]").run();
    assert!(allowed.stdout().ends_with("errno=0\n"), "{allowed:?}");
    assert_eq!(allowed.stderr(), "");
}

/// What a tenant writes is its own, and no record.
#[test]
fn a_tenant_cannot_forge_a_record() {
    if !root_or_skip() {
        return;
    }
    let sandbox = Sandbox::example("hello").args(["stderr", "3"]);
    sandbox.run();
    assert!(explained(&sandbox.tenant, &[]).contains("nothing was refused"));
    let json = calls([number::MEMFD]).of(&sandbox);
    json.run();
    let json: serde_json::Value =
        serde_json::from_str(&explained(&sandbox.tenant, &["--json"])).unwrap();
    assert_eq!(text(&json["calls"][0]["call"]), "memfd_create");
}

#[test]
fn on_deny_says_what_becomes_of_it() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        let quiet = by(calls([number::MEMFD])).env("GOSANDBOX_SYSCALLS_ON_DENY", "errno").run();
        assert_eq!(quiet.stdout().matches("errno=1\n").count(), 1, "{quiet:?}");
        assert_eq!(quiet.stderr(), "");
        let deadly = by(calls(["4096", number::MEMFD])).env("GOSANDBOX_SYSCALLS_ON_DENY", "kill");
        let deadly = deadly.run();
        assert_eq!(deadly.signal(), Some(libc::SIGSYS), "{deadly:?}");
        // Unknown calls are tried by honest programs.
        assert_eq!(deadly.stdout(), "4096 result=-1 errno=38\n");
        assert!(
            deadly.stderr().contains("signal 31 (SIGSYS), with which its filter"),
            "{deadly:?}"
        );
    });
}

#[test]
fn a_call_that_no_honest_program_makes_ends_it() {
    if !root_or_skip() {
        return;
    }
    let reboot = calls([number::REBOOT]).run();
    assert_eq!(reboot.signal(), Some(libc::SIGSYS), "{reboot:?}");
    let listed = calls([number::MEMFD]).env("GOSANDBOX_SYSCALLS_KILL", "[\"memfd_create\"]").run();
    assert_eq!(listed.signal(), Some(libc::SIGSYS), "{listed:?}");
}

/// No process for who keeps to what is allowed; one from the first question on.
#[test]
fn the_broker_is_made_when_it_is_first_asked() {
    if !root_or_skip() {
        return;
    }
    both(|by| {
        let mut running = by(calls(["sleep:400ms", number::PTRACE, "sleep:30s"])).start();
        running.app();
        assert_eq!(children(running.pid()), 1, "init");
        running
            .stderr_line(&format!("gosandbox: tenant {}: refused ptrace", running.sandbox.tenant));
        assert_eq!(children(running.pid()), 2, "and the broker");
        running.signal(SIGTERM);
        running.wait();
    });
}

/// Killed, a broker takes its tenant along, although it was made late.
#[test]
fn without_its_broker_a_tenant_does_not_go_on() {
    if !root_or_skip() {
        return;
    }
    let mut running = calls([number::PTRACE, "sleep:30s"]).start();
    running.stderr_line(&format!("gosandbox: tenant {}: refused", running.sandbox.tenant));
    let pid = running.pid();
    let broker = wait_for("the broker", || {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let all = std::fs::read_to_string(path).unwrap();
        all.split_whitespace().find_map(|child| {
            let name = std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim() == "gosandbox-brok").then(|| child.parse().unwrap())
        })
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(broker), nix::sys::signal::SIGKILL).unwrap();
    let output = running.wait();
    assert_eq!(output.code(), Some(137), "{output:?}");
    assert!(output.stderr().contains("its broker ended"), "{output:?}");
}

/// Its own binary is started, and nothing else ever.
#[test]
fn without_the_group_exec_there_is_one_execve() {
    if !root_or_skip() {
        return;
    }
    let without = "[\"go-runtime\", \"files\", \"net-server\", \"introspection\"]";
    let own = format!("{},s:/app", number::EXECVE);
    both(|by| {
        for on_deny in ["log", "errno"] {
            let output = by(calls([&own, number::GETPPID]))
                .env("GOSANDBOX_SYSCALLS_GROUPS", without)
                .env("GOSANDBOX_SYSCALLS_ON_DENY", on_deny)
                .run();
            // getppid(2) is of the group exec too.
            assert_eq!(output.stdout().matches("errno=1\n").count(), 2, "{output:?}");
            let named = output.stderr().contains("refused execve(filename=\"/app\", ");
            assert_eq!(named, on_deny == "log", "{output:?}");
        }
        // With it the kernel looks at the file: argv may be null since 5.18.
        let output = by(calls([&format!("{},s:/none", number::EXECVE)])).run();
        assert_eq!(output.stdout().matches("errno=2\n").count(), 1, "{output:?}");
    });
}
