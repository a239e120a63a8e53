//! What a policy asks of a binary: refused or admitted, and what was checked is
//! what runs, whatever happens to the file meanwhile.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{
    Sandbox, TempDir, example, example_of, go_or_skip, root_or_skip, sha256, skip, tool_or_skip,
    wait_for,
};
use gosandbox::golang::{GoVersion, ModuleVersion};

/// A program of its own that says `hello`, where it says that, and the same
/// bytes with another word in their place.
struct Victim {
    dir: TempDir,
    path: PathBuf,
    at: u64,
    sum: String,
}

const WORD: &[u8] = b"hello from tenant";
const OTHER: &[u8] = b"HELLO from tenant";

impl Victim {
    fn new() -> Self {
        let dir = TempDir::new();
        let path = dir.path().join("victim");
        let bytes = std::fs::read(example("hello")).unwrap();
        let places: Vec<usize> =
            (0..bytes.len() - WORD.len()).filter(|at| bytes[*at..].starts_with(WORD)).collect();
        assert_eq!(places.len(), 1);
        write_program(&path, &bytes);
        let sum = sha256(&path);
        Self { dir, path, at: places[0] as u64, sum }
    }

    /// As its owner may, by a descriptor of before.
    fn open(&self) -> File {
        File::options().write(true).open(&self.path).unwrap()
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox::new(&self.path)
    }

    /// Held to its sum.
    fn summed(&self) -> Sandbox {
        self.sandbox().env("GOSANDBOX_BINARY_SHA256", &self.sum)
    }
}

