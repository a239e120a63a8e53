//! The loop: waits for what can happen, asks `state::next`, does what it says.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::relay::Relay;
use super::state::{Action, End, Event, State, next};
use crate::observe::notify::Notifier;
use crate::spawn::{Running, Setup};
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
    /// Bytes of the tenant's stderr that nobody took in time.
    pub stderr_dropped: u64,
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
        SignalDelivery::with_pipe(read, write, SignalOnly, SIGNALS).map(Self)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }

    /// Those that came since the last call; does not block.
    fn pending(&mut self) -> Vec<i32> {
        self.0.pending().collect()
    }
}

/// Watches `running` until nothing of it is left.
///
/// # Errors
/// What poll(2) says; the tenant is killed before.
pub fn supervise(
    running: &mut Running,
    signals: &mut Signals,
    notifier: &Notifier,
    grace: Duration,
) -> io::Result<Outcome> {
    let mut relay = Relay::default();
    let mut state = State::Starting;
    let mut open = Open { setup: true, status: true, stderr: true };
    loop {
        let happened = match wait(running, signals, &mut relay, &mut open, state) {
            Ok(happened) => happened,
            Err(error) => {
                running.kill();
                return Err(error);
            }
        };
        for event in happened {
            let (after, actions) = next(state, event, Instant::now(), grace);
            state = after;
            for action in actions {
                perform(action, running, notifier);
            }
        }
        if let State::Ended(end) = state {
            relay.finish(running.stderr.as_fd(), io::stderr().as_fd());
            return Ok(Outcome {
                end,
                oom_kills: running.cgroup.as_ref().and_then(|c| c.oom_kills()).unwrap_or(0),
                stderr_dropped: relay.dropped,
            });
        }
    }
}

/// Which of the channels are still open. One that has ended polls ready for
/// ever, so it is left out.
struct Open {
    setup: bool,
    status: bool,
    stderr: bool,
}

/// What can become ready.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Setup,
    Status,
    Stderr,
    OwnStderr,
    Init,
}

/// Waits for the next events, at most until the deadline of `state`. The app's
/// status comes before the end of init, which comes after it.
fn wait(
    running: &mut Running,
    signals: &mut Signals,
    relay: &mut Relay,
    open: &mut Open,
    state: State,
) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for source in ready(running, signals, relay, open, state)? {
        match source {
            Source::Signals => events.extend(signals.pending().into_iter().map(Event::Signal)),
            Source::Setup => {
                open.setup = false;
                events.push(match running.read_setup()? {
                    Setup::Done => Event::Started,
                    Setup::Failed(failure) => Event::SetupFailed(failure),
                });
            }
            Source::Status => {
                open.status = false;
                events.extend(running.read_exit().map(Event::AppExited));
            }
            Source::Stderr => open.stderr = relay.fill(running.stderr.as_fd()),
            Source::OwnStderr => relay.flush(io::stderr().as_fd()),
            Source::Init => {
                if sys::process::pidfd_reap(running.init.as_fd())?.is_some() {
                    events.push(Event::InitGone);
                }
            }
        }
    }
    if state.deadline().is_some_and(|deadline| Instant::now() >= deadline) {
        events.push(Event::Deadline);
    }
    Ok(events)
}

/// The sources that are ready, in the order of [`Source`].
fn ready(
    running: &Running,
    signals: &Signals,
    relay: &Relay,
    open: &Open,
    state: State,
) -> io::Result<Vec<Source>> {
    let stderr = io::stderr();
    let read = PollFlags::POLLIN;
    let candidates = [
        (Source::Signals, true, signals.fd(), read),
        (Source::Setup, open.setup, running.setup(), read),
        (Source::Status, open.status, running.status(), read),
        (Source::Stderr, open.stderr, running.stderr.as_fd(), read),
        (Source::OwnStderr, relay.is_waiting(), stderr.as_fd(), PollFlags::POLLOUT),
        (Source::Init, true, running.init.as_fd(), read),
    ];
    let watched: Vec<_> = candidates.into_iter().filter(|(_, wanted, ..)| *wanted).collect();
    let mut fds: Vec<_> =
        watched.iter().map(|(_, _, fd, flags)| PollFd::new(*fd, *flags)).collect();
    let timeout = state.deadline().map_or(PollTimeout::NONE, |deadline| {
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
        Action::NotifyReady => notifier.send("READY=1"),
        Action::NotifyStopping => notifier.send("STOPPING=1"),
    }
}
