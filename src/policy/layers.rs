//! Layers of policy, later wins, and where each value came from:
//! built-in defaults, named policy, the tenant's file, environment, flags.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{
    Bind, Egress, Environment, GoRule, Listener, MaxProcs, MemLimit, ModuleRules, Need,
    NetworkMode, OnDeny, Permit, PolicyFile, Ready, Sha256, Traceback,
};
use crate::seccomp::oci;
use crate::value::{ByteSize, CpuQuota, Span};

/// The policies that are compiled in, by name.
pub fn shipped() -> &'static [(&'static str, &'static str)] {
    &[
        ("web", include_str!("../../policies/web.toml")),
        ("job", include_str!("../../policies/job.toml")),
        ("strict", include_str!("../../policies/strict.toml")),
    ]
}

/// What people write where nothing is chosen.
pub const DEFAULT_POLICY: &str = "web";

/// Where a layer was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Written in the program.
    BuiltIn,
    /// A policy that is compiled in.
    Shipped(&'static str),
    /// A file.
    File(PathBuf),
    /// `GOSANDBOX_*`
    Environment,
    /// The command line.
    Flags,
}

/// Where one value came from, with the key as it is spelled there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    source: Source,
    key: &'static str,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Environment => f.write_str(&variable(self.key)),
            other => other.fmt(f),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in default"),
            Self::Shipped(name) => write!(f, "policy {name}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment => f.write_str("environment"),
            Self::Flags => f.write_str("command line"),
        }
    }
}

/// `limits.memory` is GOSANDBOX_LIMITS_MEMORY.
fn variable(key: &str) -> String {
    format!("GOSANDBOX_{}", key.replace('.', "_").to_uppercase())
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub origin: Origin,
}

impl<T: Default> Setting<T> {
    /// Takes back what was written, because of what `source` says.
    fn clear(&mut self, source: &Source) {
        self.value = T::default();
        self.origin.source = source.clone();
    }
}

/// One layer: what was written, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Where.
    pub source: Source,
    /// What.
    pub file: PolicyFile,
}

/// A key as it is written: one that is a word of Rust has `_` after it here.
const fn key(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [.., b'_'] => name.split_at(name.len() - 1).0,
        _ => name,
    }
}

