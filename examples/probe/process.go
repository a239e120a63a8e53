package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

var processProbes = []probe{
	{name: "ptrace-traceme", about: "ptrace(2) PTRACE_TRACEME, in a child", run: func() result {
		return forked(did, inFork(0, syscall.SYS_PTRACE, 0, 0, 0, 0))
	}},
	{name: "ptrace-sibling", about: "ptrace(2) PTRACE_SEIZE of the process that was started by the sandbox", run: func() result {
		return did(try(syscall.SYS_PTRACE, 0x4206, uintptr(os.Getppid()), 0, 0))
	}},
	{name: "see-host-proc", about: "processes in /proc that are neither this one nor its children", inside: true, run: func() result {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return result{Errno: errnoName(asErrno(err)), Detail: "/proc cannot be listed"}
		}
		var foreign []string
		for _, entry := range entries {
			pid, err := strconv.Atoi(entry.Name())
			if err == nil && pid != os.Getpid() && parentOf(pid) != os.Getpid() {
				foreign = append(foreign, entry.Name())
			}
		}
		detail := fmt.Sprintf("%d seen", len(foreign))
		if len(foreign) > 0 && len(foreign) < 20 {
			detail += ": " + strings.Join(foreign, " ")
		}
		return result{OK: len(foreign) > 0, Detail: detail}
	}},
	{name: "new-session-escape", about: "does the process belong to a session from outside of its pid namespace", inside: true, run: func() result {
		sid, errno := call(syscall.SYS_GETSID, 0)
		if errno != 0 {
			return did(errno, "getsid")
		}
		return result{OK: sid == 0, Detail: fmt.Sprintf("session %d, pid %d", sid, os.Getpid())}
	}},
	{name: "core-dump-enabled", about: "is a core dump allowed (limit above 1; a pipe handler ignores 0)", inside: true, run: func() result {
		limit := &[2]uint64{}
		if errno := try(sysPrlimit64, 0, syscall.RLIMIT_CORE, 0, addr(limit)); errno != 0 {
			return did(errno)
		}
		return result{OK: limit[0] > 1 || limit[1] > 1, Detail: fmt.Sprintf("soft %d, hard %d", limit[0], limit[1])}
	}},
	{name: "umask-open", about: "is the umask other than 077", run: func() result {
		mask, errno := call(syscall.SYS_UMASK, 0o077)
		if errno != 0 {
			return did(errno)
		}
		return result{OK: mask != 0o077, Detail: fmt.Sprintf("%04o", mask)}
	}},
	{name: "no-new-privs-off", about: "is no_new_privs off", inside: true, run: func() result {
		return result{OK: !sandboxed()}
	}},
	{name: "seccomp-off", about: "is there no filter of system calls", inside: true, run: func() result {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return result{Errno: errnoName(asErrno(err)), Detail: "/proc/self/status"}
		}
		return result{OK: !strings.Contains(string(status), "\nSeccomp:\t2\n")}
	}},
}

func parentOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name of the program stands in parentheses and may contain anything.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1])
	return parent
}

