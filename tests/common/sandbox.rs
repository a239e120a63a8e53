//! A gosandbox that runs a tenant: built, started, watched, cleaned up after.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::temp::unique;
use super::{PATIENCE, TempDir, gosandbox, has_controllers, wait_for, within};

/// An ordinary user that nobody else is, with a home of its own and the
/// programs where it can reach them.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) id: u32,
    pub(crate) dir: TempDir,
}

impl User {
    pub(crate) fn new() -> Arc<Self> {
        Self::with_id(54321 + unique())
    }

    /// One that is there already, and may be told by its name.
    pub(crate) fn with_id(id: u32) -> Arc<Self> {
        let dir = TempDir::new();
        dir.dir("home", id);
        bring(gosandbox(), &dir.path().join("gosandbox"));
        Arc::new(Self { id, dir })
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// The program at `path`, where this user can reach it.
    pub(crate) fn reach(&self, path: &Path) -> PathBuf {
        let here = self.dir.path().join(path.file_name().unwrap());
        if !here.exists() {
            bring(path, &here);
        }
        here
    }
}

/// A second name where that can be, else a copy.
fn bring(from: &Path, to: &Path) {
    if std::fs::hard_link(from, to).is_err() {
        std::fs::copy(from, to).unwrap();
    }
}

/// What will be run, and how.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) tenant: String,
    pub(crate) user: Option<Arc<User>>,
    command: &'static str,
    flags: Vec<OsString>,
    binary: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    /// Command and arguments in front of gosandbox's own.
    wrapper: Vec<OsString>,
    /// Descriptor → number that it has in gosandbox.
    descriptors: Vec<(Arc<OwnedFd>, RawFd)>,
    /// Descriptors of LISTEN_FDS, from 3 on, and their names.
    inherited: Vec<(Arc<OwnedFd>, String)>,
    stdin: Option<Arc<OwnedFd>>,
    stdout: Option<Arc<OwnedFd>>,
    stderr: Option<Arc<OwnedFd>>,
    limit: Duration,
}

impl Sandbox {
    /// `gosandbox run` of `binary` for a tenant that no other test has, started
    /// as root.
    pub(crate) fn new(binary: impl Into<PathBuf>) -> Self {
        let tenant = format!("t{}-{}", std::process::id(), unique());
        Self {
            flags: Vec::new(),
            tenant,
            user: None,
            command: "run",
            binary: binary.into(),
            args: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
            descriptors: Vec::new(),
            inherited: Vec::new(),
            stdin: None,
            stdout: None,
            stderr: None,
            limit: PATIENCE,
        }
    }

    /// `gosandbox run` of an example program.
    pub(crate) fn example(name: &str) -> Self {
        Self::new(super::example(name))
    }

    /// `gosandbox run` of an example program for a tenant that has its host id
    /// already, and that id.
    pub(crate) fn known(name: &str) -> (Self, u32) {
        let sandbox = Self::example(name);
        let first = Self::example("hello").of(&sandbox);
        let output = first.run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        let id = sandbox.host_id().unwrap();
        (sandbox, id)
    }

    /// For the same tenant as `other`, started by the same user.
    pub(crate) fn of(mut self, other: &Self) -> Self {
        self.tenant.clone_from(&other.tenant);
        match &other.user {
            Some(user) => self.started_by(Arc::clone(user)),
            None => self,
        }
    }

    /// `gosandbox plan`, or whatever else takes the flags of `run`.
    pub(crate) fn command(mut self, command: &'static str) -> Self {
        self.command = command;
        self
    }

    /// Started by an ordinary user.
    pub(crate) fn unprivileged(self) -> Self {
        self.started_by(User::new())
    }

    pub(crate) fn started_by(mut self, user: Arc<User>) -> Self {
        self.binary = user.reach(&self.binary);
        self.user = Some(user);
        self
    }

    pub(crate) fn flag(mut self, flag: impl Into<OsString>) -> Self {
        self.flags.push(flag.into());
        self
    }

    pub(crate) fn option(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.flag(name).flag(value.as_ref())
    }

    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// A variable of gosandbox's own environment.
    pub(crate) fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Started by this command.
    pub(crate) fn wrapped<A: Into<OsString>>(mut self, by: impl IntoIterator<Item = A>) -> Self {
        self.wrapper = by.into_iter().map(Into::into).collect();
        self
    }

    /// gosandbox has this descriptor at `number`, not close-on-exec.
    pub(crate) fn descriptor(mut self, fd: impl Into<OwnedFd>, number: RawFd) -> Self {
        self.descriptors.push((Arc::new(fd.into()), number));
        self
    }

    /// gosandbox is handed this socket as systemd does it.
    pub(crate) fn inherit(mut self, fd: impl Into<OwnedFd>, name: &str) -> Self {
        self.inherited.push((Arc::new(fd.into()), name.to_owned()));
        self
    }

    pub(crate) fn stdin(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stdin = Some(Arc::new(fd.into()));
        self
    }

    pub(crate) fn stdout(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stdout = Some(Arc::new(fd.into()));
        self
    }

