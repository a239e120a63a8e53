//! DNS messages: what a tenant asks, what is asked of the host's resolvers for
//! it, and what it is told (RFC 1035, RFC 6891). What the resolvers say is read
//! in `answer`.
//!
//! Bytes in, values and bytes out: no socket, no clock, no choice of ids, and no
//! policy. Queries come from the tenant, so nothing in them is believed, and
//! nothing is handed on as it came: every message that leaves is put together
//! here from a name, a type and addresses.

use std::net::IpAddr;

use domain::base::iana::{Class, Opcode, OptRcode, Rtype};
use domain::base::message_builder::{
    AdditionalBuilder, MessageBuilder, PushError, StaticCompressor,
};
use domain::base::name::ToLabelIter;
use domain::base::opt::{Opt, OptRecord};
use domain::base::{Header, Message, Name, Question, Ttl};
use domain::dep::octseq::array::Array;
use domain::rdata::{A, Aaaa};

/// Longest reply in bytes: what a client without EDNS takes (RFC 1035, 4.2.1).
/// Those with EDNS get no more either, so that a reply is never a large one.
pub(super) const MAX_REPLY: usize = 512;
/// The size in bytes of UDP messages that we say we take (RFC 6891, 6.2.3); it
/// passes every link without being cut in pieces.
pub(super) const UDP_SIZE: u16 = 1232;

/// An OPT record without options: root name, type, size, rcode and flags, length.
const OPT_LEN: usize = 11;
/// Longest time to live in seconds; larger ones mean 0 (RFC 2181, 8).
pub(super) const MAX_TTL: u32 = 0x7fff_ffff;
/// Any fault of a query that has no code of its own (RFC 1035, 4.1.1).
const FORMERR: OptRcode = OptRcode::FORMERR;
/// Where the question is: after the header (RFC 1035, 4.1.1).
const QUESTION_OFFSET: usize = 12;

type Buffer = StaticCompressor<Array<MAX_REPLY>>;

/// What kind of record is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses (RFC 3596).
    Aaaa,
    /// Anything else, `ANY` included.
    Other,
}

/// A code to refuse with (RFC 1035, 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// There is no such name.
    NxDomain,
    /// It could not be found out.
    ServFail,
}

/// A query that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed DNS query")]
pub(super) struct Malformed {
    /// What to send back: FORMERR, NOTIMP or BADVERS, of at most 23 bytes.
    /// `None` where there was no header, or that of a response: two servers that
    /// answer each other's answers would not stop.
    pub(super) reply: Option<Vec<u8>>,
}

/// What a tenant asks.
#[derive(Clone, Debug)]
pub(super) struct Query {
    /// In lower case, without a trailing dot; empty for the root. At most 253
    /// letters, digits, `-`, `_`, and dots.
    pub(super) name: String,
    /// Which records.
    pub(super) kind: Kind,
    /// The largest UDP message in bytes that the client takes, as it was sent:
    /// less than 512 means 512 (RFC 6891, 6.2.3). `None` without EDNS.
    pub(super) udp_size: Option<u16>,
    /// Repeated in the reply: id, opcode, RD.
    pub(super) header: Header,
    /// With the name in the case that the client wrote: it may compare
    /// (draft-vixie-dnsext-dns0x20).
    pub(super) question: Question<Name<Vec<u8>>>,
}

