//! What a tenant sees of itself and of the machine: the table of the design,
//! asked of a program inside, and where that could lie, from outside.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::{HOST_IDS, Output, Running, Sandbox, TempDir, root_or_skip, status_line, text};
use serde_json::Value;

fn whoami() -> Sandbox {
    Sandbox::example("whoami")
}

/// Every way of starting it: by whom, and in whose network.
fn everyone(test: impl Fn(&Sandbox, bool)) {
    for network in ["private", "host"] {
        let sandbox = whoami().option("--network", network);
        test(&sandbox.clone(), network == "host");
        test(&sandbox.unprivileged(), network == "host");
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|s| text(s).to_owned()).collect()
}

fn keys(object: &Value) -> BTreeSet<&str> {
    object
        .as_object()
        .unwrap_or_else(|| panic!("not an object: {object}"))
        .keys()
        .map(String::as_str)
        .collect()
}

fn set<'a>(list: &[&'a str]) -> BTreeSet<&'a str> {
    list.iter().copied().collect()
}

#[test]
fn there_is_exactly_one_uid_and_gid_and_no_group() {
    if !root_or_skip() {
        return;
    }
    everyone(|sandbox, _| {
        let me = sandbox.json();
        let id = sandbox.host_id().unwrap();
        if sandbox.user.is_none() {
            assert!(HOST_IDS.contains(&id), "{id}");
        }
        for map in ["uid_map", "gid_map"] {
            let fields: Vec<_> = text(&me[map]).split_whitespace().collect();
            assert_eq!(fields, ["1000", &id.to_string(), "1"]);
        }
        for name in ["uid", "euid", "gid", "egid"] {
            assert_eq!(me[name], 1000, "{name}");
        }
        for name in ["Uid", "Gid"] {
            assert_eq!(me["status"][name], "1000 1000 1000 1000");
        }
        assert_eq!(me["groups"], serde_json::json!([]));
        assert_eq!(me["status"]["Groups"], "");
        assert_eq!(text(&me["setgroups"]).trim(), "deny");
    });
}

#[test]
fn the_host_sees_one_id_of_the_tenants_own_or_the_callers() {
    if !root_or_skip() {
        return;
    }
    for unprivileged in [false, true] {
        let mut sandbox = Sandbox::example("hello").args(["sleep", "60s"]);
        if unprivileged {
            sandbox = sandbox.unprivileged();
        }
        let running = sandbox.start();
        // Init too: what it is left with is the tenant's id.
        for pid in [running.app(), running.init()] {
            let id = sandbox.host_id().unwrap();
            if !unprivileged {
                assert!(HOST_IDS.contains(&id), "{id}");
            }
            for name in ["Uid", "Gid"] {
                let ids = status_line(pid, name).unwrap();
                let ids: BTreeSet<_> = ids.split_whitespace().collect();
                assert_eq!(ids, set(&[&id.to_string()]));
            }
            assert_eq!(status_line(pid, "Groups").unwrap(), "");
        }
    }
}

#[test]
fn a_tenant_keeps_its_id_and_no_other_gets_it() {
    if !root_or_skip() {
        return;
    }
    let (first, second) = (Sandbox::example("hello"), Sandbox::example("hello"));
    let mut ids = Vec::new();
    for sandbox in [&first, &second, &first, &second] {
        assert_eq!(sandbox.run().code(), Some(0));
        ids.push(sandbox.host_id().unwrap());
    }
    assert_ne!(ids[0], ids[1]);
    assert_eq!(ids[..2], ids[2..]);
}

/// Then it cannot give the tenant an id of its own, and must not give it root's.
#[test]
fn root_that_lacks_a_capability_does_not_lend_its_own_id() {
    if !root_or_skip() || common::tool_or_skip("setpriv").is_none() {
        return;
    }
    for missing in ["chown", "sys_admin", "setuid", "setgid"] {
        let bounding = format!("--bounding-set=-{missing}");
        let sandbox = whoami().wrapped(["setpriv", &bounding, "--inh-caps=-all"]);
        let output = sandbox.run();
        if output.code() == Some(0) {
            let me: Value = serde_json::from_slice(&output.stdout).unwrap();
            let map = text(&me["uid_map"]);
            let id = map.split_whitespace().nth(1).and_then(|id| id.parse().ok()).unwrap();
            assert!(HOST_IDS.contains(&id), "without {missing} the tenant is uid {id}");
        } else {
            assert_eq!(output.code(), Some(125), "without {missing}: {output:?}");
        }
        sandbox.assert_nothing_left();
    }
}

