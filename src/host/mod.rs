//! Facts read from this machine, as plain data for the plan.
//!
//! The roots of /proc, /sys and /etc are parameters ([`Roots`]), so that tests
//! give it a machine made of files. Nothing in here changes anything, except
//! [`ids::allocate`], which records a tenant's id.

mod cgroup;
mod copy;
pub mod ids;
mod inherited;
mod loader;

pub(crate) use copy::sealed;
pub use inherited::FIRST as FIRST_INHERITED;
pub(crate) use loader::{View, libraries};

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};

use crate::plan::{HostFacts, LandlockFact, PathFact, PathKind, StdinFact, system_paths};
use crate::policy::{Egress, Policy};
use crate::value::{HostGid, HostUid, Tenant};

/// Where the machine's files are.
#[derive(Clone, Debug)]
pub struct Roots {
    /// procfs.
    pub proc: PathBuf,
    /// Configuration.
    pub etc: PathBuf,
    /// Runtime state; `systemd/system` in it says that systemd runs.
    pub run: PathBuf,
    /// Where cgroup v2 is usually mounted, or `unified` in it.
    pub cgroup: PathBuf,
    /// Where the record of ids is kept.
    pub state: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            etc: "/etc".into(),
            run: "/run".into(),
            cgroup: "/sys/fs/cgroup".into(),
            state: "/var/lib/gosandbox".into(),
        }
    }
}

/// What could not be read, and why.
#[derive(Debug, thiserror::Error)]
#[error("{object}: {cause}")]
pub struct HostError {
    /// What was read.
    pub object: String,
    /// Why it failed, with the remedy.
    pub cause: String,
}

impl HostError {
    fn new(object: impl std::fmt::Display, cause: impl std::fmt::Display) -> Self {
        Self { object: object.to_string(), cause: cause.to_string() }
    }
}

/// Whether this process holds every capability that giving the tenant a host id
/// of its own takes.
pub fn privileged() -> bool {
    [Capability::CAP_SETUID, Capability::CAP_SETGID, Capability::CAP_SYS_ADMIN].into_iter().all(has)
}

fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// Reads what the plan for `tenant` under `policy` needs to know. `record`
/// writes the tenant's id down; without it, nothing is changed.
///
/// # Errors
/// Something that has to be known cannot be read.
pub fn read(
    roots: &Roots,
    tenant: &Tenant,
    policy: &Policy,
    record: bool,
) -> Result<HostFacts, HostError> {
    let privileged = privileged();
    let host_id = if privileged {
        Some(if record { ids::allocate(roots, tenant)? } else { ids::look_up(roots, tenant)? })
    } else {
        None
    };
    let sources =
        policy.filesystem.read_only.value.iter().chain(&policy.filesystem.read_write.value);
    let system = system_paths(&policy.network.mode.value)
        // Ours to follow: links in the system's own files are root's.
        .map(|path| (path.to_owned(), path_fact(path, false)));
    let paths = system
        .chain(sources.map(|bind| (bind.source.clone(), path_fact(&bind.source, true))))
        .collect();
    let (_, open_files_hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .map_err(|e| HostError::new("RLIMIT_NOFILE", e))?;
    let may_raise_limits = u64::from(policy.limits.open_files.value) > open_files_hard
        && has(Capability::CAP_SYS_RESOURCE)
        && in_first_user_namespace(roots);
    let systemd = systemd_booted(roots);
    let oom = roots.proc.join("self/oom_score_adj");
    let oom_score_adj = read_text(&oom)?
        .trim()
        .parse()
        .map_err(|_| HostError::new(oom.display(), "not a number"))?;
    Ok(HostFacts {
        kernel: kernel()?.0,
        uid: HostUid(nix::unistd::geteuid().as_raw()),
        gid: HostGid(nix::unistd::getegid().as_raw()),
        privileged,
        may_raise_limits,
        host_id,
        cpus: cpus(),
        open_files_hard,
        cgroup: cgroup::read(roots)?,
        landlock: landlock(),
        systemd,
        can_scope: systemd && (privileged || user_manager()),
        paths,
        timezone: timezone(&roots.etc),
        resolvers: if policy.network.egress.value.iter().any(Egress::is_name) {
            crate::broker::upstream(&read_text(&roots.etc.join("resolv.conf"))?)
        } else {
            Vec::new()
        },
        stdin: stdin().map_err(|e| HostError::new("stdin", e))?,
        inherited: inherited::read()?,
        environment: passed(&policy.process.env_pass.value),
        go_sums: match &policy.binary.sums.value {
            Some(path) => go_sums(path, privileged)?,
            None => BTreeMap::new(),
        },
        env_file: match &policy.process.env_file.value {
            Some(path) => env_file(path, privileged)?,
            None => BTreeMap::new(),
        },
        oom_score_adj,
    })
}

/// The kernel's version and major revision, and how it calls itself: uname(2).
///
/// # Errors
/// That does not begin with two numbers.
pub fn kernel() -> Result<((u32, u32), String), HostError> {
    let name = nix::sys::utsname::uname().map_err(|e| HostError::new("uname", e))?;
    let release = name.release().to_string_lossy().into_owned();
    Ok((version(&release)?, release))
}

fn version(release: &str) -> Result<(u32, u32), HostError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(version)), Some(Ok(major))) => Ok((version, major)),
        _ => Err(HostError::new("uname", format!("{release:?} is no version of a kernel"))),
    }
}

