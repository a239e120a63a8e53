//! The name server that a tenant finds at 127.0.0.1: it answers listed names and
//! no other, with what the host's resolvers say, and remembers the addresses.
//!
//! The socket in the tenant's namespace was made by its init; those towards the
//! resolvers are of the host's, a new one with a random port for each question,
//! connected, so that the kernel drops what others send.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, connect,
    recv, recvfrom, send, sendto, socket,
};

use super::answer::Bad;
use super::dns::{Code, Kind, Query};
use super::egress::Rules;
use super::words::{UNLED, Words};
use crate::policy::Egress;

/// Most questions that are asked at a time; a client whose question was dropped
/// asks again.
const MOST_ASKED: usize = 64;
/// How long one resolver is waited for: resolv.conf(5) has 5 s for all.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a question is asked, one resolver after the other.
const TRIES: usize = 4;
/// A datagram that is longer than we said we take is no answer.
const LONGEST: usize = 4096;

/// The tenant's name server.
pub(super) struct Resolver {
    inside: OwnedFd,
    upstream: Vec<SocketAddr>,
    asked: Vec<Asked>,
    /// Whether what is refused is told to `learn`.
    learns: bool,
}

/// A question that waits for a resolver.
struct Asked {
    query: Query,
    client: SockaddrIn,
    id: u16,
    socket: OwnedFd,
    tries: usize,
    deadline: Instant,
}

impl Resolver {
    /// `inside` is bound in the tenant's namespace; `upstream` is not empty.
    pub(super) fn new(inside: OwnedFd, upstream: Vec<SocketAddr>, learns: bool) -> Self {
        Self { inside, upstream, asked: Vec::new(), learns }
    }

    /// Every descriptor to be read from: first the tenant's, then the resolvers'.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.inside.as_fd()).chain(self.asked.iter().map(|a| a.socket.as_fd()))
    }

    /// The descriptor that lasts.
    pub(super) fn inside(&self) -> BorrowedFd<'_> {
        self.inside.as_fd()
    }

    /// When a resolver has had its time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.asked.iter().map(|asked| asked.deadline).min()
    }

    /// Answers what can be answered: `ready` says for each of [`Resolver::fds`]
    /// whether it can be read.
    pub(super) fn progress(
        &mut self,
        ready: &[bool],
        rules: &mut Rules,
        words: &mut Words,
        now: Instant,
    ) {
        let all = std::mem::take(&mut self.asked);
        for (index, asked) in all.into_iter().enumerate() {
            let readable = ready.get(index + 1).copied().unwrap_or(false);
            self.asked.extend(self.look(asked, readable, rules, now));
        }
        if ready.first().copied().unwrap_or(false) {
            self.ask(rules, words, now);
        }
    }

    /// Reads one question of the tenant's.
    fn ask(&mut self, rules: &Rules, words: &mut Words, now: Instant) {
        let mut bytes = [0; LONGEST];
        let Ok((length, Some(client))) =
            recvfrom::<SockaddrIn>(self.inside.as_raw_fd(), &mut bytes)
        else {
            return;
        };
        let query = match Query::parse(&bytes[..length]) {
            Ok(query) => query,
            Err(malformed) => {
                if let Some(reply) = malformed.reply {
                    self.tell(&client, &reply);
                }
                return;
            }
        };
        if !is_name(&query.name) {
            self.tell(&client, &query.refuse(Code::NxDomain));
            return;
        }
        if !rules.has_name(&query.name) {
            let name = &query.name;
            if self.learns {
                words.send(UNLED, format!("{name}:443").as_bytes());
            }
            words.say(
                format!("look-up of {name} denied: to allow it, add egress = [\"{name}:443\"]"),
                now,
            );
            // Not REFUSED, after which a resolver asks again and again.
            self.tell(&client, &query.refuse(Code::NxDomain));
            return;
        }
        if query.kind == Kind::Other {
            self.tell(&client, &query.reply(&[]));
            return;
        }
        if self.asked.len() >= MOST_ASKED {
            return;
        }
        if let Some(asked) = self.send(query, client, 0, now) {
            self.asked.push(asked);
        }
    }

    /// Asks the next resolver; after the last there is an answer for the client.
    fn send(&self, query: Query, client: SockaddrIn, tries: usize, now: Instant) -> Option<Asked> {
        for tries in tries..TRIES {
            let server = self.upstream[tries % self.upstream.len()];
            if let Ok((id, socket)) = question(&query, server) {
                let deadline = now + PATIENCE;
                return Some(Asked { query, client, id, socket, tries, deadline });
            }
        }
        self.tell(&client, &query.refuse(Code::ServFail));
        None
    }

    /// Looks after a question: gives it back where it still waits.
    fn look(&self, asked: Asked, readable: bool, rules: &mut Rules, now: Instant) -> Option<Asked> {
        if readable {
            let mut bytes = [0; LONGEST];
            let answer = match recv(asked.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => asked.query.read_answer(asked.id, &bytes[..length]),
                // ECONNREFUSED: nobody is there.
                Err(_) => Err(Bad::Failed),
            };
            match answer {
                Ok(answer) if !answer.exists => {
                    self.tell(&asked.client, &asked.query.refuse(Code::NxDomain));
                    return None;
                }
                // What was cut off may be what was asked for. There is no TCP here,
                // and an address needs none.
                Ok(answer) if answer.truncated && answer.addresses.is_empty() => {
                    return self.send(asked.query, asked.client, asked.tries + 1, now);
                }
                Ok(answer) => {
                    for (address, ttl) in &answer.addresses {
                        let ttl = Duration::from_secs((*ttl).into());
                        rules.pin(&asked.query.name, *address, ttl, now);
                    }
                    self.tell(&asked.client, &asked.query.reply(&answer.addresses));
                    return None;
                }
                Err(Bad::NotOurs) => {}
                Err(Bad::Failed) => {
                    return self.send(asked.query, asked.client, asked.tries + 1, now);
                }
            }
        }
        if now >= asked.deadline {
            return self.send(asked.query, asked.client, asked.tries + 1, now);
        }
        Some(asked)
    }

    /// A client that does not read has asked for nothing.
    fn tell(&self, client: &SockaddrIn, reply: &[u8]) {
        _ = sendto(self.inside.as_raw_fd(), reply, client, MsgFlags::MSG_DONTWAIT);
    }
}

