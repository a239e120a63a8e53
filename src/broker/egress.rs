//! May the tenant connect there? Pure: rules, what names were answered with, and
//! the host's own addresses in; yes or no, and why not, out.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::policy::{Egress, NameRule, Network, Port};

/// Networks that a tenant of one host has no business in unless its operator
/// wrote so: IANA's special-purpose registries (RFC 6890), multicast, and where
/// clouds keep their metadata (169.254.0.0/16, fd00:ec2::/32).
const SPECIAL: &[Network] = &[
    Network::v4([0, 0, 0, 0], 8),
    Network::v4([10, 0, 0, 0], 8),
    Network::v4([100, 64, 0, 0], 10),
    Network::v4([127, 0, 0, 0], 8),
    Network::v4([169, 254, 0, 0], 16),
    Network::v4([172, 16, 0, 0], 12),
    Network::v4([192, 0, 0, 0], 24),
    Network::v4([192, 168, 0, 0], 16),
    Network::v4([198, 18, 0, 0], 15),
    // Clouds' metadata at an address that is nobody's private one.
    Network::v4([168, 63, 129, 16], 32),
    Network::v4([224, 0, 0, 0], 4),
    Network::v4([240, 0, 0, 0], 4),
    Network::v6([0, 0, 0, 0, 0, 0, 0, 0], 127),
    Network::v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    Network::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    Network::v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
    Network::v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
    // Translators and tunnels with IPv4 addresses anywhere in them: local NAT64
    // (RFC 8215), stateless translation (RFC 7915), Teredo (RFC 4380).
    Network::v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    Network::v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96),
    Network::v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32),
];

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It may.
    Allowed,
    /// No rule has it.
    Unlisted,
    /// A rule has it, by a wide network or a name; but the address is one of
    /// the host's, private or special, and nobody listed it itself.
    Special,
}

/// An address that a listed name was answered with.
#[derive(Clone, Debug)]
struct Pin {
    address: IpAddr,
    /// Index of the rule whose name it was.
    rule: usize,
    /// It.
    name: String,
    until: Instant,
}

/// The rules, and what is known by names.
#[derive(Debug)]
pub(super) struct Rules {
    rules: Vec<Egress>,
    pins: Vec<Pin>,
}

/// Most addresses that are remembered; the one that ends first makes room.
const MOST_PINS: usize = 1024;
/// An address is connected to again and again while the name's answer is cached
/// in the tenant, longer than the answer says.
const LEAST_PIN: Duration = Duration::from_secs(600);

impl Rules {
    pub(super) fn new(rules: Vec<Egress>) -> Self {
        Self { rules, pins: Vec::new() }
    }

