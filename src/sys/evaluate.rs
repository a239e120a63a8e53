//! For unit tests only: the kernel as the judge of a compiled filter.
//!
//! A child installs the filter with every answer replaced by an errno that
//! stands for it, and makes the calls. None is carried out, whatever the filter
//! says, so any number and any argument may be tried; what comes back is the
//! answer that the kernel found.

#![allow(clippy::unwrap_used)]

use nix::errno::Errno;
use nix::unistd::alarm;

use super::privilege::{no_new_privs, not_dumpable};
use super::process::exit;
use super::seccomp::{Instruction, install};
use super::signal::reset_all;

/// Number and arguments.
pub type Call = (u32, [u64; 6]);

/// By which gate of the kernel a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// As every program does it. Numbers with the x32 bit go the same way.
    Native,
    /// As an i386 program does it, from within a 64-bit one: `int 0x80`. The
    /// arguments are whatever happens to be in the registers.
    I386,
}

/// uretprobe and uprobe, which x86_64 kernels from 6.14 on carry out past every
/// filter, since a tracer outside has put them there: kernel/seccomp.c,
/// seccomp_uprobe_exception. Whoever else makes them gets SIGILL or ENXIO.
pub const UNSEEN: [u32; 2] = [335, 336];

/// BPF_RET | BPF_K: include/uapi/linux/bpf_common.h.
const RETURN: u16 = 0x06;
/// BPF_CLASS of an operation, and the class that ends a program.
const CLASS: u16 = 0x07;

/// The constants of the RETURN that the kernel reaches in `program` for each of
/// `calls`, in their order.
///
/// # Errors
/// The kernel refuses the program, or does not have that gate.
///
/// # Panics
/// One of the calls is of [`UNSEEN`], or was carried out.
pub fn evaluate(program: &[Instruction], gate: Gate, calls: &[Call]) -> Result<Vec<u32>, String> {
    let unseen = |(number, _): &Call| gate == Gate::Native && UNSEEN.contains(number);
    assert!(!calls.iter().any(unseen), "filters do not see all of these calls");
    let mut answers: Vec<u32> = Vec::new();
    let mut coded = program.to_vec();
    for instruction in coded.iter_mut().filter(|i| i.code & CLASS == RETURN) {
        // Returning the accumulator could carry a call out.
        assert_eq!(instruction.code, RETURN, "not a constant");
        let index = answers.iter().position(|&k| k == instruction.k).unwrap_or_else(|| {
            answers.push(instruction.k);
            answers.len() - 1
        });
        // The kernel cuts at MAX_ERRNO; 0 would be no error.
        let code = u32::try_from(index + 1).unwrap();
        assert!(code <= 4095, "too many answers");
        instruction.k = libc::SECCOMP_RET_ERRNO | code;
    }
    let results = Shared::new(calls.len());
    // SAFETY: no arguments. The child of a process with threads makes raw system
    // calls only, takes no lock, and does not return from `child`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child(&coded, gate, calls, &results);
    }
    assert!(pid > 0, "fork: {}", Errno::last());
    let mut status = 0;
    // SAFETY: `pid` is our child, and `status` an int that outlives the call.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } == -1 {
        assert_eq!(Errno::last(), Errno::EINTR);
    }
    match status {
        status if libc::WIFEXITED(status) => {
            let errno = Errno::from_raw(libc::WEXITSTATUS(status));
            Err(format!("the kernel refuses the program: {errno}"))
        }
        status if libc::WTERMSIG(status) == libc::SIGILL => Ok((0..calls.len())
            .map(|i| match results.get(i) {
                0 => panic!("call {:x?} was carried out", calls[i]),
                code => answers[usize::from(code) - 1],
            })
            .collect()),
        status => Err(format!("ended by signal {}", libc::WTERMSIG(status))),
    }
}

/// In the child, which after the filter can make no call at all, not even to
/// end: that is done by an instruction that does not exist.
fn child(program: &[Instruction], gate: Gate, calls: &[Call], results: &Shared) -> ! {
    // An `int 0x80` that does not exist ends the child by the signal's default
    // action: std's handler would make calls that fail, and try again for ever.
    reset_all();
    // Should an instruction fail to end it.
    alarm::set(60);
    if let Err(errno) = not_dumpable().and_then(|()| no_new_privs()).and_then(|()| install(program))
    {
        exit(errno as i32)
    }
    for (i, &(number, args)) in calls.iter().enumerate() {
        let errno = match gate {
            Gate::Native => native(number, args),
            Gate::I386 => i386(number),
        };
        results.set(i, u16::try_from(errno).unwrap_or(0));
    }
    // SAFETY: raises SIGILL, whose default action ends the process.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("ud2", options(noreturn));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("udf #0", options(noreturn));
    }
}

/// The errno of a call, or 0 if it did not fail.
fn native(number: u32, a: [u64; 6]) -> i32 {
    // SAFETY: the filter answers every call with an errno, so none is carried
    // out and no argument is looked at.
    let ret = unsafe { libc::syscall(number.into(), a[0], a[1], a[2], a[3], a[4], a[5]) };
    if ret == -1 { Errno::last_raw() } else { 0 }
}

#[cfg(target_arch = "x86_64")]
fn i386(number: u32) -> i32 {
    let ret: u32;
    // SAFETY: as in `native`. The gate may clear r8 to r11 (arch/x86/entry/entry_64_compat.S)
    // and keeps every other register.
    unsafe {
        std::arch::asm!(
            "int 0x80", inlateout("eax") number => ret,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _
        );
    }
    ret.cast_signed().checked_neg().filter(|errno| *errno > 0).unwrap_or(0)
}

#[cfg(target_arch = "aarch64")]
fn i386(_: u32) -> i32 {
    0
}

/// Memory that parent and child share: a code for each call, 0 at first.
struct Shared {
    codes: *mut u16,
    len: usize,
}

impl Shared {
    fn new(len: usize) -> Self {
        // SAFETY: a new mapping at a place that the kernel chooses. All zeroes is
        // a valid value of every element.
        let codes = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (len * 2).max(1),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(codes, libc::MAP_FAILED, "{}", Errno::last());
        Self { codes: codes.cast(), len }
    }

    fn at(&self, index: usize) -> *mut u16 {
        assert!(index < self.len);
        self.codes.wrapping_add(index)
    }

    fn get(&self, index: usize) -> u16 {
        // SAFETY: `at` gives an aligned place within the mapping, which only the
        // child has written, and that has ended.
        unsafe { self.at(index).read_volatile() }
    }

    fn set(&self, index: usize, code: u16) {
        // SAFETY: the same; the parent does not look while the child lives.
        unsafe { self.at(index).write_volatile(code) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and nothing refers to it.
        unsafe { libc::munmap(self.codes.cast(), (self.len * 2).max(1)) };
    }
}
