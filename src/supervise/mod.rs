//! From the clone to the end of the tenant: a pure state machine, and the loop
//! that performs what it decides.

mod relay;
mod run;
mod state;

pub use run::{Heard, Outcome, Signals, Watchdog, supervise};
pub use state::{Action, End, Event, Kill, Lifecycle, State, next};
