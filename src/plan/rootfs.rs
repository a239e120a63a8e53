//! What the tenant's root file system is made of: an ordered list of plain
//! data, built first and carried out after.

use std::path::{Path, PathBuf};

use super::{BinaryFacts, HostFacts, Identity, PathFact, PathKind, PlanError, Step};
use crate::policy::{Bind, Egress, NetworkMode, Permit, Policy};
use crate::value::{ByteSize, Tenant};

/// One thing that is made in the new root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountOp {
    /// The root itself: an empty tmpfs.
    Root,
    /// A directory.
    Directory(PathBuf),
    /// A small file, mode 0444.
    File(PathBuf, String),
    /// A symbolic link and what it says.
    Link(PathBuf, PathBuf),
    /// A device node of the host, bound by name in /dev, with the major and
    /// minor number it has to have.
    Device(&'static str, u32, u32),
    /// A fresh, read-only /proc.
    Proc,
    /// A file of /proc covered by /dev/null, or a directory by an empty one; a
    /// name this kernel does not have is nothing to hide.
    Mask(&'static str, PathKind),
    /// /proc and what covers it read-only, nosuid, nodev, noexec.
    LockProc,
    /// A tmpfs of a size.
    Tmpfs(PathBuf, ByteSize),
    /// A host path.
    Bind {
        /// Absolute, on the host.
        source: PathBuf,
        /// Absolute, inside.
        target: PathBuf,
        /// What may be done with it.
        access: Access,
        /// Its target lies in another bind, so it has to exist there, and is
        /// found without following a symbolic link.
        nested: bool,
    },
    /// The binary.
    Binary(PathBuf),
    /// The binary, as a copy on a file system of its own, of this size.
    Copy(PathBuf, ByteSize),
}

/// What may be done with a bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read; nothing to be executed. Files of the system.
    Data,
    /// Read and execute. The policy's read-only binds.
    ReadOnly,
    /// Read and write, not execute.
    ReadWrite,
}

impl MountOp {
    /// The step this belongs to.
    pub fn step(&self) -> Step {
        match self {
            Self::Root => Step::Rootfs,
            Self::Directory(_) | Self::File(..) | Self::Link(..) => Step::Files,
            Self::Device(..) => Step::Devices,
            Self::Proc => Step::Proc,
            Self::Mask(..) | Self::LockProc => Step::Masks,
            Self::Tmpfs(..) => Step::Scratch,
            Self::Bind { .. } => Step::Binds,
            Self::Binary(_) | Self::Copy(..) => Step::Binary,
        }
    }

    /// What it is about, for error messages.
    pub fn object(&self) -> String {
        match self {
            Self::Root => "/".to_owned(),
            Self::Directory(path)
            | Self::File(path, _)
            | Self::Link(path, _)
            | Self::Tmpfs(path, _) => path.display().to_string(),
            Self::Binary(path) | Self::Copy(path, _) => path.display().to_string(),
            Self::Device(name, ..) => format!("/dev/{name}"),
            Self::Proc | Self::LockProc => "/proc".to_owned(),
            Self::Mask(name, _) => format!("/proc/{name}"),
            Self::Bind { source, .. } => source.display().to_string(),
        }
    }
}

/// null, zero, full, random and urandom: Documentation/admin-guide/devices.txt.
const DEVICES: [(&str, u32, u32); 5] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];

/// What /proc tells about the machine and its other tenants, or lets be
/// written. /proc is read-only besides, and most of these are root's alone.
const MASKS: [(&str, PathKind); 19] = [
    ("acpi", PathKind::Directory),
    ("asound", PathKind::Directory),
    ("bus", PathKind::Directory),
    ("driver", PathKind::Directory),
    ("irq", PathKind::Directory),
    ("scsi", PathKind::Directory),
    ("cmdline", PathKind::File),
    ("diskstats", PathKind::File),
    ("interrupts", PathKind::File),
    ("kallsyms", PathKind::File),
    ("kcore", PathKind::File),
    ("key-users", PathKind::File),
    ("keys", PathKind::File),
    ("latency_stats", PathKind::File),
    ("modules", PathKind::File),
    ("partitions", PathKind::File),
    ("sched_debug", PathKind::File),
    ("sysrq-trigger", PathKind::File),
    ("timer_list", PathKind::File),
];

/// Bound from the host where they are there: what TLS and time zones need. The
/// first is where Go's crypto/x509 looks first on Debian, the others on Red Hat
/// and SUSE; a copy would cost a read and a write of 200 kB at each start.
const SYSTEM_DATA: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/usr/share/zoneinfo",
];

/// Bound besides where the tenant is in the host's network.
const NETWORK_DATA: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Directories of our own that a bind may not cover or enter.
const RESERVED: [&str; 3] = ["/proc", "/dev", "/app"];