fn write_program(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn rules_refuse_with_126_and_plan_says_the_same() {
    if !root_or_skip() {
        return;
    }
    let Some(old) = example_of("1.19", "hello") else {
        skip("no hello of Go 1.19");
        return;
    };
    let zero = "0".repeat(64);
    let sum = sha256(&old);
    let cases = [
        ("SHA256", zero.as_str(), format!("binary.sha256 {zero}: {sum} (")),
        ("GO", ">=1.21", "binary.go \">=1.21\": built with go1.19.".to_owned()),
        ("VCS_CLEAN", "true", "binary.vcs_clean: it does not say from which".to_owned()),
    ];
    for (key, value, why) in cases {
        for user in [false, true] {
            let sandbox = Sandbox::new(&old).env(format!("GOSANDBOX_BINARY_{key}"), value);
            let sandbox = if user { sandbox.unprivileged() } else { sandbox };
            let output = sandbox.run();
            assert_eq!(output.code(), Some(126), "{output:?}");
            assert!(output.stderr().contains(&why), "{output:?}");
            assert_eq!(output.stderr().lines().count(), 1, "{output:?}");
            assert_eq!(output.stdout(), "");
            sandbox.assert_nothing_left();
            let planned = sandbox.command("plan").run();
            assert_eq!(planned.code(), Some(1), "{planned:?}");
            assert_eq!(planned.stderr(), output.stderr());
        }
    }
    let output = Sandbox::new("/bin/ls").env("GOSANDBOX_BINARY_STATIC", "true").run();
    output.assert_refused(126, "open binary: ");
    assert!(output.stderr().contains("binary.static: dynamically linked, by /lib"), "{output:?}");
    // More than the tenant may have is not even read.
    let dir = TempDir::new();
    let large = dir.path().join("large");
    write_program(&large, b"\x7fELF");
    File::options().write(true).open(&large).unwrap().set_len(1 << 40).unwrap();
    let output = Sandbox::new(&large).env("GOSANDBOX_BINARY_STATIC", "true").run();
    output.assert_refused(125, "open binary: ");
    assert!(output.stderr().contains("(raise --memory)"), "{output:?}");
}

#[test]
fn an_admitted_binary_runs_from_its_copy() {
    if !root_or_skip() {
        return;
    }
    for user in [false, true] {
        let victim = Victim::new();
        let sandbox = victim
            .summed()
            .env("GOSANDBOX_BINARY_GO", ">=1.19")
            .env("GOSANDBOX_BINARY_STATIC", "true")
            .env("GOSANDBOX_BINARY_MODULES", "{ allow = [] }");
        let sandbox = if user { sandbox.unprivileged() } else { sandbox };
        let output = sandbox.run();
        let hello = format!("hello from tenant {}\n", sandbox.tenant);
        assert_eq!((output.code(), output.stdout()), (Some(0), hello), "{output:?}");
        let planned = sandbox.clone().command("plan").run().stdout();
        for line in [
            format!("binary.sha256: {}", victim.sum),
            "binary.go \">=1.19\": go1.".to_owned(),
            "binary.static: no interpreter".to_owned(),
            "binary.modules.allow: 0 modules".to_owned(),
            "/app/victim: what was checked, a copy on a tmpfs of ".to_owned(),
        ] {
            assert!(planned.contains(&line), "no {line:?} in {planned}");
        }
        // Under its name, which leads nowhere else, and not to be changed.
        let mounts = sandbox.clone().args(["cat", "/proc/self/mountinfo"]).run().stdout();
        let app = mounts.lines().find(|line| line.contains(" /app/victim ")).unwrap();
        assert!(app.contains(" ro,nosuid,nodev") && app.contains(" - tmpfs "), "{mounts}");
        let output = sandbox.clone().args(["write", "/app/victim", "x"]).run();
        assert_eq!(output.code(), Some(1), "{output:?}");
        assert!(output.stderr().contains("read-only file system"), "{output:?}");
        let output = sandbox.clone().args(["write", "/app/more", "x"]).run();
        assert!(output.stderr().contains("read-only file system"), "{output:?}");
        let output = sandbox.args(["fork-bomb", "1"]).run();
        assert_eq!(output.stdout(), "started 1 of 1\n", "it starts itself again: {output:?}");
    }
}

/// gosandbox is held for two seconds between check and clone, and this happens
/// to the file meanwhile; what the tenant then says.
fn meanwhile(victim: &Victim, sandbox: Sandbox, what: impl FnOnce()) -> String {
    let log = victim.dir.path().join("trace");
    let mut words: Vec<String> = ["strace", "-f", "-qq", "-o"].map(str::to_owned).to_vec();
    words.push(log.display().to_string());
    for expression in ["trace=clone3,getrlimit,prlimit64", "inject=clone3:delay_enter=2s:when=1"] {
        words.extend(["-e".to_owned(), expression.to_owned()]);
    }
    let sandbox = sandbox.wrapped(words);
    let running = sandbox.start();
    // The plan asks for limits, which comes after the binary was looked at.
    wait_for("the check", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("RLIMIT_NOFILE")).then_some(())
    });
    what();
    let output = running.wait();
    assert_eq!(output.code(), Some(0), "{output:?}");
    output.stdout().split(' ').next().unwrap().to_owned()
}

#[test]
fn what_was_checked_runs_whatever_happens_to_the_file_before_exec() {
    if !root_or_skip() || tool_or_skip("strace").is_none() {
        return;
    }
    // Written to in place, by a descriptor of before.
    let victim = Victim::new();
    let writer = victim.open();
    let write = || writer.write_all_at(OTHER, victim.at).unwrap();
    assert_eq!(meanwhile(&victim, victim.summed(), write), "hello");
    assert_ne!(sha256(&victim.path), victim.sum, "it was written to");
    // Nothing is asked, nothing is promised: this is what the copy is for, and
    // shows that the moment was the right one.
    let victim = Victim::new();
    let writer = victim.open();
    let write = || {
        writer.write_all_at(OTHER, victim.at).unwrap();
        drop(writer);
    };
    assert_eq!(meanwhile(&victim, victim.sandbox(), write), "HELLO");

    // Another in its place.
    let victim = Victim::new();
    let swap = || {
        let other = victim.dir.path().join("other");
        std::fs::copy(&victim.path, &other).unwrap();
        let file = File::options().write(true).open(&other).unwrap();
        file.write_all_at(OTHER, victim.at).unwrap();
        std::fs::rename(&other, &victim.path).unwrap();
    };
    assert_eq!(meanwhile(&victim, victim.summed(), swap), "hello");
    assert_ne!(sha256(&victim.path), victim.sum, "it was replaced");
}

