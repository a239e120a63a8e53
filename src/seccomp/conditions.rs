//! Calls that are safe only in part: which arguments are let through, and why.

use super::Verdict;
use super::libc_errno::{EACCES, EPERM};
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
/// SOCK_TYPE_MASK, include/linux/net.h: below the flags.
const SOCK_TYPE: u64 = 0xf;
const IPPROTO_TCP: u64 = 6;
const IPPROTO_UDP: u64 = 17;
const IPPROTO_MPTCP: u64 = 262;

/// The answer to `name` where a policy gives it out.
pub(super) fn verdict(name: &str, network: NetworkMode) -> Verdict {
    let when = |clauses: Vec<Vec<Condition>>| Verdict::When(clauses, EPERM);
    let one_of = |argument, values: &[u64]| {
        Verdict::When(values.iter().map(|&v| vec![int(argument, v)]).collect(), EPERM)
    };
    let private = network == NetworkMode::Private;
    match name {
        // New namespaces bring back every capability, inside them.
        "clone" => when(vec![vec![bits(0, CLONE_NAMESPACES, 0)]]),
        // TCP, UDP, MPTCP, unix, and rtnetlink for net.Interfaces. No raw or
        // packet sockets, and no protocol whose module would be loaded by asking.
        "socket" => {
            let mut clauses = vec![vec![int(0, AF_UNIX)], vec![int(0, AF_NETLINK), int(2, 0)]];
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
        "socketpair" => one_of(0, &[AF_UNIX]),
        // A passed socket keeps the network namespace it was born in: connect,
        // even to AF_UNSPEC first, would lead back into the host's.
        "connect" if private => Verdict::Errno(EACCES),
        "sendto" | "sendmmsg" if private => {
            Verdict::When(vec![vec![bits(3, MSG_FASTOPEN, 0)]], EACCES)
        }
        "sendmsg" if private => Verdict::When(vec![vec![bits(2, MSG_FASTOPEN, 0)]], EACCES),
        // SHUT_WR is the half close of HTTP. Reading shut down on a listener
        // ends it for everyone who shares it, systemd and the next instance.
        "shutdown" if private => one_of(1, &[1]),
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
        // S_IFIFO only. Device nodes would not open, and need not be made.
        "mknodat" => when(vec![vec![bits(2, 0xf000, 0x1000)]]),
        // Read and set for the caller's own persona only, and only the default.
        "personality" => when(vec![vec![long(0, 0xffff_ffff)], vec![long(0, 0)]]),
        _ => Verdict::Allow,
    }
}
