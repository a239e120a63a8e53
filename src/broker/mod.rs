//! The broker: the tenant's way in and out. It answers the calls that the
//! tenant's filter asks about, by seccomp user notification.
//!
//! A process of its own, in the tenant's user namespace and with the tenant's
//! host id, but in the host's network, because that is where sockets are to be
//! born. Its root is the tenant's root, so it sees no more files than the
//! tenant, and of capabilities it has CAP_SYS_PTRACE over the tenant alone. It
//! takes hostile bytes apart; the supervisor takes none. What a hole in it is
//! worth: the tenant, plus unlisted addresses of the host's network.
//!
//! No Landlock: a process in a Landlock domain may trace only what is in the
//! same one (security/landlock/task.c), and the tenant cannot be put into the
//! broker's without forbidding its init to mount.

mod address;
mod answer;
mod caller;
mod calls;
mod denials;
mod dns;
mod egress;
mod local;
mod resolver;
mod serve;
mod words;

pub(crate) use denials::Denial;
pub(crate) use resolver::{NAME_SERVER, upstream};
pub(crate) use words::{BOUND, DENIED, LED, LINE, LISTENING, LONGEST, UNLED};

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chroot, fchdir, setresgid, setresuid};

use self::caller::Procfs;
use self::denials::Denials;
use self::resolver::Resolver;
use self::serve::{Broker, Pace};
use self::words::Words;
use crate::plan::Step;
use crate::policy::{Address, Egress};
use crate::report::Sequence;
use crate::seccomp::{Rules, broker_filter};
use crate::sys;

/// A declared listener.
#[derive(Debug)]
pub(crate) struct Door {
    /// Where it listens.
    pub(crate) address: Address,
    /// It.
    pub(crate) fd: OwnedFd,
}

/// A listed unix socket of the host's: the directory is held and not the
/// socket, which its server may make anew.
struct UnixDoor {
    path: Vec<u8>,
    directory: OwnedFd,
    name: Vec<u8>,
}

/// What must exist before the broker does.
#[derive(Debug)]
pub(crate) struct Setup {
    /// The one uid and gid inside.
    pub(crate) inside: u32,
    /// The declared listeners.
    pub(crate) doors: Vec<Door>,
    /// The policy's.
    pub(crate) egress: Vec<Egress>,
    /// The host's resolvers, where a name is listed.
    pub(crate) resolvers: Vec<SocketAddr>,
    /// Those of the filter, which does not say why it asks.
    pub(crate) rules: Rc<Rules>,
    /// Whether it also tells what is let through.
    pub(crate) learns: bool,
}

/// What init gives to the broker: the filter's listener, a descriptor of the
/// tenant's root, the socket of its name server where there is one, and the
/// cookie of its network namespace.
pub(crate) fn hand_over(
    channel: BorrowedFd<'_>,
    listener: RawFd,
    root: BorrowedFd<'_>,
    names: Option<BorrowedFd<'_>>,
    cookie: u64,
) -> Result<(), Errno> {
    let mut fds = [listener, root.as_raw_fd(), -1];
    let count = names.map_or(2, |names| {
        fds[2] = names.as_raw_fd();
        3
    });
    sys::fd::send_with(channel, &cookie.to_ne_bytes(), &fds[..count])
}

/// Where the broker gets what init gives.
pub(crate) enum Source<'a> {
    /// From init, which waits for the broker before it makes the app.
    Init(&'a OwnedFd),
    /// From the supervisor, which has got it from init.
    Given(Given),
}

