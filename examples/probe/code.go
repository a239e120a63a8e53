package main

import "syscall"

const (
	sysPkeyMprotect = 329
	shmExec         = 0o100000
	ipcCreat        = 0o1000
	mapAnonymous    = 0x20
)

const (
	readWrite   = syscall.PROT_READ | syscall.PROT_WRITE
	readExecute = syscall.PROT_READ | syscall.PROT_EXEC
)

// anonymous maps a page of new memory.
func anonymous(prot, kind uintptr) (uintptr, syscall.Errno) {
	return call(syscall.SYS_MMAP, 0, 4096, prot, kind|mapAnonymous, ^uintptr(0), 0)
}

// What makes code of memory that was written: compilers at run time need the first two, and a policy may deny it.
var codeProbes = []probe{
	{name: "map-write-execute", about: "mmap(2) memory that is written and executed", run: func() result {
		_, errno := anonymous(readWrite|syscall.PROT_EXEC, syscall.MAP_PRIVATE)
		return did(errno)
	}},
	{name: "write-then-execute", about: "mprotect(2) memory that was written so that it is executed", run: func() result {
		page, errno := anonymous(readWrite, syscall.MAP_PRIVATE)
		if errno != 0 {
			return did(errno, "mmap")
		}
		return did(try(syscall.SYS_MPROTECT, page, 4096, readExecute))
	}},
	{name: "write-then-execute-key", about: "the same with pkey_mprotect(2)", run: func() result {
		page, errno := anonymous(readWrite, syscall.MAP_PRIVATE)
		if errno != 0 {
			return did(errno, "mmap")
		}
		return did(try(sysPkeyMprotect, page, 4096, readExecute, ^uintptr(0)))
	}},
	{name: "map-execute-shared", about: "mmap(2) shared memory that is executed, which a child could write", run: func() result {
		_, errno := anonymous(readExecute, syscall.MAP_SHARED)
		return did(errno)
	}},
	{name: "shm-execute", about: "shmat(2) shared memory that is written and executed", run: func() result {
		id, errno := call(syscall.SYS_SHMGET, 0, 4096, ipcCreat|0o700)
		if errno != 0 {
			return did(errno, "shmget")
		}
		errno = try(syscall.SYS_SHMAT, id, 0, shmExec)
		try(syscall.SYS_SHMCTL, id, 0, 0)
		return did(errno)
	}},
}
