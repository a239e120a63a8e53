//! Calls that were refused: which, with what arguments, how often. Said once
//! when it happens first, and from then on ever more rarely.

use std::time::{Duration, Instant};

use super::caller::Caller;
use super::serve::Broker;
use super::words::{DENIED, Words};
use crate::seccomp::{Arch, parameters};
use crate::sys::notify::Notification;

/// A refused call, as the supervisor is told of it. Nothing in it is to be
/// believed: it comes from the tenant, by way of what parsed the tenant's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The call's number.
    pub number: u32,
    /// What the caller got; 0 of a call that was let through, of which only
    /// `learn` hears.
    pub errno: i32,
    /// How often, since the broker was made.
    pub count: u64,
    /// The arguments of the first.
    pub args: [u64; 6],
    /// What was at those that are addresses of text, in their order, where it
    /// could be read.
    pub texts: Vec<String>,
}

/// Bytes in front of the texts.
const FIXED: usize = 4 + 4 + 8 + 6 * 8;
/// Longest text; a record holds three of them, as mount(2) has.
const LONGEST_TEXT: usize = 110;

impl Denial {
    /// As it is sent: the numbers, then each text with a zero behind it.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + MOST_TEXTS * (LONGEST_TEXT + 1));
        bytes.extend(self.number.to_ne_bytes());
        bytes.extend(self.errno.to_ne_bytes());
        bytes.extend(self.count.to_ne_bytes());
        for arg in self.args {
            bytes.extend(arg.to_ne_bytes());
        }
        for text in &self.texts {
            bytes.extend(text.bytes().filter(|&byte| byte != 0));
            bytes.push(0);
        }
        bytes
    }

    /// Reads what [`Denial::encode`] wrote; `None` where it is too short.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (number, rest) = bytes.split_first_chunk()?;
        let (errno, rest) = rest.split_first_chunk()?;
        let (count, mut rest) = rest.split_first_chunk()?;
        let mut args = [0; 6];
        for arg in &mut args {
            let (word, after) = rest.split_first_chunk()?;
            (*arg, rest) = (u64::from_ne_bytes(*word), after);
        }
        let texts = rest.split_inclusive(|&byte| byte == 0).take(MOST_TEXTS);
        Some(Self {
            number: u32::from_ne_bytes(*number),
            errno: i32::from_ne_bytes(*errno),
            count: u64::from_ne_bytes(*count),
            args,
            texts: texts
                .map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
                .collect(),
        })
    }
}

/// Most texts in a record.
const MOST_TEXTS: usize = 3;

/// One kind of refused call.
struct Counted {
    /// The arguments that the rules look at, the others zero.
    key: [u64; 6],
    /// What else tells it apart: where `learn` asks, its first text.
    text: Option<String>,
    denial: Denial,
    /// What the supervisor was told last.
    told: u64,
    /// When it may be told again.
    due: Instant,
    pause: Duration,
}

/// How many kinds are told apart by their arguments. Beyond, by number alone.
const MOST_KINDS: usize = 128;
/// The same for `learn`, which asks for every path.
const MOST_LEARNT: usize = 8192;
/// The first and the longest time between two words about the same.
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// All of them.
pub(super) struct Denials {
    kinds: Vec<Counted>,
    most: usize,
}

impl Denials {
    pub(super) fn new(learns: bool) -> Self {
        Self { kinds: Vec::new(), most: if learns { MOST_LEARNT } else { MOST_KINDS } }
    }

    /// Where a call's kind is counted already, else the key that it will have.
    fn find(&self, number: u32, key: [u64; 6], text: Option<&str>) -> Result<usize, [u64; 6]> {
        // Numbers that are no call are endless, and one kind.
        let named = |number| Arch::native().call(number).map_or(u32::MAX, |_| number);
        let position = |key, text: Option<&str>| {
            self.kinds.iter().position(|kind| {
                named(kind.denial.number) == named(number)
                    && kind.key == key
                    && kind.text.as_deref() == text
            })
        };
        let rest = [0; 6];
        match position(key, text) {
            Some(index) => Ok(index),
            None if self.kinds.len() < self.most => Err(key),
            None => position(rest, None).ok_or(rest),
        }
    }

