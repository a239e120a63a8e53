//! THE sequence: from clone to exec.
//!
//! [`init`] begins in the child of clone, in new namespaces but with the
//! supervisor's ids, files and root; it becomes the sandbox's pid 1. [`app`]
//! begins in init's child and becomes the tenant's binary. Neither allocates.
//! The order is that of `plan::Step`; `Sequence` sees to it.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::setrlimit;
use nix::sys::sendfile::sendfile;
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat, umask};
use nix::unistd::{
    Gid, Uid, chdir, pivot_root, read, setresgid, setresuid, setsid, symlinkat, write,
};

use super::init;
use super::network::{self, Joined};
use super::prepare::{Op, Place, Prepared, Tree, clone, first_free};
use super::raise_open_files;
use crate::broker;
use crate::plan::{PathKind, Step};
use crate::report::{Sequence, still_there};
use crate::sys;
use crate::sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY};

/// What the child uses of the channels to the supervisor.
pub(super) struct Channels {
    /// Both ways: the supervisor's go, and our failures. Closed by exec.
    pub(super) setup: OwnedFd,
    /// How the app ended, from init.
    pub(super) status: OwnedFd,
    /// The app's stdout.
    pub(super) stdout: OwnedFd,
    /// The app's stderr.
    pub(super) stderr: OwnedFd,
    /// To the broker, where there is one.
    pub(super) handover: Option<OwnedFd>,
}

/// Where the new root is put together. Every host has it; it is only covered in
/// this mount namespace.
const STAGE: &CStr = c"/tmp";

