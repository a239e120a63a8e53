//! Messages written out byte by byte from RFC 1035 (4.1, 4.1.4) and RFC 6891
//! (6.1.2, 6.1.3), so that what they are held against is not our own output.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::broker::answer::{Answer, Bad, MAX_ADDRESSES};
use crate::testing::Random;

const A: u16 = 1;
const CNAME: u16 = 5;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const SSHFP: u16 = 44;
const IN: u16 = 1;

/// RD.
const QUERY: u16 = 0x0100;
/// QR, RD, RA, NOERROR.
const RESPONSE: u16 = 0x8180;
/// A pointer to the question's name.
const ASKED: &[u8] = b"\xc0\x0c";
const NAME: &[u8] = b"\x03wWw\x07Example\x03cOm\x00";
const LOWER: &[u8] = b"\x03www\x07example\x03com\x00";
/// Root, type 41, size 4096, rcode 0, version 0, DO set, no data.
const OPT: &[u8] = b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x00";
/// The one we send: size 1232, no flags.
const OUR_OPT: &[u8] = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";

fn message(id: u16, flags: u16, counts: [u16; 4], parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [id, flags].map(u16::to_be_bytes).concat();
    bytes.extend(counts.map(u16::to_be_bytes).concat());
    bytes.extend(parts.concat());
    bytes
}

fn question(name: &[u8], kind: u16) -> Vec<u8> {
    [name, &kind.to_be_bytes(), &IN.to_be_bytes()].concat()
}

fn record(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap().to_be_bytes();
    [owner, &kind.to_be_bytes(), &IN.to_be_bytes(), &ttl.to_be_bytes(), &length, data].concat()
}

fn query_bytes(kind: u16) -> Vec<u8> {
    message(0x1234, QUERY, [1, 0, 0, 0], &[&question(NAME, kind)])
}

fn query(kind: u16) -> Query {
    Query::parse(&query_bytes(kind)).unwrap()
}

/// A response with id 7 to what `query` asks upstream.
fn response(kind: u16, records: &[Vec<u8>]) -> Vec<u8> {
    let count = u16::try_from(records.len()).unwrap();
    message(7, RESPONSE, [1, count, 0, 0], &[&question(LOWER, kind), &records.concat()])
}

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

fn v6(last: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()
}

fn formerr() -> Malformed {
    Malformed { reply: Some(message(0x1234, 0x8181, [0; 4], &[])) }
}

fn parse_error(bytes: &[u8]) -> Malformed {
    Query::parse(bytes).unwrap_err()
}

#[test]
fn reads_a_query() {
    for (kind, expected) in
        [(A, Kind::A), (AAAA, Kind::Aaaa), (TXT, Kind::Other), (SSHFP, Kind::Other)]
    {
        let query = query(kind);
        assert_eq!((query.header.id(), query.name.as_str()), (0x1234, "www.example.com"));
        assert_eq!((query.kind, query.udp_size), (expected, None));
    }
    // A type that nobody has, and ANY.
    assert_eq!((query(0xfedc).kind, query(255).kind), (Kind::Other, Kind::Other));
    let root = message(1, 0, [1, 0, 0, 0], &[&question(b"\0", 2)]);
    assert_eq!(Query::parse(&root).unwrap().name, "");
}

#[test]
fn reads_edns() {
    let cookie = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x0812345678";
    for (opt, size) in [(OPT, 4096), (cookie, 1232)] {
        let bytes = message(1, QUERY, [1, 0, 0, 1], &[&question(NAME, A), opt]);
        assert_eq!(Query::parse(&bytes).unwrap().udp_size, Some(size));
    }
    let bytes = message(0x1234, QUERY, [1, 0, 0, 2], &[&question(NAME, A), OPT, OPT]);
    assert_eq!(parse_error(&bytes), formerr(), "two of them");
    let owned = [b"\xc0\x0c", &OPT[1..]].concat();
    let bytes = message(0x1234, QUERY, [1, 0, 0, 1], &[&question(NAME, A), &owned]);
    assert_eq!(parse_error(&bytes), formerr(), "with a name");
    let mut newer = OPT.to_vec();
    newer[6] = 1;
    let bytes = message(0x1234, QUERY, [1, 0, 0, 1], &[&question(NAME, A), &newer]);
    // BADVERS is 16: 0 in the header, 1 in the OPT record.
    let opt = b"\x00\x00\x29\x04\xd0\x01\x00\x00\x00\x00\x00";
    let expected = message(0x1234, 0x8180, [0, 0, 0, 1], &[opt]);
    assert_eq!(parse_error(&bytes).reply, Some(expected));
}

