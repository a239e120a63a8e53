//! Every state against every event: the table that `next` has to be.

use libc::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGWINCH};
use nix::errno::Errno;

use super::*;
use crate::plan::Step;

const GRACE: Duration = Duration::from_secs(30);
const LIFE: Lifecycle = Lifecycle { grace: GRACE, ready: Ready::Exec };
const PATIENT: Lifecycle = Lifecycle { grace: GRACE, ready: Ready::Listen };

fn failure() -> Failure {
    Failure { step: Step::Proc, errno: Errno::EPERM, object: 0 }
}

fn events() -> Vec<Event> {
    vec![
        Event::Started,
        Event::Listening,
        Event::SetupFailed(failure()),
        Event::AppExited(Exit::Code(3)),
        Event::InitGone,
        Event::BrokerFailed(failure()),
        Event::BrokerGone,
        Event::Signal(SIGTERM),
        Event::Signal(SIGINT),
        Event::Signal(SIGHUP),
        Event::Deadline,
    ]
}

/// One row a state, one column an event of `events()`.
#[test]
fn the_table() {
    let now = Instant::now();
    let deadline = now + GRACE;
    let exit = Exit::Code(3);
    let forced = State::Killing { why: Kill::Forced };
    let failed = State::Killing { why: Kill::Failed(failure()) };
    let no_broker = State::Killing { why: Kill::NoBroker };
    let exiting = State::Exiting { exit };
    let failing = State::Failing { failure: failure() };
    let stopping = State::Stopping { deadline };
    let lost = State::Ended(End::Lost);
    let ended = |end| State::Ended(end);
    let stop = vec![Action::NotifyStopping, Action::Forward(SIGTERM), Action::Forward(SIGCONT)];
    let hup = vec![Action::Forward(SIGHUP)];
    let none = Vec::new;
    let kill = vec![Action::KillAll];
    let stay = |state: State| (state, none());

    type Row = Vec<(State, Vec<Action>)>;
    let table: Vec<(State, Row)> = vec![
        (
            State::Starting,
            vec![
                (State::Running, vec![Action::NotifyReady]),
                stay(State::Starting),
                (failing, none()),
                (exiting, none()),
                (lost, none()),
                (failed, kill.clone()),
                (no_broker, kill.clone()),
                (stopping, stop.clone()),
                (stopping, stop.clone()),
                (State::Starting, hup.clone()),
                stay(State::Starting),
            ],
        ),
        (
            State::Running,
            vec![
                stay(State::Running),
                stay(State::Running),
                stay(State::Running),
                (exiting, none()),
                (lost, none()),
                (failed, kill.clone()),
                (no_broker, kill.clone()),
                (stopping, stop.clone()),
                (stopping, stop),
                (State::Running, hup.clone()),
                stay(State::Running),
            ],
        ),
        (
            stopping,
            vec![
                stay(stopping),
                stay(stopping),
                (failing, none()),
                (exiting, none()),
                (lost, none()),
                (failed, kill.clone()),
                (no_broker, kill.clone()),
                stay(stopping),
                (forced, kill.clone()),
                (stopping, hup),
                (forced, kill),
            ],
        ),
        (
            forced,
            vec![
                stay(forced),
                stay(forced),
                stay(forced),
                (exiting, none()),
                (ended(End::Killed(Kill::Forced)), none()),
                stay(forced),
                stay(forced),
                stay(forced),
                stay(forced),
                stay(forced),
                stay(forced),
            ],
        ),
        (
            exiting,
            vec![
                stay(exiting),
                stay(exiting),
                stay(exiting),
                stay(exiting),
                (ended(End::App(exit)), none()),
                stay(exiting),
                stay(exiting),
                stay(exiting),
                stay(exiting),
                stay(exiting),
                stay(exiting),
            ],
        ),
        (
            failing,
            vec![
                stay(failing),
                stay(failing),
                stay(failing),
                stay(failing),
                (ended(End::Failed(failure())), none()),
                stay(failing),
                stay(failing),
                stay(failing),
                stay(failing),
                stay(failing),
                stay(failing),
            ],
        ),
        (lost, (0..11).map(|_| stay(lost)).collect()),
    ];
    for (state, row) in table {
        assert_eq!(row.len(), events().len());
        for (event, expected) in events().into_iter().zip(row) {
            assert_eq!(next(state, event, now, LIFE), expected, "{state:?} × {event:?}");
        }
    }
}

#[test]
fn every_other_signal_is_the_tenants() {
    let now = Instant::now();
    for signal in [SIGHUP, SIGUSR1, SIGWINCH, libc::SIGQUIT, libc::SIGUSR2] {
        for state in [State::Starting, State::Running, State::Stopping { deadline: now }] {
            assert_eq!(
                next(state, Event::Signal(signal), now, LIFE),
                (state, vec![Action::Forward(signal)])
            );
        }
    }
}

/// Whatever comes in whatever order: an ended tenant stays ended, and nothing
/// is asked of one that was killed.
#[test]
fn no_order_of_events_leads_back() {
    let now = Instant::now();
    let mut reached = vec![State::Starting];
    let mut index = 0;
    while index < reached.len() {
        let state = reached[index];
        for event in events() {
            let (after, actions) = next(state, event, now, LIFE);
            if matches!(
                state,
                State::Killing { .. }
                    | State::Exiting { .. }
                    | State::Failing { .. }
                    | State::Ended(_)
            ) {
                assert!(actions.is_empty(), "{state:?} × {event:?}");
            }
            if matches!(state, State::Ended(_)) {
                assert_eq!(after, state);
            }
            assert!(after.deadline().is_none_or(|deadline| deadline >= now));
            if !reached.contains(&after) {
                reached.push(after);
            }
        }
        index += 1;
    }
    // From everywhere, the end of init is the end.
    for state in reached {
        assert!(matches!(next(state, Event::InitGone, now, LIFE).0, State::Ended(_)), "{state:?}");
    }
}

#[test]
fn who_waits_for_it_to_listen_is_told_then() {
    let now = Instant::now();
    let running = (State::Running, vec![]);
    let told = (State::Running, vec![Action::NotifyReady]);
    assert_eq!(next(State::Starting, Event::Started, now, PATIENT), running);
    assert_eq!(next(State::Running, Event::Listening, now, PATIENT), told);
    // The broker was faster than init.
    assert_eq!(next(State::Starting, Event::Listening, now, PATIENT), told);
    assert_eq!(next(State::Running, Event::Started, now, PATIENT), running);
    let stopping = State::Stopping { deadline: now };
    assert_eq!(next(stopping, Event::Listening, now, PATIENT), (stopping, vec![]));
}
