//! bind, listen, connect, shutdown and some of setsockopt in the tenant's place.
//!
//! Three kinds of sockets: the tenant's *own*, born in its network namespace,
//! with which it may do what it likes, because nothing can be reached from
//! there; the declared *listeners*, which are shared with others; and
//! *connections* of the host's namespace, accepted or made here.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::socket::{Backlog, Shutdown, getpeername, listen, shutdown};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::address::{self, Name};
use super::caller::{Caller, Procfs, Socket, int, own_path, set_blocking};
use super::egress::Decision;
use super::serve::{Broker, PATIENCE, Pending, RETRY, Then};
use super::words::{BOUND, LED, UNLED};
use super::{UnixDoor, local};
use crate::seccomp::OWN_SOCKET_OPTIONS;
use crate::sys::net;
use crate::sys::notify::Notification;

/// What a caller gets.
pub(super) enum Answer {
    /// This value.
    Now(i64),
    /// EINPROGRESS: the connection is under way, and its socket does not block.
    Unfinished,
    /// It waits.
    Later(Pending),
}

const DONE: Answer = Answer::Now(0);

/// Does what was asked for, or says the errno.
pub(super) fn answer(
    broker: &mut Broker,
    call: &Notification,
    caller: &Caller,
    socket: Socket,
) -> Result<Answer, Errno> {
    match call.number {
        libc::SYS_bind => bind(broker, call, caller, &socket),
        libc::SYS_listen => listening(broker, call, &socket),
        libc::SYS_connect => connect(broker, call, caller, socket),
        libc::SYS_shutdown => shut_down(broker, call, &socket),
        libc::SYS_setsockopt => own_option(broker, call, caller, &socket),
        // The filter asks about no other.
        _ => Err(Errno::EPERM),
    }
}

fn is_inet(domain: i32) -> bool {
    domain == libc::AF_INET || domain == libc::AF_INET6
}

/// A declared address gives the declared listener; any other is bound in the
/// tenant's own namespace.
fn bind(
    broker: &mut Broker,
    call: &Notification,
    caller: &Caller,
    socket: &Socket,
) -> Result<Answer, Errno> {
    if !broker.is_own(socket) {
        // As a bound socket is answered: ip(7).
        return Err(Errno::EINVAL);
    }
    let (bytes, name) = caller.address(broker, call)?;
    if socket.kind == libc::SOCK_STREAM {
        let only_v6 = socket.domain == libc::AF_INET6
            && net::int_option(socket.fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)? != 0;
        let door = broker.doors.iter().find(|door| address::matches(&door.address, &name, only_v6));
        if let Some(door) = door {
            // The flag is the tenant's choice, and belongs to what is shared:
            // whoever starts later chooses again, here.
            set_blocking(door.fd.as_fd(), !socket.nonblocking)?;
            broker.inject(call.id, door.fd.as_fd(), socket.at, socket.close_on_exec)?;
            return Ok(DONE);
        }
    }
    with_working_directory(broker, caller, &name, || net::bind(socket.fd.as_fd(), &bytes))?;
    if let Name::Inet(at) = name
        && at.port() != 0
    {
        let protocol = if socket.kind == libc::SOCK_STREAM { "tcp" } else { "udp" };
        if broker.learns && protocol == "tcp" {
            broker.words.send(BOUND, format!("tcp:{at}").as_bytes());
        }
        let remedy = if protocol == "tcp" {
            format!("to publish it, add listen = [\"tcp:{at}\"]")
        } else {
            "udp is not published: it needs network = \"host\"".to_owned()
        };
        let line = format!("bound {protocol} {at} inside its private network; {remedy}");
        broker.words.say(line, Instant::now());
    }
    Ok(DONE)
}

/// Runs `action` where a relative path means what it means to the caller. The
/// broker's root is the tenant's already.
fn with_working_directory<T>(
    broker: &Broker,
    caller: &Caller,
    name: &Name,
    action: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    if matches!(name, Name::Path(path) if !path.starts_with(b"/")) {
        let directory = broker.procfs.working_directory(caller.thread)?;
        nix::unistd::fchdir(&directory)?;
    }
    action()
}

