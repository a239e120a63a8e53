//! The broker at work: one loop, one trapped call after the other, nothing that
//! waits for the network or for the tenant.
//!
//! What comes from the tenant is a number, six arguments, up to 128 bytes of
//! its memory and a copy of its socket. Every decision is made on copies; no
//! call is ever let go on in the tenant after it was looked at, because its
//! memory and descriptors may be others by then (seccomp_unotify(2)).

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::caller::{Caller, Procfs, Socket};
use super::denials::Denials;
use super::egress;
use super::resolver::Resolver;
use super::words::Words;
use super::{Door, UnixDoor, calls};
use crate::seccomp::{self, Answer, Arch};
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
    pub(super) egress: egress::Rules,
    /// The filter's.
    pub(super) rules: Rc<seccomp::Rules>,
    /// What was refused, and how often.
    pub(super) denials: Denials,
    /// Whether what is let through is counted too.
    pub(super) learns: bool,
    /// The file systems that only the tenant writes to: st_dev.
    pub(super) own_devices: Vec<u64>,
    /// The tenant's name server, where a name is listed.
    pub(super) resolver: Option<Resolver>,
    /// Calls that wait.
    pub(super) pending: Vec<Pending>,
    /// How much is done for the tenant.
    pub(super) pace: Pace,
    /// How much is asked of the host's resolvers.
    pub(super) asking: Pace,
    /// When all callers were last asked whether they wait.
    pub(super) swept: Instant,
}

/// A blocking call whose connection is under way.
pub(super) struct Pending {
    /// Whose.
    pub(super) id: u64,
    /// The thread that waits.
    pub(super) thread: libc::pid_t,
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
    /// A unix socket's queue was full: begin again.
    Retry {
        /// The caller's.
        call: Box<Notification>,
        /// Since when.
        since: Instant,
        /// How long it was left alone last.
        pause: Duration,
    },
}

/// How long a blocking connection may take: a little more than the kernel's own
/// patience, tcp(7), tcp_syn_retries.
pub(super) const PATIENCE: Duration = Duration::from_secs(150);
/// How long a unix socket with a full queue is left alone, at first and at most.
/// There is nothing that could be waited for.
pub(super) const RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// How often callers are asked whether they still wait.
const SWEEP: Duration = Duration::from_secs(1);

/// Work is paid for with tokens that come back at a steady rate: what the
/// broker does for a tenant is not the tenant's own time, which cpu.max limits.
#[derive(Debug)]
pub(super) struct Pace {
    tokens: f64,
    /// Tokens a second.
    rate: f64,
    /// Most tokens at a time.
    burst: f64,
    seen: Instant,
}

impl Pace {
    /// For calls: a token is 50 µs of work, so half a processor when it lasts. By
    /// time and not by number, because a call may be about a long path.
    pub(super) fn of_calls(now: Instant) -> Self {
        Self { tokens: 2_000.0, rate: 10_000.0, burst: 2_000.0, seen: now }
    }

    /// For questions to the host's resolvers, which are not the tenant's to
    /// flood.
    pub(super) fn of_names(now: Instant) -> Self {
        Self { tokens: 100.0, rate: 50.0, burst: 100.0, seen: now }
    }

    /// How long to wait for a token, where there is none.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let earned = now.saturating_duration_since(self.seen).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + earned).min(self.burst);
        self.seen = now;
        (self.tokens < 1.0).then(|| Duration::from_secs_f64((1.0 - self.tokens) / self.rate))
    }

    fn spend(&mut self, tokens: f64) {
        self.tokens -= tokens;
    }

    /// Spends what so much work costs, into debt if need be. 10 µs are the least,
    /// since to be woken is work too.
    fn worked(&mut self, time: Duration) {
        self.spend(time.as_secs_f64().max(10e-6) / 50e-6);
    }
}

impl Broker {
    /// Serves until the supervisor is gone.
    pub(super) fn serve(mut self) -> ! {
        // Without it the answer takes ten times as long, and is the same.
        _ = notify::wake_synchronously(self.listener.as_fd());
        let mut open = true;
        loop {
            let now = Instant::now();
            let calls = self.pace.wait(now).filter(|_| !self.learns);
            let pauses = Pauses { calls, names: self.asking.wait(now) };
            let ready = self.wait(open, pauses);
            if ready.supervisor_gone {
                // Or it has no more to ask, and listens to the last.
                self.denials.tell_all(&self.words);
                crate::sys::process::exit(0);
            }
            // The last process with the filter is gone.
            open &= !ready.hung_up;
            let begun = Instant::now();
            self.progress(&ready.sockets, begun);
            if let Some(resolver) = &mut self.resolver {
                if ready.names.first() == Some(&true) {
                    self.asking.spend(1.0);
                }
                resolver.progress(&ready.names, &mut self.egress, &mut self.words, begun);
            }
            if ready.call {
                self.one();
            }
            self.denials.tell(&self.words, begun);
            self.pace.worked(begun.elapsed());
        }
    }

