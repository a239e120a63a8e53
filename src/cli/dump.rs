//! `gosandbox dump`: the goroutines of a tenant that runs.
//!
//! Go's runtime prints them on SIGQUIT and then ends the program; there is no
//! other signal for it (os/signal, "Default behavior of signals in Go
//! programs"). The runtime catches SIGQUIT in every Go program, so from outside
//! nobody can tell one that handles it itself. So nothing is sent unless
//! `--stop` says that the end is wanted. Without it the tenant is asked over its
//! own declared listeners, where net/http/pprof answers.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Status;
use crate::observe::sink::say;
use crate::observe::state_file::{self, State};
use crate::policy::{Address, Listener};
use crate::sys;
use crate::value::{Tenant, cause, escape};

/// Flags of `dump`.
#[derive(Debug, Args)]
pub(super) struct DumpOptions {
    /// Send SIGQUIT: the goroutines go to the tenant's stderr, and it ends
    #[arg(long)]
    stop: bool,
    /// The tenant
    #[arg(value_name = "TENANT")]
    tenant: Tenant,
}

/// How long a tenant may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// More is not read of an answer: some hundred thousand goroutines.
const MOST: u64 = 256 << 20;
/// Where net/http/pprof is, unless the program puts it elsewhere.
const PPROF: &str = "/debug/pprof/goroutine?debug=2";

/// Prints the goroutines on stdout, or has the tenant print them on its stderr.
pub(super) fn dump(options: &DumpOptions) -> Status {
    let tenant = &options.tenant;
    let done = find(tenant).and_then(|(state, supervisor)| {
        if options.stop { stop(tenant, &supervisor) } else { ask(tenant, &state) }
    });
    match done {
        Ok(()) => Status::Code(0),
        Err(why) => {
            say(format_args!("tenant {tenant}: {why}"));
            Status::Code(1)
        }
    }
}

/// The tenant's state, and its supervisor, which is the one that wrote it.
fn find(tenant: &Tenant) -> Result<(State, OwnedFd), String> {
    let root = crate::host::privileged();
    let dir = state_file::directory(root, |name| std::env::var_os(name))
        .ok_or("nobody knows where its state is (XDG_RUNTIME_DIR is not set)")?;
    let gone = || format!("not running here ({} names no tenant that does)", dir.display());
    let state = match state_file::find(&dir, tenant) {
        Ok(state) => state.ok_or_else(gone)?,
        Err(e) => return Err(format!("{}: {}", dir.display(), cause(&e))),
    };
    let pid = i32::try_from(state.pid).map_err(|_| gone())?;
    let supervisor = sys::process::open_thread(pid).map_err(|_| gone())?;
    // Only now: the descriptor is of the process that has this number at this
    // time, and pid and start time together name one for good.
    let begun = procfs::process::Process::new(pid).and_then(|process| process.stat());
    match begun {
        Ok(stat) if stat.starttime == state.start_time => Ok((state, supervisor)),
        _ => Err(gone()),
    }
}

/// Sends SIGQUIT by way of the supervisor, who passes it on, and says what came
/// of it.
fn stop(tenant: &Tenant, supervisor: &OwnedFd) -> Result<(), String> {
    sys::process::pidfd_signal(supervisor.as_fd(), libc::SIGQUIT)
        .map_err(|e| format!("SIGQUIT: {e}"))?;
    let mut fds = [PollFd::new(supervisor.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    let ended = poll(&mut fds, patience).map_err(|e| format!("poll: {e}"))? > 0;
    if ended {
        say(format_args!("tenant {tenant}: ended; its goroutines are where its stderr went"));
        return Ok(());
    }
    Err(format!(
        "still running {} s after SIGQUIT: it handles that signal itself, or is not Go (see its stderr for what it did)",
        PATIENCE.as_secs()
    ))
}

/// Asks over each declared listener until one answers with goroutines.
fn ask(tenant: &Tenant, state: &State) -> Result<(), String> {
    for listener in &state.listen {
        let Ok(listener) = listener.parse::<Listener>() else { continue };
        if let Ok(text) = goroutines(&listener.address) {
            // `dump | head` is no failure.
            drop(io::stdout().write_all(shown(&text).as_bytes()));
            return Ok(());
        }
    }
    Err(format!(
        "no declared listener answers {PPROF} with goroutines, and SIGQUIT, by which Go prints them, ends a program (import net/http/pprof to be asked without that, or give --stop: gosandbox dump --stop {tenant})"
    ))
}

/// The text is the tenant's: nothing in it but lines and tabs may move a
/// terminal's cursor.
fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let inner = line.trim_start_matches('\t');
        out.extend(std::iter::repeat_n('\t', line.len() - inner.len()));
        out.push_str(&escape(inner));
        out.push('\n');
    }
    out
}

/// What net/http/pprof says at `address`.
///
/// # Errors
/// Nobody answers in time, or something else.
fn goroutines(address: &Address) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let answer = match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect_timeout(&reachable(*address), PATIENCE)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            exchange(&stream, &stream, deadline, |left| stream.set_read_timeout(Some(left)))?
        }
        Address::Unix { path, .. } => {
            let stream = UnixStream::connect(path)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            exchange(&stream, &stream, deadline, |left| stream.set_read_timeout(Some(left)))?
        }
    };
    parse(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Every address of the host is reached by the loopback one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// One request of HTTP/1.0, whose answer ends with the connection.
fn exchange(
    mut to: impl Write,
    mut from: impl Read,
    deadline: Instant,
    wait: impl Fn(Duration) -> io::Result<()>,
) -> io::Result<Vec<u8>> {
    to.write_all(format!("GET {PPROF} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || answer.len() as u64 > MOST {
            return Err(io::ErrorKind::TimedOut.into());
        }
        wait(left)?;
        match from.read(&mut buffer)? {
            0 => return Ok(answer),
            length => answer.extend_from_slice(&buffer[..length]),
        }
        // What is no such answer need not be read to its end.
        if answer.len() > 64 && !answer.starts_with(b"HTTP/1.") {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// The body, where it is goroutines and the status 200.
fn parse(answer: &[u8]) -> Option<String> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let status = answer.get(..end)?.split(|&b| b == b' ').nth(1)?;
    let body = String::from_utf8_lossy(&answer[end + 4..]);
    (status.starts_with(b"200") && body.starts_with("goroutine ")).then(|| body.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let good = b"HTTP/1.0 200 OK\r\nA: b\r\n\r\ngoroutine 1 [running]:\n";
        assert_eq!(parse(good).as_deref(), Some("goroutine 1 [running]:\n"));
        for other in [
            &b"HTTP/1.0 404 Not Found\r\n\r\ngoroutine 1"[..],
            b"HTTP/1.0 200 OK\r\n\r\nhello",
            b"HTTP/1.0 200 OK\r\ngoroutine 1",
            b"HTTP/1.0\r\n\r\ngoroutine 1",
            b"",
        ] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn text_of_the_tenants_is_escaped_line_by_line() {
        assert_eq!(
            shown("goroutine 1:\n\tmain.go:3 \u{1b}[2J"),
            "goroutine 1:\n\tmain.go:3 \\u{1b}[2J\n"
        );
    }

    #[test]
    fn addresses() {
        for (given, asked) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("192.0.2.1:8", "192.0.2.1:8"),
        ] {
            assert_eq!(reachable(given.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
