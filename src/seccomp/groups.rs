//! The groups a policy may name, each call once, each group with its reason.
//!
//! Which calls these are was derived: `policies/derive` runs the example
//! programs under strace with every Go release that is supported, and
//! `policies/observed.tsv` is what it saw; a test holds the two together. A
//! call that is in a group and was not seen there says why in the reason.

/// Calls that belong together.
#[derive(Debug)]
pub struct Group {
    /// What a policy calls it.
    pub name: &'static str,
    /// Why a tenant needs it.
    pub reason: &'static str,
    /// The calls, by the kernel's names.
    pub calls: &'static [&'static str],
}

/// Every group.
pub static GROUPS: &[Group] = &[
    Group {
        name: "go-runtime",
        reason: "what every Go program does before main and at each garbage collection: memory, \
                 threads, signals, futexes, polling; and reading and writing what it holds",
        calls: &[
            "mmap",
            "munmap",
            "mprotect",
            "madvise",
            "mincore",
            "clone",
            "exit",
            "exit_group",
            "futex",
            "sched_yield",
            "sched_getaffinity",
            "rt_sigaction",
            "rt_sigprocmask",
            "rt_sigreturn",
            "sigaltstack",
            "restart_syscall",
            "tgkill",
            "gettid",
            "getpid",
            "nanosleep",
            "clock_gettime",
            "getrandom",
            "arch_prctl",
            "prctl",
            "epoll_create1",
            "epoll_ctl",
            "epoll_pwait",
            "eventfd2",
            "pipe2",
            "read",
            "write",
            "close",
            "fcntl",
            "prlimit64",
            "getrlimit",
            "setrlimit",
            "uname",
        ],
    },
    Group {
        name: "c-runtime",
        reason: "what the C library does before main and in its threads, for cgo programs and \
                 others; and what it waits with",
        calls: &[
            "brk",
            "mremap",
            "mlock",
            "munlock",
            "set_robust_list",
            "rseq",
            "set_tid_address",
            "rt_sigtimedwait",
            "membarrier",
            "epoll_wait",
            "poll",
            "ppoll",
            "pselect6",
            "ioctl",
        ],
    },
    Group {
        name: "time",
        reason: "timers, and the profiles that net/http/pprof takes with them",
        calls: &[
            "clock_getres",
            "clock_nanosleep",
            "gettimeofday",
            "timer_create",
            "timer_settime",
            "timer_delete",
            "setitimer",
            "timerfd_create",
            "timerfd_settime",
        ],
    },
    Group {
        name: "files",
        reason: "package os: reading, writing and listing what the sandbox shows, which is all that \
                 is there; owners can only be changed to the one id that exists, and only fifos made",
        calls: &[
            "open",
            "openat",
            "openat2",
            "close_range",
            "readv",
            "pread64",
            "pwrite64",
            "preadv",
            "pwritev",
            "lseek",
            "stat",
            "fstat",
            "lstat",
            "newfstatat",
            "statx",
            "statfs",
            "fstatfs",
            "access",
            "faccessat",
            "faccessat2",
            "getdents64",
            "getcwd",
            "chdir",
            "readlink",
            "readlinkat",
            "mkdirat",
            "unlinkat",
            "renameat",
            "renameat2",
            "linkat",
            "symlinkat",
            "truncate",
            "ftruncate",
            "fallocate",
            "fsync",
            "fdatasync",
            "msync",
            "fadvise64",
            "fchmod",
            "fchmodat",
            "fchmodat2",
            "umask",
            "fchown",
            "fchownat",
            "mknodat",
            "utimensat",
            "flock",
            "dup",
            "dup2",
            "dup3",
            "copy_file_range",
            "inotify_init1",
            "inotify_add_watch",
            "inotify_rm_watch",
        ],
    },
    Group {
        name: "net-server",
        reason: "package net: listeners and what they accept, and copying to and from them; in a \
                 private network the broker is asked about bind and listen",
        calls: &[
            "socket",
            "bind",
            "listen",
            "accept",
            "accept4",
            "shutdown",
            "getsockname",
            "getpeername",
            "getsockopt",
            "setsockopt",
            "writev",
            "sendfile",
            "splice",
        ],
    },
    Group {
        name: "net-client",
        reason: "package net: connections, datagrams, names, and the rtnetlink questions of \
                 net.Interfaces; in a private network the broker is asked about connect",
        calls: &["connect", "socketpair", "sendto", "recvfrom", "sendmsg", "sendmmsg", "recvmsg"],
    },
    Group {
        name: "exec",
        reason: "package os/exec: child processes, which live and die inside the same walls",
        calls: &[
            "execve",
            "vfork",
            "wait4",
            "waitid",
            "kill",
            "pidfd_open",
            "pidfd_send_signal",
            "setsid",
            "setpgid",
            "getpgid",
            "getsid",
            "getppid",
        ],
    },
    Group {
        name: "introspection",
        reason: "questions about the own process and machine, answered from inside the sandbox",
        calls: &[
            "getuid",
            "geteuid",
            "getgid",
            "getegid",
            "getresuid",
            "getresgid",
            "getgroups",
            "sysinfo",
            "getrusage",
            "times",
            "capget",
            "getpriority",
        ],
    },
];