    pub(crate) fn stderr(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stderr = Some(Arc::new(fd.into()));
        self
    }

    /// The id that the tenant has on the host, known from its first start on.
    pub(crate) fn host_id(&self) -> Option<u32> {
        match &self.user {
            Some(user) => Some(user.id),
            None => super::recorded_id(&self.tenant),
        }
    }

    /// Where the state file is while the tenant runs.
    pub(crate) fn state_file(&self) -> PathBuf {
        let name = format!("{}.json", self.tenant);
        match &self.user {
            Some(user) => user.home().join("gosandbox").join(name),
            None => Path::new("/run/gosandbox").join(name),
        }
    }

    /// gosandbox's words after the wrapper.
    fn words(&self) -> Vec<OsString> {
        let program = match &self.user {
            Some(user) => user.reach(gosandbox()),
            None => gosandbox().to_owned(),
        };
        let mut words = vec![program.into_os_string(), self.command.into()];
        words.extend(["--tenant".into(), self.tenant.clone().into()]);
        words.extend(self.flags.iter().cloned());
        // Where there is nothing to delegate, nobody could start anything.
        if !has_controllers() || self.user.is_some() {
            words.extend(["--require".into(), "cgroup=best-effort".into()]);
        }
        words.push(self.binary.clone().into_os_string());
        words.extend(self.args.iter().cloned());
        words
    }

    fn build(&self) -> Command {
        let mut words = self.wrapper.clone();
        if !self.inherited.is_empty() {
            // The pid that LISTEN_PID has to have is known after the fork only,
            // and exec keeps it.
            let script = r#"export LISTEN_PID=$$; exec "$@""#;
            words.extend(["/bin/sh", "-c", script, "sh"].map(OsString::from));
        }
        words.extend(self.words());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        if let Some(user) = &self.user {
            command.uid(user.id).gid(user.id);
            command.env("HOME", user.home()).env("XDG_RUNTIME_DIR", user.home());
            command.current_dir(user.dir.path());
        }
        if !self.inherited.is_empty() {
            let names: Vec<_> = self.inherited.iter().map(|(_, n)| n.as_str()).collect();
            command
                .env("LISTEN_FDS", self.inherited.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        let mut layout: Vec<(RawFd, RawFd)> = Vec::new();
        for (number, (fd, _)) in (3..).zip(&self.inherited) {
            layout.push((fd.as_raw_fd(), number));
        }
        for (fd, number) in &self.descriptors {
            layout.push((fd.as_raw_fd(), *number));
        }
        if !layout.is_empty() {
            // SAFETY: between fork and exec the closure makes system calls only.
            unsafe { command.pre_exec(move || lay_out(&layout)) };
        }
        command
    }

    /// Starts it and leaves it running.
    pub(crate) fn start(&self) -> Running {
        let mut command = self.build();
        let given = |fd: &Option<Arc<OwnedFd>>, otherwise: Stdio| match fd {
            Some(fd) => Stdio::from(fd.try_clone().unwrap()),
            None => otherwise,
        };
        command
            .stdin(given(&self.stdin, Stdio::null()))
            .stdout(given(&self.stdout, Stdio::piped()))
            .stderr(given(&self.stderr, Stdio::piped()));
        let mut child = command.spawn().unwrap();
        Running {
            stdout: Capture::of(child.stdout.take()),
            stderr: Capture::of(child.stderr.take()),
            child,
            status: None,
            limit: self.limit,
            sandbox: self.clone(),
        }
    }

    /// Runs it to its end.
    pub(crate) fn run(&self) -> Output {
        self.start().wait()
    }

    /// Runs it to its end, which must be good, and gives its stdout as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        let output = self.run();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What is still there of the tenant, in words; nothing, if all is well.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = super::processes_of(&self.tenant, self.host_id())
            .into_iter()
            .map(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                format!("process {pid}: {line}")
            })
            .collect();
        left.extend(
            super::cgroups_of(&self.tenant).iter().map(|dir| format!("cgroup {}", dir.display())),
        );
        let state = self.state_file();
        if state.symlink_metadata().is_ok() {
            left.push(format!("state file {}", state.display()));
        }
        left
    }

    /// Nothing is left of the tenant, or is about to be: what the kernel still
    /// takes down has a moment for it.
    pub(crate) fn assert_nothing_left(&self) {
        let mut left = Vec::new();
        let clean = within(Duration::from_secs(10), || {
            left = self.leftovers();
            left.is_empty().then_some(())
        });
        assert!(clean.is_some(), "left behind: {left:?}");
    }
}

