//! The supervisor's side of clone: write the id maps, say go, listen.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigmaskHow, sigprocmask};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchown, pipe2};

use super::child::{self, Channels};
use super::prepare::{Prepared, first_free, io_errno};
use super::{StartError, network};
use crate::broker;
use crate::cgroup::{CgroupError, Instance};
use crate::plan::{IdentityKind, Plan, Step};
use crate::report::{Failure, RECORD, decode_exit};
use crate::sys;
use crate::sys::process::{Cloned, Exit};
use crate::value::Tenant;

/// A tenant that was cloned: what the supervisor holds of it.
#[derive(Debug)]
pub struct Running {
    /// Whose it is.
    pub tenant: Tenant,
    /// Init's pid on the host.
    pub pid: libc::pid_t,
    /// Init.
    pub init: OwnedFd,
    /// Failures of the set-up; ends when the tenant's binary runs.
    setup: OwnedFd,
    /// How the app ended.
    status: File,
    /// The app's stdout and stderr, to be read without blocking.
    output: Option<[OwnedFd; 2]>,
    /// The broker, ended when this is dropped.
    pub broker: Option<Broker>,
    /// What a broker will be made of.
    standby: Option<Standby>,
    /// Its cgroup, removed when this is dropped.
    pub cgroup: Option<Instance>,
}

/// A broker that nobody has asked yet, and that is not made.
#[derive(Debug)]
struct Standby {
    setup: broker::Setup,
    user_namespace: OwnedFd,
    /// Where init gives what the broker needs.
    handover: OwnedFd,
    /// What init gave. The supervisor only waits for the listener in it.
    given: Option<broker::Given>,
}

/// What the supervisor holds of the broker.
#[derive(Debug)]
pub struct Broker {
    /// It.
    pub pidfd: OwnedFd,
    /// What it says.
    words: OwnedFd,
}

/// What the broker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// A step of its set-up failed.
    Failed(Failure),
    /// The tenant listens on a declared listener.
    Listening,
    /// This line is for people. It may hold anything, so it is to be escaped.
    Line(String),
    /// A call was refused, or where it is learnt what the tenant does, made.
    Denied(broker::Denial),
    /// The tenant connected there, as a rule for it.
    Led(String),
    /// It wanted to.
    Unled(String),
    /// It bound this address inside.
    Bound(String),
}

/// What the set-up channel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// The tenant's binary runs.
    Done,
    /// A step failed.
    Failed(Failure),
}

/// Those that clone makes. The cgroup namespace is not among them, since it would
/// be rooted at the supervisor's cgroup; nor is the network's: see [`network`].
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// Makes init and lets it go through the sequence, with the broker and the network
/// that it waits for; [`Running::setup`] tells how it went on.
///
/// # Errors
/// Clone, the id maps, the broker or the network failed; nothing is left of it.
pub fn spawn(mut prepared: Prepared, plan: &Plan) -> Result<Running, StartError> {
    let fail = |step, object: &str, errno| StartError::new(&plan.tenant, step, object, errno);
    let (setup, status, stdout, stderr) =
        channels(prepared.listeners.len()).map_err(|e| fail(Step::Clone, "pipe", e))?;
    let (ours, theirs) = setup;
    let handover = prepared.broker.is_some().then(pair).transpose();
    let (handover, init_side) = handover
        .map_err(|e| fail(Step::Broker, "socketpair", e))?
        .map_or((None, None), |(broker, init)| (Some(broker), Some(init)));
    let init_side = init_side
        .map(|fd| above(&fd, prepared.listeners.len()))
        .transpose()
        .map_err(|e| fail(Step::Broker, "socketpair", e))?;
    if plan.identity.kind != IdentityKind::Caller {
        // The tenant opens /dev/stdout like a file; the pipe has to be its own.
        let (uid, gid) = (Uid::from_raw(plan.identity.uid.0), Gid::from_raw(plan.identity.gid.0));
        for pipe in [&stdout.1, &stderr.1] {
            fchown(pipe, Some(uid), Some(gid)).map_err(|e| fail(Step::Descriptors, "pipe", e))?;
        }
    }

    // The child must not run the supervisor's handlers, nor lose a signal
    // before init waits for them.
    let mask = sys::signal::block_all().map_err(|e| fail(Step::Clone, "sigprocmask", e))?;
    let cgroup = prepared.cgroup.as_ref().map(Instance::fd);
    let cloned = sys::process::clone(NAMESPACES, cgroup);
    let (pid, init) = match cloned {
        Ok(Cloned::Child) => {
            let channels = Channels {
                setup: theirs,
                status: status.1,
                stdout: stdout.1,
                stderr: stderr.1,
                handover: init_side,
            };
            // The supervisor's end must close when the supervisor dies, so no
            // copy of it may stay here.
            drop((ours, handover));
            child::init(&mut prepared, &channels)
        }
        Ok(Cloned::Parent { pid, pidfd }) => (pid, pidfd),
        Err(errno) => {
            _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
            return Err(fail(Step::Clone, "namespaces", errno));
        }
    };
    drop((theirs, status.1, stdout.1, stderr.1, init_side));
    let mut running = Running {
        tenant: plan.tenant.clone(),
        pid,
        init,
        setup: ours,
        status: File::from(status.0),
        output: Some([stdout.0, stderr.0]),
        broker: None,
        standby: None,
        cgroup: prepared.cgroup.take(),
    };
    let mapped = set_going(&running, &prepared, plan).and_then(|user_namespace| {
        running.accompany(&mut prepared, user_namespace, handover, plan)
    });
    let unmasked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)
        .map_err(|e| fail(Step::Clone, "sigprocmask", e));
    match mapped.and(unmasked) {
        // A process that has ended has no maps that could be written. What it
        // said before counts, and is read like any other failure.
        Err(error) if !running.has_spoken() => {
            running.abandon();
            Err(error)
        }
        Ok(()) | Err(_) => Ok(running),
    }
}

