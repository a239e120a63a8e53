//! The tenant's own network: a namespace with `lo` up and nothing else.
//!
//! Of all namespaces this one takes the kernel longest by far, and nothing that
//! init does before its app is about it. So it is no part of clone: the supervisor, which has nothing to do
//! meanwhile, has it made, and init joins it when the root is there. It is made
//! in the tenant's user namespace, which owns it then, so without privilege too.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, sched_yield, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::raise_open_files;
use crate::broker;
use crate::plan::Step;
use crate::sys;
use crate::sys::process::Stack;

/// A network that was made.
pub(super) struct Made {
    namespace: OwnedFd,
    /// A socket of it, which is the name server's where there is one.
    socket: OwnedFd,
    names: bool,
}

/// What the maker is given, and what it leaves.
struct Maker<'a> {
    user_namespace: BorrowedFd<'a>,
    names: bool,
    left: Result<Made, (Step, Errno)>,
}

/// Makes a network in `user_namespace`, by a process on `stack`. With `names`, a
/// socket for the broker's name server is bound in it.
///
/// # Errors
/// The step that failed.
pub(super) fn make(
    stack: Stack,
    user_namespace: BorrowedFd<'_>,
    names: bool,
) -> Result<Made, (Step, Errno)> {
    let nothing = Err((Step::NewNetwork, Errno::ECHILD));
    let mut maker = Maker { user_namespace, names, left: nothing };
    let pid =
        sys::process::vfork(stack, run, &mut maker).map_err(|errno| (Step::NewNetwork, errno))?;
    // Until it is no more it holds what the supervisor holds, by which init sees
    // that there is one. How it ended is told by what it left; killed, nothing.
    _ = waitpid(Pid::from_raw(pid), None);
    maker.left
}

/// Maker: child of the supervisor, sharing its memory and descriptors while that
/// is suspended. The host's ids and namespaces, but for the user namespace, which
/// it joins for all capabilities there and none over the host. Signals blocked.
fn run(maker: &mut Maker<'_>) -> ! {
    maker.left = maker.make();
    sys::process::exit(0)
}

impl Maker<'_> {
    /// What it opens is the supervisor's as well, so all of it has an owner.
    fn make(&self) -> Result<Made, (Step, Errno)> {
        let of = |step| move |errno| (step, errno);
        sys::privilege::parent_death_signal(libc::SIGKILL)
            .and_then(|()| sys::process::join_user_namespace(self.user_namespace))
            .and_then(|()| unshare(CloneFlags::CLONE_NEWNET))
            .map_err(of(Step::NewNetwork))?;
        let socket = self.loopback().map_err(of(Step::Loopback))?;
        let namespace = sys::net::namespace(socket.as_fd()).map_err(of(Step::NewNetwork))?;
        Ok(Made { namespace, socket, names: self.names })
    }

    /// Brings `lo` up.
    fn loopback(&self) -> Result<OwnedFd, Errno> {
        let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        sys::net::loopback_up(any.as_fd())?;
        if self.names {
            // Here, because a port below 1024 takes a capability.
            bind(any.as_raw_fd(), &SockaddrIn::from(broker::NAME_SERVER))?;
        }
        Ok(any)
    }
}

impl Made {
    /// Gives it to `init`, which [joins](join) it.
    pub(super) fn give(self, init: BorrowedFd<'_>) -> Result<(), Errno> {
        let cookie = sys::net::namespace_cookie(self.socket.as_fd())?;
        let fds = [self.namespace.as_raw_fd(), self.socket.as_raw_fd()];
        let count = if self.names { 2 } else { 1 };
        raise_open_files()?;
        match sys::fd::send_with(init, &cookie.to_ne_bytes(), &fds[..count]) {
            // It is gone already and has said why.
            Err(Errno::EPIPE) => Ok(()),
            sent => sent,
        }
    }
}

/// Less than a millisecond, where nobody else wants the processor.
const MOST_YIELDS: u32 = 300;

/// The tenant's network, as init has it.
#[derive(Debug, Default)]
pub(super) struct Joined {
    /// By which the broker will know the sockets that were born in it.
    pub(super) cookie: u64,
    /// The broker's name server, where there is one.
    pub(super) names: Option<OwnedFd>,
}

/// Waits for what [`Made::give`] gives, and goes into it. In init, with
/// CAP_SYS_ADMIN in the user namespace. `floor` is above the numbers that the app
/// lays out, in a table that is init's too then.
pub(super) fn join(supervisor: BorrowedFd<'_>, floor: i32) -> Result<Joined, Errno> {
    // Init is done at about the same time as the network. To sleep for what is left
    // would take longer: a processor that went idle has to be woken.
    for _ in 0..MOST_YIELDS {
        let mut fds = [PollFd::new(supervisor, PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO)? > 0 {
            break;
        }
        sched_yield()?;
    }
    let mut cookie = [0; size_of::<u64>()];
    let (namespace, names) = match sys::fd::receive_with(supervisor, &mut cookie)? {
        (8, [Some(namespace), names, None]) => (namespace, names),
        // The supervisor is gone, or gave up; it does not listen either.
        (0, _) => return Err(Errno::EPIPE),
        _ => return Err(Errno::EBADMSG),
    };
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let names = names.map(|fd| sys::fd::dup_above(fd.as_raw_fd(), floor)).transpose()?;
    Ok(Joined { cookie: u64::from_ne_bytes(cookie), names })
}
