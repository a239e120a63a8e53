// Whoami prints, as one JSON object, what a process sees of itself and of the machine: ids, capabilities, namespaces,
// mounts, descriptors, limits, files. Run it outside and inside of a sandbox and compare. What it may not look at
// appears as {"error": "EPERM"}, and does not stop the rest.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// What package syscall has no names for.
const (
	prGetDumpable          = 3
	prGetSecurebits        = 27
	prGetNoNewPrivs        = 39
	sysKeyctl              = 250
	keyctlGetKeyringID     = 0
	keySpecSessionKeyring  = ^uintptr(3 - 1) // -3
	personalityQuery       = 0xffffffff
	mostEntriesOfDirectory = 300
)

var limits = []string{"cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks",
	"sigpending", "msgqueue", "nice", "rtprio", "rttime"}

func main() {
	// Descriptors come first: what is asked later opens some of its own.
	fds := field(descriptors())
	status := processStatus()
	me := map[string]interface{}{
		"fds":             fds,
		"pid":             os.Getpid(),
		"ppid":            os.Getppid(),
		"pgid":            number(syscall.SYS_GETPGID, 0),
		"sid":             number(syscall.SYS_GETSID, 0),
		"uid":             os.Getuid(),
		"euid":            os.Geteuid(),
		"gid":             os.Getgid(),
		"egid":            os.Getegid(),
		"groups":          field(os.Getgroups()),
		"uid_map":         text("/proc/self/uid_map"),
		"gid_map":         text("/proc/self/gid_map"),
		"setgroups":       text("/proc/self/setgroups"),
		"status":          status,
		"securebits":      number(syscall.SYS_PRCTL, prGetSecurebits),
		"dumpable":        number(syscall.SYS_PRCTL, prGetDumpable),
		"no_new_privs":    number(syscall.SYS_PRCTL, prGetNoNewPrivs),
		"personality":     number(syscall.SYS_PERSONALITY, personalityQuery),
		"session_keyring": number(sysKeyctl, keyctlGetKeyringID, keySpecSessionKeyring, 0),
		"umask":           umask(),
		"env":             os.Environ(),
		"args":            os.Args,
		"cwd":             field(syscallGetwd()),
		"exe":             field(os.Readlink("/proc/self/exe")),
		"hostname":        field(os.Hostname()),
		"namespaces":      namespaces(),
		"mounts":          field(mounts()),
		"pids":            field(pids()),
		"cgroup":          text("/proc/self/cgroup"),
		"rlimits":         rlimits(),
		"oom_score_adj":   text("/proc/self/oom_score_adj"),
		"interfaces":      field(interfaces()),
		"root":            listing("/", 2),
		"etc":             etc(),
		"gomaxprocs":      runtime.GOMAXPROCS(0),
		"gomemlimit":      debug.SetMemoryLimit(-1),
		"go":              runtime.Version(),
		"cpus":            runtime.NumCPU(),
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(me); err != nil {
		fmt.Fprintln(os.Stderr, "whoami:", err)
		os.Exit(1)
	}
}

func field(value interface{}, err error) interface{} {
	if err != nil {
		return failure(err)
	}
	if groups, ok := value.([]int); ok && groups == nil {
		return []int{} // or it would be null
	}
	return value
}

func failure(err error) interface{} {
	name := err.Error()
	var errno syscall.Errno
	if errors.As(err, &errno) {
		name = errnoName(errno)
	}
	return map[string]string{"error": name}
}

func errnoName(errno syscall.Errno) string {
	names := map[syscall.Errno]string{
		syscall.EPERM: "EPERM", syscall.EACCES: "EACCES", syscall.ENOENT: "ENOENT", syscall.ENOSYS: "ENOSYS",
		syscall.EINVAL: "EINVAL", syscall.ESRCH: "ESRCH", syscall.EBADF: "EBADF", syscall.EROFS: "EROFS",
		syscall.ENOTDIR: "ENOTDIR", syscall.ENOKEY: "ENOKEY", syscall.EAFNOSUPPORT: "EAFNOSUPPORT",
	}
	if name, known := names[errno]; known {
		return name
	}
	return fmt.Sprintf("errno %d (%s)", int(errno), errno.Error())
}

func number(nr uintptr, args ...uintptr) interface{} {
	var a [5]uintptr
	copy(a[:], args)
	value, _, errno := syscall.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], 0)
	if errno != 0 {
		return failure(errno)
	}
	return int32(value)
}

func text(path string) interface{} {
	content, err := os.ReadFile(path)
	return field(string(content), err)
}

// os.Getwd trusts $PWD, which is what somebody else wrote.
func syscallGetwd() (string, error) {
	var buffer [4096]byte
	n, _, errno := syscall.RawSyscall(syscall.SYS_GETCWD, uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)), 0)
	if errno != 0 {
		return "", errno
	}
	return string(bytes.TrimRight(buffer[:n], "\x00")), nil
}

