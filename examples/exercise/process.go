package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

func runChild(what string) {
	switch what {
	case "echo":
		io.Copy(os.Stdout, os.Stdin)
	case "sleep":
		time.Sleep(time.Minute)
	}
}

func children() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	echo := func(text string) error {
		child := exec.Command(self, "-child", "echo")
		child.Stdin = strings.NewReader(text)
		var stderr bytes.Buffer
		child.Stderr = &stderr
		output, err := child.Output()
		if err != nil {
			return fmt.Errorf("%w: %s", err, stderr.String())
		}
		if string(output) != text {
			return fmt.Errorf("said %q instead of %q", output, text)
		}
		return nil
	}
	if err := echo("one"); err != nil {
		return err
	}
	// Whoever starts itself again does so by this name, too.
	if output, err := exec.Command("/proc/self/exe", "-child", "echo").Output(); err != nil || len(output) > 0 {
		return fmt.Errorf("/proc/self/exe: %q, %v", output, err)
	}

	errs := make(chan error, 20)
	for i := 0; i < cap(errs); i++ {
		go func(i int) { errs <- echo(fmt.Sprint("child ", i)) }(i)
	}
	for i := 0; i < cap(errs); i++ {
		if err := <-errs; err != nil {
			return step("20 in parallel", err)
		}
	}

	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	err = exec.CommandContext(ctx, self, "-child", "sleep").Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
		return fmt.Errorf("a child past its time was not killed: %v", err)
	}

	// In a process group of its own, signalled as such: what job runners do.
	child := exec.Command(self, "-child", "sleep")
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := child.Start(); err != nil {
		return step("a process group", err)
	}
	if err := syscall.Kill(-child.Process.Pid, syscall.SIGTERM); err != nil {
		child.Process.Kill()
		child.Wait()
		return step("signal to a process group", err)
	}
	if err := child.Wait(); !errors.As(err, &exit) {
		return fmt.Errorf("the process group did not end: %v", err)
	}
	if err := exec.Command("/no/such/program").Run(); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("a program that there is not: %v", err)
	}
	return nil
}

func signals() error {
	got := make(chan os.Signal, 16)
	signal.Notify(got, syscall.SIGUSR1, syscall.SIGHUP, syscall.SIGUSR2)
	defer signal.Stop(got)
	for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGHUP, syscall.SIGUSR2} {
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			return err
		}
		select {
		case s := <-got:
			if s != sig {
				return fmt.Errorf("got %v instead of %v", s, sig)
			}
		case <-time.After(5 * time.Second):
			return fmt.Errorf("%v did not arrive", sig)
		}
	}
	signal.Ignore(syscall.SIGHUP)
	err := syscall.Kill(os.Getpid(), syscall.SIGHUP)
	signal.Reset(syscall.SIGHUP)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		return err
	}
	<-ctx.Done()

	// A fault in Go code is a panic that can be recovered from, which takes a signal frame of its own.
	defer func() { recover() }()
	var nowhere *int
	*nowhere = 1
	return errors.New("a nil pointer was followed")
}

func limits() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return step("getrlimit", err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return step("setrlimit to what it is", err)
	}
	var files []*os.File
	defer func() {
		for _, file := range files {
			file.Close()
		}
	}()
	for i := 0; i < 500; i++ {
		file, err := os.Open(os.DevNull)
		if err != nil {
			return step("500 open files", err)
		}
		files = append(files, file)
	}
	return nil
}

// preempt needs SIGURG: without it the loop would hold up the collector that waits for everybody to stop.
func preempt() error {
	var group sync.WaitGroup
	stop := make(chan struct{})
	for i := 0; i < 2; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				n := 0
				for j := 0; j < 100_000_000; j++ {
					n += j
				}
				select {
				case <-stop:
					return
				default:
					tight = n
				}
			}
		}()
	}
	for i := 0; i < 5; i++ {
		garbage(8 << 20)
		time.Sleep(10 * time.Millisecond)
	}
	close(stop)
	group.Wait()
	return nil
}

// Written so that the compiler keeps the loop; that two goroutines do so at a time hurts nobody.
var tight int
