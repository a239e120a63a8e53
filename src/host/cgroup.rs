//! Where gosandbox stands in the cgroup v2 hierarchy.

use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{AccessFlags, access};
use procfs::FromRead;
use procfs::process::MountInfos;

use super::{HostError, Roots};
use crate::plan::CgroupFacts;

/// `None` where cgroup v2 is not mounted.
pub(super) fn read(roots: &Roots) -> Result<Option<CgroupFacts>, HostError> {
    let Some(mount) = mount_point(roots)? else {
        return Ok(None);
    };
    let own = own(roots)?;
    let here = mount.join(own.strip_prefix("/").unwrap_or(&own));
    let above = here.parent().filter(|p| p.starts_with(&mount));
    let root_controllers = controllers(&mount);
    Ok(Some(CgroupFacts {
        own_delegated: delegated(&here),
        parent_delegated: above.is_some_and(delegated),
        own_writable: access(&here, AccessFlags::W_OK).is_ok(),
        // The root of the hierarchy has no cgroup.type: cgroup-v2.rst.
        is_root: !mount.join("cgroup.type").exists(),
        own_controllers: if here == mount { root_controllers.clone() } else { controllers(&here) },
        root_controllers,
        parent_controllers: above.map(controllers).unwrap_or_default(),
        mount,
        own,
    }))
}

/// Where systemd mounts it, unified or hybrid, asked first because it is one
/// call; else wherever mountinfo says.
fn mount_point(roots: &Roots) -> Result<Option<PathBuf>, HostError> {
    for usual in ["", "unified"] {
        let path = roots.cgroup.join(usual);
        if statfs(&path).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            return Ok(Some(path));
        }
    }
    let file = roots.proc.join("self/mountinfo");
    let text = super::read_text(&file)?;
    let mounts =
        MountInfos::from_read(text.as_bytes()).map_err(|e| HostError::new(file.display(), e))?;
    Ok(mounts.0.into_iter().find(|m| m.fs_type == "cgroup2").map(|m| m.mount_point))
}

/// The path behind `0::` in /proc/self/cgroup.
fn own(roots: &Roots) -> Result<PathBuf, HostError> {
    let path = roots.proc.join("self/cgroup");
    let text = super::read_text(&path)?;
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(PathBuf::from)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_machine_without_cgroup2_says_so_and_a_hybrid_one_is_understood() {
        let dir = TempDir::new("cgroup");
        let proc = dir.path().join("proc/self");
        std::fs::create_dir_all(&proc).unwrap();
        std::fs::write(proc.join("cgroup"), "4:memory:/x\n0::/user.slice/a b\n").unwrap();
        let line = |fs: &str, at: &Path| {
            format!("31 24 0:27 / {} rw,relatime shared:5 - {fs} none rw\n", at.display())
        };
        let v1 = line("cgroup", Path::new("/sys/fs/cgroup/memory"));
        std::fs::write(proc.join("mountinfo"), &v1).unwrap();
        let roots = Roots {
            proc: dir.path().join("proc"),
            cgroup: dir.path().join("nowhere"),
            ..Roots::default()
        };
        assert_eq!(read(&roots).unwrap(), None);

        let mount = dir.path().join("unified");
        let here = mount.join("user.slice/a b");
        std::fs::create_dir_all(&here).unwrap();
        std::fs::write(mount.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        std::fs::write(here.join("cgroup.controllers"), "memory\n").unwrap();
        std::fs::write(proc.join("mountinfo"), v1 + &line("cgroup2", &mount)).unwrap();
        let facts = read(&roots).unwrap().unwrap();
        assert_eq!(facts.own, Path::new("/user.slice/a b"));
        assert_eq!(facts.own_controllers, ["memory"]);
        assert_eq!(facts.root_controllers, ["cpu", "memory", "pids"]);
        assert!(facts.is_root && !facts.own_delegated && !facts.parent_delegated);
    }
}
