//! What stands behind the first walls: Landlock, and what may become code.

use super::*;

#[test]
fn a_kernel_without_landlock_stops_the_start() {
    for (fact, why) in [
        (LandlockFact::NotBuilt, "landlock: this kernel is built without it (boot one with"),
        (LandlockFact::NotEnabled, "landlock: this kernel was booted without it (boot with lsm="),
        (LandlockFact::Unknown("no".into()), "landlock: no (a seccomp profile around gosandbox"),
    ] {
        let host = HostFacts { landlock: fact, ..host() };
        let text = error("", &host);
        assert!(text.starts_with(why), "{text}");
        assert!(text.ends_with("accept it with --require landlock=best-effort)"), "{text}");
        let loose = plan("[require]\nlandlock = \"best-effort\"", &host).unwrap();
        assert_eq!(loose.wall, None);
        assert!(loose.missing.len() == 1 && loose.missing[0].starts_with("Landlock: "));
    }
}

#[test]
fn what_the_wall_holds_depends_on_kernel_and_network() {
    let with = |version| HostFacts { landlock: LandlockFact::Version(version), ..host() };
    let wall = |toml: &str, version| plan(toml, &with(version)).unwrap().wall.unwrap();
    let (held, free) = wall("", 4).coverage();
    assert_eq!(held, ["files", "truncation", "TCP"]);
    assert_eq!(free, ["device ioctls", "signals and abstract sockets"]);
    // Not TCP where the tenant binds and connects itself.
    for mode in ["host", "ns:/run/netns/acme"] {
        let (held, free) = wall(&format!("[network]\nmode = \"{mode}\""), 7).coverage();
        assert_eq!(held, ["files", "truncation", "device ioctls", "signals and abstract sockets"]);
        assert!(free.is_empty());
    }
    assert_eq!((wall("", 99).version, wall("", 7).version), (7, 7));
    let notes = |version| plan("", &with(version)).unwrap().notes;
    assert!(notes(2).is_empty() && notes(1)[0].contains("EXDEV"));
}

#[test]
fn each_part_of_the_root_grants_what_its_mount_lets_through() {
    let mut host = host();
    for path in ["/srv/ro", "/srv/rw"] {
        let fact = PathFact {
            kind: PathKind::Directory,
            real: path.into(),
            uid: HostUid(1_879_048_200),
            gid: HostGid(0),
            mode: 0o700,
        };
        host.paths.insert(path.into(), fact);
    }
    let toml = "[filesystem]\nread_only = [\"/srv/ro:/ro\"]\nread_write = [\"/srv/rw:/rw\"]";
    let library = |inside: &str, code| Library {
        inside: inside.into(),
        source: Path::new("/usr").join(inside.trim_start_matches('/')),
        code,
    };
    let libraries = || vec![library("/etc/ld.so.cache", false), library("/lib/libc.so.6", true)];
    // The binary itself, and a copy of it that was checked.
    for sha256 in [None, Some("ab".repeat(32).parse().unwrap())] {
        let binary = BinaryFacts { sha256, libraries: Ok(libraries()), ..binary() };
        let plan = resolve(&request(toml), &host, &binary).unwrap();
        let of = |grant| -> Vec<String> {
            let ops = plan.rootfs.iter().filter(|op| op.grant() == Some(grant));
            ops.map(MountOp::object).collect()
        };
        assert_eq!(of(Grant::Read), ["/"]);
        assert_eq!(of(Grant::Execute), ["/usr/lib/libc.so.6", "/srv/ro", "/app/app"]);
        assert_eq!(of(Grant::Write), ["/dev/null", "/dev/zero", "/dev/full"]);
        assert_eq!(of(Grant::Change), ["/tmp", "/dev/shm", "/srv/rw"]);
        let text = plan.text();
        assert!(text.contains("change /tmp, /dev/shm, /rw\n"), "{text}");
    }
}

#[test]
fn code_is_what_the_policy_says() {
    let deny = "[process]\nwrite_execute = \"deny\"\n";
    let text = plan(deny, &host()).unwrap().text();
    assert!(text.contains("no memory that was written is executed"), "{text}");
    let memfd = "[syscalls]\nallow = [\"memfd_create\"]\n";
    let text = error(&format!("{deny}{memfd}"), &host());
    assert!(text.starts_with("seccomp filter: memfd_create: "), "{text}");
    let executed = format!("[process]\nmemfd_execute = \"allow\"\n{memfd}");
    let text = plan(&executed, &host()).unwrap().text();
    assert!(text.contains("files in memory may be executed"), "{text}");
    for toml in ["", memfd, "[process]\nmemfd_execute = \"allow\"\n"] {
        let text = plan(toml, &host()).unwrap().text();
        assert!(!text.contains("may be executed") && !text.contains("that was written"), "{text}");
    }
    let stack = BinaryFacts { writable_code: true, ..binary() };
    resolve(&request(""), &host(), &stack).unwrap();
    let error = resolve(&request(deny), &host(), &stack).unwrap_err();
    assert!(error.refused && error.message.contains("noexecstack"), "{error}");
}
