//! Signals of the sandbox's init and of the end of the supervisor.

use nix::errno::Errno;
use nix::sys::signal::SigSet;

use super::check;

/// A signal that was waited for.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its number.
    pub signal: libc::c_int,
    /// The sender's pid as seen in the receiver's pid namespace: 0 where the
    /// sender is the kernel or lives in an outer namespace (pid_namespaces(7)).
    pub sender: libc::pid_t,
    /// si_code: `SI_USER` for kill(2) and pidfd_send_signal(2).
    pub code: libc::c_int,
}

/// Waits until a signal of `set` is pending and takes it: sigwaitinfo(2).
/// The signals have to be blocked.
pub fn wait(set: &SigSet) -> Result<Received, Errno> {
    // SAFETY: siginfo_t is plain data for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the types sigwaitinfo asks for.
    let signal = unsafe { libc::sigwaitinfo(set.as_ref(), &raw mut info) };
    check(signal.into())?;
    Ok(Received {
        signal,
        // SAFETY: si_pid lies in the part of the union that kill, sigqueue and
        // SIGCHLD fill in; for other signals it is zeroed memory.
        sender: unsafe { info.si_pid() },
        code: info.si_code,
    })
}

/// Gives every signal its default action, as exec does not do for ignored ones.
/// SIGKILL and SIGSTOP, which cannot be changed, are passed over.
pub fn reset_all() {
    for signal in 1..=64 {
        reset(signal);
    }
}

/// Gives one signal its default action: sigaction(2) with SIG_DFL.
pub fn reset(signal: libc::c_int) {
    set(signal, libc::SIG_DFL);
}

/// Has one signal do nothing: sigaction(2) with SIG_IGN.
pub fn ignore(signal: libc::c_int) {
    set(signal, libc::SIG_IGN);
}

fn set(signal: libc::c_int, action: libc::sighandler_t) {
    // The raw call takes the kernel's own structure (handler, flags, restorer,
    // mask), because glibc refuses signals 32 and 33, which it keeps to itself
    // and which a Go program may want.
    let action = [action, 0, 0, 0];
    // SAFETY: `action` is as large as the kernel's struct sigaction on every
    // 64-bit architecture, and neither SIG_DFL nor SIG_IGN, of which it is one,
    // installs code. EINVAL for SIGKILL and SIGSTOP is the one possible error and
    // means what is wanted.
    unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), 0usize, size_of::<u64>());
    }
}

/// Sends `signal` to the calling process; returns if it does not end it.
pub fn raise(signal: libc::c_int) {
    // SAFETY: raise takes an integer.
    unsafe { libc::raise(signal) };
}

/// A set of every signal that can be blocked, for the time around clone.
pub fn block_all() -> Result<SigSet, Errno> {
    let mut old = SigSet::empty();
    nix::sys::signal::sigprocmask(
        nix::sys::signal::SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut old),
    )?;
    Ok(old)
}
