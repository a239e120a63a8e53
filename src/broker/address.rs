//! Socket addresses as the tenant lays them out in its memory: bytes in, values
//! out. Nothing here asks the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::policy::Address;

/// Longest address that the kernel takes: `struct sockaddr_storage`.
pub(super) const LONGEST: usize = 128;

/// What a `struct sockaddr` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// AF_INET or AF_INET6; a mapped IPv4 address is made plain.
    Inet(SocketAddr),
    /// AF_UNIX: a path, without the NUL at its end.
    Path(Vec<u8>),
    /// AF_UNIX: a name that is no path, or none.
    Abstract,
    /// AF_UNSPEC: dissolves the association, connect(2).
    Unspecified,
    /// Of another family, or too short: the kernel says what is wrong with it.
    Other,
}

/// Reads an address of the kernel's layout: ip(7), ipv6(7), unix(7).
pub(super) fn parse(bytes: &[u8]) -> Name {
    let Some((family, rest)) = bytes.split_first_chunk::<2>() else {
        return Name::Other;
    };
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_UNSPEC => Name::Unspecified,
        libc::AF_INET => inet(rest).map_or(Name::Other, Name::Inet),
        libc::AF_INET6 => inet6(rest).map_or(Name::Other, Name::Inet),
        libc::AF_UNIX => match rest.first() {
            None | Some(0) => Name::Abstract,
            // A path ends at its NUL or with the address.
            Some(_) => Name::Path(rest.split(|&b| b == 0).next().unwrap_or_default().to_vec()),
        },
        _ => Name::Other,
    }
}

fn inet(rest: &[u8]) -> Option<SocketAddr> {
    // Eight bytes of padding belong to it: net/ipv4/af_inet.c asks for all 16.
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (address, padding) = rest.split_first_chunk::<4>()?;
    (padding.len() >= 8)
        .then(|| SocketAddr::from((Ipv4Addr::from(*address), u16::from_be_bytes(*port))))
}

fn inet6(rest: &[u8]) -> Option<SocketAddr> {
    // The scope behind the address may be left out: SIN6_LEN_RFC2133.
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let address = rest.get(4..20)?;
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?);
    Some(SocketAddr::new(IpAddr::V6(address).to_canonical(), u16::from_be_bytes(*port)))
}

/// The kernel's layout of a unix path of at most 107 bytes.
pub(super) fn encode_path(path: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(libc::AF_UNIX).unwrap_or_default().to_ne_bytes().to_vec();
    bytes.extend(path);
    bytes.push(0);
    bytes
}

