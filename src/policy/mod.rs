//! What people wrote: policies in TOML, their layers, and where each value
//! came from.
//!
//! Parsing asks nothing of the machine. Turning a policy into what will be done
//! is the business of `plan`.

mod binary;
mod egress;
mod file;
mod layers;

pub use binary::{GoRule, ModuleRule, ModuleRules, Sha256};
pub use egress::{Egress, NameRule, Network, Port};
pub use file::{
    BinaryFile, FilesystemFile, GoFile, LifecycleFile, LimitsFile, NetworkFile, PolicyFile,
    ProcessFile, RequireFile, SyscallsFile,
};
pub use layers::{
    DEFAULT_POLICY, Layer, Origin, Policy, PolicyError, Setting, Source, from_environment, load,
    sections, shipped,
};

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::value::{BadValue, ByteSize};

/// GOMEMLIMIT: computed, given, or left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemLimit {
    /// From memory.max, less head-room.
    Auto,
    /// Not set at all.
    Off,
    /// This many bytes.
    Given(ByteSize),
}

impl FromStr for MemLimit {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::Given).map_err(|_| {
                BadValue(format!(
                    "memlimit {text:?}: write \"auto\", \"off\" or a size such as \"400MiB\""
                ))
            }),
        }
    }
}

/// GOMAXPROCS: computed, given, or left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MaxProcs {
    /// From cpu.max, rounded up.
    Auto,
    /// Not set at all.
    Off,
    /// This many.
    Given(u32),
}

impl FromStr for MaxProcs {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        match (text, text.parse::<u32>()) {
            ("auto", _) => Ok(Self::Auto),
            ("off", _) => Ok(Self::Off),
            (_, Ok(n @ 1..=4096)) => Ok(Self::Given(n)),
            _ => Err(BadValue(format!(
                "maxprocs {text:?}: write \"auto\", \"off\" or a number from 1 to 4096"
            ))),
        }
    }
}

/// GOTRACEBACK: what a Go program prints when it dies, by the words of
/// runtime's documentation, "Environment Variables".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Traceback {
    /// No goroutine.
    None,
    /// The one that failed; all of them on SIGQUIT. What Go does by itself.
    Single,
    /// Every one of the program's.
    All,
    /// Those of the runtime too.
    System,
    /// The same, and it ends by SIGABRT, which dumps core where that is allowed.
    Crash,
}

impl fmt::Display for Traceback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Single => "single",
            Self::All => "all",
            Self::System => "system",
            Self::Crash => "crash",
        })
    }
}

/// The tenant's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// A namespace of its own with nothing in it but `lo`.
    Private,
    /// The host's. A choice that has to be written.
    Host,
    /// A namespace that somebody else has made, by its path: ip-netns(8).
    Named(PathBuf),
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private => f.write_str("private"),
            Self::Host => f.write_str("host"),
            Self::Named(path) => write!(f, "ns:{}", path.display()),
        }
    }
}

impl FromStr for NetworkMode {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "private" => Ok(Self::Private),
            "host" => Ok(Self::Host),
            _ => match text.strip_prefix("ns:") {
                Some(path) if path.starts_with('/') && !path.contains('\0') => {
                    Ok(Self::Named(PathBuf::from(path)))
                }
                _ => Err(BadValue(format!(
                    "network {text:?}: write private, host or ns:PATH, as in ns:/run/netns/acme"
                ))),
            },
        }
    }
}

/// When a tenant counts as started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ready {
    /// As soon as the binary runs.
    Exec,
    /// When it first listens on a declared listener.
    Listen,
}

/// What becomes of a call that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDeny {
    /// The caller gets its errno from the broker, which records the call.
    Log,
    /// The caller gets its errno from the kernel, and nothing is said.
    Errno,
    /// The process is ended by SIGSYS, except where a call is unknown or
    /// answered ENOSYS, because honest programs try those.
    Kill,
}

/// Whether a tenant may do what some honest programs need and most do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permit {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

/// Whether a protection has to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// Without it the start fails.
    Strict,
    /// Without it the start says what is missing and goes on.
    BestEffort,
}

impl FromStr for Need {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "strict" => Ok(Self::Strict),
            "best-effort" => Ok(Self::BestEffort),
            _ => Err(BadValue(format!("{text:?}: write strict or best-effort"))),
        }
    }
}

/// Where a declared listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A unix stream socket at an absolute path.
    Unix {
        /// Where the socket file is made.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The name of the group that owns it.
        group: Option<String>,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket the tenant is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name in LISTEN_FDNAMES.
    pub name: String,
    /// Where it listens.
    pub address: Address,
}