/// Init: pid 1 of new user, pid, mount, ipc and uts namespaces, born in the
/// instance's cgroup, in the supervisor's network until it joins the tenant's.
/// Full capabilities in the user namespace, none over the host; still the
/// supervisor's ids. All signals blocked.
pub(super) fn init(p: &mut Prepared, channels: &Channels) -> ! {
    let mut seq = Sequence::new(channels.setup.as_fd());

    // Nothing up to AwaitIdMap needs a mapped id, so it runs while the
    // supervisor writes the maps.
    for tree in &mut p.trees {
        if tree.clone.is_none() {
            tree.clone = Some(seq.take(Step::Trees, tree.object, || clone_checked(tree)));
        }
    }

    seq.take(Step::Propagation, 0, || {
        mount::<CStr, CStr, CStr, CStr>(
            None,
            c"/",
            None,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None,
        )
    });

    seq.take(Step::CgroupNamespace, 0, || unshare(CloneFlags::CLONE_NEWCGROUP));

    seq.take(Step::Hostname, 0, || nix::unistd::sethostname(&p.hostname));

    seq.take(Step::BoundingSet, 0, sys::privilege::clear_bounding);

    seq.take(Step::AwaitIdMap, 0, || {
        let mut go = [0u8; 1];
        match read(&channels.setup, &mut go)? {
            1 => Ok(()),
            // The supervisor is gone, or gave up; it does not listen either.
            _ => Err(Errno::EPIPE),
        }
    });

    // The gid first: setting it takes CAP_SETGID, which goes by the namespace
    // and not by the uid, but a reader should not have to know.
    seq.take(Step::Ids, 0, || {
        let (uid, gid) = (Uid::from_raw(p.inside), Gid::from_raw(p.inside));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        // The tenant will have this id too. Not earlier: the supervisor could
        // not have written the maps. The app becomes dumpable again by exec.
        sys::privilege::not_dumpable()
    });

    seq.take(Step::DeathSignal, 0, || {
        sys::privilege::parent_death_signal(libc::SIGKILL)?;
        // It says nothing of a supervisor that died before: then the other end
        // of the channel is closed.
        still_there(channels.setup.as_fd())
    });

    seq.take(Step::Keyring, 0, || match sys::privilege::new_session_keyring() {
        // A kernel without keyrings has none to share.
        Err(Errno::ENOSYS) => Ok(()),
        other => other,
    });

    seq.take(Step::Rootfs, 0, || {
        // The modes given to mkdir and open are meant as they are.
        umask(Mode::empty());
        root()
    });

    for (object, (step, op)) in p.ops.iter().enumerate().skip(1) {
        seq.take(*step, object, || carry_out(op, &p.trees));
    }

    // pivot_root(2): new and old root must be mounts of this namespace, and not
    // the same; with "." for both the old one is stacked on the new one and can
    // be let go without a directory to hold it.
    seq.take(Step::PivotRoot, 0, || {
        pivot_root(c".", c".")?;
        umount2(c".", MntFlags::MNT_DETACH)?;
        chdir(c"/")
    });

    seq.take(Step::ReadOnlyRoot, 0, || {
        sys::mount::set_attributes_at(libc::AT_FDCWD, c"/", ATTR_RDONLY | ATTR_NOEXEC, false)
    });

    // As late as the capabilities last: the supervisor has it made meanwhile.
    let mut network = Joined::default();
    if p.private_network {
        network = seq.take(Step::JoinNetwork, 0, || {
            network::join(channels.setup.as_fd(), first_free(p.listeners.len()))
        });
    }

    seq.take(Step::Capabilities, 0, || {
        sys::privilege::clear_ambient()?;
        // Needs CAP_SETPCAP, so before the sets are emptied.
        sys::privilege::lock_securebits()?;
        sys::privilege::clear_capabilities()
    });

    seq.take(Step::NoNewPrivs, 0, sys::privilege::no_new_privs);

    if let Some(handover) = channels.handover.as_ref().filter(|_| p.waits) {
        seq.take(Step::AwaitBroker, 0, || {
            let mut ready = [0u8; 1];
            match read(handover, &mut ready)? {
                1 => Ok(()),
                // The broker has failed, and has told the supervisor why.
                _ => sys::process::exit(1),
            }
        });
    }

    let mut side = AppSide { prepared: p, channels, listener: None };
    let pid = seq.take(Step::Fork, 0, || {
        let stack = side.prepared.stack.take().ok_or(Errno::ENOMEM)?;
        sys::process::vfork(stack, app, &mut side)
    });

    // The app runs, or has failed and said so. What it asks meanwhile waits. Its
    // listener is init's too, since they shared their descriptors until exec.
    if let (Some(handover), Some(listener)) = (&channels.handover, side.listener) {
        seq.take(Step::Handover, 0, || {
            raise_open_files()?;
            let root = open(c"/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
            let Joined { cookie, names } = &network;
            let names = names.as_ref().map(AsFd::as_fd);
            match broker::hand_over(handover.as_fd(), listener, root.as_fd(), names, *cookie) {
                // The broker has failed, and has told the supervisor why.
                Err(Errno::EPIPE) => sys::process::exit(1),
                handed => handed,
            }
        });
    }

    seq.take(Step::InitLock, 0, || {
        sys::privilege::set_name(c"gosandbox-init")?;
        sys::fd::dup_onto(channels.status.as_raw_fd(), init::STATUS)?;
        sys::seccomp::install(&side.prepared.init_filter)
    });
    // Closes `setup` too: from here on a failure can only be an end.
    if sys::fd::close_from(1).is_err() {
        sys::process::exit(1);
    }
    init::run(pid)
}

/// What the app takes over from init, whose memory it shares until exec.
struct AppSide<'a> {
    prepared: &'a mut Prepared,
    channels: &'a Channels,
    /// Where calls come that the filter asks about: from the app, for init.
    listener: Option<std::os::fd::RawFd>,
}

