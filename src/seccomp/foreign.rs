//! Names of calls that neither x86_64 nor aarch64 has, and other architectures
//! of the kernel have or had. Profiles are written for all of them at once.
//!
//! Those of the `syscalls` crate, which a test compares, and the private ones of
//! ARM (arch/arm/include/uapi/asm/unistd.h), which have numbers of their own.

/// Sorted.
pub(super) const FOREIGN: &[&str] = &[
    "_llseek",
    "_newselect",
    "arm_fadvise64_64",
    "arm_sync_file_range",
    "bdflush",
    "break",
    "breakpoint",
    "cachectl",
    "cacheflush",
    "chown32",
    "clock_adjtime64",
    "clock_getres_time64",
    "clock_gettime64",
    "clock_nanosleep_time64",
    "clock_settime64",
    "execv",
    "fadvise64_64",
    "fchown32",
    "fcntl64",
    "fstat64",
    "fstatat64",
    "fstatfs64",
    "ftime",
    "ftruncate64",
    "futex_time64",
    "get_tls",
    "getdomainname",
    "getegid32",
    "geteuid32",
    "getgid32",
    "getgroups32",
    "getpagesize",
    "getresgid32",
    "getresuid32",
    "getuid32",
    "gtty",
    "idle",
    "io_pgetevents_time64",
    "ipc",
    "kern_features",
    "lchown32",
    "llseek",
    "lock",
    "lstat64",
    "memory_ordering",
    "mmap2",
    "mpx",
    "mq_timedreceive_time64",
    "mq_timedsend_time64",
    "multiplexer",
    "nice",
    "oldfstat",
    "oldlstat",
    "oldolduname",
    "oldstat",
    "olduname",
    "pciconfig_iobase",
    "pciconfig_read",
    "pciconfig_write",
    "perfctr",
    "ppoll_time64",
    "prof",
    "profil",
    "pselect6_time64",
    "readdir",
    "recv",
    "recvmmsg_time64",
    "riscv_flush_icache",
    "riscv_hwprobe",
    "rt_sigtimedwait_time64",
    "rtas",
    "s390_guarded_storage",
    "s390_pci_mmio_read",
    "s390_pci_mmio_write",
    "s390_runtime_instr",
    "s390_sthyi",
    "sched_get_affinity",
    "sched_rr_get_interval_time64",
    "sched_set_affinity",
    "semtimedop_time64",
    "send",
    "sendfile64",
    "set_tls",
    "setfsgid32",
    "setfsuid32",
    "setgid32",
    "setgroups32",
    "setregid32",
    "setresgid32",
    "setresuid32",
    "setreuid32",
    "setuid32",
    "sgetmask",
    "sigaction",
    "signal",
    "sigpending",
    "sigprocmask",
    "sigreturn",
    "sigsuspend",
    "socketcall",
    "spu_create",
    "spu_run",
    "ssetmask",
    "stat64",
    "statfs64",
    "stime",
    "stty",
    "subpage_prot",
    "swapcontext",
    "switch_endian",
    "sync_file_range2",
    "sys_debug_setcontext",
    "syscall",
    "sysmips",
    "timer_gettime64",
    "timer_settime64",
    "timerfd",
    "timerfd_gettime64",
    "timerfd_settime64",
    "truncate64",
    "ugetrlimit",
    "ulimit",
    "umount",
    "usr26",
    "usr32",
    "utimensat_time64",
    "utrap_install",
    "vm86",
    "vm86old",
    "waitpid",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::Arch;

    #[test]
    fn the_list_is_that_of_every_architecture_of_the_crate() {
        use syscalls::*;
        macro_rules! names {
            ($($arch:ident)*) => {
                [$((0..8192).filter_map($arch::Sysno::new).map(|n| n.name()).collect::<Vec<_>>()),*]
            };
        }
        let all = names![
            arm loongarch64 mips mips64 powerpc powerpc64 riscv32 riscv64 s390x sparc sparc64 x86
        ];
        let mut all: Vec<&str> = all
            .iter()
            .flatten()
            .map(|name| name.trim_start_matches("r#"))
            .filter(|name| !name.starts_with("unused") && !name.starts_with("reserved"))
            // What the crate calls newfstatat of other 64-bit architectures.
            .filter(|name| *name != "fstatat")
            .filter(|name| {
                [Arch::X86_64, Arch::Aarch64].iter().all(|arch| arch.number(name).is_none())
            })
            .chain(["breakpoint", "get_tls", "set_tls", "usr26", "usr32"])
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all, FOREIGN);
    }
}
