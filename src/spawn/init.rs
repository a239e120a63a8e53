//! The sandbox's pid 1, after the app was made: it reaps, passes signals on and
//! tells how the app ended. No capabilities, not dumpable, one descriptor, a
//! filter of eight calls. It lives in memory that it never frees or grows.

use nix::errno::Errno;
use nix::sys::signal::SigSet;

use crate::report::encode_exit;
use crate::sys;

/// Where the status pipe is: the only descriptor init has.
pub(super) const STATUS: i32 = 0;

/// Waits for signals until the app has ended; then so does the whole sandbox,
/// because the kernel kills what is left in a pid namespace without pid 1.
pub(super) fn run(app: libc::pid_t) -> ! {
    // Everything is blocked since before clone, so nothing is lost and no
    // handler ever runs.
    let all = SigSet::all();
    loop {
        match sys::signal::wait(&all) {
            Ok(received) if received.signal == libc::SIGCHLD => reap(app),
            // From somebody (SI_USER) outside this pid namespace (0): the
            // supervisor. What the tenant sends here, or has the kernel send,
            // is its own affair and goes nowhere.
            Ok(received) if received.sender == 0 && received.code == libc::SI_USER => {
                // ESRCH: it has ended, and SIGCHLD is on its way.
                _ = sys::process::kill(app, received.signal);
            }
            Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => sys::process::exit(1),
        }
    }
}

/// Takes every child that has ended; ends with the app.
fn reap(app: libc::pid_t) {
    // One SIGCHLD may stand for many.
    while let Ok(Some((pid, exit))) = sys::process::reap_any() {
        if pid == app {
            let told = sys::fd::write(STATUS, &encode_exit(exit));
            sys::process::exit(i32::from(told.is_err()));
        }
    }
}