/// Whether a rule for `name` would be one for a name: `10.0.0.1`, which is a name
/// to DNS, would be written down as an address, and one that a name never opens.
fn is_name(name: &str) -> bool {
    format!("{name}:443").parse::<Egress>().is_ok_and(|rule| rule.is_name())
}

/// Asks `server`; what it is recognised by, and where the answer will come.
fn question(query: &Query, server: SocketAddr) -> Result<(u16, OwnedFd), Errno> {
    let (family, address): (_, Box<dyn SockaddrLike>) = match server {
        SocketAddr::V4(v4) => (AddressFamily::Inet, Box::new(SockaddrIn::from(v4))),
        SocketAddr::V6(v6) => (AddressFamily::Inet6, Box::new(SockaddrIn6::from(v6))),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, None)?;
    connect(fd.as_raw_fd(), address.as_ref())?;
    let id = crate::sys::random()?;
    send(fd.as_raw_fd(), &query.upstream(id), MsgFlags::MSG_DONTWAIT)?;
    Ok((id, fd))
}

/// Where the tenant's resolver finds it: resolv.conf(5).
pub(crate) const NAME_SERVER: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 53);

/// The resolvers that a resolv.conf(5) names, three at most.
pub(crate) fn upstream(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            // A scope behind an address (fe80::1%eth0) is left out, and the
            // address with it.
            (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
        })
        .take(3)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_takes_for_an_address_is_no_name() {
        for (name, expected) in [
            ("example.com", true),
            ("_dmarc.10.example", true),
            ("169.254.169.254", false),
            ("127.1", false),
            ("com.1", false),
            ("-x.example", false),
            ("", false),
        ] {
            assert_eq!(is_name(name), expected, "{name}");
        }
    }

    #[test]
    fn resolvers_are_read_as_the_c_library_reads_them() {
        let text = "# nameserver 192.0.2.1\nsearch example.com\nnameserver 192.0.2.2\n\
                    nameserver\t2001:db8::1 # first\noptions rotate\nnameserver nonsense\n\
                    nameserver 192.0.2.3\nnameserver 192.0.2.4\n";
        let found: Vec<_> = upstream(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.2", "2001:db8::1", "192.0.2.3"]);
        assert!(upstream("").is_empty());
    }
}
