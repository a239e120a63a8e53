//! What people read: plans, help, and the texts of errors.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Sandbox, TempDir, gosandbox, root_or_skip, text};
use gosandbox::plan::Step;

fn plan() -> Sandbox {
    Sandbox::example("hello").command("plan")
}

fn labels(plan: &serde_json::Value) -> Vec<String> {
    let steps = plan["steps"].as_array().unwrap();
    steps.iter().map(|step| text(&step["step"]).to_owned()).collect()
}

#[test]
fn a_plan_has_the_steps_in_the_order_in_which_they_run() {
    if !root_or_skip() {
        return;
    }
    let all_but = |missing: &[Step]| -> Vec<String> {
        // Only for who names one.
        let all = Step::ALL.iter().filter(|step| **step != Step::Network);
        let taken = all.filter(|step| !missing.contains(step));
        taken.map(|step| step.label().to_owned()).collect()
    };
    let plan = || plan().option("--listen", "8080").option("--bind-ro", "/usr/bin");
    // Root clones what it binds before there is a child; a user has groups that
    // it cannot give up.
    assert_eq!(labels(&plan().flag("--json").json()), all_but(&[Step::Trees]));
    assert_eq!(labels(&plan().flag("--json").unprivileged().json()), all_but(&[Step::Groups]));
    let host = plan().flag("--json").option("--network", "host").json();
    // There the broker records what is refused, and is made when something is.
    let network = [Step::NewNetwork, Step::Loopback, Step::JoinNetwork];
    let absent = [&network[..], &[Step::Trees, Step::AwaitBroker, Step::BrokerAwait]].concat();
    assert_eq!(labels(&host), all_but(&absent));
    for step in host["steps"].as_array().unwrap() {
        let label = text(&step["step"]);
        let known = Step::ALL.iter().find(|s| s.label() == label).unwrap();
        assert_eq!(text(&step["process"]), known.actor().label());
        assert!(!step["actions"].as_array().unwrap().is_empty(), "{label}");
    }
    // The text has the same, numbered.
    let text = plan().run().stdout();
    let numbered: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let rest = line.get(6..).filter(|_| line.get(..4).is_some_and(is_number))?;
            Some(rest.split("  ").next()?.trim().to_owned())
        })
        .collect();
    let expected = all_but(&[Step::Trees]);
    assert_eq!(numbered.len(), expected.len(), "{text}");
    for (numbered, expected) in numbered.iter().zip(&expected) {
        assert!(numbered.starts_with(expected.as_str()), "{numbered:?} is not {expected:?}");
    }
}

fn is_number(text: &str) -> bool {
    text.trim().parse::<u32>().is_ok()
}

#[test]
fn a_plan_does_nothing() {
    if !root_or_skip() {
        return;
    }
    // It could not open this one anyway.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = TempDir::new();
    let socket = dir.path().join("socket");
    for flag in ["--json", "--origin", "--seccomp", "--bpf"] {
        let plan = plan()
            .flag(flag)
            .option("--listen", format!("tcp:{}", taken.local_addr().unwrap()))
            .option("--listen", format!("unix:{}", socket.display()));
        let output = plan.run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        assert_eq!(output.stderr(), "");
        assert_eq!(plan.host_id(), None, "no id is recorded");
        assert!(!socket.exists());
        assert_eq!(plan.leftovers(), Vec::<String>::new());
        // And by a user, not even a directory.
        let plan = plan.unprivileged();
        assert_eq!(plan.run().code(), Some(0));
        assert_eq!(plan.user.as_ref().unwrap().home().read_dir().unwrap().count(), 0);
    }
}