/// As root of a user namespace of which every id is mapped, after `first`, with
/// `more` for unshare(1).
fn in_a_user_namespace(sandbox: &Sandbox, more: &[&str], first: &str) -> Output {
    let script = format!("read go; {first}; exec \"$@\"");
    let words = [&["unshare", "--user"], more, &["sh", "-c", &script, "sh"]].concat();
    let (stdin, mut go) = std::io::pipe().unwrap();
    let running = sandbox.clone().wrapped(words).stdin(stdin).start();
    let proc = format!("/proc/{}", running.pid());
    let namespace = |of: &str| std::fs::read_link(format!("{of}/ns/user")).unwrap();
    common::wait_for("its user namespace", || {
        (namespace(&proc) != namespace("/proc/self")).then_some(())
    });
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("{proc}/{map}"), "0 0 4294967294").unwrap();
    }
    go.write_all(b"go\n").unwrap();
    drop(go);
    running.wait()
}

/// Root of a container has every capability, but over what is the container's
/// only: not over hard limits, nor, here, over the network.
#[test]
fn root_of_a_user_namespace_starts_tenants_too() {
    if !root_or_skip() || common::tool_or_skip("unshare").is_none() {
        return;
    }
    for more in [&["--mount"][..], &["--mount", "--net"]] {
        let sandbox = whoami();
        let output = in_a_user_namespace(&sandbox, more, "ulimit -n 4096");
        assert_eq!(output.code(), Some(0), "{more:?}: {output:?}");
        let me: Value = serde_json::from_slice(&output.stdout).unwrap();
        let limit = &me["rlimits"]["nofile"];
        assert_eq!(limit["hard"], 4096, "{limit}");
        sandbox.assert_nothing_left();
    }
}

/// The sysctl is a user namespace's own, and counts for those below it.
#[test]
fn network_namespaces_that_are_switched_off_are_told_with_the_sysctl() {
    if !root_or_skip() || common::tool_or_skip("unshare").is_none() {
        return;
    }
    let sandbox = Sandbox::example("hello");
    // By a shell of its own: the first was executed before it was root.
    let first = "sh -c 'echo 0 >/proc/sys/user/max_net_namespaces'";
    let off = |sandbox: &Sandbox| in_a_user_namespace(sandbox, &["--mount"], first);
    let output = off(&sandbox);
    output.assert_refused(125, "new network: No space left on device (network namespaces are ");
    assert!(output.stderr().contains("user.max_net_namespaces"), "{output:?}");
    sandbox.assert_nothing_left();
    // The control.
    let output = off(&sandbox.option("--network", "host"));
    assert_eq!(output.code(), Some(0), "{output:?}");
}

/// capabilities(7), "The securebits flags", and their numbers in
/// include/uapi/linux/securebits.h: every flag but KEEP_CAPS is set, every lock
/// is.
fn locked_securebits() -> i64 {
    let (noroot, no_setuid_fixup, keep_caps, no_cap_ambient_raise) = (0, 2, 4, 6);
    let on_and_locked = |flag: u32| 1 << flag | 1 << (flag + 1);
    on_and_locked(noroot)
        | on_and_locked(no_setuid_fixup)
        | on_and_locked(no_cap_ambient_raise)
        | 1 << (keep_caps + 1)
}

#[test]
fn no_privilege_is_left_and_none_can_come_back() {
    if !root_or_skip() {
        return;
    }
    assert_eq!(locked_securebits(), 0b1110_1111);
    everyone(|sandbox, _| {
        let me = sandbox.json();
        let status = me["status"].as_object().unwrap();
        let capabilities: Vec<_> = status.keys().filter(|k| k.starts_with("Cap")).collect();
        assert_eq!(capabilities.len(), 5, "{capabilities:?}");
        for name in capabilities {
            assert_eq!(status[name], "0000000000000000", "{name}");
        }
        assert_eq!(me["securebits"], locked_securebits());
        assert_eq!(me["no_new_privs"], 1);
        assert_eq!(status["NoNewPrivs"], "1");
        assert_eq!(status["Seccomp"], "2");
        assert_eq!(status["TracerPid"], "0");
    });
}

#[test]
fn init_has_no_privilege_either() {
    if !root_or_skip() {
        return;
    }
    let mut running = Sandbox::example("hello").arg("ignore-term").start();
    running.line("ready");
    let init = running.init();
    // It locks itself as soon as the app runs.
    common::wait_for("init's own filter", || (status_line(init, "Seccomp")? == "2").then_some(()));
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status_line(init, name).unwrap(), "0000000000000000", "{name}");
    }
    assert_eq!(status_line(init, "NoNewPrivs").unwrap(), "1");
    // What it holds: the pipe to the supervisor.
    common::wait_for("init to hold one descriptor", || {
        let held = std::fs::read_dir(format!("/proc/{init}/fd")).ok()?;
        let held: Vec<_> = held.flatten().map(|e| e.file_name()).collect();
        (held == ["0"]).then_some(())
    });
}