#[test]
fn refuses_what_is_no_query() {
    let asked = question(NAME, A);
    for counts in [[0, 0, 0, 0], [2, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 9]] {
        let bytes = message(0x1234, QUERY, counts, &[&asked, &asked]);
        assert_eq!(parse_error(&bytes), formerr(), "{counts:?}");
    }
    for class in [3u16, 254, 255, 0x8001] {
        let name = [NAME, &A.to_be_bytes(), &class.to_be_bytes()].concat();
        let bytes = message(0x1234, QUERY, [1, 0, 0, 0], &[&name]);
        assert_eq!(parse_error(&bytes), formerr(), "class {class}");
    }
    // Opcode 5, UPDATE; RD is repeated, and with it opcode and NOTIMP.
    let bytes = message(0x1234, 0x2900, [1, 0, 0, 0], &[&asked]);
    assert_eq!(parse_error(&bytes).reply, Some(message(0x1234, 0xa984, [0; 4], &[])));
    let bytes = message(0x1234, RESPONSE, [1, 0, 0, 0], &[&asked]);
    assert_eq!(parse_error(&bytes), Malformed { reply: None });
}

#[test]
fn takes_names_of_hosts_only() {
    for byte in 0..=u8::MAX {
        let bytes =
            message(0x1234, QUERY, [1, 0, 0, 0], &[&question(&[3, b'a', byte, b'b', 0], A)]);
        let parsed = Query::parse(&bytes);
        if matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_') {
            let expected = format!("a{}b", char::from(byte).to_ascii_lowercase());
            assert_eq!(parsed.unwrap().name, expected);
        } else {
            assert_eq!(parsed.unwrap_err(), formerr(), "byte {byte}");
        }
    }
}

/// Four labels whose name has `last + 194` bytes on the wire.
fn long_name(last: u8) -> Vec<u8> {
    let label = |len: u8| [&[len][..], &vec![b'x'; usize::from(len)]].concat();
    [label(63), label(63), label(63), label(last), vec![0]].concat()
}

#[test]
fn takes_names_up_to_255_bytes() {
    let bytes = message(0x1234, QUERY, [1, 0, 0, 0], &[&question(&long_name(61), A)]);
    let query = Query::parse(&bytes).unwrap();
    assert_eq!(query.name.len(), 253);
    assert_eq!(query.upstream(0).len(), 12 + 255 + 4 + 11);
    let bytes = message(0x1234, QUERY, [1, 0, 0, 0], &[&question(&long_name(62), A)]);
    assert_eq!(parse_error(&bytes), formerr());
    // Lengths from 64 on do not exist.
    for length in [0x40, 0x41, 0x80, 0xbf] {
        let name = [&[length][..], &[b'x'; 0xbf], b"\0"].concat();
        let bytes = message(0x1234, QUERY, [1, 0, 0, 0], &[&question(&name, A)]);
        assert_eq!(parse_error(&bytes), formerr(), "{length:#x}");
    }
}

#[test]
fn takes_no_pointer_in_a_question() {
    // To itself, ahead, into the header, behind a label, and to the label.
    for name in [b"\xc0\x0c".as_slice(), b"\xc0\x10", b"\xff\xff", b"\xc0\x04", b"\xc0\x00"] {
        let bytes = message(0x1234, QUERY, [1, 0, 0, 0], &[&question(name, A)]);
        assert_eq!(parse_error(&bytes), formerr(), "{name:x?}");
        let name = [b"\x01a", name].concat();
        let bytes = message(0x1234, QUERY, [1, 0, 0, 0], &[&question(&name, A)]);
        assert_eq!(parse_error(&bytes), formerr(), "{name:x?}");
    }
}

#[test]
fn takes_no_part_of_a_query() {
    let bytes = message(0x1234, QUERY, [1, 0, 0, 1], &[&question(NAME, A), OPT]);
    for end in 0..bytes.len() {
        let expected = if end < 12 { Malformed { reply: None } } else { formerr() };
        assert_eq!(parse_error(&bytes[..end]), expected, "{end} bytes");
    }
}