/// App: in all of the sandbox's namespaces, inside its root, child of init and
/// sharing its memory and descriptors, while init waits for exec. The tenant's
/// ids, no capabilities. Signals blocked.
fn app(side: &mut AppSide<'_>) -> ! {
    let AppSide { prepared: p, channels, listener } = side;
    let mut seq = Sequence::new(channels.setup.as_fd());

    seq.take(Step::Session, 0, || {
        umask(Mode::from_bits_truncate(0o077));
        // Exec keeps ignored signals ignored, and gosandbox ignores SIGPIPE.
        sys::signal::reset_all();
        setsid().map(drop)
    });

    for (object, (resource, soft, hard)) in p.rlimits.iter().enumerate() {
        seq.take(Step::Limits, object, || setrlimit(*resource, *soft, *hard));
    }

    seq.take(Step::Descriptors, 0, || descriptors(p, channels));

    // As the tenant and inside: a directory it may not enter is an error now,
    // and none of the host's can be the working directory (CVE-2024-21626).
    seq.take(Step::Workdir, 0, || chdir(p.workdir.as_c_str()));

    // Nothing below looks for a file, except for the binary, which it grants.
    if let Some(wall) = &mut p.wall {
        seq.take(Step::Landlock, 0, || wall.enter());
    }

    if let Some(index) = p.listen_pid {
        // sd_listen_fds(3) compares it with getpid(), as seen inside.
        let env = &mut p.env;
        seq.take(Step::Filter, 1, || {
            env.write_number(index, "LISTEN_PID=".len(), sys::process::pid())
        });
    }

    // Signals are let in last before the filter: what was sent meanwhile must
    // not run before the defaults are back.
    seq.take(Step::Filter, 0, || {
        let none = nix::sys::signal::SigSet::empty();
        none.thread_set_mask()?;
        if p.asks {
            *listener = Some(sys::seccomp::install_with_listener(&p.filter)?);
            return Ok(());
        }
        sys::seccomp::install(&p.filter)
    });

    let errno = sys::process::execve(&p.exec, &p.args, &p.env, p.key);
    seq.fail(Step::Exec, 0, errno)
}

/// Lays out what the tenant holds: 0, 1, 2, the listeners from 3 on. What is above
/// them is closed by exec, and only for the app: until then init shares all of
/// it.
fn descriptors(p: &Prepared, channels: &Channels) -> Result<(), Errno> {
    if let Some(null) = &p.stdin {
        sys::fd::dup_onto(null.as_raw_fd(), 0)?;
    }
    sys::fd::dup_onto(channels.stdout.as_raw_fd(), 1)?;
    sys::fd::dup_onto(channels.stderr.as_raw_fd(), 2)?;
    let end = first_free(p.listeners.len());
    for (number, listener) in (crate::host::FIRST_INHERITED..end).zip(&p.listeners) {
        // They were copied above `end`, so none is overwritten before its turn.
        sys::fd::dup_onto(listener.as_raw_fd(), number)?;
    }
    sys::fd::close_on_exec_from(end.unsigned_abs())
}

/// Clones a source by its path, as the unprivileged have to, and makes sure
/// that it is what the supervisor opened.
fn clone_checked(tree: &Tree) -> Result<OwnedFd, Errno> {
    let clone = clone(libc::AT_FDCWD, &tree.path, tree.attributes, tree.recursive)?;
    let (ours, checked) = (fstat(&clone)?, fstat(&tree.opened)?);
    if (ours.st_dev, ours.st_ino) == (checked.st_dev, checked.st_ino) {
        Ok(clone)
    } else {
        Err(Errno::ESTALE)
    }
}