#[test]
fn a_plan_shows_what_each_system_call_is_answered_and_the_filter_that_does_it() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let policy = dir.file(
        "own.toml",
        "extends = \"web\"\n[syscalls]\nallow = [\"mlock2\"]\ndeny = [\"fchmod\"]\n",
    );
    let plan = || plan().option("--policy", &policy);
    let table = plan().flag("--seccomp").run().stdout();
    let line = |call: &str| {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let line = table.lines().map(words).find(|words| words.get(1).is_some_and(|w| w == call));
        line.unwrap_or_else(|| panic!("no {call} in {table}")).join(" ")
    };
    let number = |number: libc::c_long, rest: &str| format!("{number} {rest}");
    assert_eq!(line("openat"), number(libc::SYS_openat, "openat files allowed"));
    assert_eq!(line("mlock2"), number(libc::SYS_mlock2, "mlock2 allow allowed"));
    assert_eq!(line("fchmod"), number(libc::SYS_fchmod, "fchmod deny EPERM"));
    assert_eq!(line("ptrace"), number(libc::SYS_ptrace, "ptrace - EPERM"));
    assert_eq!(line("connect"), number(libc::SYS_connect, "connect net-client broker"));
    // The same for programs.
    let rows = plan().flag("--seccomp").flag("--json").json();
    let row = |call: &str| rows.as_array().unwrap().iter().find(|row| row["call"] == call).unwrap();
    let expected = serde_json::json!({
        "number": libc::SYS_clone,
        "call": "clone",
        "from": "go-runtime",
        "answers": [
            { "if": ["clone_flags & 0x7e020000 == 0"], "answer": "allowed" },
            { "answer": "EPERM" },
        ],
    });
    assert_eq!(*row("clone"), expected);
    // The filter begins with the architecture, and says EPERM to who was denied.
    let program = plan().flag("--bpf").run().stdout();
    assert!(program.starts_with("0000: ld   [4] "), "{program}");
    let other = Sandbox::example("hello").command("plan").flag("--bpf").run().stdout();
    assert!(other != program && other.contains("; SECCOMP_RET_USER_NOTIF\n"), "{other}");
}

#[test]
fn a_plan_says_what_kind_of_id_the_tenant_has() {
    if !root_or_skip() {
        return;
    }
    let new = plan().run().stdout();
    assert!(new.contains("the tenant's own from its first start on"), "{new}");
    let (known, id) = Sandbox::known("hello");
    let known = known.command("plan").run().stdout();
    assert!(
        known.contains(&format!("uid 1000 is {id} on the host, the tenant's own\n")),
        "{known}"
    );
    let user = plan().unprivileged();
    let id = user.host_id().unwrap();
    let text = user.run().stdout();
    assert!(text.contains(&format!("uid 1000 is {id} on the host, the caller's\n")), "{text}");
    assert!(text.contains("note: not started as root"), "{text}");
}

#[test]
fn values_that_may_be_secret_are_not_shown() {
    if !root_or_skip() {
        return;
    }
    for flag in ["--json", "--origin"] {
        let output = plan().flag(flag).option("--env", "TOKEN=hunter2").run();
        let text = output.stdout();
        assert!(text.contains("TOKEN") && !text.contains("hunter2"), "{text}");
    }
}

/// A file of a tenant's own in /etc, removed when dropped.
struct OwnPolicy {
    path: PathBuf,
    /// Directories that had to be made for it.
    made: Vec<PathBuf>,
}

impl OwnPolicy {
    fn new(tenant: &str, text: &str) -> Self {
        let dir = Path::new("/etc/gosandbox/tenants");
        let made: Vec<_> =
            dir.ancestors().take_while(|d| !d.exists()).map(Path::to_owned).collect();
        std::fs::create_dir_all(dir).unwrap();
        let path = dir.join(format!("{tenant}.toml"));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        Self { path, made }
    }
}

impl Drop for OwnPolicy {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
        for dir in &self.made {
            drop(std::fs::remove_dir(dir));
        }
    }
}

