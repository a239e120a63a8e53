//! The wall alone: a thread goes under the ruleset that `Prepared` makes of a
//! plan, and is then in no other namespace, root or filter than this program.
//! What is tried there is tried before without it, where all of it works.
//!
//! A thread, because Landlock and no_new_privs hold for one (and for what comes
//! of it), so nothing has to be forked in a program of many threads.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::host::{self, Roots};
use crate::plan::{Request, StdinFact, resolve};
use crate::policy::{self, Layer, Source};
use crate::spawn::Prepared;
use crate::testing::{TempDir, program};

/// What was tried, and what came of it: nothing, or the errno.
type Results = BTreeMap<String, Option<i32>>;

/// Directories that a plan binds, or does not: what it is about is in all three.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        // Not /tmp, which is the tenant's.
        let place = Self { dir: TempDir::below(Path::new("/var/tmp"), "wall") };
        let all = |mode| PermissionsExt::from_mode(mode);
        for name in ["read-only", "writable", "elsewhere"] {
            let dir = place.at(name);
            for dir in [&dir, &dir.join("sub"), &dir.join("empty")] {
                fs::create_dir(dir).unwrap();
                fs::set_permissions(dir, all(0o777)).unwrap();
            }
            for file in ["file", "long", "gone", "renamed", "moved", "linked"] {
                fs::write(dir.join(file), "text").unwrap();
            }
            fs::write(dir.join("program"), program(5, 6)).unwrap();
            fs::set_permissions(dir.join("program"), all(0o755)).unwrap();
        }
        fs::write(place.at("app"), program(5, 6)).unwrap();
        fs::set_permissions(place.at("app"), all(0o755)).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What would start a tenant here; `None` where this machine cannot.
    fn prepare(&self, network: &str, version: Option<u32>) -> Option<Prepared> {
        let tenant = "wall".parse().unwrap();
        let toml = format!(
            "[network]\nmode = \"{network}\"\n[require]\ncgroup = \"best-effort\"\n\
             [filesystem]\nread_only = [\"{0}/read-only:/ro\"]\nread_write = [\"{0}/writable:/rw\"]",
            self.dir.path().display()
        );
        let layer = Layer { source: Source::Flags, file: toml::from_str(&toml).unwrap() };
        let policy = policy::load(None, None, vec![layer], false).unwrap();
        let mut host = host::read(&Roots::default(), &tenant, &policy, false).unwrap();
        host.cgroup = None;
        host.stdin = StdinFact::Ordinary;
        let what = match (&host.landlock.version(), host.host_id) {
            (Err((cause, _)), _) => Some(format!("Landlock: {cause}")),
            (Ok(_), None) if host.uid.0 == 0 => Some("root without capabilities".to_owned()),
            (Ok(_), _) => None,
        };
        if let Some(what) = what {
            let skip = std::env::var_os("GOSANDBOX_NO_SKIP").is_none_or(|value| value != "1");
            assert!(skip, "not to be skipped: {what}");
            drop(io::stderr().write_all(format!("SKIPPED: {what}\n").as_bytes()));
            return None;
        }
        let (file, path) = host::open_binary(&self.at("app"), false).unwrap();
        let binary = crate::golang::read(&file, &path).unwrap();
        let request = Request { tenant, policy, args: Vec::new(), scoped: false, learns: false };
        let mut plan = resolve(&request, &host, &binary).unwrap();
        if let (Some(wall), Some(version)) = (&mut plan.wall, version) {
            wall.version = wall.version.min(version);
        }
        Some(Prepared::new(&plan, file, &[], None).unwrap())
    }
}

/// Does it in a thread that goes under `prepared`'s wall first.
fn walled<T: Send>(prepared: &mut Prepared, action: impl FnOnce() -> T + Send) -> T {
    let wall = prepared.wall.as_mut().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            crate::sys::privilege::no_new_privs().unwrap();
            wall.enter().unwrap();
            action()
        });
        thread.join().unwrap()
    })
}

/// The version of this kernel, as far as it is used.
fn version() -> Option<u32> {
    crate::sys::landlock::version().ok().map(|version| version.min(7))
}

