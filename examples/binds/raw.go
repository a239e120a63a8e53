package main

import (
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	tcpInfo        = 11
	tcpUserTimeout = 18
)

// raw is a listener that package net knows nothing of.
type raw struct {
	fd       int
	closed   int32
	accepted int64
	again    int64
	failure  atomic.Value
}

// sockaddr is an address for a socket of a family, which is the address's own where none is asked for.
func sockaddr(text, family string) (int, syscall.Sockaddr, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return 0, nil, err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return 0, nil, err
	}
	ip := net.ParseIP(host)
	if ip == nil {
		return 0, nil, fmt.Errorf("no address: %q", host)
	}
	if v4 := ip.To4(); v4 != nil && family != "6" {
		to := &syscall.SockaddrInet4{Port: number}
		copy(to.Addr[:], v4)
		return syscall.AF_INET, to, nil
	}
	to := &syscall.SockaddrInet6{Port: number}
	copy(to.Addr[:], ip.To16())
	return syscall.AF_INET6, to, nil
}

func socket(family int, block bool) (int, error) {
	kind := syscall.SOCK_STREAM | syscall.SOCK_CLOEXEC
	if !block {
		kind |= syscall.SOCK_NONBLOCK
	}
	return syscall.Socket(family, kind, 0)
}

func rawOpen(r *http.Request) reply {
	family, at, err := sockaddr(r.FormValue("addr"), r.FormValue("family"))
	if err != nil {
		return failed(err)
	}
	fd, err := socket(family, r.FormValue("block") != "")
	if err != nil {
		return failed(err)
	}
	if err := syscall.Bind(fd, at); err != nil {
		syscall.Close(fd)
		return failed(fmt.Errorf("bind: %w", err))
	}
	backlog, err := strconv.Atoi(r.FormValue("backlog"))
	if err != nil {
		backlog = 128
	}
	if err := syscall.Listen(fd, backlog); err != nil {
		syscall.Close(fd)
		return failed(fmt.Errorf("listen: %w", err))
	}
	listener := &raw{fd: fd}
	keep(r.FormValue("id"), listener)
	if r.FormValue("accept") != "" {
		go listener.serve(r.FormValue("id"))
	}
	return state(r)
}

func (l *raw) Close() error {
	atomic.StoreInt32(&l.closed, 1)
	return syscall.Close(l.fd)
}

func (l *raw) serve(id string) {
	for atomic.LoadInt32(&l.closed) == 0 {
		conn, _, err := syscall.Accept4(l.fd, syscall.SOCK_CLOEXEC)
		if err == syscall.EAGAIN {
			atomic.AddInt64(&l.again, 1)
			time.Sleep(2 * time.Millisecond)
			continue
		}
		if err != nil {
			l.failure.Store(err.Error())
			return
		}
		atomic.AddInt64(&l.accepted, 1)
		go func() {
			defer syscall.Close(conn)
			limit := syscall.Timeval{Sec: 2}
			syscall.SetsockoptTimeval(conn, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit)
			syscall.Read(conn, make([]byte, 4096))
			syscall.Write(conn, []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s\n", len(id)+1, id)))
		}()
	}
}

func flags(fd int) (nonblocking, closeOnExec bool) {
	status, _, _ := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFL, 0)
	number, _, _ := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
	return status&syscall.O_NONBLOCK != 0, number&syscall.FD_CLOEXEC != 0
}

// state of a raw listener: the backlog is what the kernel says it is, in tcpi_sacked.
func state(r *http.Request) reply {
	lock.Lock()
	defer lock.Unlock()
	l, ok := all[r.FormValue("id")].(*raw)
	if !ok {
		return reply{"error": "no such raw listener"}
	}
	info, size := [256]byte{}, uint32(256)
	_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, uintptr(l.fd), syscall.IPPROTO_TCP, tcpInfo,
		uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return failed(errno)
	}
	nonblocking, closeOnExec := flags(l.fd)
	answer := reply{
		"backlog": *(*uint32)(unsafe.Pointer(&info[28])), "nonblocking": nonblocking, "cloexec": closeOnExec,
		"accepted": atomic.LoadInt64(&l.accepted), "again": atomic.LoadInt64(&l.again),
	}
	if text := l.failure.Load(); text != nil {
		answer["failure"] = text
	}
	return answer
}

