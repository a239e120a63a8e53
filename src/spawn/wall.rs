//! Landlock around the app: a ruleset that is made before clone, as far as what
//! it is about exists by then, and completed and entered by the app.
//!
//! Rules are tied to inodes, so what the supervisor opened and checked needs no
//! second look-up; the root, the scratch file systems and a checked copy of the
//! binary exist only inside.

use std::ffi::CString;
use std::os::fd::AsFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::prepare::{Tree, path};
use crate::plan::{self, Grant, MountOp, Plan, Stdin};

/// The wall, not entered yet.
#[derive(Debug)]
pub(super) struct Wall {
    ruleset: Option<RulesetCreated>,
    abi: ABI,
    /// What exists only in the new root, by its path there.
    inside: Vec<(CString, Grant)>,
}

impl Wall {
    /// A ruleset for `plan`, with rules for everything in `trees`.
    pub(super) fn new(plan: &Plan, wall: plan::Wall, trees: &[Tree]) -> Result<Self, Errno> {
        // The version is a fact and what it holds is in the plan, so here nothing
        // is to be left out in silence.
        let abi = ABI::from(i32::try_from(wall.version).unwrap_or(i32::MAX));
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))
            .map_err(errno)?;
        let net = AccessNet::from_all(abi);
        if wall.tcp && !net.is_empty() {
            ruleset = ruleset.handle_access(net).map_err(errno)?;
        }
        if wall.scopes() {
            ruleset = ruleset.scope(Scope::from_all(abi)).map_err(errno)?;
        }
        let mut ruleset = ruleset.create().map_err(errno)?;
        for tree in trees {
            if let Some(grant) = plan.rootfs.get(tree.object).and_then(MountOp::grant) {
                allow(&mut ruleset, &tree.opened, rights(grant, abi))?;
            }
        }
        if plan.stdin == Stdin::Inherited {
            // A program that opens /dev/stdin gets what it may read already.
            allow(&mut ruleset, std::io::stdin(), AccessFs::ReadFile.into())?;
        }
        let inside = plan.rootfs.iter().filter_map(|op| match op {
            MountOp::Root => Some((c"/".to_owned(), op.grant()?)),
            MountOp::Tmpfs(target, _) | MountOp::Copy(target, _) => {
                Some((path(target), op.grant()?))
            }
            _ => None,
        });
        Ok(Self { ruleset: Some(ruleset), abi, inside: inside.collect() })
    }

    /// Completes the ruleset and puts the calling thread under it, for good and
    /// with all that comes of it. For a thread that is inside the new root and
    /// cannot gain privileges.
    ///
    /// Allocates and frees nothing, and neither does what of the crate it calls.
    pub(super) fn enter(&mut self) -> Result<(), Errno> {
        let mut ruleset = self.ruleset.take().ok_or(Errno::EBADF)?;
        for (path, grant) in &self.inside {
            let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
            let opened = open(path.as_c_str(), flags, Mode::empty())?;
            allow(&mut ruleset, &opened, rights(*grant, self.abi))?;
        }
        // no_new_privs is a step of its own. What is refused after exec is not
        // logged, as the kernel has it if nobody asks: no tenant fills the host's
        // audit log.
        let status = ruleset.no_new_privs(false).restrict_self().map_err(errno)?;
        match status.ruleset {
            RulesetStatus::FullyEnforced => Ok(()),
            RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => Err(Errno::ENOSYS),
        }
    }
}

/// What `grant` is in the rights of `abi`.
fn rights(grant: Grant, abi: ABI) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let devices = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    match grant {
        Grant::Read => read,
        Grant::Execute => read | AccessFs::Execute,
        Grant::Write => AccessFs::ReadFile | AccessFs::WriteFile,
        Grant::Change => read | (AccessFs::from_write(abi) & !devices),
    }
}

/// Lets `rights` be used on what `object` is, and beneath it.
fn allow(
    ruleset: &mut RulesetCreated,
    object: impl AsFd,
    rights: BitFlags<AccessFs>,
) -> Result<(), Errno> {
    let mode = fstat(&object)?.st_mode & SFlag::S_IFMT.bits();
    let rights = match SFlag::from_bits_truncate(mode) {
        SFlag::S_IFDIR => rights,
        // Others of them are an error on a file: EINVAL.
        _ => rights & AccessFs::from_file(ABI::V7),
    };
    match ruleset.add_rule(PathBeneath::new(object, rights)).map_err(errno) {
        // A pipe, a socket, a namespace: no rule can be for what no file system
        // that people mount holds, and none is needed (security/landlock/fs.c,
        // is_nouser_or_private).
        Ok(_) | Err(Errno::EBADFD) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// EINVAL where it is the crate that refuses.
fn errno(error: RulesetError) -> Errno {
    Errno::from_raw(*landlock::Errno::from(error))
}

#[cfg(test)]
#[path = "wall_tests.rs"]
mod tests;