#[test]
fn every_namespace_is_its_own() {
    if !root_or_skip() {
        return;
    }
    everyone(|sandbox, host_network| {
        let me = sandbox.json();
        for name in ["user", "pid", "mnt", "ipc", "uts", "cgroup", "net"] {
            let ours = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
            let same = text(&me["namespaces"][name]) == ours.to_str().unwrap();
            assert_eq!(same, name == "net" && host_network, "{name}");
        }
        let interfaces: Vec<_> = me["interfaces"].as_array().unwrap().iter().collect();
        if !host_network {
            assert_eq!(interfaces.len(), 1);
            assert_eq!(interfaces[0]["name"], "lo");
            assert!(text(&interfaces[0]["flags"]).contains("up"));
        }
    });
}

#[test]
fn pid_1_is_unseen_and_the_session_is_its_own() {
    if !root_or_skip() {
        return;
    }
    everyone(|sandbox, _| {
        let me = sandbox.json();
        let pid = me["pid"].as_i64().unwrap();
        assert!(pid >= 2, "{pid}");
        assert_eq!(me["ppid"], 1);
        assert_eq!(me["sid"], pid);
        assert_eq!(me["pgid"], pid);
        assert_eq!(me["pids"], serde_json::json!([pid]));
    });
}

/// What every tenant gets, listeners aside.
fn standard_environment(tenant: &str) -> BTreeMap<String, String> {
    let zone = std::fs::read_link("/etc/localtime").ok().and_then(|to| {
        let to = to.into_os_string().into_string().ok()?;
        Some(to.split_once("zoneinfo/")?.1.to_owned())
    });
    let cpus = std::thread::available_parallelism().unwrap().get();
    [
        ("PATH", "/app:/usr/local/bin:/usr/bin:/bin".to_owned()),
        ("HOME", "/tmp".to_owned()),
        ("TMPDIR", "/tmp".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TZ", zone.unwrap_or_else(|| "UTC".to_owned())),
        ("GOSANDBOX_TENANT", tenant.to_owned()),
        // A tenth of 512M is left.
        ("GOMEMLIMIT", "460MiB".to_owned()),
        ("GOMAXPROCS", cpus.min(2).to_string()),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into()
}

fn environment(me: &Value) -> BTreeMap<String, String> {
    let lines = strings(&me["env"]);
    let map: BTreeMap<_, _> = lines
        .iter()
        .map(|line| line.split_once('=').unwrap())
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    assert_eq!(map.len(), lines.len(), "something is there twice: {lines:?}");
    map
}

#[test]
fn the_environment_is_what_is_documented_and_nothing_else() {
    if !root_or_skip() {
        return;
    }
    everyone(|sandbox, _| {
        let sandbox = sandbox
            .clone()
            .env("SECRET", "of the supervisor")
            .env("NOTIFY_SOCKET", "/run/systemd/notify")
            .env("LD_PRELOAD", "")
            .env("GODEBUG", "");
        assert_eq!(environment(&sandbox.json()), standard_environment(&sandbox.tenant));
    });
}

#[test]
fn the_environment_has_what_was_asked_for() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let file = dir.file("env", "# a comment\n\nFILE=from the file\nPASSED=file\nSET=file\n");
    let sandbox = whoami()
        .option("--env-file", file)
        .option("--env-pass", "PASSED")
        .option("--env-pass", "ABSENT")
        .option("--env", "SET=flag=with=signs")
        .option("--env", "EMPTY=")
        .option("--env", "PATH=/elsewhere")
        .env("PASSED", "on")
        .env("SET", "not passed");
    let mut expected = standard_environment(&sandbox.tenant);
    for (name, value) in [
        ("FILE", "from the file"),
        ("PASSED", "on"),
        ("SET", "flag=with=signs"),
        ("EMPTY", ""),
        ("PATH", "/elsewhere"),
    ] {
        expected.insert(name.to_owned(), value.to_owned());
    }
    assert_eq!(environment(&sandbox.json()), expected);
}

#[test]
fn variables_of_gosandboxs_own_are_refused() {
    if !root_or_skip() {
        return;
    }
    for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "GOSANDBOX_TENANT"]
    {
        whoami()
            .option("--env", format!("{name}=1"))
            .run()
            .assert_refused(125, &format!("exec: environment {name}: set by gosandbox"));
        whoami()
            .option("--env-pass", name)
            .env(name, "1")
            .run()
            .assert_refused(125, &format!("exec: environment {name}: set by gosandbox"));
    }
}

