//! The loop: waits for what can happen, asks `state::next`, does what it says.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigmaskHow, sigprocmask};
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::relay::{Overflow, Relay};
use super::state::{Action, End, Event, Lifecycle, State, next};
use crate::observe::notify::Notifier;
use crate::observe::sink::{Sink, say};
use crate::spawn::{Running, Setup, Word};
use crate::sys;

/// What a supervisor listens to; everything but the first two is the tenant's.
const SIGNALS: [i32; 8] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGALRM];

/// How a tenant ended, with what is known about why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How.
    pub end: End,
    /// Processes killed because memory.max was reached.
    pub oom_kills: u64,
    /// Bytes of the tenant's stdout and stderr that nobody took in time.
    pub dropped: u64,
}

/// Signals as a readable descriptor, from before the tenant exists on.
#[derive(Debug)]
pub struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    /// Begins to catch them.
    ///
    /// # Errors
    /// What socketpair(2) and sigaction(2) say.
    pub fn catch() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        // One that comes while signal-hook has its handler in place and not yet what
        // the handler does would be swallowed.
        let mask = sys::signal::block_all()?;
        let caught = SignalDelivery::with_pipe(read, write, SignalOnly, SIGNALS).map(Self);
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        caught
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }

    /// Those that came since the last call; does not block.
    fn pending(&mut self) -> Vec<i32> {
        self.0.pending().collect()
    }
}

/// Tells the service manager, as often as it asked, that the loop goes round.
#[derive(Clone, Copy, Debug)]
pub struct Watchdog {
    every: Option<Duration>,
    next: Option<Instant>,
}

impl Watchdog {
    /// One that is fed every so often, or never.
    pub fn new(every: Option<Duration>) -> Self {
        Self { every, next: every.map(|every| Instant::now() + every) }
    }

    fn earlier(&self, deadline: Option<Instant>) -> Option<Instant> {
        self.next.into_iter().chain(deadline).min()
    }

    fn feed(&mut self, now: Instant, notifier: &Notifier) {
        if let (Some(every), Some(next)) = (self.every, self.next)
            && now >= next
        {
            notifier.send("WATCHDOG=1");
            self.next = Some(now + every);
        }
    }
}

/// What is to be done with what the broker found out about the tenant, and
/// whether it is to be shown.
pub type Heard<'a> = dyn FnMut(Word, bool) + 'a;

/// Watches `running` until nothing of it is left. `heard` is told
/// what the broker finds out.
///
/// # Errors
/// What poll(2) says; the tenant is killed before.
pub fn supervise(
    running: &mut Running,
    signals: &mut Signals,
    notifier: &Notifier,
    life: Lifecycle,
    mut watchdog: Watchdog,
    heard: &mut Heard<'_>,
) -> io::Result<Outcome> {
    let mut relays = relays(running)?;
    let mut state = State::Starting;
    let mut open = Open { setup: true, status: true, broker: true, lines: Lines::new() };
    loop {
        let happened = match wait(
            running,
            signals,
            &mut relays,
            &mut open,
            watchdog.earlier(state.deadline()),
            heard,
        ) {
            Ok(happened) => happened,
            Err(error) => {
                running.kill();
                return Err(error);
            }
        };
        let now = Instant::now();
        watchdog.feed(now, notifier);
        let due = state.deadline().is_some_and(|deadline| now >= deadline);
        for event in happened.into_iter().chain(due.then_some(Event::Deadline)) {
            let (after, actions) = next(state, event, Instant::now(), life);
            state = after;
            for action in actions {
                perform(action, running, notifier);
            }
        }
        if let State::Ended(end) = state {
            for relay in &mut relays {
                relay.finish(PATIENCE);
            }
            last_denials(running, &mut open.lines, heard);
            return Ok(Outcome {
                end,
                oom_kills: running.cgroup.as_ref().and_then(|c| c.oom_kills()).unwrap_or(0),
                dropped: relays.iter().map(|relay| relay.dropped).sum(),
            });
        }
    }
}

/// How long our reader may take nothing, once the tenant has ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// stdout and stderr.
fn relays(running: &mut Running) -> io::Result<[Relay; 2]> {
    let [stdout, stderr] = running.take_output()?;
    Ok([
        Relay::new(stdout, Sink::of(io::stdout().as_fd())?, Overflow::Wait),
        Relay::new(stderr, Sink::of(io::stderr().as_fd())?, Overflow::Drop),
    ])
}

/// Which of the channels are still open. One that has ended polls ready for
/// ever, so it is left out. And how much is still shown of one.
struct Open {
    setup: bool,
    status: bool,
    broker: bool,
    lines: Lines,
}

/// What can become ready.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Setup,
    Status,
    /// A stream of the tenant's, by its number among the relays.
    Output(usize),
    /// Our own, which has room.
    OwnOutput(usize),
    Standby,
    Broker,
    Words,
    Init,
}

/// Waits for the next events, at most until `deadline`. The app's
/// status comes before the end of init, which comes after it.
fn wait(
    running: &mut Running,
    signals: &mut Signals,
    relays: &mut [Relay; 2],
    open: &mut Open,
    deadline: Option<Instant>,
    heard: &mut Heard<'_>,
) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for source in ready(running, signals, relays, open, deadline)? {
        match source {
            Source::Signals => events.extend(signals.pending().into_iter().map(Event::Signal)),
            Source::Setup => events.extend(setup(running, open)?),
            Source::Status => events.extend(status(running, open)),
            Source::Output(n) => relays[n].fill(),
            Source::OwnOutput(n) => relays[n].flush(),
            Source::Standby => {
                events.extend(running.stand_by().err().map(Event::BrokerFailed));
            }
            Source::Words => events.extend(words(running, &mut open.lines, heard)),
            Source::Broker => {
                // What it said last says more than that it is gone.
                events.extend(words(running, &mut open.lines, heard));
                open.broker = false;
                events.push(Event::BrokerGone);
            }
            Source::Init => {
                if sys::process::pidfd_reap(running.init.as_fd())?.is_some() {
                    // What it said last may have come after we looked; its ends
                    // are closed, so reading does not wait.
                    events.extend(last_words(running, open)?);
                    events.push(Event::InitGone);
                }
            }
        }
    }
    Ok(events)
}

