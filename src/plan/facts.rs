//! What was read from this machine and from the binary, as plain data, so that
//! the plan is a pure function of it. Reading is done by `host` and `golang`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::golang::{BuildInfo, Linkage, NoBuildInfo};
use crate::policy::Sha256;
use crate::value::{HostGid, HostUid};

/// What was read from this machine.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// Version and major revision of the kernel, as (6, 1).
    pub kernel: (u32, u32),
    /// Effective ids of gosandbox.
    pub uid: HostUid,
    /// See `uid`.
    pub gid: HostGid,
    /// Whether gosandbox may map ids, mount and change ownership: it has
    /// CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN.
    pub privileged: bool,
    /// Whether it may raise hard limits, asked where one is too low.
    pub may_raise_limits: bool,
    /// The tenant's host id, where gosandbox is privileged.
    pub host_id: Option<IdFact>,
    /// Processors this process may run on.
    pub cpus: u32,
    /// Hard RLIMIT_NOFILE.
    pub open_files_hard: u64,
    /// cgroup v2, where it is mounted.
    pub cgroup: Option<CgroupFacts>,
    /// What this kernel has of Landlock.
    pub landlock: LandlockFact,
    /// Whether systemd is the service manager: sd_booted(3).
    pub systemd: bool,
    /// Whether systemd can be asked for a scope: its manager for this user runs.
    pub can_scope: bool,
    /// The paths that the policy or the default root file system names.
    pub paths: BTreeMap<PathBuf, PathFact>,
    /// Time zone of the host, from /etc/localtime.
    pub timezone: Option<String>,
    /// The resolvers of /etc/resolv.conf, where the policy lists a name.
    pub resolvers: Vec<IpAddr>,
    /// What gosandbox's stdin is.
    pub stdin: StdinFact,
    /// Sockets inherited from systemd.
    pub inherited: Vec<InheritedFact>,
    /// gosandbox's own environment, as far as the policy passes it on.
    pub environment: BTreeMap<String, String>,
    /// The policy's go.sum: module path and version, sum.
    pub go_sums: BTreeMap<(String, String), String>,
    /// Contents of the policy's env_file.
    pub env_file: BTreeMap<String, String>,
    /// /proc/self/oom_score_adj of gosandbox.
    pub oom_score_adj: i32,
}

/// What a kernel has of Landlock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LandlockFact {
    /// This version of its interface: landlock(7).
    Version(u32),
    /// It is built without.
    NotBuilt,
    /// It was booted without.
    NotEnabled,
    /// It, or somebody in front of it, does not answer; the error in words.
    Unknown(String),
}

/// What gosandbox's stdin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StdinFact {
    /// A file, a pipe, a socket, a character device.
    Ordinary,
    /// A file that can be written to: `0<>file`.
    Writable,
    /// A terminal.
    Terminal,
    /// A directory, a block device, or a descriptor of a path: ways to the
    /// host's files, in words.
    Door(&'static str),
}

/// A tenant's id on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdFact {
    /// uid and gid.
    pub id: HostUid,
    /// Whether it stands in the record already.
    pub recorded: bool,
}

/// A path on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathFact {
    /// What is there.
    pub kind: PathKind,
    /// The path with every symbolic link resolved.
    pub real: PathBuf,
    /// Owner.
    pub uid: HostUid,
    /// Group.
    pub gid: HostGid,
    /// Permission bits.
    pub mode: u32,
}

/// What a path names, links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// A directory.
    Directory,
    /// Anything else that can be bound.
    File,
    /// Nothing, or nothing that may be seen.
    Missing,
}

/// Where gosandbox stands in the cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupFacts {
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// gosandbox's own cgroup, below `mount`, beginning with '/'.
    pub own: PathBuf,
    /// Whether `own` may be divided by us: systemd's `user.delegate` or
    /// `trusted.delegate` mark is on it.
    pub own_delegated: bool,
    /// Whether the parent of `own` is delegated to us: systemd 254's
    /// DelegateSubgroup= puts us one below.
    pub parent_delegated: bool,
    /// Whether directories may be made in `own`.
    pub own_writable: bool,
    /// Whether `mount` is the root of the hierarchy and not of a namespace.
    pub is_root: bool,
    /// Controllers at `mount`.
    pub root_controllers: Vec<String>,
    /// Controllers that `own` may enable for children.
    pub own_controllers: Vec<String>,
    /// Controllers that the parent of `own` may enable for children.
    pub parent_controllers: Vec<String>,
}

/// A listening socket handed over by systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InheritedFact {
    /// Descriptor number.
    pub fd: i32,
    /// From LISTEN_FDNAMES.
    pub name: String,
    /// What it is bound to.
    pub address: InheritedAddress,
    /// A stream socket in the listening state.
    pub listening: bool,
}

/// What an inherited socket is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InheritedAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix, by path.
    Unix(PathBuf),
    /// Anything else, in words.
    Other(String),
}

impl std::fmt::Display for InheritedAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// What was read from the ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinaryFacts {
    /// Absolute path, links resolved.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Its sum, where a copy that nobody can write was made and will be executed:
    /// the policy asks something of the binary.
    pub sha256: Option<Sha256>,
    /// What its loader is told; a static one has none.
    pub linkage: Linkage,
    /// What its loader will open, or which of it is not there.
    pub libraries: Result<Vec<Library>, String>,
    /// Whether its headers ask for memory that is both written and executed: such
    /// a segment, or an executable stack.
    pub writable_code: bool,
    /// What it says of how Go built it.
    pub go: Result<BuildInfo, NoBuildInfo>,
}

/// A file that the loader of a dynamically linked binary will open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Where it will look, inside.
    pub inside: PathBuf,
    /// What is to be there, on the host, links resolved.
    pub source: PathBuf,
    /// Whether it is executed. The loader's configuration is not.
    pub code: bool,
}