#[test]
fn writing_to_the_file_does_not_reach_the_tenant_that_runs() {
    if !root_or_skip() {
        return;
    }
    let victim = Victim::new();
    let mut running = victim.summed().arg("ignore-term").start();
    running.line("ready");
    // The kernel does not mind: this is not what is being executed.
    victim.open().write_all_at(OTHER, victim.at).unwrap();
    victim.open().set_len(4096).unwrap();
    let executed = PathBuf::from(format!("/proc/{}/exe", running.app()));
    assert_eq!(sha256(&executed), victim.sum);
    // gosandbox itself keeps no copy in memory.
    let own = std::fs::read_dir(format!("/proc/{}/fd", running.pid())).unwrap();
    let links: Vec<PathBuf> =
        own.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect();
    assert!(links.iter().all(|link| !link.to_string_lossy().contains("memfd")), "{links:?}");
}

/// Somebody writes without end: whatever is started is what the sum says.
#[test]
fn a_writer_that_never_rests_gets_nothing_else_started() {
    if !root_or_skip() {
        return;
    }
    let victim = Victim::new();
    let (writer, at) = (victim.open(), victim.at);
    let rest = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let rest = Arc::clone(&rest);
        move || {
            let mut words = [WORD, OTHER].into_iter().cycle();
            while !rest.load(Ordering::Relaxed) {
                writer.write_all_at(words.next().unwrap(), at).unwrap();
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
        }
    });
    let mut started = 0;
    for _ in 0..40 {
        let output = victim.summed().run();
        match output.code() {
            Some(0) => {
                started += 1;
                assert!(output.stdout().starts_with("hello "), "{output:?}");
            }
            _ => output.assert_refused(126, "open binary: "),
        }
    }
    rest.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    assert!((1..40).contains(&started), "{started} of 40 were started");
}