/// A declared listener listens already, and its queue is not the tenant's to
/// change: a shorter one would be shorter for whoever shares it.
fn listening(broker: &mut Broker, call: &Notification, socket: &Socket) -> Result<Answer, Errno> {
    if broker.is_own(socket) {
        // The kernel takes any number, as unsigned, and cuts it: listen(2).
        let backlog = match int(call.args[1]) {
            some @ 0..4096 => some,
            _ => 4096,
        };
        let backlog = Backlog::new(backlog)?;
        listen(&socket.fd, backlog)?;
        return Ok(DONE);
    }
    if !socket.listening {
        return Err(Errno::EINVAL);
    }
    broker.words.listening();
    Ok(DONE)
}

/// Only SHUT_RD and SHUT_RDWR come here. On a listener they would end it for
/// systemd and the next instance too.
fn shut_down(broker: &Broker, call: &Notification, socket: &Socket) -> Result<Answer, Errno> {
    if socket.listening && !broker.is_own(socket) {
        return Err(Errno::EPERM);
    }
    let how = match int(call.args[1]) {
        libc::SHUT_RD => Shutdown::Read,
        libc::SHUT_WR => Shutdown::Write,
        libc::SHUT_RDWR => Shutdown::Both,
        _ => return Err(Errno::EINVAL),
    };
    shutdown(socket.fd.as_raw_fd(), how)?;
    Ok(DONE)
}

/// An option that is set on the tenant's own sockets only. SO_REUSEPORT on one
/// that others share would let whoever has its id share the port as well.
fn own_option(
    broker: &Broker,
    call: &Notification,
    caller: &Caller,
    socket: &Socket,
) -> Result<Answer, Errno> {
    let (level, name) = (int(call.args[1]), int(call.args[2]));
    let known = OWN_SOCKET_OPTIONS
        .iter()
        .any(|&(l, n)| (i32::try_from(l), i32::try_from(n)) == (Ok(level), Ok(name)));
    if !known || !broker.is_own(socket) {
        return Err(Errno::EPERM);
    }
    // Each is an int, and the kernel does not look at more.
    let mut value = [0; size_of::<i32>()];
    if usize::try_from(int(call.args[4])).map_err(|_| Errno::EINVAL)? < value.len() {
        return Err(Errno::EINVAL);
    }
    caller.memory(broker, call, call.args[3], &mut value)?;
    net::set_option(socket.fd.as_fd(), level, name, &value)?;
    Ok(DONE)
}

fn connect(
    broker: &mut Broker,
    call: &Notification,
    caller: &Caller,
    socket: Socket,
) -> Result<Answer, Errno> {
    let (bytes, name) = caller.address(broker, call)?;
    if !broker.is_own(&socket) {
        return Err(already(&socket));
    }
    match name {
        Name::Inet(to) if is_inet(socket.domain) && socket.kind == libc::SOCK_STREAM => {
            stream(broker, call, socket, &bytes, to)
        }
        Name::Path(path) if socket.domain == libc::AF_UNIX => {
            unix(broker, call, caller, socket, &path)
        }
        // What is left reaches nothing outside its own namespace: datagrams,
        // abstract names, AF_UNSPEC, netlink, and what is no address at all.
        Name::Inet(_) | Name::Path(_) | Name::Abstract | Name::Unspecified | Name::Other => {
            own(call, socket, &bytes)
        }
    }
}

/// The errno for a socket that is not the tenant's own: it is connected, or
/// about to be, and stays so. Dissolving it with AF_UNSPEC would be the first
/// step into the host's network.
fn already(socket: &Socket) -> Errno {
    if socket.listening {
        return Errno::EACCES;
    }
    match getpeername::<nix::sys::socket::SockaddrStorage>(socket.fd.as_raw_fd()) {
        Ok(_) => Errno::EISCONN,
        Err(_) => Errno::EALREADY,
    }
}

/// Connects the tenant's own socket in its own namespace.
fn own(call: &Notification, socket: Socket, bytes: &[u8]) -> Result<Answer, Errno> {
    let connected = if socket.nonblocking {
        net::connect(socket.fd.as_fd(), bytes)
    } else {
        // The broker waits for nobody.
        set_blocking(socket.fd.as_fd(), false)?;
        let connected = net::connect(socket.fd.as_fd(), bytes);
        set_blocking(socket.fd.as_fd(), true)?;
        connected
    };
    match connected {
        Ok(()) => Ok(DONE),
        // On loopback the answer is there already.
        Err(Errno::EINPROGRESS) if is_closed(&socket) => {
            match net::int_option(socket.fd.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR)? {
                0 => Err(Errno::ECONNABORTED),
                errno => Err(Errno::from_raw(errno)),
            }
        }
        Err(Errno::EINPROGRESS) if socket.nonblocking => Ok(Answer::Unfinished),
        // EALREADY: the call was made again after a signal.
        Err(Errno::EINPROGRESS | Errno::EALREADY) if !socket.nonblocking => {
            Ok(later(call, socket.fd, Then::Tell))
        }
        Err(Errno::EAGAIN) if !socket.nonblocking && socket.domain == libc::AF_UNIX => {
            Ok(retry(call, socket.fd))
        }
        Err(errno) => Err(errno),
    }
}

