//! Giving up privilege for good: capabilities, securebits, keyring, dumpable.
//!
//! `caps` does the same with hash sets; these run after clone, where nothing
//! may be allocated, and return errno and nothing else.

use nix::errno::Errno;

use super::check;

/// One prctl(2) with up to two integer arguments; the rest are zero, as the
/// stricter options demand.
fn prctl(option: libc::c_int, arg2: libc::c_ulong, arg3: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: every option used in this file takes integers only.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, arg2, arg3, 0usize, 0usize) }).map(drop)
}

/// Empties the bounding set: PR_CAPBSET_DROP, capability by capability, up to the
/// first number that this kernel does not know.
pub fn clear_bounding() -> Result<(), Errno> {
    /// The last of Linux 5.9; every kernel that gosandbox runs on has it.
    const CAP_CHECKPOINT_RESTORE: libc::c_ulong = 40;
    for capability in 0.. {
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Err(Errno::EINVAL) if capability > CAP_CHECKPOINT_RESTORE => break,
            dropped => dropped?,
        }
    }
    Ok(())
}

/// Empties the ambient set: PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL.
pub fn clear_ambient() -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0)
}

/// Sets and locks NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, and locks
/// KEEP_CAPS off: capabilities(7), "The securebits flags". Uid 0 means nothing
/// any more, and no later call can change that.
pub fn lock_securebits() -> Result<(), Errno> {
    // include/uapi/linux/securebits.h: flag n is bit n, its lock bit n + 1.
    const NOROOT: libc::c_ulong = 0b11;
    const NO_SETUID_FIXUP: libc::c_ulong = 0b11 << 2;
    const KEEP_CAPS_LOCKED: libc::c_ulong = 1 << 5;
    const NO_CAP_AMBIENT_RAISE: libc::c_ulong = 0b11 << 6;
    prctl(
        libc::PR_SET_SECUREBITS,
        NOROOT | NO_SETUID_FIXUP | KEEP_CAPS_LOCKED | NO_CAP_AMBIENT_RAISE,
        0,
    )
}

/// Empties the effective, permitted and inheritable sets: capset(2), version 3.
pub fn clear_capabilities() -> Result<(), Errno> {
    keep_capabilities(0)
}

/// Keeps CAP_SYS_PTRACE, effective and permitted, and no other capability.
pub fn keep_trace_capability() -> Result<(), Errno> {
    const CAP_SYS_PTRACE: u32 = 19;
    keep_capabilities(1 << CAP_SYS_PTRACE)
}

/// Of the first 32 capabilities those in `bits` stay effective and permitted.
fn keep_capabilities(bits: u32) -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    // Two halves of (effective, permitted, inheritable).
    let data = [bits, bits, 0, 0, 0, 0];
    // SAFETY: a version 3 header is followed by two 12-byte structures, which
    // is what `data` is; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// PR_SET_NO_NEW_PRIVS: no exec gives privileges from here on. A filter cannot
/// be installed without it.
pub fn no_new_privs() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
}

/// PR_SET_DUMPABLE 0: no other process of the same id may trace this one, read
/// its memory or open its /proc entries.
pub fn not_dumpable() -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0)
}

/// PR_SET_PDEATHSIG: this process gets `signal` when the thread that made it
/// ends. A change of ids clears it, so it is set after.
pub fn parent_death_signal(signal: libc::c_int) -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, libc::c_ulong::from(signal.unsigned_abs()), 0)
}

/// PR_SET_NAME: the name shown in /proc/<pid>/comm, 15 bytes at most.
pub fn set_name(name: &std::ffi::CStr) -> Result<(), Errno> {
    // SAFETY: PR_SET_NAME reads a NUL-terminated string, which outlives the call.
    check(unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, name.as_ptr(), 0usize, 0usize, 0usize)
    })
    .map(drop)
}

/// Replaces the session keyring by a new, empty, unnamed one: keyctl(2),
/// KEYCTL_JOIN_SESSION_KEYRING. ENOSYS where the kernel has no keyrings.
pub fn new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is read.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0usize) }).map(drop)
}