#[test]
fn a_bad_line_of_an_env_file_is_named_and_not_quoted() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let file = dir.file("env", "A=1\nhunter2\n");
    let output = whoami().option("--env-file", &file).run();
    assert_eq!(output.code(), Some(125));
    let said = output.stderr();
    assert!(said.contains(&format!("{}:2: not NAME=VALUE", file.display())), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

/// The descriptors of a tenant, without what its runtime opened for itself.
fn descriptors(me: &Value) -> BTreeSet<&str> {
    let all = me["fds"].as_object().unwrap();
    all.iter()
        .filter(|(_, about)| about["cloexec"] == false)
        .map(|(number, _)| number.as_str())
        .collect()
}

#[test]
fn the_descriptors_are_stdio_and_the_listeners() {
    if !root_or_skip() {
        return;
    }
    let leak = || std::fs::File::open("/etc/passwd").unwrap();
    everyone(|sandbox, _| {
        let sandbox = sandbox
            .clone()
            .descriptor(leak(), 7)
            .descriptor(leak(), 50)
            .descriptor(std::fs::File::open("/").unwrap(), 9);
        assert_eq!(descriptors(&sandbox.json()), set(&["0", "1", "2"]));
        let me = sandbox
            .clone()
            .option("--listen", "0")
            .option("--listen", "second=tcp:127.0.0.1:0")
            .json();
        assert_eq!(descriptors(&me), set(&["0", "1", "2", "3", "4"]));
        for number in ["3", "4"] {
            let target = text(&me["fds"][number]["target"]);
            assert!(target.starts_with("socket:"), "{number}: {target}");
        }
        let environment = environment(&me);
        let value = |name: &str| environment.get(name).map(String::as_str);
        assert_eq!(value("LISTEN_FDS"), Some("2"));
        assert_eq!(value("LISTEN_FDNAMES"), Some("unknown:second"));
        assert_eq!(value("LISTEN_PID"), Some(me["pid"].to_string().as_str()));
    });
}

/// Else the first file that the supervisor opens would be the tenant's stdin, and
/// what it says on stderr would be written into the next.
#[test]
fn what_is_closed_of_stdio_is_dev_null() {
    if !root_or_skip() {
        return;
    }
    let sandbox = Sandbox::example("hello").args(["sleep", "60s"]);
    let sandbox = sandbox.wrapped(["sh", "-c", "exec \"$@\" <&- 2>&-", "sh"]);
    for sandbox in [sandbox.clone(), sandbox.unprivileged()] {
        let running = sandbox.start();
        running.app();
        for number in [0, 2] {
            let opened = std::fs::read_link(format!("/proc/{}/fd/{number}", running.pid()));
            assert_eq!(opened.unwrap(), Path::new("/dev/null"), "{number}");
        }
    }
}

#[test]
fn a_stdin_that_leads_to_the_hosts_files_is_refused() {
    if !root_or_skip() {
        return;
    }
    let dir = || std::fs::File::open("/").unwrap();
    let path = || {
        std::os::unix::fs::OpenOptionsExt::custom_flags(
            std::fs::OpenOptions::new().read(true),
            libc::O_PATH,
        )
        .open("/etc/passwd")
        .unwrap()
    };
    let hello = || Sandbox::example("hello").args(["cat", "/proc/self/fd/0/etc/passwd"]);
    for sandbox in
        [hello().stdin(dir()), hello().stdin(path()), hello().unprivileged().stdin(dir())]
    {
        let output = sandbox.run();
        output.assert_refused(125, "descriptors: stdin is ");
        sandbox.assert_nothing_left();
    }
}

#[test]
fn stdout_and_stderr_are_pipes_whatever_gosandbox_has() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let file = dir.path().join("log");
    for sandbox in [whoami(), whoami().unprivileged()] {
        let log = std::fs::File::create(&file).unwrap();
        let sandbox = sandbox.stdout(log.try_clone().unwrap()).stderr(log);
        assert_eq!(sandbox.run().code(), Some(0));
        let text = std::fs::read_to_string(&file).unwrap();
        let json = &text[text.find('{').unwrap()..];
        let me: Value = serde_json::from_str(json).unwrap();
        for number in ["1", "2"] {
            let target = common::text(&me["fds"][number]["target"]);
            assert!(target.starts_with("pipe:"), "{number}: {target}");
        }
    }
}

/// What of the system is shown, if the host has it.
const DATA: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/usr/share/zoneinfo",
];
const NETWORK_DATA: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

fn shown(host_network: bool) -> Vec<&'static str> {
    let network: &[&str] = if host_network { &NETWORK_DATA } else { &[] };
    DATA.iter().chain(network).copied().filter(|path| Path::new(path).exists()).collect()
}

