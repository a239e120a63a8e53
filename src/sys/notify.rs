//! seccomp user notification: seccomp_unotify(2).

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;

use super::check;

/// A trapped call, whose caller waits for the answer.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    /// Names the call as long as its caller waits.
    pub id: u64,
    /// Thread id of the caller in this process's pid namespace.
    pub thread: libc::pid_t,
    /// The call's number.
    pub number: i64,
    /// Its arguments.
    pub args: [u64; 6],
}

/// One ioctl(2) of the listener that takes a pointer.
fn control<T>(
    listener: BorrowedFd<'_>,
    request: libc::Ioctl,
    argument: *mut T,
) -> Result<libc::c_long, Errno> {
    // SAFETY: every request in this file reads or writes one structure of the
    // size that is part of its number; callers pass a live one.
    check(unsafe { libc::syscall(libc::SYS_ioctl, listener.as_raw_fd(), request, argument) })
}

/// Takes the next trapped call; waits where there is none.
///
/// ENOENT where its caller was killed in between; EINTR.
pub fn receive(listener: BorrowedFd<'_>) -> Result<Notification, Errno> {
    // SAFETY: seccomp_notif is plain data; the kernel asks for zeroes.
    let mut raw: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    control(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut raw)?;
    Ok(Notification {
        id: raw.id,
        thread: raw.pid.cast_signed(),
        number: raw.data.nr.into(),
        args: raw.data.args,
    })
}

/// Gives the waiting caller its return value or errno; a number, since a profile
/// may have any, and one that [`Errno`] does not know would become 0, a success.
/// ENOENT where the caller was killed meanwhile.
pub fn answer(listener: BorrowedFd<'_>, id: u64, result: Result<i64, i32>) -> Result<(), Errno> {
    let mut raw = libc::seccomp_notif_resp {
        id,
        val: result.unwrap_or(0),
        error: result.err().map_or(0, |errno| -errno),
        flags: 0,
    };
    control(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut raw).map(drop)
}

/// Has the waiting caller take its signals and, where they do not end it, make
/// the call again: ERESTARTSYS, which the kernel keeps to itself.
pub fn restart(listener: BorrowedFd<'_>, id: u64) -> Result<(), Errno> {
    const ERESTARTSYS: i32 = 512;
    let mut raw = libc::seccomp_notif_resp { id, val: 0, error: -ERESTARTSYS, flags: 0 };
    control(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut raw).map(drop)
}

/// Lets the kernel carry out the waiting caller's call:
/// SECCOMP_USER_NOTIF_FLAG_CONTINUE, Linux 5.5. Only for what the rules would have
/// let through without asking: what the call points to may be something else by
/// then.
pub fn resume(listener: BorrowedFd<'_>, id: u64) -> Result<(), Errno> {
    #[allow(clippy::cast_possible_truncation)] // 1, in a field of 32 bits
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let mut raw = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
    control(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut raw).map(drop)
}

/// Whether the caller still waits. What was learnt about its thread id before
/// this said yes is about that caller, and not about a later one of the same
/// number.
pub fn is_waiting(listener: BorrowedFd<'_>, mut id: u64) -> bool {
    control(listener, libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id).is_ok()
}

/// Puts a copy of `fd` at the number `at` of the caller's descriptors, in the
/// place of what is there: SECCOMP_ADDFD_FLAG_SETFD, Linux 5.9.
pub fn inject(
    listener: BorrowedFd<'_>,
    id: u64,
    fd: BorrowedFd<'_>,
    at: RawFd,
    close_on_exec: bool,
) -> Result<(), Errno> {
    #[allow(clippy::cast_possible_truncation)] // 1, in a field of 32 bits
    let mut raw = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
        srcfd: fd.as_raw_fd().cast_unsigned(),
        newfd: at.cast_unsigned(),
        newfd_flags: if close_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
    };
    control(listener, libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw mut raw).map(drop)
}

/// Has the caller and this process wake each other on one processor, which is
/// several times faster: SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, Linux 6.6; EINVAL
/// before.
pub fn wake_synchronously(listener: BorrowedFd<'_>) -> Result<(), Errno> {
    const SYNC_WAKE_UP: u64 = 1;
    // The flags are the argument itself and not pointed to.
    // SAFETY: SET_FLAGS takes an integer.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS,
            SYNC_WAKE_UP,
        )
    })
    .map(drop)
}
