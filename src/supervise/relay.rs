//! The tenant's stderr on its way to ours: bounded, never in our way.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

/// What is kept for a reader that is slower than the tenant.
const CAPACITY: usize = 64 << 10;
/// As much as a pipe that polls writable takes without blocking: pipe(7).
const PIECE: usize = 4096;

/// Bytes read from the tenant and not yet written.
#[derive(Debug, Default)]
pub(super) struct Relay {
    waiting: VecDeque<u8>,
    /// Bytes that had no room.
    pub(super) dropped: u64,
    /// Our own stderr is gone.
    closed: bool,
}

impl Relay {
    /// Whether there is something to write.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reads what `from` has now; `false` at its end.
    pub(super) fn fill(&mut self, from: BorrowedFd<'_>) -> bool {
        let mut piece = [0; PIECE];
        // One piece a turn: a tenant that never stops writing must not keep the
        // supervisor from its other descriptors.
        match read(from, &mut piece) {
            Ok(0) => false,
            Ok(length) => {
                let room = CAPACITY - self.waiting.len();
                let taken = length.min(room);
                self.waiting.extend(&piece[..taken]);
                self.dropped += (length - taken) as u64;
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR) => true,
            Err(_) => false,
        }
    }

    /// Writes a piece to `to`, which polled writable.
    pub(super) fn flush(&mut self, to: BorrowedFd<'_>) {
        let (front, _) = self.waiting.as_slices();
        let piece = &front[..front.len().min(PIECE)];
        match write(to, piece) {
            Ok(length) => drop(self.waiting.drain(..length)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // Nobody reads any more; the tenant must not notice.
            Err(_) => self.closed = true,
        }
        if self.closed {
            self.waiting.clear();
        }
    }

    /// After the tenant's end: what is still in the pipe, as far as our stderr
    /// takes it.
    pub(super) fn finish(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
        let mut more = true;
        while more || self.is_waiting() {
            let before = (self.waiting.len(), self.dropped);
            if more {
                more = self.fill(from);
            }
            let writable = writable(to);
            if self.is_waiting() && writable {
                self.flush(to);
            }
            // Nothing moves any more: the reader is slow or away, and the
            // supervisor does not wait for it.
            if (self.waiting.len(), self.dropped) == before {
                break;
            }
        }
        self.dropped += self.waiting.len() as u64;
        self.waiting.clear();
    }
}

fn writable(to: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    #[test]
    fn a_flood_is_bounded_and_counted_and_the_rest_arrives() {
        let (from, source) = pipe2(OFlag::O_NONBLOCK).unwrap();
        let (sink, to) = pipe2(OFlag::O_NONBLOCK).unwrap();
        let mut relay = Relay::default();
        let mut sent = 0u64;
        for _ in 0..100 {
            sent += write(&source, &[b'x'; PIECE]).unwrap() as u64;
            assert!(relay.fill(from.as_fd()));
        }
        assert_eq!(relay.waiting.len(), CAPACITY);
        assert_eq!(relay.dropped, sent - CAPACITY as u64);
        drop(source);
        relay.finish(from.as_fd(), to.as_fd());
        let mut got = vec![0; 2 * CAPACITY];
        assert_eq!(read(&sink, &mut got).unwrap(), CAPACITY);
        assert!(!relay.is_waiting());
    }

    #[test]
    fn a_reader_that_is_gone_does_not_stop_the_tenant() {
        let (from, source) = pipe2(OFlag::O_NONBLOCK).unwrap();
        let (sink, to) = pipe2(OFlag::O_NONBLOCK).unwrap();
        drop(sink);
        let mut relay = Relay::default();
        write(&source, b"hello").unwrap();
        assert!(relay.fill(from.as_fd()));
        relay.flush(to.as_fd());
        assert!(!relay.is_waiting());
        drop(source);
        assert!(!relay.fill(from.as_fd()));
    }

    #[test]
    fn a_reader_that_is_stuck_is_not_waited_for() {
        let (from, source) = pipe2(OFlag::O_NONBLOCK).unwrap();
        let (_sink, to) = pipe2(OFlag::O_NONBLOCK).unwrap();
        while write(&to, &[0; PIECE]).is_ok() {}
        write(&source, b"hello").unwrap();
        let mut relay = Relay::default();
        relay.finish(from.as_fd(), to.as_fd());
        assert_eq!(relay.dropped, 5);
    }
}