/// Whether a stream socket that is to be bound to `wanted` gets the listener at
/// `declared`: the ports are the same, and the addresses are, or one of them is
/// every address. An IPv6 socket that also takes IPv4, not `only_v6`, stands for
/// both.
pub(super) fn matches(declared: &Address, wanted: &Name, only_v6: bool) -> bool {
    match (declared, wanted) {
        (Address::Tcp(declared), Name::Inet(wanted)) => {
            if declared.port() != wanted.port() || wanted.port() == 0 {
                return false;
            }
            let (d, w) = (declared.ip().to_canonical(), wanted.ip());
            if d == w {
                return true;
            }
            if !d.is_unspecified() && !w.is_unspecified() {
                return false;
            }
            match (d, w) {
                (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => true,
                // `[::]` of a socket that takes IPv4 too means 0.0.0.0 as well.
                (IpAddr::V4(_), IpAddr::V6(w)) => w.is_unspecified() && !only_v6,
                // What listens on `[::]` has every IPv4 address too. An IPv4 socket
                // cannot tell the addresses of its IPv6 peers, which is no harm.
                (IpAddr::V6(d), IpAddr::V4(_)) => d.is_unspecified(),
            }
        }
        (Address::Unix { path, .. }, Name::Path(wanted)) => {
            path.as_os_str().as_encoded_bytes() == wanted.as_slice()
        }
        _ => false,
    }
}

/// Whether a connection to `to` reaches what listens on `at`, and nobody else:
/// 0.0.0.0 is no address of IPv6, where the port is somebody else's.
pub(super) fn leads_to(at: SocketAddr, to: SocketAddr) -> bool {
    let (ip, to_ip) = (at.ip().to_canonical(), to.ip().to_canonical());
    at.port() == to.port()
        && (ip == to_ip || (ip.is_unspecified() && (ip.is_ipv6() || to_ip.is_ipv4())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(port: u16, address: [u8; 4]) -> Vec<u8> {
        // struct sockaddr_in: family, port in network order, address, padding.
        let mut bytes = vec![2, 0];
        bytes.extend(port.to_be_bytes());
        bytes.extend(address);
        bytes.extend([0; 8]);
        bytes
    }

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        assert_eq!(parse(&v4(8080, [127, 0, 0, 1])), Name::Inet("127.0.0.1:8080".parse().unwrap()));
        let mut six = vec![10, 0, 0x1f, 0x90, 0, 0, 0, 0];
        six.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3]);
        assert_eq!(parse(&six), Name::Inet("10.1.2.3:8080".parse().unwrap()), "24 bytes, mapped");
        assert_eq!(parse(&[1, 0, b'/', b'a', 0, b'x']), Name::Path(b"/a".to_vec()));
        assert_eq!(parse(&[1, 0, b'a']), Name::Path(b"a".to_vec()));
        assert_eq!(parse(&[1, 0, 0, b'a']), Name::Abstract);
        assert_eq!(parse(&[1, 0]), Name::Abstract);
        assert_eq!(parse(&[0, 0]), Name::Unspecified);
        assert_eq!(parse(&[16, 0, 0, 0]), Name::Other);
    }

    #[test]
    fn what_is_cut_off_is_no_address() {
        let whole = v4(80, [1, 2, 3, 4]);
        for length in 0..whole.len() {
            let read = parse(&whole[..length]);
            assert_eq!(read, Name::Other, "{length}");
        }
        for length in 2..24 {
            let mut six = vec![10, 0];
            six.resize(length, 1);
            assert_eq!(parse(&six), Name::Other, "{length}");
        }
    }

    #[test]
    fn a_path_is_read_as_it_was_laid_out() {
        assert_eq!(parse(&encode_path(b"/run/x")), Name::Path(b"/run/x".to_vec()));
    }

    /// declared, asked for, IPV6_V6ONLY, the answer.
    #[test]
    fn a_bind_gets_the_listener_of_its_address() {
        let table = [
            ("127.0.0.1:80", "127.0.0.1:80", false, true),
            ("127.0.0.1:80", "0.0.0.0:80", false, true),
            ("127.0.0.1:80", "[::]:80", false, true),
            ("127.0.0.1:80", "[::]:80", true, false),
            ("127.0.0.1:80", "[::1]:80", false, false),
            ("127.0.0.1:80", "10.0.0.1:80", false, false),
            ("127.0.0.1:80", "127.0.0.1:81", false, false),
            ("0.0.0.0:80", "10.0.0.1:80", false, true),
            ("0.0.0.0:80", "[::]:80", false, true),
            ("0.0.0.0:80", "[::1]:80", false, false),
            ("[::]:80", "[::1]:80", false, true),
            ("[::]:80", "0.0.0.0:80", false, true),
            ("[::]:80", "127.0.0.1:80", false, true),
            ("[::1]:80", "0.0.0.0:80", false, false),
            ("[::1]:80", "[::]:80", true, true),
            ("127.0.0.1:0", "0.0.0.0:0", false, false),
        ];
        for (declared, wanted, only_v6, expected) in table {
            let wanted: SocketAddr = wanted.parse().unwrap();
            let declared_address = Address::Tcp(declared.parse().unwrap());
            assert_eq!(
                matches(&declared_address, &Name::Inet(wanted), only_v6),
                expected,
                "{declared} {wanted} {only_v6}"
            );
        }
        let unix = Address::Unix { path: "/run/a.sock".into(), mode: 0, group: None };
        assert!(matches(&unix, &Name::Path(b"/run/a.sock".to_vec()), false));
        assert!(!matches(&unix, &Name::Path(b"/run/a.soc".to_vec()), false));
        assert!(!matches(&unix, &Name::Abstract, false));
    }

    /// Hostile bytes of every length: an answer, whatever it is.
    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = [0u8; LONGEST];
        for round in 0..200_000_usize {
            for byte in &mut bytes {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state.to_ne_bytes()[3];
            }
            // Mostly of a family that is looked into.
            bytes[0] = [1, 2, 10, bytes[0]][round % 4];
            bytes[1] = 0;
            let length = round % (LONGEST + 1);
            match parse(&bytes[..length]) {
                Name::Inet(_) => assert!(length >= 16),
                Name::Path(path) => assert!(path.len() <= length - 2 && !path.contains(&0)),
                Name::Abstract | Name::Unspecified | Name::Other => {}
            }
        }
    }
}
