package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func open(path string, flags int) (uintptr, syscall.Errno) {
	return call(syscall.SYS_OPENAT, atFdcwd, cstr(path), uintptr(flags|syscall.O_CLOEXEC), 0o600)
}

// openAny has worked if one of the files could be opened. Nothing is read from it nor written to it.
func openAny(flags int, paths ...string) result {
	var first syscall.Errno
	var opened, refused []string
	for _, path := range paths {
		fd, errno := open(path, flags|syscall.O_NONBLOCK)
		if errno == 0 {
			opened = append(opened, path)
			syscall.Close(int(fd))
			continue
		}
		refused = append(refused, path+" "+errnoName(errno))
		if first == 0 {
			first = errno
		}
	}
	if len(opened) > 0 {
		return result{OK: true, Detail: "opened " + strings.Join(opened, ", ")}
	}
	return result{Errno: errnoName(first), Detail: strings.Join(refused, ", ")}
}

// readSome has worked if the file has something in it. A masked one can be opened, and is empty.
func readSome(path string, judge func([]byte) bool) result {
	fd, errno := open(path, syscall.O_RDONLY|syscall.O_NONBLOCK)
	if errno != 0 {
		return did(errno, "open")
	}
	buffer := make([]byte, 64<<10)
	n, err := syscall.Read(int(fd), buffer)
	if err != nil {
		return did(err.(syscall.Errno), "read")
	}
	r := result{OK: judge(buffer[:n]), Detail: fmt.Sprintf("read %d bytes", n)}
	return r
}

func anything(text []byte) bool {
	return len(text) > 0
}