/// Whether a TCP connection was refused: tcpi_state, the first byte.
fn is_closed(socket: &Socket) -> bool {
    const TCP_CLOSE: u8 = 7;
    let mut state = [0];
    net::option(socket.fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, &mut state)
        .is_ok_and(|length| length == 1 && state[0] == TCP_CLOSE)
}

fn later(call: &Notification, socket: OwnedFd, then: Then) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    Answer::Later(Pending { id: call.id, thread: call.thread, socket, then, deadline })
}

fn retry(call: &Notification, socket: OwnedFd) -> Answer {
    let since = Instant::now();
    let then = Then::Retry { call: Box::new(*call), since, pause: RETRY };
    let deadline = since + RETRY;
    Answer::Later(Pending { id: call.id, thread: call.thread, socket, then, deadline })
}

/// A TCP or MPTCP connection: outside where the policy lists it, inside where it
/// leads to the tenant itself.
fn stream(
    broker: &mut Broker,
    call: &Notification,
    socket: Socket,
    bytes: &[u8],
    to: SocketAddr,
) -> Result<Answer, Errno> {
    let now = Instant::now();
    let decision = if broker.own_door(to) {
        Decision::Allowed
    } else {
        broker.egress.decide(to, now, local::is_own)
    };
    if decision == Decision::Allowed {
        if broker.learns && !broker.own_door(to) {
            for rule in broker.egress.learnt(to) {
                broker.words.send(LED, rule.to_string().as_bytes());
            }
        }
        let outside = new_socket(&socket)?;
        let connected = net::connect(outside.as_fd(), bytes);
        return hand_over(broker, call, &socket, outside, connected);
    }
    let rule = broker.egress.suggestion(to);
    if broker.learns && !to.ip().is_unspecified() {
        broker.words.send(UNLED, rule.to_string().as_bytes());
    }
    if to.ip().is_loopback() || to.ip().is_unspecified() {
        let answer = own(call, socket, bytes);
        if matches!(answer, Err(Errno::ECONNREFUSED)) {
            let line = format!(
                "connect to {to} refused: nobody listens there inside; to reach the host's, add egress = [\"{rule}\"]"
            );
            broker.words.say(line, now);
        }
        return answer;
    }
    let why = match decision {
        Decision::Special => "a private, special or own address, which is to be listed itself: ",
        Decision::Unlisted | Decision::Allowed => "",
    };
    broker
        .words
        .say(format!("connect to {to} denied: {why}to allow it, add egress = [\"{rule}\"]"), now);
    Err(Errno::EACCES)
}

/// Options that a caller may have set before it connects, and what they are in a
/// fresh namespace, where nobody has changed a sysctl: include/net/tcp.h,
/// include/net/ip.h. Only what differs was set; a socket of the host's may begin
/// with other values, and keeps them.
const COPIED: [(i32, i32, i32); 13] = [
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0),
    (libc::SOL_SOCKET, libc::SO_LINGER, 0),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO, 0),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO, 0),
    (libc::IPPROTO_IP, libc::IP_TOS, 0),
    (libc::IPPROTO_IP, libc::IP_TTL, 64),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, 0),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 7200),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 75),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 9),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 0),
];