// What a program may have set before it connects, and the values that /raw-dial sets.
var options = []struct {
	name                 string
	level, option, value int
}{
	{"keepalive", syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
	{"nodelay", syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1},
	{"keepidle", syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 77},
	{"keepintvl", syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 11},
	{"keepcnt", syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 5},
	{"user_timeout", syscall.IPPROTO_TCP, tcpUserTimeout, 12345},
	{"sndbuf", syscall.SOL_SOCKET, syscall.SO_SNDBUF, 20000},
	{"rcvbuf", syscall.SOL_SOCKET, syscall.SO_RCVBUF, 30000},
	{"tos", syscall.IPPROTO_IP, syscall.IP_TOS, 0x28},
	{"ttl", syscall.IPPROTO_IP, syscall.IP_TTL, 33},
}

func rawDial(r *http.Request) reply {
	family, to, err := sockaddr(r.FormValue("to"), r.FormValue("family"))
	if err != nil {
		return failed(err)
	}
	block := r.FormValue("block") != ""
	fd, err := socket(family, block)
	if err != nil {
		return failed(err)
	}
	defer syscall.Close(fd)
	if r.FormValue("options") != "" {
		for _, o := range options {
			if err := syscall.SetsockoptInt(fd, o.level, o.option, o.value); err != nil {
				return failed(fmt.Errorf("%s: %w", o.name, err))
			}
		}
		syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1, Linger: 7})
	}
	began := time.Now()
	err = syscall.Connect(fd, to)
	first := "0"
	if errno, ok := err.(syscall.Errno); ok {
		first = name(errno)
	}
	for err == syscall.EINPROGRESS && !block && time.Since(began) < 5*time.Second {
		time.Sleep(time.Millisecond)
		pending, optErr := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ERROR)
		if optErr != nil {
			err = optErr
		} else if pending != 0 {
			err = syscall.Errno(pending)
		} else if _, peerErr := syscall.Getpeername(fd); peerErr == nil {
			err = nil
		}
	}
	answer := failed(err)
	answer["first"] = first
	answer["ms"] = time.Since(began).Milliseconds()
	nonblocking, closeOnExec := flags(fd)
	answer["nonblocking"], answer["cloexec"] = nonblocking, closeOnExec
	for _, o := range options {
		answer[o.name], _ = syscall.GetsockoptInt(fd, o.level, o.option)
	}
	linger, size := syscall.Linger{}, uint32(8)
	syscall.Syscall6(syscall.SYS_GETSOCKOPT, uintptr(fd), syscall.SOL_SOCKET, syscall.SO_LINGER,
		uintptr(unsafe.Pointer(&linger)), uintptr(unsafe.Pointer(&size)), 0)
	answer["linger"] = linger.Linger
	if err != nil {
		return answer
	}
	if local, err := syscall.Getsockname(fd); err == nil {
		answer["local"] = show(local)
	}
	if remote, err := syscall.Getpeername(fd); err == nil {
		answer["remote"] = show(remote)
	}
	limit := syscall.Timeval{Sec: 1}
	syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit)
	text := make([]byte, 64)
	for i := 0; i < 500; i++ {
		n, err := syscall.Read(fd, text)
		if err == syscall.EAGAIN && !block {
			time.Sleep(2 * time.Millisecond)
			continue
		}
		if n > 0 {
			answer["got"] = strings.TrimSpace(string(text[:n]))
		}
		break
	}
	return answer
}

func show(at syscall.Sockaddr) string {
	switch at := at.(type) {
	case *syscall.SockaddrInet4:
		return fmt.Sprintf("%s:%d", net.IP(at.Addr[:]), at.Port)
	case *syscall.SockaddrInet6:
		return fmt.Sprintf("[%s]:%d", net.IP(at.Addr[:]), at.Port)
	}
	return "?"
}

