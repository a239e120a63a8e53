//! Descriptors: what `std::os::fd` and `nix` leave out.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::check;

/// Closes every descriptor from `first` to `last`, both included:
/// close_range(2), Linux 5.9. An empty range is nothing to do.
pub fn close_between(first: u32, last: u32) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: close_range takes three integers and no pointer. Callers are
    // about to exec or are the sandbox's init, which never runs a destructor;
    // no OwnedFd in the range is used again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) }).map(drop)
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) -> Result<(), Errno> {
    close_between(first, u32::MAX)
}

/// Makes every descriptor from `first` on close-on-exec: close_range(2) with
/// CLOSE_RANGE_CLOEXEC, Linux 5.11.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: close_range takes three integers and no pointer, and closes none.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// Most descriptors in one message of [`send_with`].
pub const MOST_SENT: usize = 3;

/// What CMSG_SPACE makes of [`MOST_SENT`] descriptors, aligned as cmsghdr is.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    fds: [RawFd; MOST_SENT + 1],
}

/// Sends `bytes` and copies of `fds`, [`MOST_SENT`] at most, in one message:
/// sendmsg(2), SCM_RIGHTS. Allocates nothing, which is why it is not `nix`'s.
pub fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> Result<(), Errno> {
    if fds.len() > MOST_SENT {
        return Err(Errno::EINVAL);
    }
    let mut control = Control {
        header: libc::cmsghdr {
            cmsg_len: size_of::<libc::cmsghdr>() + size_of_val(fds),
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        },
        fds: [-1; MOST_SENT + 1],
    };
    control.fds[..fds.len()].copy_from_slice(fds);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = control.header.cmsg_len;
    // SAFETY: `message` points at live values of the lengths it names; the
    // kernel only reads them.
    check(unsafe {
        libc::syscall(libc::SYS_sendmsg, socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    })
    .map(drop)
}

/// Receives one message of [`send_with`]: how many bytes there were, and the
/// descriptors in their order, close-on-exec. No bytes where the other end is
/// closed. Allocates nothing.
///
/// EBADMSG where not all of it had room.
pub fn receive_with(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> Result<(usize, [Option<OwnedFd>; MOST_SENT]), Errno> {
    let none = libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 };
    let mut control = Control { header: none, fds: [-1; MOST_SENT + 1] };
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() - size_of::<RawFd>();
    let flags = libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` points at live values with room for the lengths it names.
    let length = check(unsafe {
        libc::syscall(libc::SYS_recvmsg, socket.as_raw_fd(), &raw mut message, flags)
    })?;
    let rights = control.header.cmsg_level == libc::SOL_SOCKET
        && control.header.cmsg_type == libc::SCM_RIGHTS;
    let sent = control.header.cmsg_len.saturating_sub(size_of::<libc::cmsghdr>());
    let count = if rights { sent / size_of::<RawFd>() } else { 0 };
    let mut numbers = control.fds.into_iter().take(count);
    let fds = std::array::from_fn(|_| {
        // SAFETY: the kernel has just made these descriptors, ours alone.
        numbers.next().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    });
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(Errno::EBADMSG);
    }
    Ok((usize::try_from(length).map_err(|_| Errno::EOVERFLOW)?, fds))
}

/// Puts a copy of `from` at the number `to`, which survives exec: dup3(2)
/// without O_CLOEXEC.
///
/// EINVAL where `from` and `to` are the same number.
pub fn dup_onto(from: RawFd, to: RawFd) -> Result<(), Errno> {
    // SAFETY: dup3 takes integers. What was open at `to` is closed; the callers
    // lay out the descriptors of a process that is about to exec.
    check(unsafe { libc::syscall(libc::SYS_dup3, from, to, 0) }).map(drop)
}

/// A copy of `fd` at the lowest free number not below `floor`, close-on-exec:
/// fcntl(2), F_DUPFD_CLOEXEC.
pub fn dup_above(fd: RawFd, floor: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer argument.
    let new = check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, floor) })?;
    let new = RawFd::try_from(new).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor, ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Opens `path` below `from`, one name after the other, each looked up in the
/// directory that was opened before: no symbolic link is followed, and nothing
/// can be swapped on the way. ELOOP where there is a link. `..` has been ruled
/// out when the policy was parsed.
///
/// What openat2(2) does with RESOLVE_NO_SYMLINKS; but systemd's RestrictSUIDSGID=,
/// which DynamicUser= implies, answers ENOSYS to that. Allocates nothing.
pub fn walk(from: OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut at = from;
    for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        at = openat(&at, name, flags, Mode::empty())?;
        let mode = fstat(&at)?.st_mode & SFlag::S_IFMT.bits();
        if SFlag::from_bits_truncate(mode) == SFlag::S_IFLNK {
            return Err(Errno::ELOOP);
        }
    }
    Ok(at)
}

/// Opens /dev/null as each of 0, 1 and 2 that is closed, so that no file gets
/// one of these numbers and is written to in good faith.
pub fn fill_stdio() -> Result<(), Errno> {
    for number in 0..=libc::STDERR_FILENO {
        // SAFETY: F_GETFD takes no pointer; it only asks whether the number is open.
        if unsafe { libc::syscall(libc::SYS_fcntl, number, libc::F_GETFD) } < 0 {
            // The lowest number that is free, which is this one. It stays open.
            _ = open(c"/dev/null", OFlag::O_RDWR, Mode::empty())?.into_raw_fd();
        }
    }
    Ok(())
}

/// Takes ownership of a descriptor that this process was given by number, such
/// as one of LISTEN_FDS.
///
/// EBADF where no such descriptor is open.
pub fn adopt(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_GETFD takes no pointer; it only asks whether `fd` is open.
    check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFD) })?;
    // SAFETY: `fd` is open, as was just asked. It was given to this process by
    // number (sd_listen_fds(3)), so nothing else in it owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lends the open descriptor `fd` to `f`. EBADF where none is open.
pub fn with_borrowed<T>(fd: RawFd, f: impl FnOnce(BorrowedFd<'_>) -> T) -> Result<T, Errno> {
    // SAFETY: F_GETFD takes no pointer; it only asks whether `fd` is open.
    check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFD) })?;
    // SAFETY: `fd` is open, as was just asked, and this process has one thread,
    // so it stays open while `f` runs.
    Ok(f(unsafe { BorrowedFd::borrow_raw(fd) }))
}

/// Writes `bytes` to the descriptor `fd`: write(2). For init, whose one
/// descriptor has no owner.
pub fn write(fd: RawFd, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the pointer and length are of `bytes`, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) }).map(drop)
}

/// The value of an extended attribute, up to 64 bytes: getxattr(2).
pub fn extended_attribute(path: &std::path::Path, name: &str) -> Result<Vec<u8>, Errno> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let mut value = vec![0u8; 64];
    // SAFETY: both names are NUL-terminated and `value` has the size passed; all
    // outlive the call.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    let length = check(length as libc::c_long)?;
    value.truncate(usize::try_from(length).unwrap_or(0));
    Ok(value)
}
