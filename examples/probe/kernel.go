package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// Namespaces and mounts.
var namespaceProbes = []probe{
	{name: "mount", about: "mount(2), past the check: no such file system", run: func() result {
		return pastCheck(try(syscall.SYS_MOUNT, cstr("none"), cstr("/"), cstr("no-such-file-system"), 0, 0))
	}},
	{name: "umount", about: "umount2(2), past the check: /proc/self/ is no mount point", run: func() result {
		// Where there is no /proc, ENOENT comes before the check and proves nothing.
		r := pastCheck(try(syscall.SYS_UMOUNT2, cstr("/proc/self/"), 0))
		r.OK = r.OK && r.Errno != "ENOENT"
		return r
	}},
	{name: "pivot-root", about: "pivot_root(2), past the check: no such directory", run: func() result {
		return pastCheck(try(sysPivotRoot, cstr("/no-such-directory"), cstr("/no-such-directory")))
	}},
	{name: "chroot", about: "chroot(2) to /, in a child", run: func() result {
		return forked(did, inFork(0, syscall.SYS_CHROOT, cstr("/")))
	}},
	{name: "setns", about: "setns(2) into the own uts namespace, in a child", run: func() result {
		fd, errno := open("/proc/self/ns/uts", syscall.O_RDONLY)
		if errno != 0 {
			return forked(did, inFork(0, sysSetns, ^uintptr(0), 0), "no /proc/self/ns/uts: "+errnoName(errno))
		}
		return forked(did, inFork(0, sysSetns, fd, 0))
	}},
	{name: "unshare-user", about: "unshare(2) of the user namespace, in a child", run: func() result {
		return forked(did, inFork(0, syscall.SYS_UNSHARE, syscall.CLONE_NEWUSER))
	}},
	{name: "unshare-net", about: "unshare(2) of the network namespace, in a child", run: func() result {
		return forked(did, inFork(0, syscall.SYS_UNSHARE, syscall.CLONE_NEWNET))
	}},
	{name: "unshare-mount", about: "unshare(2) of the mount namespace, in a child", run: func() result {
		return forked(did, inFork(0, syscall.SYS_UNSHARE, syscall.CLONE_NEWNS))
	}},
	{name: "clone-newuser", about: "clone(2) with CLONE_NEWUSER", run: func() result {
		return forked(did, inFork(syscall.CLONE_NEWUSER, syscall.SYS_GETPID))
	}},
	{name: "clone-newuser-newns", about: "clone(2) with CLONE_NEWUSER and CLONE_NEWNS", run: func() result {
		return forked(did, inFork(syscall.CLONE_NEWUSER|syscall.CLONE_NEWNS, syscall.SYS_SCHED_YIELD))
	}},
	{name: "clone3", about: "clone3(2) as plain fork: it must look as if there were none", run: func() result {
		return clone3(0)
	}},
	{name: "clone3-newuser", about: "clone3(2) with CLONE_NEWUSER", run: func() result {
		return clone3(syscall.CLONE_NEWUSER)
	}},
	{name: "mount-setattr", about: "mount_setattr(2) of / that changes nothing", run: func() result {
		return did(try(sysMountSetattr, atFdcwd, cstr("/"), 0, addr(&[4]uint64{}), 32))
	}},
	{name: "open-tree", about: "open_tree(2) with OPEN_TREE_CLONE", run: func() result {
		return did(try(sysOpenTree, atFdcwd, cstr("/"), 1))
	}},
	{name: "fsopen", about: "fsopen(2), past the check: no such file system", run: func() result {
		return pastCheck(try(sysFsopen, cstr("no-such-file-system"), 0))
	}},
	{name: "move-mount", about: "move_mount(2), past the check: bad descriptors", run: func() result {
		return pastCheck(try(sysMoveMount, ^uintptr(0), cstr("x"), ^uintptr(0), cstr("x"), 0))
	}},
}

func clone3(flags uint64) result {
	// struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, and so on.
	pid, errno := forkClone3(&[11]uint64{0: flags, 4: uint64(syscall.SIGCHLD)})
	if errno != 0 {
		return did(errno)
	}
	return forked(did, waitErrno(int(pid)))
}

