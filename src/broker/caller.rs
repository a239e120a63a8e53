//! Who made a trapped call, and the socket it is about: looked up by thread id,
//! and believed only once the kernel says that the caller still waits.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::sys::stat::Mode;

use super::address::{self, LONGEST, Name};
use super::serve::Broker;
use crate::sys::notify::{self, Notification};
use crate::sys::{net, process};

/// The host's /proc, opened while it could be reached by path.
pub(super) struct Procfs(OwnedFd);

impl Procfs {
    pub(super) fn new(dir: OwnedFd) -> Self {
        Self(dir)
    }

    /// The beginning of a file of /proc, up to 4 KiB.
    fn read(&self, path: &str) -> Result<String, Errno> {
        let file = openat(&self.0, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut bytes = [0; 4096];
        let length = nix::unistd::read(&file, &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// Whether a signal waits for a thread, or for its process, that the thread
    /// would take.
    pub(super) fn has_signal(&self, thread: libc::pid_t) -> bool {
        let Ok(status) = self.read(&format!("{thread}/status")) else { return false };
        let set = |name| field(&status, name).and_then(|text| u64::from_str_radix(text, 16).ok());
        match (set("SigPnd:"), set("ShdPnd:"), set("SigBlk:")) {
            (Some(own), Some(shared), Some(blocked)) => (own | shared) & !blocked != 0,
            _ => false,
        }
    }

    /// The process of a thread.
    fn process_of(&self, thread: libc::pid_t) -> Result<libc::pid_t, Errno> {
        let status = self.read(&format!("{thread}/status"))?;
        field(&status, "Tgid:").and_then(|text| text.parse().ok()).ok_or(Errno::ESRCH)
    }

    /// FD_CLOEXEC, which is the number's and not the copy's: proc_pid_fdinfo(5),
    /// where the flags are octal.
    fn close_on_exec(&self, thread: libc::pid_t, fd: i32) -> Result<bool, Errno> {
        let info = self.read(&format!("{thread}/fdinfo/{fd}"))?;
        let flags = field(&info, "flags:").and_then(|text| i32::from_str_radix(text, 8).ok());
        flags.map(|flags| flags & libc::O_CLOEXEC != 0).ok_or(Errno::EBADF)
    }

    /// For close-on-exec of our own.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The working directory of a thread, to be looked up in.
    pub(super) fn working_directory(&self, thread: libc::pid_t) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat(&self.0, format!("{thread}/cwd").as_str(), flags, Mode::empty())
    }

    /// Makes /proc the working directory, so that `self/fd/…` is a path of ours.
    pub(super) fn enter(&self) -> Result<(), Errno> {
        nix::unistd::fchdir(&self.0)
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// A thread that waits for an answer.
pub(super) struct Caller {
    pub(super) thread: libc::pid_t,
}

/// A copy of the caller's socket, and what is known of it.
pub(super) struct Socket {
    pub(super) fd: OwnedFd,
    /// Its number in the caller.
    pub(super) at: i32,
    /// AF_*.
    pub(super) domain: i32,
    /// SOCK_*.
    pub(super) kind: i32,
    /// IPPROTO_*.
    pub(super) protocol: i32,
    /// Whether it listens.
    pub(super) listening: bool,
    /// The network namespace it was born in.
    pub(super) cookie: u64,
    /// O_NONBLOCK.
    pub(super) nonblocking: bool,
    /// FD_CLOEXEC of the caller's descriptor.
    pub(super) close_on_exec: bool,
}

impl Caller {
    /// The caller, and the socket that is the call's first argument.
    ///
    /// EBADF and ENOTSOCK as the kernel would have said; ESRCH where the caller
    /// is gone, which nobody will hear.
    pub(super) fn of(broker: &Broker, call: &Notification) -> Result<(Self, Socket), Errno> {
        let thread = call.thread;
        let pidfd = process::open_thread(thread).or_else(|_| {
            // Before Linux 6.9 only the first thread of a process has a pidfd.
            process::open_thread(broker.procfs.process_of(thread)?)
        })?;
        let at = int(call.args[0]);
        if !notify::is_waiting(broker.listener.as_fd(), call.id) {
            return Err(Errno::ESRCH);
        }
        // From here on the pidfd is known to be of the one that asks. What it
        // does to its descriptors meanwhile is its own loss.
        let fd = process::take_descriptor(pidfd.as_fd(), at)?;
        let about = |name| net::int_option(fd.as_fd(), libc::SOL_SOCKET, name);
        let domain = about(libc::SO_DOMAIN)?;
        let (kind, protocol) = (about(libc::SO_TYPE)?, about(libc::SO_PROTOCOL)?);
        let listening = about(libc::SO_ACCEPTCONN)? != 0;
        let cookie = net::namespace_cookie(fd.as_fd())?;
        let socket = Socket {
            at,
            domain,
            kind,
            protocol,
            listening,
            cookie,
            nonblocking: OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?)
                .contains(OFlag::O_NONBLOCK),
            close_on_exec: broker.procfs.close_on_exec(thread, at)?,
            fd,
        };
        Ok((Self { thread }, socket))
    }

    /// The address that arguments 1 and 2 of the call are: our own copy of it,
    /// and what it says.
    pub(super) fn address(
        &self,
        broker: &Broker,
        call: &Notification,
    ) -> Result<(Vec<u8>, Name), Errno> {
        let length = usize::try_from(int(call.args[2])).map_err(|_| Errno::EINVAL)?;
        if length > LONGEST {
            return Err(Errno::EINVAL);
        }
        let mut bytes = vec![0; length];
        self.memory(broker, call, call.args[1], &mut bytes)?;
        let name = address::parse(&bytes);
        Ok((bytes, name))
    }

    /// Our own copy of the caller's memory.
    pub(super) fn memory(
        &self,
        broker: &Broker,
        call: &Notification,
        at: u64,
        bytes: &mut [u8],
    ) -> Result<(), Errno> {
        if !bytes.is_empty() && process::read_memory(self.thread, at, bytes)? < bytes.len() {
            return Err(Errno::EFAULT);
        }
        if notify::is_waiting(broker.listener.as_fd(), call.id) {
            Ok(())
        } else {
            Err(Errno::ESRCH)
        }
    }
}

/// An argument that the kernel takes as an int.
#[allow(clippy::cast_possible_truncation)] // as the kernel does
pub(super) fn int(argument: u64) -> i32 {
    (argument as u32).cast_signed()
}

/// Sets or clears O_NONBLOCK, which belongs to the open socket and is seen by
/// everyone who has it.
pub(super) fn set_blocking(socket: BorrowedFd<'_>, blocking: bool) -> Result<(), Errno> {
    let old = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    let mut new = old;
    new.set(OFlag::O_NONBLOCK, !blocking);
    if new != old {
        fcntl(socket, FcntlArg::F_SETFL(new))?;
    }
    Ok(())
}

/// Where a descriptor of ours is to be found below /proc.
pub(super) fn own_path(fd: &OwnedFd) -> String {
    format!("self/fd/{}", fd.as_raw_fd())
}