/// The host's paths that the root file system may be made of, besides those
/// that the policy names.
pub fn system_paths(network: &NetworkMode) -> impl Iterator<Item = &'static Path> {
    SYSTEM_DATA.iter().chain(network_data(network)).map(Path::new)
}

/// A tenant in the host's network has the host's resolver and names.
fn network_data(network: &NetworkMode) -> &'static [&'static str] {
    match network {
        NetworkMode::Private => &[],
        NetworkMode::Host | NetworkMode::Named(_) => &NETWORK_DATA,
    }
}

/// The list for one tenant.
pub(super) fn resolve(
    tenant: &Tenant,
    identity: Identity,
    policy: &Policy,
    host: &HostFacts,
    (exec, binary): (&Path, &BinaryFacts),
) -> Result<Vec<MountOp>, PlanError> {
    let binds = binds(identity, policy, host, binary)?;
    let mut ops = vec![MountOp::Root];
    let mut made = Vec::new();
    for dir in ["/app", "/dev", "/dev/shm", "/etc", "/proc", "/tmp"] {
        directory(Path::new(dir), &mut made, &mut ops);
    }
    for op in &binds {
        if let MountOp::Bind { source, target, nested: false, .. } = op {
            let parent = target.parent().unwrap_or(Path::new("/"));
            directory(parent, &mut made, &mut ops);
            if host.paths.get(source).is_some_and(|fact| fact.kind == PathKind::Directory) {
                directory(target, &mut made, &mut ops);
            }
        }
    }
    let bound = |path: &str| {
        binds
            .iter()
            .any(|op| matches!(op, MountOp::Bind { target, .. } if target == Path::new(path)))
    };
    for (path, text) in etc_files(tenant, identity, policy) {
        if !bound(path) {
            ops.push(MountOp::File(PathBuf::from(path), text));
        }
    }
    for (path, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        ops.push(MountOp::Link(PathBuf::from(path), PathBuf::from(to)));
    }
    if let Some(zone) = &host.timezone
        && !bound("/etc/localtime")
    {
        ops.push(MountOp::Link(
            PathBuf::from("/etc/localtime"),
            Path::new("/usr/share/zoneinfo").join(zone),
        ));
    }
    ops.extend(DEVICES.map(|(name, major, minor)| MountOp::Device(name, major, minor)));
    ops.push(MountOp::Proc);
    ops.extend(MASKS.map(|(name, kind)| MountOp::Mask(name, kind)));
    ops.push(MountOp::LockProc);
    ops.push(MountOp::Tmpfs(PathBuf::from("/tmp"), policy.limits.tmp.value));
    ops.push(MountOp::Tmpfs(PathBuf::from("/dev/shm"), policy.limits.shm.value));
    ops.extend(binds);
    ops.push(match binary.sha256 {
        None => MountOp::Binary(exec.to_owned()),
        Some(_) => MountOp::Copy(exec.to_owned(), ByteSize(binary.size)),
    });
    Ok(ops)
}

/// Adds `path` and the directories above it that are not made yet.
fn directory(path: &Path, made: &mut Vec<PathBuf>, ops: &mut Vec<MountOp>) {
    if path == Path::new("/") || made.iter().any(|m| m.as_os_str() == path.as_os_str()) {
        return;
    }
    if let Some(parent) = path.parent() {
        directory(parent, made, ops);
    }
    made.push(path.to_owned());
    ops.push(MountOp::Directory(path.to_owned()));
}

/// The files of /etc that a Go server reads, each as small as it can be.
fn etc_files(tenant: &Tenant, identity: Identity, policy: &Policy) -> Vec<(&'static str, String)> {
    let id = identity.inside;
    vec![
        ("/etc/passwd", format!("app:x:{id}:{id}:{tenant}:/tmp:/nonexistent\n")),
        ("/etc/group", format!("app:x:{id}:\n")),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
        ("/etc/hosts", format!("127.0.0.1 localhost {tenant}\n::1 localhost ip6-localhost\n")),
        ("/etc/resolv.conf", resolv_conf(policy).to_owned()),
    ]
}

/// Where a name is listed the broker answers at 127.0.0.1. Where none is, an
/// empty file would send Go's resolver there too, which is right: nothing
/// answers, at once. A comment says why it is empty.
fn resolv_conf(policy: &Policy) -> &'static str {
    if policy.network.egress.value.iter().any(Egress::is_name) {
        "nameserver 127.0.0.1\n"
    } else {
        "# no name server: this tenant has a network of its own\n"
    }
}

