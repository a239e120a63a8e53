//! The host's own addresses.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

/// Whether `address` is one of the host's interfaces. Asked anew each time:
/// addresses come and go, and it is asked only for wide rules and names. Where
/// they cannot be listed, every address counts as the host's own.
pub(super) fn is_own(address: IpAddr) -> bool {
    let Ok(mut list) = getifaddrs() else { return true };
    list.any(|interface| {
        let Some(own) = interface.address else { return false };
        let own = match (own.as_sockaddr_in(), own.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()).to_canonical(),
            _ => return false,
        };
        own == address
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_the_hosts_and_documentation_is_not() {
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(!is_own("203.0.113.77".parse().unwrap()));
    }
}