/// Whether capabilities are over the whole machine, as setrlimit(2) asks, and not
/// only over a container's user namespace.
fn in_first_user_namespace(roots: &Roots) -> bool {
    // USER_NS_INIT_INO, include/uapi/linux/nsfs.h; the same on every kernel.
    const FIRST: u64 = 0xefff_fffd;
    roots.proc.join("self/ns/user").metadata().is_ok_and(|data| data.ino() == FIRST)
}

/// What this kernel has of Landlock.
fn landlock() -> LandlockFact {
    use nix::errno::Errno;
    match crate::sys::landlock::version() {
        Ok(version) => LandlockFact::Version(version),
        Err(Errno::ENOSYS) => LandlockFact::NotBuilt,
        Err(Errno::EOPNOTSUPP) => LandlockFact::NotEnabled,
        Err(errno) => LandlockFact::Unknown(crate::value::cause(&errno.into())),
    }
}

/// sd_booted(3): whether systemd is the service manager.
pub fn systemd_booted(roots: &Roots) -> bool {
    roots.run.join("systemd/system").symlink_metadata().is_ok_and(|m| m.is_dir())
}

/// A descriptor that is closed is opened on /dev/null before main.
fn stdin() -> nix::Result<StdinFact> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::stat::{SFlag, fstat};
    let stdin = io::stdin();
    let kind = fstat(&stdin)?.st_mode & SFlag::S_IFMT.bits();
    let flags = fcntl(&stdin, FcntlArg::F_GETFL)?;
    Ok(match SFlag::from_bits_truncate(kind) {
        SFlag::S_IFDIR => StdinFact::Door("a directory"),
        SFlag::S_IFBLK => StdinFact::Door("a block device"),
        _ if OFlag::from_bits_truncate(flags).contains(OFlag::O_PATH) => {
            StdinFact::Door("a descriptor of a path")
        }
        SFlag::S_IFSOCK if !is_connection(&stdin) => {
            StdinFact::Door("a socket that is no stream connection")
        }
        SFlag::S_IFREG if flags & libc::O_ACCMODE != libc::O_RDONLY => StdinFact::Writable,
        _ if io::IsTerminal::is_terminal(&stdin) => StdinFact::Terminal,
        _ => StdinFact::Ordinary,
    })
}

/// Whether a socket is one end of a connection: a datagram socket sends to
/// whoever it is told, and a listening one accepts what was meant for another.
fn is_connection(socket: &io::Stdin) -> bool {
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    getsockopt(socket, sockopt::SockType) == Ok(SockType::Stream)
        && getsockopt(socket, sockopt::AcceptConn) == Ok(false)
}

/// Whether a systemd user manager runs for this user.
fn user_manager() -> bool {
    std::env::var_os("XDG_RUNTIME_DIR")
        .is_some_and(|dir| Path::new(&dir).join("systemd/private").exists())
}

fn read_text(path: &Path) -> Result<String, HostError> {
    std::fs::read_to_string(path)
        .map_err(|e| HostError::new(path.display(), crate::value::cause(&e)))
}

/// Processors this process may run on: sched_getaffinity(2).
fn cpus() -> u32 {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let count = set.map_or(1, |set| {
        (0..nix::sched::CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).count()
    });
    u32::try_from(count).unwrap_or(1).max(1)
}

/// `resolve` asks for the path without its links, which is a question for each
/// directory on the way.
fn path_fact(path: &Path, resolve: bool) -> PathFact {
    let missing = PathFact {
        kind: PathKind::Missing,
        real: path.to_owned(),
        uid: HostUid(0),
        gid: HostGid(0),
        mode: 0,
    };
    let Ok(data) = path.metadata() else {
        return missing;
    };
    let real = if resolve { path.canonicalize() } else { Ok(path.to_owned()) };
    let Ok(real) = real else {
        return missing;
    };
    PathFact {
        kind: if data.is_dir() { PathKind::Directory } else { PathKind::File },
        real,
        uid: HostUid(data.uid()),
        gid: HostGid(data.gid()),
        mode: data.mode() & 0o7777,
    }
}

/// The zone that /etc/localtime points at, if it is in the zoneinfo tree.
fn timezone(etc: &Path) -> Option<String> {
    let target = std::fs::read_link(etc.join("localtime")).ok()?;
    let text = target.to_str()?;
    let (_, zone) = text.split_once("zoneinfo/")?;
    let plain = zone.bytes().all(|c| c.is_ascii_alphanumeric() || b"+-_/".contains(&c));
    plain.then(|| zone.to_owned())
}

