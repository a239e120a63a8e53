//! The tenant's stdout and stderr on their way to ours: bounded, and never in
//! our way. The tenant holds pipes of ours and none of our own descriptors, so
//! it can neither truncate a log, nor shut a socket, nor read a terminal.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::read;

use crate::observe::sink::{PIECE, Sink};

/// What is kept for a reader that is slower than the tenant.
const CAPACITY: usize = 64 << 10;

/// What happens when that is full, or when nobody reads any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overflow {
    /// The tenant waits, and a gone reader is SIGPIPE to it: stdout.
    Wait,
    /// It is dropped and counted, the tenant notices nothing: stderr.
    Drop,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Relay {
    from: Option<OwnedFd>,
    to: Sink,
    overflow: Overflow,
    waiting: VecDeque<u8>,
    /// Bytes that nobody took.
    pub(super) dropped: u64,
    /// Our reader is gone.
    closed: bool,
}

impl Relay {
    /// From the reading end of a pipe, which must not block, to `to`.
    pub(super) fn new(from: OwnedFd, to: Sink, overflow: Overflow) -> Self {
        Self { from: Some(from), to, overflow, waiting: VecDeque::new(), dropped: 0, closed: false }
    }

    /// What to wait for being readable, if anything.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        let full = self.waiting.len() >= CAPACITY && self.overflow == Overflow::Wait;
        self.from.as_ref().filter(|_| !full).map(AsFd::as_fd)
    }

    /// What to wait for being writable, if anything.
    pub(super) fn target(&self) -> Option<BorrowedFd<'_>> {
        (!self.waiting.is_empty()).then(|| self.to.as_fd())
    }

    /// Reads a piece. Only one a turn: a tenant that never stops writing must
    /// not keep the supervisor from its other descriptors.
    pub(super) fn fill(&mut self) {
        let Some(from) = &self.from else { return };
        let mut piece = [0; PIECE];
        match read(from, &mut piece) {
            Ok(0) => self.from = None,
            Ok(length) if self.closed => self.dropped += length as u64,
            Ok(length) => {
                // With Wait it may exceed CAPACITY by less than a piece.
                let room = match self.overflow {
                    Overflow::Wait => length,
                    Overflow::Drop => CAPACITY.saturating_sub(self.waiting.len()),
                };
                let taken = length.min(room);
                self.waiting.extend(&piece[..taken]);
                self.dropped += (length - taken) as u64;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.from = None,
        }
    }

    /// Writes a piece.
    pub(super) fn flush(&mut self) {
        let (front, _) = self.waiting.as_slices();
        match self.to.write(front) {
            Ok(length) => drop(self.waiting.drain(..length)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => {
                self.closed = true;
                self.dropped += self.waiting.len() as u64;
                self.waiting.clear();
                if self.overflow == Overflow::Wait {
                    self.from = None;
                }
            }
        }
    }

    /// After the tenant's end: what is still in the pipe, as long as a reader
    /// takes something every `patience`.
    pub(super) fn finish(&mut self, patience: Duration) {
        let mut deadline = Instant::now() + patience;
        while self.from.is_some() || !self.waiting.is_empty() {
            let before = self.waiting.len();
            if self.waiting.len() < CAPACITY {
                self.fill();
            }
            if self.waiting.is_empty() {
                // Every writer is dead, so an empty pipe is at its end; a
                // descriptor that escaped to somebody else is not waited for.
                if before == 0 {
                    break;
                }
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let length = self.waiting.len();
            if self.to.is_writable(left) {
                self.flush();
            }
            if self.waiting.len() < length {
                deadline = Instant::now() + patience;
            } else if left.is_zero() {
                break;
            }
        }
        self.dropped += self.waiting.len() as u64;
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use nix::unistd::{pipe2, write};

    const SHORT: Duration = Duration::from_millis(50);

    /// A relay, the end the tenant writes to and the end our reader reads from.
    fn relay(overflow: Overflow) -> (Relay, OwnedFd, OwnedFd) {
        let (from, source) = pipe2(OFlag::O_NONBLOCK).unwrap();
        let (reader, to) = pipe2(OFlag::O_NONBLOCK).unwrap();
        let sink = Sink::of(to.as_fd()).unwrap();
        (Relay::new(from, sink, overflow), source, reader)
    }

    #[test]
    fn a_flood_of_stderr_is_bounded_and_counted_and_the_rest_arrives() {
        let (mut relay, source, reader) = relay(Overflow::Drop);
        let mut sent = 0u64;
        for _ in 0..100 {
            sent += write(&source, &[b'x'; PIECE]).unwrap() as u64;
            assert!(relay.source().is_some());
            relay.fill();
        }
        assert_eq!(relay.waiting.len(), CAPACITY);
        assert_eq!(relay.dropped, sent - CAPACITY as u64);
        drop(source);
        relay.finish(SHORT);
        let mut got = vec![0; 2 * CAPACITY];
        assert_eq!(read(&reader, &mut got).unwrap(), CAPACITY);
        assert!(relay.target().is_none());
    }

    #[test]
    fn a_flood_of_stdout_waits_and_arrives_whole() {
        let (mut relay, source, reader) = relay(Overflow::Wait);
        let reader = std::thread::spawn(move || {
            let (mut got, mut bytes) = (0, [0; 100]);
            loop {
                match read(&reader, &mut bytes) {
                    Ok(0) => return got,
                    Ok(n) => got += n,
                    Err(_) => std::thread::yield_now(),
                }
            }
        });
        let mut sent = 0;
        while sent < 8 * CAPACITY {
            sent += write(&source, &[b'x'; PIECE]).unwrap_or(0);
            if relay.source().is_some() {
                relay.fill();
            }
            if relay.target().is_some() {
                relay.flush();
            }
            assert!(relay.waiting.len() < CAPACITY + PIECE);
        }
        drop(source);
        relay.finish(Duration::from_secs(10));
        assert_eq!(relay.dropped, 0);
        drop(relay);
        assert_eq!(reader.join().unwrap(), sent);
    }

    #[test]
    fn a_reader_that_is_gone() {
        let (mut err, source, reader) = relay(Overflow::Drop);
        drop(reader);
        write(&source, b"hello").unwrap();
        err.fill();
        err.flush();
        assert!(err.target().is_none());
        assert_eq!(err.dropped, 5);
        assert!(err.source().is_some(), "stderr is still read");
        let (mut out, source, reader) = relay(Overflow::Wait);
        drop(reader);
        write(&source, b"hello").unwrap();
        out.fill();
        out.flush();
        assert!(out.source().is_none());
        assert_eq!(write(&source, b"x"), Err(Errno::EPIPE), "the tenant gets SIGPIPE");
    }

    #[test]
    fn a_reader_that_is_stuck_is_not_waited_for_long() {
        for overflow in [Overflow::Drop, Overflow::Wait] {
            let (mut relay, source, _reader) = relay(overflow);
            while relay.to.write(&[0; PIECE]).is_ok() {}
            write(&source, b"hello").unwrap();
            drop(source);
            relay.finish(SHORT);
            assert_eq!(relay.dropped, 5);
        }
    }
}
