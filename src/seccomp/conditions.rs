//! Calls that are safe only in part: which arguments are let through, and why.

use super::libc_errno::{EACCES, EPERM};
use super::{Answer, Case, Clause, Verdict};
use crate::policy::NetworkMode;

/// One comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u8,
    /// How much of it the kernel looks at.
    pub width: Width,
    /// How it is compared.
    pub operator: Operator,
}

/// How much of an argument the kernel looks at. Where the kernel's parameter is
/// an int, it drops the high half, so comparing it would only let a caller hide
/// a value from us; where it is a long, leaving it out would (CVE-2019-10063).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// An int: the low half.
    Int,
    /// A long or a pointer: both halves.
    Long,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Equal.
    Is(u64),
    /// Different.
    IsNot(u64),
    /// The bits of the mask have this value.
    Masked(u64, u64),
    /// Less, as numbers without a sign.
    Less(u64),
    /// Less or equal.
    AtMost(u64),
    /// Greater or equal.
    AtLeast(u64),
    /// Greater.
    More(u64),
}

impl Condition {
    /// Whether a call with these arguments meets it.
    pub fn holds(self, args: [u64; 6]) -> bool {
        let Some(&whole) = args.get(usize::from(self.argument)) else { return false };
        let value = match self.width {
            Width::Int => whole & u64::from(u32::MAX),
            Width::Long => whole,
        };
        match self.operator {
            Operator::Is(wanted) => value == wanted,
            Operator::IsNot(unwanted) => value != unwanted,
            Operator::Masked(mask, wanted) => value & mask == wanted,
            Operator::Less(than) => value < than,
            Operator::AtMost(most) => value <= most,
            Operator::AtLeast(least) => value >= least,
            Operator::More(than) => value > than,
        }
    }
}

/// Three words in the arguments from `first` on.
pub(super) fn key(first: u8, words: [u64; 3]) -> Clause {
    (first..).zip(words).map(|(argument, word)| long(argument, word)).collect()
}

impl Operator {
    /// What is compared with.
    pub fn number(self) -> u64 {
        let (Self::Is(number)
        | Self::IsNot(number)
        | Self::Masked(_, number)
        | Self::Less(number)
        | Self::AtMost(number)
        | Self::AtLeast(number)
        | Self::More(number)) = self;
        number
    }
}

const fn int(argument: u8, value: u64) -> Condition {
    Condition { argument, width: Width::Int, operator: Operator::Is(value) }
}

const fn int_not(argument: u8, value: u64) -> Condition {
    Condition { argument, width: Width::Int, operator: Operator::IsNot(value) }
}

const fn bits(argument: u8, mask: u64, value: u64) -> Condition {
    Condition { argument, width: Width::Int, operator: Operator::Masked(mask, value) }
}

const fn long(argument: u8, value: u64) -> Condition {
    Condition { argument, width: Width::Long, operator: Operator::Is(value) }
}

/// MSG_FASTOPEN: connects while sending, and so gets round a refused connect on
/// a socket that was born in the host's network namespace.
const MSG_FASTOPEN: u64 = 0x2000_0000;

/// CLONE_NEW* except CLONE_NEWTIME, whose bit is part of the exit signal in
/// clone(2) and means nothing there.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_NETLINK: u64 = 16;
const SOCK_STREAM: u64 = 1;
const SOCK_DGRAM: u64 = 2;
const SOCK_SEQPACKET: u64 = 5;
/// SOCK_TYPE_MASK, include/linux/net.h: below the flags.
const SOCK_TYPE: u64 = 0xf;
const IPPROTO_TCP: u64 = 6;
const IPPROTO_UDP: u64 = 17;
const IPPROTO_MPTCP: u64 = 262;

const F_SETOWN: u64 = 8;
const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;
const F_SETLEASE: u64 = 1024;
const F_NOTIFY: u64 = 1026;

const MFD_NOEXEC_SEAL: u64 = 0x8;
const PROT_WRITE: u64 = 0x2;
const PROT_EXEC: u64 = 0x4;
const MAP_PRIVATE: u64 = 0x2;
/// Below the flags of mmap(2): include/uapi/asm-generic/mman-common.h.
const MAP_TYPE: u64 = 0xf;
const SHM_EXEC: u64 = 0o100_000;