/// Names every setting once: section, key, type, and what it is if nobody says.
macro_rules! settings {
    ($( $section:ident { $( $key:ident : $type:ty = $default:expr ; )* } )*) => {
        /// The layers laid over each other.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Policy {
            $( #[doc = concat!("`[", stringify!($section), "]`")] pub $section: sections::$section, )*
            /// What the file of `syscalls.oci` says.
            pub profile: Option<oci::Document>,
        }

        /// One structure a section.
        #[allow(non_camel_case_types)]
        pub mod sections {
            use super::*;
            $(
                #[doc = concat!("`[", stringify!($section), "]`")]
                #[derive(Clone, Debug, PartialEq)]
                pub struct $section {
                    $( #[doc = concat!("`", stringify!($section), ".", stringify!($key), "`")] pub $key: Setting<$type>, )*
                }
            )*
        }

        impl Policy {
            /// The built-in defaults.
            pub fn built_in() -> Self {
                Self {
                    $( $section: sections::$section {
                        $( $key: Setting {
                            value: $default,
                            origin: Origin { source: Source::BuiltIn, key: key(concat!(stringify!($section), ".", stringify!($key))) },
                        }, )*
                    }, )*
                    profile: None,
                }
            }

            /// Lays `layer` over this policy.
            pub fn apply(&mut self, layer: Layer) {
                let Layer { source, file } = layer;
                let instead = (file.syscalls.groups.is_some(), file.syscalls.oci.is_some());
                $( $(
                    if let Some(value) = file.$section.$key {
                        let origin = Origin { source: source.clone(), key: self.$section.$key.origin.key };
                        self.$section.$key.value.lay(value.into());
                        self.$section.$key.origin = origin;
                    }
                )* )*
                // A profile is instead of groups: whichever was written last.
                match instead {
                    (true, false) => self.syscalls.oci.clear(&source),
                    (false, true) => self.syscalls.groups.clear(&source),
                    (true, true) | (false, false) => {}
                }
            }

            /// Every setting as (key, value, origin), in the order of the schema.
            pub fn origins(&self) -> Vec<(&'static str, String, String)> {
                vec![ $( $( (
                    self.$section.$key.origin.key,
                    self.$section.$key.value.show(),
                    self.$section.$key.origin.to_string(),
                ), )* )* ]
            }
        }

        /// Every key of the schema as `section.key`.
        const KEYS: &[&str] = &[ $( $( key(concat!(stringify!($section), ".", stringify!($key))), )* )* ];
    };
}

settings! {
    binary {
        sha256: Option<Sha256> = None;
        go: Option<GoRule> = None;
        static_: bool = false;
        vcs_clean: bool = false;
        modules: ModuleRules = ModuleRules::default();
        replace: bool = true;
        incompatible: bool = true;
        pseudo_version: bool = true;
        sums: Option<PathBuf> = None;
    }
    process {
        args: Vec<String> = Vec::new();
        env: Environment = Environment::new();
        env_file: Option<PathBuf> = None;
        env_pass: Vec<String> = Vec::new();
        workdir: PathBuf = PathBuf::from("/");
        uid: u32 = 1000;
        write_execute: Permit = Permit::Allow;
        memfd_execute: Permit = Permit::Deny;
    }
    limits {
        memory: ByteSize = ByteSize(512 << 20);
        memory_high: Option<ByteSize> = None;
        swap: ByteSize = ByteSize(0);
        cpu: CpuQuota = CpuQuota { milli: 2000 };
        cpu_weight: Option<u32> = None;
        pids: u32 = 512;
        open_files: u32 = 65536;
        core: ByteSize = ByteSize(0);
        tmp: ByteSize = ByteSize(64 << 20);
        shm: ByteSize = ByteSize(16 << 20);
    }
    go {
        memlimit: MemLimit = MemLimit::Auto;
        maxprocs: MaxProcs = MaxProcs::Auto;
        traceback: Option<Traceback> = None;
    }
    filesystem {
        read_only: Vec<Bind> = Vec::new();
        read_write: Vec<Bind> = Vec::new();
    }
    network {
        mode: NetworkMode = NetworkMode::Private;
        listen: Vec<Listener> = Vec::new();
        egress: Vec<Egress> = Vec::new();
    }
    syscalls {
        groups: Vec<String> = Vec::new();
        oci: Option<PathBuf> = None;
        allow: Vec<String> = Vec::new();
        deny: Vec<String> = Vec::new();
        kill: Vec<String> = Vec::new();
        on_deny: OnDeny = OnDeny::Log;
    }
    lifecycle {
        ready: Ready = Ready::Exec;
        grace: Span = Span(std::time::Duration::from_secs(30));
    }
    require {
        cgroup: Need = Need::Strict;
        landlock: Need = Need::Strict;
    }
}

/// How a later value meets an earlier one: it takes its place, except that
/// variables and binds are laid over each other by name and by target, so that
/// a flag adds to what the policy gives and does not silently take it away.
trait Lay: Sized {
    fn lay(&mut self, later: Self) {
        *self = later;
    }
    fn show(&self) -> String;
}

macro_rules! replaced {
    ($($type:ty => |$v:ident| $show:expr;)*) => {$(
        impl Lay for $type {
            fn show(&self) -> String { let $v = self; $show }
        }
    )*};
}
replaced! {
    u32 => |v| v.to_string();
    bool => |v| v.to_string();
    PathBuf => |v| v.display().to_string();
    ByteSize => |v| v.to_string();
    CpuQuota => |v| v.to_string();
    Span => |v| v.to_string();
    NetworkMode => |v| v.to_string();
    Ready => |v| format!("{v:?}").to_lowercase();
    OnDeny => |v| format!("{v:?}").to_lowercase();
    Permit => |v| format!("{v:?}").to_lowercase();
    Need => |v| match v { Need::Strict => "strict".into(), Need::BestEffort => "best-effort".into() };
    MemLimit => |v| match v { MemLimit::Auto => "auto".into(), MemLimit::Off => "off".into(), MemLimit::Given(size) => size.to_string() };
    MaxProcs => |v| match v { MaxProcs::Auto => "auto".into(), MaxProcs::Off => "off".into(), MaxProcs::Given(n) => n.to_string() };
    Vec<String> => |v| v.join(" ");
    Vec<Listener> => |v| v.iter().map(|l| format!("{}={}", l.name, l.address)).collect::<Vec<_>>().join(" ");
    Vec<Egress> => |v| v.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    Option<PathBuf> => |v| v.as_ref().map_or("unset".into(), |p| p.display().to_string());
    Option<ByteSize> => |v| v.map_or("unset".into(), |s| s.to_string());
    Option<Sha256> => |v| v.map_or("unset".into(), |s| s.to_string());
    Option<GoRule> => |v| v.as_ref().map_or("unset".into(), ToString::to_string);
    Option<Traceback> => |v| v.map_or("unset".into(), |t| t.to_string());
    Option<u32> => |v| v.map_or("unset".into(), |s| s.to_string());
}

impl Lay for Environment {
    fn lay(&mut self, later: Self) {
        self.extend(later);
    }
    fn show(&self) -> String {
        // Values may be secrets; names are enough to find where they come from.
        self.keys().cloned().collect::<Vec<_>>().join(" ")
    }
}

/// List by list, so that a tenant's own `deny` leaves the `allow` of its policy.
impl Lay for ModuleRules {
    fn lay(&mut self, later: Self) {
        self.allow = later.allow.or(self.allow.take());
        self.deny = later.deny.or(self.deny.take());
    }
    fn show(&self) -> String {
        let list = |name: &str, rules: &Option<Vec<super::ModuleRule>>| {
            let rules = rules.as_ref()?.iter().map(ToString::to_string);
            Some(format!("{name}: {}", rules.collect::<Vec<_>>().join("; ")))
        };
        let lists = [list("allow", &self.allow), list("deny", &self.deny)];
        let shown: Vec<_> = lists.into_iter().flatten().collect();
        if shown.is_empty() { "unset".into() } else { shown.join(", ") }
    }
}

impl Policy {
    /// Whether anything is asked of the binary, which is then executed from a copy
    /// that nobody can write.
    pub fn asks_of_binary(&self) -> bool {
        let b = &self.binary;
        let forbids = |may: &Setting<bool>| !may.value;
        b.sha256.value.is_some()
            || b.go.value.is_some()
            || b.static_.value
            || b.vcs_clean.value
            || b.modules.value != ModuleRules::default()
            || [&b.replace, &b.incompatible, &b.pseudo_version].into_iter().any(forbids)
            || b.sums.value.is_some()
    }
}

impl Lay for Vec<Bind> {
    fn lay(&mut self, later: Self) {
        self.retain(|old| later.iter().all(|new| new.target != old.target));
        self.extend(later);
    }
    fn show(&self) -> String {
        self.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

/// Why a policy could not be had. Each says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It does not parse.
    #[error("{place}:{line}:{column}: {message}")]
    Parse {
        /// The file.
        place: String,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
        /// What is wrong, with a suggestion.
        message: String,
    },
    /// It cannot be read.
    #[error("{}: {}", .0.display(), crate::value::cause(.1))]
    Read(PathBuf, std::io::Error),
    /// No shipped policy has this name.
    #[error(
        "policy {0:?}: neither a shipped policy ({1}) nor a path (write ./{0} for a file here)"
    )]
    Unknown(String, String),
    /// An OCI profile does not say what can be done.
    #[error("{}: {}", .0.display(), .1)]
    Profile(PathBuf, oci::OciError),
    /// Two settings that exclude each other, in one place.
    #[error("{0}: syscalls.oci is instead of syscalls.groups (write one of them)")]
    Both(Source),
    /// `extends` comes back to where it began.
    #[error("{0}: extends itself by way of other policies")]
    Loop(String),
    /// A GOSANDBOX_ variable.
    #[error("{0}: {1}")]
    Variable(String, String),
}