impl Standby {
    /// The broker, which begins as a copy of this process. Signals are blocked, and
    /// stay so in it. `setup` is the supervisor's end of the channel to init.
    fn make(self, cgroup: Option<&File>, setup: BorrowedFd<'_>) -> Result<Broker, Errno> {
        let (ours, theirs) = pair()?;
        let supervisor = sys::process::pid();
        match sys::process::clone(0, cgroup.map(File::as_fd))? {
            Cloned::Child => {
                drop(ours);
                // Init takes its other end for the supervisor. It has to close with
                // the supervisor, before the broker says that it is ready: init could
                // be late with its question, and nobody would end it.
                let number = std::os::fd::AsRawFd::as_raw_fd(&setup).unsigned_abs();
                if sys::fd::close_between(number, number).is_err() {
                    sys::process::exit(1);
                }
                let source = match self.given {
                    Some(given) => broker::Source::Given(given),
                    None => broker::Source::Init(&self.handover),
                };
                broker::run(self.setup, &self.user_namespace, theirs, source, supervisor)
            }
            Cloned::Parent { pidfd, .. } => Ok(Broker { pidfd, words: ours }),
        }
    }
}

impl Broker {
    /// The channel that [`Broker::read`] reads.
    pub fn words(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }

    /// Asks it to end: nobody will ask it any more. It says what it has counted.
    pub fn dismiss(&self) {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.words);
        // ENOTCONN: it has ended.
        _ = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Write);
    }

    /// Whether it has more to say, or has ended, within this time.
    pub fn speaks(&self, patience: PollTimeout) -> bool {
        let mut fds = [PollFd::new(self.words.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, patience), Ok(1..))
    }

    /// What it said next; `None` where there is nothing more now.
    pub fn read(&self) -> Option<Word> {
        let mut bytes = [0; broker::LONGEST];
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.words);
        let length = recv(fd, &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
        let (kind, text) = bytes[..length].split_first()?;
        match *kind {
            broker::LISTENING => Some(Word::Listening),
            broker::LINE => Some(Word::Line(String::from_utf8_lossy(text).into_owned())),
            broker::LED => Some(Word::Led(String::from_utf8_lossy(text).into_owned())),
            broker::UNLED => Some(Word::Unled(String::from_utf8_lossy(text).into_owned())),
            broker::BOUND => Some(Word::Bound(String::from_utf8_lossy(text).into_owned())),
            broker::DENIED => broker::Denial::decode(text).map(Word::Denied),
            _ => Failure::decode(&bytes[..length]).map(Word::Failed),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // ESRCH: it has ended.
        _ = sys::process::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        _ = poll(&mut fds, PollTimeout::NONE);
        _ = sys::process::pidfd_reap(self.pidfd.as_fd());
    }
}