#[test]
fn asks_upstream() {
    for kind in [A, AAAA, TXT, SSHFP, 0xfedc] {
        let expected = message(0xbeef, QUERY, [1, 0, 0, 1], &[&question(LOWER, kind), OUR_OPT]);
        assert_eq!(query(kind).upstream(0xbeef), expected);
    }
}

#[test]
fn reads_addresses() {
    let records = [record(ASKED, A, 300, &[192, 0, 2, 1]), record(LOWER, A, 200, &[192, 0, 2, 2])];
    let expected = vec![(v4(1), 300), (v4(2), 200)];
    let answer = query(A).read_answer(7, &response(A, &records)).unwrap();
    assert_eq!(answer, Answer { addresses: expected, exists: true, truncated: false });
    let address = b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x05";
    let records = [
        record(ASKED, AAAA, u32::MAX, address),
        record(NAME, A, 1, &[192, 0, 2, 1]),
        record(ASKED, 46, 1, b"signature"),
        record(b"\x07eXample\xc0\x18", AAAA, 5, address),
    ];
    let answer = query(AAAA).read_answer(7, &response(AAAA, &records)).unwrap();
    // A time to live with the top bit is 0 (RFC 2181, 8).
    assert_eq!(answer.addresses, [(v6(5), 0)]);
    // Other kinds: whether the name exists, and no more.
    let records = [record(ASKED, TXT, 1, b"\x01a"), record(ASKED, A, 1, &[192, 0, 2, 1])];
    let answer = query(TXT).read_answer(7, &response(TXT, &records)).unwrap();
    assert_eq!(answer, Answer { addresses: vec![], exists: true, truncated: false });
}

#[test]
fn knows_no_data_from_no_name() {
    let asked = question(LOWER, A);
    let nothing = Answer { addresses: vec![], exists: true, truncated: false };
    let answer = |flags| query(A).read_answer(7, &message(7, flags, [1, 0, 0, 0], &[&asked]));
    assert_eq!(answer(0x8180), Ok(nothing.clone()));
    assert_eq!(answer(0x8183), Ok(Answer { exists: false, ..nothing.clone() }));
    assert_eq!(answer(0x8380), Ok(Answer { truncated: true, ..nothing.clone() }));
    for rcode in [1, 2, 4, 5, 6, 15] {
        assert_eq!(answer(0x8180 | rcode), Err(Bad::Failed), "rcode {rcode}");
    }
    // BADVERS and BADCOOKIE have their upper bits in the OPT record only.
    for (low, high) in [(0, 1), (7, 1)] {
        let opt = [0, 0, 41, 4, 208, high, 0, 0, 0, 0, 0];
        let bytes = message(7, 0x8180 | low, [1, 0, 0, 1], &[&asked, &opt]);
        assert_eq!(query(A).read_answer(7, &bytes), Err(Bad::Failed));
    }
    // Of NXDOMAIN and an address, the former.
    let address = record(ASKED, A, 1, &[192, 0, 2, 1]);
    let bytes = message(7, 0x8183, [1, 1, 0, 0], &[&asked, &address]);
    assert_eq!(query(A).read_answer(7, &bytes), Ok(Answer { exists: false, ..nothing }));
}

#[test]
fn waits_for_its_own_answer() {
    let address = record(ASKED, A, 300, &[192, 0, 2, 1]);
    let good = response(A, std::slice::from_ref(&address));
    assert_eq!(query(A).read_answer(8, &good), Err(Bad::NotOurs), "id");
    assert_eq!(query(AAAA).read_answer(7, &good), Err(Bad::NotOurs), "type");
    let other = question(b"\x03wwx\x07example\x03com\0", A);
    let longer = question(b"\x03www\x07example\x03com\x02au\0", A);
    let shorter = question(b"\x07example\x03com\0", A);
    let chaos = [LOWER, &A.to_be_bytes(), &3u16.to_be_bytes()].concat();
    for asked in [other, longer, shorter, chaos] {
        let bytes = message(7, RESPONSE, [1, 1, 0, 0], &[&asked, &address]);
        assert_eq!(query(A).read_answer(7, &bytes), Err(Bad::NotOurs), "{asked:x?}");
    }
    let asked = question(LOWER, A);
    // QR, opcode, no question, two of them.
    for (flags, count) in [(QUERY, 1), (0xa980, 1), (RESPONSE, 0), (RESPONSE, 2)] {
        let bytes = message(7, flags, [count, 0, 0, 0], &[&asked, &asked]);
        assert_eq!(query(A).read_answer(7, &bytes), Err(Bad::NotOurs), "{flags:#x}, {count}");
    }
    let mixed = message(7, RESPONSE, [1, 1, 0, 0], &[&question(NAME, A), &address]);
    assert_eq!(query(A).read_answer(7, &mixed).unwrap().addresses, [(v4(1), 300)], "case");
}

