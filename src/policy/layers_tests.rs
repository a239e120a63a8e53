//! Layers, origins, and errors that say where and what.

use super::*;
use crate::testing::TempDir;

fn write(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn flags(toml: &str) -> Layer {
    Layer { source: Source::Flags, file: toml::from_str(toml).unwrap() }
}

fn environment(variables: &[(&str, &str)]) -> Result<Layer, PolicyError> {
    from_environment(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
}

#[test]
fn later_layers_win_and_say_where_from() {
    let dir = TempDir::new("layers");
    let named = write(
        &dir,
        "base.toml",
        "extends = \"web\"\n[limits]\nmemory = \"1G\"\ncpu = 1\npids = 7\n",
    );
    let own = write(&dir, "acme.toml", "[limits]\nmemory = \"2G\"\ncpu = 3\n");
    let environment = environment(&[("GOSANDBOX_LIMITS_CPU", "0.5"), ("HOME", "/")]).unwrap();
    let policy = load(
        Some(named.to_str().unwrap()),
        Some(&own),
        vec![environment, flags("[limits]\ntmp = \"1M\"")],
        true,
    )
    .unwrap();
    let l = &policy.limits;
    let shown = |origin: &Origin| origin.to_string();
    assert_eq!((l.pids.value, shown(&l.pids.origin)), (7, named.display().to_string()));
    assert_eq!(
        (l.memory.value.to_string(), shown(&l.memory.origin)),
        ("2G".into(), own.display().to_string())
    );
    assert_eq!((l.cpu.value.milli, shown(&l.cpu.origin)), (500, "GOSANDBOX_LIMITS_CPU".into()));
    assert_eq!(
        (l.tmp.value.to_string(), shown(&l.tmp.origin)),
        ("1M".into(), "command line".into())
    );
    assert_eq!(shown(&l.shm.origin), "built-in default");
    assert_eq!(shown(&policy.syscalls.groups.origin), "policy web");
    assert_eq!(policy.origins().len(), KEYS.len());
}

#[test]
fn lists_are_replaced_but_binds_and_variables_are_laid_over_each_other() {
    let mut policy = Policy::built_in();
    policy.apply(flags(
        "[filesystem]\nread_only = [\"/a:/x\", \"/b:/y\"]\n[network]\nlisten = [1, 2]\n[process]\nenv = { A = \"1\", B = \"1\" }",
    ));
    policy.apply(flags(
        "[filesystem]\nread_only = [\"/c:/x\"]\n[network]\nlisten = [3]\n[process]\nenv = { B = \"2\" }",
    ));
    let binds: Vec<_> = policy.filesystem.read_only.value.iter().map(ToString::to_string).collect();
    assert_eq!(binds, ["/b:/y", "/c:/x"]);
    assert_eq!(policy.network.listen.value.len(), 1);
    assert_eq!(policy.process.env.value["A"], "1");
    assert_eq!(policy.process.env.value["B"], "2");
}

#[test]
fn errors_name_file_line_column_and_what_was_meant() {
    let dir = TempDir::new("policy-errors");
    for (text, expected) in [
        (
            "[limits]\nmemroy = \"1G\"\n",
            "p.toml:2:1: unknown key `memroy` (did you mean `memory`?)",
        ),
        ("[limts]\n", "p.toml:1:2: unknown key `limts` (did you mean `limits`?)"),
        (
            "[limits]\n\n  memory = \"1X\"\n",
            "p.toml:3:12: size \"1X\": write a number and K, M, G or T, as in 512M",
        ),
        (
            "[limits]\ncpu = 0\n",
            "p.toml:2:7: cpu 0: write a number of processors from 0.01 to 4096, as in 1.5",
        ),
        (
            "[network]\nmode = \"hots\"\n",
            "p.toml:2:8: network \"hots\": write private, host or ns:PATH, as in ns:/run/netns/acme",
        ),
        (
            "[process]\nwrite_execute = \"denied\"\n",
            "p.toml:2:17: unknown value `denied`, expected `allow` or `deny`",
        ),
        (
            "[require]\nlandlock = \"loose\"\n",
            "p.toml:2:12: unknown value `loose`, expected `strict` or `best-effort`",
        ),
        ("[limits\n", "p.toml:1:8: "),
        ("[process]\nzzz = 1\n", "p.toml:2:1: unknown key `zzz`, expected one of "),
    ] {
        let path = write(&dir, "p.toml", text);
        let error =
            load(Some(path.to_str().unwrap()), None, vec![], false).unwrap_err().to_string();
        let error = error.strip_prefix(&format!("{}/", dir.path().display())).unwrap();
        assert!(error.starts_with(expected), "{text:?}\n  {error}\n  {expected}");
    }
}

#[test]
fn policies_that_are_not_there_or_turn_in_circles() {
    let error = load(Some("wbe"), None, vec![], false).unwrap_err().to_string();
    assert!(error.contains("web, job") && error.contains("./wbe"), "{error}");
    let dir = TempDir::new("loop");
    write(&dir, "a.toml", "extends = \"./b.toml\"");
    let b = write(&dir, "b.toml", "extends = \"./a.toml\"");
    // Relative to the file that says it, whatever the spelling grows to.
    let error = load(Some(b.to_str().unwrap()), None, vec![], false).unwrap_err().to_string();
    assert!(error.contains("extends itself"), "{error}");
    let missing = dir.path().join("none.toml");
    assert!(matches!(
        load(Some(missing.to_str().unwrap()), None, vec![], false),
        Err(PolicyError::Read(..))
    ));
    // The tenant's own file is the one that may be missing.
    load(None, Some(&missing), vec![], false).unwrap();
}

#[test]
fn a_policy_that_strangers_may_write_is_not_roots() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new("writable");
    let path = write(&dir, "p.toml", "");
    let name = path.to_str().unwrap();
    for mode in [0o664, 0o646] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = load(Some(name), None, vec![], true).unwrap_err().to_string();
        assert!(error.contains("chmod go-w"), "{error}");
        assert!(load(None, Some(&path), vec![], true).is_err());
        load(Some(name), None, vec![], false).unwrap();
    }
}