const MASKED_DIRECTORIES: [&str; 6] = ["acpi", "asound", "bus", "driver", "irq", "scsi"];
const MASKED_FILES: [&str; 13] = [
    "cmdline",
    "diskstats",
    "interrupts",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "latency_stats",
    "modules",
    "partitions",
    "sched_debug",
    "sysrq-trigger",
    "timer_list",
];

/// Mount point → options, of those that protect.
fn mounts(me: &Value) -> BTreeMap<String, String> {
    let protecting = ["ro", "rw", "nosuid", "nodev", "noexec"];
    let list = me["mounts"].as_array().unwrap();
    let map: BTreeMap<String, String> = list
        .iter()
        .map(|mount| {
            assert_eq!(mount["propagation"], "", "{mount}");
            let options: Vec<_> =
                text(&mount["options"]).split(',').filter(|o| protecting.contains(o)).collect();
            (text(&mount["point"]).to_owned(), options.join(","))
        })
        .collect();
    assert_eq!(map.len(), list.len(), "something is mounted twice: {list:?}");
    map
}

fn expected_mounts(host_network: bool) -> BTreeMap<String, String> {
    const NOTHING_RUNS: &str = "ro,nosuid,nodev,noexec";
    const SCRATCH: &str = "rw,nosuid,nodev,noexec";
    const DEVICE: &str = "ro,nosuid,noexec";
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let mut add = |point: &str, options: &str| {
        all.insert(point.to_owned(), options.to_owned());
    };
    add("/", NOTHING_RUNS);
    add("/proc", NOTHING_RUNS);
    add("/tmp", SCRATCH);
    add("/dev/shm", SCRATCH);
    add("/app/whoami", "ro,nosuid,nodev");
    for name in ["null", "zero", "full", "random", "urandom"] {
        add(&format!("/dev/{name}"), DEVICE);
    }
    for path in shown(host_network) {
        add(path, NOTHING_RUNS);
    }
    for name in MASKED_DIRECTORIES.iter().chain(&MASKED_FILES) {
        let path = format!("/proc/{name}");
        // A kernel that has no such entry has nothing to hide.
        if Path::new(&path).exists() {
            add(&path, NOTHING_RUNS);
        }
    }
    all
}

#[test]
fn the_mounts_are_those_of_the_design_with_their_options() {
    if !root_or_skip() {
        return;
    }
    everyone(|sandbox, host_network| {
        let me = sandbox.json();
        assert_eq!(mounts(&me), expected_mounts(host_network));
        for mount in me["mounts"].as_array().unwrap() {
            let options = text(&mount["super_options"]);
            match text(&mount["point"]) {
                "/tmp" => assert!(options.contains("size=65536k"), "{options}"),
                "/dev/shm" => assert!(options.contains("size=16384k"), "{options}"),
                "/proc" => assert!(options.contains("hidepid=invisible"), "{options}"),
                "/" => assert_eq!(mount["fstype"], "tmpfs"),
                _ => {}
            }
        }
    });
}

#[test]
fn the_root_holds_what_is_listed_and_nothing_else() {
    if !root_or_skip() {
        return;
    }
    everyone(|sandbox, host_network| {
        let me = sandbox.json();
        let data = shown(host_network);
        let first = |below: &str| -> BTreeSet<String> {
            data.iter()
                .filter_map(|path| path.strip_prefix(below))
                .map(|rest| rest.split('/').next().unwrap().to_owned())
                .collect()
        };
        let with = |known: &[&str], more: BTreeSet<String>| -> BTreeSet<String> {
            known.iter().map(|s| (*s).to_owned()).chain(more).collect()
        };
        let listed = |object: &Value| -> BTreeSet<String> {
            keys(object).into_iter().map(str::to_owned).collect()
        };
        let root = &me["root"];
        assert_eq!(listed(root), with(&["app", "dev", "etc", "proc", "tmp"], first("/")));
        let mut etc = vec!["group", "hosts", "nsswitch.conf", "passwd", "resolv.conf"];
        if environment(&me)["TZ"] != "UTC" {
            etc.push("localtime");
        }
        assert_eq!(listed(&root["etc"]["entries"]), with(&etc, first("/etc/")));
        let dev = set(&[
            "fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero",
        ]);
        assert_eq!(keys(&root["dev"]["entries"]), dev);
        assert_eq!(keys(&root["app"]["entries"]), set(&["whoami"]));
        assert_eq!(keys(&root["tmp"]["entries"]), set(&[]));
        for (name, device) in [
            ("null", "1:3"),
            ("zero", "1:5"),
            ("full", "1:7"),
            ("random", "1:8"),
            ("urandom", "1:9"),
        ] {
            assert_eq!(root["dev"]["entries"][name]["device"], device);
        }
    });
}