#[test]
fn later_layers_win_and_the_plan_says_where_each_value_is_from() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let named = dir.file(
        "named.toml",
        "extends = \"job\"\n[limits]\nmemory = \"100M\"\ncpu = 1\ntmp = \"1M\"\nshm = \"2M\"\n",
    );
    let plan = plan()
        .flag("--origin")
        .option("--policy", &named)
        .option("--cpu", "4")
        .env("GOSANDBOX_LIMITS_TMP", "3M")
        .env("GOSANDBOX_LIMITS_CPU", "3")
        .env("GOSANDBOX_SOMETHING_ELSE", "is not ours");
    let own = OwnPolicy::new(&plan.tenant, "[limits]\nmemory = \"200M\"\ncpu = 2\ntmp = \"2M\"\n");
    let output = plan.run();
    assert_eq!(output.code(), Some(0), "{output:?}");
    let text = output.stdout();
    let line = |key: &str| {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(key));
        let mut words = line.unwrap_or_else(|| panic!("no {key} in {text}")).split_whitespace();
        let value = words.nth(1).unwrap().to_owned();
        (value, words.collect::<Vec<_>>().join(" "))
    };
    let expect = |key: &str, value: &str, origin: &str| {
        assert_eq!(line(key), (value.to_owned(), origin.to_owned()), "{key}");
    };
    expect("limits.open_files", "65536", "built-in default");
    expect("limits.pids", "64", "policy job");
    expect("limits.shm", "2M", &named.display().to_string());
    expect("limits.memory", "200M", &own.path.display().to_string());
    expect("limits.tmp", "3M", "GOSANDBOX_LIMITS_TMP");
    expect("limits.cpu", "4", "command line");
}

/// A policy file with this text, and what `run` says to it.
fn said_to(policy: &str, mode: u32) -> (String, Option<i32>, String) {
    let dir = TempDir::new();
    let path = dir.file("policy.toml", policy);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    let sandbox = Sandbox::example("hello").option("--policy", &path);
    let output = sandbox.run();
    sandbox.assert_nothing_left();
    let start = format!("gosandbox: tenant {}: ", sandbox.tenant);
    let said = output.stderr();
    assert!(said.starts_with(&start) && said.lines().count() == 1, "{said}");
    (path.display().to_string(), output.code(), said[start.len()..].to_owned())
}

#[test]
fn errors_in_policies_name_file_line_and_column_and_what_was_meant() {
    if !root_or_skip() {
        return;
    }
    for (policy, expected) in [
        ("[limits]\nmemroy = \"1G\"\n", ":2:1: unknown key `memroy` (did you mean `memory`?)\n"),
        ("\n[limts]\n", ":2:2: unknown key `limts` (did you mean `limits`?)\n"),
        ("[limits]\nmemory = \"lots\"\n", ":2:10: size \"lots\": write a number and K, M, G or T"),
        ("[network]\nmode = \"hots\"\n", ":2:8: network \"hots\": write private, host or ns:"),
        ("[network]\nlisten = [\"tcp:80\"]\n", ":2:10: listen \"tcp:80\": "),
        ("[process]\nuid = \"me\"\n", ":2:7: "),
        ("[limits\n", ":1:8: "),
    ] {
        let (path, code, said) = said_to(policy, 0o644);
        assert_eq!(code, Some(125));
        assert!(said.starts_with(&format!("{path}{expected}")), "{said}");
    }
}

#[test]
fn policies_that_others_may_write_are_not_roots() {
    if !root_or_skip() {
        return;
    }
    for mode in [0o664, 0o646, 0o666] {
        let (path, code, said) = said_to("extends = \"web\"\n", mode);
        assert_eq!(code, Some(125));
        let expected = format!("{path}: writable by group or others (chmod go-w ");
        assert!(said.starts_with(&expected), "{said}");
    }
}

