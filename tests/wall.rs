//! Landlock around a real tenant: what it alone holds, tried with it and without,
//! and kernels that have less of it, or nothing. strace answers in their place.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;

use common::{Output, Sandbox, TempDir, gosandbox, root_or_skip, skip, tool_or_skip};

/// The version that this kernel has.
fn version() -> Option<u32> {
    gosandbox::sys::landlock::version().ok()
}

fn ready(least: u32) -> bool {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return false;
    }
    let enough = version().is_some_and(|version| version >= least);
    if !enough {
        skip(&format!("this kernel has no Landlock of version {least}"));
    }
    enough
}

/// The words in front of a program for which landlock_create_ruleset(2), with
/// which the version is asked for first, answers so.
fn kernel(answer: &str) -> Vec<String> {
    let inject = format!("inject=landlock_create_ruleset:{answer}");
    let words = ["strace", "-f", "-qq", "-o", "/dev/null"].into_iter();
    let words = words.chain(["-e", "trace=landlock_create_ruleset", "-e", &inject]);
    words.map(str::to_owned).collect()
}

const NO_LANDLOCK: &str = "error=EOPNOTSUPP";

/// The same tenant on a kernel that has no Landlock.
fn without(sandbox: &Sandbox) -> Sandbox {
    sandbox.clone().option("--require", "landlock=best-effort").wrapped(kernel(NO_LANDLOCK))
}

fn all_said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_kernel_without_landlock_stops_the_start() {
    if !ready(1) {
        return;
    }
    for (error, words) in [
        ("ENOSYS", "this kernel is built without it (boot one with CONFIG_SECURITY_LANDLOCK=y"),
        ("EOPNOTSUPP", "this kernel was booted without it (boot with lsm=landlock"),
        ("EPERM", "Operation not permitted (a seccomp profile around gosandbox has to let"),
        ("EIO", "Input/output error ("),
    ] {
        for sandbox in [Sandbox::example("hello"), Sandbox::example("hello").unprivileged()] {
            let sandbox = sandbox.wrapped(kernel(&format!("error={error}")));
            let output = sandbox.run();
            output.assert_refused(125, &format!("landlock: {words}"));
            let how = "; or accept it with --require landlock=best-effort)\n";
            assert!(output.stderr().ends_with(how), "{output:?}");
            sandbox.assert_nothing_left();
        }
    }
    let plan = Sandbox::example("hello").command("plan").wrapped(kernel(NO_LANDLOCK)).run();
    plan.assert_refused(1, "landlock: this kernel was booted without it (");
}

#[test]
fn where_it_may_be_missing_the_start_says_that_it_is() {
    if !ready(1) {
        return;
    }
    let hello = Sandbox::example("hello");
    let variable =
        hello.clone().env("GOSANDBOX_REQUIRE_LANDLOCK", "best-effort").wrapped(kernel(NO_LANDLOCK));
    for sandbox in [without(&hello), without(&hello.clone().unprivileged()), variable] {
        let output = sandbox.run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        let line = "goes without Landlock: this kernel was booted without it (boot with ";
        assert_eq!(all_said(&output).matches(line).count(), 1, "{output:?}");
    }
    let plan = without(&hello.clone().command("plan")).run().stdout();
    assert!(plan.contains("\nmissing: Landlock: this kernel was booted without it ("), "{plan}");
    assert!(!plan.contains("  landlock  "), "{plan}");
    // Where it is there, it is used.
    let best_effort = hello.option("--require", "landlock=best-effort");
    assert!(!all_said(&best_effort.run()).contains("Landlock"));
    let plan = best_effort.command("plan").run().stdout();
    assert!(plan.contains("  landlock          version "), "{plan}");
}

/// Any failure but that there is none is none to be passed over.
#[test]
fn best_effort_is_for_a_kernel_that_has_none_and_for_nothing_else() {
    if !ready(1) {
        return;
    }
    let sandbox = Sandbox::example("hello").option("--require", "landlock=best-effort");
    for call in ["landlock_add_rule", "landlock_restrict_self"] {
        let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]
            .map(str::to_owned)
            .into_iter()
            .chain(["-e".to_owned(), format!("inject={call}:error=ENOMEM")]);
        let output = sandbox.clone().wrapped(words).run();
        output.assert_refused(125, "landlock: Cannot allocate memory");
    }
    // The third is the ruleset itself.
    let output = sandbox.wrapped(kernel("error=ENOMEM:when=3")).run();
    output.assert_refused(125, "landlock: Cannot allocate memory");
}

/// What `probe` says of one attempt.
fn attempt(sandbox: &Sandbox, name: &str) -> String {
    let result = sandbox.clone().arg(name).json();
    let result = &result[name];
    if result["ok"] == true {
        "WORKS".to_owned()
    } else {
        common::text(&result["errno"]).to_owned()
    }
}

/// The filter lets a file be opened, and the device's mode lets everybody write.
#[test]
fn the_random_devices_are_not_written() {
    if !ready(1) {
        return;
    }
    for probe in [Sandbox::example("probe"), Sandbox::example("probe").unprivileged()] {
        assert_eq!(attempt(&probe, "write-random"), "EACCES");
        assert_eq!(attempt(&without(&probe), "write-random"), "WORKS");
    }
}