/// The broker: child of the supervisor, on a copy of its memory, still with its
/// ids and in its namespaces. All signals blocked. Never returns, and never ends
/// by itself while the supervisor is there: its end is the tenant's.
///
/// `words` leads to the supervisor, whose pid is `supervisor`.
pub(crate) fn run(
    setup: Setup,
    user_namespace: &OwnedFd,
    words: OwnedFd,
    source: Source<'_>,
    supervisor: u32,
) -> ! {
    let mut seq = Sequence::new(words.as_fd());

    // Full capabilities in the tenant's user namespace and none over the host.
    // Nothing of what follows works on anything else.
    seq.take(Step::BrokerNamespace, 0, || {
        sys::process::join_user_namespace(user_namespace.as_fd())
    });

    seq.take(Step::BrokerIds, 0, || {
        let (uid, gid) = (Uid::from_raw(setup.inside), Gid::from_raw(setup.inside));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        // The tenant has the same id.
        sys::privilege::not_dumpable()?;
        // After the change of ids, which clears it; and in case the supervisor
        // died before, see whether it is the parent still. Not by `words`: the maker
        // of the network holds the other end too, while it lives.
        sys::privilege::parent_death_signal(libc::SIGKILL)?;
        if std::os::unix::process::parent_id() != supervisor {
            return Err(Errno::ESRCH);
        }
        match sys::privilege::new_session_keyring() {
            Err(Errno::ENOSYS) => Ok(()),
            other => other,
        }
    });

    // By the host's paths, for the last time, and as the tenant: a directory
    // that it may not enter is no way out for it. Clones, because a clone has
    // nothing above it: from the directory itself `..` would lead to the host's
    // root, past any chroot. That takes a mount namespace of one's own.
    let mut unix = Vec::new();
    seq.take(Step::BrokerSources, setup.egress.len(), || unshare(CloneFlags::CLONE_NEWNS));
    for (object, rule) in setup.egress.iter().enumerate() {
        if let Egress::Unix(path) = rule {
            unix.push(seq.take(Step::BrokerSources, object, || unix_door(path)));
        }
    }
    let procfs = seq.take(Step::BrokerSources, setup.egress.len(), || {
        sys::mount::clone_tree(libc::AT_FDCWD, c"/proc", true)
    });
    let null = seq.take(Step::BrokerSources, setup.egress.len(), || {
        open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
    });

    let given = match source {
        Source::Given(given) => given,
        Source::Init(handover) => seq.take(Step::BrokerAwait, 0, || await_init(handover)),
    };

    // In the tenant's root an absolute link, or a path with .. in it, leads
    // where it leads for the tenant.
    let own_devices = seq.take(Step::BrokerRoot, 0, || {
        fchdir(&given.root)?;
        chroot(".")?;
        umask(Mode::from_bits_truncate(0o077));
        ["/tmp", "/dev/shm"].iter().map(|path| Ok(nix::sys::stat::stat(*path)?.st_dev)).collect()
    });

    let broker = Broker {
        listener: given.listener,
        words: Words::new(words, Instant::now()),
        procfs: Procfs::new(procfs),
        cookie: given.cookie,
        doors: setup.doors,
        unix,
        egress: egress::Rules::new(setup.egress),
        rules: setup.rules,
        denials: Denials::new(setup.learns),
        learns: setup.learns,
        resolver: given.names.map(|names| Resolver::new(names, setup.resolvers, setup.learns)),
        own_devices,
        pending: Vec::new(),
        pace: Pace::of_calls(Instant::now()),
        asking: Pace::of_names(Instant::now()),
        swept: Instant::now(),
    };
    let kept = broker.descriptors();
    let mut seq = Sequence::new(broker.words.fd());
    seq.take(Step::BrokerLock, 0, || {
        let filter = broker_filter().map_err(|_| Errno::EINVAL)?;
        // What is left of the supervisor that a tenant's neighbour has no use for.
        sys::process::wipe_environment();
        // A panic's message must not end up in a socket.
        for number in 0..3 {
            sys::fd::dup_onto(null.as_raw_fd(), number)?;
        }
        close_others(kept)?;
        sys::privilege::clear_bounding()?;
        sys::privilege::clear_ambient()?;
        sys::privilege::lock_securebits()?;
        // Yama asks for it where it lets only parents trace; and a tenant that
        // is not dumpable could not be read without.
        sys::privilege::keep_trace_capability()?;
        sys::privilege::no_new_privs()?;
        sys::privilege::set_name(c"gosandbox-brok")?;
        sys::seccomp::install(&filter)
    });
    broker.serve()
}

impl Broker {
    /// Every descriptor that it goes on to use.
    fn descriptors(&self) -> Vec<RawFd> {
        let mut all = vec![
            self.listener.as_raw_fd(),
            self.words.fd().as_raw_fd(),
            self.procfs.as_fd().as_raw_fd(),
        ];
        all.extend(self.resolver.iter().map(|resolver| resolver.inside().as_raw_fd()));
        all.extend(self.doors.iter().map(|door| door.fd.as_raw_fd()));
        all.extend(self.unix.iter().map(|door| door.directory.as_raw_fd()));
        all
    }
}

/// Closes everything above stdio that is not among `kept`: the supervisor's
/// descriptors, of which this process is a copy.
fn close_others(mut kept: Vec<RawFd>) -> Result<(), Errno> {
    kept.sort_unstable();
    let mut from = 3;
    for fd in kept.into_iter().map(RawFd::unsigned_abs).filter(|&fd| fd >= 3) {
        sys::fd::close_between(from, fd.saturating_sub(1))?;
        from = fd + 1;
    }
    sys::fd::close_from(from)
}

fn unix_door(path: &std::path::Path) -> Result<UnixDoor, Errno> {
    let directory = path.parent().ok_or(Errno::ENOTDIR)?;
    let name = path.file_name().unwrap_or(OsStr::new("")).as_bytes().to_vec();
    // No link on the way: the tenant may have put one there in an earlier life.
    // The dot asks whether it may be entered, which is not asked of the last name.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(c"/", flags, Mode::empty())?;
    let directory = sys::fd::walk(root, directory.join(".").as_os_str().as_bytes())?;
    let directory = sys::mount::clone_tree(directory.as_raw_fd(), c"", true)?;
    Ok(UnixDoor { path: path.as_os_str().as_bytes().to_vec(), directory, name })
}

/// What init has given.
#[derive(Debug)]
pub(crate) struct Given {
    listener: OwnedFd,
    root: OwnedFd,
    names: Option<OwnedFd>,
    cookie: u64,
}

impl Given {
    /// Readable when the filter asks.
    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Says that the broker is ready, and waits for what init gives. Where init ends
/// without, the supervisor knows why and ends this too.
fn await_init(channel: &OwnedFd) -> Result<Given, Errno> {
    match send(channel.as_raw_fd(), b"!", MsgFlags::MSG_NOSIGNAL) {
        Ok(_) | Err(Errno::EPIPE) => {}
        Err(errno) => return Err(errno),
    }
    match receive(channel)? {
        Some(given) => Ok(given),
        None => loop {
            _ = poll(&mut [], PollTimeout::NONE);
        },
    }
}

/// Takes what init gives; `None` where it has ended without.
pub(crate) fn receive(channel: &OwnedFd) -> Result<Option<Given>, Errno> {
    let mut cookie = [0; size_of::<u64>()];
    match sys::fd::receive_with(channel.as_fd(), &mut cookie)? {
        (0, _) => Ok(None),
        (8, [Some(listener), Some(root), names]) => {
            Ok(Some(Given { listener, root, names, cookie: u64::from_ne_bytes(cookie) }))
        }
        _ => Err(Errno::EBADMSG),
    }
}
