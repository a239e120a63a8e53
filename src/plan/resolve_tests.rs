//! The pure function on machines made up for it, and golden plans.

use std::collections::BTreeMap;

use super::*;
use crate::plan::{
    Access, CgroupFacts, CgroupPlan, Grant, IdFact, InheritedFact, LandlockFact, Library, MountOp,
    PathFact, PathKind, Step,
};
use crate::policy::{self, Layer, PolicyFile, Source};
use crate::value::HostUid;

/// A server as systemd runs it: root, a delegated cgroup, every controller.
fn host() -> HostFacts {
    let file = |path: &str, kind| {
        let fact =
            PathFact { kind, real: path.into(), uid: HostUid(0), gid: HostGid(0), mode: 0o755 };
        (PathBuf::from(path), fact)
    };
    let all = || ["cpu", "memory", "pids"].map(str::to_owned).to_vec();
    HostFacts {
        kernel: (6, 1),
        uid: HostUid(0),
        gid: HostGid(0),
        privileged: true,
        may_raise_limits: true,
        host_id: Some(IdFact { id: HostUid(1_879_048_200), recorded: true }),
        cpus: 8,
        open_files_hard: 524_288,
        cgroup: Some(CgroupFacts {
            mount: "/sys/fs/cgroup".into(),
            own: "/gosandbox.slice/gosandbox@acme.service".into(),
            own_delegated: true,
            parent_delegated: false,
            own_writable: true,
            is_root: true,
            root_controllers: all(),
            own_controllers: all(),
            parent_controllers: all(),
        }),
        landlock: LandlockFact::Version(7),
        systemd: true,
        can_scope: true,
        paths: BTreeMap::from([
            file("/etc/ssl/certs/ca-certificates.crt", PathKind::File),
            file("/usr/share/zoneinfo", PathKind::Directory),
        ]),
        timezone: Some("Europe/Berlin".into()),
        resolvers: Vec::new(),
        stdin: StdinFact::Ordinary,
        inherited: Vec::new(),
        environment: BTreeMap::new(),
        go_sums: BTreeMap::new(),
        env_file: BTreeMap::new(),
        oom_score_adj: 0,
    }
}

/// A laptop: no root, no delegation, no systemd.
fn laptop() -> HostFacts {
    let mut host = host();
    host.uid = HostUid(1001);
    host.gid = HostGid(1001);
    host.privileged = false;
    host.may_raise_limits = false;
    host.open_files_hard = 4096;
    host.host_id = None;
    host.systemd = false;
    host.can_scope = false;
    let cgroup = host.cgroup.as_mut().unwrap();
    cgroup.own_delegated = false;
    cgroup.own_writable = false;
    host
}

fn binary() -> BinaryFacts {
    BinaryFacts {
        path: "/srv/acme/app".into(),
        size: 5 << 20,
        sha256: None,
        linkage: crate::golang::Linkage::default(),
        libraries: Ok(Vec::new()),
        writable_code: false,
        go: Err(crate::golang::NoBuildInfo::NotGo),
    }
}

fn request(toml: &str) -> Request {
    let file: PolicyFile = toml::from_str(toml).unwrap();
    let base = file.extends.clone();
    let layer = Layer { source: Source::Flags, file };
    Request {
        tenant: "acme".parse().unwrap(),
        policy: policy::load(base.as_deref(), None, vec![layer], true).unwrap(),
        args: vec!["-v".into()],
        scoped: false,
        learns: false,
    }
}

fn plan(toml: &str, host: &HostFacts) -> Result<Plan, PlanError> {
    resolve(&request(toml), host, &binary())
}

fn error(toml: &str, host: &HostFacts) -> String {
    plan(toml, host).unwrap_err().to_string()
}

