//! Making, signalling and awaiting processes by pidfd.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::check;

/// include/uapi/linux/sched.h; libc's constant is an int and overflows to 0.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Cloned {
    /// The new process.
    Child,
    /// The caller, with the new process's pid (in the caller's pid namespace)
    /// and a pidfd for it.
    Parent {
        /// Process id.
        pid: libc::pid_t,
        /// Process descriptor, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// A copy of this process in new namespaces: clone3(2) with CLONE_PIDFD.
///
/// `namespaces` is an OR of CLONE_NEW*; `cgroup` is a cgroup v2 directory to be
/// born in (CLONE_INTO_CGROUP, Linux 5.7). Memory is copied, not shared.
///
/// # Errors
/// What clone3(2) says: EPERM or ENOSPC where user namespaces are restricted,
/// EACCES where the cgroup may not be entered, EBUSY where it has controllers
/// enabled for children.
pub fn clone(namespaces: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from((libc::CLONE_PIDFD | namespaces).cast_unsigned());
    args.exit_signal = libc::SIGCHLD as u64;
    args.pidfd = &raw mut pidfd as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: `args` is a clone_args of the size passed. Without CLONE_VM the
    // child runs on a copy of this stack, as after fork. The supervisor has one
    // thread, so no lock of the allocator or of std can be held by another.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>())
    })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    Ok(Cloned::Parent {
        pid: libc::pid_t::try_from(pid).map_err(|_| Errno::EOVERFLOW)?,
        // SAFETY: the kernel has just put a new descriptor there, ours alone.
        pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
    })
}

/// Memory for [`vfork`] to run on.
#[derive(Debug)]
pub struct Stack(Vec<u128>);

impl Stack {
    /// 64 KiB: the app's part of the sequence takes a few.
    pub fn new() -> Self {
        // Without a value: of memory that is never touched there is none.
        Self(Vec::with_capacity(4096))
    }
}

impl Default for Stack {
    fn default() -> Self {
        Self::new()
    }
}

/// A child in the same namespaces that runs `f` on `stack`, sharing this
/// process's memory and descriptors, while this process is suspended until the
/// child has called exec or `_exit`: clone(2) with CLONE_VM, CLONE_FILES and
/// CLONE_VFORK. Returns its pid. Copying the memory instead would take longer
/// than all of `f`.
///
/// Exec gives the child a table of descriptors of its own before it closes
/// those that are close-on-exec, so what `f` opened stays open here: execve(2).
pub fn vfork<T>(mut stack: Stack, f: fn(&mut T) -> !, data: &mut T) -> Result<libc::pid_t, Errno> {
    struct Call<'a, T> {
        f: fn(&mut T) -> !,
        data: &'a mut T,
    }
    extern "C" fn enter<T>(call: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `call` is the Call<T> below, which lives in the caller's frame;
        // the caller is suspended and does not touch it.
        let call = unsafe { &mut *call.cast::<Call<'_, T>>() };
        (call.f)(call.data)
    }
    let mut call = Call { f, data };
    let top = stack.0.spare_capacity_mut().as_mut_ptr_range().end;
    // SAFETY: `top` is the 16-byte aligned end of memory that `stack` owns until
    // after this call, and by then the child has left it (CLONE_VFORK). The
    // child cannot outlive `call` for the same reason. This process has one
    // thread, so nothing else runs in the shared memory meanwhile.
    let pid = unsafe {
        libc::clone(
            enter::<T>,
            top.cast(),
            libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK | libc::SIGCHLD,
            (&raw mut call).cast(),
        )
    };
    check(pid.into())?;
    Ok(pid)
}

/// NUL-terminated strings and the pointers to them with a null at the end, as
/// execve(2) wants them. Made before clone.
#[derive(Debug)]
pub struct StringArray {
    strings: Vec<Vec<u8>>,
    pointers: Vec<*const u8>,
}

impl StringArray {
    /// Takes the strings and lays out the pointers. The strings are owned and
    /// never grow, so the pointers stay good.
    pub fn new(strings: Vec<CString>) -> Self {
        let strings: Vec<Vec<u8>> = strings.into_iter().map(CString::into_bytes_with_nul).collect();
        let mut pointers: Vec<_> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { strings, pointers }
    }