fn errno_of<T>(result: io::Result<T>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().unwrap())
}

fn of<T>(result: nix::Result<T>) -> io::Result<()> {
    result.map(drop).map_err(io::Error::from)
}

fn same(what: &[&str], errno: Option<i32>) -> Results {
    what.iter().map(|what| ((*what).to_owned(), errno)).collect()
}

/// Every way to change a directory, tried in `dir`.
fn changes(dir: &Path) -> Results {
    let at = |name: &str| dir.join(name);
    let fifo = nix::sys::stat::Mode::from_bits_truncate(0o600);
    [
        ("write", OpenOptions::new().write(true).open(at("file")).map(drop)),
        ("truncate", of(nix::unistd::truncate(&at("long"), 1))),
        ("make a file", File::create_new(at("new")).map(drop)),
        ("make a directory", fs::create_dir(at("new-dir"))),
        ("make a link", symlink("file", at("new-link"))),
        ("make a fifo", of(nix::unistd::mkfifo(&at("new-fifo"), fifo))),
        ("make a socket", UnixListener::bind(at("new-socket")).map(drop)),
        ("remove a file", fs::remove_file(at("gone"))),
        ("remove a directory", fs::remove_dir(at("empty"))),
        ("rename", fs::rename(at("renamed"), at("new-name"))),
        ("move", fs::rename(at("moved"), at("sub/moved"))),
        ("link", fs::hard_link(at("linked"), at("sub/linked"))),
    ]
    .map(|(what, result)| (what.to_owned(), errno_of(result)))
    .into()
}

const CHANGES: [&str; 12] = [
    "write",
    "truncate",
    "make a file",
    "make a directory",
    "make a link",
    "make a fifo",
    "make a socket",
    "remove a file",
    "remove a directory",
    "rename",
    "move",
    "link",
];

#[test]
fn only_what_is_writable_can_be_changed() {
    for version in 1..=version().unwrap_or(1) {
        let (free, place) = (Place::new(), Place::new());
        let Some(mut prepared) = place.prepare("private", Some(version)) else { return };
        for name in ["read-only", "writable", "elsewhere"] {
            assert_eq!(changes(&free.at(name)), same(&CHANGES, None), "the control, {name}");
        }
        let mut shut = same(&CHANGES, Some(libc::EACCES));
        let mut open = same(&CHANGES, None);
        if version < 3 {
            shut.insert("truncate".to_owned(), None);
        }
        if version < 2 {
            // landlock(7): nothing could be moved to another directory.
            for what in ["move", "link"] {
                open.insert(what.to_owned(), Some(libc::EXDEV));
            }
        }
        let results = walled(&mut prepared, || {
            ["read-only", "writable", "elsewhere"].map(|name| changes(&place.at(name)))
        });
        assert_eq!(results, [shut.clone(), open, shut], "version {version}");
    }
}

#[test]
fn only_what_is_meant_for_it_can_be_executed() {
    let place = Place::new();
    let Some(mut prepared) = place.prepare("private", None) else { return };
    let programs = ["app", "read-only/program", "writable/program", "elsewhere/program"];
    let start = |name: &str| {
        let status = Command::new(place.at(name)).status()?;
        assert!(status.success(), "{name}: {status}");
        Ok(())
    };
    assert_eq!(programs.map(|name| errno_of(start(name))), [None; 4], "the control");
    let results = walled(&mut prepared, || programs.map(|name| errno_of(start(name))));
    assert_eq!(results, [None, None, Some(libc::EACCES), Some(libc::EACCES)]);
}

#[test]
fn everything_can_be_read() {
    let place = Place::new();
    let Some(mut prepared) = place.prepare("private", None) else { return };
    walled(&mut prepared, || {
        for name in ["read-only", "writable", "elsewhere"] {
            assert_eq!(fs::read_to_string(place.at(name).join("file")).unwrap(), "text");
            assert!(fs::read_dir(place.at(name)).unwrap().count() > 5);
        }
        fs::read_to_string("/proc/self/status").unwrap();
        fs::read_link("/proc/self/exe").unwrap();
    });
}