// flood calls what a broker is asked about, with what no program means. Nothing in it names a declared listener or what
// may be dialled, since a descriptor that another thread has closed may be anything by the time of the answer.
func flood(r *http.Request) reply {
	d, err := time.ParseDuration(r.FormValue("d"))
	if err != nil {
		return failed(err)
	}
	threads, err := strconv.Atoi(r.FormValue("threads"))
	if err != nil {
		return failed(err)
	}
	// An address that begins on the last bytes that are mapped.
	page := syscall.Getpagesize()
	memory, err := syscall.Mmap(-1, 0, 2*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return failed(err)
	}
	edge := uintptr(unsafe.Pointer(&memory[page-4]))
	syscall.Syscall(syscall.SYS_MUNMAP, uintptr(unsafe.Pointer(&memory[page])), uintptr(page), 0)
	memory[page-4] = syscall.AF_INET

	var (
		guard sync.Mutex
		total int64
		seen  = map[string]int64{}
		group sync.WaitGroup
	)
	end := time.Now().Add(d)
	for i := 0; i < threads; i++ {
		group.Add(1)
		go func(seed int64) {
			defer group.Done()
			own := map[string]int64{}
			count := int64(0)
			random := rand.New(rand.NewSource(seed))
			inet := [16]byte{syscall.AF_INET}
			path := [110]byte{syscall.AF_UNIX, 0, '/', 't', 'm', 'p', '/', 'n', 'o'}
			inet[4] = 127
			at := uintptr(unsafe.Pointer(&inet[0]))
			for time.Now().Before(end) {
				inet[2], inet[3] = byte(random.Intn(100)+100), byte(random.Intn(256))
				fd, err := socket([]int{syscall.AF_INET, syscall.AF_INET6, syscall.AF_UNIX}[random.Intn(3)], false)
				if err != nil {
					own[err.Error()]++
					continue
				}
				number := uintptr(fd)
				pointers := []uintptr{0, 8, edge, at, at, uintptr(unsafe.Pointer(&path[0])), 1 << 63, ^uintptr(0) - 3}
				pointer := pointers[random.Intn(len(pointers))]
				lengths := []uintptr{0, 1, 2, 15, 16, 28, 110, 128, 129, 1 << 20, ^uintptr(0), 1<<32 | 16, 1 << 31}
				length := lengths[random.Intn(len(lengths))]
				call := []uintptr{syscall.SYS_BIND, syscall.SYS_CONNECT}[random.Intn(2)]
				var calls [][4]uintptr
				switch random.Intn(5) {
				case 0: // A good descriptor, any pointer.
					calls = [][4]uintptr{{call, number, pointer, length}}
				case 1: // None, and one that is no socket.
					calls = [][4]uintptr{
						{call, ^uintptr(0), pointer, length}, {call, 1 << 40, pointer, length}, {call, 2, pointer, length},
						{syscall.SYS_LISTEN, ^uintptr(0), 1, 0}, {syscall.SYS_SHUTDOWN, 99999, 2, 0},
					}
				case 2: // A family that fits none.
					inet[0] = byte(random.Intn(50))
					calls = [][4]uintptr{{call, number, at, uintptr(random.Intn(17))}}
				case 3: // Ever new addresses, private and denied.
					inet[4] = byte(random.Intn(256))
					calls = [][4]uintptr{{call, number, at, 16}, {syscall.SYS_LISTEN, number, ^uintptr(0), 0}}
				case 4: // Closed by somebody else meanwhile.
					closed := make(chan struct{})
					go func() {
						syscall.Close(fd)
						close(closed)
					}()
					_, _, errno := syscall.Syscall(call, number, at, 16)
					own[name(errno)]++
					count++
					<-closed
					fd = -1
				}
				for _, c := range calls {
					_, _, errno := syscall.Syscall(c[0], c[1], c[2], c[3])
					own[name(errno)]++
					count++
				}
				inet[0], inet[4] = syscall.AF_INET, 127
				if fd >= 0 {
					syscall.Close(fd)
				}
			}
			guard.Lock()
			defer guard.Unlock()
			total += count
			for key, n := range own {
				seen[key] += n
			}
		}(int64(i))
	}
	group.Wait()
	return reply{"calls": total, "answers": seen}
}

