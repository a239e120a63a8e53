// Calls makes system calls by number, whatever they are, and prints what the kernel answered.
//
//	calls CALL...            each CALL is [TIMES*]NUMBER[,ARGUMENT]...
//
// An argument is a number as Go writes it, or text behind "s:", of which the call gets the address. Of a call that is made
// many times the last answer counts. "sleep:5s" sleeps instead. One line each: the number, the result, the errno or 0.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
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
