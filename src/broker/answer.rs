//! Reads what a resolver says to the query of a tenant (RFC 1035).
//!
//! Like `dns`: bytes in, values out, no socket and no policy. The bytes come from
//! the network, so nothing in them is believed; in particular an address counts
//! only where the name that was asked for leads to it.

use std::net::IpAddr;

use domain::base::iana::{Class, Opcode, OptRcode, Rtype};
use domain::base::name::ToName;
use domain::base::wire::ParseError;
use domain::base::{Message, ParsedName, Ttl};
use domain::rdata::{A, Aaaa, Cname};

use super::dns::{Kind, MAX_TTL, Query};

/// The most addresses taken out of one answer.
pub(super) const MAX_ADDRESSES: usize = 32;
/// The names of one answer, the asked one included. Resolvers give up at about
/// as many.
const MAX_CHAIN: usize = 16;

type Owner<'a> = ParsedName<&'a [u8]>;

/// Why a message from a resolver gives no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Bad {
    /// Late, forged, or not DNS at all: the answer may still come.
    #[error("not the answer to this query")]
    NotOurs,
    /// The resolver does not know (SERVFAIL, REFUSED and so on), or what it says
    /// makes no sense. Another resolver may do better.
    #[error("the resolver has no usable answer")]
    Failed,
}

impl From<ParseError> for Bad {
    fn from(_: ParseError) -> Self {
        Self::Failed
    }
}

/// What a resolver knows about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Addresses of the asked kind with their time to live in seconds, at most
    /// [`MAX_ADDRESSES`]. Any address may be in here, those of this host and its
    /// networks too: whoever connects has to look.
    pub(super) addresses: Vec<(IpAddr, u32)>,
    /// `false`: no such name (NXDOMAIN). Without addresses and `true`: the name
    /// has records of other types only.
    pub(super) exists: bool,
    /// There is more, which did not fit in the message (TC).
    pub(super) truncated: bool,
}

impl Query {
    /// Reads a datagram from the resolver that was sent
    /// [`upstream(id)`](Self::upstream). Whether it came from that resolver is
    /// for the caller to know, and that its buffer is no larger than a few KiB:
    /// the work is bounded by the size of the message only.
    ///
    /// Aliases (CNAME) are followed within the message, and addresses of names
    /// that they do not lead to are left out. The time to live is the lowest on
    /// the way.
    ///
    /// # Errors
    /// [`Bad::NotOurs`] unless it is a response with this id and question,
    /// otherwise [`Bad::Failed`] unless it is NOERROR or NXDOMAIN and readable,
    /// with aliases that come to an end.
    pub(super) fn read_answer(&self, id: u16, bytes: &[u8]) -> Result<Answer, Bad> {
        let message = Message::from_slice(bytes).map_err(|_| Bad::NotOurs)?;
        let header = message.header();
        let asked = message.sole_question().map_err(|_| Bad::NotOurs)?;
        // Names compare without case (RFC 4343).
        if header.id() != id
            || !header.qr()
            || header.opcode() != Opcode::QUERY
            || !asked.qname().name_eq(self.question.qname())
            || asked.qtype() != self.question.qtype()
            || asked.qclass() != Class::IN
        {
            return Err(Bad::NotOurs);
        }
        let exists = match message.opt_rcode() {
            OptRcode::NOERROR => true,
            OptRcode::NXDOMAIN => false,
            _ => return Err(Bad::Failed),
        };
        let mut addresses = self.addresses(message, *asked.qname())?;
        if !exists {
            // The code is about the end of the chain (RFC 6604), so an address
            // would contradict it.
            addresses.clear();
        }
        Ok(Answer { addresses, exists, truncated: header.tc() })
    }

    fn addresses<'a>(
        &self,
        message: &'a Message<[u8]>,
        name: Owner<'a>,
    ) -> Result<Vec<(IpAddr, u32)>, Bad> {
        let mut aliases: Vec<(Owner, Owner, u32)> = Vec::new();
        let mut found: Vec<(Owner, IpAddr, u32)> = Vec::new();
        for record in message.answer()? {
            let record = record?;
            if record.class() != Class::IN {
                continue;
            }
            let (owner, ttl) = (record.owner().deref_octets(), seconds(record.ttl()));
            match (record.rtype(), self.kind) {
                (Rtype::CNAME, _) => {
                    let alias = record.into_record::<Cname<_>>()?.ok_or(Bad::Failed)?;
                    aliases.push((owner, alias.into_data().into_cname(), ttl));
                }
                (Rtype::A, Kind::A) => {
                    let record = record.into_record::<A>()?.ok_or(Bad::Failed)?;
                    found.push((owner, record.data().addr().into(), ttl));
                }
                (Rtype::AAAA, Kind::Aaaa) => {
                    let record = record.into_record::<Aaaa>()?.ok_or(Bad::Failed)?;
                    found.push((owner, record.data().addr().into(), ttl));
                }
                _ => {}
            }
        }
        let chain = follow(name, &aliases)?;
        let reached = found.into_iter().filter_map(|(owner, address, ttl)| {
            let (_, limit) = chain.iter().find(|(name, _)| name.name_eq(&owner))?;
            Some((address, ttl.min(*limit)))
        });
        Ok(reached.take(MAX_ADDRESSES).collect())
    }
}

/// The names that `name` leads to, itself first, each with the lowest time to
/// live of the aliases up to it.
fn follow<'a>(
    name: Owner<'a>,
    aliases: &[(Owner<'a>, Owner<'a>, u32)],
) -> Result<Vec<(Owner<'a>, u32)>, Bad> {
    let mut chain = vec![(name, MAX_TTL)];
    let (mut last, mut limit) = (name, MAX_TTL);
    // A name has one alias at most (RFC 2181, 10.1): the first.
    while let Some((_, target, ttl)) = aliases.iter().find(|(owner, ..)| owner.name_eq(&last)) {
        if chain.len() == MAX_CHAIN || chain.iter().any(|(name, _)| name.name_eq(target)) {
            return Err(Bad::Failed);
        }
        (last, limit) = (*target, limit.min(*ttl));
        chain.push((last, limit));
    }
    Ok(chain)
}

fn seconds(ttl: Ttl) -> u32 {
    if ttl.as_secs() > MAX_TTL { 0 } else { ttl.as_secs() }
}
