// Calls makes system calls by number, whatever they are, and prints what the kernel answered.
//
//	calls CALL...            each CALL is [TIMES*]NUMBER[,ARGUMENT]...
//
// An argument is a number as Go writes it, or text behind "s:", of which the call gets the address. Of a call that is made
// many times the last answer counts. "sleep:5s" sleeps instead, "fill" starts children until there may be no more. One line
// each: the number, the result, the errno or 0.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	for _, text := range os.Args[1:] {
		if err := call(text); err != nil {
			fmt.Fprintln(os.Stderr, "calls:", err)
			os.Exit(2)
		}
	}
}

func call(text string) error {
	if strings.HasPrefix(text, "sleep:") {
		d, err := time.ParseDuration(text[len("sleep:"):])
		time.Sleep(d)
		return err
	}
	if text == "fill" {
		return fill()
	}
	times := 1
	if before, after, found := strings.Cut(text, "*"); found {
		n, err := strconv.Atoi(before)
		if err != nil {
			return err
		}
		times, text = n, after
	}
	fields := strings.Split(text, ",")
	if len(fields) > 7 {
		return fmt.Errorf("%s: a call has six arguments at most", text)
	}
	number, err := strconv.ParseUint(fields[0], 0, 64)
	if err != nil {
		return err
	}
	var args [6]uintptr
	var texts []*byte
	for i, field := range fields[1:] {
		if strings.HasPrefix(field, "s:") {
			bytes, err := syscall.BytePtrFromString(field[len("s:"):])
			if err != nil {
				return err
			}
			texts = append(texts, bytes)
			args[i] = uintptr(unsafe.Pointer(bytes))
			continue
		}
		value, err := strconv.ParseInt(field, 0, 64)
		if err != nil {
			return err
		}
		args[i] = uintptr(value)
	}
	var result uintptr
	var errno syscall.Errno
	for ; times > 0; times-- {
		result, _, errno = syscall.Syscall6(uintptr(number), args[0], args[1], args[2], args[3], args[4], args[5])
	}
	fmt.Printf("%d result=%d errno=%d\n", number, int(result), int(errno))
	runtime.KeepAlive(texts)
	return nil
}

// fill starts children until the kernel refuses. They have one thread and sleep for good: one that died for want of
// another would make room again.
func fill() error {
	// The runtime gets the threads that it may want later, or it dies of it.
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
	hour := syscall.NsecToTimespec(int64(time.Hour))
	children := 0
	for {
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			fmt.Printf("filled %d errno=%d\n", children, int(errno))
			return nil
		}
		for pid == 0 {
			// Nothing of the runtime works in here.
			syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&hour)), 0, 0)
		}
		children++
	}
}