/// The binds in the order of their targets, so that an outer one comes before
/// what lies in it.
fn binds(
    identity: Identity,
    policy: &Policy,
    host: &HostFacts,
    binary: &BinaryFacts,
) -> Result<Vec<MountOp>, PlanError> {
    let mut all: Vec<(Bind, Access)> = Vec::new();
    for path in system_paths(&policy.network.mode.value) {
        if let Some(fact) = host.paths.get(path)
            && fact.kind != PathKind::Missing
        {
            let bind = Bind { source: fact.real.clone(), target: path.to_owned() };
            all.push((bind, Access::Data));
        }
    }
    let policy_binds = &policy.filesystem;
    for (list, access) in [
        (&policy_binds.read_only.value, Access::ReadOnly),
        (&policy_binds.read_write.value, Access::ReadWrite),
    ] {
        for bind in list {
            check_bind(bind, access, identity, host)?;
            all.retain(|(system, kind)| *kind != Access::Data || system.target != bind.target);
            if all.iter().any(|(other, _)| other.target == bind.target) {
                return Err(refuse(bind, "two binds have this target (leave one out)"));
            }
            all.push((bind.clone(), access));
        }
    }
    // What the policy binds is what the loader will find there.
    let chosen: Vec<PathBuf> = all
        .iter()
        .filter(|(_, access)| *access != Access::Data)
        .map(|(bind, _)| bind.target.clone())
        .collect();
    for library in binary.libraries.iter().flatten() {
        if !chosen.iter().any(|target| library.inside.starts_with(target)) {
            let bind = Bind { source: library.source.clone(), target: library.inside.clone() };
            all.push((bind, if library.code { Access::ReadOnly } else { Access::Data }));
        }
    }
    if policy.process.write_execute.value == Permit::Deny {
        for (bind, _) in all.iter().filter(|(_, access)| *access == Access::ReadOnly) {
            let mut writable = policy_binds.read_write.value.iter();
            if let Some(other) = writable.find(|other| shares(bind, other)) {
                return Err(refuse(
                    bind,
                    &format!(
                        "what {other} lets be written could be executed here, which process.write_execute = \"deny\" rules out (bind what they share at one place, or leave one out)"
                    ),
                ));
            }
        }
    }
    all.sort_by(|(a, _), (b, _)| a.target.cmp(&b.target));
    let targets: Vec<PathBuf> = all.iter().map(|(bind, _)| bind.target.clone()).collect();
    Ok(all
        .into_iter()
        .map(|(bind, access)| MountOp::Bind {
            nested: targets
                .iter()
                .any(|outer| *outer != bind.target && bind.target.starts_with(outer)),
            source: bind.source,
            target: bind.target,
            access,
        })
        .collect())
}

/// Whether files of both are seen at two places. They are not where the inner one
/// covers just its own part of the outer.
fn shares(one: &Bind, other: &Bind) -> bool {
    let apart = |outer: &Bind, inner: &Bind| {
        let part = inner.source.strip_prefix(&outer.source);
        part.is_ok_and(|part| outer.target.join(part) != inner.target)
    };
    apart(one, other) || apart(other, one)
}

fn refuse(bind: &Bind, why: &str) -> PlanError {
    PlanError::new(Step::Binds, format!("{bind}: {why}"))
}

fn check_bind(
    bind: &Bind,
    access: Access,
    identity: Identity,
    host: &HostFacts,
) -> Result<(), PlanError> {
    if bind.target == Path::new("/") || RESERVED.iter().any(|dir| bind.target.starts_with(dir)) {
        return Err(refuse(
            bind,
            "the sandbox's own /, /proc, /dev and /app cannot be bound over (choose another path inside)",
        ));
    }
    if bind.target == Path::new("/etc") || bind.target.starts_with("/tmp") {
        return Err(refuse(
            bind,
            "gosandbox fills /etc and /tmp itself (choose another path inside; in /etc, one below it)",
        ));
    }
    let missing = PathFact {
        kind: PathKind::Missing,
        real: bind.source.clone(),
        uid: crate::value::HostUid(0),
        gid: crate::value::HostGid(0),
        mode: 0,
    };
    let fact = host.paths.get(&bind.source).unwrap_or(&missing);
    if fact.kind == PathKind::Missing {
        return Err(refuse(
            bind,
            "no such file or directory on the host (create it, or mend the path)",
        ));
    }
    if fact.real != bind.source {
        // A tenant who may write a directory on the way could point it
        // anywhere, so no symbolic link in a source is followed.
        return Err(refuse(
            bind,
            &format!("the source goes through a symbolic link (write {})", fact.real.display()),
        ));
    }
    let writable = (fact.uid == identity.uid && fact.mode & 0o200 != 0)
        || (fact.gid == identity.gid && fact.mode & 0o020 != 0)
        || fact.mode & 0o002 != 0;
    if access == Access::ReadWrite && !writable {
        return Err(refuse(
            bind,
            &format!(
                "Permission denied (owned by uid {}; the tenant is {}: chown {}:{} {})",
                fact.uid,
                identity.uid,
                identity.uid,
                identity.gid,
                bind.source.display()
            ),
        ));
    }
    Ok(())
}
