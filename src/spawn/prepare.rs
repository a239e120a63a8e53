//! Everything that must exist before clone: descriptors, strings, programs.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat, major, minor};

use super::StartError;
use super::wall::Wall;
use crate::broker;
use crate::cgroup::Instance;
use crate::listen::Socket;
use crate::plan::{
    Access, BrokerPlan, IdentityKind, MountOp, PathKind, Plan, Resource, Stdin, Step,
};
use crate::policy::NetworkMode;
use crate::seccomp::{Arch, compile, init_filter};
use crate::sys::mount::{self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY};
use crate::sys::process::{Stack, StringArray};
use crate::sys::seccomp::Instruction;

/// One entry of the plan's root file system, ready to be carried out. Paths
/// inside are relative to the new root.
#[derive(Debug)]
pub(super) enum Op {
    Root,
    Directory(CString),
    File(CString, Vec<u8>),
    Link(CString, CString),
    Proc,
    Mask(CString, PathKind),
    LockProc,
    Tmpfs(CString, CString),
    /// The binary, on a file system of its own.
    Copy {
        options: CString,
        target: CString,
        source: OwnedFd,
        size: usize,
    },
    /// A tree, by its index in `Prepared::trees`, and where it goes.
    Attach {
        tree: usize,
        target: CString,
        place: Place,
    },
}

/// What is there to mount upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// An empty file has to be made.
    NewFile,
    /// A directory, or a file of ours, is there already.
    Exists,
    /// Something in another bind, which no symbolic link may lead out of.
    Nested,
}

/// A mount that was, or will be, cloned from the host's.
#[derive(Debug)]
pub(super) struct Tree {
    /// What it is cloned from, for the child of an unprivileged supervisor: a
    /// descriptor of another mount namespace cannot be cloned there.
    pub(super) path: CString,
    /// What was opened and checked.
    pub(super) opened: OwnedFd,
    /// The clone. Made by a privileged supervisor here, else by init.
    pub(super) clone: Option<OwnedFd>,
    pub(super) attributes: u64,
    pub(super) recursive: bool,
    /// Index of the entry this belongs to, for errors.
    pub(super) object: usize,
}

/// Owns everything that must exist before clone.
#[derive(Debug)]
pub struct Prepared {
    pub(super) cgroup: Option<Instance>,
    pub(super) inside: u32,
    pub(super) uid_map: String,
    pub(super) gid_map: String,
    pub(super) reset_oom_score: bool,
    pub(super) trees: Vec<Tree>,
    pub(super) ops: Vec<(Step, Op)>,
    /// Whether a network is made, which init joins.
    pub(super) private_network: bool,
    pub(super) hostname: String,
    pub(super) rlimits: Vec<(nix::sys::resource::Resource, u64, u64)>,
    pub(super) exec: CString,
    pub(super) args: StringArray,
    pub(super) env: StringArray,
    /// Where LISTEN_PID is in `env`.
    pub(super) listen_pid: Option<usize>,
    pub(super) workdir: CString,
    /// Landlock, where there is any.
    pub(super) wall: Option<Wall>,
    pub(super) filter: Vec<Instruction>,
    /// What the app's execve shows to the filter.
    pub(super) key: [u64; 3],
    /// Whether the filter asks the broker about calls.
    pub(super) asks: bool,
    /// Whether init waits for the broker.
    pub(super) waits: bool,
    /// Whether the broker answers for names.
    pub(super) names: bool,
    pub(super) init_filter: Vec<Instruction>,
    /// Copies above the numbers that the tenant's will have.
    pub(super) listeners: Vec<OwnedFd>,
    /// What the tenant gets instead of our stdin.
    pub(super) stdin: Option<OwnedFd>,
    /// What the app runs on between fork and exec; in the supervisor, the maker of
    /// the network.
    pub(super) stack: Option<Stack>,
    /// What the broker needs, where the filter asks one.
    pub(super) broker: Option<broker::Setup>,
}