/// Reads the layers from the least to the greatest and lays them over each
/// other.
///
/// `named` is `--policy`; `tenant_file` is used if it exists; `privileged` asks
/// for the check that nobody but root and its owner may write a file.
///
/// # Errors
/// [`PolicyError`].
pub fn load(
    named: Option<&str>,
    tenant_file: Option<&Path>,
    over: Vec<Layer>,
    privileged: bool,
) -> Result<Policy, PolicyError> {
    let mut top = Vec::new();
    if let Some(path) = tenant_file {
        match read_file(path, privileged) {
            Err(PolicyError::Read(_, e)) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => top.push(other?),
        }
    }
    let chosen = named
        .or_else(|| top.first().and_then(|layer| layer.file.extends.as_deref()))
        .unwrap_or(DEFAULT_POLICY)
        .to_owned();

    // From the chosen one up its parents; applied the other way round.
    let mut chain: Vec<Layer> = Vec::new();
    let mut next = Some(chosen);
    while let Some(name) = next {
        let layer = find(&name, chain.last(), privileged)?;
        // A longer chain is a circle in another spelling, as ../x/a.toml in x.
        if chain.iter().any(|seen| seen.source == layer.source) || chain.len() > 16 {
            return Err(PolicyError::Loop(name));
        }
        // A file that extends nothing changes the default: one without groups of
        // system calls could not start anything.
        next = match (&layer.source, &layer.file.extends) {
            (_, Some(parent)) => Some(parent.clone()),
            (Source::File(_), None) => Some(DEFAULT_POLICY.to_owned()),
            _ => None,
        };
        chain.push(layer);
    }
    let mut policy = Policy::built_in();
    for mut layer in chain.into_iter().rev().chain(top).chain(over) {
        let written = &mut layer.file.syscalls;
        if written.groups.is_some() && written.oci.is_some() {
            return Err(PolicyError::Both(layer.source));
        }
        written.oci = written.oci.take().map(|path| beside(&layer.source, path));
        policy.apply(layer);
    }
    if let Some(path) = &policy.syscalls.oci.value {
        let text = read_text(path, privileged)?;
        let profile = oci::parse(&text).map_err(|e| PolicyError::Profile(path.clone(), e))?;
        policy.profile = Some(profile);
    }
    Ok(policy)
}

