//! The tenant's cgroups: made, limited, watched, killed and removed.
//!
//! Limits are on `<tenant>/`; the instance that runs lives in a leaf below it
//! with its own memory.oom.group, cgroup.kill and pids.max. What was made is
//! removed on every way out: [`Instance`] does it when dropped.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cgroups_rs::MaxValue;
use cgroups_rs::cpu::CpuController;
use cgroups_rs::memory::{MemController, SetMemory};
use cgroups_rs::pid::PidController;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::plan::{CgroupSpec, ResourceLimits};
use crate::value::CpuQuota;

/// A file of the hierarchy that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", path.display(), cause)]
pub struct CgroupError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub cause: io::Error,
}

impl CgroupError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |cause| Self { path: path.to_owned(), cause }
    }

    /// The errno behind it, for the remedy.
    pub fn errno(&self) -> Errno {
        Errno::from_raw(self.cause.raw_os_error().unwrap_or(0))
    }
}

/// The name of the one instance that there is at a time.
const INSTANCE: &str = "1";

/// Where the broker lives: under the tenant's limits, since what it does is for
/// the tenant, and the sockets that it makes are charged where it is. Not in the
/// instance, which may be frozen while a call of its waits for an answer.
const BROKER: &str = "broker";

/// How long leftovers of a dead supervisor may take to vanish. They were killed
/// with it; this is for the kernel to finish.
const LEFTOVER_DEADLINE: Duration = Duration::from_secs(5);

/// One instance's cgroup. Dropping it kills and removes what is left.
#[derive(Debug)]
pub struct Instance {
    tenant: PathBuf,
    path: PathBuf,
    dir: File,
    kill: File,
    /// Whether the tenant's cgroup limits anything.
    limited: bool,
}

/// Makes the tenant's cgroup with its limits and an instance in it. What an
/// earlier supervisor of this tenant left behind is killed and removed first;
/// the caller holds the tenant's lock.
///
/// # Errors
/// [`CgroupError`]; then nothing of the tenant's is left.
pub fn create(spec: &CgroupSpec) -> Result<Instance, CgroupError> {
    if let Some(leaf) = &spec.move_self {
        let leaf = spec.mount.join(leaf);
        make(&leaf)?;
        write(&leaf.join("cgroup.procs"), "0")?;
    }
    for dir in &spec.enable {
        let dir = spec.mount.join(dir);
        make(&dir)?;
        enable(&dir, &spec.controllers)?;
    }
    make(&spec.mount.join(&spec.parent))?;
    let tenant = spec.mount.join(&spec.tenant);
    let left = !make(&tenant)?;
    let made = instance(spec, &tenant, left);
    if made.is_err() {
        // It may hold nothing of ours that is alive; one that is not empty
        // belongs to somebody else and stays.
        drop(std::fs::remove_dir(&tenant));
    }
    made
}

fn instance(spec: &CgroupSpec, tenant: &Path, left: bool) -> Result<Instance, CgroupError> {
    if left {
        remove_leftovers(tenant)?;
    }
    if !spec.controllers.is_empty() {
        limit(tenant, &spec.limits)?;
        // For memory.oom.group and accounting by instance.
        enable(tenant, &spec.controllers)?;
    }
    let path = tenant.join(INSTANCE);
    make(&path)?;
    let open = |path: &Path, write: bool| {
        OpenOptions::new()
            .read(!write)
            .write(write)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(path)
            .map_err(CgroupError::at(path))
    };
    let cleanup = |error| {
        drop(std::fs::remove_dir(&path));
        error
    };
    if spec.limits.memory_max.is_some() {
        write(&path.join("memory.oom.group"), "1").map_err(cleanup)?;
    }
    if let Some(max) = spec.limits.pids_max {
        limit_pids(&path, max).map_err(cleanup)?;
    }
    Ok(Instance {
        tenant: tenant.to_owned(),
        limited: !spec.controllers.is_empty(),
        dir: open(&path, false).map_err(cleanup)?,
        kill: open(&path.join("cgroup.kill"), true).map_err(cleanup)?,
        path,
    })
}

impl Instance {
    /// The directory, for CLONE_INTO_CGROUP.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the broker's cgroup, for it to be born in. `None` where nothing is
    /// limited.
    ///
    /// # Errors
    /// [`CgroupError`]
    pub fn for_broker(&self) -> Result<Option<File>, CgroupError> {
        if !self.limited {
            return Ok(None);
        }
        let path = self.tenant.join(BROKER);
        make(&path)?;
        File::open(&path).map(Some).map_err(CgroupError::at(&path))
    }

    /// Kills every process in it, at once: cgroup.kill, Linux 5.14.
    ///
    /// # Errors
    /// What write(2) says; the caller has a pidfd to fall back on.
    pub fn kill(&self) -> io::Result<()> {
        (&self.kill).write_all(b"1")
    }