/// Gives each descriptor its number. First all of them out of the way of the
/// numbers that they are to have.
fn lay_out(layout: &[(RawFd, RawFd)]) -> std::io::Result<()> {
    const HIGH: RawFd = 500;
    let mut copies = [-1; 64];
    for (copy, (from, _)) in copies.iter_mut().zip(layout) {
        // SAFETY: F_DUPFD takes integers only.
        *copy = unsafe { libc::fcntl(*from, libc::F_DUPFD, HIGH) };
        if *copy < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    for (copy, (_, to)) in copies.iter().zip(layout) {
        // SAFETY: dup2 takes integers only; this process is about to exec.
        if unsafe { libc::dup2(*copy, *to) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the copy was made above and nobody else has it.
        unsafe { libc::close(*copy) };
    }
    Ok(())
}

/// What comes out of a pipe, read as it comes.
#[derive(Debug)]
struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Capture {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let reader = pipe.map(|mut pipe| {
            let bytes = Arc::clone(&bytes);
            std::thread::spawn(move || {
                let mut piece = [0; 64 << 10];
                while let Ok(length @ 1..) = pipe.read(&mut piece) {
                    bytes.lock().unwrap().extend_from_slice(&piece[..length]);
                }
            })
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    /// Everything, once the writers are gone, which the caller has seen to.
    fn all(&mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            let done = within(Duration::from_secs(20), || reader.is_finished().then_some(()));
            assert!(done.is_some(), "somebody keeps a descriptor of gosandbox's");
            reader.join().unwrap();
        }
        self.so_far()
    }
}

/// A gosandbox that was started. Stopped when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: Capture,
    stderr: Capture,
    status: Option<ExitStatus>,
    limit: Duration,
    pub(crate) sandbox: Sandbox,
}

impl Running {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.so_far()).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    /// Waits for a line on stdout that begins with `start`, and gives it.
    pub(crate) fn line(&mut self, start: &str) -> String {
        self.find(start, Self::stdout)
    }

    /// The same on stderr.
    pub(crate) fn stderr_line(&mut self, start: &str) -> String {
        self.find(start, Self::stderr)
    }

    fn find(&mut self, start: &str, text: fn(&Self) -> String) -> String {
        let found = within(self.limit, || {
            // Asked before the text is, so that its last words are not missed.
            let over = self.has_ended();
            let text = text(self);
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let line = whole.lines().find(|line| line.starts_with(start));
            match line {
                Some(line) => Some(Ok(line.to_owned())),
                None if over => Some(Err(())),
                None => None,
            }
        });
        match found {
            Some(Ok(line)) => line,
            _ => panic!(
                "no line {start:?}; stdout: {:?}; stderr: {:?}",
                self.stdout(),
                self.stderr()
            ),
        }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status.is_some()
    }

    /// Waits for the tenant's processes: init and the app.
    pub(crate) fn app(&self) -> i32 {
        wait_for("the app", || {
            let all = super::processes_of(&self.sandbox.tenant, self.sandbox.host_id());
            super::with_inner_pid(&all, 2)
        })
    }

    /// Waits for the sandbox's pid 1.
    pub(crate) fn init(&self) -> i32 {
        wait_for("init", || {
            let all = super::processes_of(&self.sandbox.tenant, self.sandbox.host_id());
            super::with_inner_pid(&all, 1)
        })
    }

    /// Waits for its end. One that takes too long is killed, and a failure.
    pub(crate) fn wait(mut self) -> Output {
        let begun = Instant::now();
        let ended = within(self.limit, || self.has_ended().then_some(()));
        if ended.is_none() {
            self.end();
            panic!("no end; stdout: {:?}; stderr: {:?}", self.stdout(), self.stderr());
        }
        Output {
            status: self.status.unwrap(),
            stdout: self.stdout.all(),
            stderr: self.stderr.all(),
            waited: begun.elapsed(),
            tenant: self.sandbox.tenant.clone(),
        }
    }

    fn end(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Running {
    /// In a hurry, but in order, so that a test that is done with it leaves
    /// nothing behind: a second SIGINT kills the tenant at once.
    fn drop(&mut self) {
        let ended = within(Duration::from_secs(10), || {
            if self.has_ended() {
                return Some(());
            }
            // It may have ended in between.
            _ = kill(Pid::from_raw(self.pid()), Signal::SIGINT);
            None
        });
        if ended.is_none() {
            self.end();
        }
    }
}

/// How it ended.
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// How long its end was waited for.
    pub(crate) waited: Duration,
    tenant: String,
}

impl std::fmt::Debug for Output {
    /// The text as text, which is what one wants to see of a failed test.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output")
            .field("status", &self.status)
            .field("stdout", &self.stdout())
            .field("stderr", &String::from_utf8_lossy(&self.stderr))
            .finish_non_exhaustive()
    }
}

impl Output {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its stderr without the one line about what the machine does not give.
    pub(crate) fn stderr(&self) -> String {
        let missing = format!("gosandbox: tenant {}: goes without ", self.tenant);
        String::from_utf8_lossy(&self.stderr)
            .lines()
            .filter(|line| !line.starts_with(&missing))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// It ended by exit with `code`, and said one line that begins with
    /// `gosandbox: tenant NAME: ` and goes on with `start`.
    pub(crate) fn assert_refused(&self, code: i32, start: &str) {
        assert_eq!(self.code(), Some(code), "{self:?}");
        let said = self.stderr();
        let whole = format!("gosandbox: tenant {}: {start}", self.tenant);
        assert!(
            said.starts_with(&whole) && said.lines().count() == 1,
            "{said:?} is not one line beginning with {whole:?}"
        );
    }
}