#[test]
fn variables() {
    let layer = environment(&[
        ("GOSANDBOX_LIMITS_MEMORY_HIGH", "1G"),
        ("GOSANDBOX_NETWORK_LISTEN", "[8080, \"a=unix:/run/a\"]"),
        ("GOSANDBOX_PROCESS_WORKDIR", "/tmp"),
        ("GOSANDBOX_EXAMPLES", "/somewhere"),
        ("GOSANDBOX_SCOPED", "1"),
    ])
    .unwrap();
    assert_eq!(layer.file.limits.memory_high, Some(ByteSize(1 << 30)));
    assert_eq!(layer.file.network.listen.unwrap().len(), 2);
    assert_eq!(layer.file.process.workdir, Some("/tmp".into()));
    for (name, value, why) in [
        ("GOSANDBOX_LIMITS_MEMROY", "1G", "GOSANDBOX_LIMITS_MEMORY"),
        ("GOSANDBOX_LIMITS_MEMORY", "lots", "size \"lots\""),
        ("GOSANDBOX_LIMIT_MEMORY", "1G", "did you mean GOSANDBOX_LIMITS_MEMORY?"),
        ("GOSANDBOX_LIMITS_PIDS", "many", "invalid type"),
    ] {
        let error = environment(&[(name, value)]).unwrap_err().to_string();
        assert!(error.starts_with(name) && error.contains(why), "{error}");
    }
}

#[test]
fn a_file_that_extends_nothing_changes_the_default() {
    let dir = TempDir::new("default");
    let path = write(&dir, "p.toml", "[limits]\npids = 9\n");
    let policy = load(Some(path.to_str().unwrap()), None, vec![], true).unwrap();
    assert_eq!(policy.limits.pids.value, 9);
    assert_eq!(policy.syscalls.groups.origin.to_string(), "policy web");
}

#[test]
fn shipped_policies_parse_and_their_chain_ends_at_web() {
    for (name, _) in shipped() {
        let policy = load(Some(name), None, vec![], true).unwrap();
        assert!(!policy.syscalls.groups.value.is_empty(), "{name}");
    }
}

