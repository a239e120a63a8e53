//! Versions as Go orders them: its releases (go/version) and those of modules
//! (semantic versions with a `v`, golang.org/x/mod/semver).

use std::cmp::Ordering;

/// A release of Go, as in `1.27.3` or `1.27rc1`. The order is that of
/// go/version: `1.21` < `1.21rc1` < `1.21.0` < `1.21.1`, and before 1.21 a
/// version without patch is its `.0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoVersion {
    major: u32,
    minor: u32,
    patch: Option<u32>,
    kind: String,
    pre: Option<u32>,
}

impl GoVersion {
    /// `1.27.3`, as people write it; `None` where it is no version.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, rest) = number(text)?;
        let mut version = Self { major, minor: 0, patch: Some(0), kind: String::new(), pre: None };
        let Some(rest) = rest.strip_prefix('.') else {
            return rest.is_empty().then_some(version);
        };
        let (minor, rest) = number(rest)?;
        version.minor = minor;
        if rest.is_empty() {
            version.patch = (minor < 21).then_some(0);
            return Some(version);
        }
        if let Some(patch) = rest.strip_prefix('.') {
            let (patch, rest) = number(patch)?;
            version.patch = Some(patch);
            return rest.is_empty().then_some(version);
        }
        version.patch = None;
        let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
        let (kind, pre) = rest.split_at(letters);
        kind.clone_into(&mut version.kind);
        if !pre.is_empty() {
            let (pre, rest) = number(pre)?;
            version.pre = rest.is_empty().then_some(pre);
            version.pre?;
        }
        (!kind.is_empty()).then_some(version)
    }

    /// What a binary says: `go1.27.3`, with a builder's suffix or experiments
    /// behind it (`go1.27.3-fips`, `go1.27.3 X:arenas`), or the tip, as in
    /// `devel go1.28-0123abc Tue …`, which counts as what comes before 1.28.
    pub fn of_binary(text: &str) -> Option<Self> {
        let text = text.strip_prefix("devel ").unwrap_or(text).strip_prefix("go")?;
        Self::parse(text.split(['-', ' ', '+']).next()?)
    }

    /// Whether it is at least `1.minor`, a pre-release of that included.
    pub fn at_least(&self, minor: u32) -> bool {
        (self.major, self.minor) >= (1, minor)
    }
}

/// Decimal digits without a leading zero, and what comes after.
fn number(text: &str) -> Option<(u32, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    if number.len() > 1 && number.starts_with('0') {
        return None;
    }
    Some((number.parse().ok()?, rest))
}

/// A module's version, as in `v1.2.3-rc.1+incompatible`. What follows `+` says
/// nothing of the order.
#[derive(Clone, Debug)]
pub struct ModuleVersion {
    core: [u64; 3],
    /// Empty for a release.
    pre: String,
    build: String,
}

impl ModuleVersion {
    /// With or without the `v`; `v1` and `v1.2` are `v1.0.0` and `v1.2.0`.
    /// `None` where it is no semantic version, as `(devel)`.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix('v').unwrap_or(text);
        let (rest, build) = match rest.split_once('+') {
            Some((rest, build)) => (rest, Some(build)),
            None => (rest, None),
        };
        let (numbers, pre) = match rest.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre)),
            None => (rest, None),
        };
        let parts: Vec<&str> = numbers.split('.').collect();
        if parts.len() > 3 || (parts.len() < 3 && (pre.is_some() || build.is_some())) {
            return None;
        }
        let mut core = [0; 3];
        for (slot, part) in core.iter_mut().zip(&parts) {
            *slot = Some(part).filter(|part| is_number(part))?.parse().ok()?;
        }
        let identifier = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let pre_fits = |pre: &str| {
            pre.split('.').all(|part| identifier(part) && (!digits(part) || is_number(part)))
        };
        if pre.is_some_and(|pre| !pre_fits(pre))
            || build.is_some_and(|build| !build.split('.').all(identifier))
        {
            return None;
        }
        Some(Self {
            core,
            pre: pre.unwrap_or_default().to_owned(),
            build: build.unwrap_or_default().to_owned(),
        })
    }

    /// A major version of 2 or more of a module that is not made for it.
    pub fn is_incompatible(&self) -> bool {
        self.build.split('.').any(|part| part == "incompatible")
    }

    /// A commit without a tag: `v0.0.0-yyyymmddhhmmss-abcdefabcdef`, or the same
    /// after a version it follows, `v1.2.4-0.…` or `v1.2.3-pre.0.…`: Go modules
    /// reference, "Pseudo-versions".
    pub fn is_pseudo(&self) -> bool {
        let Some((before, commit)) = self.pre.rsplit_once('-') else { return false };
        let time_at = before.len().saturating_sub(14);
        let Some((base, time)) = before.split_at_checked(time_at) else { return false };
        let whole = time.len() == 14 && time.bytes().all(|b| b.is_ascii_digit());
        let based = match base {
            "" => self.core[1..] == [0, 0],
            _ => base == "0." || base.ends_with(".0."),
        };
        whole && based && !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric())
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_digit())
        && (text.len() == 1 || !text.starts_with('0'))
}