// Pid 1: the supervisor's own init.
var initProbes = []probe{
	{name: "kill-init-term", about: "SIGTERM to pid 1", harms: true, run: func() result {
		return did(try(syscall.SYS_KILL, 1, uintptr(syscall.SIGTERM)))
	}},
	{name: "kill-init-kill", about: "SIGKILL to pid 1", harms: true, run: func() result {
		return did(try(syscall.SYS_KILL, 1, uintptr(syscall.SIGKILL)))
	}},
	{name: "kill-init-0", about: "signal 0 to pid 1: may it be signalled", run: func() result {
		return did(try(syscall.SYS_KILL, 1, 0))
	}},
	{name: "tgkill-init", about: "tgkill(2) of pid 1 with signal 0", run: func() result {
		return did(try(syscall.SYS_TGKILL, 1, 1, 0))
	}},
	{name: "tkill-init", about: "tkill(2) of pid 1 with signal 0", run: func() result {
		return did(try(syscall.SYS_TKILL, 1, 0))
	}},
	{name: "rt-sigqueueinfo-init", about: "rt_sigqueueinfo(2) to pid 1 with signal 0", run: func() result {
		return did(try(syscall.SYS_RT_SIGQUEUEINFO, 1, 0, addr(queued())))
	}},
	{name: "rt-tgsigqueueinfo-init", about: "rt_tgsigqueueinfo(2) to pid 1 with signal 0", run: func() result {
		return did(try(syscall.SYS_RT_TGSIGQUEUEINFO, 1, 1, 0, addr(queued())))
	}},
	{name: "pidfd-open-init", about: "pidfd_open(2) of pid 1", run: func() result {
		return did(try(sysPidfdOpen, 1, 0))
	}},
	{name: "pidfd-send-signal-init", about: "pidfd_send_signal(2) with signal 0 through /proc/1 or a pidfd", run: func() result {
		fd, how, errno := handleOfInit()
		if errno != 0 {
			return did(errno, how)
		}
		return did(try(sysPidfdSendSignal, fd, 0, 0, 0), how)
	}},
	{name: "pidfd-getfd-init", about: "pidfd_getfd(2): take descriptor 0 of pid 1", run: func() result {
		fd, errno := call(sysPidfdOpen, 1, 0)
		if errno != 0 {
			return did(errno, "pidfd_open")
		}
		return did(try(sysPidfdGetfd, fd, 0, 0))
	}},
	{name: "prlimit-init", about: "prlimit64(2) on pid 1: set the limits it has", run: func() result {
		limit := &[2]uint64{}
		if errno := try(sysPrlimit64, 1, syscall.RLIMIT_NOFILE, 0, addr(limit)); errno != 0 {
			return did(errno, "cannot be read")
		}
		r := did(try(sysPrlimit64, 1, syscall.RLIMIT_NOFILE, addr(limit), 0))
		r.OK, r.Detail = true, fmt.Sprintf("read: %d %d, written: %v", limit[0], limit[1], r.OK)
		return r
	}},
	{name: "setpriority-init", about: "setpriority(2) on pid 1: the niceness it has", run: func() result {
		nice, errno := call(syscall.SYS_GETPRIORITY, 0, 1)
		if errno != 0 {
			return did(errno, "getpriority")
		}
		return did(try(syscall.SYS_SETPRIORITY, 0, 1, 20-nice))
	}},
	{name: "sched-setaffinity-init", about: "sched_setaffinity(2) on pid 1: the CPUs it has", run: func() result {
		mask := &[128]uint64{}
		n, errno := call(syscall.SYS_SCHED_GETAFFINITY, 1, uintptr(len(mask)*8), addr(mask))
		if errno != 0 {
			return did(errno, "sched_getaffinity")
		}
		return did(try(syscall.SYS_SCHED_SETAFFINITY, 1, n, addr(mask)))
	}},
	{name: "sched-setscheduler-init", about: "sched_setscheduler(2) on pid 1: the policy it has", run: func() result {
		policy, errno := call(syscall.SYS_SCHED_GETSCHEDULER, 1)
		if errno != 0 {
			return did(errno, "sched_getscheduler")
		}
		param := new(int32)
		if errno := try(syscall.SYS_SCHED_GETPARAM, 1, addr(param)); errno != 0 {
			return did(errno, "sched_getparam")
		}
		return did(try(syscall.SYS_SCHED_SETSCHEDULER, 1, policy, addr(param)))
	}},
	{name: "ioprio-set-init", about: "ioprio_set(2) on pid 1: the priority it has", run: func() result {
		priority, errno := call(sysIoprioGet, 1, 1)
		if errno != 0 {
			return did(errno, "ioprio_get")
		}
		return did(try(sysIoprioSet, 1, 1, priority))
	}},
	{name: "get-robust-list-init", about: "get_robust_list(2) of pid 1: addresses in it", run: func() result {
		return did(try(syscall.SYS_GET_ROBUST_LIST, 1, addr(new(uint64)), addr(new(uint64))))
	}},
	{name: "move-pages-init", about: "move_pages(2) on pid 1, a query about no page", run: func() result {
		return did(try(sysMovePages, 1, 0, 0, 0, 0, 0))
	}},
	{name: "kcmp-init", about: "kcmp(2): compare the own memory with that of pid 1", run: func() result {
		return did(try(sysKcmp, uintptr(os.Getpid()), 1, 1, 0, 0))
	}},
	{name: "ptrace-attach-init", about: "ptrace(2) PTRACE_SEIZE of pid 1, which does not stop it", run: func() result {
		return did(try(syscall.SYS_PTRACE, 0x4206, 1, 0, 0))
	}},
	{name: "process-vm-readv-init", about: "process_vm_readv(2) from pid 1, past the check: bad address", run: func() result {
		local := &[2]uintptr{addr(new(uint64)), 8}
		remote := &[2]uintptr{0x1000, 8}
		r := pastCheck(try(sysProcessVMReadv, 1, addr(local), 1, addr(remote), 1, 0))
		r.OK = r.OK && r.Errno != "ESRCH"
		return r
	}},
	{name: "process-madvise-init", about: "process_madvise(2) on pid 1", run: func() result {
		fd, errno := call(sysPidfdOpen, 1, 0)
		if errno != 0 {
			// Then at least: is the call itself refused?
			r := did(try(sysProcessMadvise, ^uintptr(0), 0, 0, 20, 0), "pidfd_open: "+errnoName(errno))
			return r
		}
		vector := &[2]uintptr{0x1000, 4096}
		return pastCheck(try(sysProcessMadvise, fd, addr(vector), 1, 20, 0))
	}},
	{name: "hidepid-init", about: "stat(2) of /proc/1", inside: true, run: func() result {
		if os.Getpid() == 1 {
			return skipped("this is pid 1 itself")
		}
		return did(try(syscall.SYS_STAT, cstr("/proc/1/"), addr(&syscall.Stat_t{})))
	}},
	{name: "read-init-environ", about: "open /proc/1/environ, /proc/1/maps, /proc/1/mem", inside: true, run: func() result {
		if os.Getpid() == 1 {
			return skipped("this is pid 1 itself")
		}
		return openAny(syscall.O_RDONLY, "/proc/1/environ", "/proc/1/maps", "/proc/1/mem")
	}},
	{name: "enter-init-root", about: "open /proc/1/root and /proc/1/cwd", inside: true, run: func() result {
		if os.Getpid() == 1 {
			return skipped("this is pid 1 itself")
		}
		return openAny(syscall.O_RDONLY|syscall.O_DIRECTORY, "/proc/1/root/", "/proc/1/cwd/")
	}},
}