/// In the host's network namespace its abstract sockets are in reach, which have
/// neither owner nor mode: CVE-2020-15257.
#[test]
fn abstract_sockets_of_the_host_are_not_reached_from_its_network() {
    if !ready(6) {
        return;
    }
    let name = format!("gosandbox-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    for probe in [Sandbox::example("probe"), Sandbox::example("probe").unprivileged()] {
        let probe =
            probe.option("--network", "host").option("--env", format!("PROBE_UNIX=@{name}"));
        assert_eq!(attempt(&probe, "connect-unix"), "EPERM");
        assert_eq!(attempt(&without(&probe), "connect-unix"), "WORKS");
    }
}

/// A descriptor that is for reading leads, by its name in /proc, to one that is
/// for writing, where the file's mode allows it.
#[test]
fn a_stdin_for_reading_does_not_become_one_for_writing() {
    if !ready(1) {
        return;
    }
    let dir = TempDir::new();
    let file = dir.file("input", "what was given");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    let given = || File::open(&file).unwrap();
    let hello = || Sandbox::example("hello");
    for name in ["/dev/stdin", "/proc/self/fd/0"] {
        // Read it may be, by that name too.
        let output = hello().stdin(given()).args(["cat", name]).run();
        assert_eq!(output.stdout(), "what was given", "{output:?}");
        let output = hello().stdin(given()).args(["write", name, "what was not"]).run();
        assert_eq!(output.code(), Some(1), "{output:?}");
        assert!(output.stderr().contains("permission denied"), "{output:?}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "what was given");
    let sandbox = hello().stdin(given()).args(["write", "/dev/stdin", "what was not"]);
    assert_eq!(without(&sandbox).run().code(), Some(0));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "what was not", "the control");
}

#[test]
fn what_a_program_opens_by_name_is_there() {
    if !ready(1) {
        return;
    }
    for hello in [Sandbox::example("hello"), Sandbox::example("hello").unprivileged()] {
        for name in ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"] {
            let output = hello.clone().args(["write", name, "written"]).run();
            assert_eq!((output.code(), output.stdout().as_str()), (Some(0), "written"), "{name}");
        }
        let output = hello.clone().args(["write", "/dev/stderr", "written"]).run();
        assert!(output.stderr().ends_with("written\n"), "{output:?}");
        let output = hello.clone().args(["write", "/dev/null", "written"]).run();
        assert_eq!((output.code(), output.stdout().as_str()), (Some(0), ""), "{output:?}");
        for path in ["/proc/self/status", "/proc/meminfo", "/etc/passwd", "/proc/self/exe"] {
            let output = hello.clone().args(["cat", path]).run();
            assert_eq!(output.code(), Some(0), "{path}: {output:?}");
            assert!(!output.stdout.is_empty(), "{path}");
        }
    }
}

/// An older kernel holds less, and its tenants live with it all the same.
#[test]
fn honest_programs_run_behind_every_version() {
    if !ready(1) {
        return;
    }
    let newest = version().unwrap_or(1).min(7);
    for version in 1..=newest {
        let older = kernel(&format!("retval={version}:when=1"));
        let exercise = Sandbox::example("exercise").wrapped(older.clone());
        let plan = exercise.clone().command("plan").run().stdout();
        assert!(plan.contains(&format!("  landlock          version {version}: files")), "{plan}");
        let free = plan.contains("not held by this kernel: ");
        assert_eq!(free, version < 6, "{plan}");
        assert_eq!(plan.contains("note: files cannot be moved"), version == 1, "{plan}");
        // It moves files from one directory to another.
        if version > 1 {
            let output = exercise.run();
            assert_eq!(output.code(), Some(0), "{version}: {output:?}");
        }
    }
    // One that is newer than this program is used as far as that knows it.
    let newer = Sandbox::example("hello").wrapped(kernel("retval=99:when=1"));
    if newest == 7 {
        assert_eq!(newer.run().code(), Some(0));
    }
    let plan = newer.command("plan").run().stdout();
    assert!(plan.contains("  landlock          version 7: files"), "{plan}");
}

#[test]
fn check_has_a_line_for_it() {
    if !ready(1) {
        return;
    }
    let check = |wrapper: &[String]| {
        let mut words = wrapper.to_vec();
        words.extend([gosandbox().display().to_string(), "check".to_owned()]);
        let output = Command::new(&words[0]).args(&words[1..]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = |facility: &str| {
            let line =
                text.lines().find(|line| line.get(9..).is_some_and(|l| l.starts_with(facility)));
            line.unwrap_or_else(|| panic!("no {facility} in {text}")).to_owned()
        };
        (line("landlock"), line("a tenant starts"))
    };
    let (landlock, trial) = check(&[]);
    assert!(landlock.starts_with("ok       landlock             version "), "{landlock}");
    assert!(trial.starts_with("ok "), "{trial}");
    let (landlock, trial) = check(&kernel(NO_LANDLOCK));
    let missing = "missing  landlock             this kernel was booted without it: boot with lsm=";
    assert!(landlock.starts_with(missing), "{landlock}");
    // What else there is can be tried all the same.
    assert!(trial.starts_with("ok "), "{trial}");
    let (landlock, _) = check(&kernel("retval=3:when=1"));
    let later = "version 3: files, truncation; a later kernel also TCP, device ioctls, signals";
    assert!(landlock.contains(later), "{landlock}");
}
