//! Every `unsafe` line of the program, one file a kernel facility.
//!
//! What lives here are the system calls that neither `std` nor `nix` offers as
//! a safe function. Nothing in here imports anything of this crate or decides:
//! each function is one call and its errno. All but what makes a `Stack` or a
//! `StringArray` and `extended_attribute`, which allocate, may be used between
//! clone and exec.

#![allow(unsafe_code)]

#[cfg(test)]
pub(crate) mod counting;
#[cfg(test)]
pub mod evaluate;
pub mod fd;
pub mod landlock;
pub mod mount;
pub mod net;
pub mod notify;
pub mod privilege;
pub mod process;
pub mod seccomp;
pub mod signal;

use nix::errno::Errno;

/// Two random bytes: getrandom(2).
pub fn random() -> Result<u16, Errno> {
    let mut value = [0u8; 2];
    // SAFETY: the pointer and length are of `value`, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_getrandom, value.as_mut_ptr(), value.len(), 0u32) })?;
    Ok(u16::from_ne_bytes(value))
}

/// Turns the return value of a raw system call into a `Result`.
fn check(ret: libc::c_long) -> Result<libc::c_long, Errno> {
    if ret < 0 { Err(Errno::last()) } else { Ok(ret) }
}
