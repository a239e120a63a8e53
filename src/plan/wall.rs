//! Landlock, the second wall: whether there is one, what it holds the tenant to,
//! and what it grants of each part of the root file system.
//!
//! It says again what mounts, namespaces and the filter say, so that a mistake
//! in one of them is not yet a way out.

use super::{Access, HostFacts, LandlockFact, MountOp, PlanError, Step};
use crate::policy::{Need, NetworkMode, Policy};

/// The wall around the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wall {
    /// The version of the kernel's interface, 7 at most.
    pub version: u32,
    /// Whether bind and connect of TCP are refused to the app itself. Only in a
    /// private network, where the broker makes them. Elsewhere nothing holds a
    /// tenant to addresses, and rules for ports alone, and for TCP alone, would
    /// promise more than they keep.
    pub tcp: bool,
}

/// The newest version whose rights this program knows the effects of. What later
/// ones add stays free.
const NEWEST: u32 = 7;

/// What a part of the root file system grants, with all that lies beneath.
/// Landlock adds up what the directories above grant: nothing is taken away
/// again further down, so a bind that lies in another also has what that grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grant {
    /// Read and list.
    Read,
    /// Read, list, execute.
    Execute,
    /// Read and write what is there.
    Write,
    /// Read, list, write, truncate, make, move and remove: everything but to
    /// execute and to make devices.
    Change,
}

impl MountOp {
    /// What this grants; `None` where what lies above it grants enough.
    pub fn grant(&self) -> Option<Grant> {
        match self {
            Self::Root => Some(Grant::Read),
            // random and urandom are for reading: what is written there mixes
            // into the machine's own.
            Self::Device(name, ..) => {
                ["null", "zero", "full"].contains(name).then_some(Grant::Write)
            }
            Self::Tmpfs(..) | Self::Bind { access: Access::ReadWrite, .. } => Some(Grant::Change),
            Self::Bind { access: Access::ReadOnly, .. } | Self::Binary(_) | Self::Copy(..) => {
                Some(Grant::Execute)
            }
            Self::Directory(_)
            | Self::File(..)
            | Self::Link(..)
            | Self::Proc
            | Self::Mask(..)
            | Self::LockProc
            | Self::Bind { access: Access::Data, .. } => None,
        }
    }
}

impl Wall {
    /// What this version holds, in words, and what only a later one would.
    pub fn coverage(self) -> (Vec<&'static str>, Vec<&'static str>) {
        // Documentation/userspace-api/landlock.rst, "Previous limitations".
        const HELD: [(u32, &str); 5] = [
            (1, "files"),
            (3, "truncation"),
            (4, "TCP"),
            (5, "device ioctls"),
            (6, "signals and abstract sockets"),
        ];
        let wanted = HELD.iter().filter(|(_, what)| self.tcp || *what != "TCP");
        let (held, free): (Vec<_>, Vec<_>) = wanted.partition(|(from, _)| self.version >= *from);
        let names = |list: Vec<&(u32, &'static str)>| list.into_iter().map(|(_, n)| *n).collect();
        (names(held), names(free))
    }

    /// Whether signals and abstract sockets are held.
    pub fn scopes(self) -> bool {
        self.version >= 6
    }
}

impl LandlockFact {
    /// The version, or what is missing and what to do about it.
    ///
    /// # Errors
    /// This kernel has no Landlock that could be used.
    pub fn version(&self) -> Result<u32, (String, &'static str)> {
        match self {
            Self::Version(version) => Ok(*version),
            Self::NotBuilt => Err((
                "this kernel is built without it".to_owned(),
                "boot one with CONFIG_SECURITY_LANDLOCK=y, as distributions have",
            )),
            Self::NotEnabled => Err((
                "this kernel was booted without it".to_owned(),
                "boot with lsm=landlock, and behind that what /sys/kernel/security/lsm lists",
            )),
            Self::Unknown(cause) => Err((
                cause.clone(),
                "a seccomp profile around gosandbox has to let its three system calls through",
            )),
        }
    }
}

/// Whether there is a wall. Under best-effort what is missing is added to
/// `without`.
pub(super) fn resolve(
    policy: &Policy,
    host: &HostFacts,
    without: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<Option<Wall>, PlanError> {
    let version = match host.landlock.version() {
        Ok(version) => version,
        Err((cause, remedy)) if policy.require.landlock.value == Need::BestEffort => {
            without.push(format!("Landlock: {cause} ({remedy})"));
            return Ok(None);
        }
        Err((cause, remedy)) => {
            return Err(PlanError::new(
                Step::Landlock,
                format!("{cause} ({remedy}; or accept it with --require landlock=best-effort)"),
            ));
        }
    };
    if version < 2 {
        // landlock(7): without LANDLOCK_ACCESS_FS_REFER nothing can grant it.
        notes.push(
            "files cannot be moved or linked from one directory to another (EXDEV): Landlock of Linux before 5.19"
                .to_owned(),
        );
    }
    let tcp = policy.network.mode.value == NetworkMode::Private;
    Ok(Some(Wall { version: version.min(NEWEST), tcp }))
}
