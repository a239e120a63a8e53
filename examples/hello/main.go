// Hello is the smallest tenant: it greets and exits. With a command it does one simple thing instead, each of them
// something that a sandbox has to carry through, limit or clean up.
//
//	hello                    print a greeting, exit 0
//	hello exit N             exit with status N
//	hello panic              die of a panic
//	hello signal NAME        die of a signal (TERM, KILL, SEGV, ...)
//	hello sleep 5s           sleep
//	hello ignore-term        print "ready", then sleep for ever and ignore SIGTERM
//	hello signals            print "ready", then "got ..." for each signal; SIGTERM ends it
//	hello fork-bomb N        start N sleeping children, print how many could be started
//	hello orphan             leave a grandchild in a session of its own, print its pid, sleep
//	hello alloc MIB [5s]     use that much memory, and keep it that long
//	hello spin 5s            burn all the CPU there is
//	hello stderr N           print N lines to standard error
//	hello env                print the environment, sorted
//	hello cat FILE           print a file
//	hello write FILE TEXT    write one
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The path by which a program starts itself again. It has to work in a sandbox that hides where the binary is kept.
const self = "/proc/self/exe"

var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT,
	"HUP":  syscall.SIGHUP,
	"INT":  syscall.SIGINT,
	"KILL": syscall.SIGKILL,
	"PIPE": syscall.SIGPIPE,
	"QUIT": syscall.SIGQUIT,
	"SEGV": syscall.SIGSEGV,
	"STOP": syscall.SIGSTOP,
	"SYS":  syscall.SIGSYS,
	"TERM": syscall.SIGTERM,
	"USR1": syscall.SIGUSR1,
	"USR2": syscall.SIGUSR2,
	"XCPU": syscall.SIGXCPU,
}

var commands = map[string]struct {
	least, most int // how many arguments
	run         func(args []string) error
}{
	"exit":              {1, 1, exit},
	"panic":             {0, 0, func([]string) error { panic("hello panics, as it was told to") }},
	"signal":            {1, 1, signalSelf},
	"sleep":             {1, 1, sleep},
	"ignore-term":       {0, 0, ignoreTerm},
	"signals":           {0, 0, printSignals},
	"fork-bomb":         {1, 1, forkBomb},
	"orphan":            {0, 0, orphan},
	"orphan-middle":     {0, 0, orphanMiddle},
	"orphan-grandchild": {0, 0, func([]string) error { return forever() }},
	"alloc":             {1, 2, alloc},
	"spin":              {1, 1, spin},
	"stderr":            {1, 1, stderrLines},
	"env":               {0, 0, printEnv},
	"cat":               {1, 1, cat},
	"write":             {2, 2, func(args []string) error { return os.WriteFile(args[0], []byte(args[1]), 0o644) }},
}

func main() {
	if len(os.Args) < 2 {
		tenant := os.Getenv("GOSANDBOX_TENANT")
		if tenant == "" {
			tenant = "(none)"
		}
		fmt.Println("hello from tenant", tenant)
		return
	}
	command, known := commands[os.Args[1]]
	args := os.Args[2:]
	if !known || len(args) < command.least || len(args) > command.most {
		fmt.Fprintln(os.Stderr, "hello: no such command, or not that many arguments:", strings.Join(os.Args[1:], " "))
		os.Exit(2)
	}
	if err := command.run(args); err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}

func exit(args []string) error {
	code, err := strconv.Atoi(args[0])
	if err == nil {
		os.Exit(code)
	}
	return err
}

func signalSelf(args []string) error {
	name := strings.TrimPrefix(strings.ToUpper(args[0]), "SIG")
	sig, known := signals[name]
	if !known {
		return fmt.Errorf("no such signal: %s", args[0])
	}
	// The runtime has handlers for most of them, and signal.Reset leaves those in place: SIGTERM and SIGINT make it end
	// by the signal itself, SIGABRT and SIGSEGV make it print all goroutines and exit 2. A C program would simply die,
	// and that is what the sandbox is to see: the handler is taken away behind the runtime's back.
	signal.Reset(sig)
	if sig != syscall.SIGKILL && sig != syscall.SIGSTOP {
		var byDefault [4]uint64 // struct sigaction: SIG_DFL, no flags, no restorer, nothing blocked
		if err := rtSigaction(sig, &byDefault); err != nil {
			return err
		}
	}
	if err := syscall.Kill(os.Getpid(), sig); err != nil {
		return err
	}
	time.Sleep(time.Second)
	return fmt.Errorf("outlived SIG%s", name)
}