/// Writes the maps and says go. Gives back the tenant's user namespace, where
/// broker or network will need it.
fn set_going(
    running: &Running,
    prepared: &Prepared,
    plan: &Plan,
) -> Result<Option<OwnedFd>, StartError> {
    let fail = |step, object: &str, errno| StartError::new(&plan.tenant, step, object, errno);
    let pid = running.pid;
    write_maps(pid, prepared).map_err(|(object, errno)| fail(Step::IdMap, object, errno))?;
    // With the go init will cease to be dumpable, and then its namespaces are
    // closed to an unprivileged supervisor.
    let user_namespace = (prepared.broker.is_some() || prepared.private_network)
        .then(|| {
            let path = format!("/proc/{pid}/ns/user");
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            open(path.as_str(), flags, Mode::empty())
        })
        .transpose()
        .map_err(|e| fail(Step::IdMap, "ns/user", e))?;
    let channel = std::os::fd::AsRawFd::as_raw_fd(&running.setup);
    match send(channel, b"!", MsgFlags::MSG_NOSIGNAL) {
        // It is gone already and has said why.
        Ok(_) | Err(Errno::EPIPE) => Ok(user_namespace),
        Err(errno) => Err(fail(Step::IdMap, "channel", errno)),
    }
}

type Pair = (OwnedFd, OwnedFd);

/// A copy above the numbers that the app lays out, in a table that is init's too
/// then.
fn above(fd: &OwnedFd, listeners: usize) -> Result<OwnedFd, Errno> {
    sys::fd::dup_above(std::os::fd::AsRawFd::as_raw_fd(fd), first_free(listeners))
}

/// Messages whole, and an end that is seen.
fn pair() -> Result<Pair, Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

fn channels(listeners: usize) -> Result<(Pair, Pair, Pair, Pair), Errno> {
    let (ours, theirs) = pair()?;
    let theirs = above(&theirs, listeners)?;
    let status = pipe2(OFlag::O_CLOEXEC)?;
    let status = (status.0, above(&status.1, listeners)?);
    let output = || {
        let pipe = pipe2(OFlag::O_CLOEXEC)?;
        // Only our end: the tenant's keeps its blocking writes.
        fcntl(&pipe.0, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(pipe)
    };
    Ok(((ours, theirs), status, output()?, output()?))
}

/// user_namespaces(7): one line each, once. setgroups first, without which an
/// unprivileged gid_map is refused, and which would let a tenant drop a group
/// that a file denies something to.
fn write_maps(pid: libc::pid_t, prepared: &Prepared) -> Result<(), (&'static str, Errno)> {
    let write = |file: &'static str, text: &str| {
        // The process is our child and not reaped, so the number is still its.
        OpenOptions::new()
            .write(true)
            .open(format!("/proc/{pid}/{file}"))
            .and_then(|mut opened| opened.write_all(text.as_bytes()))
            .map_err(|e| (file, Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))))
    };
    if prepared.reset_oom_score {
        write("oom_score_adj", "0")?;
    }
    write("setgroups", "deny")?;
    write("gid_map", &prepared.gid_map)?;
    write("uid_map", &prepared.uid_map)
}

