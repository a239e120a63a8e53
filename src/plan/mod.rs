//! The plan: what exactly will be done, in which order, to which kernel object.
//!
//! [`resolve`] is a pure function of a policy, of what was read from the
//! machine and of what was read from the binary. Nothing in this module opens a
//! file, asks the kernel or reads a clock.

mod admission;
mod cgroup;
mod facts;
mod print;
mod resolve;
mod rootfs;
mod step;
mod wall;

pub use cgroup::{CgroupPlan, CgroupSpec, ResourceLimits};
pub use facts::{
    BinaryFacts, CgroupFacts, HostFacts, IdFact, InheritedAddress, InheritedFact, LandlockFact,
    Library, PathFact, PathKind, StdinFact,
};
pub use resolve::{Request, resolve};

pub use rootfs::{Access, MountOp, system_paths};
pub use step::{Actor, Step};
pub use wall::{Grant, Wall};

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use crate::golang::Chosen;
use crate::policy::{Egress, Listener, NetworkMode, Policy, Ready};
use crate::seccomp::Rules;
use crate::value::{HostGid, HostUid, NsId, Tenant};

/// Everything that `run` will do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whose it is.
    pub tenant: Tenant,
    /// Who the tenant is.
    pub identity: Identity,
    /// Path of the binary on the host.
    pub binary: PathBuf,
    /// What the policy asks of the binary, and what was found, a line each.
    pub admitted: Vec<String>,
    /// Path of the binary inside.
    pub exec: PathBuf,
    /// Arguments, the program's name first.
    pub args: Vec<OsString>,
    /// Environment, in the order in which it is laid out.
    pub env: Vec<(String, OsString)>,
    /// What was chosen for Go's runtime, and why.
    pub runtime: Vec<Chosen>,
    /// Working directory inside.
    pub workdir: PathBuf,
    /// What stdin is.
    pub stdin: Stdin,
    /// Sockets to hand over, in the order of their descriptors from 3 on.
    pub listeners: Vec<ListenerPlan>,
    /// Whose network.
    pub network: NetworkMode,
    /// What the broker lets out, where there is one: the filter asks about calls.
    pub broker: Option<BrokerPlan>,
    /// What the root file system is made of, in order.
    pub rootfs: Vec<MountOp>,
    /// Soft and hard limits by name.
    pub rlimits: Vec<Rlimit>,
    /// Raise the supervisor's own hard RLIMIT_NOFILE to this first.
    pub raise_open_files: Option<u64>,
    /// The cgroups.
    pub cgroup: CgroupPlan,
    /// Landlock around the app; `None` where the policy lets it go and the kernel
    /// has none.
    pub wall: Option<Wall>,
    /// What may be asked of the kernel.
    pub rules: Rc<Rules>,
    /// Time between SIGTERM and the forced end.
    pub grace: Duration,
    /// When the service manager is told that it is up.
    pub ready: Ready,
    /// oom_score_adj is raised to 0: a protected supervisor's tenant is not
    /// protected.
    pub reset_oom_score: bool,
    /// Protections that the policy lets go and the machine does not give.
    pub missing: Vec<String>,
    /// Things worth knowing that are no loss of protection.
    pub notes: Vec<String>,
}

/// What a broker lets out, and when there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerPlan {
    /// It is made before the tenant's binary runs, since ways in or out are
    /// declared, and what is amiss with them is to be known then. Else it is made
    /// when the filter first asks: a tenant that keeps to itself has none.
    pub first: bool,
    /// It also tells what the tenant does that is let through.
    pub learns: bool,
    /// Where to.
    pub egress: Vec<Egress>,
    /// Who is asked for names, where one is listed.
    pub resolvers: Vec<SocketAddr>,
}

impl BrokerPlan {
    /// Whether names are listed, so that the tenant gets a name server.
    pub fn has_names(&self) -> bool {
        self.egress.iter().any(Egress::is_name) || (self.learns && !self.resolvers.is_empty())
    }
}

/// Where the tenant's cgroups would go: the part of [`resolve`] that a question
/// about the machine needs.
///
/// # Errors
/// As [`resolve`].
pub fn cgroup_plan(
    tenant: &Tenant,
    policy: &Policy,
    host: &HostFacts,
) -> Result<CgroupPlan, PlanError> {
    cgroup::resolve(tenant, policy, host, false, &mut Vec::new())
}

/// Who the tenant is, inside and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The one uid and gid inside.
    pub inside: NsId,
    /// What the uid is mapped to.
    pub uid: HostUid,
    /// What the gid is mapped to.
    pub gid: HostGid,
    /// Where the host's ids come from.
    pub kind: IdentityKind,
}

/// Where the host's ids come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityKind {
    /// The tenant's own, from the record.
    Recorded,
    /// The tenant's own, not yet in the record.
    New,
    /// gosandbox is not privileged: its caller's.
    Caller,
}

/// What the tenant's stdin is. stdout and stderr are always pipes of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    /// gosandbox's own.
    Inherited,
    /// /dev/null, instead of a terminal: a tenant in the background, in a
    /// session of its own, would read what is typed to the shell.
    Null,
}

/// One socket to hand over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerPlan {
    /// What the tenant is told.
    pub listener: Listener,
    /// The descriptor that was inherited for it; `None` opens a new one.
    pub inherited: Option<i32>,
}

/// One resource limit: getrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// Which.
    pub resource: Resource,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// The limits that are set. RLIMIT_AS is absent on purpose: Go reserves address
/// space freely. RLIMIT_NPROC is too: it counts by host id and pids.max does it
/// by tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Descriptors.
    OpenFiles,
    /// Core dumps.
    Core,
    /// Locked memory.
    LockedMemory,
    /// POSIX message queues.
    MessageQueues,
    /// Niceness that may be asked for.
    Nice,
    /// Real-time priority that may be asked for.
    RealTimePriority,
}

impl Resource {
    /// As in getrlimit(2).
    pub fn label(self) -> &'static str {
        match self {
            Self::OpenFiles => "NOFILE",
            Self::Core => "CORE",
            Self::LockedMemory => "MEMLOCK",
            Self::MessageQueues => "MSGQUEUE",
            Self::Nice => "NICE",
            Self::RealTimePriority => "RTPRIO",
        }
    }
}

/// Why there can be no plan. The message holds the object, the cause and the
/// remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", step.label(), message)]
pub struct PlanError {
    /// The step that could not be taken.
    pub step: Step,
    /// Object, cause, remedy.
    pub message: String,
    /// Whether it is the binary that is refused (126) and not the set-up (125).
    pub refused: bool,
}

impl PlanError {
    fn new(step: Step, message: impl Into<String>) -> Self {
        Self { step, message: message.into(), refused: false }
    }

    fn refused(message: impl Into<String>) -> Self {
        Self { step: Step::Open, message: message.into(), refused: true }
    }
}
