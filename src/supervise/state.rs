//! What happens when: `next(state, event, now) -> (state, actions)`. No file,
//! no clock, no signal; the loop in `run` brings the events and performs the
//! actions.

use std::time::{Duration, Instant};

use crate::policy::Ready;
use crate::report::Failure;
use crate::sys::process::Exit;

/// Where a tenant is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Init goes through the set-up steps.
    Starting,
    /// The binary runs.
    Running,
    /// It was asked to end and has until then.
    Stopping {
        /// When it will be killed.
        deadline: Instant,
    },
    /// Everything was killed; the kernel is still at it.
    Killing {
        /// Why.
        why: Kill,
    },
    /// The app has ended; the rest of its sandbox is about to.
    Exiting {
        /// How.
        exit: Exit,
    },
    /// A set-up step failed; init is about to end.
    Failing {
        /// Which.
        failure: Failure,
    },
    /// Nothing of it is left.
    Ended(End),
}

/// Why everything was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    /// The time to end by itself was over, or somebody was in a hurry.
    Forced,
    /// Its broker is gone, without which it has no way in or out.
    NoBroker,
    /// Its broker could not be set up.
    Failed(Failure),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    App(Exit),
    /// Init went without a word: killed from outside, or by the kernel for want
    /// of memory.
    Lost,
    /// It was killed by us.
    Killed(Kill),
    /// It never ran.
    Failed(Failure),
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The binary runs.
    Started,
    /// It listens on a declared listener. Comes once.
    Listening,
    /// A set-up step failed.
    SetupFailed(Failure),
    /// Init says how the app ended.
    AppExited(Exit),
    /// Init has ended, and with it the pid namespace.
    InitGone,
    /// The supervisor got a signal.
    Signal(i32),
    /// A step of the broker's set-up failed.
    BrokerFailed(Failure),
    /// The broker has ended.
    BrokerGone,
    /// The deadline of the state is over.
    Deadline,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this signal to the app.
    Forward(i32),
    /// Kill everything in the sandbox.
    KillAll,
    /// Tell the service manager: READY=1.
    NotifyReady,
    /// Tell the service manager: STOPPING=1.
    NotifyStopping,
}

impl State {
    /// When [`Event::Deadline`] is due.
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Self::Stopping { deadline } => Some(deadline),
            Self::Starting
            | Self::Running
            | Self::Killing { .. }
            | Self::Exiting { .. }
            | Self::Failing { .. }
            | Self::Ended(_) => None,
        }
    }
}

/// What the policy says of a tenant's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    /// Time between SIGTERM and the forced end.
    pub grace: Duration,
    /// When the service manager is told that it is up.
    pub ready: Ready,
}

/// The state after `event` at `now`, and what has to be done.
pub fn next(state: State, event: Event, now: Instant, life: Lifecycle) -> (State, Vec<Action>) {
    use Action::{Forward, KillAll, NotifyReady, NotifyStopping};
    use Event::{
        AppExited, BrokerFailed, BrokerGone, Deadline, InitGone, Listening, SetupFailed, Signal,
        Started,
    };
    use libc::{SIGCONT, SIGINT, SIGTERM};

    let stay = (state, Vec::new());
    // A stopped process hears nothing until it is continued.
    let stop = |deadline| {
        (State::Stopping { deadline }, vec![NotifyStopping, Forward(SIGTERM), Forward(SIGCONT)])
    };
    let kill = |why| (State::Killing { why }, vec![KillAll]);
    match state {
        State::Starting => match event {
            Started if life.ready == Ready::Exec => (State::Running, vec![NotifyReady]),
            Started => (State::Running, vec![]),
            // It listens already, and init is late with the word that it runs.
            Listening if life.ready == Ready::Listen => (State::Running, vec![NotifyReady]),
            SetupFailed(failure) => (State::Failing { failure }, vec![]),
            // It ran and ended so fast that this comes first.
            AppExited(exit) => (State::Exiting { exit }, vec![]),
            InitGone => (State::Ended(End::Lost), vec![]),
            BrokerFailed(failure) => kill(Kill::Failed(failure)),
            BrokerGone => kill(Kill::NoBroker),
            // Nor killed at once here: the binary may run already, since init
            // may be late with the word of it. Init holds signals until it does.
            Signal(SIGTERM | SIGINT) => stop(now + life.grace),
            Signal(signal) => (state, vec![Forward(signal)]),
            Listening | Deadline => stay,
        },
        State::Running => match event {
            AppExited(exit) => (State::Exiting { exit }, vec![]),
            InitGone => (State::Ended(End::Lost), vec![]),
            BrokerFailed(failure) => kill(Kill::Failed(failure)),
            BrokerGone => kill(Kill::NoBroker),
            Signal(SIGTERM | SIGINT) => stop(now + life.grace),
            Signal(signal) => (state, vec![Forward(signal)]),
            Listening if life.ready == Ready::Listen => (state, vec![NotifyReady]),
            Started | Listening | SetupFailed(_) | Deadline => stay,
        },
        State::Stopping { .. } => match event {
            AppExited(exit) => (State::Exiting { exit }, vec![]),
            InitGone => (State::Ended(End::Lost), vec![]),
            BrokerFailed(failure) => kill(Kill::Failed(failure)),
            BrokerGone => kill(Kill::NoBroker),
            SetupFailed(failure) => (State::Failing { failure }, vec![]),
            // Asked twice by hand: at once.
            Signal(SIGINT) | Deadline => kill(Kill::Forced),
            Signal(SIGTERM) | Started | Listening => stay,
            Signal(signal) => (state, vec![Forward(signal)]),
        },
        State::Killing { why } => match event {
            InitGone => (State::Ended(End::Killed(why)), vec![]),
            // Its last word before SIGKILL came: it ended by itself.
            AppExited(exit) => (State::Exiting { exit }, vec![]),
            Started | Listening | SetupFailed(_) | BrokerFailed(_) | BrokerGone | Signal(_)
            | Deadline => stay,
        },
        State::Exiting { exit } => match event {
            InitGone => (State::Ended(End::App(exit)), vec![]),
            Started | Listening | SetupFailed(_) | AppExited(_) | BrokerFailed(_) | BrokerGone
            | Signal(_) | Deadline => stay,
        },
        State::Failing { failure } => match event {
            InitGone => (State::Ended(End::Failed(failure)), vec![]),
            Started | Listening | SetupFailed(_) | AppExited(_) | BrokerFailed(_) | BrokerGone
            | Signal(_) | Deadline => stay,
        },
        State::Ended(_) => match event {
            Started | Listening | SetupFailed(_) | AppExited(_) | InitGone | BrokerFailed(_)
            | BrokerGone | Signal(_) | Deadline => stay,
        },
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
