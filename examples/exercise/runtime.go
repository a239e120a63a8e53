package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"runtime/trace"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// Where garbage goes, so that it is not kept on the stack.
var sink [8][]byte

func garbage(size int) {
	for i := 0; i < size/(64<<10); i++ {
		block := make([]byte, 64<<10)
		block[i%len(block)] = 1
		if i%8 == 0 {
			sink[0] = block
		}
	}
	runtime.GC()
}

func collect() error {
	var group sync.WaitGroup
	for i := 0; i < 8; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			var some [][]byte
			for j := 0; j < 2000; j++ {
				block := make([]byte, 16<<10)
				block[0] = byte(j)
				if some = append(some, block); len(some) > 100 {
					some = some[50:]
				}
				sink[i] = block
			}
		}(i)
	}
	group.Wait()
	old := debug.SetGCPercent(20)
	garbage(16 << 20)
	debug.SetGCPercent(old)
	limit := debug.SetMemoryLimit(256 << 20)
	garbage(16 << 20)
	debug.SetMemoryLimit(limit)
	debug.FreeOSMemory()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	if stats.NumGC == 0 {
		return errors.New("nothing was collected")
	}
	return nil
}

func profiles() error {
	var cpu, heap, traced bytes.Buffer
	if err := pprof.StartCPUProfile(&cpu); err != nil {
		return err
	}
	for begin := time.Now(); time.Since(begin) < 200*time.Millisecond; {
		garbage(1 << 20)
	}
	pprof.StopCPUProfile()
	if err := pprof.WriteHeapProfile(&heap); err != nil {
		return err
	}
	if err := trace.Start(&traced); err != nil {
		return err
	}
	garbage(1 << 20)
	trace.Stop()
	if cpu.Len() == 0 || heap.Len() == 0 || traced.Len() == 0 {
		return errors.New("an empty profile")
	}
	return nil
}

func timers() error {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(5 * time.Second)
	for i := 0; i < 10; i++ {
		select {
		case <-ticker.C:
		case <-timeout:
			return errors.New("the ticker does not tick")
		}
	}
	fired := make(chan struct{})
	time.AfterFunc(time.Millisecond, func() { close(fired) })
	<-fired
	time.Sleep(2 * time.Millisecond)
	return nil
}

func contention() error {
	var mutex sync.Mutex
	var group sync.WaitGroup
	condition := sync.NewCond(&mutex)
	total := 0
	for i := 0; i < 64; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for j := 0; j < 2000; j++ {
				mutex.Lock()
				total++
				mutex.Unlock()
				if j%100 == 0 {
					runtime.Gosched()
				}
			}
			condition.Broadcast()
		}()
	}
	mutex.Lock()
	for total < 64*2000 {
		condition.Wait()
	}
	mutex.Unlock()
	group.Wait()
	return nil
}

// threads makes the runtime start one for each call that blocks.
func threads() error {
	var group sync.WaitGroup
	errs := make(chan error, 64)
	for i := 0; i < cap(errs); i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			if i%4 == 0 {
				// It ends without unlocking, which ends the thread as well.
				runtime.LockOSThread()
			}
			pause := syscall.NsecToTimespec(int64(50 * time.Millisecond))
			for {
				err := syscall.Nanosleep(&pause, &pause)
				if err != syscall.EINTR {
					errs <- err
					return
				}
			}
		}(i)
	}
	group.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	if runtime.NumGoroutine() > 1000 {
		return errors.New("goroutines are left")
	}
	return nil
}

func pipes() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	go func() {
		for i := 0; i < 100; i++ {
			fmt.Fprintln(w, i)
		}
		w.Close()
	}()
	var all bytes.Buffer
	if _, err := all.ReadFrom(r); err != nil {
		return err
	}
	if all.Len() != 290 {
		return fmt.Errorf("%d bytes arrived instead of 290", all.Len())
	}
	if err := r.SetReadDeadline(time.Now()); err != nil {
		return step("deadline", err)
	}
	fd, err := syscall.Dup(1)
	if err != nil {
		return step("dup", err)
	}
	if err := syscall.Dup3(1, fd, syscall.O_CLOEXEC); err != nil {
		return step("dup3", err)
	}
	return syscall.Close(fd)
}

func events() error {
	fd, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if errno != 0 {
		return step("eventfd", errno)
	}
	defer syscall.Close(int(fd))
	one := [8]byte{1}
	if _, err := syscall.Write(int(fd), one[:]); err != nil {
		return step("write to an eventfd", err)
	}
	if _, err := syscall.Read(int(fd), one[:]); err != nil {
		return step("read of an eventfd", err)
	}

	const monotonic = 1
	timer, _, errno := syscall.Syscall(syscall.SYS_TIMERFD_CREATE, monotonic, syscall.O_CLOEXEC, 0)
	if errno != 0 {
		return step("timerfd", errno)
	}
	defer syscall.Close(int(timer))
	spec := [4]int64{0, 0, 0, int64(5 * time.Millisecond)}
	_, _, errno = syscall.Syscall6(syscall.SYS_TIMERFD_SETTIME, timer, 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	if errno != 0 {
		return step("timerfd_settime", errno)
	}
	if _, err := syscall.Read(int(timer), one[:]); err != nil {
		return step("read of a timerfd", err)
	}

	poll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return step("epoll", err)
	}
	defer syscall.Close(poll)
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(timer)}
	if err := syscall.EpollCtl(poll, syscall.EPOLL_CTL_ADD, int(timer), &event); err != nil {
		return step("epoll_ctl", err)
	}
	_, err = syscall.EpollWait(poll, make([]syscall.EpollEvent, 1), 1)
	return ignore(step("epoll_wait", err), syscall.EINTR)
}

