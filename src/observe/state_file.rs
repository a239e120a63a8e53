//! One file a running tenant: locked while its supervisor lives, so that there
//! is one, and so that other commands find it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::value::Tenant;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Whose.
    pub tenant: Tenant,
    /// The supervisor.
    pub pid: u32,
    /// Its start time in clock ticks since boot, field 22 of proc_pid_stat(5):
    /// pid and start time together name a process for good.
    pub start_time: u64,
    /// Where the tenant listens.
    pub listen: Vec<String>,
    /// Its instance's cgroup.
    pub cgroup: Option<PathBuf>,
    /// Protections that it goes without.
    pub missing: Vec<String>,
}

/// The file, ours until dropped.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    file: Flock<File>,
}

/// Why the tenant's file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another supervisor runs this tenant.
    #[error("already running{} (stop it first, or choose another --tenant)", pid.map_or(String::new(), |pid| format!(" under pid {pid}")))]
    Busy {
        /// The supervisor, where the file said.
        pid: Option<u32>,
    },
    /// The file system.
    #[error("{}: {}", path.display(), crate::value::cause(cause))]
    Io {
        /// What was used.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
}

/// Where state files are: /run/gosandbox for root, $RUNTIME_DIRECTORY of a unit
/// with User=, $XDG_RUNTIME_DIR/gosandbox for people; `None` where there is no
/// such place, since a fixed name in /tmp could be anybody's.
pub fn directory(
    root: bool,
    variable: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Option<PathBuf> {
    if root {
        return Some(PathBuf::from("/run/gosandbox"));
    }
    if let Some(dirs) = variable("RUNTIME_DIRECTORY") {
        // Several are separated by colons: systemd.exec(5).
        let dirs = dirs.into_string().ok()?;
        return dirs.split(':').next().map(PathBuf::from);
    }
    variable("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("gosandbox"))
}

impl StateFile {
    /// Creates or takes over the tenant's file in `dir` and locks it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn acquire(dir: &Path, tenant: &Tenant) -> Result<Self, StateError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |cause: io::Error| StateError::Io { path, cause }
        };
        match DirBuilder::new().mode(0o750).create(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(io(dir)(e)),
            _ => {}
        }
        // A link or a stranger's directory in its place would have us write
        // where others choose (CVE-2026-1386).
        let data = dir.symlink_metadata().map_err(io(dir))?;
        if !data.is_dir()
            || data.mode() & 0o022 != 0
            || data.uid() != nix::unistd::geteuid().as_raw()
        {
            return Err(io(dir)(io::Error::other(
                "not a directory that only its owner, who is the caller, may write (remove it)",
            )));
        }
        let path = dir.join(format!("{tenant}.json"));
        loop {
            let (file, made) = open(&path).map_err(io(&path))?;
            let failed = |cause: io::Error| {
                if made {
                    drop(std::fs::remove_file(&path));
                }
                io(&path)(cause)
            };
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    return Err(StateError::Busy { pid: read(&mut file).map(|state| state.pid) });
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            // The last owner may have removed it between our open and our lock;
            // then this lock is on a file that nobody will find.
            let linked = path.symlink_metadata().is_ok_and(|there| {
                file.metadata()
                    .is_ok_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
            });
            if linked {
                let mut ours = Self { path: path.clone(), file };
                ours.file
                    .set_len(0)
                    .and_then(|()| ours.file.seek(SeekFrom::Start(0)))
                    .map_err(io(&path))?;
                return Ok(ours);
            }
        }
    }

    /// Where the tenant's other files are.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Writes what is known of the tenant.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write(&mut self, state: &State) -> Result<(), StateError> {
        let text = serde_json::to_string(state).map_err(io::Error::other);
        text.and_then(|text| self.file.write_all(text.as_bytes()))
            .map_err(|cause| StateError::Io { path: self.path.clone(), cause })
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        // Before the lock goes, so that nobody's new file is removed.
        drop(std::fs::remove_file(&self.path));
    }
}

/// The file, and whether it was made just now.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    match options.open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return Ok((other?, false)),
    }
    match options.create_new(true).open(path) {
        // Somebody was faster: it is there now, and theirs.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            Ok((options.create_new(false).open(path)?, false))
        }
        other => Ok((other?, true)),
    }
}

/// What the file of `tenant` in `dir` says; `None` where there is none that can
/// be read as one. Whether its supervisor still lives is for the caller to see.
///
/// # Errors
/// The file is there and may not be opened.
pub fn find(dir: &Path, tenant: &Tenant) -> io::Result<Option<State>> {
    let path = dir.join(format!("{tenant}.json"));
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(mut file) => Ok(read(&mut file).filter(|state| state.tenant == *tenant)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn read(file: &mut File) -> Option<State> {
    let mut text = String::new();
    file.take(1 << 16).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    fn state(pid: u32) -> State {
        State {
            tenant: "acme".parse().unwrap(),
            pid,
            start_time: 1,
            listen: vec![],
            cgroup: None,
            missing: vec![],
        }
    }

    #[test]
    fn one_supervisor_a_tenant() {
        let dir = TempDir::new("state");
        let (acme, other) = ("acme".parse().unwrap(), "other".parse().unwrap());
        let mut first = StateFile::acquire(dir.path(), &acme).unwrap();
        first.write(&state(42)).unwrap();
        let error = StateFile::acquire(dir.path(), &acme).unwrap_err().to_string();
        assert!(error.contains("pid 42"), "{error}");
        let other = StateFile::acquire(dir.path(), &other).unwrap();
        drop((first, other));
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        StateFile::acquire(dir.path(), &acme).unwrap();
    }

    #[test]
    fn what_a_dead_supervisor_left_is_taken_over() {
        let dir = TempDir::new("stale-state");
        let tenant = "acme".parse().unwrap();
        std::fs::write(dir.path().join("acme.json"), "x".repeat(4096)).unwrap();
        let mut file = StateFile::acquire(dir.path(), &tenant).unwrap();
        file.write(&state(7)).unwrap();
        let text = std::fs::read_to_string(dir.path().join("acme.json")).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state(7));
    }

    #[test]
    fn links_and_open_directories_are_refused() {
        let dir = TempDir::new("state-link");
        let tenant = "acme".parse().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("acme.json")).unwrap();
        assert!(StateFile::acquire(dir.path(), &tenant).is_err());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(StateFile::acquire(&link, &"b".parse().unwrap()).is_err());
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(StateFile::acquire(dir.path(), &"b".parse().unwrap()).is_err());
    }

    #[test]
    fn where_state_is_kept() {
        let none = |_: &str| None;
        assert_eq!(directory(true, none), Some("/run/gosandbox".into()));
        assert_eq!(directory(false, none), None);
        let unit = |name: &str| {
            Some(if name == "RUNTIME_DIRECTORY" { "/run/a:/run/b" } else { "/run/user/1" }.into())
        };
        assert_eq!(directory(false, unit), Some("/run/a".into()));
        let user = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| "/run/user/1".into());
        assert_eq!(directory(false, user), Some("/run/user/1/gosandbox".into()));
    }
}