// queued is a siginfo_t as a process may send one: si_code SI_QUEUE.
func queued() *[16]uint64 {
	return &[16]uint64{1: uint64(uint32(0xffffffff))}
}

// handleOfInit finds a descriptor that stands for pid 1. A directory of /proc does that as well as a pidfd.
func handleOfInit() (uintptr, string, syscall.Errno) {
	if fd, errno := call(sysPidfdOpen, 1, 0); errno == 0 {
		return fd, "by pidfd", 0
	}
	fd, errno := open("/proc/1", syscall.O_RDONLY|syscall.O_DIRECTORY)
	return fd, "by /proc/1", errno
}

// Calls into parts of the kernel that a server has no business with.
var kernelProbes = []probe{
	{name: "io-uring-setup", about: "io_uring_setup(2)", run: func() result {
		return did(try(sysIoUringSetup, 1, addr(&[16]uint64{})))
	}},
	{name: "bpf", about: "bpf(2): make an array map", run: func() result {
		return did(try(sysBpf, 0, addr(&[18]uint32{2, 4, 4, 1}), 72))
	}},
	{name: "perf-event-open", about: "perf_event_open(2): a dummy counter of the own process", run: func() result {
		// type software, size 112; config dummy; flags: disabled, exclude_kernel, exclude_hv.
		attr := &[14]uint64{0: 1 | 112<<32, 1: 9, 5: 1 | 1<<5 | 1<<6}
		return did(try(syscall.SYS_PERF_EVENT_OPEN, addr(attr), 0, ^uintptr(0), ^uintptr(0), 8))
	}},
	{name: "userfaultfd", about: "userfaultfd(2), for faults in user mode only", run: func() result {
		return did(try(sysUserfaultfd, syscall.O_CLOEXEC|1))
	}},
	{name: "keyctl-session", about: "keyctl(2): join a new session keyring", run: func() result {
		return did(try(sysKeyctl, 1, 0))
	}},
	{name: "keyctl-read-session", about: "keyctl(2): the id of the session keyring", run: func() result {
		return did(try(sysKeyctl, 0, ^uintptr(3-1), 0))
	}},
	{name: "add-key", about: "add_key(2) to the process keyring", run: func() result {
		return did(try(sysAddKey, cstr("user"), cstr("probe"), cstr("x"), 1, ^uintptr(2-1)))
	}},
	{name: "request-key", about: "request_key(2) of a key that there is not: ENOKEY means it was looked for", run: func() result {
		return pastCheck(try(sysRequestKey, cstr("user"), cstr("gosandbox-probe-no-such-key"), 0, 0))
	}},
	{name: "personality", about: "personality(2) READ_IMPLIES_EXEC", run: func() result {
		return did(try(syscall.SYS_PERSONALITY, 0x0400000))
	}},
	{name: "reboot", about: "reboot(2), past the check: wrong magic numbers", run: func() result {
		return pastCheck(try(syscall.SYS_REBOOT, 0, 0, 0, 0))
	}},
	{name: "kexec-load", about: "kexec_load(2), past the check: bad flags and too many segments", run: func() result {
		return pastCheck(try(sysKexecLoad, 0, 1000, 0, 0xff00))
	}},
	{name: "init-module", about: "init_module(2), past the check: an empty module", run: func() result {
		return pastCheck(try(syscall.SYS_INIT_MODULE, cstr(""), 0, cstr("")))
	}},
	{name: "finit-module", about: "finit_module(2), past the check: bad descriptor", run: func() result {
		return pastCheck(try(sysFinitModule, ^uintptr(0), cstr(""), 0))
	}},
	{name: "delete-module", about: "delete_module(2), past the check: no such module", run: func() result {
		return pastCheck(try(syscall.SYS_DELETE_MODULE, cstr("gosandbox_no_such_module"), syscall.O_NONBLOCK))
	}},
	{name: "swapon", about: "swapon(2), past the check: no such file", run: func() result {
		return pastCheck(try(syscall.SYS_SWAPON, cstr("/no-such-file"), 0))
	}},
	{name: "swapoff", about: "swapoff(2), past the check: no such file", run: func() result {
		return pastCheck(try(syscall.SYS_SWAPOFF, cstr("/no-such-file")))
	}},
	{name: "sethostname", about: "sethostname(2), past the check: too long", run: func() result {
		return pastCheck(try(syscall.SYS_SETHOSTNAME, cstr("x"), 1<<20))
	}},
	{name: "setdomainname", about: "setdomainname(2), past the check: too long", run: func() result {
		return pastCheck(try(syscall.SYS_SETDOMAINNAME, cstr("x"), 1<<20))
	}},
	{name: "settimeofday", about: "settimeofday(2), past the check: no time, and a time zone that there is not", run: func() result {
		return pastCheck(try(syscall.SYS_SETTIMEOFDAY, 0, addr(&[2]int32{100000, 0})))
	}},
	{name: "clock-settime", about: "clock_settime(2), past the check: before the machine was started", run: func() result {
		return pastCheck(try(syscall.SYS_CLOCK_SETTIME, 0, addr(&[2]int64{0, 0})))
	}},
	{name: "adjtimex", about: "adjtimex(2), past the check: a tick out of range", run: func() result {
		timex := &syscall.Timex{Modes: 0x4000, Tick: 1}
		return pastCheck(try(syscall.SYS_ADJTIMEX, addr(timex)))
	}},
	{name: "iopl", about: "iopl(2)", run: func() result {
		return did(try(syscall.SYS_IOPL, 3))
	}},
	{name: "ioperm", about: "ioperm(2) of one port", run: func() result {
		return did(try(syscall.SYS_IOPERM, 0x80, 1, 1))
	}},
	{name: "quotactl", about: "quotactl(2): write quotas out, which is nobody's harm", run: func() result {
		return pastCheck(try(syscall.SYS_QUOTACTL, 0x800001<<8, 0, 0, 0))
	}},
	{name: "acct", about: "acct(2), past the check: no such file", run: func() result {
		return pastCheck(try(syscall.SYS_ACCT, cstr("/no-such-file")))
	}},
	{name: "open-by-handle-at", about: "open_by_handle_at(2) of the handle of /, past the check if it is stale", run: openByHandle},
	{name: "name-to-handle-at", about: "name_to_handle_at(2) of /", run: func() result {
		_, errno := handleOf("/")
		return pastCheck(errno)
	}},
	{name: "fanotify-init", about: "fanotify_init(2), in the way that is open to everybody", run: func() result {
		return did(try(sysFanotifyInit, 0x200, 0))
	}},
	{name: "lookup-dcookie", about: "lookup_dcookie(2), past the check: no profile is taken", run: func() result {
		return pastCheck(try(syscall.SYS_LOOKUP_DCOOKIE, 0, addr(&[64]byte{}), 64))
	}},
	{name: "syslog", about: "syslog(2): the size of the kernel's log", run: func() result {
		return did(try(syscall.SYS_SYSLOG, 10, 0, 0))
	}},
	{name: "dmesg", about: "syslog(2): read the kernel's log", run: func() result {
		return did(try(syscall.SYS_SYSLOG, 3, addr(&[256]byte{}), 256))
	}},
	{name: "nfsservctl", about: "nfsservctl(2), which no kernel has any more", run: func() result {
		return pastCheck(try(syscall.SYS_NFSSERVCTL, 0, 0, 0))
	}},
	{name: "modify-ldt", about: "modify_ldt(2): read", run: func() result {
		return did(try(syscall.SYS_MODIFY_LDT, 0, addr(&[64]byte{}), 64))
	}},
	{name: "uselib", about: "uselib(2), past the check: no such file", run: func() result {
		return pastCheck(try(syscall.SYS_USELIB, cstr("/no-such-file")))
	}},
	{name: "ustat", about: "ustat(2) of the device of /", run: func() result {
		var stat syscall.Stat_t
		if err := syscall.Stat("/", &stat); err != nil {
			return did(err.(syscall.Errno), "stat of /")
		}
		return did(try(syscall.SYS_USTAT, uintptr(stat.Dev), addr(&[64]byte{})))
	}},
	{name: "i386-getpid", about: "getpid through the gate of 32-bit programs (int 0x80)", run: func() result {
		return foreign(int80(20, 0, 0, 0))
	}},
	{name: "i386-socket", about: "socket through the gate of 32-bit programs (int 0x80)", run: func() result {
		fd := int80(359, syscall.AF_INET, syscall.SOCK_STREAM, 0)
		if int32(fd) < 0 {
			return did(syscall.Errno(-int32(fd)))
		}
		return did(0)
	}},
	{name: "x32-getpid", about: "getpid by its x32 number", run: func() result {
		pid, errno := call(0x40000000 | syscall.SYS_GETPID)
		if errno != 0 {
			return did(errno)
		}
		return foreign(pid)
	}},
	{name: "x32-ptrace", about: "ptrace by its x32 number: what a denylist of the usual numbers misses", run: func() result {
		return forked(did, inFork(0, 0x40000000|521, 0, 0, 0, 0))
	}},
	{name: "no-such-call", about: "a system call that there is not: ENOSYS, or the filter's answer", run: func() result {
		return did(try(0xfff))
	}},
}