impl Query {
    /// Reads a datagram from a client. Bytes after the message are ignored.
    ///
    /// # Errors
    /// [`Malformed`] unless it is a standard query with exactly one question, of
    /// class IN, for a name of letters, digits, `-` and `_`, with no records but
    /// additional ones, and with EDNS version 0 or none.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let message = Message::from_slice(bytes).map_err(|_| Malformed { reply: None })?;
        let header = message.header();
        if header.qr() {
            return Err(Malformed { reply: None });
        }
        Self::from_message(message).map_err(|code| {
            // No more of it than the header is known to be good.
            let reply = response(header, code)
                .and_then(|reply| finish(reply.additional(), code.is_ext().then_some(code)));
            Malformed { reply: reply.ok() }
        })
    }

    fn from_message(message: &Message<[u8]>) -> Result<Self, OptRcode> {
        let (header, counts) = (message.header(), message.header_counts());
        if header.opcode() != Opcode::QUERY {
            return Err(OptRcode::NOTIMP);
        }
        let asked = message.sole_question().map_err(|_| FORMERR)?;
        if asked.qclass() != Class::IN || counts.ancount() != 0 || counts.nscount() != 0 {
            return Err(FORMERR);
        }
        // Read a second time without compression: a pointer in the first name
        // of a message could lead nowhere but into the header.
        let end = QUESTION_OFFSET + usize::from(asked.qname().compose_len());
        let raw = message.as_slice().get(QUESTION_OFFSET..end).ok_or(FORMERR)?;
        let name = Name::from_octets(raw.to_vec()).map_err(|_| FORMERR)?;
        let kind = match asked.qtype() {
            Rtype::A => Kind::A,
            Rtype::AAAA => Kind::Aaaa,
            _ => Kind::Other,
        };
        Ok(Self {
            name: text(&name).ok_or(FORMERR)?,
            kind,
            udp_size: udp_size(message)?,
            header,
            question: Question::new(name, asked.qtype(), Class::IN),
        })
    }

    /// The query to send to a resolver, with the id it has to answer with. The
    /// id and the port it is sent from are all that keeps forgers out, so both
    /// should be random.
    pub(super) fn upstream(&self, id: u16) -> Vec<u8> {
        // Of 512 bytes, header, question and OPT take 12 + 259 + 11 at most, so
        // neither this nor the replies below can fail.
        self.compose_upstream(id).unwrap_or_default()
    }

    fn compose_upstream(&self, id: u16) -> Result<Vec<u8>, PushError> {
        let mut builder = message()?;
        builder.header_mut().set_id(id);
        builder.header_mut().set_rd(true);
        let mut builder = builder.question();
        // In lower case: the case would reach the servers of the name's owner,
        // and so be a way to say something to somebody outside.
        let mut question = self.question.qname().clone().into_octets();
        question.make_ascii_lowercase();
        let name = Name::from_octets(question).map_err(|_| PushError::ShortBuf)?;
        builder.push((name, self.question.qtype()))?;
        finish(builder.additional(), Some(OptRcode::NOERROR))
    }

    /// The reply with these addresses and their time to live in seconds, of at
    /// most [`MAX_REPLY`] bytes. Those of the other kind are left out, and the
    /// last ones if not all fit: without a word, since TC would make the client
    /// ask again by TCP. An empty list says that there are records of other
    /// types only (NODATA, RFC 2308, 2.2).
    pub(super) fn reply(&self, addresses: &[(IpAddr, u32)]) -> Vec<u8> {
        self.compose_reply(OptRcode::NOERROR, addresses).unwrap_or_default()
    }

    /// The reply that says why there are no addresses, of at most [`MAX_REPLY`]
    /// bytes.
    pub(super) fn refuse(&self, code: Code) -> Vec<u8> {
        let code = match code {
            Code::NxDomain => OptRcode::NXDOMAIN,
            Code::ServFail => OptRcode::SERVFAIL,
        };
        self.compose_reply(code, &[]).unwrap_or_default()
    }

    fn compose_reply(
        &self,
        code: OptRcode,
        addresses: &[(IpAddr, u32)],
    ) -> Result<Vec<u8>, PushError> {
        let mut builder = response(self.header, code)?.question();
        builder.push(&self.question)?;
        let mut builder = builder.answer();
        // The limit itself is out of bounds.
        builder.set_push_limit(MAX_REPLY - OPT_LEN + 1);
        for &(address, ttl) in addresses {
            let (owner, ttl) = (self.question.qname(), Ttl::from_secs(ttl.min(MAX_TTL)));
            let pushed = match (self.kind, address) {
                (Kind::A, IpAddr::V4(address)) => builder.push((owner, ttl, A::new(address))),
                (Kind::Aaaa, IpAddr::V6(address)) => builder.push((owner, ttl, Aaaa::new(address))),
                _ => continue,
            };
            if pushed.is_err() {
                break;
            }
        }
        builder.clear_push_limit();
        // To those who sent one, and to nobody else (RFC 6891, 6.1.1 and 7).
        finish(builder.additional(), self.udp_size.is_some().then_some(code))
    }
}

fn message() -> Result<MessageBuilder<Buffer>, PushError> {
    Ok(MessageBuilder::from_target(StaticCompressor::new(Array::new()))?)
}

/// A response to the query with this header.
fn response(query: Header, code: OptRcode) -> Result<MessageBuilder<Buffer>, PushError> {
    let mut builder = message()?;
    let header = builder.header_mut();
    header.set_id(query.id());
    header.set_qr(true);
    header.set_opcode(query.opcode());
    header.set_rd(query.rd());
    // Go takes an empty reply without it for a referral, and asks again.
    header.set_ra(true);
    header.set_rcode(code.rcode());
    Ok(builder)
}

/// The message, with an OPT record where there is a code for it: the upper bits
/// of the code have their place there (RFC 6891, 6.1.3).
fn finish(
    mut builder: AdditionalBuilder<Buffer>,
    opt: Option<OptRcode>,
) -> Result<Vec<u8>, PushError> {
    if let Some(code) = opt {
        builder.opt(|opt| {
            opt.set_udp_payload_size(UDP_SIZE);
            opt.set_rcode(code);
            Ok(())
        })?;
    }
    Ok(builder.finish().as_ref().to_vec())
}

/// `name` in lower case with dots between the labels, unless there is a byte in
/// it that host names and the names of services do not have.
fn text(name: &Name<Vec<u8>>) -> Option<String> {
    let allowed = |&byte: &u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let labels: Vec<_> = name.iter().take_while(|label| !label.is_root()).collect();
    if !labels.iter().all(|label| label.as_slice().iter().all(allowed)) {
        return None;
    }
    let labels: Vec<&[u8]> = labels.iter().map(|label| label.as_slice()).collect();
    String::from_utf8(labels.join(&b'.').to_ascii_lowercase()).ok()
}

/// The size in the OPT record, of which there is at most one, with the root as
/// its name (RFC 6891, 6.1.1 and 6.1.2).
fn udp_size(message: &Message<[u8]>) -> Result<Option<u16>, OptRcode> {
    let mut size = None;
    for record in message.additional().map_err(|_| FORMERR)? {
        let record = record.map_err(|_| FORMERR)?;
        if record.rtype() != Rtype::OPT {
            continue;
        }
        if size.is_some() || !record.owner().is_root() {
            return Err(FORMERR);
        }
        let record = record.into_record::<Opt<_>>().map_err(|_| FORMERR)?;
        let opt = OptRecord::from_record(record.ok_or(FORMERR)?);
        if opt.version() != 0 {
            return Err(OptRcode::BADVERS);
        }
        size = Some(opt.udp_payload_size());
    }
    Ok(size)
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
