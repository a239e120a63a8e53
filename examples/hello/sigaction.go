package main

import (
	"syscall"
	"unsafe"
)

// rtSigaction sets what the kernel does on a signal. os/signal has no way to say "what a C program would get".
func rtSigaction(sig syscall.Signal, action *[4]uint64) error {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(action)), 0, 8, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