    /// Whether a rule has this name: lower case, no dot at its end.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.of_name(name).next().is_some()
    }

    fn of_name<'a>(&'a self, name: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.rules.iter().enumerate().filter_map(move |(index, rule)| match rule {
            Egress::Name(named, _) if named.covers(name) => Some(index),
            _ => None,
        })
    }

    /// Remembers that `name` was answered with `address`, for `ttl` or longer.
    pub(super) fn pin(&mut self, name: &str, address: IpAddr, ttl: Duration, now: Instant) {
        let until = now + ttl.max(LEAST_PIN);
        self.pins.retain(|pin| pin.until > now);
        for rule in self.of_name(name).collect::<Vec<_>>() {
            let same =
                |pin: &&mut Pin| pin.address == address && pin.rule == rule && pin.name == name;
            if let Some(known) = self.pins.iter_mut().find(same) {
                known.until = known.until.max(until);
                continue;
            }
            if self.pins.len() >= MOST_PINS
                && let Some(first) = (0..self.pins.len()).min_by_key(|&i| self.pins[i].until)
            {
                self.pins.swap_remove(first);
            }
            self.pins.push(Pin { address, rule, name: name.to_owned(), until });
        }
    }

    /// Whether `to` may be connected to. `is_own` says whether an address is one
    /// of the host's; it is asked only where no rule names the address itself.
    pub(super) fn decide(
        &mut self,
        to: SocketAddr,
        now: Instant,
        is_own: impl Fn(IpAddr) -> bool,
    ) -> Decision {
        let address = to.ip().to_canonical();
        let mut wide = false;
        for rule in &self.rules {
            let Egress::Network(network, port) = rule else { continue };
            if !port.covers(to.port()) || !network.contains(address) {
                continue;
            }
            if network.is_single() {
                return Decision::Allowed;
            }
            wide = true;
        }
        let pinned = self.use_pin(address, to.port(), now);
        if !wide && !pinned {
            return Decision::Unlisted;
        }
        // A private network that is listed as such is meant; one that is only
        // part of a wider one, or where a name leads, is not.
        let literal = self.rules.iter().any(|rule| match rule {
            Egress::Network(network, port) => {
                port.covers(to.port())
                    && network.contains(address)
                    && SPECIAL.iter().any(|special| network.is_within(*special))
            }
            Egress::Name(..) | Egress::Unix(_) => false,
        });
        let inner = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => wrapped(v6).map(IpAddr::V4),
        };
        // Every loopback address is the host's own, so a network of them that is
        // listed means that.
        let meant = literal && address.is_loopback();
        let own = is_own(address) || inner.is_some_and(is_own);
        if (is_special(address) && !literal) || (own && !meant) {
            return Decision::Special;
        }
        Decision::Allowed
    }

    /// Whether a name with this port led to `address`, which then stays known.
    fn use_pin(&mut self, address: IpAddr, port: u16, now: Instant) -> bool {
        let rules = &self.rules;
        let mut found = false;
        for pin in self.pins.iter_mut().filter(|pin| pin.address == address && pin.until > now) {
            if let Some(Egress::Name(_, of_rule)) = rules.get(pin.rule)
                && of_rule.covers(port)
            {
                pin.until = pin.until.max(now + LEAST_PIN);
                found = true;
            }
        }
        found
    }

    /// What `learn` writes down of a connection to `to`: a rule for each name that
    /// led there, since it is not known by which the tenant came.
    pub(super) fn learnt(&self, to: SocketAddr) -> Vec<Egress> {
        let address = to.ip().to_canonical();
        let every = |pin: &&Pin| {
            let rule = self.rules.get(pin.rule);
            pin.address == address
                && matches!(rule, Some(Egress::Name(name, _)) if *name == NameRule::every())
        };
        let named = self.pins.iter().filter(every);
        let mut rules: Vec<Egress> = named
            .map(|pin| Egress::Name(NameRule::exactly(&pin.name), Port::One(to.port())))
            .collect();
        if rules.is_empty() || is_special(address) {
            rules = vec![self.suggestion(to)];
        }
        rules
    }

    /// The rule that would let `to` through: with the name that led there, where
    /// one did and an address of its kind may be meant by a name.
    pub(super) fn suggestion(&self, to: SocketAddr) -> Egress {
        let address = to.ip().to_canonical();
        let pin = self.pins.iter().rfind(|pin| pin.address == address);
        if let Some(pin) = pin
            && let Some(Egress::Name(name, _)) = self.rules.get(pin.rule)
            && !is_special(address)
        {
            return Egress::Name(name.clone(), Port::One(to.port()));
        }
        let network = match address {
            IpAddr::V4(v4) => Network::v4(v4.octets(), 32),
            IpAddr::V6(v6) => Network::v6(v6.segments(), 128),
        };
        Egress::Network(network, Port::One(to.port()))
    }
}

/// Whether nobody outside this host, its networks or its protocols has the
/// address; also where an IPv4 one is wrapped into it.
pub(super) fn is_special(address: IpAddr) -> bool {
    let address = address.to_canonical();
    if SPECIAL.iter().any(|network| network.contains(address)) {
        return true;
    }
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => wrapped(v6).is_some_and(|v4| is_special(v4.into())),
    }
}