impl Ord for ModuleVersion {
    /// Semantic Versioning 2.0.0, item 11.
    fn cmp(&self, other: &Self) -> Ordering {
        let pre = |a: &str, b: &str| match (a.is_empty(), b.is_empty()) {
            (true, true) => Ordering::Equal,
            // A release comes after what leads up to it.
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => a.split('.').map(Part).cmp(b.split('.').map(Part)),
        };
        self.core.cmp(&other.core).then_with(|| pre(&self.pre, &other.pre))
    }
}

impl PartialOrd for ModuleVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ModuleVersion {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for ModuleVersion {}

/// A part of a pre-release: numbers by value and before words.
#[derive(PartialEq, Eq)]
struct Part<'t>(&'t str);

impl Ord for Part<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.0, other.0);
        match (is_number(a), is_number(b)) {
            // Of any length, so by length and then by digits.
            (true, true) => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => a.cmp(b),
        }
    }
}

impl PartialOrd for Part<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Bounds such as `>= 1.2, < 1.5`, all of which have to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds<V>(Vec<(Bound, V)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    AtLeast,
    AtMost,
    Above,
    Below,
    Equal,
}

impl<V: Ord> Bounds<V> {
    /// Reads bounds between commas; `None` where one is none.
    pub fn parse(text: &str, version: impl Fn(&str) -> Option<V>) -> Option<Self> {
        let one = |part: &str| {
            let part = part.trim();
            let signs = [
                (">=", Bound::AtLeast),
                ("<=", Bound::AtMost),
                (">", Bound::Above),
                ("<", Bound::Below),
                ("=", Bound::Equal),
            ];
            let (bound, rest) = signs.into_iter().find_map(|(sign, bound)| {
                part.strip_prefix(sign).map(|rest| (bound, rest.trim_start()))
            })?;
            Some((bound, version(rest)?))
        };
        text.split(',').map(one).collect::<Option<_>>().map(Self)
    }