/// Our order of versions is that of Go's own packages, asked over every pair.
#[test]
fn versions_have_the_order_of_go() {
    let Some(go) = go_or_skip("1.27") else { return };
    let semver = go.parent().unwrap().join("../src/cmd/vendor/golang.org/x/mod/semver/semver.go");
    let dir = TempDir::new();
    dir.dir("semver", nix::unistd::geteuid().as_raw());
    std::fs::copy(&semver, dir.path().join("semver/semver.go")).unwrap();
    dir.file("go.mod", "module example.com/order\n\ngo 1.27\n");
    dir.file(
        "main.go",
        "package main\n\nimport (\n\t\"bufio\"\n\t\"fmt\"\n\t\"go/version\"\n\t\"os\"\n\t\"strings\"\n\n\
         \t\"example.com/order/semver\"\n)\n\n\
         func main() {\n\tlines := bufio.NewScanner(os.Stdin)\n\tout := bufio.NewWriter(os.Stdout)\n\tdefer out.Flush()\n\
         \tfor lines.Scan() {\n\t\tw := strings.Split(lines.Text(), \" \")\n\t\tif w[0] == \"go\" {\n\
         \t\t\tx, y := \"go\"+w[1], \"go\"+w[2]\n\
         \t\t\tfmt.Fprintln(out, version.IsValid(x), version.IsValid(y), version.Compare(x, y))\n\t\t} else {\n\
         \t\t\tfmt.Fprintln(out, semver.IsValid(w[1]), semver.IsValid(w[2]), semver.Compare(w[1], w[2]))\n\
         \t\t}\n\t}\n}\n",
    );
    let releases = [
        "1",
        "1.0",
        "1.2",
        "1.02",
        "1.19",
        "1.19.0",
        "1.19rc1",
        "1.19beta2",
        "1.19.8",
        "1.20",
        "1.20rc3",
        "1.21",
        "1.21rc1",
        "1.21rc2",
        "1.21rc10",
        "1.21.0",
        "1.21.13",
        "1.27",
        "1.27.3",
        "1.27.3rc1",
        "1.",
        "1.x",
        "2",
        "x",
        "1.21alpha",
        "1.21a1",
        "1.2.3.4",
    ];
    let modules = [
        "v1",
        "v1.2",
        "v1.2.3",
        "v1.2.3-a",
        "v1.2.3-a.b",
        "v1.2.3-a.1",
        "v1.2.3-1",
        "v1.2.3-10",
        "v1.2.3-9",
        "v1.2.3-99999999999999999999999",
        "v1.2.3-a-b",
        "v1.2.3+b",
        "v2.0.0+incompatible",
        "v1.2.3-01",
        "v1.2-a",
        "v01.2.3",
        "v1.2.3-",
        "v1.2.3-a..b",
        "v1.2.3+",
        "v0.0.0-20200501145240-bc7a7d42d5c3",
        "v1.10.0",
        "v1.2.3.4",
        "v1.2.4-0.20200501145240-bc7a7d42d5c3",
        "v1.2.3-pre.0.20200501145240-bc7a7d42d5c3",
        "v",
        "v1.2.3-rc.1",
        "v1.2.3-0a",
        "v1.2.3-a_b",
    ];
    let mut questions = Vec::new();
    let mut answers = Vec::new();
    let order = |ordering: Option<std::cmp::Ordering>| ordering.unwrap() as i8;
    let all = [("go", releases.as_slice()), ("mod", modules.as_slice())];
    for (kind, list) in all {
        for (x, y) in list.iter().flat_map(|x| list.iter().map(move |y| (*x, *y))) {
            questions.push(format!("{kind} {x} {y}\n"));
            // Go sorts what is no version before all others; we have no order
            // for that.
            answers.push(if kind == "go" {
                let (a, b) = (GoVersion::parse(x), GoVersion::parse(y));
                (
                    a.is_some(),
                    b.is_some(),
                    a.as_ref().zip(b.as_ref()).map(|(a, b)| order(a.partial_cmp(b))),
                )
            } else {
                let (a, b) = (ModuleVersion::parse(x), ModuleVersion::parse(y));
                (
                    a.is_some(),
                    b.is_some(),
                    a.as_ref().zip(b.as_ref()).map(|(a, b)| order(a.partial_cmp(b))),
                )
            });
        }
    }
    let hello = example("hello");
    let mut asked = Command::new(go)
        .args(["run", "."])
        .current_dir(dir.path())
        .env_clear()
        .env("HOME", dir.path())
        .env("GOCACHE", hello.ancestors().nth(3).unwrap().join("gocache/1.27"))
        .envs([
            ("GOTOOLCHAIN", "local"),
            ("GOPROXY", "off"),
            ("CGO_ENABLED", "0"),
            ("GOFLAGS", "-buildvcs=false"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = asked.stdin.take().unwrap();
    let text = questions.concat();
    std::thread::spawn(move || std::io::Write::write_all(&mut stdin, text.as_bytes()));
    let output = asked.wait_with_output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.lines().count(), questions.len());
    for ((question, ours), theirs) in questions.iter().zip(&answers).zip(said.lines()) {
        let words: Vec<&str> = theirs.split(' ').collect();
        assert_eq!(ours.0.to_string(), words[0], "{question}");
        assert_eq!(ours.1.to_string(), words[1], "{question}");
        if let Some(order) = ours.2 {
            assert_eq!(order.to_string(), words[2], "{question}");
        }
    }
}
