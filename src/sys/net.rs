//! Sockets: the loopback interface of a fresh network namespace, addresses as
//! bytes, options that `nix` leaves out.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::check;

/// Sets IFF_UP on `lo` in the network namespace that `socket` belongs to:
/// netdevice(7), SIOCSIFFLAGS. Without it 127.0.0.1 answers ENETUNREACH.
pub fn loopback_up(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = from.cast_signed();
    }
    #[allow(clippy::cast_possible_truncation)] // IFF_UP | IFF_RUNNING is 0x41
    {
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    }
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    check(unsafe {
        libc::syscall(libc::SYS_ioctl, socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    })
    .map(drop)
}

/// connect(2) with an address as the kernel takes it.
pub fn connect(socket: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are of `address`, which outlives the call.
    check(unsafe {
        libc::syscall(libc::SYS_connect, socket.as_raw_fd(), address.as_ptr(), address.len())
    })
    .map(drop)
}

/// bind(2) with an address as the kernel takes it.
pub fn bind(socket: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are of `address`, which outlives the call.
    check(unsafe {
        libc::syscall(libc::SYS_bind, socket.as_raw_fd(), address.as_ptr(), address.len())
    })
    .map(drop)
}

/// Reads a socket option into `value` and says how long it is: getsockopt(2).
/// ENOTSOCK where `socket` is none.
pub fn option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut [u8],
) -> Result<usize, Errno> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `value` has room for `length` bytes and both outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_getsockopt,
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr(),
            &raw mut length,
        )
    })?;
    Ok(value.len().min(length as usize))
}

/// The value of a socket option that is an int.
pub fn int_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> Result<libc::c_int, Errno> {
    let mut value = [0; size_of::<libc::c_int>()];
    option(socket, level, name, &mut value)?;
    Ok(libc::c_int::from_ne_bytes(value))
}

/// Sets a socket option: setsockopt(2).
pub fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &[u8],
) -> Result<(), Errno> {
    // SAFETY: pointer and length are of `value`, which outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_setsockopt,
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr(),
            value.len(),
        )
    })
    .map(drop)
}

/// Names the network namespace that `socket` was born in, for as long as this
/// kernel runs: SO_NETNS_COOKIE, Linux 5.14.
pub fn namespace_cookie(socket: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut value = [0; size_of::<u64>()];
    option(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

/// The network namespace that `socket` was born in: SIOCGSKNS of
/// include/uapi/linux/sockios.h. It takes CAP_NET_ADMIN over it.
pub fn namespace(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: SIOCGSKNS takes no argument.
    let fd = check(unsafe { libc::syscall(libc::SYS_ioctl, socket.as_raw_fd(), SIOCGSKNS) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor, ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// include/uapi/asm-generic/socket.h
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A new socket: socket(2). `kind` may hold SOCK_NONBLOCK and SOCK_CLOEXEC. Any
/// protocol, which `nix` has a list of.
pub fn socket(
    domain: libc::c_int,
    kind: libc::c_int,
    protocol: libc::c_int,
) -> Result<OwnedFd, Errno> {
    // SAFETY: socket takes three integers.
    let fd = check(unsafe { libc::syscall(libc::SYS_socket, domain, kind, protocol) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor, ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