var fileProbes = []probe{
	{name: "mknod-char", about: "mknod(2) of a copy of /dev/null in /tmp, /dev, /dev/shm, and open it", run: func() result {
		r := result{}
		for _, dir := range []string{"/tmp", "/dev", "/dev/shm"} {
			path := scratch(dir)
			errno := try(syscall.SYS_MKNOD, cstr(path), syscall.S_IFCHR|0o600, 1<<8|3)
			if errno == 0 {
				_, errno = open(path, syscall.O_RDWR)
				syscall.Unlink(path)
			}
			if errno == 0 {
				return result{OK: true, Detail: "in " + dir}
			}
			r.Errno, r.Detail = errnoName(errno), r.Detail+dir+" "+errnoName(errno)+" "
		}
		r.Detail = strings.TrimSpace(r.Detail)
		return r
	}},
	{name: "memfd-exec", about: "run a copy of itself from memfd_create(2)", run: func() result {
		return execFromMemory(0)
	}},
	{name: "memfd-sealed-exec", about: "the same with MFD_NOEXEC_SEAL, which says that it never will be", run: func() result {
		return execFromMemory(8)
	}},
	{name: "tmp-exec", about: "run a copy of itself from /tmp", run: func() result {
		return execFrom("/tmp")
	}},
	{name: "tmpdir-exec", about: "run a copy of itself from $TMPDIR", run: func() result {
		return execFrom(os.TempDir())
	}},
	{name: "shm-exec", about: "run a copy of itself from /dev/shm", run: func() result {
		return execFrom("/dev/shm")
	}},
	{name: "cwd-exec", about: "run a copy of itself from the working directory", run: func() result {
		return execFrom(".")
	}},
	{name: "tmp-mmap-exec", about: "mmap(2) a file of /tmp as code", run: func() result {
		path := scratch("/tmp")
		fd, errno := open(path, syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL)
		if errno != 0 {
			return did(errno, "no file in /tmp")
		}
		defer syscall.Unlink(path)
		syscall.Ftruncate(int(fd), 4096)
		return did(try(syscall.SYS_MMAP, 0, 4096, syscall.PROT_READ|syscall.PROT_EXEC, syscall.MAP_PRIVATE, fd, 0))
	}},
	{name: "write-root", about: "create a file in /", run: func() result {
		return create("/")
	}},
	{name: "write-etc", about: "create a file in /etc, open /etc/passwd and /etc/hosts for writing", run: func() result {
		if r := create("/etc"); r.OK {
			return r
		}
		return openAny(syscall.O_WRONLY, "/etc/passwd", "/etc/hosts", "/etc/resolv.conf")
	}},
	{name: "write-dev", about: "create a file in /dev", run: func() result {
		return create("/dev")
	}},
	{name: "write-exe", about: "open the running binary for writing: ETXTBSY means only its running is in the way", run: func() result {
		paths := []string{"/proc/self/exe"}
		if path, err := os.Readlink("/proc/self/exe"); err == nil {
			paths = append(paths, path)
		}
		r := result{}
		for _, path := range paths {
			_, errno := open(path, syscall.O_WRONLY)
			r = did(errno, path)
			r.OK = errno == 0 || errno == syscall.ETXTBSY
			if r.OK {
				break
			}
		}
		return r
	}},
	{name: "read-shadow", about: "open /etc/shadow", run: func() result {
		return openAny(syscall.O_RDONLY, "/etc/shadow")
	}},
	{name: "read-home", about: "list /root and /home", run: func() result {
		r := result{Detail: "nothing there"}
		for _, dir := range []string{"/root", "/home"} {
			if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
				return result{OK: true, Detail: fmt.Sprintf("%d entries in %s", len(entries), dir)}
			}
			r.Errno = errnoName(try(syscall.SYS_ACCESS, cstr(dir), 4))
		}
		return r
	}},
	{name: "write-proc-sys", about: "open files below /proc/sys for writing", run: func() result {
		return openAny(syscall.O_WRONLY, "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
			"/proc/sys/vm/overcommit_memory", "/proc/sys/fs/file-max", "/proc/sys/net/ipv4/ip_forward")
	}},
	{name: "write-proc-self-map", about: "open /proc/self/uid_map and setgroups for writing, and write the map anew", run: func() result {
		fd, errno := open("/proc/self/uid_map", syscall.O_WRONLY)
		if errno != 0 {
			return did(errno, "open")
		}
		_, err := syscall.Write(int(fd), []byte("0 0 1\n"))
		errno, _ = err.(syscall.Errno)
		return did(errno, "write")
	}},
	{name: "sysrq", about: "open /proc/sysrq-trigger for writing, and write nothing", run: func() result {
		return realFile(syscall.O_WRONLY, "/proc/sysrq-trigger")
	}},
	{name: "read-kcore", about: "read /proc/kcore", run: func() result {
		return readSome("/proc/kcore", anything)
	}},
	{name: "read-kmsg", about: "open /proc/kmsg (not read: that would take lines from the log daemon)", run: func() result {
		return realFile(syscall.O_RDONLY, "/proc/kmsg")
	}},
	{name: "read-proc-keys", about: "read /proc/keys", run: func() result {
		return readSome("/proc/keys", anything)
	}},
	{name: "read-timer-list", about: "read /proc/timer_list", run: func() result {
		return readSome("/proc/timer_list", anything)
	}},
	{name: "read-kallsyms-addresses", about: "read addresses that are not 0 from /proc/kallsyms", run: func() result {
		return readSome("/proc/kallsyms", func(text []byte) bool {
			for _, line := range bytes.Split(text, []byte("\n")) {
				address, _, _ := bytes.Cut(line, []byte(" "))
				if len(address) == 16 && len(bytes.Trim(address, "0")) > 0 {
					return true
				}
			}
			return false
		})
	}},
	{name: "see-sys", about: "look into /sys", run: func() result {
		return openAny(syscall.O_RDONLY|syscall.O_DIRECTORY, "/sys/kernel", "/sys/class", "/sys/firmware", "/sys/devices")
	}},
	{name: "write-cgroup", about: "find mounted cgroups and open cgroup.procs for writing", run: func() result {
		points := []string{"/sys/fs/cgroup"}
		info, err := os.ReadFile("/proc/self/mountinfo")
		for _, line := range strings.Split(string(info), "\n") {
			if fields := strings.Fields(line); err == nil && len(fields) > 4 && strings.Contains(line, " - cgroup") {
				points = append(points, fields[4])
			}
		}
		var paths []string
		for _, point := range points {
			paths = append(paths, point+"/cgroup.procs", point+"/memory.max", point+"/release_agent")
		}
		return openAny(syscall.O_WRONLY, paths...)
	}},
	{name: "dev-access", about: "open devices: memory, disks, consoles, KVM, tun, fuse", run: func() result {
		return openAny(syscall.O_RDONLY|syscall.O_NOCTTY, "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/sda",
			"/dev/vda", "/dev/nvme0n1", "/dev/loop-control", "/dev/tty0", "/dev/console", "/dev/ptmx", "/dev/pts/ptmx",
			"/dev/kvm", "/dev/net/tun", "/dev/fuse", "/dev/vsock", "/dev/userfaultfd", "/dev/mapper/control")
	}},
	{name: "write-random", about: "open the random devices for writing, which is the machine's pool", run: func() result {
		return openAny(syscall.O_WRONLY, "/dev/random", "/dev/urandom")
	}},
	{name: "exe-host-path", about: "does /proc/self/exe name a path that is not the binary's here", inside: true, run: func() result {
		path, err := os.Readlink("/proc/self/exe")
		if err != nil {
			return result{Errno: errnoName(asErrno(err)), Detail: "readlink"}
		}
		self, err := os.Stat("/proc/self/exe")
		named, err2 := os.Stat(path)
		same := err == nil && err2 == nil && os.SameFile(self, named)
		return result{OK: !same, Detail: path}
	}},
	{name: "host-paths-in-mountinfo", about: "the roots and sources of /proc/self/mountinfo, for whoever knows what may not be there", inside: true, run: func() result {
		info, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return result{Errno: errnoName(asErrno(err))}
		}
		var roots []string
		for _, line := range strings.Split(strings.TrimSpace(string(info)), "\n") {
			if fields := strings.Fields(line); len(fields) > 4 && fields[3] != "/" {
				roots = append(roots, fields[3]+" on "+fields[4])
			}
		}
		return result{Detail: strings.Join(roots, ", ")}
	}},
	{name: "cwd-leak", about: "is the working directory outside of /", inside: true, run: func() result {
		buffer := make([]byte, 4096)
		n, errno := call(syscall.SYS_GETCWD, addr(&buffer[0]), uintptr(len(buffer)))
		if errno != 0 {
			return did(errno, "getcwd")
		}
		cwd := string(bytes.TrimRight(buffer[:n], "\x00"))
		top, errno := open(strings.Repeat("../", 60), syscall.O_RDONLY|syscall.O_DIRECTORY)
		return result{OK: !strings.HasPrefix(cwd, "/") || errno == 0 && !isRoot(top), Detail: cwd}
	}},
	{name: "chdir-proc-fd", about: "climb out through descriptors 3 to 20 (/proc/self/fd/N/../..)", inside: true, run: func() result {
		up := strings.Repeat("../", 60)
		for n := 3; n <= 20; n++ {
			fd, errno := call(syscall.SYS_OPENAT, uintptr(n), cstr(up), syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
			if errno != 0 {
				fd, errno = open(fmt.Sprintf("/proc/self/fd/%d/%s", n, up), syscall.O_RDONLY|syscall.O_DIRECTORY)
			}
			if errno == 0 && !isRoot(fd) {
				return result{OK: true, Detail: fmt.Sprintf("through descriptor %d", n)}
			}
		}
		return result{Detail: "none leads out"}
	}},
	{name: "fd-leak", about: "descriptors that were inherited and are not stdio nor passed sockets", inside: true, run: func() result {
		return result{OK: len(leaked) > 0, Detail: strings.Join(leaked, ", ")}
	}},
}