/// The plans that reviewers read as diffs. `GOSANDBOX_UPDATE=1` writes them
/// anew; the difference has to be meant.
#[test]
fn golden_plans() {
    let listen = "[network]\nlisten = [8080]";
    let loose = "[require]\ncgroup = \"best-effort\"";
    for (name, toml, host) in [
        ("web", listen.to_owned(), host()),
        ("web-unprivileged", format!("{listen}\n{loose}"), laptop()),
        ("web-host-network", "[network]\nmode = \"host\"".to_owned(), host()),
        ("job", "extends = \"job\"".to_owned(), host()),
        ("strict", format!("extends = \"strict\"\n{listen}"), host()),
    ] {
        let text = plan(&toml, &host).unwrap().text();
        let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("GOSANDBOX_UPDATE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, golden, "{name}: `make golden` and look at the difference");
    }
}

#[test]
fn every_shipped_policy_has_a_golden_plan() {
    for (name, _) in policy::shipped() {
        let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        assert!(std::path::Path::new(&path).exists(), "{path}");
    }
}

/// Steps are printed in the order of the enum, each once, and none is left out
/// without a reason.
#[test]
fn the_plan_shows_every_step() {
    let planned = plan("[network]\nlisten = [8080]", &host()).unwrap().steps();
    let labels: Vec<_> = planned.iter().map(|s| s.step).collect();
    // For the unprivileged alone, and for a network that is not private.
    let absent = [Step::Trees, Step::Network];
    let expected: Vec<_> =
        Step::ALL.iter().filter(|s| !absent.contains(s)).map(|s| s.label()).collect();
    assert_eq!(labels, expected);
    let named = plan("[network]\nmode = \"ns:/run/netns/acme\"", &host()).unwrap();
    assert!(named.steps().iter().any(|s| s.step == Step::Network.label()));
    let quiet = "[network]\nmode = \"host\"\n[syscalls]\non_deny = \"errno\"";
    assert_eq!(plan(quiet, &host()).unwrap().broker, None);
    assert!(!named.broker.unwrap().first, "only what is refused is asked");
    let unprivileged = plan("[require]\ncgroup = \"best-effort\"", &laptop()).unwrap().steps();
    assert!(unprivileged.iter().any(|s| s.step == Step::Trees.label()));
}

#[test]
fn limits_that_cannot_be_had_stop_the_start() {
    let mut hybrid = host();
    hybrid.systemd = false;
    hybrid.can_scope = false;
    let cgroup = hybrid.cgroup.as_mut().unwrap();
    cgroup.own_delegated = false;
    cgroup.root_controllers = vec!["pids".into()];
    let text = error("", &hybrid);
    assert!(
        text.starts_with("cgroup: /sys/fs/cgroup/gosandbox: no memory, cpu controller"),
        "{text}"
    );
    assert!(text.contains("best-effort"), "{text}");
    let loose = plan("[require]\ncgroup = \"best-effort\"", &hybrid).unwrap();
    assert_eq!(loose.missing.len(), 1);
    let CgroupPlan::Made(spec) = loose.cgroup else { panic!() };
    assert_eq!(spec.controllers, ["pids"]);
    assert_eq!((spec.limits.memory_max, spec.limits.pids_max), (None, Some(512)));

    let text = error("", &laptop());
    assert!(text.contains("not delegated to uid 1001") && text.contains("Delegate=yes"), "{text}");
    let mut none = host();
    none.cgroup = None;
    assert!(error("", &none).contains("cgroup v2 is not mounted"));
}

#[test]
fn where_the_cgroup_goes() {
    let spec = |host: &HostFacts| match plan("", host).unwrap().cgroup {
        CgroupPlan::Made(spec) => *spec,
        other => panic!("{other:?}"),
    };
    // In a unit with Delegate=yes we sit in what is ours, and have to leave it.
    let unit = spec(&host());
    assert_eq!(unit.tenant, PathBuf::from("gosandbox.slice/gosandbox@acme.service/acme"));
    assert_eq!(unit.move_self, Some("gosandbox.slice/gosandbox@acme.service/_supervisor".into()));
    // With DelegateSubgroup= systemd has moved us already.
    let mut subgroup = host();
    let cgroup = subgroup.cgroup.as_mut().unwrap();
    cgroup.own = "/gosandbox.slice/gosandbox@acme.service/supervisor".into();
    cgroup.own_delegated = false;
    cgroup.parent_delegated = true;
    let subgroup = spec(&subgroup);
    assert_eq!((subgroup.tenant, subgroup.move_self), (unit.tenant, None));
    // From a shell under systemd: only through a scope.
    let mut shell = host();
    shell.cgroup.as_mut().unwrap().own_delegated = false;
    // A service without Delegate=yes is told so, and not left behind.
    assert!(error("", &shell).contains("add Delegate=yes"));
    shell.cgroup.as_mut().unwrap().own = "/user.slice/user-0.slice/session-1.scope".into();
    assert_eq!(plan("", &shell).unwrap().cgroup, CgroupPlan::NeedsScope);
    let scoped = Request { scoped: true, ..request("") };
    shell.cgroup.as_mut().unwrap().own_writable = false;
    assert!(resolve(&scoped, &shell, &binary()).is_err(), "no second scope");
    // systemd 252 marks no scope of a user as delegated.
    let mut user = laptop();
    (user.systemd, user.can_scope) = (true, true);
    let cgroup = user.cgroup.as_mut().unwrap();
    cgroup.own = "/user.slice/user-7.slice/user@7.service/a.scope".into();
    cgroup.own_writable = true;
    assert_eq!(plan("", &user).unwrap().cgroup, CgroupPlan::NeedsScope);
    let scoped_user = resolve(&scoped, &user, &binary()).unwrap().cgroup;
    assert!(matches!(scoped_user, CgroupPlan::Made(spec) if spec.tenant.ends_with("a.scope/acme")));
    // Plain root without systemd rules the hierarchy itself.
    shell.systemd = false;
    shell.can_scope = false;
    let root = spec(&shell);
    assert_eq!(root.tenant, PathBuf::from("gosandbox/acme"));
    assert_eq!(root.enable, [PathBuf::new(), PathBuf::from("gosandbox")]);
}

#[test]
fn binds_that_would_open_or_break_the_sandbox_are_refused() {
    let mut host = host();
    let mut add = |path: &str, real: &str, uid, mode| {
        let fact = PathFact {
            kind: PathKind::Directory,
            real: real.into(),
            uid: HostUid(uid),
            gid: HostGid(0),
            mode,
        };
        host.paths.insert(path.into(), fact);
    };
    add("/srv/data", "/srv/data", 1_879_048_200, 0o700);
    add("/srv", "/srv", 0, 0o755);
    add("/srv/data/lib", "/srv/data/lib", 0, 0o755);
    add("/srv/theirs", "/srv/theirs", 1001, 0o755);
    add("/srv/link", "/etc", 0, 0o755);
    let ro = |bind: &str| format!("[filesystem]\nread_only = [\"{bind}\"]");
    let rw = |bind: &str| format!("[filesystem]\nread_write = [\"{bind}\"]");
    for (toml, why) in [
        (ro("/srv/data:/"), "cannot be bound over"),
        (ro("/srv/data:/proc/sys"), "cannot be bound over"),
        (ro("/srv/data:/dev/null"), "cannot be bound over"),
        (ro("/srv/data:/app"), "cannot be bound over"),
        (ro("/srv/data:/etc"), "fills /etc and /tmp itself"),
        (ro("/srv/none:/data"), "no such file"),
        (ro("/srv/link:/data"), "symbolic link (write /etc)"),
        (rw("/srv/theirs:/data"), "chown 1879048200:1879048200 /srv/theirs"),
        (ro("/srv/data:/x") + "\nread_write = [\"/srv/data:/x\"]", "two binds"),
    ] {
        let text = error(&toml, &host);
        assert!(text.starts_with("bind mount: ") && text.contains(why), "{toml}: {text}");
    }
    // One file writable at one place and executable at another.
    let two = |ro: &str, rw: &str| {
        format!("[filesystem]\nread_only = [\"{ro}\"]\nread_write = [\"{rw}\"]")
    };
    let deny = "\n[process]\nwrite_execute = \"deny\"";
    for (ro, rw, apart) in [
        ("/srv:/srv", "/srv/data:/data", true),
        ("/srv/data:/a", "/srv/data:/b", true),
        ("/srv/data/lib:/lib", "/srv/data:/data", true),
        ("/srv:/srv", "/srv/data:/srv/data", false),
        ("/srv/data/lib:/data/lib", "/srv/data:/data", false),
        ("/srv/theirs:/www", "/srv/data:/www/data", false),
    ] {
        plan(&two(ro, rw), &host).unwrap();
        let found = plan(&(two(ro, rw) + deny), &host);
        assert_eq!(found.is_err(), apart, "{ro} {rw}");
        if let Err(error) = found {
            assert!(error.to_string().contains("could be executed here"), "{error}");
        }
    }
    let plan = plan(
        "[filesystem]\nread_only = [\"/srv/theirs:/www\"]\nread_write = [\"/srv/data:/www/data\"]",
        &host,
    )
    .unwrap();
    let binds: Vec<_> = plan
        .rootfs
        .iter()
        .filter_map(|op| match op {
            MountOp::Bind { target, access, nested, .. } => {
                Some((target.to_str()?, *access, *nested))
            }
            _ => None,
        })
        .filter(|(target, ..)| target.starts_with("/www"))
        .collect();
    // The outer one first, or it would cover the inner.
    assert_eq!(binds, [("/www", Access::ReadOnly, false), ("/www/data", Access::ReadWrite, true)]);
}

#[test]
fn inherited_sockets_are_tied_to_declared_ones() {
    let inherited = |fd, name: &str, port| InheritedFact {
        fd,
        name: name.into(),
        address: InheritedAddress::Tcp(([127, 0, 0, 1], port).into()),
        listening: true,
    };
    let with = |sockets: Vec<InheritedFact>| HostFacts { inherited: sockets, ..host() };
    let fds = |toml: &str, host: &HostFacts| -> Vec<(String, Option<i32>)> {
        let plan = plan(toml, host).unwrap();
        plan.listeners.into_iter().map(|l| (l.listener.name, l.inherited)).collect()
    };
    let two = with(vec![inherited(3, "b", 2), inherited(4, "a", 1)]);
    let declared = "[network]\nlisten = [\"a=tcp:127.0.0.1:1\", \"b=tcp:127.0.0.1:2\", 9]";
    assert_eq!(
        fds(declared, &two),
        [("a".into(), Some(4)), ("b".into(), Some(3)), ("unknown".into(), None)]
    );
    // By address, where the names differ.
    assert_eq!(
        fds("[network]\nlisten = [\"x=tcp:127.0.0.1:1\", \"y=tcp:127.0.0.1:2\"]", &two),
        [("x".into(), Some(4)), ("y".into(), Some(3))]
    );
    // With none declared, they are the declaration, in their order.
    assert_eq!(fds("", &two), [("b".into(), Some(3)), ("a".into(), Some(4))]);
    // The environment names them in the order of the descriptors.
    let env = plan(declared, &two).unwrap().env;
    let value = |name: &str| env.iter().find(|(n, _)| n == name).unwrap().1.to_str().unwrap();
    assert_eq!((value("LISTEN_FDS"), value("LISTEN_FDNAMES")), ("3", "a:b:unknown"));

    for (toml, sockets, why) in [
        ("[network]\nlisten = [1]", vec![inherited(3, "b", 2)], "matches no declared listener"),
        (
            "[network]\nlisten = [\"a=tcp:127.0.0.1:9\"]",
            vec![inherited(3, "a", 1)],
            "make the socket unit and the policy agree",
        ),
        ("", vec![InheritedFact { listening: false, ..inherited(3, "a", 1) }], "not a listening"),
        (
            "",
            vec![InheritedFact {
                address: InheritedAddress::Other("a socket of family vsock".into()),
                ..inherited(3, "a", 1)
            }],
            "only TCP and unix",
        ),
    ] {
        let text = error(toml, &with(sockets));
        assert!(text.starts_with("listen: ") && text.contains(why), "{text}");
    }
}

#[test]
fn the_environment_has_no_surprises() {
    let mut host = host();
    host.env_file = BTreeMap::from([("A".into(), "file".into()), ("B".into(), "file".into())]);
    host.environment = BTreeMap::from([("B".into(), "passed".into())]);
    let toml =
        "[process]\nenv_pass = [\"B\", \"GONE\"]\nenv = { C = \"written\", GOMAXPROCS = \"7\" }";
    let env = plan(toml, &host).unwrap().env;
    let text: Vec<String> =
        env.iter().map(|(k, v)| format!("{k}={}", v.to_str().unwrap())).collect();
    assert_eq!(
        text,
        [
            "PATH=/app:/usr/local/bin:/usr/bin:/bin",
            "HOME=/tmp",
            "TMPDIR=/tmp",
            "LANG=C.UTF-8",
            "TZ=Europe/Berlin",
            "GOSANDBOX_TENANT=acme",
            "GOMEMLIMIT=460MiB",
            "A=file",
            "B=passed",
            "C=written",
            "GOMAXPROCS=7",
        ]
    );
    for name in OWN_VARIABLES {
        let text = error(&format!("[process]\nenv = {{ {name} = \"x\" }}"), &host);
        assert!(text.contains("set by gosandbox itself"), "{text}");
    }
    assert!(error("[process]\nenv = { \"A B\" = \"x\" }", &host).contains("not a variable name"));
}

#[test]
fn stdin_is_no_door() {
    let with = |stdin| HostFacts { stdin, ..host() };
    let text = error("", &with(StdinFact::Door("a directory")));
    assert!(text.starts_with("descriptors: stdin is a directory") && text.contains("</dev/null"));
    let deny = "[process]\nwrite_execute = \"deny\"";
    let text = error(deny, &with(StdinFact::Writable));
    assert!(text.starts_with("descriptors: stdin is a file that can be written"), "{text}");
    assert_eq!(plan("", &with(StdinFact::Writable)).unwrap().stdin, Stdin::Inherited);
    assert_eq!(plan("", &with(StdinFact::Terminal)).unwrap().stdin, Stdin::Null);
    assert_eq!(plan("", &host()).unwrap().stdin, Stdin::Inherited);
}

#[test]
fn libraries_are_bound_where_the_loader_looks() {
    let library = |inside: &str, source: &str, code| crate::plan::Library {
        inside: inside.into(),
        source: source.into(),
        code,
    };
    let found = vec![
        library("/lib64/ld.so", "/usr/lib/ld-2.so", true),
        library("/lib/libc.so.6", "/usr/lib/libc.so.6", true),
        library("/etc/ld.so.cache", "/etc/ld.so.cache", false),
    ];
    let dynamic = BinaryFacts { libraries: Ok(found), ..binary() };
    let binds = |toml: &str| -> Vec<(String, String, Access)> {
        let mut host = host();
        let libs = PathFact {
            kind: PathKind::Directory,
            real: "/opt/libs".into(),
            uid: HostUid(0),
            gid: HostGid(0),
            mode: 0o755,
        };
        host.paths.insert("/opt/libs".into(), libs);
        let plan = resolve(&request(toml), &host, &dynamic).unwrap();
        let made: Vec<_> = plan.rootfs.iter().map(MountOp::object).collect();
        assert!(made.contains(&"/lib64".to_owned()), "its directory is made: {made:?}");
        let bind = |op: &MountOp| match op {
            MountOp::Bind { source, target, access, .. } => {
                Some((source.display().to_string(), target.display().to_string(), *access))
            }
            _ => None,
        };
        plan.rootfs
            .iter()
            .filter_map(bind)
            .filter(|(_, target, _)| !target.contains("ssl") && !target.contains("zoneinfo"))
            .collect()
    };
    let bind = |source: &str, target: &str, access| (source.to_owned(), target.to_owned(), access);
    let cache = bind("/etc/ld.so.cache", "/etc/ld.so.cache", Access::Data);
    let loader = bind("/usr/lib/ld-2.so", "/lib64/ld.so", Access::ReadOnly);
    let libc = bind("/usr/lib/libc.so.6", "/lib/libc.so.6", Access::ReadOnly);
    assert_eq!(binds(""), [cache.clone(), libc, loader.clone()]);
    // What the policy binds is there already.
    let own = bind("/opt/libs", "/lib", Access::ReadOnly);
    assert_eq!(binds("[filesystem]\nread_only = [\"/opt/libs:/lib\"]"), [cache, own, loader]);

    let missing = BinaryFacts { libraries: Err("needs libx.so (install it)".into()), ..binary() };
    let error = resolve(&request(""), &host(), &missing).unwrap_err();
    assert!(error.refused, "{error}");
    assert_eq!(error.to_string(), "open binary: /srv/acme/app: needs libx.so (install it)");
}

#[test]
fn ids_that_would_not_be_one_are_refused() {
    for uid in ["0", "65534", "4294967295"] {
        let text = error(&format!("[process]\nuid = {uid}"), &host());
        assert!(text.starts_with("ids: uid"), "{text}");
    }
    assert!(error("[process]\nworkdir = \"tmp\"", &host()).contains("not an absolute path"));
}

#[test]
fn limits_under_which_nothing_starts_are_refused() {
    for (key, value) in [
        ("tmp", "\"0\""),
        ("shm", "\"0\""),
        ("memory", "256"),
        ("pids", "0"),
        ("open_files", "0"),
        ("memory_high", "\"1G\""),
    ] {
        let text = error(&format!("[limits]\n{key} = {value}"), &host());
        assert!(text.contains(&format!("limits.{key}: ")), "{text}");
    }
    for syscalls in ["groups = []", "deny = [\"write\"]", "kill = [\"exit_group\"]"] {
        let text = error(&format!("[syscalls]\n{syscalls}"), &host());
        assert!(text.contains("is not allowed, without which no program can"), "{text}");
    }
    assert!(error("[network]\nlisten = [80, 80]", &host()).contains("declared twice"));
    plan("[network]\nlisten = [0, 0]", &host()).unwrap();
}

/// Its own id is the host's root, which no tenant may be.
#[test]
fn root_without_capabilities_is_refused() {
    let host = HostFacts { uid: HostUid(0), ..laptop() };
    let text = error("[require]\ncgroup = \"best-effort\"", &host);
    assert!(text.starts_with("id map: root without CAP_SETUID"), "{text}");
}

#[test]
fn a_hard_limit_that_cannot_be_raised_is_kept_and_said() {
    let plan = plan("[require]\ncgroup = \"best-effort\"", &laptop()).unwrap();
    assert_eq!(plan.rlimits[0].hard, 4096);
    assert!(plan.notes.iter().any(|n| n.contains("4096 instead of 65536")), "{:?}", plan.notes);
    let mut host = host();
    host.open_files_hard = 4096;
    assert_eq!(
        super::resolve(&request(""), &host, &binary()).unwrap().raise_open_files,
        Some(65536)
    );
}

#[test]
fn egress_that_nobody_could_hold_a_tenant_to_is_refused() {
    let refused = |policy: &str| plan(policy, &host()).unwrap_err().to_string();
    let error = refused("[network]\nmode = \"host\"\negress = [\"192.0.2.1:80\"]");
    assert!(error.contains("only a private network"), "{error}");
    let error = refused(
        "[network]\negress = [\"192.0.2.1:80\"]\n[syscalls]\ngroups = [\"go-runtime\", \"files\", \"exec\"]",
    );
    assert!(error.contains("add the group net-client"), "{error}");
    let named = "[network]\negress = [\"example.com:80\"]";
    let error = refused(named);
    assert!(error.contains("/etc/resolv.conf names no resolver"), "{error}");
    let mut host = host();
    host.resolvers.push("192.0.2.53".parse().unwrap());
    let plan = plan(named, &host).unwrap();
    assert!(plan.broker.as_ref().unwrap().has_names());
    let text = plan.text();
    assert!(text.contains("answers for names, asking 192.0.2.53"), "{text}");
    let file = |op: &MountOp| match op {
        MountOp::File(path, text) if path.ends_with("resolv.conf") => Some(text.clone()),
        _ => None,
    };
    let resolv = plan.rootfs.iter().find_map(file).unwrap();
    assert_eq!(resolv, "nameserver 127.0.0.1\n");
}

#[test]
fn nobody_waits_for_a_listener_that_is_not_there() {
    let refused = |policy: &str| plan(policy, &host()).unwrap_err().to_string();
    let error = refused("[lifecycle]\nready = \"listen\"");
    assert!(error.contains("no declared listener"), "{error}");
    let error =
        refused("[network]\nmode = \"host\"\nlisten = [8080]\n[lifecycle]\nready = \"listen\"");
    assert!(error.contains("private network"), "{error}");
    let plan = plan("[network]\nlisten = [8080]\n[lifecycle]\nready = \"listen\"", &host());
    assert_eq!(plan.unwrap().ready, policy::Ready::Listen);
}

/// The profile is read for this machine and its kernel, and what is not as it
/// says is noted.
#[test]
fn a_profile_instead_of_groups() {
    let dir = crate::testing::TempDir::new("plan-oci");
    let path = dir.path().join("profile.json");
    let toml =
        format!("[syscalls]\noci = \"{}\"\nallow = [\"write\", \"exit_group\"]", path.display());
    let write = |entries: &str| {
        let text = format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{entries}]}}"#);
        std::fs::write(&path, text).unwrap();
    };
    write(
        r#"{"names": ["read", "mount", "listen"], "action": "SCMP_ACT_ALLOW"},
           {"names": ["readv"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}}"#,
    );
    let old = plan(&toml, &host()).unwrap();
    let names: Vec<_> = old.rules.calls.iter().map(|(name, _)| *name).collect();
    let gives =
        |plan: &Plan, name| plan.rules.get(name).is_some_and(|v| v.is(seccomp::Answer::Allow));
    assert!(gives(&old, "read") && gives(&old, "write") && !gives(&old, "readv"), "{names:?}");
    assert_eq!(old.rules.asked().collect::<Vec<_>>(), ["listen"]);
    assert!(!names.contains(&"openat"), "of the groups of web nothing is left");
    let note = "allows what gosandbox never gives out (1): mount";
    assert_eq!(old.notes, [format!("{}: {note}", path.display())]);
    assert!(old.text().contains(note));
    let new = plan(&toml, &HostFacts { kernel: (6, 2), ..host() }).unwrap();
    assert!(gives(&new, "readv"));

    write(r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW"}"#);
    let without = toml.replace("write", "writev");
    assert!(error(&without, &host()).contains("write is not allowed"), "not started in vain");
    write(r#"{"names": ["raed"], "action": "SCMP_ACT_KILL"}"#);
    let said = error(&toml, &host());
    let start = format!("seccomp filter: {}: syscalls[0] (raed): ", path.display());
    assert!(said.starts_with(&start), "{said}");
    let said = error(&toml.replace("exit_group", "opne"), &host());
    assert!(!said.contains("opne"), "what was read first is said first: {said}");
    write(r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW"}"#);
    let said = error(&toml.replace("exit_group", "opne"), &host());
    assert!(said.starts_with("seccomp filter: no system call is called \"opne\""), "{said}");
}

#[test]
fn what_is_asked_of_the_runtime_wins_and_why_is_shown() {
    let shown = |toml: &str, go: &str| {
        let info = crate::golang::BuildInfo { go: go.into(), ..Default::default() };
        let binary = BinaryFacts { go: Ok(info), ..binary() };
        let plan = resolve(&request(toml), &host(), &binary).unwrap();
        let env = |name: &str| {
            let value = plan.env.iter().find(|(n, _)| n == name)?.1.clone();
            Some(value.into_string().unwrap())
        };
        let text = plan.text();
        (env("GOMEMLIMIT"), env("GOMAXPROCS"), text)
    };
    let (memory, procs, text) = shown("", "go1.19.8");
    assert_eq!((memory.as_deref(), procs.as_deref()), (Some("460MiB"), Some("2")));
    assert!(
        text.contains("GOMAXPROCS=2 (limits.cpu, 2; go1.19.8 by itself takes all 8)"),
        "{text}"
    );
    let (memory, procs, text) = shown("", "go1.15");
    assert_eq!((memory, procs.as_deref()), (None, Some("2")));
    assert!(text.contains("GOMEMLIMIT is not set (go1.15 does not know it"), "{text}");
    assert!(text.contains("note: go1.15 gives memory back only"), "{text}");
    let (memory, procs, text) = shown("[go]\nmemlimit = \"100M\"\nmaxprocs = \"off\"", "go1.15");
    assert_eq!((memory.as_deref(), procs), (Some("104857600B"), None));
    assert!(text.contains("GOMAXPROCS is not set (go.maxprocs is off"), "{text}");
    let env = "[process.env]\nGOMEMLIMIT = \"7MiB\"\nGOMAXPROCS = \"5\"";
    let (memory, procs, text) = shown(env, "go1.27.3");
    assert_eq!((memory.as_deref(), procs.as_deref()), (Some("7MiB"), Some("5")));
    assert!(text.contains("GOMEMLIMIT=7MiB (as the policy's environment has it)"), "{text}");
}

#[test]
fn tracebacks_and_core_dumps() {
    let shown = |toml: &str| {
        let plan = plan(toml, &host()).unwrap();
        let core = plan.rlimits.iter().find(|l| l.resource == Resource::Core).unwrap();
        ((core.soft, core.hard), plan.text())
    };
    let (core, text) = shown("");
    // 1 stands for none: core(5), a pipe in core_pattern ignores 0.
    assert_eq!(core, (1, 1));
    assert!(!text.contains("GOTRACEBACK") && !text.contains("core dump"), "{text}");
    let (_, text) = shown("[go]\ntraceback = \"crash\"");
    assert!(text.contains("GOTRACEBACK=crash (go.traceback; no core dump, since"), "{text}");
    let (core, text) = shown("[go]\ntraceback = \"crash\"\n[limits]\ncore = \"1G\"");
    assert_eq!(core, (1 << 30, 1 << 30));
    assert!(text.contains("GOTRACEBACK=crash (go.traceback)"), "{text}");
    assert!(text.contains("note: core dumps of at most 1G"), "{text}");
    let wrong = toml::from_str::<PolicyFile>("[go]\ntraceback = \"some\"").unwrap_err();
    assert!(wrong.to_string().contains("single"), "{wrong}");
}

#[path = "admission_tests.rs"]
mod admission;

#[path = "wall_tests.rs"]
mod wall;