/// A socket of the host's network like the caller's, not blocking.
fn new_socket(like: &Socket) -> Result<OwnedFd, Errno> {
    let kind = like.kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // Not MPTCP, whatever the caller has: the far end could announce addresses
    // that nobody listed, and the host's kernel would connect to them.
    let protocol = if is_inet(like.domain) { libc::IPPROTO_TCP } else { like.protocol };
    let fd = net::socket(like.domain, kind, protocol)?;
    if is_inet(like.domain) {
        for (level, name, fresh) in COPIED {
            // The longest is a timeval; where there is more than an int, fresh is
            // all zeroes.
            let mut set = [0; 16];
            let mut unset = [0; 16];
            unset[..4].copy_from_slice(&fresh.to_ne_bytes());
            // An option that a protocol lacks is none that was set.
            if let Ok(length) = net::option(like.fd.as_fd(), level, name, &mut set)
                && set != unset
            {
                net::set_option(fd.as_fd(), level, name, &set[..length])?;
            }
        }
        copy_buffers(like, &fd)?;
    }
    Ok(fd)
}

/// Sizes of buffers, where they were set: otherwise the kernel tunes them.
/// SO_BUF_LOCK, Linux 5.14; what is read is twice what was set, socket(7).
fn copy_buffers(like: &Socket, fd: &OwnedFd) -> Result<(), Errno> {
    const SO_BUF_LOCK: i32 = 72;
    let about = |name| net::int_option(like.fd.as_fd(), libc::SOL_SOCKET, name);
    let locked = about(SO_BUF_LOCK)?;
    for (bit, name) in [(1, libc::SO_SNDBUF), (2, libc::SO_RCVBUF)] {
        if locked & bit != 0 {
            let half = about(name)? / 2;
            net::set_option(fd.as_fd(), libc::SOL_SOCKET, name, &half.to_ne_bytes())?;
        }
    }
    Ok(())
}

/// Gives the caller the socket that was connected outside, or the errno.
fn hand_over(
    broker: &Broker,
    call: &Notification,
    socket: &Socket,
    outside: OwnedFd,
    connected: Result<(), Errno>,
) -> Result<Answer, Errno> {
    let (at, close_on_exec) = (socket.at, socket.close_on_exec);
    match connected {
        Ok(()) => {
            set_blocking(outside.as_fd(), !socket.nonblocking)?;
            broker.inject(call.id, outside.as_fd(), at, close_on_exec)?;
            Ok(DONE)
        }
        Err(Errno::EINPROGRESS) if socket.nonblocking => {
            broker.inject(call.id, outside.as_fd(), at, close_on_exec)?;
            Ok(Answer::Unfinished)
        }
        Err(Errno::EINPROGRESS) => Ok(later(call, outside, Then::Inject { at, close_on_exec })),
        // A unix socket whose queue is full.
        Err(Errno::EAGAIN) if !socket.nonblocking => Ok(retry(call, outside)),
        Err(errno) => Err(errno),
    }
}

/// A listed path leads to the host's socket there; any other has to be on a
/// file system that only the tenant writes to, where nobody else can listen.
fn unix(
    broker: &mut Broker,
    call: &Notification,
    caller: &Caller,
    socket: Socket,
    path: &[u8],
) -> Result<Answer, Errno> {
    if let Some(door) = broker.unix.iter().find(|door| door.path == path) {
        let outside = new_socket(&socket)?;
        let connected = door.connect(&broker.procfs, &outside);
        return hand_over(broker, call, &socket, outside, connected);
    }
    let name = Name::Path(path.to_vec());
    let found = with_working_directory(broker, caller, &name, || {
        openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
    })?;
    if !broker.own_devices.contains(&fstat(&found)?.st_dev) {
        let shown = String::from_utf8_lossy(path);
        let remedy = if path.starts_with(b"/") {
            format!("to allow it, add egress = [{:?}]", format!("unix:{shown}"))
        } else {
            "egress lists absolute paths, by which it has to connect too".to_owned()
        };
        broker.words.say(format!("connect to {shown} denied: {remedy}"), Instant::now());
        return Err(Errno::EACCES);
    }
    // By the descriptor: a name in between could be another by now.
    broker.procfs.enter()?;
    own(call, socket, &address::encode_path(own_path(&found).as_bytes()))
}

impl UnixDoor {
    /// To the socket of that name, and to nothing that a link of that name leads
    /// to. By the descriptor that was looked at.
    fn connect(&self, procfs: &Procfs, socket: &OwnedFd) -> Result<(), Errno> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = openat(&self.directory, self.name.as_slice(), flags, Mode::empty())?;
        if fstat(&found)?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFSOCK.bits() {
            return Err(Errno::ECONNREFUSED);
        }
        procfs.enter()?;
        net::connect(socket.as_fd(), &address::encode_path(own_path(&found).as_bytes()))
    }
}