    /// Waits for something to do, and leaves alone what there is no token for.
    fn wait(&self, open: bool, pauses: Pauses) -> Ready {
        let read = PollFlags::POLLIN;
        let mut fds = vec![PollFd::new(self.words.fd(), read)];
        let mut what = vec![What::Supervisor];
        if open && pauses.calls.is_none() {
            fds.push(PollFd::new(self.listener.as_fd(), read));
            what.push(What::Call);
        }
        for (index, fd) in self.resolver.iter().flat_map(Resolver::fds).enumerate() {
            if index > 0 || pauses.names.is_none() {
                fds.push(PollFd::new(fd, read));
                what.push(What::Name(index));
            }
        }
        for (index, pending) in self.pending.iter().enumerate() {
            // One that is to begin again is not connected, which polls ready.
            if !matches!(pending.then, Then::Retry { .. }) {
                fds.push(PollFd::new(pending.socket.as_fd(), PollFlags::POLLOUT));
                what.push(What::Pending(index));
            }
        }
        let timeout = self.timeout(pauses).map(TimeSpec::from_duration);
        // EINTR: every signal is blocked; ENOMEM: the next turn may have more.
        _ = ppoll(&mut fds, timeout, None);
        let mut ready = Ready {
            supervisor_gone: false,
            call: false,
            hung_up: false,
            names: vec![false; self.resolver.iter().flat_map(Resolver::fds).count()],
            sockets: vec![false; self.pending.len()],
        };
        for (what, events) in what.iter().zip(fds.iter().filter_map(PollFd::revents)) {
            let some = !events.is_empty();
            match *what {
                What::Supervisor => ready.supervisor_gone = some,
                What::Call => {
                    ready.call = events.contains(read);
                    ready.hung_up = events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
                }
                What::Name(index) => ready.names[index] = some,
                What::Pending(index) => ready.sockets[index] = some,
            }
        }
        ready
    }

    /// How long at most, until something is due.
    fn timeout(&self, pauses: Pauses) -> Option<Duration> {
        let now = Instant::now();
        let sweep = (!self.pending.is_empty()).then_some(self.swept + SWEEP);
        self.pending
            .iter()
            .map(|pending| pending.deadline)
            .chain(self.resolver.as_ref().and_then(Resolver::deadline))
            .chain(sweep)
            .chain(self.denials.due())
            .map(|deadline| deadline.saturating_duration_since(now))
            .chain(pauses.calls)
            .chain(pauses.names.filter(|_| self.resolver.is_some()))
            .min()
            // Rounded up: a moment early would be a turn in vain.
            .map(|wait| wait + Duration::from_micros(100))
    }

    /// Looks after the calls that wait: `ready` says for each whether its
    /// socket is.
    fn progress(&mut self, ready: &[bool], now: Instant) {
        let sweep = now >= self.swept + SWEEP;
        if sweep {
            self.swept = now;
        }
        let all = std::mem::take(&mut self.pending);
        for (pending, ready) in all.into_iter().zip(ready) {
            let due = now >= pending.deadline;
            if !(*ready || due || sweep) {
                self.pending.push(pending);
                continue;
            }
            if !notify::is_waiting(self.listener.as_fd(), pending.id) {
                continue;
            }
            // It cannot be interrupted while it waits, only killed; and a signal
            // to its process that the kernel chose it for waits with it.
            if sweep && self.procfs.has_signal(pending.thread) {
                _ = notify::restart(self.listener.as_fd(), pending.id);
                continue;
            }
            match (&pending.then, *ready, due) {
                (Then::Retry { .. }, _, true) => self.retry(pending, now),
                (Then::Tell | Then::Inject { .. }, true, _) => self.finish(&pending),
                (Then::Tell | Then::Inject { .. }, false, true) => {
                    self.tell(pending.id, Err(Errno::ETIMEDOUT));
                }
                (_, _, false) => self.pending.push(pending),
            }
        }
    }