func sleep(args []string) error {
	d, err := time.ParseDuration(args[0])
	time.Sleep(d)
	return err
}

func forever() error {
	for {
		time.Sleep(time.Hour)
	}
}

func ignoreTerm([]string) error {
	signal.Ignore(syscall.SIGTERM)
	fmt.Println("ready")
	return forever()
}

func printSignals([]string) error {
	got := make(chan os.Signal, 64)
	signal.Notify(got, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGTERM, syscall.SIGINT)
	fmt.Println("ready")
	for sig := range got {
		fmt.Println("got", sig)
		if sig == syscall.SIGTERM {
			return nil
		}
	}
	return nil
}

func forkBomb(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	warmUp()
	devNull, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	quiet := &os.ProcAttr{Files: []*os.File{devNull, devNull, devNull}}
	var children []*os.Process
	var failed error
	for len(children) < n && failed == nil {
		child, err := os.StartProcess(self, []string{"hello", "sleep", "1h"}, quiet)
		if err != nil {
			failed = err
		} else {
			children = append(children, child)
		}
	}
	fmt.Println("started", len(children), "of", n)
	for _, child := range children {
		child.Kill()
	}
	for _, child := range children {
		child.Wait()
	}
	if failed != nil {
		fmt.Fprintln(os.Stderr, "hello:", failed)
	}
	return nil
}

// warmUp makes the runtime start its threads before the limit is reached: it dies where it needs one and can't have it.
func warmUp() {
	var group sync.WaitGroup
	for i := 0; i < 8; i++ {
		group.Add(1)
		go func() {
			pause := syscall.NsecToTimespec(int64(20 * time.Millisecond))
			syscall.Nanosleep(&pause, nil)
			group.Done()
		}()
	}
	group.Wait()
}

// A daemon of the old kind: a child that starts a grandchild and exits. The session of its own takes it out of reach
// of whoever signals the process group, the dead parent out of reach of whoever waits for children.
func orphan([]string) error {
	middle, err := os.StartProcess(self, []string{"hello", "orphan-middle"}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	if _, err := middle.Wait(); err != nil {
		return err
	}
	return forever()
}

func orphanMiddle([]string) error {
	grandchild, err := os.StartProcess(self, []string{"hello", "orphan-grandchild"}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err == nil {
		fmt.Println("orphan", grandchild.Pid)
	}
	return err
}

func alloc(args []string) error {
	mib, err := strconv.Atoi(strings.TrimRight(args[0], "MiB"))
	if err != nil {
		return err
	}
	var blocks [][]byte
	for i := 0; i < mib; i++ {
		block := make([]byte, 1<<20)
		for at := 0; at < len(block); at += 4096 {
			block[at] = 1
		}
		blocks = append(blocks, block)
	}
	fmt.Println("allocated", len(blocks), "MiB")
	if len(args) > 1 {
		err = sleep(args[1:])
	}
	runtime.KeepAlive(blocks)
	return err
}

func spin(args []string) error {
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	begin := time.Now()
	var group sync.WaitGroup
	for i := 0; i < runtime.NumCPU(); i++ {
		group.Add(1)
		go func() {
			for time.Since(begin) < d {
			}
			group.Done()
		}()
	}
	group.Wait()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return err
	}
	cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	fmt.Printf("used %.2fs of CPU in %.2fs\n", cpu.Seconds(), time.Since(begin).Seconds())
	return nil
}

func stderrLines(args []string) error {
	n, err := strconv.Atoi(args[0])
	for i := 1; i <= n && err == nil; i++ {
		_, err = fmt.Fprintln(os.Stderr, "stderr line", i)
	}
	return err
}

func printEnv([]string) error {
	env := os.Environ()
	sort.Strings(env)
	for _, line := range env {
		fmt.Println(line)
	}
	return nil
}

func cat(args []string) error {
	file, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(os.Stdout, file)
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}