#[test]
fn follows_aliases() {
    // In any order, with names of other chains in between.
    let cdn = b"\x03CDN\x04test\0";
    let records = [
        record(b"\x01b\x04test\0", A, 500, &[192, 0, 2, 9]),
        record(b"\x04edge\x04test\0", A, 400, &[192, 0, 2, 1]),
        record(b"\x03cdn\x04test\0", CNAME, 60, b"\x04edge\x04TEST\0"),
        record(b"\x01a\x04test\0", CNAME, 1, b"\x01b\x04test\0"),
        record(ASKED, CNAME, 900, cdn),
        record(b"\x04Edge\x04test\0", A, 30, &[192, 0, 2, 2]),
    ];
    let answer = query(A).read_answer(7, &response(A, &records)).unwrap();
    assert_eq!(answer.addresses, [(v4(1), 60), (v4(2), 30)]);
    // A chain that leaves the message has no addresses, and that is no error.
    let answer = query(A).read_answer(7, &response(A, &records[4..])).unwrap();
    assert_eq!((answer.addresses, answer.exists), (vec![], true));
    // Of another class.
    let mut chaos = record(ASKED, A, 1, &[192, 0, 2, 1]);
    chaos[5] = 3;
    assert_eq!(query(A).read_answer(7, &response(A, &[chaos])).unwrap().addresses, []);
}

#[test]
fn leaves_loops_and_long_chains() {
    let itself = vec![record(ASKED, CNAME, 1, NAME)];
    let pair = vec![
        record(ASKED, CNAME, 1, b"\x01a\0"),
        record(b"\x01a\0", CNAME, 1, b"\x01B\0"),
        record(b"\x01b\0", CNAME, 1, b"\x01A\0"),
        record(ASKED, A, 1, &[192, 0, 2, 1]),
    ];
    for records in [itself, pair] {
        assert_eq!(query(A).read_answer(7, &response(A, &records)), Err(Bad::Failed));
    }
    let chain = |length: u8| {
        let name = |i: u8| vec![1, b'a' + i, 0];
        let mut records = vec![record(ASKED, CNAME, 9, &name(1))];
        records.extend((1..length).map(|i| record(&name(i), CNAME, 9, &name(i + 1))));
        records.push(record(&name(length), A, 9, &[192, 0, 2, 1]));
        query(A).read_answer(7, &response(A, &records))
    };
    assert_eq!(chain(15).unwrap().addresses, [(v4(1), 9)], "16 names");
    assert_eq!(chain(16), Err(Bad::Failed));
}

#[test]
fn leaves_records_that_are_none() {
    // Compressed names: the owner is at 33, and what follows behind it.
    for owner in [b"\xc0\x21".as_slice(), b"\xc0\x30", b"\xff\xff", b"\x01a\xc0\x21", b"\x80a\0"] {
        let records = [record(owner, A, 1, &[192, 0, 2, 1])];
        assert_eq!(query(A).read_answer(7, &response(A, &records)), Err(Bad::Failed), "{owner:x?}");
    }
    // A target that points at itself, out of the message, or has bytes behind it.
    for target in [b"\xc0\x2d".as_slice(), b"\xc0\xff", b"\x01a\0x", b"\x01a", b""] {
        let records = [record(ASKED, CNAME, 1, target)];
        assert_eq!(
            query(A).read_answer(7, &response(A, &records)),
            Err(Bad::Failed),
            "{target:x?}"
        );
    }
    for length in [0, 3, 5, 16] {
        let records = [record(ASKED, A, 1, &[1; 16][..length])];
        assert_eq!(query(A).read_answer(7, &response(A, &records)), Err(Bad::Failed), "{length}");
    }
    // A record of no meaning here is of none, whatever is in it; nor what comes
    // after the answers.
    let records = [record(ASKED, 6, 1, b"\xff"), record(ASKED, A, 1, &[192, 0, 2, 1])];
    let mut bytes = response(A, &records);
    assert_eq!(query(A).read_answer(7, &bytes).unwrap().addresses, [(v4(1), 1)]);
    bytes[9] = 1;
    assert_eq!(query(A).read_answer(7, &bytes).unwrap().addresses, [(v4(1), 1)]);
}

