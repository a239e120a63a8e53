//! The loop: waits for what can happen, asks `state::next`, does what it says.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

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
const SIGNALS: [i32; 8] = [
    SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGALRM,
];

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
    let mut sources = Sources {
        setup: true,
        status: true,
        stderr: true,
    };
    loop {
        let happened = match wait(running, signals, &mut relay, &mut sources, state) {
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
                oom_kills: running
                    .cgroup
                    .as_ref()
                    .and_then(|c| c.oom_kills())
                    .unwrap_or(0),
                stderr_dropped: relay.dropped,
            });
        }
    }
}

/// Which of the channels are still open.
struct Sources {
    setup: bool,
    status: bool,
    stderr: bool,
}

/// Waits for the next events, at most until the deadline of `state`. The app's
/// status comes before the end of init, which comes after it.
fn wait(
    running: &mut Running,
    signals: &mut Signals,
    relay: &mut Relay,
    sources: &mut Sources,
    state: State,
) -> io::Result<Vec<Event>> {
    let stderr = io::stderr();
    let interest = |wanted: bool, flags| if wanted { flags } else { PollFlags::empty() };
    let mut fds = [
        PollFd::new(signals.fd(), PollFlags::POLLIN),
        PollFd::new(running.init.as_fd(), PollFlags::POLLIN),
        PollFd::new(running.setup(), interest(sources.setup, PollFlags::POLLIN)),
        PollFd::new(
            running.status(),
            interest(sources.status, PollFlags::POLLIN),
        ),
        PollFd::new(
            running.stderr.as_fd(),
            interest(sources.stderr, PollFlags::POLLIN),
        ),
        PollFd::new(
            stderr.as_fd(),
            interest(relay.is_waiting(), PollFlags::POLLOUT),
        ),
    ];
    let timeout = state.deadline().map_or(PollTimeout::NONE, |deadline| {
        // Rounded up: a millisecond early would be a turn in vain.
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready = fds.map(|fd| fd.revents().is_some_and(|r| !r.is_empty()));
    let [signalled, gone, setup, status, stderr_in, stderr_out] = ready;

    let mut events = Vec::new();
    if sources.setup && setup {
        sources.setup = false;
        events.push(match running.read_setup() {
            Ok(Setup::Done) => Event::Started,
            Ok(Setup::Failed(failure)) => Event::SetupFailed(failure),
            Err(error) => return Err(error.into()),
        });
    }
    if signalled {
        events.extend(signals.pending().into_iter().map(Event::Signal));
    }
    if sources.status && status {
        sources.status = false;
        events.extend(running.read_exit().map(Event::AppExited));
    }
    if sources.stderr && stderr_in {
        sources.stderr = relay.fill(running.stderr.as_fd());
    }
    if relay.is_waiting() && stderr_out {
        relay.flush(io::stderr().as_fd());
    }
    if gone && sys::process::pidfd_reap(running.init.as_fd())?.is_some() {
        events.push(Event::InitGone);
    }
    if state
        .deadline()
        .is_some_and(|deadline| Instant::now() >= deadline)
    {
        events.push(Event::Deadline);
    }
    Ok(events)
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
