// Probe tries what a tenant must not be able to do, and prints what the kernel answered:
//
//	probe             try everything
//	probe NAME...     try these
//	probe list        say what there is
//
// The result is one JSON object, name → {"ok": bool, "errno": "EPERM" or "", "detail": "..."}. "ok": true means that THE
// FORBIDDEN THING WORKED. "signal" is there when the attempt was answered by a signal (which is no success),
// "skipped": true when it was not made, and detail says why.
//
// It is safe to run outside of a sandbox, as root too. What would harm the machine is asked for with arguments that the
// kernel refuses only after it has checked the permission, so that an answer other than EPERM, EACCES or ENOSYS tells
// that the permission was there (the description says "past the check"). Signals for pid 1 are sent only where
// no_new_privs is set, as it is in every sandbox. The probes named listener-* spoil the socket on descriptor 3 if they
// succeed.
//
// Environment: PROBE_CONNECT (PORT or HOST:PORT, an address that must not be reached), PROBE_UNIX (path of a unix
// socket, or @NAME for an abstract one), PROBE_TIMEOUT (for each attempt, default 5s).
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type result struct {
	OK      bool   `json:"ok"`
	Errno   string `json:"errno"`
	Detail  string `json:"detail"`
	Signal  string `json:"signal,omitempty"`
	Skipped bool   `json:"skipped,omitempty"`
}

type probe struct {
	name   string
	about  string
	run    func() result
	inside bool // must run in the process that the sandbox started, not in a child of it
	harms  bool // not to be tried outside of a sandbox
}

// The argument that makes this program a child which makes one attempt, or one that only shows that it was executed.
const (
	childArg    = "--attempt"
	executedArg = "--executed"
)

// Larger than every errno: by this exit code a child that was executed shows it.
const executedCode = 200

func main() {
	args := os.Args[1:]
	switch {
	case len(args) == 1 && args[0] == executedArg:
		os.Exit(executedCode)
	case len(args) == 3 && args[0] == childArg:
		fd, _ := strconv.Atoi(args[2])
		attempt(args[1], fd)
		return
	case len(args) == 1 && args[0] == "list":
		for _, p := range probes {
			fmt.Printf("%-26s %s\n", p.name, p.about)
		}
		return
	}
	chosen := probes
	if len(args) > 0 {
		chosen = nil
		for _, name := range args {
			p := find(name)
			if p == nil {
				fmt.Fprintf(os.Stderr, "probe: no such probe: %s (see probe list)\n", name)
				os.Exit(2)
			}
			chosen = append(chosen, *p)
		}
	}
	timeout, err := time.ParseDuration(os.Getenv("PROBE_TIMEOUT"))
	if err != nil {
		timeout = 5 * time.Second
	}

	results := map[string]result{}
	for _, p := range chosen {
		switch {
		case p.harms && !sandboxed():
			results[p.name] = skipped("no_new_privs is off: this is no sandbox, and it could do harm")
		case p.inside:
			results[p.name] = p.run()
		default:
			results[p.name] = inChild(p, timeout)
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(results); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func find(name string) *probe {
	for i := range probes {
		if probes[i].name == name {
			return &probes[i]
		}
	}
	return nil
}

func sandboxed() bool {
	on, errno := call(syscall.SYS_PRCTL, prGetNoNewPrivs)
	return errno == 0 && on == 1
}

// inChild makes the attempt in a process of its own: the answer may be a signal, and a success would change the process.
func inChild(p probe, timeout time.Duration) result {
	pipe := make([]int, 2)
	if err := syscall.Pipe2(pipe, syscall.O_CLOEXEC); err != nil {
		return skipped("no pipe: " + err.Error())
	}
	// The child gets the same descriptors as this process was given, at the same places, and the pipe behind them. Not
	// os/exec: that would make the shared sockets blocking.
	files := []uintptr{0, 1, 2}
	for i := 0; i < passedSockets(); i++ {
		files = append(files, uintptr(3+i))
	}
	files = append(files, uintptr(pipe[1]))
	pid, err := syscall.ForkExec("/proc/self/exe",
		[]string{os.Args[0], childArg, p.name, strconv.Itoa(len(files) - 1)},
		&syscall.ProcAttr{Env: os.Environ(), Files: files})
	syscall.Close(pipe[1])
	if err != nil {
		syscall.Close(pipe[0])
		return skipped("no child for it: " + err.Error())
	}
	reader := os.NewFile(uintptr(pipe[0]), "result")
	defer reader.Close()
	timer := time.AfterFunc(timeout, func() { syscall.Kill(pid, syscall.SIGKILL) })
	var got result
	decodeErr := json.NewDecoder(reader).Decode(&got)
	var status syscall.WaitStatus
	for {
		_, err = syscall.Wait4(pid, &status, 0, nil)
		if err == nil && !status.Stopped() || err != nil && err != syscall.EINTR {
			break
		}
	}
	late := !timer.Stop()
	switch {
	case decodeErr == nil:
		return got
	case late:
		return result{Detail: "no answer within " + timeout.String()}
	case status.Signaled():
		return result{Signal: signalName(status.Signal()), Detail: "killed"}
	default:
		return result{Detail: fmt.Sprintf("the child ended with status %d and said nothing", status.ExitStatus())}
	}
}

func attempt(name string, fd int) {
	p := find(name)
	if p == nil {
		os.Exit(2)
	}
	syscall.CloseOnExec(fd)
	text, err := json.Marshal(p.run())
	if err == nil {
		_, err = syscall.Write(fd, append(text, '\n'))
	}
	if err != nil {
		os.Exit(1)
	}
}

// passedSockets tells how many sockets were handed over, to this process or to the one that started it for an attempt.
func passedSockets() int {
	pid, err := strconv.Atoi(os.Getenv("LISTEN_PID"))
	n, err2 := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || err2 != nil || n < 0 || n > 1000 {
		return 0
	}
	if pid == os.Getpid() || pid == os.Getppid() && len(os.Args) > 1 && os.Args[1] == childArg {
		return n
	}
	return 0
}

func skipped(why string) result {
	return result{Skipped: true, Detail: "not tried: " + why}
}

// did is for attempts that have worked when the call succeeds.
func did(errno syscall.Errno, detail ...string) result {
	return result{OK: errno == 0, Errno: errnoName(errno), Detail: strings.Join(detail, "; ")}
}

// pastCheck is for attempts with arguments that are refused after the permission was checked: any other refusal than one
// for want of permission means that the permission was there.
func pastCheck(errno syscall.Errno, detail ...string) result {
	r := did(errno, detail...)
	r.OK = errno != syscall.EPERM && errno != syscall.EACCES && errno != syscall.ENOSYS
	return r
}