    /// How many processes were killed because memory.max was reached:
    /// `oom_kill` of memory.events. `None` where memory is not controlled.
    pub fn oom_kills(&self) -> Option<u64> {
        if !self.limited {
            return None;
        }
        let text = std::fs::read_to_string(self.path.join("memory.events")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The processes are gone before this in every ordinary case; rmdir says
        // so. A failure leaves a cgroup that the next start clears.
        // The broker has been reaped before.
        let broker = self.limited.then(|| std::fs::remove_dir(self.tenant.join(BROKER)));
        let failed = matches!(broker, Some(Err(e)) if e.kind() != io::ErrorKind::NotFound);
        if std::fs::remove_dir(&self.path).is_err() || failed {
            drop(remove_leftovers(&self.tenant));
        }
        // The parent stays, as a slice does: it is every tenant's, and to make it
        // anew is to enable its controllers anew.
        drop(std::fs::remove_dir(&self.tenant));
    }
}

/// Whether it was not there before.
fn make(path: &Path) -> Result<bool, CgroupError> {
    match DirBuilder::new().create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true).map_err(CgroupError::at(path)),
    }
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    // No O_CREAT: in a cgroup directory a missing file is a missing controller.
    let mut file = OpenOptions::new().write(true).open(path).map_err(CgroupError::at(path))?;
    file.write_all(text.as_bytes()).map_err(CgroupError::at(path))
}

/// Enables `controllers` for the children of `dir`; those that are, stay.
fn enable(dir: &Path, controllers: &[&str]) -> Result<(), CgroupError> {
    let path = dir.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&path).map_err(CgroupError::at(&path))?;
    let missing: Vec<String> = controllers
        .iter()
        .filter(|c| !enabled.split_whitespace().any(|e| e == **c))
        .map(|c| format!("+{c}"))
        .collect();
    if missing.is_empty() { Ok(()) } else { write(&path, &missing.join(" ")) }
}

/// The error of cgroups-rs about `file` in `dir`.
fn failed(dir: &Path, file: &str) -> impl FnOnce(cgroups_rs::error::Error) -> CgroupError + use<> {
    let path = dir.join(file);
    move |error| {
        use std::error::Error;
        let cause = error
            .source()
            .and_then(|e| e.downcast_ref::<io::Error>())
            .and_then(io::Error::raw_os_error)
            .map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
        CgroupError { path, cause }
    }
}

/// Writes pids.max.
fn limit_pids(dir: &Path, max: u32) -> Result<(), CgroupError> {
    PidController::new(dir.to_owned(), true)
        .set_pid_max(MaxValue::Value(i64::from(max)))
        .map_err(failed(dir, "pids.max"))
}

/// Writes the limits that are given; each failure is an error, none is skipped.
fn limit(dir: &Path, limits: &ResourceLimits) -> Result<(), CgroupError> {
    let failed = |file: &str| failed(dir, file);
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let memory = MemController::new(dir.to_owned(), true);
    if let Some(max) = limits.memory_max {
        memory.set_limit(signed(max)).map_err(failed("memory.max"))?;
    }
    if let Some(high) = limits.memory_high {
        let high = SetMemory { high: Some(MaxValue::Value(signed(high))), ..SetMemory::default() };
        memory.set_mem(high).map_err(failed("memory.high"))?;
    }
    // A kernel without swap accounting has no such file, and no swap to limit.
    if let Some(swap) = limits.swap_max.filter(|_| dir.join("memory.swap.max").exists()) {
        memory.set_memswap_limit(signed(swap)).map_err(failed("memory.swap.max"))?;
    }
    let cpu = CpuController::new(dir.to_owned(), true);
    if let Some(quota) = limits.cpu_quota_us {
        cpu.set_cfs_quota_and_period(Some(signed(quota)), Some(CpuQuota::PERIOD_US))
            .map_err(failed("cpu.max"))?;
    }
    if let Some(weight) = limits.cpu_weight {
        cpu.set_shares(u64::from(weight)).map_err(failed("cpu.weight"))?;
    }
    if let Some(max) = limits.pids_max {
        // The instance has `max`. The last is the broker's, which is made when a
        // call is refused, and may have to be while the tenant is at its limit.
        limit_pids(dir, max.saturating_add(1))?;
    }
    Ok(())
}

/// Kills and removes every instance in `tenant`.
fn remove_leftovers(tenant: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + LEFTOVER_DEADLINE;
    let entries = std::fs::read_dir(tenant).map_err(CgroupError::at(tenant))?;
    // Only names that we give: whatever else is there is somebody else's, and
    // then creating the instance or removing the tenant's directory fails.
    let ours = |e: &std::fs::DirEntry| e.file_name() == INSTANCE || e.file_name() == BROKER;
    for entry in entries.flatten().filter(ours) {
        let path = entry.path();
        loop {
            match std::fs::remove_dir(&path) {
                Ok(()) => break,
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    write(&path.join("cgroup.kill"), "1")?;
                    wait_empty(&path, deadline)?;
                }
                Err(e) => return Err(CgroupError::at(&path)(e)),
            }
        }
    }
    Ok(())
}

/// Waits until `populated` of cgroup.events is 0, or until `deadline`.
fn wait_empty(path: &Path, deadline: Instant) -> Result<(), CgroupError> {
    let events = path.join("cgroup.events");
    let file = File::open(&events).map_err(CgroupError::at(&events))?;
    loop {
        let text = std::fs::read_to_string(&events).map_err(CgroupError::at(&events))?;
        let left = deadline.saturating_duration_since(Instant::now());
        if text.lines().any(|line| line == "populated 0") || left.is_zero() {
            return Ok(());
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // A change of the file is an exceptional condition: cgroup-v2.rst.
        poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout)
            .map_err(|e| CgroupError::at(&events)(e.into()))?;
    }
}