#[test]
fn devices_are_for_what_they_are_good_for() {
    let place = Place::new();
    let Some(mut prepared) = place.prepare("private", None) else { return };
    let devices = ["null", "zero", "full", "random", "urandom"];
    let tried = || {
        devices.map(|name| {
            let path = Path::new("/dev").join(name);
            // As os.Create and a shell's > open it.
            let mut options = OpenOptions::new();
            let written = options.write(true).create(true).truncate(true).open(&path);
            (errno_of(File::open(path)), errno_of(written))
        })
    };
    assert_eq!(tried(), [(None, None); 5], "the control");
    let refused = (None, Some(libc::EACCES));
    let fine = (None, None);
    assert_eq!(walled(&mut prepared, tried), [fine, fine, fine, refused, refused]);
}

/// A question to a terminal, of which no tenant has one: the filter lets it
/// through.
#[test]
fn a_device_that_is_opened_inside_takes_no_orders() {
    use nix::fcntl::OFlag;
    use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
    for version in 1..=version().unwrap_or(1) {
        let place = Place::new();
        let Some(mut prepared) = place.prepare("private", Some(version)) else { return };
        let ours = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let path = ptsname_r(&ours).unwrap();
        let ask = || {
            let flags = OFlag::O_RDONLY | OFlag::O_NOCTTY;
            let theirs = nix::fcntl::open(path.as_str(), flags, Mode::empty()).unwrap();
            nix::sys::termios::tcgetattr(theirs).err()
        };
        assert_eq!(ask(), None, "the control");
        let expected = (version >= 5).then_some(Errno::EACCES);
        assert_eq!(walled(&mut prepared, ask), expected, "version {version}");
    }
}

/// Devices are not made even where everything else may be.
#[test]
fn no_device_is_made() {
    use nix::sys::stat::{makedev, mknod};
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (free, place) = (Place::new(), Place::new());
    let Some(mut prepared) = place.prepare("private", None) else { return };
    let make = |place: &Place| {
        [SFlag::S_IFCHR, SFlag::S_IFBLK].map(|kind| {
            let path = place.at("writable").join(format!("{kind:?}"));
            mknod(&path, kind, Mode::from_bits_truncate(0o600), makedev(1, 3)).err()
        })
    };
    let control = make(&free);
    if control != [None; 2] {
        drop(io::stderr().write_all(b"SKIPPED: root may make no device here\n"));
        return;
    }
    assert_eq!(walled(&mut prepared, || make(&place)), [Some(Errno::EACCES); 2]);
}

/// What stdout and stderr are, and what a program may have made for itself.
#[test]
fn what_has_no_place_in_a_file_system_is_not_walled_off() {
    let place = Place::new();
    let Some(mut prepared) = place.prepare("private", None) else { return };
    let (read, write) = nix::unistd::pipe().unwrap();
    walled(&mut prepared, || {
        let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut again = OpenOptions::new().write(true).open(path(&write)).unwrap();
        again.write_all(b"through the pipe").unwrap();
        let mut bytes = [0; 16];
        nix::unistd::read(&read, &mut bytes).unwrap();
        assert_eq!(&bytes, b"through the pipe");
        let flags = nix::sys::memfd::MFdFlags::empty();
        let memory = nix::sys::memfd::memfd_create("wall", flags).unwrap();
        OpenOptions::new().write(true).open(path(&memory)).unwrap();
    });
}

#[test]
fn tcp_is_the_brokers_in_a_private_network() {
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = outside.local_addr().unwrap();
    let tried = || {
        [
            errno_of(TcpListener::bind("127.0.0.1:0")),
            errno_of(TcpListener::bind("[::1]:0")),
            errno_of(TcpStream::connect(address)),
            // Nothing is said of datagrams.
            errno_of(UdpSocket::bind("127.0.0.1:0").and_then(|udp| udp.connect(address))),
        ]
    };
    assert_eq!(tried(), [None; 4], "the control");
    for (network, from) in [("private", 4), ("host", u32::MAX)] {
        for version in 1..=version().unwrap_or(1) {
            let place = Place::new();
            let Some(mut prepared) = place.prepare(network, Some(version)) else { return };
            let refused = (version >= from).then_some(libc::EACCES);
            let results = walled(&mut prepared, tried);
            assert_eq!(results, [refused, refused, refused, None], "{network}, version {version}");
        }
    }
}