/// Sockets made without a mode are for their owner and group, as nginx in the
/// socket's group needs it.
const DEFAULT_SOCKET_MODE: u32 = 0o660;

/// The name systemd gives a socket that has none: sd_listen_fds(3).
const DEFAULT_NAME: &str = "unknown";

impl FromStr for Listener {
    type Err = BadValue;
    /// `[NAME=]tcp:HOST:PORT`, `[NAME=]unix:PATH` or `PORT`, which is on the
    /// loopback address: a proxy stands in front.
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let wrong = |why: &str| {
            BadValue(format!(
                "listen {text:?}: {why}; write [NAME=]tcp:HOST:PORT, [NAME=]unix:PATH or PORT, \
                 as in 8080, tcp:0.0.0.0:80, tcp:[::1]:8080 or web=unix:/run/acme.sock"
            ))
        };
        if let Ok(port) = text.parse::<u16>() {
            return Ok(Self {
                name: DEFAULT_NAME.to_owned(),
                address: Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port))),
            });
        }
        // A unix path may hold a '=', so only one in front of the first ':' counts.
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) if !name.contains(':') => (name, rest),
            _ => (DEFAULT_NAME, text),
        };
        check_name(name)?;
        let address = if let Some(address) = rest.strip_prefix("tcp:") {
            let address = match address.strip_prefix("localhost:") {
                Some(port) => format!("127.0.0.1:{port}"),
                None => address.to_owned(),
            };
            // A name would need a resolver, which a static executable does not
            // have and a sandbox launcher should not ask.
            Address::Tcp(
                address
                    .parse()
                    .map_err(|_| wrong("HOST is an address and not a name, IPv6 in brackets"))?,
            )
        } else if let Some(path) = rest.strip_prefix("unix:") {
            unix_address(PathBuf::from(path), DEFAULT_SOCKET_MODE, None)?
        } else {
            return Err(wrong("neither tcp: nor unix: nor a port"));
        };
        Ok(Self { name: name.to_owned(), address })
    }
}

/// A name as LISTEN_FDNAMES may carry it: no colon, no control character, 1 to
/// 255 bytes (sd_listen_fds(3)); we also leave out what looks like a flag.
fn check_name(name: &str) -> Result<(), BadValue> {
    let fits = (1..=255).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_graphic() && c != b':' && c != b'=');
    if fits {
        Ok(())
    } else {
        Err(BadValue(format!(
            "listener name {name:?}: 1 to 255 printable ASCII characters without ':' and '='"
        )))
    }
}

fn unix_address(path: PathBuf, mode: u32, group: Option<String>) -> Result<Address, BadValue> {
    // sockaddr_un has 108 bytes and we want the terminating NUL: unix(7).
    let length = path.as_os_str().len();
    if !path.is_absolute() || length > 107 {
        return Err(BadValue(format!(
            "unix socket {}: write an absolute path of at most 107 bytes",
            path.display()
        )));
    }
    if mode > 0o777 {
        return Err(BadValue(format!("mode {mode:o}: write permission bits such as \"0660\"")));
    }
    Ok(Address::Unix { path, mode, group })
}

impl<'de> Deserialize<'de> for Listener {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            name: Option<String>,
            unix: Option<PathBuf>,
            tcp: Option<String>,
            mode: Option<String>,
            group: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a text such as \"http=tcp:127.0.0.1:8080\", a port, or a table with tcp or unix, and name, mode, group"
        )]
        enum Form {
            Port(u16),
            Text(String),
            Table(Table),
        }
        let parsed = match Form::deserialize(d)? {
            Form::Port(port) => port.to_string().parse(),
            Form::Text(text) => text.parse(),
            Form::Table(table) => {
                table_listener(table.name, table.tcp, table.unix, table.mode, table.group)
            }
        };
        parsed.map_err(serde::de::Error::custom)
    }
}