    /// Writes `value` in decimal into string number `index`, from byte `offset`
    /// on, and ends the string there. ENAMETOOLONG where it was not made long
    /// enough.
    ///
    /// This is how LISTEN_PID gets its value: it is the pid inside the
    /// namespace, not known before the process exists, and nothing may be
    /// allocated then.
    pub fn write_number(&mut self, index: usize, offset: usize, value: u32) -> Result<(), Errno> {
        let string = self.strings.get_mut(index).ok_or(Errno::EINVAL)?;
        let digits = value.checked_ilog10().map_or(1, |log| log as usize + 1);
        let end = offset + digits;
        if end >= string.len() {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut rest = value;
        for place in string[offset..end].iter_mut().rev() {
            #[allow(clippy::cast_possible_truncation)] // a remainder of 10
            let digit = (rest % 10) as u8;
            *place = b'0' + digit;
            rest /= 10;
        }
        string[end] = 0;
        self.pointers[index] = string.as_ptr();
        Ok(())
    }
}

/// Three words that nobody can guess: getrandom(2).
pub fn secret() -> Result<[u64; 3], Errno> {
    let mut words = [0u64; 3];
    let length = size_of_val(&words);
    // SAFETY: the pointer is to `length` writable bytes, and any bytes are
    // words. Up to 256 bytes come whole or not at all.
    check(unsafe { libc::syscall(libc::SYS_getrandom, words.as_mut_ptr(), length, 0u32) })?;
    Ok(words)
}

/// Replaces this process: execve(2). Returns only on failure. `key` is in the
/// registers of the three arguments that execve does not have, for a seccomp
/// filter to see.
pub fn execve(path: &CStr, args: &StringArray, env: &StringArray, key: [u64; 3]) -> Errno {
    // SAFETY: `path` is NUL-terminated; both arrays hold pointers to
    // NUL-terminated strings that `args` and `env` own, and end with a null.
    unsafe {
        libc::syscall(
            libc::SYS_execve,
            path.as_ptr(),
            args.pointers.as_ptr(),
            env.pointers.as_ptr(),
            key[0],
            key[1],
            key[2],
        );
    }
    Errno::last()
}

/// Overwrites the environment that this process was started with: environ(7).
/// The process must not ask for a variable again.
pub fn wipe_environment() {
    unsafe extern "C" {
        static environ: *const *mut libc::c_char;
    }
    #[allow(clippy::multiple_unsafe_ops_per_block)] // one walk over one array
    // SAFETY: `environ` is null or points at pointers to NUL-terminated strings
    // with a null at the end; this process has one thread, and only the bytes of
    // the strings are written.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            let length = libc::strlen(*at);
            std::ptr::write_bytes(*at, 0, length);
            at = at.add(1);
        }
    }
}

/// Ends this process at once, with no destructor and no atexit handler.
pub fn exit(code: libc::c_int) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Sends `signal` to the process of `pidfd`: pidfd_send_signal(2), Linux 5.1.
/// ESRCH where it has been reaped.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: a null siginfo means "as kill(2) would fill it in".
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0usize, 0u32)
    })
    .map(drop)
}

/// A descriptor of the process that `thread` belongs to: pidfd_open(2). Before
/// Linux 6.9 (PIDFD_THREAD) EINVAL or ENOENT for a thread that is not the first
/// of its process.
pub fn open_thread(thread: libc::pid_t) -> Result<OwnedFd, Errno> {
    // include/uapi/linux/pidfd.h
    const PIDFD_THREAD: libc::c_int = libc::O_EXCL;
    let open = |flags: libc::c_int| {
        // SAFETY: pidfd_open takes two integers.
        check(unsafe { libc::syscall(libc::SYS_pidfd_open, thread, flags) })
    };
    let fd = match open(0) {
        Err(Errno::EINVAL | Errno::ENOENT) => open(PIDFD_THREAD),
        other => other,
    }?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor, ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A copy of descriptor `number` of another process, close-on-exec:
/// pidfd_getfd(2), Linux 5.6. EBADF where it has none such, EPERM where this
/// process may not trace it.
pub fn take_descriptor(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_getfd takes three integers.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0u32) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor, ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads memory of another process into `bytes`, as far as it is mapped:
/// process_vm_readv(2). EFAULT where nothing is.
pub fn read_memory(thread: libc::pid_t, address: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let address = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
    let remote =
        libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: bytes.len() };
    // SAFETY: `local` is of `bytes`, which is writable and outlives the call;
    // the kernel checks the remote address itself.
    let length = check(unsafe {
        libc::syscall(
            libc::SYS_process_vm_readv,
            thread,
            &raw const local,
            1usize,
            &raw const remote,
            1usize,
            0usize,
        )
    })?;
    usize::try_from(length).map_err(|_| Errno::EOVERFLOW)
}