/// Answered ENOSYS and not recorded: the C library asks for it with each thread
/// and each child, and falls back. Its flags lie in memory, where no filter can
/// see them.
pub(super) const PROBED: &[&str] = &["clone3"];

/// Answered ENOSYS, so that a program falls back to what it did before the call
/// existed: wide doors for what they give a server.
pub(super) const ENOSYS: &[&str] = &[
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
    "memfd_secret",
    "userfaultfd",
];

/// Answered with SIGSYS: no honest server changes the running kernel.
pub(super) const KILL: &[&str] = &[
    "init_module",
    "finit_module",
    "delete_module",
    "create_module",
    "kexec_load",
    "kexec_file_load",
    "reboot",
    "swapon",
    "swapoff",
    "iopl",
    "ioperm",
    "acct",
    "nfsservctl",
    "vhangup",
];

/// Calls that `syscalls.allow` may not name: with one of them the sandbox is
/// none, or its filter could be seen past.
pub(super) const NEVER: &[&str] = &[
    "clone3",
    "unshare",
    "setns",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "move_mount",
    "open_tree",
    "open_tree_attr",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "pidfd_getfd",
    "kcmp",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "open_by_handle_at",
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "kexec_file_load",
    "reboot",
    "keyctl",
    "add_key",
    "request_key",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    "tkill",
    "sched_setscheduler",
    "sched_setparam",
    "sched_setattr",
    "ioprio_set",
    "move_pages",
    "migrate_pages",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::Arch;

    #[test]
    fn every_name_is_a_call_of_an_architecture_and_in_one_group_only() {
        let mut seen = std::collections::BTreeSet::new();
        for group in GROUPS {
            assert!(!group.reason.is_empty());
            for call in group.calls {
                assert!(seen.insert(*call), "{call} is in two groups");
            }
        }
        for call in seen
            .into_iter()
            .chain(PROBED.iter().copied())
            .chain(ENOSYS.iter().copied())
            .chain(KILL.iter().copied())
            .chain(NEVER.iter().copied())
        {
            assert!(
                [Arch::X86_64, Arch::Aarch64].iter().any(|arch| arch.number(call).is_some()),
                "{call} is no system call"
            );
        }
    }

    #[test]
    fn no_group_gives_out_what_is_never_given_out() {
        for group in GROUPS {
            for call in group.calls {
                assert!(
                    !NEVER.contains(call)
                        && !KILL.contains(call)
                        && !ENOSYS.contains(call)
                        && !PROBED.contains(call),
                    "{call}"
                );
            }
        }
    }
}
