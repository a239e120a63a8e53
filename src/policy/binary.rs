//! `[binary]`: what a binary has to be before it is started.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::golang::{Bounds, GoVersion, ModuleVersion};
use crate::value::BadValue;

/// The SHA-256 of a file, in 64 hexadecimal digits as sha256sum(1) prints it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256(pub [u8; 32]);

impl FromStr for Sha256 {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let wrong =
            || BadValue(format!("sha256 {text:?}: write 64 hexadecimal digits, as sha256sum does"));
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut sum = [0; 32];
        for (byte, at) in sum.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(sum))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Releases of Go, as in `>=1.21` or `>=1.21, <1.28`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoRule {
    text: String,
    bounds: Bounds<GoVersion>,
}

impl GoRule {
    /// Whether `version` is one of them.
    pub fn holds(&self, version: &GoVersion) -> bool {
        self.bounds.hold(version)
    }
}

impl FromStr for GoRule {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bounds = Bounds::parse(text, GoVersion::parse).ok_or_else(|| {
            BadValue(format!(
                "go {text:?}: write >=, >, <=, < or = and a release, as in \">=1.21\" or \">=1.21, <1.28\""
            ))
        })?;
        Ok(Self { text: text.to_owned(), bounds })
    }
}

impl fmt::Display for GoRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Modules, as in `golang.org/x/net < 0.17.0`, `example.com/lib` (every version)
/// or `example.com/...` (that module and all below that path).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleRule {
    text: String,
    path: String,
    below: bool,
    bounds: Option<Bounds<ModuleVersion>>,
}

impl ModuleRule {
    /// Whether it is about the module of this path.
    pub fn names(&self, path: &str) -> bool {
        match path.strip_prefix(&self.path) {
            Some("") => true,
            Some(rest) => self.below && rest.starts_with('/'),
            None => false,
        }
    }

    /// Whether a version of it is meant; `None` where that cannot be said,
    /// because `version` is none that has an order, as `(devel)`.
    pub fn holds(&self, version: &str) -> Option<bool> {
        match &self.bounds {
            None => Some(true),
            Some(bounds) => ModuleVersion::parse(version).map(|version| bounds.hold(&version)),
        }
    }
}

impl FromStr for ModuleRule {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let wrong = || {
            BadValue(format!(
                "module {text:?}: write a path, and perhaps bounds, as in \"golang.org/x/net < 0.17.0\" or \"example.com/...\""
            ))
        };
        let end = text.find(['<', '>', '=']).unwrap_or(text.len());
        let (path, bounds) = text.split_at(end);
        let bounds = match bounds {
            "" => None,
            _ => Some(Bounds::parse(bounds, ModuleVersion::parse).ok_or_else(wrong)?),
        };
        let path = path.trim_end();
        let (path, below) = match path.strip_suffix("/...") {
            Some(path) => (path, true),
            None => (path, false),
        };
        // Characters of a module path: Go modules reference, "Module paths".
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~/!".contains(&b);
        if path.is_empty() || path.contains("...") || !path.bytes().all(fits) {
            return Err(wrong());
        }
        Ok(Self { text: text.to_owned(), path: path.to_owned(), below, bounds })
    }
}

impl fmt::Display for ModuleRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `[binary.modules]`: which may be in it, and which may not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModuleRules {
    /// Nothing but these.
    pub allow: Option<Vec<ModuleRule>>,
    /// None of these.
    pub deny: Option<Vec<ModuleRule>>,
}

macro_rules! deserialize_from_str {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
deserialize_from_str!(Sha256, GoRule, ModuleRule);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums() {
        let text = "00ff".repeat(16);
        assert_eq!(text.parse::<Sha256>().unwrap().to_string(), text);
        assert_eq!(text.to_uppercase().parse::<Sha256>().unwrap().to_string(), text);
        for wrong in ["", "0", &"0".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
            assert!(wrong.parse::<Sha256>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn rules_about_modules() {
        let rule = |text: &str| text.parse::<ModuleRule>().unwrap();
        let old = rule("golang.org/x/net < 0.17.0");
        assert!(old.names("golang.org/x/net"));
        assert!(!old.names("golang.org/x/net/v2") && !old.names("golang.org/x/network"));
        assert_eq!(old.holds("v0.16.9"), Some(true));
        assert_eq!(old.holds("v0.17.0-rc.1"), Some(true), "before 0.17.0");
        assert_eq!(old.holds("v0.0.0-20200501145240-bc7a7d42d5c3"), Some(true));
        assert_eq!(old.holds("v0.17.0"), Some(false));
        assert_eq!(old.holds("(devel)"), None);
        assert_eq!(old.holds(""), None);
        let all = rule("example.com/...");
        assert!(all.names("example.com") && all.names("example.com/a/b"));
        assert!(!all.names("example.comet/a"));
        assert_eq!(all.holds("(devel)"), Some(true));
        assert_eq!(rule("a.b/c>=v1.2.0,<v1.3").holds("v1.2.9"), Some(true));
        for wrong in ["", "< 1.0.0", "a b", "a/.../b", "a <", "a < x", "a 1.0", "...", "a;b"] {
            let error = wrong.parse::<ModuleRule>().unwrap_err().to_string();
            assert!(error.contains("write a path"), "{wrong}: {error}");
        }
    }

    #[test]
    fn releases() {
        let rule: GoRule = ">=1.21, <1.28".parse().unwrap();
        assert!(rule.holds(&GoVersion::of_binary("go1.27.3").unwrap()));
        assert!(!rule.holds(&GoVersion::of_binary("go1.19.8").unwrap()));
        assert!("1.21".parse::<GoRule>().unwrap_err().to_string().contains(">=1.21"));
    }
}