func processStatus() interface{} {
	content, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return failure(err)
	}
	lines := map[string]string{}
	for _, line := range strings.Split(string(content), "\n") {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "Name", "State", "Umask", "Uid", "Gid", "Groups", "TracerPid", "NSpid", "NSpgid", "NSsid",
			"NoNewPrivs", "Seccomp", "Seccomp_filters", "CoreDumping", "THP_enabled", "Cpus_allowed_list":
			lines[name] = strings.Join(strings.Fields(value), " ")
		default:
			if strings.HasPrefix(name, "Cap") {
				lines[name] = strings.TrimSpace(value)
			}
		}
	}
	return lines
}

func umask() interface{} {
	old, _, errno := syscall.RawSyscall(syscall.SYS_UMASK, 0o077, 0, 0)
	if errno != 0 {
		return failure(errno)
	}
	syscall.RawSyscall(syscall.SYS_UMASK, old, 0, 0)
	return fmt.Sprintf("%04o", old)
}

// descriptors asks for each number instead of reading /proc/self/fd, which may not be there.
func descriptors() (map[string]interface{}, error) {
	fds := map[string]interface{}{}
	for fd := uintptr(0); fd < 4096; fd++ {
		fdFlags, _, errno := syscall.RawSyscall(syscall.SYS_FCNTL, fd, syscall.F_GETFD, 0)
		if errno == syscall.EBADF {
			continue
		} else if errno != 0 {
			return nil, errno
		}
		statusFlags, _, _ := syscall.RawSyscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
		fds[strconv.Itoa(int(fd))] = map[string]interface{}{
			"target":       field(os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))),
			"cloexec":      fdFlags&syscall.FD_CLOEXEC != 0,
			"status_flags": fmt.Sprintf("%#o", statusFlags),
		}
	}
	return fds, nil
}

func namespaces() interface{} {
	links, err := filepath.Glob("/proc/self/ns/*")
	if err != nil {
		return failure(err)
	}
	all := map[string]interface{}{}
	for _, link := range links {
		all[filepath.Base(link)] = field(os.Readlink(link))
	}
	return all
}

// mounts parses /proc/self/mountinfo: "36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda rw,errors=continue".
func mounts() ([]map[string]string, error) {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []map[string]string
	for _, line := range strings.Split(strings.TrimSpace(string(content)), "\n") {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 3 {
			continue
		}
		all = append(all, map[string]string{
			"root":          unescape(left[3]),
			"point":         unescape(left[4]),
			"options":       left[5],
			"propagation":   strings.Join(left[6:], " "),
			"fstype":        right[0],
			"source":        unescape(right[1]),
			"super_options": right[2],
		})
	}
	return all, nil
}

// unescape undoes the octal form in which mountinfo writes blanks and backslashes.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if code, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

func pids() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := []int{}
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			all = append(all, pid)
		}
	}
	sort.Ints(all)
	return all, nil
}

func rlimits() interface{} {
	all := map[string]interface{}{}
	for resource, name := range limits {
		var limit [2]uint64
		_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, 0, uintptr(resource), 0,
			uintptr(unsafe.Pointer(&limit)), 0, 0)
		if errno != 0 {
			all[name] = failure(errno)
			continue
		}
		all[name] = map[string]interface{}{"soft": bound(limit[0]), "hard": bound(limit[1])}
	}
	return all
}

func bound(value uint64) interface{} {
	if value == ^uint64(0) {
		return "unlimited"
	}
	return value
}

func interfaces() ([]map[string]interface{}, error) {
	found, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	all := []map[string]interface{}{}
	for _, one := range found {
		addresses := []string{}
		if addrs, err := one.Addrs(); err == nil {
			for _, addr := range addrs {
				addresses = append(addresses, addr.String())
			}
		}
		all = append(all, map[string]interface{}{"name": one.Name, "flags": one.Flags.String(), "addresses": addresses})
	}
	return all, nil
}

// listing describes a directory and what is below it, as far as levels says.
func listing(dir string, levels int) interface{} {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return failure(err)
	}
	all := map[string]interface{}{}
	for i, entry := range entries {
		if i == mostEntriesOfDirectory {
			all["..."] = fmt.Sprintf("%d more", len(entries)-i)
			break
		}
		path := filepath.Join(dir, entry.Name())
		info, err := os.Lstat(path)
		if err != nil {
			all[entry.Name()] = failure(err)
			continue
		}
		about := map[string]interface{}{"mode": info.Mode().String()}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			about["uid"], about["gid"] = stat.Uid, stat.Gid
			if info.Mode()&os.ModeDevice != 0 {
				about["device"] = fmt.Sprintf("%d:%d", stat.Rdev>>8&0xfff, stat.Rdev&0xff)
			}
		}
		switch {
		case info.Mode()&os.ModeSymlink != 0:
			about["target"] = field(os.Readlink(path))
		case info.Mode().IsRegular():
			about["size"] = info.Size()
		case info.IsDir() && levels > 1 && path != "/proc":
			about["entries"] = listing(path, levels-1)
		}
		all[entry.Name()] = about
	}
	return all
}

func etc() interface{} {
	all := map[string]interface{}{}
	for _, name := range []string{"passwd", "group", "hosts", "resolv.conf", "nsswitch.conf"} {
		path := filepath.Join("/etc", name)
		if info, err := os.Stat(path); err == nil && info.Size() > 64<<10 {
			all[name] = failure(fs.ErrInvalid)
			continue
		}
		all[name] = text(path)
	}
	return all
}
