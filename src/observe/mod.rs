//! What others may know of a running tenant: the service manager, the state
//! file, a line on stderr, the record of refused calls.

pub mod denials;
pub mod notify;
pub mod sink;
pub mod state_file;