#[test]
fn policies_that_are_unknown_or_extend_themselves() {
    if !root_or_skip() {
        return;
    }
    let output = Sandbox::example("hello").option("--policy", "wbe").run();
    output.assert_refused(
        125,
        "policy \"wbe\": neither a shipped policy (web, job, strict) nor a path (write ./wbe",
    );
    let output = Sandbox::example("hello").option("--policy", "./nowhere.toml").run();
    assert_eq!(output.code(), Some(125));
    let said = "/nowhere.toml: No such file or directory";
    assert!(output.stderr().contains(said), "{output:?}");
    let dir = TempDir::new();
    let own = dir.file("own.toml", "extends = \"./own.toml\"\n");
    let there = dir.file("there.toml", "extends = \"./back.toml\"\n");
    dir.file("back.toml", "extends = \"./there.toml\"\n");
    for path in [own, there] {
        let output = Sandbox::example("hello").option("--policy", path).run();
        assert_eq!(output.code(), Some(125));
        assert!(output.stderr().contains(": extends itself by way of"), "{output:?}");
    }
    let (_, code, said) = said_to("extends = \"wbe\"\n", 0o644);
    assert_eq!(code, Some(125));
    assert!(said.starts_with("policy \"wbe\": "), "{said}");
}

#[test]
fn system_calls_that_would_open_the_sandbox_are_not_given_out() {
    if !root_or_skip() {
        return;
    }
    for call in ["ptrace", "mount", "unshare", "io_uring_setup", "bpf"] {
        let policy = format!("extends = \"web\"\n[syscalls]\nallow = [\"{call}\"]\n");
        let (_, code, said) = said_to(&policy, 0o644);
        assert_eq!(code, Some(125));
        assert!(said.contains(&format!("seccomp filter: {call} is never given out")), "{said}");
    }
    let (_, _, said) = said_to("extends = \"web\"\n[syscalls]\ndeny = [\"opne\"]\n", 0o644);
    assert!(said.contains("no system call is called \"opne\""), "{said}");
    let (_, _, said) = said_to("[syscalls]\ngroups = [\"go\"]\n", 0o644);
    assert!(said.contains("no group of system calls is called \"go\""), "{said}");
}

#[test]
fn a_policy_file_that_extends_nothing_starts_from_the_default() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let policy = dir.file("policy.toml", "[limits]\nmemory = \"64M\"\n");
    let output = Sandbox::example("hello").option("--policy", policy).run();
    // Without a group of system calls nothing could run.
    assert_eq!(output.code(), Some(0), "{output:?}");
}

#[test]
fn variables_are_a_layer() {
    if !root_or_skip() {
        return;
    }
    let with = |name: &str, value: &str| Sandbox::example("whoami").env(name, value);
    assert_eq!(with("GOSANDBOX_LIMITS_MEMORY", "100M").json()["gomemlimit"], 90 << 20);
    let me = with("GOSANDBOX_PROCESS_ENV", "{ FROM = \"a variable\" }").json();
    assert!(me["env"].to_string().contains("\"FROM=a variable\""), "{}", me["env"]);
    let refused = |name: &str, value: &str, why: &str| {
        let output = with(name, value).run();
        output.assert_refused(125, &format!("{name}: "));
        assert!(output.stderr().contains(why), "{output:?}");
    };
    refused("GOSANDBOX_LIMITS_MEMROY", "1G", "GOSANDBOX_LIMITS_MEMORY");
    refused("GOSANDBOX_LIMITS_MEMORY", "lots", "size \"lots\"");
    refused("GOSANDBOX_NETWORK_MODE", "hots", "host");
}