/// A path as it is written in `source`: from a file, it starts at its directory.
fn beside(source: &Source, path: PathBuf) -> PathBuf {
    let base = match source {
        Source::File(file) => file.parent().unwrap_or(Path::new(".")),
        _ => Path::new("."),
    };
    // Without "./" in front of what has it already.
    if base == Path::new(".") { path } else { base.join(path) }
}

/// A shipped policy by its name, or a file by a path with a slash in it; a
/// relative path in `extends` starts at the file that says it.
fn find(name: &str, said_by: Option<&Layer>, privileged: bool) -> Result<Layer, PolicyError> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        let path = match said_by {
            Some(layer) => beside(&layer.source, path),
            None => path,
        };
        return read_file(&path, privileged);
    }
    let (name, text) = shipped().iter().find(|(shipped, _)| *shipped == name).ok_or_else(|| {
        let all: Vec<_> = shipped().iter().map(|(name, _)| *name).collect();
        PolicyError::Unknown(name.to_owned(), all.join(", "))
    })?;
    Ok(Layer { source: Source::Shipped(name), file: parse(text, name)? })
}

fn read_file(path: &Path, privileged: bool) -> Result<Layer, PolicyError> {
    let text = read_text(path, privileged)?;
    Ok(Layer {
        source: Source::File(path.to_owned()),
        file: parse(&text, &path.display().to_string())?,
    })
}

