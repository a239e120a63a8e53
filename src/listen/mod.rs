//! Listening sockets: opened here, or taken over from systemd, and handed to
//! the tenant.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike,
    SockaddrStorage, UnixAddr, setsockopt, sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, getegid, setegid};

use crate::plan::ListenerPlan;
use crate::policy::Address;

/// As long a queue as the kernel gives: it cuts this to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// A socket that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {cause}")]
pub struct ListenError {
    /// Where it was to listen.
    pub address: String,
    /// Why not.
    pub cause: io::Error,
}

/// One open listening socket.
#[derive(Debug)]
pub struct Socket {
    /// The socket, close-on-exec.
    pub fd: OwnedFd,
    /// Where it listens, with the port it got where 0 was asked for.
    pub address: Address,
    /// It was to take any free port.
    pub any_port: bool,
    /// The socket file that we made and have to remove.
    made: Option<PathBuf>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            // It may be gone or replaced by now; nothing depends on it.
            drop(std::fs::remove_file(path));
        }
    }
}

/// Makes the network namespace at `path` this process's own, so that sockets are
/// born in it and the tenant with them. A socket of another namespace would be a
/// way into that.
///
/// # Errors
/// It is no network namespace, or may not be entered: setns(2).
pub fn enter_network(path: &Path) -> io::Result<()> {
    let namespace = File::open(path)?;
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Opens every socket, or takes over the inherited one, in their order.
///
/// # Errors
/// The first that cannot be had; those opened before it are closed.
pub fn open(plans: &[ListenerPlan]) -> Result<Vec<Socket>, ListenError> {
    plans.iter().map(one).collect()
}

fn one(plan: &ListenerPlan) -> Result<Socket, ListenError> {
    let failed =
        |cause: io::Error| ListenError { address: plan.listener.address.to_string(), cause };
    if let Some(inherited) = plan.inherited {
        let fd = crate::sys::fd::adopt(inherited).map_err(|e| failed(e.into()))?;
        return Ok(Socket {
            fd,
            address: plan.listener.address.clone(),
            any_port: false,
            made: None,
        });
    }
    match &plan.listener.address {
        Address::Tcp(address) => {
            let any_port = address.port() == 0;
            let (family, storage): (_, Box<dyn SockaddrLike>) = match address {
                std::net::SocketAddr::V4(v4) => {
                    (AddressFamily::Inet, Box::new(SockaddrIn::from(*v4)))
                }
                std::net::SocketAddr::V6(v6) => {
                    (AddressFamily::Inet6, Box::new(SockaddrIn6::from(*v6)))
                }
            };
            let fd = stream(family).map_err(failed)?;
            // A restart must not wait for connections in TIME_WAIT: socket(7).
            setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(|e| failed(e.into()))?;
            socket::bind(fd.as_raw_fd(), storage.as_ref())
                .and_then(|()| socket::listen(&fd, Backlog::new(BACKLOG)?))
                .map_err(|e| failed(e.into()))?;
            let address = socket::getsockname::<SockaddrStorage>(fd.as_raw_fd())
                .map_err(|e| failed(e.into()))
                .map(|got| got_port(*address, &got))?;
            Ok(Socket { fd, address: Address::Tcp(address), any_port, made: None })
        }
        Address::Unix { path, mode, group } => {
            unix(path, *mode, group.as_deref(), &plan.listener.address).map_err(failed)
        }
    }
}

/// Makes sure that every socket was born in this network namespace: one that
/// systemd opened elsewhere would lead there.
///
/// # Errors
/// The first that was not.
pub fn all_of_this_network(sockets: &[Socket]) -> Result<(), ListenError> {
    let cookie = |fd: &OwnedFd| crate::sys::net::namespace_cookie(fd.as_fd());
    for socket in sockets {
        let failed = |cause| ListenError { address: socket.address.to_string(), cause };
        let here = stream(AddressFamily::Unix).map_err(failed)?;
        let same = cookie(&socket.fd).and_then(|theirs| Ok(theirs == cookie(&here)?));
        if !same.map_err(|e| failed(e.into()))? {
            return Err(failed(io::Error::other(
                "opened in another network namespace (give the socket unit NetworkNamespacePath= too)",
            )));
        }
    }
    Ok(())
}

fn got_port(mut asked: std::net::SocketAddr, got: &SockaddrStorage) -> std::net::SocketAddr {
    let port = got
        .as_sockaddr_in()
        .map(SockaddrIn::port)
        .or_else(|| got.as_sockaddr_in6().map(SockaddrIn6::port));
    asked.set_port(port.unwrap_or(asked.port()));
    asked
}

fn stream(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Owner, group and mode are right from the moment the file exists: by umask and,
/// for root, by the effective gid. Nothing is looked up by its path afterwards,
/// where a link could stand by then, put there by whoever may write the
/// directory.
fn unix(path: &Path, mode: u32, group: Option<&str>, address: &Address) -> io::Result<Socket> {
    let group = group.map(group_id).transpose()?.map(Gid::from_raw);
    remove_stale(path)?;
    let fd = stream(AddressFamily::Unix)?;
    let unix = UnixAddr::new(path)?;
    // Both are the process's own, and this one has one thread.
    let own = getegid();
    let mask = umask(Mode::from_bits_truncate(0o777 & !mode));
    let given = group.map_or(Ok(()), setegid);
    let bound = socket::bind(fd.as_raw_fd(), &unix);
    umask(mask);
    let back = setegid(own);
    bound?;
    // From here on it is removed again, whatever fails.
    let socket =
        Socket { fd, address: address.clone(), any_port: false, made: Some(path.to_owned()) };
    back?;
    match given {
        // Not root: a group of the caller's can only be given to it by path,
        // which takes no privilege that somebody could borrow.
        Err(Errno::EPERM) => std::os::unix::fs::lchown(path, None, group.map(Gid::as_raw))?,
        other => other?,
    }
    socket::listen(&socket.fd, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

/// A socket file that nobody listens on is in the way of bind(2) and goes.
/// Anything else at that path stays and is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(data) = path.symlink_metadata() else {
        return Ok(());
    };
    if !data.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is no socket is there",
        ));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(e) => Err(e),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// The id of a group of /etc/group; a static executable has no NSS, so a group
/// of a directory service has to be written as a number.
fn group_id(name: &str) -> io::Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let text = std::fs::read_to_string("/etc/group")?;
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| fields.get(2)?.parse().ok())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("no group {name} in /etc/group (add it, or write its number)"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Listener;
    use crate::testing::TempDir;
    use std::os::unix::fs::PermissionsExt;

    fn plan(text: &str) -> ListenerPlan {
        ListenerPlan { listener: text.parse::<Listener>().unwrap(), inherited: None }
    }

    #[test]
    fn port_zero_says_which_it_got_and_can_be_connected_to() {
        let sockets = open(&[plan("tcp:127.0.0.1:0")]).unwrap();
        let Address::Tcp(address) = sockets[0].address else { panic!() };
        assert_ne!(address.port(), 0);
        std::net::TcpStream::connect(address).unwrap();
        let error = open(&[plan(&format!("tcp:{address}"))]).unwrap_err();
        assert_eq!(error.cause.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_unix_socket_has_its_mode_and_goes_away() {
        let dir = TempDir::new("listen");
        let path = dir.path().join("s");
        let text = format!("unix:{}", path.display());
        let sockets = open(&[plan(&text)]).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        // Somebody listens: not taken away from under them.
        assert_eq!(open(&[plan(&text)]).unwrap_err().cause.kind(), io::ErrorKind::AddrInUse);
        drop(sockets);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = TempDir::new("stale");
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let text = format!("unix:{}", path.display());
        drop(open(&[plan(&text)]).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(open(&[plan(&text)]).unwrap_err().cause.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