/// What the broker says; its lines are shown here. A few at a time and not more
/// than so many a minute: it was close to hostile bytes, and may no longer be
/// what it was.
fn words(running: &Running, lines: &mut Lines, heard: &mut Heard<'_>) -> Vec<Event> {
    let mut events = Vec::new();
    let Some(broker) = &running.broker else { return events };
    for word in std::iter::from_fn(|| broker.read()).take(16) {
        match word {
            Word::Failed(failure) => events.push(Event::BrokerFailed(failure)),
            Word::Listening => events.push(Event::Listening),
            Word::Line(line) if lines.take(Instant::now()) => {
                say(format_args!("tenant {}: {}", running.tenant, crate::value::escape(&line)));
            }
            Word::Line(_) => {}
            told => heard(told, lines.take(Instant::now())),
        }
    }
    events
}

/// How many lines of the broker's are shown.
struct Lines {
    left: u32,
    since: Instant,
}

impl Lines {
    const A_MINUTE: u32 = 60;

    fn new() -> Self {
        Self { left: Self::A_MINUTE, since: Instant::now() }
    }

    fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(60) {
            *self = Self { left: Self::A_MINUTE, since: now };
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

fn setup(running: &Running, open: &mut Open) -> io::Result<Option<Event>> {
    open.setup = false;
    Ok(running.read_setup()?.map(|said| match said {
        Setup::Done => Event::Started,
        Setup::Failed(failure) => Event::SetupFailed(failure),
    }))
}

fn status(running: &mut Running, open: &mut Open) -> Option<Event> {
    open.status = false;
    // Nobody will ask any more; it may go while init does.
    if let Some(broker) = &running.broker {
        open.broker = false;
        broker.dismiss();
    }
    running.read_exit().map(Event::AppExited)
}

fn last_words(running: &mut Running, open: &mut Open) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    if open.setup {
        events.extend(setup(running, open)?);
    }
    if open.status {
        events.extend(status(running, open));
    }
    Ok(events)
}

/// What the broker has counted since it told it last. A broker that hangs, or
/// that goes on for ever, is not waited for.
fn last_denials(running: &Running, lines: &mut Lines, heard: &mut Heard<'_>) {
    let Some(broker) = &running.broker else { return };
    broker.dismiss();
    let deadline = Instant::now() + LAST_WORDS;
    while Instant::now() < deadline && broker.speaks(PollTimeout::from(PAUSE)) {
        match broker.read() {
            Some(Word::Failed(_) | Word::Listening | Word::Line(_)) => {}
            Some(told) => heard(told, lines.take(Instant::now())),
            None => return,
        }
    }
}

/// How long the broker may take for its last words, all in all.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long it may pause between them, in milliseconds.
const PAUSE: u8 = 200;

/// The sources that are ready, in the order of [`Source`].
fn ready(
    running: &Running,
    signals: &Signals,
    relays: &[Relay; 2],
    open: &Open,
    deadline: Option<Instant>,
) -> io::Result<Vec<Source>> {
    let read = PollFlags::POLLIN;
    let mut watched = vec![(Source::Signals, signals.fd(), read)];
    if open.setup {
        watched.push((Source::Setup, running.setup(), read));
    }
    if open.status {
        watched.push((Source::Status, running.status(), read));
    }
    for (n, relay) in relays.iter().enumerate() {
        watched.extend(relay.source().map(|fd| (Source::Output(n), fd, read)));
        watched.extend(relay.target().map(|fd| (Source::OwnOutput(n), fd, PollFlags::POLLOUT)));
    }
    watched.extend(running.standby().map(|fd| (Source::Standby, fd, read)));
    if let Some(broker) = running.broker.as_ref().filter(|_| open.broker) {
        watched.push((Source::Words, broker.words(), read));
        watched.push((Source::Broker, broker.pidfd.as_fd(), read));
    }
    watched.push((Source::Init, running.init.as_fd(), read));
    let mut fds: Vec<_> = watched.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
    let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
        // Rounded up: a millisecond early would be a turn in vain.
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
    Ok(watched
        .iter()
        .zip(&fds)
        .filter(|(_, fd)| is_ready(fd))
        .map(|((source, ..), _)| *source)
        .collect())
}

fn perform(action: Action, running: &Running, notifier: &Notifier) {
    match action {
        // ESRCH: init has ended, which the next turn will tell.
        Action::Forward(signal) => {
            _ = sys::process::pidfd_signal(running.init.as_fd(), signal);
        }
        Action::KillAll => running.kill(),
        Action::NotifyReady => notifier.send("READY=1\nSTATUS=running"),
        Action::NotifyStopping => {
            notifier.send("STOPPING=1\nSTATUS=asked to end, with time left to do it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_talks_without_end_is_shown_for_a_while_each_minute() {
        let mut lines = Lines::new();
        let shown = |lines: &mut Lines, now| (0..1000).filter(|_| lines.take(now)).count();
        let now = lines.since;
        assert_eq!(shown(&mut lines, now), 60);
        assert_eq!(shown(&mut lines, now + Duration::from_secs(59)), 0);
        assert_eq!(shown(&mut lines, now + Duration::from_secs(60)), 60);
    }
}
