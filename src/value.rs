//! Small value types that must not be mixed up: sizes, quotas, ids, names.
//!
//! They parse from what people write in policies and on the command line, and
//! print the same way. Nothing in here asks the machine anything.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a value could not be read; `0` is a whole sentence with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadValue(pub String);

fn bad<T>(message: impl Into<String>) -> Result<T, BadValue> {
    Err(BadValue(message.into()))
}

/// A tenant's name: 1 to 63 of a-z, 0-9 and '-', beginning and ending with a
/// letter or digit. It becomes a cgroup, a unit instance and a path, so nothing
/// else is let through.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(String);

impl Tenant {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tenant {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let fits = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|&c| inner(c) || c == b'-')
            && bytes.first().is_some_and(|&c| inner(c))
            && bytes.last().is_some_and(|&c| inner(c));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            bad(format!(
                "tenant name {text:?}: 1 to 63 of a-z, 0-9 and '-', \
                 beginning and ending with a letter or digit"
            ))
        }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = BadValue;
    /// Digits, then nothing, K, M, G or T, or the same with "iB": powers of
    /// 1024, as systemd.resource-control(5) reads them.
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let shift = match unit {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => {
                return bad(format!("size {text:?}: write a number and K, M, G or T, as in 512M"));
            }
        };
        number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).map(Self).ok_or_else(
            || BadValue(format!("size {text:?}: write a number and K, M, G or T, as in 512M")),
        )
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that divides it: 512M, 1G, 1000.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A share of processors, in thousandths: 2.0 is two whole ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuQuota {
    /// Thousandths of one processor, at least 10.
    pub milli: u32,
}

impl CpuQuota {
    /// The period of cpu.max that quotas are counted in, in microseconds: the
    /// kernel's default.
    pub const PERIOD_US: u64 = 100_000;

    /// Runtime allowed in each period, in microseconds.
    pub fn quota_us(self) -> u64 {
        u64::from(self.milli) * Self::PERIOD_US / 1000
    }

    /// Whole processors, rounded up.
    pub fn ceil(self) -> u32 {
        self.milli.div_ceil(1000)
    }

    /// From a number of processors such as 0.5 or 2.
    ///
    /// # Errors
    /// Below 0.01 (the kernel's least quota is 1 ms in 100), above 4096, or not
    /// a number.
    pub fn from_cpus(cpus: f64) -> Result<Self, BadValue> {
        if !(0.01..=4096.0).contains(&cpus) {
            return bad(format!(
                "cpu {cpus}: write a number of processors from 0.01 to 4096, as in 1.5"
            ));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 10 to 4,096,000
        let milli = (cpus * 1000.0).round() as u32;
        Ok(Self { milli })
    }
}

impl FromStr for CpuQuota {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text.parse::<f64>() {
            Ok(cpus) => Self::from_cpus(cpus),
            Err(_) => bad(format!("cpu {text:?}: write a number of processors, as in 1.5")),
        }
    }
}

impl fmt::Display for CpuQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.milli) / 1000.0)
    }
}

/// A length of time as people write it: 30s, 500ms, 2m, 1h, or a number of
/// seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let millis = match unit {
            "ms" => 1,
            "" | "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => 0,
        };
        match number.parse::<u64>().ok().and_then(|n| n.checked_mul(millis)) {
            // A week is longer than any stop; more would be a slip of the pen.
            Some(ms) if millis != 0 && ms <= 7 * 24 * 3_600_000 => {
                Ok(Self(Duration::from_millis(ms)))
            }
            _ => bad(format!(
                "time {text:?}: write a number and ms, s, m or h, as in 30s, a week at most"
            )),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms.is_multiple_of(1000) { write!(f, "{}s", ms / 1000) } else { write!(f, "{ms}ms") }
    }
}

/// Implements serde by way of `FromStr` and `Display`.
macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a text or a number")
                    }
                    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<$type, E> {
                        v.parse().map_err(E::custom)
                    }
                    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<$type, E> {
                        v.to_string().parse().map_err(E::custom)
                    }
                    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<$type, E> {
                        v.to_string().parse().map_err(E::custom)
                    }
                }
                d.deserialize_any(Text)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
    )*};
}
as_text!(ByteSize, CpuQuota, Span, Tenant);

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Ids of one side of a user namespace must not be taken for the other's.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
ids!(
    /// A user id as the host sees it.
    HostUid,
    /// A group id as the host sees it.
    HostGid,
    /// A user or group id as the tenant sees it, inside its user namespace.
    NsId
);

/// Text made by the tenant or by strangers, made safe to show on a terminal:
/// control characters and what is not ASCII or a letter come out as escapes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric() {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    out
}

/// What an error says, without "(os error 13)": the number is for programs.
pub fn cause(error: &std::io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or_default();
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_names() {
        for good in ["a", "acme", "a-1", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<Tenant>().unwrap().as_str(), good);
        }
        for wrong in
            ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "..", "a b", "ä", "a\n", &"x".repeat(64)]
        {
            assert!(wrong.parse::<Tenant>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("0", 0, "0"),
            ("1000", 1000, "1000"),
            ("1K", 1024, "1K"),
            ("512M", 512 << 20, "512M"),
            ("400MiB", 400 << 20, "400M"),
            ("1024M", 1 << 30, "1G"),
            ("2T", 2 << 40, "2T"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.0, bytes);
            assert_eq!(size.to_string(), shown);
        }
        for wrong in ["", "M", "1.5G", "-1", "1X", "1 M", "99999999999999999999", "17179869184G"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn quotas_round_up_to_whole_processors() {
        for (text, us, ceil) in
            [("2", 200_000, 2), ("0.5", 50_000, 1), ("1.5", 150_000, 2), ("0.01", 1000, 1)]
        {
            let quota: CpuQuota = text.parse().unwrap();
            assert_eq!((quota.quota_us(), quota.ceil()), (us, ceil));
            assert_eq!(quota.to_string(), text);
        }
        for wrong in ["0", "0.001", "-1", "NaN", "inf", "many", "5000"] {
            assert!(wrong.parse::<CpuQuota>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn times() {
        for (text, ms, shown) in [
            ("30s", 30_000, "30s"),
            ("30", 30_000, "30s"),
            ("1500ms", 1500, "1500ms"),
            ("2m", 120_000, "120s"),
            ("0s", 0, "0s"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.0.as_millis(), ms);
            assert_eq!(span.to_string(), shown);
        }
        for wrong in ["", "s", "1d", "-1s", "1 s", "8000000000000000s", "10000h"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn foreign_text_cannot_steer_a_terminal() {
        assert_eq!(escape("a\x1b[2Jb\r\n\u{202e}é"), "a\\u{1b}[2Jb\\r\\n\\u{202e}é");
    }
}