// foreign judges what getpid gave by way of another ABI.
func foreign(value uintptr) result {
	if int32(value) < 0 && int32(value) > -4096 {
		return did(syscall.Errno(-int32(value)))
	}
	if int(int32(value)) != os.Getpid() {
		return result{Detail: fmt.Sprintf("gave %d instead of the pid", int32(value))}
	}
	return did(0)
}

// struct file_handle: how long, of which type, and the handle itself.
type fileHandle struct {
	bytes  uint32
	kind   int32
	handle [128]byte
}

func handleOf(path string) (*fileHandle, syscall.Errno) {
	handle := &fileHandle{bytes: 128}
	errno := try(sysNameToHandleAt, atFdcwd, cstr(path), addr(handle), addr(new(int32)), 0)
	return handle, errno
}

func openByHandle() result {
	root, errno := open("/", syscall.O_RDONLY|syscall.O_DIRECTORY)
	if errno != 0 {
		return did(errno, "open /")
	}
	handle, errno := handleOf("/")
	if errno != 0 {
		// Any handle serves to ask: one that nothing has.
		handle = &fileHandle{bytes: 8, kind: 1}
	}
	errno = try(sysOpenByHandleAt, root, addr(handle), syscall.O_RDONLY)
	r := pastCheck(errno)
	r.OK = r.OK && errno != syscall.EOPNOTSUPP
	return r
}

