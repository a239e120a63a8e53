//! The broker at work: one loop, one trapped call after the other, nothing that
//! waits for the network or for the tenant.
//!
//! What comes from the tenant is a number, six arguments, up to 128 bytes of
//! its memory and a copy of its socket. Every decision is made on copies; no
//! call is ever let go on in the tenant after it was looked at, because its
//! memory and descriptors may be others by then (seccomp_unotify(2)).

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::caller::{Caller, Procfs, Socket};
use super::egress::Rules;
use super::resolver::Resolver;
use super::words::Words;
use super::{Door, UnixDoor, calls};
use crate::sys::notify::{self, Notification};

/// Most calls that wait for something at a time. More are told EAGAIN.
const MOST_PENDING: usize = 256;

/// Everything the broker holds.
pub(super) struct Broker {
    /// Where trapped calls come.
    pub(super) listener: OwnedFd,
    /// To the supervisor. Its end means that the supervisor is gone.
    pub(super) words: Words,
    /// The host's /proc.
    pub(super) procfs: Procfs,
    /// The tenant's network namespace.
    pub(super) cookie: u64,
    /// The declared listeners.
    pub(super) doors: Vec<Door>,
    /// Where unix egress leads.
    pub(super) unix: Vec<UnixDoor>,
    /// Where other egress leads.
    pub(super) egress: Rules,
    /// The file systems that only the tenant writes to: st_dev.
    pub(super) own_devices: Vec<u64>,
    /// The tenant's name server, where a name is listed.
    pub(super) resolver: Option<Resolver>,
    /// Calls that wait.
    pub(super) pending: Vec<Pending>,
    /// How many calls are answered a second.
    pub(super) pace: Pace,
}

/// A blocking call whose connection is under way.
pub(super) struct Pending {
    /// Whose.
    pub(super) id: u64,
    /// What is being connected.
    pub(super) socket: OwnedFd,
    /// What to do when it is.
    pub(super) then: Then,
    /// When to look again, or to give up.
    pub(super) deadline: Instant,
}

/// What is to be done with a connection that is made.
pub(super) enum Then {
    /// It is the tenant's own socket; its caller is told.
    Tell,
    /// Put it in the place of the caller's descriptor, blocking again.
    Inject {
        /// The caller's descriptor.
        at: i32,
        /// Whether that was close-on-exec.
        close_on_exec: bool,
    },
    /// A unix socket's queue was full: try again, with this address.
    Retry {
        /// The caller's.
        call: Box<Notification>,
    },
}

/// How long a blocking connection may take: a little more than the kernel's own
/// patience, tcp(7), tcp_syn_retries.
pub(super) const PATIENCE: Duration = Duration::from_secs(150);
/// How long a unix socket with a full queue is left alone. There is nothing
/// that could be waited for.
pub(super) const RETRY: Duration = Duration::from_millis(5);
/// How often callers are asked whether they still wait.
const SWEEP: Duration = Duration::from_secs(1);

/// Answers to calls are tokens that come back at a steady rate: what the
/// broker does for a tenant is not limited by the tenant's cpu.max.
#[derive(Debug)]
pub(super) struct Pace {
    tokens: f64,
    seen: Instant,
}