#[test]
fn etc_says_who_the_tenant_is_and_nothing_of_the_host() {
    if !root_or_skip() {
        return;
    }
    everyone(|sandbox, host_network| {
        let me = sandbox.json();
        let (etc, tenant) = (&me["etc"], &sandbox.tenant);
        assert_eq!(etc["passwd"], format!("app:x:1000:1000:{tenant}:/tmp:/nonexistent\n"));
        assert_eq!(etc["group"], "app:x:1000:\n");
        assert_eq!(etc["nsswitch.conf"], "passwd: files\ngroup: files\nhosts: files dns\n");
        if host_network {
            for (name, path) in [("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")] {
                if let Ok(host) = std::fs::read_to_string(path) {
                    assert_eq!(text(&etc[name]), host);
                }
            }
        } else {
            let resolv = text(&etc["resolv.conf"]);
            assert!(resolv.lines().all(|line| line.starts_with('#')), "{resolv}");
            let hosts = text(&etc["hosts"]);
            assert!(hosts.starts_with(&format!("127.0.0.1 localhost {tenant}\n")), "{hosts}");
            assert!(hosts.contains("\n::1 localhost"), "{hosts}");
        }
    });
}

fn hard_limit_of_open_files() -> u64 {
    let (_, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    hard
}

/// Whether root here may raise limits: bit 24 of CapEff, CAP_SYS_RESOURCE.
fn may_raise_limits() -> bool {
    let effective = status_line(i32::try_from(std::process::id()).unwrap(), "CapEff").unwrap();
    u64::from_str_radix(&effective, 16).unwrap() >> 24 & 1 == 1
}

#[test]
fn limits_umask_and_oom_score_are_set() {
    if !root_or_skip() {
        return;
    }
    everyone(|sandbox, _| {
        let me = sandbox.json();
        let open_files = if sandbox.user.is_none() && may_raise_limits() {
            65536
        } else {
            hard_limit_of_open_files().min(65536)
        };
        for (name, value) in [
            ("nofile", open_files),
            // Not 0: a pipe in core_pattern ignores that.
            ("core", 1),
            ("memlock", 65536),
            ("msgqueue", 0),
            ("nice", 0),
            ("rtprio", 0),
        ] {
            assert_eq!(me["rlimits"][name]["soft"], value, "{name}");
            assert_eq!(me["rlimits"][name]["hard"], value, "{name}");
        }
        // Go reserves address space as it likes.
        assert_eq!(me["rlimits"]["as"]["soft"], "unlimited");
        assert_eq!(me["umask"], "0077");
        assert_eq!(me["status"]["Umask"], "0077");
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let own: i32 = own.trim().parse().unwrap();
        assert_eq!(text(&me["oom_score_adj"]).trim(), own.max(0).to_string());
    });
}

/// gosandbox started with this oom_score_adj.
fn with_oom_score(score: i32) -> Sandbox {
    let script = format!(r#"echo {score} > /proc/self/oom_score_adj && exec "$@""#);
    whoami().wrapped(["/bin/sh", "-c", &script, "sh"])
}

#[test]
fn a_tenant_is_never_less_likely_to_be_killed_than_its_supervisor() {
    if !root_or_skip() {
        return;
    }
    assert_eq!(text(&with_oom_score(300).json()["oom_score_adj"]), "300\n");
    if may_raise_limits() {
        assert_eq!(text(&with_oom_score(-300).json()["oom_score_adj"]), "0\n");
    } else {
        common::tested_in_vm(
            "no CAP_SYS_RESOURCE here, so no supervisor can be protected",
            "delegation.sh",
            "a_protected_supervisor_has_an_unprotected_tenant",
        );
    }
}

#[test]
fn the_executable_is_found_inside_and_the_host_name_is_the_tenants() {
    if !root_or_skip() {
        return;
    }
    everyone(|sandbox, _| {
        let me = sandbox.json();
        assert_eq!(me["exe"], "/app/whoami");
        assert_eq!(strings(&me["args"]), ["/app/whoami"]);
        assert_eq!(me["hostname"], sandbox.tenant.as_str());
        assert_eq!(me["cwd"], "/");
        assert_eq!(me["gomaxprocs"], std::thread::available_parallelism().unwrap().get().min(2));
        assert_eq!(me["gomemlimit"], 460 << 20);
    });
}

#[test]
fn what_follows_the_binary_is_the_tenants_untouched() {
    if !root_or_skip() {
        return;
    }
    let args = ["--memory", "5", "", "--", "--tenant", "-x", "a b\n\u{1b}"];
    let me = whoami().args(args).json();
    assert_eq!(strings(&me["args"])[1..], args);
    // 512M as by default: the flag was not for gosandbox.
    assert_eq!(me["gomemlimit"], 460 << 20);

    // Bytes that are no UTF-8, which JSON could not show.
    let (sandbox, id) = Sandbox::known("hello");
    let dir = TempDir::new();
    let data = dir.dir("data", id);
    let bytes = vec![0xff, b'a', 0xfe, 0xc3];
    let output = sandbox
        .option("--bind", format!("{}:/data", data.display()))
        .args(["write", "/data/file"])
        .arg(OsString::from_vec(bytes.clone()))
        .run();
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert_eq!(std::fs::read(data.join("file")).unwrap(), bytes);
}

#[test]
fn the_working_directory_is_one_inside() {
    if !root_or_skip() {
        return;
    }
    assert_eq!(whoami().option("--workdir", "/tmp").json()["cwd"], "/tmp");
    whoami()
        .option("--workdir", "/nowhere")
        .run()
        .assert_refused(125, "working directory: /nowhere: No such file or directory (");
    whoami()
        .option("--workdir", "tmp")
        .run()
        .assert_refused(125, "working directory: tmp: not an absolute path (");
    let sandbox = whoami().option("--workdir", "/nowhere").unprivileged();
    sandbox.run().assert_refused(125, "working directory: /nowhere: No such file or directory (");
    sandbox.assert_nothing_left();
}

fn bind(source: &Path, target: &str) -> String {
    format!("{}:{target}", source.display())
}

#[test]
fn a_read_only_bind_can_be_read_and_not_written() {
    if !root_or_skip() {
        return;
    }
    for unprivileged in [false, true] {
        let dir = TempDir::new();
        let source = dir.dir("static", 0);
        let file = source.join("file");
        std::fs::write(&file, "content").unwrap();
        // Even where the mode would let it.
        for path in [&source, &file] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        }
        let with = |sandbox: Sandbox| {
            let sandbox = sandbox.option("--bind-ro", bind(&source, "/static"));
            if unprivileged { sandbox.unprivileged() } else { sandbox }
        };
        let output = with(Sandbox::example("hello").args(["cat", "/static/file"])).run();
        assert_eq!(output.stdout(), "content", "{output:?}");
        for target in ["/static/new", "/static/file"] {
            let output = with(Sandbox::example("hello").args(["write", target, "x"])).run();
            assert_eq!(output.code(), Some(1), "{output:?}");
            assert!(output.stderr().contains("read-only"), "{output:?}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "content");
        assert_eq!(mounts(&with(whoami()).json())["/static"], "ro,nosuid,nodev");
    }
}

#[test]
fn a_writable_bind_can_be_written_and_not_executed() {
    if !root_or_skip() {
        return;
    }
    for unprivileged in [false, true] {
        let (hello, id) = Sandbox::known("hello");
        let (hello, id) = if unprivileged {
            let hello = hello.unprivileged();
            let id = hello.host_id().unwrap();
            (hello, id)
        } else {
            (hello, id)
        };
        let dir = TempDir::new();
        let data = dir.dir("data", id);
        let hello = hello.option("--bind", bind(&data, "/srv/data"));
        let output = hello.args(["write", "/srv/data/file", "written"]).run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        let file = data.join("file");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "written");
        let about = file.metadata().unwrap();
        assert_eq!((about.uid(), about.gid()), (id, id));
        assert_eq!(about.mode() & 0o777, 0o600, "umask 077");
    }
    // Options, and that a file can be bound as well as a directory.
    let dir = TempDir::new();
    let file = dir.file("file", "");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    let me = whoami().option("--bind", bind(&file, "/srv/file")).json();
    assert_eq!(mounts(&me)["/srv/file"], "rw,nosuid,nodev,noexec");
}

#[test]
fn a_writable_bind_that_the_tenant_could_not_write_is_refused() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let data = dir.dir("data", 0);
    for sandbox in [whoami(), whoami().unprivileged()] {
        let output = sandbox.clone().option("--bind", bind(&data, "/data")).run();
        output.assert_refused(
            125,
            &format!(
                "bind mount: {}:/data: Permission denied (owned by uid 0; the tenant is ",
                data.display()
            ),
        );
        // The remedy has to be true.
        let said = output.stderr();
        let id = sandbox.host_id().unwrap();
        assert!(said.contains(&format!("chown {id}:{id} {}", data.display())), "{said}");
        std::os::unix::fs::chown(&data, Some(id), Some(id)).unwrap();
        let output = sandbox.option("--bind", bind(&data, "/data")).run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        std::os::unix::fs::chown(&data, Some(0), Some(0)).unwrap();
    }
}

#[test]
fn a_bind_through_a_symbolic_link_is_refused() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let real = dir.dir("real", 0);
    std::fs::create_dir(real.join("below")).unwrap();
    let link = dir.path().join("link");
    symlink(&real, &link).unwrap();
    for source in [link.clone(), link.join("below")] {
        for flag in ["--bind-ro", "--bind"] {
            whoami().option(flag, bind(&source, "/data")).run().assert_refused(
                125,
                &format!(
                    "bind mount: {}:/data: the source goes through a symbolic link (write {})",
                    source.display(),
                    source.canonicalize().unwrap().display()
                ),
            );
        }
    }
}