    /// Tells the supervisor what is due.
    pub(super) fn tell(&mut self, words: &Words, now: Instant) {
        for kind in &mut self.kinds {
            if kind.told < kind.denial.count && now >= kind.due {
                if words.send(DENIED, &kind.denial.encode()) {
                    kind.told = kind.denial.count;
                }
                kind.due = now + kind.pause;
                kind.pause = (kind.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Tells everything that was not told yet.
    pub(super) fn tell_all(&self, words: &Words) {
        let untold = self.kinds.iter().filter(|kind| kind.told < kind.denial.count);
        for kind in untold {
            if !words.send(DENIED, &kind.denial.encode()) {
                // It reads the last of what is there already.
                words.wait();
                words.send(DENIED, &kind.denial.encode());
            }
        }
    }

    /// When [`Denials::tell`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.kinds.iter().filter(|kind| kind.told < kind.denial.count).map(|kind| kind.due).min()
    }
}

impl Broker {
    /// Counts a refused call. Only of the first of a kind the texts are read.
    pub(super) fn count(&mut self, call: &Notification, number: u32, errno: i32) {
        let looked_at = self.rules.looked_at(Arch::native(), number, call.args);
        let mut texts = if self.learns { self.texts(call, number) } else { Vec::new() };
        let text = texts.first().cloned();
        let key = match self.denials.find(number, looked_at, text.as_deref()) {
            Ok(index) => {
                self.denials.kinds[index].denial.count += 1;
                return;
            }
            Err(key) => key,
        };
        if !self.learns {
            texts = self.texts(call, number);
        }
        let text = text.filter(|_| key == looked_at);
        self.denials.kinds.push(Counted {
            key,
            text,
            denial: Denial { number, errno, count: 1, args: call.args, texts },
            told: 0,
            due: Instant::now(),
            pause: PAUSE,
        });
    }

    /// What is at the first three arguments that are addresses of text. It says
    /// what the caller showed us, which need not be what it would have shown the
    /// kernel.
    fn texts(&self, call: &Notification, number: u32) -> Vec<String> {
        let name = Arch::native().call(number).unwrap_or_default();
        let texts = parameters(name).iter().zip(call.args).filter(|(p, _)| p.kind.is_text());
        let caller = Caller { thread: call.thread };
        texts
            .take(MOST_TEXTS)
            .map(|(_, at)| caller.text(self, call, at).unwrap_or_default())
            .collect()
    }
}

impl Caller {
    /// The text at `at` up to its zero, or a piece of it.
    fn text(&self, broker: &Broker, call: &Notification, at: u64) -> Option<String> {
        // Not past the end of a page, behind which there may be nothing.
        let page = usize::try_from(4096 - at % 4096).ok()?;
        let mut bytes = vec![0; page.min(LONGEST_TEXT)];
        self.memory(broker, call, at, &mut bytes).ok()?;
        let mut end = bytes.iter().position(|&byte| byte == 0);
        if end.is_none() && bytes.len() < LONGEST_TEXT {
            let mut more = vec![0; LONGEST_TEXT - bytes.len()];
            if self.memory(broker, call, at.checked_add(bytes.len() as u64)?, &mut more).is_ok() {
                bytes.extend(more);
                end = bytes.iter().position(|&byte| byte == 0);
            }
        }
        bytes.truncate(end.unwrap_or(bytes.len()));
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_whole_and_a_short_one_not_at_all() {
        let denial = Denial {
            number: 165,
            errno: 1,
            count: 7,
            args: [1, 2, 3, u64::MAX, 0, 6],
            texts: vec!["/dev/sda".to_owned(), String::new()],
        };
        let bytes = denial.encode();
        assert_eq!(Denial::decode(&bytes).unwrap(), denial);
        for length in 0..FIXED {
            assert_eq!(Denial::decode(&bytes[..length]), None);
        }
        let many: Vec<u8> = bytes[..FIXED].iter().copied().chain([b'x', 0].repeat(100)).collect();
        assert_eq!(Denial::decode(&many).unwrap().texts, ["x"; MOST_TEXTS]);
    }
}