impl Pace {
    /// Tokens a second.
    const RATE: f64 = 10_000.0;
    /// Most tokens at a time.
    const BURST: f64 = 2_000.0;

    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: Self::BURST, seen: now }
    }

    /// Takes a token, or says how long to wait for one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let earned = now.saturating_duration_since(self.seen).as_secs_f64() * Self::RATE;
        self.tokens = (self.tokens + earned).min(Self::BURST);
        self.seen = now;
        if self.tokens < 1.0 {
            return Err(Duration::from_millis(1));
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

impl Broker {
    /// Serves until the supervisor is gone.
    pub(super) fn serve(mut self) -> ! {
        // Without it the answer takes ten times as long, and is the same.
        _ = notify::wake_synchronously(self.listener.as_fd());
        let mut open = true;
        let mut pause = None;
        loop {
            let ready = self.wait(open, pause.take());
            if ready.supervisor_gone {
                crate::sys::process::exit(0);
            }
            // The last process with the filter is gone.
            open &= !ready.hung_up;
            self.progress(&ready.sockets);
            self.resolve(&ready.names);
            if ready.call {
                match self.pace.take(Instant::now()) {
                    Ok(()) => self.one(),
                    Err(wait) => pause = Some(wait),
                }
            }
        }
    }

    fn wait(&self, open: bool, pause: Option<Duration>) -> Ready {
        let read = PollFlags::POLLIN;
        let mut fds = vec![PollFd::new(self.words.fd(), read)];
        let listens = open && pause.is_none();
        if listens {
            fds.push(PollFd::new(self.listener.as_fd(), read));
        }
        let names = fds.len();
        fds.extend(self.resolver.iter().flat_map(Resolver::fds).map(|fd| PollFd::new(fd, read)));
        let first = fds.len();
        for pending in &self.pending {
            let flags = match pending.then {
                Then::Retry { .. } => PollFlags::empty(),
                Then::Tell | Then::Inject { .. } => PollFlags::POLLOUT,
            };
            fds.push(PollFd::new(pending.socket.as_fd(), flags));
        }
        let now = Instant::now();
        let next = self
            .pending
            .iter()
            .map(|pending| pending.deadline)
            .chain(self.resolver.as_ref().and_then(Resolver::deadline))
            .map(|deadline| deadline.saturating_duration_since(now))
            .min();
        let sweep = (!self.pending.is_empty()).then_some(SWEEP);
        let timeout = next.into_iter().chain(sweep).chain(pause).min();
        // EINTR: every signal is blocked; ENOMEM: the next turn may have more.
        _ = ppoll(&mut fds, timeout.map(TimeSpec::from_duration), None);
        let events = |i: usize| fds[i].revents().unwrap_or(PollFlags::empty());
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        Ready {
            supervisor_gone: !events(0).is_empty(),
            call: listens && events(1).contains(read),
            hung_up: listens && events(1).intersects(gone),
            names: (names..first).map(|i| !events(i).is_empty()).collect(),
            sockets: (first..fds.len()).map(|i| !events(i).is_empty()).collect(),
        }
    }

    /// Looks after the tenant's questions for names.
    fn resolve(&mut self, ready: &[bool]) {
        let Some(resolver) = &mut self.resolver else { return };
        let now = Instant::now();
        // A question costs as much as a call does.
        let mut ready = ready.to_vec();
        if ready.first() == Some(&true) && self.pace.take(now).is_err() {
            ready[0] = false;
        }
        resolver.progress(&ready, &mut self.egress, &mut self.words, now);
    }

    /// Looks after the calls that wait: `ready` says for each whether its
    /// socket is.
    fn progress(&mut self, ready: &[bool]) {
        if self.pending.is_empty() {
            return;
        }
        let now = Instant::now();
        let all = std::mem::take(&mut self.pending);
        for (pending, ready) in all.into_iter().zip(ready) {
            if !notify::is_waiting(self.listener.as_fd(), pending.id) {
                continue;
            }
            let due = now >= pending.deadline;
            match (&pending.then, *ready, due) {
                (Then::Retry { call }, _, true) => {
                    let call = **call;
                    drop(pending);
                    self.handle(&call);
                }
                (Then::Tell | Then::Inject { .. }, true, _) => self.finish(&pending),
                (Then::Tell | Then::Inject { .. }, false, true) => {
                    self.tell(pending.id, Err(Errno::ETIMEDOUT));
                }
                (_, _, false) => self.pending.push(pending),
            }
        }
    }

    /// A blocking connection was made, or failed.
    fn finish(&self, pending: &Pending) {
        let socket = pending.socket.as_fd();
        let error = crate::sys::net::int_option(socket, libc::SOL_SOCKET, libc::SO_ERROR);
        let mut result = match error {
            Ok(0) => Ok(0),
            Ok(errno) => Err(Errno::from_raw(errno)),
            Err(errno) => Err(errno),
        };
        if let (Ok(_), Then::Inject { at, close_on_exec }) = (&result, &pending.then) {
            result = super::caller::set_blocking(socket, true)
                .and_then(|()| self.inject(pending.id, socket, *at, *close_on_exec))
                .map(|()| 0);
        }
        self.tell(pending.id, result);
    }

    /// Takes one call and answers it, or keeps it.
    fn one(&mut self) {
        // ENOENT: its caller was killed meanwhile.
        let Ok(call) = notify::receive(self.listener.as_fd()) else { return };
        self.handle(&call);
    }

    fn handle(&mut self, call: &Notification) {
        let answer = match Caller::of(self, call) {
            Ok((caller, socket)) => calls::answer(self, call, &caller, socket),
            Err(errno) => Err(errno),
        };
        match answer {
            Ok(calls::Answer::Now(value)) => self.tell(call.id, Ok(value)),
            Ok(calls::Answer::Unfinished) => self.tell(call.id, Err(Errno::EINPROGRESS)),
            Ok(calls::Answer::Later(pending)) if self.pending.len() < MOST_PENDING => {
                self.pending.push(pending);
            }
            Ok(calls::Answer::Later(_)) => self.tell(call.id, Err(Errno::EAGAIN)),
            Err(errno) => self.tell(call.id, Err(errno)),
        }
    }

    /// ENOENT: the caller was killed, and nobody is to be told.
    fn tell(&self, id: u64, result: Result<i64, Errno>) {
        _ = notify::answer(self.listener.as_fd(), id, result);
    }

    /// Puts `fd` in the place of the caller's descriptor.
    pub(super) fn inject(
        &self,
        id: u64,
        fd: BorrowedFd<'_>,
        at: i32,
        close_on_exec: bool,
    ) -> Result<(), Errno> {
        notify::inject(self.listener.as_fd(), id, fd, at, close_on_exec)
    }

    /// Whether a socket was born in the tenant's own network namespace.
    pub(super) fn is_own(&self, socket: &Socket) -> bool {
        socket.cookie == self.cookie
    }

    /// The declared listener that a connection to `to` from inside would reach
    /// if the tenant were in the host's network: it may talk to itself.
    pub(super) fn own_door(&self, to: SocketAddr) -> bool {
        to.ip().is_loopback()
            && self.doors.iter().any(|door| match &door.address {
                crate::policy::Address::Tcp(at) => {
                    let ip = at.ip().to_canonical();
                    let every = ip.is_unspecified() && ip.is_ipv4() == to.is_ipv4();
                    at.port() == to.port() && (ip == to.ip() || every)
                }
                crate::policy::Address::Unix { .. } => false,
            })
    }
}

/// What poll(2) found.
struct Ready {
    supervisor_gone: bool,
    call: bool,
    hung_up: bool,
    names: Vec<bool>,
    sockets: Vec<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_answered_at_a_steady_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut answered = 0;
        // Asked for every 10 µs over a second.
        for turn in 0..100_000_u64 {
            if pace.take(start + Duration::from_micros(10 * turn)).is_ok() {
                answered += 1;
            }
        }
        assert!((11_900..=12_001).contains(&answered), "{answered}");
        // Rest gives a burst back, and no more than one.
        let later = start + Duration::from_secs(60);
        let burst = (0..10_000).filter(|_| pace.take(later).is_ok()).count();
        assert_eq!(burst, 2_000);
    }
}
