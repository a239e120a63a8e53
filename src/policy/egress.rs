//! Where a tenant may connect to: `network.egress`, one rule an entry.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::value::BadValue;

/// One destination, or one set of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Addresses and a port.
    Network(Network, Port),
    /// What a name resolves to, and a port.
    Name(NameRule, Port),
    /// A unix stream socket at an absolute path of the host's.
    Unix(PathBuf),
}

/// A port, or every port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// `*`
    Any,
    /// This one.
    One(u16),
}

impl Port {
    /// Whether `port` is meant.
    pub fn covers(self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::One(one) => one == port,
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::One(port) => port.fmt(f),
        }
    }
}

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// How many bits: at most 32 or 128.
    prefix: u8,
}

impl Network {
    /// The one with these `prefix` bits of `address`; the others are cleared.
    pub const fn v4(address: [u8; 4], prefix: u8) -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::new(address[0], address[1], address[2], address[3])),
            prefix,
        }
    }

    /// The same for IPv6.
    pub const fn v6(address: [u16; 8], prefix: u8) -> Self {
        let a = address;
        let address = Ipv6Addr::new(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
        Self { address: IpAddr::V6(address), prefix }
    }

    fn width(self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Whether it is one address.
    pub fn is_single(self) -> bool {
        self.prefix == self.width()
    }

    /// Whether `address` is one of it. An IPv4 address is never one of an IPv6
    /// network, mapped or not: callers make it plain first.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                same_bits(a.to_bits().into(), b.to_bits().into(), 32, self.prefix)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => same_bits(a.to_bits(), b.to_bits(), 128, self.prefix),
            _ => false,
        }
    }

    /// Whether every address of it is one of `other`.
    pub fn is_within(self, other: Self) -> bool {
        self.prefix >= other.prefix && other.contains(self.address)
    }
}

/// Whether the first `prefix` of `width` bits are the same.
fn same_bits(a: u128, b: u128, width: u8, prefix: u8) -> bool {
    let rest = width.saturating_sub(prefix);
    // Shifting all 128 bits out is an overflow, and then all are the same.
    (a ^ b).checked_shr(rest.into()).unwrap_or(0) == 0
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(v4) => write!(f, "{v4}")?,
            IpAddr::V6(v6) => write!(f, "[{v6}]")?,
        }
        if self.is_single() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// A DNS name, in lower case and without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRule {
    name: String,
    /// Whether the names below it are meant, and not itself: `*.example.com`.
    below: bool,
}

impl NameRule {
    /// Every name: for `gosandbox learn`, and in no policy.
    pub fn every() -> Self {
        Self { name: String::new(), below: true }
    }

    /// This name, in lower case and without a dot at its end, and no other.
    pub fn exactly(name: &str) -> Self {
        Self { name: name.to_owned(), below: false }
    }

    /// Whether `name`, in lower case and without a dot at its end, is meant.
    pub fn covers(&self, name: &str) -> bool {
        if *self == Self::every() {
            return true;
        }
        if !self.below {
            return self.name == name;
        }
        name.strip_suffix(&self.name).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl fmt::Display for NameRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

impl Egress {
    /// Every name and every address, with every port; what is private or special
    /// has to be listed itself, as ever. For `gosandbox learn`, and in no policy.
    pub fn everything() -> [Self; 3] {
        [
            Self::Name(NameRule::every(), Port::Any),
            Self::Network(Network::v4([0; 4], 0), Port::Any),
            Self::Network(Network::v6([0; 8], 0), Port::Any),
        ]
    }

    /// Whether it has to be looked up.
    pub fn is_name(&self) -> bool {
        matches!(self, Self::Name(..))
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network, port) => write!(f, "{network}:{port}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Egress {
    type Err = BadValue;
    /// `HOST:PORT`, where HOST is a name, `*.` and a name, an address (IPv6 in
    /// brackets) or an address/prefix, and PORT may be `*`; or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let wrong = |why: &str| {
            BadValue(format!(
                "egress {text:?}: {why}; write HOST:PORT or unix:PATH, as in api.example.com:443, \
                 10.0.0.0/8:5432, [2001:db8::1]:443 or unix:/run/postgresql/.s.PGSQL.5432"
            ))
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let clean = path.starts_with('/')
                && path.len() <= 107
                && !path.contains('\0')
                && path.split('/').all(|part| part != "." && part != "..");
            return if clean && !path.ends_with('/') {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(wrong("a path is absolute, has no . or .. in it and at most 107 bytes"))
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("no port"))?;
        let port = match port {
            "*" => Port::Any,
            _ => match port.parse() {
                Ok(number @ 1..) => Port::One(number),
                _ => return Err(wrong("PORT is a number from 1 to 65535, or *")),
            },
        };
        if let Some(network) = parse_network(host) {
            return network.map(|network| Self::Network(network, port)).map_err(|why| wrong(&why));
        }
        let lower = host.to_ascii_lowercase();
        let (name, below) = match lower.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (lower.as_str(), false),
        };
        if !is_name(name) {
            return Err(wrong("HOST is neither a name nor an address"));
        }
        Ok(Self::Name(NameRule { name: name.to_owned(), below }, port))
    }
}

/// `None` where `host` looks like no address at all.
fn parse_network(host: &str) -> Option<Result<Network, String>> {
    let (address, prefix) = match host.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (host, None),
    };
    let parsed = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().map(|v6| IpAddr::V6(v6).to_canonical()).ok(),
        None => address.parse::<Ipv4Addr>().map(IpAddr::V4).ok(),
    };
    let Some(address) = parsed else {
        return prefix.map(|_| Err("no address in front of the /".to_owned()));
    };
    let width: u8 = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix.map(str::parse::<u8>) {
        None => width,
        Some(Ok(prefix)) if prefix <= width => prefix,
        Some(_) => return Some(Err(format!("the prefix is a number from 0 to {width}"))),
    };
    let network = Network { address, prefix };
    let first = first_of(network);
    if first != address {
        let meant = Network { address: first, prefix };
        return Some(Err(format!("{address} is not the first of its network, which is {meant}")));
    }
    Some(Ok(network))
}