/// A profile of OCI is beside the file that names it, and takes the place of
/// groups, as they take its place.
#[test]
fn a_profile_is_instead_of_groups() {
    let dir = TempDir::new("oci");
    std::fs::create_dir(dir.path().join("tenants")).unwrap();
    write(&dir, "profile.json", r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#);
    let path = dir.path().join("profile.json");
    let named = write(&dir, "base.toml", "[syscalls]\noci = \"profile.json\"\n");
    let own = write(&dir, "tenants/acme.toml", "[syscalls]\noci = \"../profile.json\"\n");
    let shown = |policy: &Policy| {
        let s = &policy.syscalls;
        (s.groups.value.len(), s.oci.value.clone(), s.groups.origin.to_string())
    };

    let policy = load(Some(named.to_str().unwrap()), None, vec![], true).unwrap();
    let at = named.display().to_string();
    assert_eq!(shown(&policy), (0, Some(path.clone()), at));
    assert_eq!(policy.syscalls.oci.origin.to_string(), named.display().to_string());
    let expected = crate::seccomp::oci::parse(r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#);
    assert_eq!(policy.profile, expected.ok());

    let policy = load(None, Some(&own), vec![], true).unwrap();
    let there = dir.path().join("tenants/../profile.json");
    assert_eq!(shown(&policy).1, Some(there));

    let groups = environment(&[("GOSANDBOX_SYSCALLS_GROUPS", "[\"exec\"]")]).unwrap();
    let policy = load(None, Some(&own), vec![groups], true).unwrap();
    assert_eq!(shown(&policy), (1, None, "GOSANDBOX_SYSCALLS_GROUPS".into()));
    assert_eq!(policy.profile, None);

    let oci = environment(&[("GOSANDBOX_SYSCALLS_OCI", path.to_str().unwrap())]).unwrap();
    let policy = load(None, None, vec![oci], true).unwrap();
    assert_eq!(shown(&policy), (0, Some(path.clone()), "GOSANDBOX_SYSCALLS_GROUPS".into()));

    // What was written of single calls stays, as it does between groups.
    let deny = flags("[syscalls]\ndeny = [\"openat\"]");
    let policy = load(None, Some(&own), vec![deny], true).unwrap();
    assert_eq!(policy.syscalls.deny.value, ["openat"]);
    assert!(policy.profile.is_some());
}

#[test]
fn profiles_that_cannot_be_had() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new("oci-errors");
    let policy = write(&dir, "p.toml", "[syscalls]\noci = \"profile.json\"\n");
    let error = |privileged| {
        let error = load(Some(policy.to_str().unwrap()), None, vec![], privileged).unwrap_err();
        let error = error.to_string();
        error.strip_prefix(&format!("{}/", dir.path().display())).unwrap_or(&error).to_owned()
    };
    assert_eq!(error(true), "profile.json: No such file or directory");
    for (text, expected) in [
        ("{", "profile.json: line 1, column 1: EOF while parsing an object"),
        (
            "{\"defaultAction\": \"SCMP_ACT_ALLOW\"}",
            "profile.json: defaultAction: SCMP_ACT_ALLOW makes a list of what is refused",
        ),
        (
            "{\"defaultAction\": \"SCMP_ACT_KILL\",\n \"syscalls\": [{\"names\": [\"read\"], \"action\": \"SCMP_ACT_NOTIFY\"}]}",
            "profile.json: syscalls[0]: SCMP_ACT_NOTIFY cannot be expressed",
        ),
    ] {
        write(&dir, "profile.json", text);
        assert!(error(true).starts_with(expected), "{}\n  {expected}", error(true));
    }
    let path = write(&dir, "profile.json", "{\"defaultAction\": \"SCMP_ACT_KILL\"}");
    let name = policy.to_str().unwrap();
    load(Some(name), None, vec![], true).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
    assert_eq!(error(true), "profile.json: writable by group or others (chmod go-w it)");
    load(Some(name), None, vec![], false).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();

    write(&dir, "p.toml", "[syscalls]\ngroups = [\"exec\"]\noci = \"profile.json\"\n");
    let both = "p.toml: syscalls.oci is instead of syscalls.groups (write one of them)";
    assert_eq!(error(true), both);
    let both = [("GOSANDBOX_SYSCALLS_OCI", "/x"), ("GOSANDBOX_SYSCALLS_GROUPS", "[\"exec\"]")];
    let error = load(None, None, vec![environment(&both).unwrap()], true).unwrap_err();
    assert!(error.to_string().starts_with("environment: syscalls.oci is instead"), "{error}");
}