/// gosandbox with these words: its status, stdout and stderr.
fn bare(words: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(gosandbox()).args(words).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_is_wrong_on_the_command_line_is_125_for_run_and_2_for_others() {
    let wrong: [&[&str]; 10] = [
        &["--memroy", "1G", "/bin/true"],
        &["--memory", "lots", "/bin/true"],
        &["--memory"],
        &["--listen", "tcp:80", "/bin/true"],
        &["--bind", "relative:/x", "/bin/true"],
        &["--env", "no assignment", "/bin/true"],
        &["--tenant", "No Name", "/bin/true"],
        &["--require", "magic=strict", "/bin/true"],
        &["--grace", "soon", "/bin/true"],
        &[],
    ];
    for words in wrong {
        let (code, stdout, stderr) = bare(&[&["run"], words].concat());
        assert_eq!((code, stdout.as_str()), (Some(125), ""), "{words:?}: {stderr}");
        assert!(!stderr.is_empty());
    }
    assert_eq!(bare(&["plan", "--memory", "lots", "/bin/true"]).0, Some(2));
    assert_eq!(bare(&["nonsense"]).0, Some(2));
    assert_eq!(bare(&[]).0, Some(2));
    assert_eq!(bare(&["--version"]).0, Some(0));
}

#[test]
fn an_unknown_flag_before_the_binary_is_named() {
    let (code, _, stderr) = bare(&["run", "--memroy", "1G", "/bin/true"]);
    assert_eq!(code, Some(125));
    assert!(stderr.contains("--memroy"), "{stderr}");
    let (_, _, stderr) = bare(&["plan", "--memroy", "1G", "/bin/true"]);
    assert!(stderr.contains("--memroy"), "{stderr}");
}

#[test]
fn a_name_that_cannot_be_a_tenants_asks_for_one() {
    let dir = TempDir::new();
    let path = dir.path().join("My_App\u{1b}[2J");
    std::fs::copy(common::example("hello"), &path).unwrap();
    let (code, _, stderr) = bare(&["run", path.to_str().unwrap()]);
    assert_eq!(code, Some(125));
    assert!(stderr.contains("give it one with --tenant"), "{stderr}");
    assert!(!stderr.contains('\u{1b}'), "{stderr:?}");
}

const COMMANDS: [&[&str]; 4] =
    [&["--help"], &["run", "--help"], &["plan", "--help"], &["check", "--help"]];

#[test]
fn help_is_two_screens_at_most() {
    for words in COMMANDS {
        let (code, help, stderr) = bare(words);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{words:?}");
        assert!(help.lines().count() <= 48, "{words:?}:\n{help}");
        let long: Vec<_> = help.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(long.is_empty(), "{words:?}: wider than 80: {long:#?}");
    }
}

#[test]
fn help_begins_with_an_example() {
    for words in COMMANDS {
        let (_, help, _) = bare(words);
        let usage = help.find("Usage:").unwrap_or(help.len());
        let example = help.find("gosandbox ").unwrap_or(usage);
        assert!(example < usage, "{words:?}: no example before the usage:\n{help}");
    }
}

#[test]
fn check_says_a_line_a_facility() {
    let (code, stdout, stderr) = bare(&["check"]);
    assert!([Some(0), Some(1)].contains(&code), "{stderr}");
    assert!(stdout.lines().count() > 3, "{stdout}");
    let missing = stdout.lines().any(|line| line.starts_with("missing "));
    assert!(
        stdout.lines().all(|line| line.starts_with("ok ") || line.starts_with("missing ")),
        "{stdout}"
    );
    assert_eq!(code, Some(i32::from(missing)));
    // Not a test of its own: two checks at once are one tenant twice.
    if root_or_skip() {
        names_what_covers_proc();
    }
}

/// Where something is mounted over a part of /proc, the kernel refuses a fresh
/// one; `check` says what it is.
fn names_what_covers_proc() {
    let check = |cover: &str| {
        let script = format!("{cover} exec \"$0\" check");
        let output = std::process::Command::new("unshare")
            .args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_gosandbox")])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find(|line| line.contains("a tenant starts")).unwrap().to_owned()
    };
    assert!(check("").starts_with("ok "), "the control");
    let line = check("mount --bind /proc/sys /proc/sys &&");
    assert!(line.starts_with("missing "), "{line}");
    assert!(line.contains("ProtectKernelTunables=") && line.contains("here /proc/sys"), "{line}");
}