/// The IPv4 address in an IPv6 one that a translator would lead to: NAT64 (RFC
/// 6052, 64:ff9b::/96), 6to4 (RFC 3056, 2002::/16), ISATAP (RFC 5214, at the end
/// of any prefix), and the compatible form (RFC 4291, ::/96).
fn wrapped(v6: Ipv6Addr) -> Option<std::net::Ipv4Addr> {
    let s = v6.segments();
    let pair =
        |high: u16, low: u16| std::net::Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0, 0, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(pair(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(list: &[&str]) -> Rules {
        Rules::new(list.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn decide(rules: &mut Rules, to: &str) -> Decision {
        rules.decide(to.parse().unwrap(), Instant::now(), |ip| ip.to_string() == "203.0.113.9")
    }

    #[test]
    fn only_what_is_listed() {
        let mut r = rules(&["192.0.2.7:443", "198.51.100.0/24:*", "[2001:db8::]/32:80"]);
        for (to, expected) in [
            ("192.0.2.7:443", Decision::Allowed),
            ("192.0.2.7:80", Decision::Unlisted),
            ("192.0.2.8:443", Decision::Unlisted),
            ("198.51.100.200:1", Decision::Allowed),
            ("[2001:db8::5]:80", Decision::Allowed),
            ("[2001:db8::5]:81", Decision::Unlisted),
            ("[::ffff:192.0.2.7]:443", Decision::Allowed),
        ] {
            assert_eq!(decide(&mut r, to), expected, "{to}");
        }
    }

    /// Two names of one address are two rules, whichever was asked for last.
    #[test]
    fn every_name_that_led_somewhere_is_learnt() {
        let mut r = Rules::new(Egress::everything().to_vec());
        let now = Instant::now();
        let (to, elsewhere) = ("192.0.2.7:443".parse().unwrap(), "192.0.2.8:80".parse().unwrap());
        for name in ["a.example.com", "b.example.com", "a.example.com"] {
            r.pin(name, IpAddr::from([192, 0, 2, 7]), Duration::ZERO, now);
        }
        r.pin("c.example.com", IpAddr::from([10, 0, 0, 8]), Duration::ZERO, now);
        let learnt =
            |r: &Rules, to| r.learnt(to).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(learnt(&r, to), ["a.example.com:443", "b.example.com:443"]);
        assert_eq!(learnt(&r, elsewhere), ["192.0.2.8:80"]);
        assert_eq!(learnt(&r, "10.0.0.8:80".parse().unwrap()), ["10.0.0.8:80"]);
    }

    /// The lists of RFC 6890, 4193, 4291 and 6598, and each in the wrappings
    /// that a host or a translator takes off.
    #[test]
    fn special_addresses_only_where_they_are_listed_themselves() {
        let mut all = rules(&["0.0.0.0/0:*", "[::]/0:*"]);
        for to in [
            "127.0.0.1:80",
            "10.1.2.3:80",
            "172.16.0.1:80",
            "172.31.255.255:80",
            "192.168.1.1:80",
            "169.254.169.254:80",
            "168.63.129.16:80",
            "100.100.100.200:80",
            "0.0.0.0:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[::1]:80",
            "[::]:80",
            "[fe80::1]:80",
            "[fd00:ec2::254]:80",
            "[ff02::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:169.254.169.254]:80",
            "[::127.0.0.1]:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[64:ff9b:1::7f00:1]:80",
            "[64:ff9b:1:1:a:0:100::]:80",
            "[::ffff:0:10.0.0.1]:80",
            "[2001:0:1::1]:80",
            "[2001:db8::5efe:a9fe:a9fe]:80",
            "[2002:7f00:1::]:80",
            // The host's own, and wrapped.
            "203.0.113.9:80",
            "[64:ff9b::203.0.113.9]:80",
            "[2002:cb00:7109::]:80",
        ] {
            assert_eq!(decide(&mut all, to), Decision::Special, "{to}");
        }
        for to in ["8.8.8.8:53", "172.32.0.1:80", "[2606:4700::1111]:443", "[2002:808:808::]:80"] {
            assert_eq!(decide(&mut all, to), Decision::Allowed, "{to}");
        }
        let mut listed = rules(&["10.0.0.0/8:80", "127.0.0.1:80", "203.0.113.9:80", "[::1]:80"]);
        for to in ["10.1.2.3:80", "127.0.0.1:80", "203.0.113.9:80", "[::1]:80"] {
            assert_eq!(decide(&mut listed, to), Decision::Allowed, "{to}");
        }
        assert_eq!(decide(&mut listed, "127.0.0.2:80"), Decision::Unlisted);
    }

    #[test]
    fn the_hosts_own_address_in_a_listed_private_network_is_not_meant() {
        let mut r = rules(&["203.0.113.0/24:80"]);
        assert_eq!(decide(&mut r, "203.0.113.9:80"), Decision::Special);
        assert_eq!(decide(&mut r, "203.0.113.8:80"), Decision::Allowed);
    }

    #[test]
    fn names_lead_to_what_they_were_answered_with_and_for_their_port() {
        let mut r = rules(&["api.example.com:443", "*.example.org:*"]);
        let now = Instant::now();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(r.has_name("api.example.com") && !r.has_name("example.org"));
        assert_eq!(decide(&mut r, "192.0.2.1:443"), Decision::Unlisted);
        r.pin("api.example.com", ip("192.0.2.1"), Duration::ZERO, now);
        r.pin("api.example.com", ip("10.0.0.1"), Duration::ZERO, now);
        r.pin("api.example.com", ip("127.0.0.1"), Duration::ZERO, now);
        r.pin("other.example.com", ip("192.0.2.2"), Duration::ZERO, now);
        assert_eq!(decide(&mut r, "192.0.2.1:443"), Decision::Allowed);
        assert_eq!(decide(&mut r, "192.0.2.1:80"), Decision::Unlisted);
        assert_eq!(decide(&mut r, "192.0.2.2:443"), Decision::Unlisted);
        // A name that leads into the host or its network: rebinding.
        assert_eq!(decide(&mut r, "10.0.0.1:443"), Decision::Special);
        assert_eq!(decide(&mut r, "127.0.0.1:443"), Decision::Special);
        let later = now + LEAST_PIN + Duration::from_secs(2);
        let to = "192.0.2.1:443".parse().unwrap();
        assert_eq!(r.decide(to, later, |_| false), Decision::Unlisted, "it was not used meanwhile");
    }

    #[test]
    fn use_keeps_an_address_known_and_their_number_is_bounded() {
        let mut r = rules(&["api.example.com:443"]);
        let now = Instant::now();
        let first: IpAddr = "192.0.2.1".parse().unwrap();
        r.pin("api.example.com", first, Duration::ZERO, now);
        let to = SocketAddr::new(first, 443);
        for minutes in [5, 14, 23] {
            let then = now + Duration::from_secs(60 * minutes);
            assert_eq!(r.decide(to, then, |_| false), Decision::Allowed, "{minutes}");
        }
        for n in 0..5000_u32 {
            let address = std::net::Ipv4Addr::from_bits(0x0800_0000 + n).into();
            r.pin("api.example.com", address, Duration::from_secs(n.into()), now);
        }
        assert_eq!(r.pins.len(), MOST_PINS);
    }

    #[test]
    fn a_name_that_led_there_is_suggested_for_another_port() {
        let mut r = rules(&["*.example.com:443"]);
        let now = Instant::now();
        r.pin("api.example.com", "192.0.2.1".parse().unwrap(), Duration::ZERO, now);
        r.pin("api.example.com", "10.0.0.1".parse().unwrap(), Duration::ZERO, now);
        let text = |to: &str| r.suggestion(to.parse().unwrap()).to_string();
        assert_eq!(text("192.0.2.1:80"), "*.example.com:80");
        assert_eq!(text("10.0.0.1:80"), "10.0.0.1:80");
    }

    #[test]
    fn the_suggestion_is_a_rule_that_allows() {
        for to in ["192.0.2.1:80", "[2001:db8::1]:443", "[::ffff:10.0.0.1]:5432", "127.0.0.1:80"] {
            let to: SocketAddr = to.parse().unwrap();
            let text = rules(&[]).suggestion(to).to_string();
            let mut r = rules(&[&text]);
            assert_eq!(r.decide(to, Instant::now(), |_| true), Decision::Allowed, "{text}");
        }
    }
}