#[test]
fn takes_no_part_of_an_answer() {
    let records = [record(ASKED, CNAME, 1, b"\x01a\0"), record(b"\x01a\0", A, 1, &[192, 0, 2, 1])];
    let bytes = response(A, &records);
    for end in 0..bytes.len() {
        let expected = if end < 33 { Bad::NotOurs } else { Bad::Failed };
        assert_eq!(query(A).read_answer(7, &bytes[..end]), Err(expected), "{end} bytes");
    }
}

#[test]
fn a_pointer_chain_ends() {
    // Each pointer of a long one-word record leads to the one before it.
    let mut data = vec![0];
    let base = 33 + 12;
    for i in 0..400u16 {
        let target = if i == 0 { base } else { base + 2 * i - 1 };
        data.extend((0xc000 | target).to_be_bytes());
    }
    let last = (0xc000 | (base + 799)).to_be_bytes();
    let records = [record(ASKED, TXT, 1, &data), record(&last, A, 1, &[192, 0, 2, 1])];
    assert_eq!(query(A).read_answer(7, &response(A, &records)), Err(Bad::Failed));
}

#[test]
fn replies() {
    let with_edns = message(0x1234, QUERY, [1, 0, 0, 1], &[&question(NAME, A), OPT]);
    let with_edns = Query::parse(&with_edns).unwrap();
    let asked = question(NAME, A);
    let first = record(ASKED, A, 300, &[192, 0, 2, 1]);
    let second = record(ASKED, A, 0x7fff_ffff, &[192, 0, 2, 2]);
    let addresses = [(v4(1), 300), (v6(1), 1), (v4(2), u32::MAX)];
    let expected = message(0x1234, 0x8180, [1, 2, 0, 0], &[&asked, &first, &second]);
    assert_eq!(query(A).reply(&addresses), expected);
    let expected = message(0x1234, 0x8180, [1, 2, 0, 1], &[&asked, &first, &second, OUR_OPT]);
    assert_eq!(with_edns.reply(&addresses), expected);
    let asked = question(NAME, AAAA);
    let only = record(ASKED, AAAA, 1, b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01");
    let expected = message(0x1234, 0x8180, [1, 1, 0, 0], &[&asked, &only]);
    assert_eq!(query(AAAA).reply(&addresses), expected);
    let expected = message(0x1234, 0x8180, [1, 0, 0, 0], &[&question(NAME, SSHFP)]);
    assert_eq!(query(SSHFP).reply(&addresses), expected);
    assert_eq!(query(SSHFP).reply(&[]), expected);
    // Without RD, as asked (RFC 1035, 4.1.1).
    let bytes = message(0x1234, 0, [1, 0, 0, 0], &[&asked]);
    let expected = message(0x1234, 0x8080, [1, 0, 0, 0], &[&asked]);
    assert_eq!(Query::parse(&bytes).unwrap().reply(&[]), expected);
}

#[test]
fn refuses() {
    let asked = question(NAME, A);
    for (code, flags) in [(Code::NxDomain, 0x8183), (Code::ServFail, 0x8182)] {
        assert_eq!(query(A).refuse(code), message(0x1234, flags, [1, 0, 0, 0], &[&asked]));
        let bytes = message(0x1234, QUERY, [1, 0, 0, 1], &[&asked, OPT]);
        let expected = message(0x1234, flags, [1, 0, 0, 1], &[&asked, OUR_OPT]);
        assert_eq!(Query::parse(&bytes).unwrap().refuse(code), expected);
    }
}

#[test]
fn a_hundred_addresses_are_cut() {
    let records: Vec<_> = (0..100).map(|i| record(ASKED, A, 60, &[192, 0, 2, i])).collect();
    let answer = query(A).read_answer(7, &response(A, &records)).unwrap();
    let expected: Vec<_> = (0..32).map(|i| (v4(i), 60)).collect();
    assert_eq!(answer.addresses, expected);
    let many = |kind, edns: bool, name: &[u8]| {
        let parts: [&[u8]; 2] = [&question(name, kind), if edns { OPT } else { b"" }];
        let query = Query::parse(&message(1, QUERY, [1, 0, 0, edns.into()], &parts)).unwrap();
        let addresses: Vec<_> = (0..100).flat_map(|i| [(v4(i), 1), (v6(i.into()), 1)]).collect();
        let reply = query.reply(&addresses);
        (reply.len(), reply[7])
    };
    // 12 bytes of header, the question, and 16 or 28 for each address, with 11
    // left for OPT: (501 - 12 - 21) / 16 = 29, / 28 = 16.
    assert_eq!(many(A, false, NAME), (12 + 21 + 29 * 16, 29));
    assert_eq!(many(A, true, NAME), (12 + 21 + 29 * 16 + 11, 29));
    assert_eq!(many(AAAA, true, NAME), (12 + 21 + 16 * 28 + 11, 16));
    // (501 - 12 - 259) / 16 = 14, / 28 = 8.
    assert_eq!(many(A, true, &long_name(61)), (12 + 259 + 14 * 16 + 11, 14));
    assert_eq!(many(AAAA, true, &long_name(61)), (12 + 259 + 8 * 28 + 11, 8));
    // Exactly 501 bytes: a name of 5 bytes leaves 480 for 30 addresses, and 512
    // with OPT.
    assert_eq!(many(A, true, b"\x03abc\0"), (512, 30));
}

impl Random {
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        const TELLING: [u8; 12] = [0, 1, 5, 28, 41, 63, 64, 0x80, 0xc0, 0xc1, 0xfe, 0xff];
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes.insert(at, TELLING[self.below(12)]),
                2 => bytes.extend_from_within(at..),
                3 => drop(bytes.remove(at)),
                4 => bytes[at] ^= 1 << self.below(8),
                // A pointer to somewhere within.
                5 if at + 1 < bytes.len() => {
                    let target = u16::try_from(self.below(bytes.len().min(0x4000))).unwrap();
                    bytes[at..at + 2].copy_from_slice(&(0xc000 | target).to_be_bytes());
                }
                _ => bytes[at] = TELLING[self.below(12)],
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        bytes.truncate(2048);
    }
}

