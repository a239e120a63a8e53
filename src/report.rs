//! What init, app and broker tell the supervisor about their set-up, and init
//! about the app's end: fixed-size records, written whole.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::plan::Step;
use crate::sys::process::Exit;

/// A step that failed in the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub step: Step,
    /// Why.
    pub errno: Errno,
    /// Index of what it was about, in the plan's list for this step.
    pub object: u32,
}

/// Length of every record.
pub(crate) const RECORD: usize = 12;

const FAILED: u8 = 1;
const EXITED: u8 = 2;
const SIGNALLED: u8 = 3;

impl Failure {
    fn encode(self) -> [u8; RECORD] {
        record(FAILED, self.step as u8, self.errno as i32, self.object)
    }

    /// Reads a record; `None` where it is none of this kind.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, step, errno, object) = fields(bytes)?;
        let step = Step::from_number(step).filter(|_| kind == FAILED)?;
        Some(Self { step, errno: Errno::from_raw(errno), object })
    }
}

/// How the app ended, as init tells it.
pub(crate) fn encode_exit(exit: Exit) -> [u8; RECORD] {
    match exit {
        Exit::Code(code) => record(EXITED, 0, i32::from(code), 0),
        Exit::Signal(signal) => record(SIGNALLED, 0, signal, 0),
    }
}

/// Reads what [`encode_exit`] wrote.
pub(crate) fn decode_exit(bytes: &[u8]) -> Option<Exit> {
    let (kind, _, value, _) = fields(bytes)?;
    match kind {
        EXITED => Some(Exit::Code(u8::try_from(value).ok()?)),
        SIGNALLED => Some(Exit::Signal(value)),
        _ => None,
    }
}

fn record(kind: u8, step: u8, value: i32, object: u32) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[0] = kind;
    bytes[1] = step;
    bytes[4..8].copy_from_slice(&value.to_le_bytes());
    bytes[8..12].copy_from_slice(&object.to_le_bytes());
    bytes
}

fn fields(bytes: &[u8]) -> Option<(u8, u8, i32, u32)> {
    let bytes: &[u8; RECORD] = bytes.try_into().ok()?;
    let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    Some((bytes[0], bytes[1], i32::from_le_bytes(word(4)), u32::from_le_bytes(word(8))))
}

/// EPIPE where the other end of a channel is closed: who was asked to end with
/// its parent may have asked too late.
pub(crate) fn still_there(channel: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut fds = [PollFd::new(channel, PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    match fds[0].any() {
        Some(false) => Ok(()),
        _ => Err(Errno::EPIPE),
    }
}

/// The child's way through the steps: forward only, and out on the first
/// failure.
pub(crate) struct Sequence<'a> {
    at: Option<Step>,
    report: BorrowedFd<'a>,
}

/// Status of a child that could not finish. The supervisor goes by the record.
const SETUP_FAILED: i32 = 125;

impl<'a> Sequence<'a> {
    /// At the beginning; failures go to `report`.
    pub(crate) fn new(report: BorrowedFd<'a>) -> Self {
        Self { at: None, report }
    }

    /// Takes `step` on the object number `object`. A failure, or a step that
    /// does not come after the last one, is reported and ends the process.
    pub(crate) fn take<T>(
        &mut self,
        step: Step,
        object: usize,
        action: impl FnOnce() -> Result<T, Errno>,
    ) -> T {
        let result = if self.at.is_some_and(|at| step < at) {
            // Only a mistake of ours gets here, and it must not get further.
            Err(Errno::EDEADLK)
        } else {
            self.at = Some(step);
            action()
        };
        match result {
            Ok(value) => value,
            Err(errno) => self.fail(step, object, errno),
        }
    }

    /// Reports and ends the process.
    pub(crate) fn fail(&self, step: Step, object: usize, errno: Errno) -> ! {
        let object = u32::try_from(object).unwrap_or(u32::MAX);
        let bytes = Failure { step, errno, object }.encode();
        // If the supervisor is gone nobody is left to be told.
        _ = nix::unistd::write(self.report, &bytes);
        crate::sys::process::exit(SETUP_FAILED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_went() {
        for &step in Step::ALL {
            let failure = Failure { step, errno: Errno::EACCES, object: 77 };
            assert_eq!(Failure::decode(&failure.encode()), Some(failure));
            assert_eq!(decode_exit(&failure.encode()), None);
        }
        for exit in [Exit::Code(0), Exit::Code(255), Exit::Signal(9), Exit::Signal(64)] {
            assert_eq!(decode_exit(&encode_exit(exit)), Some(exit));
            assert_eq!(Failure::decode(&encode_exit(exit)), None);
        }
    }

    #[test]
    fn nonsense_is_no_record() {
        assert_eq!(Failure::decode(&[]), None);
        assert_eq!(Failure::decode(&[FAILED; RECORD - 1]), None);
        assert_eq!(Failure::decode(&record(FAILED, 200, 1, 0)), None);
        assert_eq!(decode_exit(&record(EXITED, 0, 256, 0)), None);
    }
}