/// Opens for reading without waiting for a writer, should it be a fifo.
pub(crate) fn open_now(path: &Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// The text of a file that root may be asked to trust: a regular file, of a size
/// that a person could have written, and with `privileged` one that nobody but
/// its owner may write. All asked of the open descriptor.
///
/// # Errors
/// `InvalidInput` where it is no such file, else what reading says.
pub(crate) fn read_trusted(path: &Path, privileged: bool) -> io::Result<String> {
    let bad = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()));
    let file = open_now(path)?;
    let data = file.metadata()?;
    if !data.is_file() {
        return bad("not a regular file");
    }
    if privileged && data.mode() & 0o022 != 0 {
        return bad("writable by group or others (chmod go-w it)");
    }
    if data.len() > MAX_TEXT {
        return bad("larger than a megabyte");
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, MAX_TEXT), &mut text)?;
    Ok(text)
}

/// More than this is a mistake or an attack.
const MAX_TEXT: u64 = 1 << 20;

fn passed(names: &[String]) -> BTreeMap<String, String> {
    names.iter().filter_map(|name| Some((name.clone(), std::env::var(name).ok()?))).collect()
}

/// NAME=VALUE lines; blank lines and those that begin with # are passed over,
/// as in systemd.exec(5), EnvironmentFile=. Nothing is unquoted or expanded.
fn env_file(path: &Path, privileged: bool) -> Result<BTreeMap<String, String>, HostError> {
    let text = read_trusted(path, privileged)
        .map_err(|e| HostError::new(path.display(), crate::value::cause(&e)))?;
    let mut variables = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let (name, value) = crate::policy::parse_assignment(line).map_err(|_| {
            // The line may be a secret, so it is not quoted.
            HostError::new(format!("{}:{}", path.display(), number + 1), "not NAME=VALUE")
        })?;
        variables.insert(name, value);
    }
    Ok(variables)
}

/// A go.sum: `path version sum` lines; those of go.mod files, whose version ends
/// in `/go.mod`, are passed over (Go modules reference, "go.sum files").
fn go_sums(path: &Path, privileged: bool) -> Result<BTreeMap<(String, String), String>, HostError> {
    let text = read_trusted(path, privileged)
        .map_err(|e| HostError::new(path.display(), crate::value::cause(&e)))?;
    let mut sums = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => {}
            [_, version, _] if version.ends_with("/go.mod") => {}
            [module, version, sum] => {
                sums.insert((module.to_owned(), version.to_owned()), sum.to_owned());
            }
            _ => {
                let place = format!("{}:{}", path.display(), number + 1);
                return Err(HostError::new(place, "not MODULE VERSION SUM (is it a go.sum?)"));
            }
        }
    }
    Ok(sums)
}

/// Opens the binary and checks who may change it.
///
/// # Errors
/// `NotFound` where there is none, `PermissionDenied` where it may not be
/// executed, `Other` where strangers may write it.
pub fn open_binary(path: &Path, privileged: bool) -> io::Result<(std::fs::File, PathBuf)> {
    let real = path.canonicalize()?;
    let file = open_now(&real)?;
    let data = file.metadata()?;
    if !data.is_file() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a regular file"));
    }
    if data.mode() & 0o111 == 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "not executable (chmod +x it)",
        ));
    }
    if privileged && data.mode() & 0o022 != 0 {
        return Err(io::Error::other("writable by group or others (chmod go-w it)"));
    }
    Ok((file, real))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_files() {
        let dir = crate::testing::TempDir::new("env-file");
        let path = dir.path().join("env");
        std::fs::write(&path, "# comment\n\nA=1\nB=two words = more\n  # also\n").unwrap();
        let variables = env_file(&path, false).unwrap();
        assert_eq!(variables["A"], "1");
        assert_eq!(variables["B"], "two words = more");
        assert_eq!(variables.len(), 2);
        std::fs::write(&path, "A=1\nsecret without equals\n").unwrap();
        let error = env_file(&path, false).unwrap_err().to_string();
        assert!(error.ends_with("env:2: not NAME=VALUE"), "{error}");
    }

    #[test]
    fn kernels() {
        assert_eq!(version("6.1.0-29-cloud-amd64").unwrap(), (6, 1));
        assert_eq!(version("6.18-rc3+").unwrap(), (6, 18));
        for wrong in ["", "6", "6.", "linux 6.1", "99999999999.1"] {
            assert!(version(wrong).unwrap_err().to_string().contains("no version"), "{wrong}");
        }
        let said = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert_eq!(kernel().unwrap(), (version(&said).unwrap(), said.trim().to_owned()));
    }

    #[test]
    fn time_zones() {
        let dir = crate::testing::TempDir::new("zone");
        for (target, zone) in [
            ("/usr/share/zoneinfo/Europe/Berlin", Some("Europe/Berlin")),
            ("../usr/share/zoneinfo/Etc/UTC", Some("Etc/UTC")),
            ("/usr/share/zoneinfo/../../etc/shadow", None),
            ("/somewhere/else", None),
        ] {
            let link = dir.path().join("localtime");
            drop(std::fs::remove_file(&link));
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert_eq!(timezone(dir.path()).as_deref(), zone, "{target}");
        }
    }
}