/// A socket without a file, and its name.
fn abstract_name(what: &str) -> SocketAddr {
    let name = format!("gosandbox-wall-{what}-{}", std::process::id());
    SocketAddr::from_abstract_name(name).unwrap()
}

#[test]
fn abstract_sockets_of_others_are_not_reached() {
    let name = abstract_name("stream");
    let _outside = UnixListener::bind_addr(&name).unwrap();
    let datagrams = abstract_name("datagram");
    let _datagrams = UnixDatagram::bind_addr(&datagrams).unwrap();
    let send = || UnixDatagram::unbound()?.send_to_addr(b"x", &datagrams);
    let tried = || [errno_of(UnixStream::connect_addr(&name)), errno_of(send())];
    assert_eq!(tried(), [None; 2], "the control");
    for network in ["private", "host"] {
        for version in 1..=version().unwrap_or(1) {
            let place = Place::new();
            let Some(mut prepared) = place.prepare(network, Some(version)) else { return };
            let refused = (version >= 6).then_some(libc::EPERM);
            let own = abstract_name(&format!("{network}-{version}"));
            let results = walled(&mut prepared, || {
                // Its own are reached.
                let _listener = UnixListener::bind_addr(&own).unwrap();
                UnixStream::connect_addr(&own).unwrap();
                tried()
            });
            assert_eq!(results, [refused; 2], "{network}, version {version}");
        }
    }
}

/// A process that sleeps until it is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self(Command::new("/bin/sleep").arg("60").spawn().unwrap())
    }

    fn signal(&self, signal: Option<Signal>) -> nix::Result<()> {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn signals_reach_nobody_outside() {
    let outside = Sleeper::new();
    assert_eq!(outside.signal(None), Ok(()), "the control");
    for version in 1..=version().unwrap_or(1) {
        let place = Place::new();
        let Some(mut prepared) = place.prepare("private", Some(version)) else { return };
        let result = walled(&mut prepared, || {
            // Threads of one process, and what it started, are not outside.
            kill(Pid::this(), None).unwrap();
            let mut child = Command::new(place.at("app")).spawn().unwrap();
            kill(Pid::from_raw(child.id().try_into().unwrap()), None).unwrap();
            assert!(child.wait().unwrap().success());
            outside.signal(None)
        });
        let expected = if version >= 6 { Err(Errno::EPERM) } else { Ok(()) };
        assert_eq!(result, expected, "version {version}");
    }
}

/// security/landlock/task.c: a domain may look into itself and what it made. That
/// the broker, which is in none, looks in is what every private network shows.
#[test]
fn processes_outside_are_not_looked_into() {
    let outside = Sleeper::new();
    let exe = |pid: u32| errno_of(fs::read_link(format!("/proc/{pid}/exe")));
    let (own, other) = (std::process::id(), outside.0.id());
    assert_eq!([exe(own), exe(other)], [None; 2], "the control");
    let place = Place::new();
    let Some(mut prepared) = place.prepare("private", None) else { return };
    let results = walled(&mut prepared, || [exe(own), exe(other)]);
    assert_eq!(results, [None, Some(libc::EACCES)]);
}

/// The sixteenth is the last: landlock_restrict_self(2), E2BIG. And none of them
/// takes memory of the process, which is init's and must not change: neither
/// where it goes well nor where it fails.
#[test]
fn too_many_domains_are_an_error_and_none_allocates() {
    use crate::sys::counting::count;
    let place = Place::new();
    let Some(mut prepared) = place.prepare("private", None) else { return };
    let before = count();
    drop(vec![1]);
    assert_eq!(count() - before, 2, "the control");
    walled(&mut prepared, || {
        for number in 2..=17 {
            let mut prepared = place.prepare("private", None).unwrap();
            let wall = prepared.wall.as_mut().unwrap();
            let before = count();
            let result = wall.enter();
            assert_eq!(count(), before, "{number}");
            let expected = if number > 16 { Err(Errno::E2BIG) } else { Ok(()) };
            assert_eq!(result, expected, "{number}");
        }
    });
}