/// The address with all bits behind the prefix cleared.
fn first_of(network: Network) -> IpAddr {
    let rest = u32::from(network.width() - network.prefix);
    match network.address {
        IpAddr::V4(v4) => {
            let bits = v4.to_bits().checked_shr(rest).and_then(|bits| bits.checked_shl(rest));
            IpAddr::V4(Ipv4Addr::from_bits(bits.unwrap_or(0)))
        }
        IpAddr::V6(v6) => {
            let bits = v6.to_bits().checked_shr(rest).and_then(|bits| bits.checked_shl(rest));
            IpAddr::V6(Ipv6Addr::from_bits(bits.unwrap_or(0)))
        }
    }
}

/// A host name: RFC 1123, section 2.1, and the underscore that is in use.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // All digits in the last label is a mistyped address.
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(label) && !last.bytes().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(text: &str) -> Egress {
        text.parse().unwrap()
    }

    #[test]
    fn every_spelling_comes_back() {
        for text in [
            "api.example.com:443",
            "*.example.com:*",
            "10.0.0.0/8:5432",
            "0.0.0.0/0:443",
            "192.0.2.7:80",
            "[2001:db8::]/32:443",
            "[::1]:8080",
            "unix:/run/postgresql/.s.PGSQL.5432",
        ] {
            assert_eq!(egress(text).to_string(), text);
        }
        assert_eq!(egress("API.Example.COM:443"), egress("api.example.com:443"));
        // One address has one spelling: RFC 4291, 2.5.5.2.
        assert_eq!(egress("[::ffff:192.0.2.7]:80"), egress("192.0.2.7:80"));
    }

    #[test]
    fn what_is_none_says_what_to_write() {
        for wrong in [
            "",
            "example.com",
            "example.com:0",
            "example.com:65536",
            "example.com:http",
            ":80",
            "10.0.0.1/8:80",
            "10.0.0.0/33:80",
            "2001:db8::1:80",
            "[2001:db8::1]",
            "1.2.3:80",
            "-a.example:80",
            "a..b:80",
            "*.:80",
            "*:80",
            "example.com/24:80",
            "unix:run/x",
            "unix:/run/../x",
            "unix:/run/",
            "300.1.1.1:80",
        ] {
            let error = wrong.parse::<Egress>().unwrap_err().to_string();
            assert!(error.contains("write HOST:PORT"), "{wrong:?}: {error}");
        }
        let error = "10.1.2.3/8:80".parse::<Egress>().unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/8"), "{error}");
    }

    #[test]
    fn networks_hold_their_addresses() {
        let Egress::Network(ten, _) = egress("10.0.0.0/8:1") else { panic!() };
        for (address, inside) in
            [("10.0.0.0", true), ("10.255.255.255", true), ("11.0.0.0", false), ("::1", false)]
        {
            assert_eq!(ten.contains(address.parse().unwrap()), inside, "{address}");
        }
        let Egress::Network(all, _) = egress("0.0.0.0/0:1") else { panic!() };
        assert!(all.contains("255.1.2.3".parse().unwrap()) && !all.is_within(ten));
        assert!(ten.is_within(all) && ten.is_within(ten) && !ten.is_single());
        let Egress::Network(six, _) = egress("[2001:db8::]/33:1") else { panic!() };
        assert!(six.contains("2001:db8:7fff::1".parse().unwrap()));
        assert!(!six.contains("2001:db8:8000::1".parse().unwrap()));
    }

    #[test]
    fn names_cover_themselves_or_what_is_below() {
        let covers = |rule: &str, name: &str| match egress(rule) {
            Egress::Name(rule, _) => rule.covers(name),
            other => panic!("{other}"),
        };
        assert!(covers("example.com:1", "example.com"));
        assert!(!covers("example.com:1", "a.example.com"));
        assert!(covers("*.example.com:1", "a.b.example.com"));
        for other in ["example.com", ".example.com", "badexample.com", "example.com.evil.org"] {
            assert!(!covers("*.example.com:1", other), "{other}");
        }
    }
}