impl Running {
    /// The channel that [`Running::read_setup`] reads.
    pub fn setup(&self) -> BorrowedFd<'_> {
        self.setup.as_fd()
    }

    /// The pipe that [`Running::read_exit`] reads.
    pub fn status(&self) -> BorrowedFd<'_> {
        self.status.as_fd()
    }

    /// The reading ends of the app's stdout and stderr, which do not block.
    /// EBADF where they were taken before.
    pub fn take_output(&mut self) -> Result<[OwnedFd; 2], Errno> {
        self.output.take().ok_or(Errno::EBADF)
    }

    /// What the set-up channel says; to be called when it is readable. `None`
    /// where init ended without a word.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn read_setup(&self) -> Result<Option<Setup>, Errno> {
        let mut bytes = [0; RECORD];
        let mut said = nix::unistd::read(&self.setup, &mut bytes);
        // Init ended before it had read the go. The error comes once, and before
        // what init may have said.
        let unread = said == Err(Errno::ECONNRESET);
        if unread {
            said = nix::unistd::read(&self.setup, &mut bytes);
        }
        match said? {
            0 if unread => Ok(None),
            0 => Ok(Some(Setup::Done)),
            length => {
                Failure::decode(&bytes[..length]).map(Setup::Failed).map(Some).ok_or(Errno::EBADMSG)
            }
        }
    }

    /// Whether a failure waits in the set-up channel.
    fn has_spoken(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.setup);
        recv(fd, &mut [0; RECORD], flags).is_ok_and(|length| length > 0)
    }

    /// How the app ended, as init tells it; to be called when the pipe is
    /// readable. `None` where init ended without a word.
    pub fn read_exit(&mut self) -> Option<Exit> {
        let mut bytes = [0; RECORD];
        self.status.read_exact(&mut bytes).ok()?;
        decode_exit(&bytes)
    }

    /// Kills everything in the sandbox.
    pub fn kill(&self) {
        // cgroup.kill also reaches what is being forked right now. Init's death
        // takes the pid namespace with it in any case.
        let killed = self.cgroup.as_ref().is_some_and(|cgroup| cgroup.kill().is_ok());
        if !killed {
            // ESRCH: it has ended.
            _ = sys::process::pidfd_signal(self.init.as_fd(), libc::SIGKILL);
        }
    }

    /// Makes what init will wait for, while it goes through its steps: the broker,
    /// whose set-up is another process's work, before the network, which keeps the
    /// supervisor.
    fn accompany(
        &mut self,
        prepared: &mut Prepared,
        user_namespace: Option<OwnedFd>,
        handover: Option<OwnedFd>,
        plan: &Plan,
    ) -> Result<(), StartError> {
        let fail = |step, object: &str, errno| StartError::new(&plan.tenant, step, object, errno);
        let Some(user_namespace) = user_namespace else { return Ok(()) };
        if let (Some(setup), Some(handover)) = (prepared.broker.take(), handover) {
            let user_namespace =
                user_namespace.try_clone().map_err(|e| fail(Step::Broker, "", io_errno(&e)))?;
            self.standby = Some(Standby { setup, user_namespace, handover, given: None });
        }
        if prepared.waits {
            self.make_broker().map_err(|e| {
                fail(Step::Broker, &e.path.display().to_string(), e.errno()).because(&e.cause)
            })?;
        }
        if prepared.private_network {
            // Init has a copy of its own, for the app.
            let stack = prepared.stack.take().ok_or((Step::NewNetwork, Errno::ENOMEM));
            stack
                .and_then(|stack| network::make(stack, user_namespace.as_fd(), prepared.names))
                .and_then(|made| made.give(self.setup()).map_err(|e| (Step::NewNetwork, e)))
                .map_err(|(step, errno)| fail(step, "", errno))?;
        }
        Ok(())
    }

    /// Makes the broker.
    fn make_broker(&mut self) -> Result<(), CgroupError> {
        let Some(standby) = self.standby.take() else { return Ok(()) };
        let cgroup = self.cgroup.as_ref().map(Instance::for_broker).transpose()?.flatten();
        let made = standby.make(cgroup.as_ref(), self.setup.as_fd());
        self.broker =
            Some(made.map_err(|e| CgroupError { path: PathBuf::new(), cause: e.into() })?);
        Ok(())
    }

    /// What is to be waited for by a broker that is not made yet, if there is such.
    pub fn standby(&self) -> Option<BorrowedFd<'_>> {
        let standby = self.standby.as_ref()?;
        Some(standby.given.as_ref().map_or(standby.handover.as_fd(), broker::Given::listener))
    }

    /// To be called when [`Running::standby`] is readable: takes what init gives,
    /// or makes the broker, since the filter asks.
    ///
    /// # Errors
    /// It cannot be made; the tenant waits for nobody.
    pub fn stand_by(&mut self) -> Result<(), Failure> {
        let fail = |errno| Failure { step: Step::Broker, errno, object: 0 };
        let Some(standby) = &mut self.standby else { return Ok(()) };
        let Some(given) = &standby.given else {
            standby.given = broker::receive(&standby.handover).map_err(fail)?;
            if standby.given.is_none() {
                // Init has ended, and says why elsewhere.
                self.standby = None;
            }
            return Ok(());
        };
        let mut fds = [PollFd::new(given.listener(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).map_err(fail)?;
        if !fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)) {
            // The last process with the filter is gone.
            self.standby = None;
            return Ok(());
        }
        let mask = sys::signal::block_all().map_err(fail)?;
        let made = self.make_broker().map_err(|e| fail(e.errno()));
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).map_err(fail)?;
        made
    }

    /// Kills and reaps a child whose set-up cannot go on.
    fn abandon(self) {
        _ = sys::process::pidfd_signal(self.init.as_fd(), libc::SIGKILL);
        let mut fds = [PollFd::new(self.init.as_fd(), PollFlags::POLLIN)];
        _ = poll(&mut fds, PollTimeout::NONE);
        _ = sys::process::pidfd_reap(self.init.as_fd());
    }
}
