//! Installing a compiled filter.

use std::os::fd::RawFd;

use nix::errno::Errno;

use super::check;

/// One instruction of classic BPF: `struct sock_filter`,
/// include/uapi/linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Jump offset if true.
    pub jt: u8,
    /// Jump offset if false.
    pub jf: u8,
    /// Constant operand.
    pub k: u32,
}

/// Adds `program` to the calling thread's filters: seccomp(2),
/// SECCOMP_SET_MODE_FILTER. Needs no_new_privs. The filter holds for every
/// thread and process made later, through exec too, and cannot be removed.
///
/// SECCOMP_FILTER_FLAG_SPEC_ALLOW is left out: speculative store bypass stays
/// as the administrator has set it.
pub fn install(program: &[Instruction]) -> Result<(), Errno> {
    set(program, 0).map(drop)
}

/// The same, and a descriptor on which the calls come that `program` answers
/// with SECCOMP_RET_USER_NOTIF; close-on-exec. A caller whose call was taken
/// waits for the answer through every signal but a deadly one
/// (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, Linux 5.19; EINVAL before): Go
/// sends its threads SIGURG all the time.
pub fn install_with_listener(program: &[Instruction]) -> Result<RawFd, Errno> {
    let listener = set(
        program,
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    )?;
    RawFd::try_from(listener).map_err(|_| Errno::EOVERFLOW)
}

fn set(program: &[Instruction], flags: libc::c_ulong) -> Result<libc::c_long, Errno> {
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const Instruction,
    }
    let prog = Program {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        filter: program.as_ptr(),
    };
    // SAFETY: `prog` has the layout of struct sock_fprog and points at `len`
    // instructions that outlive the call; the kernel copies and verifies them.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const prog)
    })
}
