//! Our own stdout and stderr, written without ever waiting for a reader: a
//! stopped terminal or a full pipe must not keep the supervisor from its work.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};

/// As much as a pipe that polls writable takes without blocking: pipe(7).
pub const PIECE: usize = 4096;

/// Where bytes go.
#[derive(Debug)]
pub struct Sink {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A description of our own, not blocking: O_NONBLOCK on the one that we
    /// were given would be seen by everybody who has it.
    Own,
    /// A socket, which cannot be opened anew but be told not to wait.
    Socket,
    /// A file, which does not wait, or something that may not be opened anew.
    Given,
}

impl Sink {
    /// For the descriptor `given`, which stays as it is.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn of(given: BorrowedFd<'_>) -> io::Result<Self> {
        let mode = SFlag::from_bits_truncate(fstat(given)?.st_mode & SFlag::S_IFMT.bits());
        if mode == SFlag::S_IFIFO || mode == SFlag::S_IFCHR {
            let own = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(format!("/proc/self/fd/{}", given.as_raw_fd()));
            if let Ok(file) = own {
                return Ok(Self { fd: file.into(), kind: Kind::Own });
            }
        }
        let kind = if mode == SFlag::S_IFSOCK { Kind::Socket } else { Kind::Given };
        Ok(Self { fd: given.try_clone_to_owned()?, kind })
    }

    /// Writes a part of `bytes`, [`PIECE`] at most, and says how much.
    ///
    /// # Errors
    /// EAGAIN where nothing can be written now.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        match self.kind {
            Kind::Own => nix::unistd::write(&self.fd, piece),
            Kind::Socket => {
                send(self.fd.as_raw_fd(), piece, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)
            }
            Kind::Given if self.is_writable(Duration::ZERO) => nix::unistd::write(&self.fd, piece),
            Kind::Given => Err(Errno::EAGAIN),
        }
    }

    /// Waits for room, at most so long.
    pub fn is_writable(&self, wait: Duration) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        matches!(poll(&mut fds, timeout), Ok(1..))
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How long one of our own lines waits for a reader.
const PATIENCE: Duration = Duration::from_millis(200);

/// Where journald takes records: systemd's JOURNAL_NATIVE_PROTOCOL.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The tenant that records are about, once it is known.
static TENANT: OnceLock<String> = OnceLock::new();

/// Names the tenant that every record from now on is about.
pub fn about(tenant: &crate::value::Tenant) {
    TENANT.get_or_init(|| tenant.to_string());
}

/// Says one line: to the journal where stderr is the journal, by its own
/// socket, which the tenant does not have; else on stderr, in one write, so
/// that lines of several tenants do not mix. A reader who is stuck or gone
/// misses it.
pub fn say(line: impl std::fmt::Display) {
    let line = line.to_string();
    let stderr = io::stderr();
    if is_journal(stderr.as_fd()) && to_journal(&line, Path::new(JOURNAL)).is_ok() {
        return;
    }
    let line = format!("gosandbox: {line}\n");
    let Ok(sink) = Sink::of(stderr.as_fd()) else { return };
    if sink.write(line.as_bytes()) == Err(Errno::EAGAIN) && sink.is_writable(PATIENCE) {
        _ = sink.write(line.as_bytes());
    }
}

/// Whether systemd has connected `stderr` to the journal: JOURNAL_STREAM of
/// systemd.exec(5) is its device and inode.
fn is_journal(stderr: BorrowedFd<'_>) -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(stderr).is_ok_and(|data| stream == format!("{}:{}", data.st_dev, data.st_ino))
}

/// The service that this process is in, by its cgroup.
fn own_unit() -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.split('/').rfind(|name| name.ends_with(".service")).map(str::to_owned)
}

/// One record with its fields. Field by line; no line of ours has a newline in
/// it, which would need the protocol's other form.
fn to_journal(line: &str, journal: &Path) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let mut record =
        format!("MESSAGE={}\nPRIORITY=5\nSYSLOG_IDENTIFIER=gosandbox\n", line.replace('\n', " "));
    if let Some(tenant) = TENANT.get() {
        record.push_str(&format!("GOSANDBOX_TENANT={tenant}\n"));
    }
    // journald looks up the sender's unit when it gets to the record, by which
    // time a supervisor that says its last word is gone; `journalctl -u` believes
    // root who names it.
    if let Some(unit) = own_unit() {
        record.push_str(&format!("OBJECT_SYSTEMD_UNIT={unit}\n"));
    }
    socket.send_to(record.as_bytes(), journal).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::unistd::pipe2;

    #[test]
    fn a_full_pipe_is_not_waited_for_and_its_flags_stay() {
        let (_reader, given) = pipe2(OFlag::empty()).unwrap();
        let sink = Sink::of(given.as_fd()).unwrap();
        while sink.write(&[0; PIECE]).is_ok() {}
        assert_eq!(sink.write(b"x"), Err(Errno::EAGAIN));
        let flags = OFlag::from_bits_truncate(fcntl(&given, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK), "the given descriptor still blocks");
    }

    #[test]
    fn a_full_socket_is_not_waited_for() {
        let (_reader, given) = std::os::unix::net::UnixStream::pair().unwrap();
        let sink = Sink::of(given.as_fd()).unwrap();
        while sink.write(&[0; PIECE]).is_ok() {}
        assert_eq!(sink.write(b"x"), Err(Errno::EAGAIN));
    }

    #[test]
    fn a_file_is_appended_to_where_it_was() {
        let dir = crate::testing::TempDir::new("sink");
        let path = dir.path().join("log");
        std::fs::write(&path, "before\n").unwrap();
        let given = OpenOptions::new().append(true).open(&path).unwrap();
        Sink::of(given.as_fd()).unwrap().write(b"after\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");
    }

    #[test]
    fn a_record_has_its_fields() {
        let dir = crate::testing::TempDir::new("journal");
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        about(&"acme".parse().unwrap());
        to_journal("two\nlines", &path).unwrap();
        let mut bytes = [0; 256];
        let length = journal.recv(&mut bytes).unwrap();
        // What follows is the unit, where these tests run in one.
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        let fields =
            "MESSAGE=two lines\nPRIORITY=5\nSYSLOG_IDENTIFIER=gosandbox\nGOSANDBOX_TENANT=acme\n";
        assert!(text.starts_with(fields), "{text}");
        assert!(!is_journal(journal.as_fd()), "only what JOURNAL_STREAM names");
    }
}
