//! What the integration tests share: a gosandbox that is run, watched and
//! looked after, and questions to the machine about what it left behind.
//!
//! Nothing here sleeps for an effect: what has to happen is polled for, with a
//! deadline that only a broken program reaches.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code, unused_imports)]

mod http;
mod sandbox;
mod temp;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) use http::{Answer, Client};
pub(crate) use sandbox::{Output, Running, Sandbox, User};
pub(crate) use temp::TempDir;

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The host ids that tenants get.
pub(crate) const HOST_IDS: std::ops::RangeInclusive<u32> = 1_879_048_192..=2_147_483_647;

/// The Go releases that the example programs are built with.
pub(crate) const RELEASES: [&str; 5] = ["1.19", "1.21", "1.23", "1.25", "1.27"];

/// The program under test.
pub(crate) fn gosandbox() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_gosandbox"))
}

fn examples() -> PathBuf {
    std::env::var_os("GOSANDBOX_EXAMPLES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/examples"),
        PathBuf::from,
    )
}

/// An example program, built with the newest release there is.
pub(crate) fn example(name: &str) -> PathBuf {
    RELEASES.iter().rev().find_map(|release| example_of(release, name)).unwrap_or_else(|| {
        panic!("run examples/build all first: there is no {name} in {}", examples().display())
    })
}

/// An example program built with `release`, if it was.
pub(crate) fn example_of(release: &str, name: &str) -> Option<PathBuf> {
    let path = examples().join(release).join(name);
    path.exists().then_some(path)
}

/// Says loudly that something was not tested; with GOSANDBOX_NO_SKIP=1 that is
/// a failure.
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var_os("GOSANDBOX_NO_SKIP").is_none_or(|value| value != "1"),
        "not to be skipped: {why}"
    );
    // Not eprintln!, which the test harness swallows.
    drop(std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()));
}

/// Says that something cannot be tested on this machine, and where it is tested
/// all the same: the virtual machine of `make integration` has what is missing
/// here. A test of that name has to be there.
pub(crate) fn tested_in_vm(why: &str, file: &str, test: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/tests").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&format!("\ntest_{test}()")), "{}: no {test}", path.display());
    let line = format!("SKIPPED: {why}; integration/tests/{file} has {test}\n");
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// Whether these tests run as root; where not, says that they are skipped.
pub(crate) fn root_or_skip() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip("this test has to be run as root");
    }
    root
}

/// Where a tool is, or a skip.
pub(crate) fn tool_or_skip(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
    });
    if found.is_none() {
        skip(&format!("{name} is not installed"));
    }
    found
}

/// The `go` command of a release, or a skip.
pub(crate) fn go_or_skip(release: &str) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/toolchain");
    let output = Command::new(script).arg(release).output().unwrap();
    if !output.status.success() {
        skip(&format!("no Go {release}"));
        return None;
    }
    Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
}

/// The sum of a file, as sha256sum(1) says it.
pub(crate) fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// Where a file of a Debian package may be: installed, or below target/debian,
/// where tests/unpack puts it.
pub(crate) fn debian(path: &str) -> [PathBuf; 2] {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/debian");
    [PathBuf::from(path), unpacked.join(path.trim_start_matches('/'))]
}

/// Where it is, or a skip.
pub(crate) fn debian_or_skip(path: &str) -> Option<PathBuf> {
    let found = debian(path).into_iter().find(|path| path.exists());
    if found.is_none() {
        skip(&format!("{path} is not there, see make setup"));
    }
    found
}

/// Asks `question` until it has an answer, for at most [`PATIENCE`].
pub(crate) fn wait_for<T>(what: &str, question: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, question).unwrap_or_else(|| panic!("waited in vain: {what}"))
}

/// Asks `question` until it has an answer or `limit` is over.
pub(crate) fn within<T>(limit: Duration, mut question: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = question() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// A field of a JSON value as text.
pub(crate) fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}"))
}

/// Where cgroup v2 is mounted.
pub(crate) fn cgroup_mount() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
}

/// Whether cgroup v2 has what the limits need.
pub(crate) fn has_controllers() -> bool {
    let Some(mount) = cgroup_mount() else {
        return false;
    };
    let have = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    ["memory", "cpu", "pids"].iter().all(|needed| have.split_whitespace().any(|c| c == *needed))
}

/// The cgroups called `tenant`, wherever they are.
pub(crate) fn cgroups_of(tenant: &str) -> Vec<PathBuf> {
    fn look(dir: &Path, tenant: &str, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() == tenant {
                    found.push(entry.path());
                }
                look(&entry.path(), tenant, found);
            }
        }
    }
    let mut found = Vec::new();
    if let Some(mount) = cgroup_mount() {
        look(&mount, tenant, &mut found);
    }
    found
}

/// The line `name:` of /proc/<pid>/status.
pub(crate) fn status_line(pid: i32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// The host id recorded for `tenant`.
pub(crate) fn recorded_id(tenant: &str) -> Option<u32> {
    let record = std::fs::read_to_string("/var/lib/gosandbox/ids").ok()?;
    record.lines().find_map(|line| line.strip_prefix(tenant)?.strip_prefix(' ')?.parse().ok())
}

/// Every process there is.
pub(crate) fn pids() -> Vec<i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The processes of a tenant: those with its host id, and those that still go
/// by gosandbox's command line, in which its name is. Zombies are none.
pub(crate) fn processes_of(tenant: &str, id: Option<u32>) -> Vec<i32> {
    let is_its = |pid: i32| {
        let named = std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|&b| b == 0).any(|word| word == tenant.as_bytes()));
        let owned = id.is_some_and(|id| {
            status_line(pid, "Uid")
                .is_some_and(|ids| ids.split_whitespace().any(|word| word == id.to_string()))
        });
        (named || owned) && status_line(pid, "State").is_some_and(|state| !state.starts_with('Z'))
    };
    pids().into_iter().filter(|&pid| is_its(pid)).collect()
}

/// The one process among `of` whose pid inside its namespace is `inside`.
pub(crate) fn with_inner_pid(of: &[i32], inside: i32) -> Option<i32> {
    of.iter().copied().find(|&pid| {
        status_line(pid, "NSpid").is_some_and(|ids| {
            ids.split_whitespace().count() > 1
                && ids.split_whitespace().last() == Some(&inside.to_string())
        })
    })
}
