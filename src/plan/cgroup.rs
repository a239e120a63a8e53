//! Where the tenant's cgroups go and what is written into them.

use std::path::{Path, PathBuf};

use super::{HostFacts, PlanError, Step};
use crate::policy::{Need, Policy};
use crate::value::Tenant;

/// Whether the tenant has cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupPlan {
    /// These.
    Made(Box<CgroupSpec>),
    /// None: the policy says best-effort and nothing can be had.
    None,
    /// gosandbox has to run again in a scope that systemd delegates to it.
    NeedsScope,
}

/// The cgroups of one tenant: limits on `<parent>/<tenant>`, each instance in a
/// leaf below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupSpec {
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// The directory, below `mount`, that the tenant's is made in.
    pub parent: PathBuf,
    /// Directories in which `controllers` are enabled for children, the
    /// outermost first; those missing are made.
    pub enable: Vec<PathBuf>,
    /// The leaf of `parent` that the supervisor has to move itself into,
    /// because a cgroup with processes in it cannot enable controllers.
    pub move_self: Option<PathBuf>,
    /// Controllers to enable.
    pub controllers: Vec<&'static str>,
    /// The tenant's directory, below `mount`.
    pub tenant: PathBuf,
    /// What is written there.
    pub limits: ResourceLimits,
}

/// Limits on the tenant's cgroup. `None` leaves the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceLimits {
    /// memory.max, bytes.
    pub memory_max: Option<u64>,
    /// memory.high, bytes.
    pub memory_high: Option<u64>,
    /// memory.swap.max, bytes.
    pub swap_max: Option<u64>,
    /// cpu.max: quota in microseconds a period of 100 ms.
    pub cpu_quota_us: Option<u64>,
    /// cpu.weight.
    pub cpu_weight: Option<u32>,
    /// pids.max of the instance.
    pub pids_max: Option<u32>,
}

/// The leaf that the supervisor moves to. No tenant can have this name.
const SUPERVISOR: &str = "_supervisor";

const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];

/// Decides where the cgroups go. What is missing under best-effort is added to
/// `missing`.
pub(super) fn resolve(
    tenant: &Tenant,
    policy: &Policy,
    host: &HostFacts,
    scoped: bool,
    missing: &mut Vec<String>,
) -> Result<CgroupPlan, PlanError> {
    let best_effort = policy.require.cgroup.value == Need::BestEffort;
    let Some(facts) = &host.cgroup else {
        return without(
            best_effort,
            missing,
            "cgroup v2 is not mounted (mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1)",
        );
    };

    // The user manager of systemd 252 marks nothing as delegated; in a scope that
    // it made for us, being allowed to write is the mark.
    let scope_is_ours = scoped && !host.privileged && facts.own_writable;
    let (parent, enable, move_self, available) = if facts.own_delegated || scope_is_ours {
        // A unit with Delegate=yes: we sit in the cgroup that is ours to divide.
        let parent = below(&facts.own);
        (
            parent.clone(),
            vec![parent.clone()],
            Some(parent.join(SUPERVISOR)),
            &facts.own_controllers,
        )
    } else if facts.parent_delegated {
        // DelegateSubgroup=: systemd put us into a leaf already.
        let parent = below(facts.own.parent().unwrap_or(Path::new("/")));
        (parent.clone(), vec![parent], None, &facts.parent_controllers)
    } else if host.systemd && host.privileged && in_service(&facts.own) {
        // Leaving the unit for a scope would take the tenant away from the
        // limits and the stop of the unit.
        return without(
            best_effort,
            missing,
            &format!(
                "{}: this unit does not lend out its cgroup (add Delegate=yes to its [Service])",
                facts.own.display()
            ),
        );
    } else if host.can_scope && !scoped {
        // A shell under systemd. The hierarchy is systemd's, root or not; a
        // scope is how it lends out a piece.
        return Ok(CgroupPlan::NeedsScope);
    } else if host.privileged && !host.systemd && facts.is_root {
        // Plain root where nobody else rules the hierarchy.
        let parent = PathBuf::from("gosandbox");
        (parent.clone(), vec![PathBuf::new(), parent], None, &facts.root_controllers)
    } else if !host.systemd && facts.own_writable {
        // Somebody gave us this cgroup without systemd's mark: a container, or
        // an administrator with chown. It is not ours alone, so what we make in
        // it is.
        let own = below(&facts.own);
        let parent = own.join("gosandbox");
        let leaf = own.join(SUPERVISOR);
        (parent.clone(), vec![own, parent], Some(leaf), &facts.own_controllers)
    } else {
        return without(
            best_effort,
            missing,
            &format!(
                "{}: not delegated to uid {} (start it from a systemd unit with Delegate=yes, \
                 through systemd-run --user --scope -p Delegate=yes, or as root)",
                facts.mount.join(below(&facts.own)).display(),
                host.uid
            ),
        );
    };

    let controllers: Vec<&'static str> =
        NEEDED.into_iter().filter(|needed| available.iter().any(|have| have == needed)).collect();
    let absent: Vec<&str> = NEEDED.into_iter().filter(|c| !controllers.contains(c)).collect();
    if !absent.is_empty() {
        let message = format!(
            "{}: no {} controller, so the limits cannot be set (boot with \
             systemd.unified_cgroup_hierarchy=1 or cgroup_no_v1=all; or accept it with \
             --require cgroup=best-effort)",
            facts.mount.join(&parent).display(),
            absent.join(", ")
        );
        if !best_effort {
            return Err(PlanError::new(Step::Cgroup, message));
        }
        missing
            .push(format!("limits of {} (no such cgroup v2 controller here)", absent.join(", ")));
    }

    let has = |name: &str| controllers.contains(&name);
    let limits = &policy.limits;
    Ok(CgroupPlan::Made(Box::new(CgroupSpec {
        mount: facts.mount.clone(),
        tenant: parent.join(tenant.as_str()),
        parent,
        enable: if controllers.is_empty() { Vec::new() } else { enable },
        // Without controllers to enable there is no reason to move, which costs
        // milliseconds.
        move_self: move_self.filter(|_| !controllers.is_empty()),
        limits: ResourceLimits {
            memory_max: has("memory").then_some(limits.memory.value.0),
            memory_high: limits.memory_high.value.filter(|_| has("memory")).map(|size| size.0),
            swap_max: has("memory").then_some(limits.swap.value.0),
            cpu_quota_us: has("cpu").then(|| limits.cpu.value.quota_us()),
            cpu_weight: limits.cpu_weight.value.filter(|_| has("cpu")),
            pids_max: has("pids").then_some(limits.pids.value),
        },
        controllers,
    })))
}

/// Whether a cgroup is that of a service and not of somebody's session.
fn in_service(own: &Path) -> bool {
    own.extension().is_some_and(|kind| kind == "service")
}

/// `/a/b` as a path to be joined below the mount.
fn below(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

fn without(
    best_effort: bool,
    missing: &mut Vec<String>,
    message: &str,
) -> Result<CgroupPlan, PlanError> {
    if best_effort {
        missing.push(format!("every limit: {message}"));
        Ok(CgroupPlan::None)
    } else {
        Err(PlanError::new(Step::Cgroup, message))
    }
}