#[test]
fn binds_of_nothing_and_over_the_sandboxs_own_are_refused() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let source = dir.dir("source", 0);
    whoami().option("--bind-ro", bind(&dir.path().join("none"), "/data")).run().assert_refused(
        125,
        &format!("bind mount: {}/none:/data: no such file", dir.path().display()),
    );
    for target in
        ["/", "/proc", "/proc/sys", "/dev", "/dev/null", "/app", "/app/whoami", "/etc", "/tmp"]
    {
        let output = whoami().option("--bind-ro", bind(&source, target)).run();
        output.assert_refused(125, &format!("bind mount: {}:{target}: ", source.display()));
    }
    let output = whoami()
        .option("--bind-ro", bind(&source, "/data"))
        .option("--bind", bind(&source, "/data"))
        .run();
    assert_eq!(output.code(), Some(125), "{output:?}");
}

/// A tenant with a directory of its own, seen at /data, and one of the
/// operator's that is to be seen in it.
struct Nested {
    dir: TempDir,
    outer: PathBuf,
    inner: PathBuf,
    sandbox: Sandbox,
}

impl Nested {
    fn new(binary: &str, target: &str, unprivileged: bool) -> Self {
        let (sandbox, id) = Sandbox::known(binary);
        let (sandbox, id) = if unprivileged {
            let sandbox = sandbox.unprivileged();
            let id = sandbox.host_id().unwrap();
            (sandbox, id)
        } else {
            (sandbox, id)
        };
        let dir = TempDir::new();
        let outer = dir.dir("outer", id);
        let inner = dir.dir("inner", 0);
        std::fs::write(inner.join("file"), "of the operator").unwrap();
        let sandbox = sandbox
            .option("--bind", bind(&outer, "/data"))
            .option("--bind-ro", bind(&inner, target));
        Self { dir, outer, inner, sandbox }
    }
}

