//! Sockets handed over by systemd: sd_listen_fds(3).

use std::os::fd::BorrowedFd;

use nix::sys::socket::{SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};

use super::HostError;
use crate::plan::{InheritedAddress, InheritedFact};

/// The first descriptor: SD_LISTEN_FDS_START.
pub const FIRST: i32 = 3;
/// More than any unit file has; a larger number is an error, not a loop.
const MOST: i32 = 1024;

/// The sockets that LISTEN_FDS and LISTEN_PID say are ours. None where they are
/// meant for another process.
pub(super) fn read() -> Result<Vec<InheritedFact>, HostError> {
    let variable = |name: &str| std::env::var(name).ok();
    let pid = variable("LISTEN_PID").and_then(|v| v.parse::<u32>().ok());
    if pid != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = variable("LISTEN_FDS").and_then(|v| v.parse::<i32>().ok()).unwrap_or(0);
    if !(0..=MOST).contains(&count) {
        return Err(HostError::new("LISTEN_FDS", "not a number of descriptors"));
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    (FIRST..FIRST + count)
        .map(|fd| {
            let name = names.next().filter(|n| !n.is_empty()).unwrap_or("unknown");
            crate::sys::fd::with_borrowed(fd, |fd| describe(fd, name))
                .unwrap_or_else(|e| Err(HostError::new(format!("inherited descriptor {fd}"), e)))
        })
        .collect()
}

fn describe(fd: BorrowedFd<'_>, name: &str) -> Result<InheritedFact, HostError> {
    use std::os::fd::AsRawFd;
    let number = fd.as_raw_fd();
    let listening = getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false)
        && getsockopt(&fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
    let address = match getsockname::<SockaddrStorage>(number) {
        Ok(address) => translate(&address),
        Err(e) => InheritedAddress::Other(format!("not a socket: {e}")),
    };
    Ok(InheritedFact { fd: number, name: crate::value::escape(name), address, listening })
}

fn translate(address: &SockaddrStorage) -> InheritedAddress {
    if let Some(v4) = address.as_sockaddr_in() {
        return InheritedAddress::Tcp(std::net::SocketAddr::V4((*v4).into()));
    }
    if let Some(v6) = address.as_sockaddr_in6() {
        return InheritedAddress::Tcp(std::net::SocketAddr::V6((*v6).into()));
    }
    if let Some(unix) = address.as_unix_addr() {
        return match unix.path() {
            Some(path) => InheritedAddress::Unix(path.to_owned()),
            None => InheritedAddress::Other("an unnamed or abstract unix socket".to_owned()),
        };
    }
    InheritedAddress::Other(format!("a socket of family {:?}", address.family()))
}