// unixFull listens at a path with the shortest queue, fills it, and leaves threads blocked in connect(2) behind.
func unixFull(r *http.Request) reply {
	path := r.FormValue("path")
	listener, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return failed(err)
	}
	if err := syscall.Bind(listener, &syscall.SockaddrUnix{Name: path}); err != nil {
		return failed(err)
	}
	if err := syscall.Listen(listener, 0); err != nil {
		return failed(err)
	}
	for i := 0; i < 4; i++ {
		go func() {
			if fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0); err == nil {
				syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
			}
		}()
	}
	time.Sleep(200 * time.Millisecond)
	return reply{}
}

// locked tries what a socket of another network namespace would open: on a connection that was accepted from a listener
// at listen, and on one that was made to to, it tries to get to other. "ok" is what has worked, anything else why not.
func locked(r *http.Request) reply {
	_, other, err := sockaddr(r.FormValue("other"), "")
	if err != nil {
		return failed(err)
	}
	_, listenAt, err := sockaddr(r.FormValue("listen"), "")
	if err != nil {
		return failed(err)
	}
	_, to, err := sockaddr(r.FormValue("to"), "")
	if err != nil {
		return failed(err)
	}
	listener, err := socket(syscall.AF_INET, true)
	if err != nil {
		return failed(err)
	}
	defer syscall.Close(listener)
	syscall.SetsockoptInt(listener, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err := syscall.Bind(listener, listenAt); err != nil {
		return failed(fmt.Errorf("bind: %w", err))
	}
	if err := syscall.Listen(listener, 16); err != nil {
		return failed(fmt.Errorf("listen: %w", err))
	}
	dialled := func(to syscall.Sockaddr) (int, error) {
		fd, err := socket(syscall.AF_INET, true)
		if err != nil {
			return -1, err
		}
		return fd, syscall.Connect(fd, to)
	}
	accepted := func() (int, error) {
		client, err := dialled(listenAt)
		if err != nil {
			return -1, err
		}
		defer syscall.Close(client)
		fd, _, err := syscall.Accept4(listener, syscall.SOCK_CLOEXEC)
		return fd, err
	}
	// struct sockaddr with nothing in it: AF_UNSPEC.
	dissolve := func(fd int) error {
		_, _, errno := syscall.Syscall(syscall.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&[16]byte{})), 16)
		return word(errno)
	}
	attempts := map[string]func(int) error{
		// Not refused on a socket of its own, on which it leads nowhere.
		"share": func(fd int) error { return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, 15, 1) },
		// Whether a connection stays MPTCP, whose far end may announce other addresses.
		"multipath": func(int) error {
			fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 262)
			if err != nil {
				return err
			}
			defer syscall.Close(fd)
			if err := syscall.Connect(fd, to); err != nil {
				return err
			}
			if protocol, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, 38); err != nil || protocol == 262 {
				return err
			}
			return syscall.EPROTONOSUPPORT
		},
		"share-own": func(int) error {
			own, err := socket(syscall.AF_INET, true)
			if err != nil {
				return err
			}
			defer syscall.Close(own)
			return syscall.SetsockoptInt(own, syscall.SOL_SOCKET, 15, 1)
		},
		"connect":  func(fd int) error { return syscall.Connect(fd, other) },
		"dissolve": dissolve,
		"reconnect": func(fd int) error {
			dissolve(fd)
			return syscall.Connect(fd, other)
		},
		"rebind": func(fd int) error {
			dissolve(fd)
			return syscall.Bind(fd, &syscall.SockaddrInet4{})
		},
		"listen": func(fd int) error {
			dissolve(fd)
			return syscall.Listen(fd, 1)
		},
		"fastopen": func(fd int) error {
			dissolve(fd)
			return syscall.Sendto(fd, []byte("x"), 0x20000000, other)
		},
	}
	answer := reply{}
	for kind, open := range map[string]func() (int, error){
		"accepted": accepted,
		"made":     func() (int, error) { return dialled(to) },
	} {
		for what, attempt := range attempts {
			fd, err := open()
			if err != nil {
				return failed(fmt.Errorf("%s: %w", kind, err))
			}
			if err := attempt(fd); err == nil {
				answer[kind+"-"+what] = "ok"
			} else {
				answer[kind+"-"+what] = failed(err)["errno"]
			}
			syscall.Close(fd)
		}
	}
	return answer
}

func word(errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}