impl Prepared {
    /// Opens and compiles what `plan` says. `binary` is the file that was
    /// checked.
    ///
    /// # Errors
    /// The step that failed. Whatever was made before is dropped, and undone.
    pub fn new(
        plan: &Plan,
        binary: File,
        sockets: &[Socket],
        cgroup: Option<Instance>,
    ) -> Result<Self, StartError> {
        let fail = |step, object: &str, errno| StartError::new(&plan.tenant, step, object, errno);
        let privileged = plan.identity.kind != IdentityKind::Caller;
        let (trees, ops) = mounts(plan, binary, privileged)?;
        let wall = plan.wall.map(|wall| Wall::new(plan, wall, &trees));
        let wall = wall.transpose().map_err(|e| fail(Step::Landlock, "", e))?;
        let (env, listen_pid) = environment(plan);
        let floor = first_free(sockets.len());
        let listeners = sockets
            .iter()
            .map(|socket| crate::sys::fd::dup_above(socket.fd.as_raw_fd(), floor))
            .collect::<Result<_, _>>()
            .map_err(|e| fail(Step::Descriptors, "", e))?;
        let key = crate::sys::process::secret().map_err(|e| fail(Step::Filter, "key", e))?;
        let map = |host: u32| format!("{} {host} 1", plan.identity.inside);
        Ok(Self {
            cgroup,
            inside: plan.identity.inside.0,
            uid_map: map(plan.identity.uid.0),
            gid_map: map(plan.identity.gid.0),
            reset_oom_score: plan.reset_oom_score,
            trees,
            ops,
            private_network: plan.network == NetworkMode::Private,
            hostname: plan.tenant.to_string(),
            rlimits: plan.rlimits.iter().map(|l| (resource(l.resource), l.soft, l.hard)).collect(),
            exec: path(&plan.exec),
            args: StringArray::new(plan.args.iter().map(|a| string(a)).collect()),
            env,
            listen_pid,
            workdir: path(&plan.workdir),
            wall,
            filter: compile(&plan.rules.for_filter(key), Arch::native()),
            key,
            asks: plan.broker.is_some(),
            waits: plan.broker.as_ref().is_some_and(|broker| broker.first),
            names: plan.broker.as_ref().is_some_and(BrokerPlan::has_names),
            init_filter: init_filter()
                .map_err(|_| fail(Step::InitLock, "seccomp", Errno::EINVAL))?,
            listeners,
            stdin: match plan.stdin {
                Stdin::Inherited => None,
                Stdin::Null => {
                    let null =
                        open(c"/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
                    Some(null.map_err(|e| fail(Step::Descriptors, "/dev/null", e))?)
                }
            },
            stack: Some(Stack::new()),
            broker: plan.broker.as_ref().map(|asked| broker(plan, asked, sockets)).transpose()?,
        })
    }
}

fn broker(
    plan: &Plan,
    asked: &BrokerPlan,
    sockets: &[Socket],
) -> Result<broker::Setup, StartError> {
    let fail = |object: &str, errno| StartError::new(&plan.tenant, Step::Broker, object, errno);
    let door = |socket: &Socket| {
        let fd = socket.fd.try_clone().map_err(|e| fail("", io_errno(&e)))?;
        Ok(broker::Door { address: socket.address.clone(), fd })
    };
    Ok(broker::Setup {
        inside: plan.identity.inside.0,
        doors: sockets.iter().map(door).collect::<Result<_, _>>()?,
        egress: asked.egress.clone(),
        resolvers: asked.resolvers.clone(),
        rules: Rc::clone(&plan.rules),
        learns: asked.learns,
    })
}

pub(super) fn io_errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// The lowest descriptor above stdio and `sockets` listeners.
pub(super) fn first_free(sockets: usize) -> i32 {
    crate::host::FIRST_INHERITED + i32::try_from(sockets).unwrap_or(i32::MAX / 2)
}

/// A string without NUL. The plan refuses those that come from people, and the
/// kernel hands out none, so cutting one off loses nothing.
fn string(text: &OsStr) -> CString {
    let bytes = text.as_bytes();
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}

pub(super) fn path(path: &Path) -> CString {
    string(path.as_os_str())
}

/// `/a/b` as `a/b`, relative to the new root.
fn inside(target: &Path) -> CString {
    path(target.strip_prefix("/").unwrap_or(target))
}

fn resource(resource: Resource) -> nix::sys::resource::Resource {
    use nix::sys::resource::Resource as R;
    match resource {
        Resource::OpenFiles => R::RLIMIT_NOFILE,
        Resource::Core => R::RLIMIT_CORE,
        Resource::LockedMemory => R::RLIMIT_MEMLOCK,
        Resource::MessageQueues => R::RLIMIT_MSGQUEUE,
        Resource::Nice => R::RLIMIT_NICE,
        Resource::RealTimePriority => R::RLIMIT_RTPRIO,
    }
}

fn environment(plan: &Plan) -> (StringArray, Option<usize>) {
    let listen_pid = plan.env.iter().position(|(name, _)| name == "LISTEN_PID");
    let strings = plan
        .env
        .iter()
        .map(|(name, value)| {
            let mut line = std::ffi::OsString::from(name);
            line.push("=");
            line.push(value);
            string(&line)
        })
        .collect();
    (StringArray::new(strings), listen_pid)
}

/// The trees, and the list that refers to them.
type Mounts = (Vec<Tree>, Vec<(Step, Op)>);

fn mounts(plan: &Plan, binary: File, privileged: bool) -> Result<Mounts, StartError> {
    let mut trees = Vec::new();
    let mut ops = Vec::with_capacity(plan.rootfs.len());
    let mut binary = Some(OwnedFd::from(binary));
    for (object, entry) in plan.rootfs.iter().enumerate() {
        let fail = |errno| StartError::new(&plan.tenant, Step::Sources, entry.object(), errno);
        let mut tree = |source: &Path, opened: OwnedFd, attributes, recursive| {
            let clone = privileged
                .then(|| clone(opened.as_raw_fd(), c"", attributes, recursive))
                .transpose()?;
            trees.push(Tree { path: path(source), opened, clone, attributes, recursive, object });
            Ok(trees.len() - 1)
        };
        let op = match entry {
            MountOp::Root => Op::Root,
            MountOp::Directory(target) => Op::Directory(inside(target)),
            MountOp::File(target, text) => Op::File(inside(target), text.clone().into_bytes()),
            MountOp::Link(target, to) => Op::Link(inside(target), path(to)),
            MountOp::Proc => Op::Proc,
            MountOp::Mask(name, kind) => Op::Mask(path(&Path::new("proc").join(name)), *kind),
            MountOp::LockProc => Op::LockProc,
            MountOp::Tmpfs(target, size) => Op::Tmpfs(inside(target), tmpfs_options(size.0)),
            MountOp::Device(name, wanted_major, wanted_minor) => {
                let source = Path::new("/dev").join(name);
                let opened = open_device(&source, *wanted_major, *wanted_minor).map_err(fail)?;
                let attributes = ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC;
                let tree = tree(&source, opened, attributes, false).map_err(fail)?;
                Op::Attach {
                    tree,
                    target: inside(&Path::new("dev").join(name)),
                    place: Place::NewFile,
                }
            }
            MountOp::Bind { source, target, access, nested } => {
                let opened = open_source(source, *access).map_err(fail)?;
                let directory = is_directory(&opened).map_err(fail)?;
                let attributes = ATTR_NOSUID
                    | ATTR_NODEV
                    | match access {
                        Access::Data => ATTR_RDONLY | ATTR_NOEXEC,
                        Access::ReadOnly => ATTR_RDONLY,
                        Access::ReadWrite => ATTR_NOEXEC,
                    };
                // A directory brings what is mounted below it: leaving that out
                // would uncover what the mounts hide, which the kernel refuses
                // to the unprivileged.
                let tree = tree(source, opened, attributes, directory).map_err(fail)?;
                let place = match (nested, directory) {
                    (true, _) => Place::Nested,
                    (false, true) => Place::Exists,
                    (false, false) => Place::NewFile,
                };
                Op::Attach { tree, target: inside(target), place }
            }
            MountOp::Binary(target) => {
                // There is one binary in a plan; a second would find nothing.
                let opened = binary.take().ok_or_else(|| fail(Errno::EBADF))?;
                let attributes = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV;
                let tree = tree(&plan.binary, opened, attributes, false).map_err(fail)?;
                Op::Attach { tree, target: inside(target), place: Place::NewFile }
            }
            MountOp::Copy(target, size) => Op::Copy {
                options: copy_options(size.0),
                target: inside(target),
                source: binary.take().ok_or_else(|| fail(Errno::EBADF))?,
                size: usize::try_from(size.0).map_err(|_| fail(Errno::EFBIG))?,
            },
        };
        ops.push((entry.step(), op));
    }
    Ok((trees, ops))
}

/// Clones the mount of `path` below `dir` and sets its attributes.
pub(super) fn clone(
    dir: i32,
    path: &std::ffi::CStr,
    attributes: u64,
    recursive: bool,
) -> Result<OwnedFd, Errno> {
    let clone = mount::clone_tree(dir, path, recursive)?;
    mount::set_attributes(clone.as_fd(), attributes, recursive)?;
    Ok(clone)
}

/// One inode a page, so that empty files cannot fill the kernel's memory
/// either. The tenant's cgroup is charged for both: tmpfs(5).
fn tmpfs_options(size: u64) -> CString {
    let inodes = (size / 4096).max(64);
    CString::new(format!("mode=1777,size={size},nr_inodes={inodes}")).unwrap_or_default()
}

/// Room for the binary, its inode and the root's, and no more.
fn copy_options(size: u64) -> CString {
    CString::new(format!("mode=0755,size={size},nr_inodes=2")).unwrap_or_default()
}

/// O_PATH: nothing of a source is read, and a fifo or device is not woken. The
/// system's own paths may lead through links, which are root's; the policy's
/// follow none at all. The plan has refused those that had one, so this only
/// ever fails where one was put there since.
fn open_source(path: &Path, access: Access) -> Result<OwnedFd, Errno> {
    match access {
        Access::Data => open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()),
        Access::ReadOnly | Access::ReadWrite => open_without_links(path),
    }
}

