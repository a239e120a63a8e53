//! The mount interface of Linux 5.2 and 5.12, which `nix` does not have.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::check;

/// `MOUNT_ATTR_*` of include/uapi/linux/mount.h.
pub const ATTR_RDONLY: u64 = 0x1;
/// See [`ATTR_RDONLY`].
pub const ATTR_NOSUID: u64 = 0x2;
/// See [`ATTR_RDONLY`].
pub const ATTR_NODEV: u64 = 0x4;
/// See [`ATTR_RDONLY`].
pub const ATTR_NOEXEC: u64 = 0x8;

/// A detached copy of the mount that `path` lies on, rooted at `path`:
/// open_tree(2) with OPEN_TREE_CLONE. `recursive` takes the mounts below too.
///
/// An empty `path` clones what `dir` itself refers to.
pub fn clone_tree(dir: RawFd, path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH as libc::c_uint;
    }
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches the detached mount `tree` at `path` below `dir`: move_mount(2).
/// An empty `path` means the object that `dir` refers to; a symbolic link at
/// the end of `path` is never followed.
pub fn attach_tree(tree: BorrowedFd<'_>, dir: RawFd, path: &CStr) -> Result<(), Errno> {
    let mut flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= libc::MOVE_MOUNT_T_EMPTY_PATH;
    }
    // SAFETY: both paths are NUL-terminated and outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            dir,
            path.as_ptr(),
            flags,
        )
    })
    .map(drop)
}

/// Sets `attributes` (`ATTR_*`) on the mount `fd` refers to, and on those below
/// it where `recursive`: mount_setattr(2), Linux 5.12. It never clears any, so
/// it works where a remount over locked flags is EPERM. The mount is made private
/// too, which a clone of the host's is not.
pub fn set_attributes(fd: BorrowedFd<'_>, attributes: u64, recursive: bool) -> Result<(), Errno> {
    set_attributes_at(fd.as_raw_fd(), c"", attributes, recursive)
}

/// [`set_attributes`] for the mount at `path` below `dir`.
pub fn set_attributes_at(
    dir: RawFd,
    path: &CStr,
    attributes: u64,
    recursive: bool,
) -> Result<(), Errno> {
    let attr = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        // A clone of a shared mount is its peer; that has to end.
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let mut flags = libc::AT_SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `path` is NUL-terminated, `attr` is a mount_attr of the size
    // passed; both outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}