    /// Begins a call anew, less often each time.
    fn retry(&mut self, pending: Pending, now: Instant) {
        let Then::Retry { call, since, pause } = pending.then else { return };
        drop(pending.socket);
        if now >= since + PATIENCE {
            // As at the end of SO_SNDTIMEO: unix(7).
            self.tell(pending.id, Err(Errno::EAGAIN));
            return;
        }
        let before = self.pending.len();
        self.handle(&call);
        if let Some(again) = self.pending.get_mut(before)
            && let Then::Retry { since: first, pause: last, .. } = &mut again.then
        {
            *first = since;
            *last = (pause * 2).min(LONGEST_RETRY);
            again.deadline = now + *last;
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
        // The filter asks about what the broker is to do and about what is refused,
        // and does not say which.
        let number = u32::try_from(call.number).unwrap_or(u32::MAX);
        match self.rules.decide(Arch::native(), number, call.args) {
            Answer::Ask => {
                if self.learns {
                    self.count(call, number, 0);
                }
                self.carry_out(call);
            }
            // As it would have gone on without a question.
            Answer::Allow if self.learns => {
                self.count(call, number, 0);
                _ = notify::resume(self.listener.as_fd(), call.id);
            }
            Answer::Refuse(errno) => {
                self.count(call, number, errno);
                _ = notify::answer(self.listener.as_fd(), call.id, Err(errno));
            }
            // It asks about no other.
            Answer::Allow | Answer::Errno(_) | Answer::Kill => {
                self.tell(call.id, Err(Errno::EPERM));
            }
        }
    }

    fn carry_out(&mut self, call: &Notification) {
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
        _ = notify::answer(self.listener.as_fd(), id, result.map_err(|errno| errno as i32));
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
                    super::address::leads_to(*at, to) && !is_shared(door) && takes(door, to)
                }
                crate::policy::Address::Unix { .. } => false,
            })
    }
}

/// Whether a listener takes what is sent to `to`: one of IPv6 alone shares the
/// port with whoever listens on IPv4.
fn takes(door: &Door, to: SocketAddr) -> bool {
    let at_v6 = matches!(&door.address, crate::policy::Address::Tcp(at) if at.is_ipv6());
    let only_v6 =
        crate::sys::net::int_option(door.fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
    !(at_v6 && to.is_ipv4()) || only_v6 == Ok(0)
}

/// Whether others may listen at a listener's port: the connection could be
/// theirs. Where it cannot be asked, they may.
fn is_shared(door: &Door) -> bool {
    let shared = crate::sys::net::int_option(door.fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT);
    shared != Ok(0)
}

/// For how long there is no token.
#[derive(Clone, Copy)]
struct Pauses {
    calls: Option<Duration>,
    names: Option<Duration>,
}

/// What is polled.
enum What {
    Supervisor,
    Call,
    /// A descriptor of the resolver's.
    Name(usize),
    /// A call that waits.
    Pending(usize),
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

    /// Asked for every 10 µs over ten seconds, each taking `time`.
    fn answered(time: Duration) -> usize {
        let start = Instant::now();
        let mut pace = Pace::of_calls(start);
        let free = |turn: &u64| {
            let some = pace.wait(start + Duration::from_micros(10 * turn)).is_none();
            if some {
                pace.worked(time);
            }
            some
        };
        (0..1_000_000_u64).filter(free).count()
    }

    /// A burst of 0.1 s, and then half of the time.
    #[test]
    fn a_flood_is_worked_at_for_half_of_the_time() {
        for (micros, least) in [(1_000, 5_000), (100, 50_000), (25, 200_000), (1, 500_000)] {
            let calls = answered(Duration::from_micros(micros));
            assert!((least..=least + least / 25).contains(&calls), "{micros} µs: {calls}");
        }
    }

    #[test]
    fn rest_gives_a_burst_back_and_no_more_than_one() {
        let start = Instant::now();
        let mut pace = Pace::of_names(start);
        let mut burst = |now: Instant| {
            let mut count = 0;
            while pace.wait(now).is_none() {
                pace.spend(1.0);
                count += 1;
            }
            count
        };
        assert_eq!(burst(start), 100);
        assert_eq!(burst(start + Duration::from_secs(1)), 50);
        assert_eq!(burst(start + Duration::from_secs(60)), 100);
    }
}
