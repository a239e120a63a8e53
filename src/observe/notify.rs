//! sd_notify(3): tells the service manager that the tenant runs, or is ending,
//! and that the supervisor is not stuck.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The socket of NOTIFY_SOCKET; without one, nothing is sent.
#[derive(Debug, Default)]
pub struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    /// From the value of NOTIFY_SOCKET: a path, or `@` and an abstract name.
    pub fn new(socket: Option<OsString>) -> Self {
        let target = socket.and_then(|name| {
            let address = match name.as_bytes() {
                [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
                [b'/', ..] => SocketAddr::from_pathname(&name),
                _ => return None,
            };
            let socket = UnixDatagram::unbound().ok()?;
            // The manager's queue may be full; it is not worth waiting for.
            socket.set_nonblocking(true).ok()?;
            Some((socket, address.ok()?))
        });
        Self(target)
    }

    /// Sends `NAME=VALUE` lines. A manager that does not listen is no reason to
    /// do anything else, as sd_notify(3) advises.
    pub fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.0 {
            drop(socket.send_to_addr(message.as_bytes(), address));
        }
    }
}

/// How often the service manager wants to hear of us: half of WATCHDOG_USEC, as
/// sd_watchdog_enabled(3) advises. `None` where it does not, or means another
/// process by WATCHDOG_PID.
pub fn watchdog(variable: impl Fn(&str) -> Option<String>, own: u32) -> Option<Duration> {
    let micros: u64 = variable("WATCHDOG_USEC")?.parse().ok()?;
    let meant = variable("WATCHDOG_PID").is_none_or(|pid| pid.parse() == Ok(own));
    (meant && micros > 0).then(|| Duration::from_micros(micros / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_by_path_and_by_name() {
        let dir = crate::testing::TempDir::new("notify");
        let path = dir.path().join("s");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("gosandbox-test-{}", std::process::id());
        let by_name =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (value, socket) in
            [(path.into_os_string(), by_path), (format!("@{name}").into(), by_name)]
        {
            Notifier::new(Some(value)).send("READY=1");
            let mut bytes = [0; 64];
            let length = socket.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"READY=1");
        }
    }

    #[test]
    fn nobody_there_is_no_error() {
        for value in
            [None, Some("/nonexistent/socket".into()), Some("vsock:2:1".into()), Some("".into())]
        {
            Notifier::new(value).send("READY=1");
        }
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_it_asks_and_only_if_it_is_ours() {
        let ask = |usec: Option<&str>, pid: Option<&str>| {
            let (usec, pid) = (usec.map(str::to_owned), pid.map(str::to_owned));
            watchdog(|name| if name == "WATCHDOG_USEC" { usec.clone() } else { pid.clone() }, 7)
        };
        assert_eq!(ask(Some("2000000"), Some("7")), Some(Duration::from_secs(1)));
        assert_eq!(ask(Some("2000000"), None), Some(Duration::from_secs(1)));
        assert_eq!(ask(Some("2000000"), Some("8")), None);
        assert_eq!(ask(Some("0"), None), None);
        assert_eq!(ask(Some("soon"), None), None);
        assert_eq!(ask(None, None), None);
    }
}