/// (level, option) of setsockopt(2) that Go's net and golang.org/x/net set.
const SOCKET_OPTIONS: [(u64, u64); 22] = [
    (1, 2),   // SOL_SOCKET: SO_REUSEADDR
    (1, 6),   // SO_BROADCAST
    (1, 7),   // SO_SNDBUF
    (1, 8),   // SO_RCVBUF
    (1, 9),   // SO_KEEPALIVE
    (1, 13),  // SO_LINGER
    (1, 16),  // SO_PASSCRED
    (1, 20),  // SO_RCVTIMEO
    (1, 21),  // SO_SNDTIMEO
    (6, 1),   // IPPROTO_TCP: TCP_NODELAY
    (6, 3),   // TCP_CORK
    (6, 4),   // TCP_KEEPIDLE
    (6, 5),   // TCP_KEEPINTVL
    (6, 6),   // TCP_KEEPCNT
    (6, 12),  // TCP_QUICKACK
    (6, 18),  // TCP_USER_TIMEOUT
    (0, 1),   // IPPROTO_IP: IP_TOS
    (0, 2),   // IP_TTL
    (0, 8),   // IP_PKTINFO
    (41, 26), // IPPROTO_IPV6: IPV6_V6ONLY
    (41, 49), // IPV6_RECVPKTINFO
    (41, 67), // IPV6_TCLASS
];

/// (level, option) of setsockopt(2) that the broker sets on a tenant's own sockets.
pub const OWN_SOCKET_OPTIONS: [(u64, u64); 3] = [
    (1, 15),  // SOL_SOCKET: SO_REUSEPORT, of caddy and others
    (0, 11),  // IPPROTO_IP: IP_RECVERR, of the C library's resolver
    (41, 25), // IPPROTO_IPV6: IPV6_RECVERR
];

fn socket_options() -> Vec<Clause> {
    SOCKET_OPTIONS.iter().map(|&(l, o)| vec![int(1, l), int(2, o)]).collect()
}

/// The answer to `name`, one of the calls that make memory executable, where
/// nothing that was written may be. Refused as PR_SET_MDWE does (mm/mprotect.c).
///
/// What is executable comes from files that exec or mmap map privately, which lie
/// on read-only or noexec mounts. Shared memory is left out for code altogether:
/// another mapping of it, of this process or of a child, could be writable.
pub(super) fn write_or_execute(name: &str) -> Verdict {
    let clauses = match name {
        "mmap" => vec![
            vec![bits(2, PROT_EXEC, 0)],
            vec![bits(2, PROT_WRITE | PROT_EXEC, PROT_EXEC), bits(3, MAP_TYPE, MAP_PRIVATE)],
        ],
        "shmat" => vec![vec![bits(2, SHM_EXEC, 0)]],
        // mprotect and pkey_mprotect: what is not code does not become it.
        _ => vec![vec![bits(2, PROT_EXEC, 0)]],
    };
    Verdict::when(clauses, Answer::Allow, Answer::Refuse(EACCES))
}