fn read_text(path: &Path, privileged: bool) -> Result<String, PolicyError> {
    crate::host::read_trusted(path, privileged).map_err(|e| PolicyError::Read(path.to_owned(), e))
}

fn parse(text: &str, place: &str) -> Result<PolicyFile, PolicyError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = &text[..error.span().map_or(0, |span| span.start).min(text.len())];
        PolicyError::Parse {
            place: place.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.chars().rev().take_while(|c| *c != '\n').count() + 1,
            message: with_suggestion(error.message()),
        }
    })
}

/// Adds "did you mean" to serde's "unknown field `x`, expected one of `a`, `b`".
fn with_suggestion(message: &str) -> String {
    let message = message.trim_end().replace('\n', ", ");
    if !message.starts_with("unknown ") {
        return message;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(wrong) = quoted.next() else {
        return message;
    };
    let what = if message.starts_with("unknown variant") { "value" } else { "key" };
    let near = quoted
        .map(|known| (strsim::damerau_levenshtein(wrong, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min();
    match near {
        Some((_, known)) => {
            format!("unknown {what} `{wrong}` (did you mean `{known}`?)")
        }
        None => message.replacen("field", "key", 1).replacen("variant", "value", 1),
    }
}

/// The layer of `GOSANDBOX_SECTION_KEY` variables. The value is read as TOML
/// where it is that, and as a text otherwise. A variable whose first word is no
/// section is somebody else's and passed over; an unknown key of a section is
/// an error.
///
/// # Errors
/// [`PolicyError::Variable`].
pub fn from_environment(
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Layer, PolicyError> {
    let mut table = toml::Table::new();
    for (variable_name, value) in variables {
        let Some(rest) = variable_name.strip_prefix("GOSANDBOX_") else {
            continue;
        };
        let rest = rest.to_lowercase();
        let Some((section, key)) = rest.split_once('_') else {
            continue;
        };
        let in_section = |known: &&&str| known.split_once('.').is_some_and(|(s, _)| s == section);
        if !KEYS.iter().any(|known| in_section(&known)) {
            let sections = KEYS.iter().filter_map(|known| Some(known.split_once('.')?.0));
            let near = sections.into_iter().find(|s| strsim::levenshtein(s, section) <= 2);
            if let Some(near) = near.filter(|_| section.len() > 3) {
                let meant = variable(&format!("{near}.{key}"));
                return Err(PolicyError::Variable(
                    variable_name,
                    format!("no such setting (did you mean {meant}?)"),
                ));
            }
            continue;
        }
        if !KEYS.contains(&format!("{section}.{key}").as_str()) {
            let known: Vec<_> = KEYS.iter().filter(in_section).map(|key| variable(key)).collect();
            return Err(PolicyError::Variable(
                variable_name,
                format!("no such setting (there are {})", known.join(", ")),
            ));
        }
        let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
            .ok()
            .and_then(|mut parsed| parsed.remove("value"))
            .unwrap_or(toml::Value::String(value));
        // Each variable alone first, so that the error can name it.
        let single = toml::Table::from_iter([(
            section.to_owned(),
            toml::Value::Table(toml::Table::from_iter([(key.to_owned(), value.clone())])),
        )]);
        PolicyFile::deserialize(single)
            .map_err(|e| PolicyError::Variable(variable_name, e.message().to_owned()))?;
        if let toml::Value::Table(section) =
            table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()))
        {
            section.insert(key.to_owned(), value);
        }
    }
    let file = PolicyFile::deserialize(table)
        .map_err(|e| PolicyError::Variable("GOSANDBOX_*".to_owned(), e.message().to_owned()))?;
    Ok(Layer { source: Source::Environment, file })
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
