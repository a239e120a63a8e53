//! Where gosandbox stands in the cgroup v2 hierarchy.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use procfs::process::MountInfos;
use procfs::{FromRead, ProcessCGroups};

use super::{HostError, Roots};
use crate::plan::CgroupFacts;

/// `None` where cgroup v2 is not mounted.
pub(super) fn read(roots: &Roots) -> Result<Option<CgroupFacts>, HostError> {
    let mounts = roots.proc.join("self/mountinfo");
    let text = super::read_text(&mounts)?;
    let mounts =
        MountInfos::from_read(text.as_bytes()).map_err(|e| HostError::new(mounts.display(), e))?;
    let Some(mount) = mounts.0.into_iter().find(|m| m.fs_type == "cgroup2") else {
        return Ok(None);
    };
    let mount = mount.mount_point;
    let own = own(roots)?;
    let here = mount.join(own.strip_prefix("/").unwrap_or(&own));
    let above = here.parent().filter(|p| p.starts_with(&mount));
    Ok(Some(CgroupFacts {
        own_delegated: delegated(&here),
        parent_delegated: above.is_some_and(delegated),
        own_writable: access(&here, AccessFlags::W_OK).is_ok(),
        // The root of the hierarchy has no cgroup.type: cgroup-v2.rst.
        is_root: !mount.join("cgroup.type").exists(),
        root_controllers: controllers(&mount),
        own_controllers: controllers(&here),
        parent_controllers: above.map(controllers).unwrap_or_default(),
        mount,
        own,
    }))
}

/// The path behind `0::` in /proc/self/cgroup.
fn own(roots: &Roots) -> Result<PathBuf, HostError> {
    let path = roots.proc.join("self/cgroup");
    let text = super::read_text(&path)?;
    let groups = ProcessCGroups::from_read(text.as_bytes())
        .map_err(|e| HostError::new(path.display(), e))?;
    groups
        .0
        .into_iter()
        .find(|group| group.hierarchy == 0)
        .map(|group| PathBuf::from(group.pathname))
        .ok_or_else(|| HostError::new(path.display(), "no cgroup v2 line"))
}

fn controllers(dir: &Path) -> Vec<String> {
    std::fs::read_to_string(dir.join("cgroup.controllers"))
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

/// systemd marks what it delegates: `trusted.delegate` for system units, which
/// only root can read, and since 251 `user.delegate` for all.
fn delegated(dir: &Path) -> bool {
    let marked = ["user.delegate", "trusted.delegate"]
        .iter()
        .any(|name| crate::sys::fd::extended_attribute(dir, name).is_ok_and(|value| value == b"1"));
    marked && access(dir, AccessFlags::W_OK).is_ok()
}