/// Joins a user namespace, with every capability in it and none elsewhere:
/// setns(2). For a process of one thread that has CAP_SYS_ADMIN there, as the
/// maker of the namespace does.
pub fn join_user_namespace(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: setns takes two integers.
    check(unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), libc::CLONE_NEWUSER) })
        .map(drop)
}

/// How a process ended, as the kernel tells it; unlike `nix`'s, it can hold
/// real-time signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It called exit with this code.
    Code(u8),
    /// This signal ended it.
    Signal(libc::c_int),
}

/// Takes the status of the ended process of `pidfd`: waitid(2) with P_PIDFD.
/// `None` where it has not ended.
pub fn pidfd_reap(pidfd: BorrowedFd<'_>) -> Result<Option<Exit>, Errno> {
    // SAFETY: siginfo_t is plain data for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call; the descriptor is a live pidfd.
    let ret = unsafe {
        libc::waitid(
            libc::P_PIDFD,
            pidfd.as_raw_fd().cast_unsigned(),
            &raw mut info,
            libc::WEXITED | libc::WNOHANG,
        )
    };
    check(ret.into())?;
    // SAFETY: waitid filled it in, or left the zeroes where nothing ended.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(if info.si_code == libc::CLD_EXITED {
        Exit::Code(u8::try_from(status & 0xff).unwrap_or(u8::MAX))
    } else {
        Exit::Signal(status)
    }))
}

/// Reaps one ended child, whichever it is: wait4(2) with WNOHANG. `None` where
/// none has ended. ECHILD where there is no child at all.
pub fn reap_any() -> Result<Option<(libc::pid_t, Exit)>, Errno> {
    let mut status: libc::c_int = 0;
    // SAFETY: `status` outlives the call; no rusage is asked for.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    check(pid.into())?;
    if pid == 0 {
        return Ok(None);
    }
    let exit = if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
    };
    Ok(Some((pid, exit)))
}

/// Sends `signal` to the process `pid` of this pid namespace: kill(2).
pub fn kill(pid: libc::pid_t, signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: kill takes two integers.
    check(unsafe { libc::syscall(libc::SYS_kill, pid, signal) }).map(drop)
}

/// This process's pid in its own pid namespace: the raw getpid(2).
pub fn pid() -> u32 {
    std::process::id()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(array: &StringArray) -> Vec<String> {
        array
            .strings
            .iter()
            .map(|s| CStr::from_bytes_until_nul(s).unwrap().to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_number_is_written_in_place_and_ends_the_string() {
        let mut array = StringArray::new(vec![
            CString::new("A=1").unwrap(),
            CString::new("LISTEN_PID=0000000000").unwrap(),
        ]);
        for value in [0, 7, 10, 4_194_304, u32::MAX] {
            array.write_number(1, 11, value).unwrap();
            assert_eq!(strings(&array), ["A=1".to_owned(), format!("LISTEN_PID={value}")]);
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_refused_and_changes_nothing() {
        let mut array = StringArray::new(vec![CString::new("PID=00").unwrap()]);
        assert_eq!(array.write_number(0, 4, 100), Err(Errno::ENAMETOOLONG));
        assert_eq!(array.write_number(1, 0, 1), Err(Errno::EINVAL));
        assert_eq!(strings(&array), ["PID=00"]);
    }
}