// What an exec has let through has no FD_CLOEXEC, and all that the runtime opens for itself has: so the two can be told
// apart, though the runtime comes first.
var leaked = func() (found []string) {
	for fd := 3 + passedSockets(); fd < 4096; fd++ {
		flags, errno := call(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD)
		if errno == 0 && flags&syscall.FD_CLOEXEC == 0 {
			target, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			found = append(found, strings.TrimSpace(fmt.Sprintf("%d %s", fd, target)))
		}
	}
	return found
}()

func asErrno(err error) syscall.Errno {
	if pathError, ok := err.(*os.PathError); ok {
		err = pathError.Err
	}
	errno, ok := err.(syscall.Errno)
	if !ok {
		return syscall.EINVAL
	}
	return errno
}

func isRoot(fd uintptr) bool {
	var there, root syscall.Stat_t
	if syscall.Fstat(int(fd), &there) != nil || syscall.Stat("/", &root) != nil {
		return false
	}
	return there.Dev == root.Dev && there.Ino == root.Ino
}

// realFile has worked if the file could be opened and is the kernel's own: what a sandbox lays over it is a device.
func realFile(flags int, path string) result {
	fd, errno := open(path, flags|syscall.O_NONBLOCK)
	if errno != 0 {
		return did(errno, "open")
	}
	var stat syscall.Stat_t
	if err := syscall.Fstat(int(fd), &stat); err != nil {
		return did(err.(syscall.Errno), "fstat")
	}
	if stat.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return result{Detail: "masked"}
	}
	return did(0)
}

func scratch(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("gosandbox-probe-%d", os.Getpid()))
}

func create(dir string) result {
	path := scratch(dir)
	_, errno := open(path, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL)
	if errno == 0 {
		syscall.Unlink(path)
	}
	return did(errno, "create in "+dir)
}

func copySelf(fd int) error {
	program, err := os.ReadFile("/proc/self/exe")
	for len(program) > 0 && err == nil {
		var n int
		n, err = syscall.Write(fd, program)
		program = program[n:]
	}
	return err
}

func execFromMemory(flags uintptr) result {
	fd, errno := call(sysMemfdCreate, cstr("probe"), flags)
	if errno != 0 {
		return did(errno, "memfd_create")
	}
	if err := copySelf(int(fd)); err != nil {
		return result{Detail: err.Error()}
	}
	return executed(fd, "")
}

func execFrom(dir string) result {
	path := scratch(dir)
	fd, errno := open(path, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL)
	if errno != 0 {
		return did(errno, "no file in "+dir)
	}
	defer syscall.Unlink(path)
	err := copySelf(int(fd))
	if err == nil {
		err = syscall.Fchmod(int(fd), 0o700)
	}
	syscall.Close(int(fd))
	if err != nil {
		return result{Detail: err.Error()}
	}
	return executed(atFdcwd, path)
}

// executed tells whether the program at this place can be started: its exit code shows that it was.
func executed(dirfd uintptr, path string) result {
	argv := &[3]uintptr{cstr("probe"), cstr(executedArg), 0}
	envp := &[1]uintptr{0}
	flags := uintptr(0)
	if path == "" {
		flags = 0x1000 // AT_EMPTY_PATH
	}
	errno := inFork(0, sysExecveat, dirfd, cstr(path), addr(argv), addr(envp), flags)
	switch {
	case errno == executedCode:
		return result{OK: true, Detail: "it was executed"}
	case errno == 0:
		return result{Detail: "something else was executed"}
	}
	return forked(did, errno, "execveat")
}