#[test]
fn a_bind_may_lie_in_another() {
    if !root_or_skip() {
        return;
    }
    for unprivileged in [false, true] {
        let nested = Nested::new("hello", "/data/in/deep", unprivileged);
        std::fs::create_dir_all(nested.outer.join("in/deep")).unwrap();
        let output = nested.sandbox.args(["cat", "/data/in/deep/file"]).run();
        assert_eq!(output.stdout(), "of the operator", "{output:?}");
        assert!(nested.inner.join("file").exists() && nested.dir.path().exists());
    }
}

#[test]
fn a_link_that_the_tenant_planted_under_a_nested_bind_is_not_followed() {
    if !root_or_skip() {
        return;
    }
    for unprivileged in [false, true] {
        // Into the sandbox, out of it, over the binary, in the middle of the path.
        for (target, link, to) in [
            ("/data/in", "in", "/etc"),
            ("/data/in", "in", "../etc"),
            ("/data/in", "in", "../../../../../../etc"),
            ("/data/in", "in", "."),
            ("/data/in/proc", "in", ".."),
            ("/data/in/proc", "in", "/"),
        ] {
            let nested = Nested::new("whoami", target, unprivileged);
            symlink(to, nested.outer.join(link)).unwrap();
            let output = nested.sandbox.run();
            output.assert_refused(125, &format!("bind mount: {}: ", nested.inner.display()));
            nested.sandbox.assert_nothing_left();
        }
        let nested = Nested::new("whoami", "/data/in", unprivileged);
        nested
            .sandbox
            .run()
            .assert_refused(125, &format!("bind mount: {}: No such file", nested.inner.display()));
    }
}

#[test]
fn mounts_made_inside_and_on_the_host_do_not_reach_each_other() {
    if !root_or_skip() {
        return;
    }
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut running: Running = Sandbox::example("hello").arg("ignore-term").start();
    running.line("ready");
    let app = running.app();
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    let inside = std::fs::read_to_string(format!("/proc/{app}/mountinfo")).unwrap();
    for line in inside.lines() {
        assert!(
            !["shared:", "master:", "propagate_from:"].iter().any(|tag| line.contains(tag)),
            "{line}"
        );
    }
}
