//! From a plan to a running tenant: prepare, clone, and the sequence.
//!
//! [`Prepared`] owns everything that must exist before clone. After it the
//! child allocates nothing, takes no lock, and leaves only through exec or
//! `_exit`.

mod child;
mod init;
mod network;
mod parent;
mod prepare;
mod remedy;
mod wall;

pub use parent::{Broker, Running, Setup, Word, spawn};
pub use prepare::Prepared;
pub use remedy::remedy;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::plan::Step;
use crate::value::Tenant;

/// Before descriptors are sent: those under way are counted for the whole user, up
/// to the soft limit of who sends one more (unix(7), ETOOMANYREFS). Another tenant
/// of the same user may have sent many.
fn raise_open_files() -> Result<(), Errno> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("tenant {tenant}: {}: {}{cause}{}", step.label(), lead(object), hint(remedy.as_deref()))]
pub struct StartError {
    /// Whose.
    pub tenant: Tenant,
    /// Which.
    pub step: Step,
    /// To what.
    pub object: String,
    /// Why.
    pub errno: Errno,
    /// Why, in words.
    pub cause: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

fn lead(object: &str) -> String {
    if object.is_empty() { String::new() } else { format!("{object}: ") }
}

fn hint(remedy: Option<&str>) -> String {
    remedy.map_or(String::new(), |remedy| format!(" ({remedy})"))
}

impl StartError {
    /// The error of `step` on `object`, with the remedy of the table.
    pub fn new(tenant: &Tenant, step: Step, object: impl Into<String>, errno: Errno) -> Self {
        Self {
            tenant: tenant.clone(),
            step,
            object: object.into(),
            errno,
            cause: crate::value::cause(&errno.into()),
            remedy: remedy(step, errno).map(str::to_owned),
        }
    }

    /// The same with the words of `error`, where it has its own.
    #[must_use]
    pub fn because(self, error: &std::io::Error) -> Self {
        if error.raw_os_error().is_some() { self } else { self.saying(error.to_string()) }
    }

    /// The same with these words, remedy included.
    #[must_use]
    pub fn saying(self, cause: String) -> Self {
        Self { cause, remedy: None, ..self }
    }

    /// Whether the binary could not be executed, which is status 126, and not
    /// the set-up failed, which is 125.
    pub fn is_exec(&self) -> bool {
        self.step == Step::Exec
    }
}