fn open_without_links(path: &Path) -> Result<OwnedFd, Errno> {
    let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    crate::sys::fd::walk(root, path.as_os_str().as_bytes())
}

/// A device node, and the one it has to be: something else in its place would
/// be bound over /proc entries as a mask (CVE-2025-31133). What it is says enough,
/// whichever way /dev led there.
fn open_device(path: &Path, wanted_major: u32, wanted_minor: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = open(path, flags, Mode::empty())?;
    let data = fstat(&opened)?;
    let is_device =
        SFlag::from_bits_truncate(data.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFCHR;
    let number = (major(data.st_rdev), minor(data.st_rdev));
    if is_device && number == (u64::from(wanted_major), u64::from(wanted_minor)) {
        Ok(opened)
    } else {
        Err(Errno::ENODEV)
    }
}

fn is_directory(fd: &OwnedFd) -> Result<bool, Errno> {
    let mode = fstat(fd)?.st_mode & SFlag::S_IFMT.bits();
    Ok(SFlag::from_bits_truncate(mode) == SFlag::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd::walk;
    use crate::testing::TempDir;

    #[test]
    fn no_link_is_followed_at_any_place() {
        let dir = TempDir::new("walk");
        let real = dir.path().join("real");
        std::fs::create_dir_all(real.join("inner")).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("inner", real.join("last")).unwrap();
        let open = |name: &str| {
            let from = open(dir.path(), OFlag::O_PATH, Mode::empty()).unwrap();
            walk(from, name.as_bytes())
        };
        let opened = fstat(open("real//inner/").unwrap()).unwrap();
        let wanted = nix::sys::stat::stat(&real.join("inner")).unwrap();
        assert_eq!((opened.st_dev, opened.st_ino), (wanted.st_dev, wanted.st_ino));
        assert_eq!(open("link/inner").unwrap_err(), Errno::ELOOP);
        assert_eq!(open("real/last").unwrap_err(), Errno::ELOOP);
        assert_eq!(open("real/none").unwrap_err(), Errno::ENOENT);
    }
}