    /// Whether `version` is within all of them.
    pub fn hold(&self, version: &V) -> bool {
        self.0.iter().all(|(bound, limit)| match bound {
            Bound::AtLeast => version >= limit,
            Bound::AtMost => version <= limit,
            Bound::Above => version > limit,
            Bound::Below => version < limit,
            Bound::Equal => version == limit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_in_the_order_of_go() {
        // The examples of go/version's documentation, and tests/admission.rs
        // asks the library itself.
        let order = [
            "1",
            "1.1",
            "1.2",
            "1.19beta1",
            "1.19rc2",
            "1.19",
            "1.19.8",
            "1.20rc1",
            "1.20",
            "1.21",
            "1.21rc1",
            "1.21rc2",
            "1.21.0",
            "1.21.13",
            "1.27",
            "1.27.3",
            "2",
        ];
        for pair in order.windows(2) {
            let [a, b] = [0, 1].map(|i| GoVersion::parse(pair[i]).unwrap());
            assert!(a < b, "{pair:?}");
        }
        assert_eq!(GoVersion::parse("1.20"), GoVersion::parse("1.20.0"));
        for wrong in [
            "",
            "go1.20",
            "1.",
            "1.x",
            "01.2",
            "1.02",
            "1.2.",
            "1.2.3rc1",
            "1.2RC1",
            "1.2rc1x",
            "1.2.3.4",
            "99999999999",
        ] {
            assert_eq!(GoVersion::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_binaries_say() {
        for (said, version) in [
            ("go1.27.3", "1.27.3"),
            ("go1.27rc1", "1.27rc1"),
            ("go1.27.3 X:arenas,boringcrypto", "1.27.3"),
            ("go1.27.3-fips", "1.27.3"),
            ("go1.20.4 (Red Hat 1.20.4-1)", "1.20.4"),
            ("devel go1.28-0123abc Tue Nov 3 00:00:00 2026 +0000", "1.28"),
            ("go1.21-20230317-RC00 cl/517334204 +e7c8d0a", "1.21"),
        ] {
            assert_eq!(GoVersion::of_binary(said), GoVersion::parse(version), "{said}");
        }
        assert_eq!(GoVersion::of_binary("devel +0123abc Tue"), None);
        assert!(GoVersion::of_binary("go1.25rc1").unwrap().at_least(25));
        assert!(!GoVersion::of_binary("go1.24.9").unwrap().at_least(25));
    }

    #[test]
    fn modules_in_the_order_of_semantic_versions() {
        // Item 11 of Semantic Versioning 2.0.0, and pseudo-versions between.
        let order = [
            "v0.0.0-20190101000000-abcdefabcdef",
            "v0.0.0-20200101000000-000000000000",
            "v0.0.1",
            "v1.0.0-0.20200101000000-abcdefabcdef",
            "v1.0.0-alpha",
            "v1.0.0-alpha.1",
            "v1.0.0-alpha.beta",
            "v1.0.0-beta",
            "v1.0.0-beta.2",
            "v1.0.0-beta.11",
            "v1.0.0-rc.1",
            "v1.0.0",
            "v1.0.1-0.20200101000000-abcdefabcdef",
            "v1.0.1",
            "v1.2",
            "v1.10.0",
            "v2.0.0+incompatible",
            "v2.0.1-99999999999999999999999.1",
        ];
        for pair in order.windows(2) {
            let [a, b] = [0, 1].map(|i| ModuleVersion::parse(pair[i]).unwrap());
            assert!(a.cmp(&b) == Ordering::Less && b.cmp(&a) == Ordering::Greater, "{pair:?}");
        }
        assert_eq!(ModuleVersion::parse("1.2.3"), ModuleVersion::parse("v1.2.3+incompatible"));
        for wrong in [
            "",
            "v",
            "(devel)",
            "v1.",
            "v1.2-a",
            "v01.2.3",
            "v1.2.3.4",
            "v1.2.3-",
            "v1.2.3-01",
            "v1.2.3-a..b",
            "v1.2.3+",
            "v1.2.3+a_b",
            "v1.2.x",
            "vv1.2.3",
        ] {
            assert!(ModuleVersion::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn kinds_of_module_versions() {
        for (text, incompatible, pseudo) in [
            ("v1.2.3", false, false),
            ("v2.0.0+incompatible", true, false),
            ("v0.0.0-20200501145240-bc7a7d42d5c3", false, true),
            ("v4.0.0-20200501145240-bc7a7d42d5c3+incompatible", true, true),
            ("v1.2.4-0.20200501145240-bc7a7d42d5c3", false, true),
            ("v1.2.3-pre.0.20200501145240-bc7a7d42d5c3", false, true),
            ("v0.0.0-20250101000000-bc7a7d42d5c3+dirty", false, true),
            ("v1.2.3-20200501145240-bc7a7d42d5c3", false, false),
            ("v1.2.3-rc.1", false, false),
            ("v0.0.0-2020050114524-bc7a7d42d5c3", false, false),
        ] {
            let version = ModuleVersion::parse(text).unwrap();
            assert_eq!(
                (version.is_incompatible(), version.is_pseudo()),
                (incompatible, pseudo),
                "{text}"
            );
        }
    }

    #[test]
    fn bounds() {
        let bounds = |text: &str| Bounds::parse(text, GoVersion::parse);
        let go = |text: &str| GoVersion::parse(text).unwrap();
        for (text, inside, outside) in [
            (">=1.21", "1.21rc1", "1.20.14"),
            ("> 1.21.0", "1.21.1", "1.21.0"),
            ("<1.21", "1.20", "1.21"),
            ("<= 1.21.3", "1.21.3", "1.21.4"),
            ("=1.21.3", "1.21.3", "1.21.4"),
            (">=1.21, <1.23", "1.22.10", "1.23.1"),
        ] {
            let bounds = bounds(text).unwrap();
            assert!(bounds.hold(&go(inside)) && !bounds.hold(&go(outside)), "{text}");
        }
        for wrong in ["", "1.21", ">=", ">=x", "=>1.21", ">=1.21,", "~1.21"] {
            assert_eq!(bounds(wrong), None, "{wrong}");
        }
    }
}
