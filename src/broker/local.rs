//! Is an address the host's own? Asked of the kernel's routes, since not every
//! address that leads to this host is one of an interface's.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

// include/uapi/linux/rtnetlink.h and netlink.h.
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const RTA_DST: u16 = 1;
const RTN_UNICAST: u8 = 1;
/// Bytes of struct nlmsghdr.
const HEADER: usize = 16;
/// Where rtm_type is in struct rtmsg.
const TYPE: usize = 7;

/// Whether packets to `address` stay in this host, or go to nobody in
/// particular: its route is not RTN_UNICAST (rtnetlink(7)). What cannot be found
/// out counts as the host's own; where there is no route, nothing is reached.
pub(super) fn is_own(address: IpAddr) -> bool {
    match route_type(address.to_canonical()) {
        Ok(kind) => kind != RTN_UNICAST,
        Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH) => false,
        Err(_) => true,
    }
}

fn route_type(address: IpAddr) -> Result<u8, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let routes = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    send(routes.as_raw_fd(), &question(address), MsgFlags::empty())?;
    // The kernel has answered before send returns.
    let mut bytes = [0; 1024];
    let length = recv(routes.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)?;
    answer(&bytes[..length])
}

/// RTM_GETROUTE for one destination.
fn question(address: IpAddr) -> Vec<u8> {
    let (family, bits, octets) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, 32, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, 128, v6.octets().to_vec()),
    };
    // struct rtmsg: family, dst_len, and the rest for the kernel to fill in.
    let mut body = vec![u8::try_from(family).unwrap_or_default(), bits, 0, 0, 0, 0, 0, 0];
    body.extend([0; 4]);
    // struct rtattr: length with itself, type, and the address.
    body.extend(u16::try_from(4 + octets.len()).unwrap_or_default().to_ne_bytes());
    body.extend(RTA_DST.to_ne_bytes());
    body.extend(octets);
    let mut message = u32::try_from(HEADER + body.len()).unwrap_or_default().to_ne_bytes().to_vec();
    message.extend(RTM_GETROUTE.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: there is one question a socket.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// rtm_type, or the errno that came instead.
fn answer(bytes: &[u8]) -> Result<u8, Errno> {
    let short = |at: usize| Some(u16::from_ne_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    match short(4).ok_or(Errno::EBADMSG)? {
        RTM_NEWROUTE => bytes.get(HEADER + TYPE).copied().ok_or(Errno::EBADMSG),
        NLMSG_ERROR => {
            let errno = bytes.get(HEADER..HEADER + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
            let errno = errno.map(i32::from_ne_bytes).ok_or(Errno::EBADMSG)?;
            Err(Errno::from_raw(errno.saturating_neg()))
        }
        _ => Err(Errno::EBADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_the_hosts_as_a_whole_and_documentation_is_not() {
        for own in ["127.0.0.1", "127.1.2.3", "::1", "255.255.255.255"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
        assert!(!is_own("203.0.113.77".parse().unwrap()));
    }

    #[test]
    fn errors_are_errors() {
        let mut error = vec![20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        error.extend((-libc::ENETUNREACH).to_ne_bytes());
        assert_eq!(answer(&error), Err(Errno::ENETUNREACH));
        for length in 0..error.len() {
            assert_eq!(answer(&error[..length]), Err(Errno::EBADMSG), "{length}");
        }
    }
}