/// The answer to `name` where a policy gives it out.
pub(super) fn verdict(name: &str, network: &NetworkMode) -> Verdict {
    let when_else = |clauses, last| Verdict::when(clauses, Answer::Allow, last);
    let when = |clauses: Vec<Clause>| when_else(clauses, Answer::Refuse(EPERM));
    let one_of =
        |argument, values: &[u64]| when(values.iter().map(|&v| vec![int(argument, v)]).collect());
    let private = *network == NetworkMode::Private;
    match name {
        // New namespaces bring back every capability, inside them.
        "clone" => when(vec![vec![bits(0, CLONE_NAMESPACES, 0)]]),
        // TCP, UDP, MPTCP, unix, and rtnetlink for net.Interfaces. No raw or
        // packet sockets, and no protocol whose module would be loaded by asking.
        "socket" => {
            let mut clauses = vec![vec![int(0, AF_NETLINK), int(2, 0)]];
            if private {
                // Not datagrams: they reach a path without connect.
                clauses.extend(
                    [SOCK_STREAM, SOCK_SEQPACKET]
                        .map(|kind| vec![int(0, AF_UNIX), bits(1, SOCK_TYPE, kind)]),
                );
            } else {
                clauses.push(vec![int(0, AF_UNIX)]);
            }
            for family in [AF_INET, AF_INET6] {
                for (kind, protocols) in [
                    (SOCK_STREAM, &[0, IPPROTO_TCP, IPPROTO_MPTCP][..]),
                    (SOCK_DGRAM, &[0, IPPROTO_UDP][..]),
                ] {
                    for &protocol in protocols {
                        clauses.push(vec![
                            int(0, family),
                            bits(1, SOCK_TYPE, kind),
                            int(2, protocol),
                        ]);
                    }
                }
            }
            when(clauses)
        }
        // Not datagrams either: one of a pair can send to any path.
        "socketpair" if private => when(
            [SOCK_STREAM, SOCK_SEQPACKET]
                .map(|kind| vec![int(0, AF_UNIX), bits(1, SOCK_TYPE, kind)])
                .to_vec(),
        ),
        "socketpair" => one_of(0, &[AF_UNIX]),
        // A passed socket keeps the network namespace it was born in: connect,
        // even to AF_UNSPEC first, would lead back into the host's, and an
        // accepted connection that was reset can be bound again, to any port of
        // the host. listen would change the length of a queue that is shared.
        "connect" | "bind" | "listen" if private => Answer::Ask.into(),
        "sendto" | "sendmmsg" if private => {
            when_else(vec![vec![bits(3, MSG_FASTOPEN, 0)]], Answer::Refuse(EACCES))
        }
        "sendmsg" if private => {
            when_else(vec![vec![bits(2, MSG_FASTOPEN, 0)]], Answer::Refuse(EACCES))
        }
        // SHUT_WR is the half close of HTTP. Reading shut down on a listener
        // ends it for everyone who shares it: systemd, and the next instance.
        "shutdown" if private => when_else(vec![vec![int(1, 1)]], Answer::Ask),
        "shutdown" => one_of(1, &[1]),
        // Options stick to a shared listener, and some of them spoil it for
        // good or name the host's interfaces, so only those that net has.
        // What is harmless on a socket of the tenant's own and not on one that is
        // shared, such as SO_REUSEPORT, which would let others in.
        "setsockopt" if private => {
            let asked = OWN_SOCKET_OPTIONS.iter().map(|&(l, o)| vec![int(1, l), int(2, o)]);
            let mut verdict = when(socket_options());
            verdict.cases.push(Case { clauses: asked.collect(), answer: Answer::Ask });
            verdict
        }
        "setsockopt" => when(socket_options()),
        // Not leases and directory notices, with which a tenant could hold up
        // the host's processes, nor signals to others by way of a descriptor.
        "fcntl" => when(vec![
            [F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY].map(|c| int_not(1, c)).to_vec(),
        ]),
        // Terminal questions and what net and os ask of descriptors. Not
        // TIOCSTI or TIOCLINUX, which type into the operator's terminal, nor
        // SIOCGIF*, which list the interfaces of the namespace a socket is from.
        "ioctl" => one_of(
            1,
            &[
                0x5401, // TCGETS
                0x5413, // TIOCGWINSZ
                0x541b, // FIONREAD
                0x5421, // FIONBIO
                0x5450, // FIONCLEX
                0x5451, // FIOCLEX
            ],
        ),
        "prctl" => one_of(
            0,
            &[
                1,           // PR_SET_PDEATHSIG, of os/exec
                2,           // PR_GET_PDEATHSIG
                3,           // PR_GET_DUMPABLE
                15,          // PR_SET_NAME
                16,          // PR_GET_NAME
                23,          // PR_CAPBSET_READ
                27,          // PR_GET_SECUREBITS
                38,          // PR_SET_NO_NEW_PRIVS
                39,          // PR_GET_NO_NEW_PRIVS
                0x5356_4d41, // PR_SET_VMA, names of anonymous memory
            ],
        ),
        // glibc and Go set the thread's FS base; the rest is for checkpoints.
        "arch_prctl" => one_of(0, &[0x1002, 0x1003]),
        // Init has the same id as the tenant, so a call that takes a pid could
        // reach it: only the caller itself, or anyone but init.
        "prlimit64" | "sched_getaffinity" | "sched_setaffinity" => one_of(0, &[0]),
        "setpriority" | "getpriority" => when(vec![vec![int(0, 0), int(1, 0)]]),
        "kill" | "tgkill" | "pidfd_open" => when(vec![vec![int_not(0, 1)]]),
        // A file without a name, on a file system that is not mounted, so that
        // neither noexec nor Landlock reaches it: only one that can never be
        // executed (MFD_NOEXEC_SEAL, Linux 6.3). Refused as vm.memfd_noexec=2 does.
        // execveat needs nothing of its own: it executes what execve can reach.
        "memfd_create" => {
            when_else(vec![vec![bits(1, MFD_NOEXEC_SEAL, MFD_NOEXEC_SEAL)]], Answer::Refuse(EACCES))
        }
        // S_IFIFO only. Device nodes would not open, and need not be made.
        "mknodat" => when(vec![vec![bits(2, 0xf000, 0x1000)]]),
        // Read and set for the caller's own persona only, and only the default.
        "personality" => when(vec![vec![long(0, 0xffff_ffff)], vec![long(0, 0)]]),
        _ => Answer::Allow.into(),
    }
}