fn table_listener(
    name: Option<String>,
    tcp: Option<String>,
    unix: Option<PathBuf>,
    mode: Option<String>,
    group: Option<String>,
) -> Result<Listener, BadValue> {
    let name = name.unwrap_or_else(|| DEFAULT_NAME.to_owned());
    check_name(&name)?;
    match (tcp, unix) {
        (Some(tcp), None) if mode.is_none() && group.is_none() => {
            format!("{name}=tcp:{tcp}").parse()
        }
        (None, Some(path)) => {
            let mode = match mode {
                None => DEFAULT_SOCKET_MODE,
                Some(text) => u32::from_str_radix(&text, 8).map_err(|_| {
                    BadValue(format!("mode {text:?}: write octal permission bits such as \"0660\""))
                })?,
            };
            Ok(Listener { name, address: unix_address(path, mode, group)? })
        }
        _ => Err(BadValue(
            "a listener table has either tcp = \"HOST:PORT\" or unix = \"PATH\", and mode and group only with unix".to_owned(),
        )),
    }
}

/// A host path that the tenant sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: PathBuf,
}

impl FromStr for Bind {
    type Err = BadValue;
    /// `HOST:INSIDE`, or one path for both.
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (source, target) = text.split_once(':').unwrap_or((text, text));
        for path in [source, target] {
            let clean = path.starts_with('/')
                && !path.contains(['\0', '\n'])
                && path.split('/').all(|part| part != "." && part != "..");
            if !clean {
                return Err(BadValue(format!(
                    "bind {text:?}: write HOST:INSIDE, both absolute and without . or .. in them"
                )));
            }
        }
        // Components normalises doubled and trailing slashes.
        Ok(Self {
            source: PathBuf::from(source).components().collect(),
            target: PathBuf::from(target).components().collect(),
        })
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source.display(), self.target.display())
    }
}

macro_rules! deserialize_from_text {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Form { Number(i64), Text(String) }
                let text = match Form::deserialize(d)? {
                    Form::Number(n) => n.to_string(),
                    Form::Text(text) => text,
                };
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
deserialize_from_text!(Bind, Egress, MemLimit, MaxProcs, NetworkMode);

/// Environment variables in the order of their names.
pub type Environment = BTreeMap<String, String>;

/// Checks `K=V` as `--env` takes it.
///
/// # Errors
/// No '=', or a name that is not a POSIX environment variable name.
pub fn parse_assignment(text: &str) -> Result<(String, String), BadValue> {
    match text.split_once('=') {
        Some((name, value)) if is_variable(name) && !value.contains('\0') => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err(BadValue(format!("environment {text:?}: write NAME=VALUE"))),
    }
}

/// Whether `name` is one that POSIX allows for an environment variable.
pub fn is_variable(name: &str) -> bool {
    name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        && name.bytes().next().is_some_and(|c| !c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(text: &str) -> Listener {
        text.parse().unwrap()
    }

    #[test]
    fn listeners_in_every_spelling() {
        assert_eq!(listener("8080"), listener("tcp:127.0.0.1:8080"));
        assert_eq!(listener("8080"), listener("tcp:localhost:8080"));
        assert_eq!(listener("tcp:[::1]:80").address, Address::Tcp("[::1]:80".parse().unwrap()));
        assert_eq!(listener("web=tcp:0.0.0.0:0").name, "web");
        let unix = listener("web=unix:/run/a=b.sock");
        assert_eq!(unix.name, "web");
        assert_eq!(unix.address.to_string(), "unix:/run/a=b.sock");
        assert_eq!(listener("unix:/run/a=b.sock").name, "unknown");
    }

    #[test]
    fn listeners_that_are_none() {
        for wrong in [
            "",
            "http",
            "tcp:80",
            "tcp:example.com:80",
            "tcp:::1:80",
            "udp:1.2.3.4:5",
            "unix:relative",
            "99999",
            "=tcp:127.0.0.1:1",
            "a:b=tcp:127.0.0.1:1",
            &format!("unix:/{}", "x".repeat(107)),
        ] {
            let error = wrong.parse::<Listener>().unwrap_err().to_string();
            assert!(error.contains("write") || error.contains("name"), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn binds_are_absolute_and_clean() {
        let bind: Bind = "/srv//acme/:/data/".parse().unwrap();
        assert_eq!(bind.to_string(), "/srv/acme:/data");
        assert_eq!("/opt".parse::<Bind>().unwrap().to_string(), "/opt:/opt");
        for wrong in ["", "srv:/data", "/srv:data", "/srv/../etc:/x", "/a:/b/..", "/a:/./b"] {
            assert!(wrong.parse::<Bind>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn assignments() {
        assert_eq!(parse_assignment("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert_eq!(parse_assignment("A=").unwrap(), ("A".into(), String::new()));
        for wrong in ["", "A", "=x", "1A=x", "A B=x", "A-B=x"] {
            assert!(parse_assignment(wrong).is_err(), "{wrong:?}");
        }
    }
}