#[test]
fn hostile_bytes_do_no_harm() {
    let records = [
        record(ASKED, CNAME, 60, b"\x03cdn\xc0\x10"),
        record(b"\xc0\x2d", CNAME, 60, b"\x04edge\xc0\x18"),
        record(b"\x04edge\x03com\0", A, 60, &[192, 0, 2, 1]),
        record(b"\xc0\x3f", AAAA, 60, &[7; 16]),
    ];
    let mut answer = response(A, &records);
    answer[11] = 1;
    answer.extend(OPT);
    let asked = message(0x1234, QUERY, [1, 0, 0, 1], &[&question(NAME, A), OPT]);
    let addresses: Vec<_> = (0..100).flat_map(|i| [(v4(i), 1), (v6(i.into()), 1)]).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut queries, mut answers) = (0, 0);
    let ours = query(A);
    assert_eq!(ours.read_answer(7, &answer).unwrap().addresses, [(v4(1), 60)]);
    for _ in 0..200_000 {
        let mut bytes = asked.clone();
        random.spoil(&mut bytes);
        match Query::parse(&bytes) {
            Ok(query) => {
                queries += 1;
                assert!(query.name.len() <= 253);
                let reply = query.reply(&addresses);
                assert!((12..=512).contains(&reply.len()));
                let read = query.read_answer(query.header.id(), &reply).unwrap();
                assert_eq!(read.addresses.is_empty(), query.kind == Kind::Other);
                let refusal = query.refuse(Code::NxDomain);
                assert!(!query.read_answer(query.header.id(), &refusal).unwrap().exists);
                let again = Query::parse(&query.upstream(9)).unwrap();
                assert_eq!((again.name, again.kind), (query.name, query.kind));
            }
            Err(Malformed { reply: Some(reply) }) => assert!(matches!(reply.len(), 12 | 23)),
            Err(Malformed { reply: None }) => {}
        }
        let mut bytes = answer.clone();
        random.spoil(&mut bytes);
        if let Ok(answer) = ours.read_answer(7, &bytes) {
            answers += 1;
            assert!(answer.addresses.len() <= MAX_ADDRESSES);
            assert!(answer.addresses.iter().all(|(address, _)| address.is_ipv4()));
            assert!(ours.reply(&answer.addresses).len() <= 512);
        }
        // Answers are no queries, nor the other way round; nor do they crash.
        assert!(Query::parse(&bytes).is_err() || bytes[2] < 0x80);
    }
    // Not all for nothing.
    assert!(queries > 10_000 && answers > 10_000, "{queries} queries, {answers} answers");
}