var privilegeProbes = []probe{
	{name: "setuid-0", about: "setresuid(2) to 0", run: func() result {
		return did(try(syscall.SYS_SETRESUID, 0, 0, 0))
	}},
	{name: "setgid-0", about: "setresgid(2) to 0", run: func() result {
		return did(try(syscall.SYS_SETRESGID, 0, 0, 0))
	}},
	{name: "setgroups", about: "setgroups(2): group 0", run: func() result {
		return did(try(syscall.SYS_SETGROUPS, 1, addr(new(uint32))))
	}},
	{name: "setgroups-none", about: "setgroups(2): no groups, which may undo a denial by group", run: func() result {
		return did(try(syscall.SYS_SETGROUPS, 0, 0))
	}},
	{name: "setfsuid-0", about: "setfsuid(2) to 0", run: func() result {
		// It gives the former id and no errno. The second call, which asks for nothing, tells what the first has done.
		first, errno := call(syscall.SYS_SETFSUID, 0)
		if errno != 0 {
			return did(errno)
		}
		id, _ := call(syscall.SYS_SETFSUID, ^uintptr(0))
		return result{OK: id == 0, Detail: fmt.Sprintf("was %d, is %d", first, id)}
	}},
	{name: "capset-all", about: "capset(2): each capability, one by one", run: func() result {
		var got []string
		var last syscall.Errno
		for bit := 0; bit <= 40; bit++ {
			errno := inFork(0, syscall.SYS_CAPSET, addr(capHeader()), addr(capData(uint64(1)<<bit, 0)))
			if errno == 0 {
				got = append(got, strconv.Itoa(bit))
			} else {
				last = errno
			}
		}
		if len(got) > 0 {
			return result{OK: true, Detail: "capabilities " + strings.Join(got, " ")}
		}
		return forked(did, last)
	}},
	{name: "ambient-raise", about: "prctl(2): an ambient capability, after making it inheritable", run: func() result {
		const netRaw = 13
		errno := try(syscall.SYS_CAPSET, addr(capHeader()), addr(capData(1<<netRaw, 1<<netRaw)))
		return did(try(syscall.SYS_PRCTL, prCapAmbient, 2, netRaw, 0, 0), "capset: "+errnoName(errno))
	}},
	{name: "securebits-clear", about: "prctl(2): set securebits to 0", run: func() result {
		return did(try(syscall.SYS_PRCTL, 28, 0, 0, 0, 0))
	}},
	{name: "setrlimit-raise", about: "setrlimit(2): a higher hard limit of open files", run: func() result {
		limit := &[2]uint64{}
		if errno := try(sysPrlimit64, 0, syscall.RLIMIT_NOFILE, 0, addr(limit)); errno != 0 {
			return did(errno, "cannot be read")
		}
		limit[1]++
		return did(try(syscall.SYS_SETRLIMIT, syscall.RLIMIT_NOFILE, addr(limit)))
	}},
	{name: "prlimit-raise", about: "prlimit64(2): a higher hard limit of open files", run: func() result {
		limit := &[2]uint64{}
		if errno := try(sysPrlimit64, 0, syscall.RLIMIT_NOFILE, 0, addr(limit)); errno != 0 {
			return did(errno, "cannot be read")
		}
		limit[1]++
		return did(try(sysPrlimit64, 0, syscall.RLIMIT_NOFILE, addr(limit), 0))
	}},
	{name: "nice-lower", about: "setpriority(2): a better priority", run: func() result {
		return did(try(syscall.SYS_SETPRIORITY, 0, 0, ^uintptr(5-1)))
	}},
	{name: "sched-fifo", about: "sched_setscheduler(2): real-time priority", run: func() result {
		priority := int32(1)
		return did(try(syscall.SYS_SCHED_SETSCHEDULER, 0, 1, addr(&priority)))
	}},
	{name: "oom-score-lower", about: "write a lower /proc/self/oom_score_adj", run: func() result {
		text, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			return did(asErrno(err), "read")
		}
		now, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		if now > -1000 {
			now--
		}
		fd, errno := open("/proc/self/oom_score_adj", syscall.O_WRONLY)
		if errno != 0 {
			return did(errno, "open")
		}
		_, err = syscall.Write(int(fd), []byte(strconv.Itoa(now)))
		errno, _ = err.(syscall.Errno)
		return did(errno, "write")
	}},
}

func capHeader() *[2]uint32 {
	return &[2]uint32{0x20080522, 0}
}

// capData has the wanted capabilities effective and permitted, in the two halves that the kernel wants.
func capData(set, inheritable uint64) *[6]uint32 {
	return &[6]uint32{
		uint32(set), uint32(set), uint32(inheritable),
		uint32(set >> 32), uint32(set >> 32), uint32(inheritable >> 32),
	}
}