func memory() error {
	const size = 1 << 20
	block, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return err
	}
	block[0] = 1
	for name, advice := range map[string]int{
		"DONTNEED": syscall.MADV_DONTNEED, "WILLNEED": syscall.MADV_WILLNEED, "FREE": 8,
		"HUGEPAGE": syscall.MADV_HUGEPAGE, "NOHUGEPAGE": syscall.MADV_NOHUGEPAGE, "DONTDUMP": 16,
	} {
		// A kernel may be built without huge pages.
		if err := ignore(syscall.Madvise(block, advice), syscall.EINVAL); err != nil {
			return step("madvise "+name, err)
		}
	}
	if err := syscall.Mprotect(block, syscall.PROT_READ); err != nil {
		return step("mprotect", err)
	}
	// What a compiler at run time (WebAssembly, regular expressions) does. The policy decides.
	if err := syscall.Mprotect(block, syscall.PROT_READ|syscall.PROT_EXEC); err != nil {
		info("code made at run time", err)
	} else {
		info("code made at run time", "allowed")
	}
	var resident [size / 4096]byte
	_, _, errno := syscall.Syscall(syscall.SYS_MINCORE, uintptr(unsafe.Pointer(&block[0])), size,
		uintptr(unsafe.Pointer(&resident)))
	if errno != 0 {
		return step("mincore", errno)
	}
	if err := syscall.Mlock(block[:4096]); err != nil {
		info("mlock", err)
	}
	return step("munmap", syscall.Munmap(block))
}

func facts() error {
	var usage syscall.Rusage
	var info syscall.Sysinfo_t
	var times syscall.Tms
	var name syscall.Utsname
	var stat syscall.Statfs_t
	var now syscall.Timespec
	return firstError(
		func() error { return step("getrusage", syscall.Getrusage(syscall.RUSAGE_SELF, &usage)) },
		func() error { return step("getrusage of children", syscall.Getrusage(syscall.RUSAGE_CHILDREN, &usage)) },
		func() error { return step("sysinfo", syscall.Sysinfo(&info)) },
		func() error { _, err := syscall.Times(&times); return step("times", err) },
		func() error { return step("uname", syscall.Uname(&name)) },
		func() error { return step("statfs /tmp", syscall.Statfs("/tmp", &stat)) },
		func() error { _, err := os.Hostname(); return step("hostname", err) },
		func() error { _, err := syscall.Getpgid(0); return step("getpgid", err) },
		func() error { _, err := syscall.Getgroups(); return step("getgroups", err) },
		func() error { _, err := syscall.Getpriority(0, 0); return step("getpriority", err) },
		func() error { syscall.Getpid(); syscall.Getppid(); syscall.Gettid(); syscall.Geteuid(); return nil },
		func() error {
			// Go reads clocks without the kernel; where the machine has no such clock, it asks.
			_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&now)), 0)
			return errnoError("clock_gettime", errno)
		},
		func() error {
			_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETRES, 1, uintptr(unsafe.Pointer(&now)), 0)
			return errnoError("clock_getres", errno)
		},
		func() error { _, err := os.ReadFile("/proc/self/stat"); return step("/proc/self/stat", err) },
		func() error { _, err := os.ReadFile("/proc/self/status"); return step("/proc/self/status", err) },
		func() error { _, err := os.ReadDir("/proc/self/fd"); return step("/proc/self/fd", err) },
	)
}

func errnoError(what string, errno syscall.Errno) error {
	if errno != 0 {
		return step(what, errno)
	}
	return nil
}

func whoAmI() error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	if me.Uid != strconv.Itoa(os.Getuid()) || me.Username == "" {
		return fmt.Errorf("uid %s, name %q", me.Uid, me.Username)
	}
	if _, err := user.LookupId(me.Uid); err != nil {
		return err
	}
	_, err = user.LookupGroupId(me.Gid)
	return err
}

func zone() error {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		return err
	}
	if name, _ := time.Date(2024, 7, 1, 12, 0, 0, 0, berlin).Zone(); name != "CEST" {
		return fmt.Errorf("in July Berlin's time is called %s", name)
	}
	_ = time.Now().Local().String()
	return nil
}

func random() error {
	var some, more [64]byte
	if _, err := rand.Read(some[:]); err != nil {
		return err
	}
	if _, _, errno := syscall.Syscall(318, uintptr(unsafe.Pointer(&more)), uintptr(len(more)), 0); errno != 0 {
		return step("getrandom", errno)
	}
	if some == more {
		return errors.New("not at all random")
	}
	file, err := os.Open("/dev/urandom")
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.Read(some[:])
	return err
}