/// An empty tmpfs, and the working directory in it.
fn root() -> Result<(), Errno> {
    mount(
        Some(c"tmpfs"),
        STAGE,
        Some(c"tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(c"mode=0755,size=1M,nr_inodes=4096"),
    )?;
    chdir(STAGE)
}

fn carry_out(op: &Op, trees: &[Tree]) -> Result<(), Errno> {
    match op {
        // Done before the loop.
        Op::Root => Ok(()),
        Op::Directory(path) => mkdirat(AT_FDCWD, path.as_c_str(), Mode::from_bits_truncate(0o755)),
        Op::File(path, text) => {
            let file = new_file(path)?;
            // A file of this size on an empty tmpfs is written whole or not.
            if write(&file, text)? == text.len() { Ok(()) } else { Err(Errno::ENOSPC) }
        }
        Op::Link(path, to) => symlinkat(to.as_c_str(), AT_FDCWD, path.as_c_str()),
        Op::Proc => mount(
            Some(c"proc"),
            c"proc",
            Some(c"proc"),
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some(c"hidepid=invisible"),
        ),
        Op::Mask(path, kind) => mask(path, *kind),
        Op::LockProc => lock_proc(),
        Op::Tmpfs(path, options) => mount(
            Some(c"tmpfs"),
            path.as_c_str(),
            Some(c"tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some(options.as_c_str()),
        ),
        Op::Copy { options, target, source, size } => {
            // Made behind /tmp, of which nothing stays but the file.
            mount(
                Some(c"tmpfs"),
                c"tmp",
                Some(c"tmpfs"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
                Some(options.as_c_str()),
            )?;
            copy(source, &new_program(c"tmp/app")?, *size)?;
            let attributes = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV;
            let program = clone(libc::AT_FDCWD, c"tmp/app", attributes, false)?;
            umount2(c"tmp", MntFlags::MNT_DETACH)?;
            attach(&program, target, Place::NewFile)
        }
        Op::Attach { tree, target, place } => {
            let tree = trees.get(*tree).and_then(|t| t.clone.as_ref()).ok_or(Errno::EBADF)?;
            attach(tree, target, *place)
        }
    }
}

/// Mounts `tree` upon `target`, which is relative to the new root.
fn attach(tree: &OwnedFd, target: &CStr, place: Place) -> Result<(), Errno> {
    match place {
        // One call where to open, write nothing and close would be two.
        Place::NewFile => match mknodat(AT_FDCWD, target, SFlag::S_IFREG, READABLE, 0) {
            Err(Errno::EEXIST) => drop(new_file(target)?),
            made => made?,
        },
        Place::Exists => {}
        Place::Nested => {
            // The tenant may write what this leads through; no link in it is
            // followed, and it cannot be swapped between look-up and mount
            // (CVE-2021-30465).
            let root = open(c".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
            let target = sys::fd::walk(root, target.to_bytes())?;
            return sys::mount::attach_tree(tree.as_fd(), target.as_raw_fd(), c"");
        }
    }
    sys::mount::attach_tree(tree.as_fd(), libc::AT_FDCWD, target)
}

/// An empty file, or one of ours that is there already. In a root that nobody
/// else can reach yet.
fn new_file(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    open(path, flags, READABLE)
}

const READABLE: Mode = Mode::from_bits_truncate(0o444);

/// An empty file that is to be executed. Its writer has to be gone by then.
fn new_program(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    open(path, flags, Mode::from_bits_truncate(0o555))
}

/// All `size` bytes, by the kernel: from here on the tenant's cgroup is charged.
fn copy(from: &OwnedFd, to: &OwnedFd, size: usize) -> Result<(), Errno> {
    let mut offset = 0;
    let mut left = size;
    while left > 0 {
        match sendfile(to, from, Some(&mut offset), left)? {
            // It is sealed, so it cannot have become shorter.
            0 => return Err(Errno::EIO),
            sent => left = left.saturating_sub(sent),
        }
    }
    Ok(())
}

/// Covers an entry of /proc with what is in our own root: our /dev/null, which
/// was checked, or the empty directory that /dev/shm still is. Not with
/// something found by a path of the host's, which could have been swapped.
fn mask(path: &CStr, kind: PathKind) -> Result<(), Errno> {
    let cover = match kind {
        PathKind::Directory => c"dev/shm",
        PathKind::File | PathKind::Missing => c"dev/null",
    };
    match mount(Some(cover), path, None::<&CStr>, MsFlags::MS_BIND, None::<&CStr>) {
        // This kernel has no such entry.
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// Makes /proc and all that covers it read-only, nodev too: a covered file
/// cannot even be opened.
fn lock_proc() -> Result<(), Errno> {
    let attributes = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    sys::mount::set_attributes_at(libc::AT_FDCWD, c"proc", attributes, true)
}
