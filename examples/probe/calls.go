package main

import (
	"fmt"
	"syscall"
	"unsafe"
)

// Numbers that package syscall does not have. They are the kernel's and never change.
const (
	prGetNoNewPrivs = 39
	prCapAmbient    = 47

	sysPivotRoot       = 155
	sysKexecLoad       = 246
	sysAddKey          = 248
	sysRequestKey      = 249
	sysKeyctl          = 250
	sysIoprioSet       = 251
	sysIoprioGet       = 252
	sysMovePages       = 279
	sysFanotifyInit    = 300
	sysPrlimit64       = 302
	sysNameToHandleAt  = 303
	sysOpenByHandleAt  = 304
	sysSetns           = 308
	sysSendmmsg        = 307
	sysProcessVMReadv  = 310
	sysKcmp            = 312
	sysFinitModule     = 313
	sysMemfdCreate     = 319
	sysBpf             = 321
	sysExecveat        = 322
	sysUserfaultfd     = 323
	sysPidfdSendSignal = 424
	sysIoUringSetup    = 425
	sysOpenTree        = 428
	sysMoveMount       = 429
	sysFsopen          = 430
	sysPidfdOpen       = 434
	sysClone3          = 435
	sysPidfdGetfd      = 438
	sysProcessMadvise  = 440
	sysMountSetattr    = 442
)

var atFdcwd = ^uintptr(100 - 1) // -100

// call is the system call itself, with no word of the runtime or the library in it.
func call(nr uintptr, args ...uintptr) (uintptr, syscall.Errno) {
	var a [6]uintptr
	copy(a[:], args)
	value, _, errno := syscall.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	return value, errno
}

func try(nr uintptr, args ...uintptr) syscall.Errno {
	_, errno := call(nr, args...)
	return errno
}

// addr gives the address of a variable for use in call. The variable has to be one that lives on the heap or in a
// package variable and is kept alive by its user; the collector moves neither.
func addr[T any](value *T) uintptr {
	kept = append(kept, value)
	return uintptr(unsafe.Pointer(value))
}

// Keeps what the kernel was shown: a process makes one attempt and is gone, so that nothing has ever to be let go of.
var kept []interface{}

// cstr gives the address of a string as C has it.
func cstr(s string) uintptr {
	bytes := append([]byte(s), 0)
	return addr(&bytes[0])
}

// inFork makes one call in a forked copy of this process with just one thread, and gives its errno. Some calls are refused
// to processes with more than one (unshare of a user namespace); others would change the caller (chroot).
func inFork(cloneFlags uintptr, nr uintptr, args ...uintptr) syscall.Errno {
	var a [6]uintptr
	copy(a[:], args)
	pid, errno := forkCall(cloneFlags, nr, &a)
	if errno != 0 {
		return errno
	}
	return waitErrno(int(pid))
}

// forkCall must not grow the stack nor allocate in the child: the child has none of the runtime's other threads.
//
//go:nosplit
//go:noinline
func forkCall(cloneFlags uintptr, nr uintptr, a *[6]uintptr) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, cloneFlags|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	_, _, errno = syscall.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	}
}

// forkClone3 is clone3 as fork. Its flags lie in memory, where a filter cannot see them.
//
//go:nosplit
//go:noinline
func forkClone3(args *[11]uint64) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall(sysClone3, uintptr(unsafe.Pointer(args)), 64, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// What inFork gives for a child that a signal has ended: no errno is as large.
const errnoSignaled = syscall.Errno(4096)

func waitErrno(pid int) syscall.Errno {
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err.(syscall.Errno)
		}
		if status.Signaled() {
			return errnoSignaled + syscall.Errno(status.Signal())
		}
		return syscall.Errno(status.ExitStatus())
	}
}

// forked turns the errno of inFork into a result, by way of did or pastCheck.
func forked(judge func(syscall.Errno, ...string) result, errno syscall.Errno, detail ...string) result {
	if errno > errnoSignaled {
		return result{Signal: signalName(syscall.Signal(errno - errnoSignaled)), Detail: "killed"}
	}
	return judge(errno, detail...)
}