// What the controlling terminal allows, by descriptor: a sandbox gets the terminal of whoever started it.
var terminalProbes = []probe{
	{name: "tiocsti", about: "ioctl(2) TIOCSTI on 0, 1, 2: type for the user; past the check: bad address", run: func() result {
		return onTerminals(syscall.TIOCSTI)
	}},
	{name: "tiocsti-high-bits", about: "the same with bits set that the kernel ignores and a filter may not", run: func() result {
		return onTerminals(1<<32 | syscall.TIOCSTI)
	}},
	{name: "tioclinux", about: "ioctl(2) TIOCLINUX on 0, 1, 2: paste for the user; past the check: bad address", run: func() result {
		return onTerminals(syscall.TIOCLINUX)
	}},
	{name: "tioclinux-high-bits", about: "the same with bits set that the kernel ignores and a filter may not", run: func() result {
		return onTerminals(1<<32 | syscall.TIOCLINUX)
	}},
	{name: "tiocsctty", about: "ioctl(2) TIOCSCTTY on 0, 1, 2 in a session of its own: take the terminal over", harms: true, run: func() result {
		if errno := try(syscall.SYS_SETSID); errno != 0 {
			return did(errno, "setsid")
		}
		return eachTerminal(func(fd uintptr) syscall.Errno { return try(syscall.SYS_IOCTL, fd, syscall.TIOCSCTTY, 0) }, 0)
	}},
	{name: "dev-tty", about: "open /dev/tty: is there a controlling terminal", inside: true, run: func() result {
		return openAny(syscall.O_RDWR|syscall.O_NOCTTY, "/dev/tty")
	}},
}

// The character is fetched after the permission was checked: a bad address types nothing and gives EFAULT.
func onTerminals(request uintptr) result {
	return eachTerminal(func(fd uintptr) syscall.Errno { return try(syscall.SYS_IOCTL, fd, request, 1) }, syscall.EFAULT)
}

func eachTerminal(ask func(uintptr) syscall.Errno, success syscall.Errno) result {
	var first syscall.Errno
	var detail []string
	ok := false
	for fd := uintptr(0); fd < 3; fd++ {
		errno := ask(fd)
		detail = append(detail, fmt.Sprintf("%d: %s", fd, errnoName(errno)))
		if errno == success {
			ok = true
		}
		if first == 0 || errno == success {
			first = errno
		}
	}
	return result{OK: ok, Errno: errnoName(first), Detail: strings.Join(detail, ", ")}
}
