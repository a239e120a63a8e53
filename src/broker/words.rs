//! What the broker tells the supervisor: one message a time, each a kind and,
//! for some, a line of text. The supervisor shows the text and never reads it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::time::TimeSpec;

/// The tenant listens on a declared listener.
pub(crate) const LISTENING: u8 = 0x10;
/// A line for people follows.
pub(crate) const LINE: u8 = 0x11;
/// A call that was refused follows: [`super::Denial`].
pub(crate) const DENIED: u8 = 0x12;
/// A destination that was connected to follows; of `learn` alone, like the next
/// two.
pub(crate) const LED: u8 = 0x13;
/// A destination that was refused follows.
pub(crate) const UNLED: u8 = 0x14;
/// An address that was bound inside follows.
pub(crate) const BOUND: u8 = 0x15;
/// Longest message, its kind included.
pub(crate) const LONGEST: usize = 401;

/// The broker's end of the channel, and what was said on it already.
pub(super) struct Words {
    channel: OwnedFd,
    said: BTreeSet<String>,
    dropped: u64,
    /// Until when the lines that may be said are counted.
    earned: Instant,
    burst: u32,
    listening: bool,
}

/// How many different lines are told apart.
const MOST_SAID: usize = 256;
/// How many lines may be said at once, and how often one more.
const BURST: u32 = 20;
const EVERY: Duration = Duration::from_secs(10);

impl Words {
    pub(super) fn new(channel: OwnedFd, now: Instant) -> Self {
        Self {
            channel,
            said: BTreeSet::new(),
            dropped: 0,
            earned: now,
            burst: BURST,
            listening: false,
        }
    }

    /// Readable when the supervisor is gone.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// The tenant listens. Told once.
    pub(super) fn listening(&mut self) {
        if !self.listening {
            self.listening = true;
            self.send(LISTENING, b"");
        }
    }

    /// Says `line` once; a tenant that makes up ever new lines is cut short, and
    /// how many were left out is said with the next.
    pub(super) fn say(&mut self, line: String, now: Instant) {
        if self.said.contains(&line) {
            return;
        }
        while self.burst < BURST && now >= self.earned + EVERY {
            self.burst += 1;
            self.earned += EVERY;
        }
        if self.burst == BURST {
            self.earned = now;
        }
        if self.burst == 0 {
            self.dropped += 1;
            return;
        }
        self.burst -= 1;
        let mut text = line.clone();
        if self.dropped > 0 {
            text.push_str(&format!(" ({} other lines of the broker were left out)", self.dropped));
            self.dropped = 0;
        }
        self.send(LINE, text.as_bytes());
        if self.said.len() >= MOST_SAID {
            self.said.clear();
        }
        self.said.insert(line);
    }

    /// Waits until the supervisor can take more, a second at most.
    pub(super) fn wait(&self) {
        let mut fds = [PollFd::new(self.channel.as_fd(), PollFlags::POLLOUT)];
        _ = ppoll(&mut fds, Some(TimeSpec::new(1, 0)), None);
    }

    /// Not waited for: a supervisor that is busy misses a message.
    /// Whether it went.
    pub(super) fn send(&self, kind: u8, text: &[u8]) -> bool {
        let mut bytes = vec![kind];
        bytes.extend(text.iter().take(LONGEST - 1));
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.channel.as_raw_fd(), &bytes, flags).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, recv, socketpair};

    fn heard(channel: &OwnedFd) -> Vec<String> {
        let mut lines = Vec::new();
        let mut bytes = [0; 512];
        while let Ok(length @ 1..) = recv(channel.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            assert!(bytes[0] == LINE || bytes[0] == LISTENING);
            lines.push(String::from_utf8(bytes[1..length].to_vec()).unwrap());
        }
        lines
    }

    #[test]
    fn a_line_is_said_once_and_a_flood_is_counted() {
        let kind = SockType::SeqPacket;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, kind, None, SockFlag::empty()).unwrap();
        let now = Instant::now();
        let mut words = Words::new(theirs, now);
        words.listening();
        words.listening();
        for _ in 0..10 {
            words.say("the same".to_owned(), now);
        }
        assert_eq!(heard(&ours), ["", "the same"]);
        for n in 0..1000 {
            words.say(format!("line {n}"), now);
        }
        assert_eq!(heard(&ours).len(), 19);
        let later = now + Duration::from_secs(30);
        words.say("x".repeat(1000), later);
        let lines = heard(&ours);
        assert_eq!((lines.len(), lines[0].len()), (1, LONGEST - 1));
        words.say("after".to_owned(), later);
        assert_eq!(heard(&ours), ["after"], "the count went with the line before");
        // One that is said every few seconds takes nothing from those to come.
        for seconds in (31..200).step_by(3) {
            words.say(format!("at {seconds}"), now + Duration::from_secs(seconds));
        }
        assert!(heard(&ours).len() >= 17);
    }
}