func signalName(sig syscall.Signal) string {
	names := map[syscall.Signal]string{
		syscall.SIGSYS: "SIGSYS", syscall.SIGKILL: "SIGKILL", syscall.SIGSEGV: "SIGSEGV", syscall.SIGILL: "SIGILL",
		syscall.SIGTERM: "SIGTERM", syscall.SIGBUS: "SIGBUS", syscall.SIGABRT: "SIGABRT", syscall.SIGTRAP: "SIGTRAP",
	}
	if name, known := names[sig]; known {
		return name
	}
	return fmt.Sprintf("signal %d", int(sig))
}

var errnoNames = map[syscall.Errno]string{
	syscall.EPERM: "EPERM", syscall.ENOENT: "ENOENT", syscall.ESRCH: "ESRCH", syscall.EINTR: "EINTR", syscall.EIO: "EIO",
	syscall.ENXIO: "ENXIO", syscall.E2BIG: "E2BIG", syscall.ENOEXEC: "ENOEXEC", syscall.EBADF: "EBADF",
	syscall.ECHILD: "ECHILD", syscall.EAGAIN: "EAGAIN", syscall.ENOMEM: "ENOMEM", syscall.EACCES: "EACCES",
	syscall.EFAULT: "EFAULT", syscall.ENOTBLK: "ENOTBLK", syscall.EBUSY: "EBUSY", syscall.EEXIST: "EEXIST",
	syscall.EXDEV: "EXDEV", syscall.ENODEV: "ENODEV", syscall.ENOTDIR: "ENOTDIR", syscall.EISDIR: "EISDIR",
	syscall.EINVAL: "EINVAL", syscall.ENFILE: "ENFILE", syscall.EMFILE: "EMFILE", syscall.ENOTTY: "ENOTTY",
	syscall.ETXTBSY: "ETXTBSY", syscall.EFBIG: "EFBIG", syscall.ENOSPC: "ENOSPC", syscall.ESPIPE: "ESPIPE",
	syscall.EROFS: "EROFS", syscall.EPIPE: "EPIPE", syscall.ERANGE: "ERANGE", syscall.ENAMETOOLONG: "ENAMETOOLONG",
	syscall.ENOSYS: "ENOSYS", syscall.ELOOP: "ELOOP", syscall.ENODATA: "ENODATA", syscall.EOVERFLOW: "EOVERFLOW",
	syscall.ENOTSOCK: "ENOTSOCK", syscall.EDESTADDRREQ: "EDESTADDRREQ", syscall.EMSGSIZE: "EMSGSIZE",
	syscall.EPROTOTYPE: "EPROTOTYPE", syscall.ENOPROTOOPT: "ENOPROTOOPT", syscall.EPROTONOSUPPORT: "EPROTONOSUPPORT",
	syscall.ESOCKTNOSUPPORT: "ESOCKTNOSUPPORT", syscall.EOPNOTSUPP: "EOPNOTSUPP", syscall.EAFNOSUPPORT: "EAFNOSUPPORT",
	syscall.EADDRINUSE: "EADDRINUSE", syscall.EADDRNOTAVAIL: "EADDRNOTAVAIL", syscall.ENETDOWN: "ENETDOWN",
	syscall.ENETUNREACH: "ENETUNREACH", syscall.ECONNRESET: "ECONNRESET", syscall.ENOBUFS: "ENOBUFS",
	syscall.EISCONN: "EISCONN", syscall.ENOTCONN: "ENOTCONN", syscall.ETIMEDOUT: "ETIMEDOUT",
	syscall.ECONNREFUSED: "ECONNREFUSED", syscall.EHOSTUNREACH: "EHOSTUNREACH", syscall.EALREADY: "EALREADY",
	syscall.EINPROGRESS: "EINPROGRESS", syscall.ESTALE: "ESTALE", syscall.EDQUOT: "EDQUOT", syscall.ENOKEY: "ENOKEY",
	syscall.EKEYEXPIRED: "EKEYEXPIRED", syscall.EUSERS: "EUSERS",
}

func errnoName(errno syscall.Errno) string {
	if errno == 0 {
		return ""
	}
	if name, known := errnoNames[errno]; known {
		return name
	}
	return fmt.Sprintf("errno %d", int(errno))
}
