package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

const (
	passed      = 3 // the first socket that was handed over
	msgFastopen = 0x20000000
	solTCP      = 6
	tcpInfo     = 11
	soDomain    = 39
)

var socketProbes = []probe{
	{name: "connect-tcp", about: "connect(2) to PROBE_CONNECT by TCP", run: func() result {
		return connectTo(syscall.SOCK_STREAM, 0)
	}},
	{name: "connect-mptcp", about: "connect(2) to PROBE_CONNECT by MPTCP", run: func() result {
		return connectTo(syscall.SOCK_STREAM, 262)
	}},
	{name: "connect-udp", about: "connect(2) to PROBE_CONNECT by UDP; has worked if an answer comes", run: func() result {
		return datagram(true)
	}},
	{name: "sendto-udp", about: "sendto(2) to PROBE_CONNECT by UDP; has worked if an answer comes", run: func() result {
		return datagram(false)
	}},
	{name: "connect-unix", about: "connect(2) to the unix socket PROBE_UNIX", run: func() result {
		path := os.Getenv("PROBE_UNIX")
		if path == "" {
			return skipped("PROBE_UNIX is not set")
		}
		fd, errno := call(syscall.SYS_SOCKET, syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if errno != 0 {
			return did(errno, "socket")
		}
		// struct sockaddr_un; an abstract name begins with a zero byte and has no end but its length.
		address := append([]byte{syscall.AF_UNIX, 0}, path...)
		length := len(address) + 1
		if path[0] == '@' {
			address[2] = 0
			length--
		}
		address = append(address, 0)
		return did(try(syscall.SYS_CONNECT, fd, addr(&address[0]), uintptr(length)))
	}},
	{name: "unix-datagrams", about: "socketpair(2) AF_UNIX SOCK_DGRAM: either end can send to any path", run: func() result {
		pair := &[2]int32{}
		return did(try(syscall.SYS_SOCKETPAIR, syscall.AF_UNIX, syscall.SOCK_DGRAM, 0, addr(pair)))
	}},
	{name: "sendto-fastopen", about: "sendto(2) with MSG_FASTOPEN on a new socket: EPERM, or the flag has got through", run: func() result {
		return fresh(func(fd uintptr, to []byte) syscall.Errno {
			return try(syscall.SYS_SENDTO, fd, cstr("x"), 1, msgFastopen, addr(&to[0]), uintptr(len(to)))
		})
	}},
	{name: "sendmsg-fastopen", about: "the same with sendmsg(2)", run: func() result {
		return fresh(func(fd uintptr, to []byte) syscall.Errno {
			return try(syscall.SYS_SENDMSG, fd, addr(message(to)), msgFastopen)
		})
	}},
	{name: "sendmmsg-fastopen", about: "the same with sendmmsg(2)", run: func() result {
		return fresh(func(fd uintptr, to []byte) syscall.Errno {
			many := &struct {
				message syscall.Msghdr
				length  uint32
			}{message: *message(to)}
			return try(sysSendmmsg, fd, addr(many), 1, msgFastopen)
		})
	}},
	{name: "socket-packet", about: "socket(2) AF_PACKET", run: func() result {
		return socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
	}},
	{name: "socket-raw", about: "socket(2) AF_INET SOCK_RAW", run: func() result {
		return socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP)
	}},
	{name: "socket-ping", about: "socket(2) AF_INET SOCK_DGRAM IPPROTO_ICMP", run: func() result {
		return socket(syscall.AF_INET, syscall.SOCK_DGRAM, syscall.IPPROTO_ICMP)
	}},
	{name: "socket-netlink-audit", about: "socket(2) AF_NETLINK NETLINK_AUDIT", run: func() result {
		return socket(syscall.AF_NETLINK, syscall.SOCK_RAW, 9)
	}},
	{name: "socket-netlink-diag", about: "socket(2) AF_NETLINK NETLINK_SOCK_DIAG: lists sockets", run: func() result {
		return socket(syscall.AF_NETLINK, syscall.SOCK_RAW, 4)
	}},
	{name: "socket-netlink-netfilter", about: "socket(2) AF_NETLINK NETLINK_NETFILTER", run: func() result {
		return socket(syscall.AF_NETLINK, syscall.SOCK_RAW, 12)
	}},
	{name: "socket-netlink-uevent", about: "socket(2) AF_NETLINK NETLINK_KOBJECT_UEVENT", run: func() result {
		return socket(syscall.AF_NETLINK, syscall.SOCK_RAW, 15)
	}},
	{name: "socket-alg", about: "socket(2) AF_ALG", run: func() result {
		return socket(38, syscall.SOCK_SEQPACKET, 0)
	}},
	{name: "socket-vsock", about: "socket(2) AF_VSOCK: reaches the machine that a virtual one runs on", run: func() result {
		return socket(40, syscall.SOCK_STREAM, 0)
	}},
	{name: "socket-bluetooth", about: "socket(2) AF_BLUETOOTH", run: func() result {
		return socket(31, syscall.SOCK_RAW, 1)
	}},
	{name: "socket-xdp", about: "socket(2) AF_XDP", run: func() result {
		return socket(44, syscall.SOCK_RAW, 0)
	}},
	{name: "socket-key", about: "socket(2) AF_KEY", run: func() result {
		return socket(15, syscall.SOCK_RAW, 2)
	}},
	{name: "socket-tipc", about: "socket(2) AF_TIPC", run: func() result {
		return socket(30, syscall.SOCK_STREAM, 0)
	}},
	{name: "siocgifconf-listener", about: "ioctl(2) SIOCGIFCONF on descriptor 3: the interfaces of where it comes from", run: func() result {
		return interfacesOf(0x8912)
	}},
	{name: "siocgifconf-high-bits", about: "the same with bits set that the kernel ignores and a filter may not", run: func() result {
		return interfacesOf(1<<32 | 0x8912)
	}},
	{name: "listener-backlog", about: "listen(2) with a backlog of 1 on descriptor 3, which everybody shares", run: func() result {
		return onPassed(func(domain uint16) result {
			errno := try(syscall.SYS_LISTEN, passed, 1)
			// A broker may answer 0 and do nothing: what counts is the backlog, which tcp_info has in tcpi_sacked.
			info, size := &[256]byte{}, uint32(256)
			if e := try(syscall.SYS_GETSOCKOPT, passed, solTCP, tcpInfo, addr(info), addr(&size)); e == 0 && size >= 32 {
				backlog := uint32(info[28]) | uint32(info[29])<<8 | uint32(info[30])<<16 | uint32(info[31])<<24
				r := did(errno, fmt.Sprintf("the backlog is %d", backlog))
				r.OK = backlog <= 1
				return r
			}
			return did(errno)
		})
	}},
	{name: "listener-accepted-rebind", about: "bind(2) of a connection accepted from descriptor 3, once its peer has reset it", run: func() result {
		return onPassed(func(domain uint16) result {
			if domain != syscall.AF_INET && domain != syscall.AF_INET6 {
				return skipped("descriptor 3 is no TCP socket")
			}
			if !ready(passed, pollIn) {
				return skipped("nobody connects to descriptor 3")
			}
			accepted, _, errno := syscall.RawSyscall6(syscall.SYS_ACCEPT4, passed, 0, 0, 0, 0, 0)
			if errno != 0 {
				return skipped("accept4: " + errnoName(errno))
			}
			if !ready(accepted, pollHangUp) {
				return skipped("the peer does not reset its connection")
			}
			address := socketAddress(domain, net.IPv4zero, 0)
			return did(try(syscall.SYS_BIND, accepted, addr(&address[0]), uintptr(len(address))))
		})
	}},
	{name: "listener-reuseport", about: "SO_REUSEPORT on descriptor 3", run: func() result {
		return passedOption(syscall.SOL_SOCKET, 15)
	}},
	{name: "listener-defer-accept", about: "TCP_DEFER_ACCEPT on descriptor 3, for everybody who shares it", run: func() result {
		return passedOption(syscall.IPPROTO_TCP, syscall.TCP_DEFER_ACCEPT)
	}},
	{name: "listener-rebind", about: "bind(2) of descriptor 3 to another port, after connect(AF_UNSPEC)", run: func() result {
		return onPassed(func(domain uint16) result {
			if domain != syscall.AF_INET && domain != syscall.AF_INET6 {
				return skipped("descriptor 3 is no TCP socket")
			}
			first := try(syscall.SYS_CONNECT, passed, addr(&[16]byte{}), 16)
			address := socketAddress(domain, net.IPv4zero, 0)
			return did(try(syscall.SYS_BIND, passed, addr(&address[0]), uintptr(len(address))), "AF_UNSPEC: "+errnoName(first))
		})
	}},
	{name: "listener-reconnect", about: "connect(2) of descriptor 3: AF_UNSPEC, which ends the listening, then PROBE_CONNECT", run: func() result {
		return onPassed(func(domain uint16) result {
			first := try(syscall.SYS_CONNECT, passed, addr(&[16]byte{}), 16)
			to, why := target(domain)
			if to == nil {
				return did(first, "AF_UNSPEC only: "+why)
			}
			errno := try(syscall.SYS_CONNECT, passed, addr(&to[0]), uintptr(len(to)))
			r := did(errno, "AF_UNSPEC: "+errnoName(first))
			r.OK = first == 0 || errno == 0 || errno == syscall.EINPROGRESS
			return r
		})
	}},
	{name: "listener-shutdown-rd", about: "shutdown(2) SHUT_RD of descriptor 3: ends the listening for everybody", run: func() result {
		return onPassed(func(uint16) result { return did(try(syscall.SYS_SHUTDOWN, passed, syscall.SHUT_RD)) })
	}},
	{name: "listener-shutdown-rdwr", about: "shutdown(2) SHUT_RDWR of descriptor 3", run: func() result {
		return onPassed(func(uint16) result { return did(try(syscall.SYS_SHUTDOWN, passed, syscall.SHUT_RDWR)) })
	}},
	{name: "listener-fastopen", about: "shutdown(2), then sendto(2) with MSG_FASTOPEN to PROBE_CONNECT on a copy of descriptor 3", run: func() result {
		return onPassed(func(domain uint16) result {
			to, why := target(domain)
			if to == nil {
				return skipped(why)
			}
			fd, errno := call(syscall.SYS_DUP, passed)
			if errno != 0 {
				return did(errno, "dup")
			}
			first := try(syscall.SYS_SHUTDOWN, fd, syscall.SHUT_RDWR)
			errno = try(syscall.SYS_SENDTO, fd, cstr("x"), 1, msgFastopen, addr(&to[0]), uintptr(len(to)))
			r := did(errno, "shutdown: "+errnoName(first))
			r.OK = r.OK || errno == syscall.EINPROGRESS
			return r
		})
	}},
}

func socket(domain, kind, protocol uintptr) result {
	return did(try(syscall.SYS_SOCKET, domain, kind|syscall.SOCK_CLOEXEC, protocol))
}

// target is PROBE_CONNECT as the kernel wants it for a socket of that domain, or nil and why there is none.
func target(domain uint16) ([]byte, string) {
	text := os.Getenv("PROBE_CONNECT")
	if text == "" {
		return nil, "PROBE_CONNECT is not set"
	}
	if !strings.Contains(text, ":") {
		text = "127.0.0.1:" + text
	}
	address, err := net.ResolveTCPAddr("tcp", text)
	if err != nil {
		return nil, "PROBE_CONNECT: " + err.Error()
	}
	if domain == 0 {
		domain = syscall.AF_INET
		if address.IP.To4() == nil {
			domain = syscall.AF_INET6
		}
	}
	if domain != syscall.AF_INET && domain != syscall.AF_INET6 {
		return nil, "the socket is not of the internet"
	}
	return socketAddress(domain, address.IP, address.Port), ""
}

// socketAddress makes a struct sockaddr_in or sockaddr_in6. An IPv4 address fits into both.
func socketAddress(domain uint16, ip net.IP, port int) []byte {
	head := []byte{byte(domain), 0, byte(port >> 8), byte(port)}
	if domain == syscall.AF_INET {
		return append(append(head, ip.To4()...), make([]byte, 8)...)
	}
	return append(append(append(head, 0, 0, 0, 0), ip.To16()...), 0, 0, 0, 0)
}

func newSocket(kind, protocol uintptr) (uintptr, []byte, *result) {
	to, why := target(0)
	if to == nil {
		r := skipped(why)
		return 0, nil, &r
	}
	fd, errno := call(syscall.SYS_SOCKET, uintptr(to[0]), kind|syscall.SOCK_CLOEXEC, protocol)
	if errno != 0 {
		r := did(errno, "socket")
		return 0, nil, &r
	}
	return fd, to, nil
}

func connectTo(kind, protocol uintptr) result {
	fd, to, failed := newSocket(kind, protocol)
	if failed != nil {
		return *failed
	}
	return did(try(syscall.SYS_CONNECT, fd, addr(&to[0]), uintptr(len(to))))
}

// datagram waits for an answer, since sending into nowhere succeeds as well.
func datagram(connected bool) result {
	fd, to, failed := newSocket(syscall.SOCK_DGRAM, 0)
	if failed != nil {
		return *failed
	}
	var errno syscall.Errno
	if connected {
		if errno = try(syscall.SYS_CONNECT, fd, addr(&to[0]), uintptr(len(to))); errno != 0 {
			return did(errno, "connect")
		}
		errno = try(syscall.SYS_SENDTO, fd, cstr("probe\n"), 6, 0, 0, 0)
	} else {
		errno = try(syscall.SYS_SENDTO, fd, cstr("probe\n"), 6, 0, addr(&to[0]), uintptr(len(to)))
	}
	if errno != 0 {
		return did(errno, "send")
	}
	half := &syscall.Timeval{Usec: 500000}
	try(syscall.SYS_SETSOCKOPT, fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, addr(half), 16)
	return did(try(syscall.SYS_RECVFROM, fd, addr(&[64]byte{}), 64, 0, 0, 0), "sent, then waited for an answer")
}

// fresh tries Fast Open on a socket of its own. Where it leads does not matter: the flag is what opens the way out on a
// socket that was born elsewhere, and must be refused before an address is looked at.
func fresh(send func(uintptr, []byte) syscall.Errno) result {
	fd, to, failed := newSocket(syscall.SOCK_STREAM, 0)
	if failed != nil {
		return *failed
	}
	errno := send(fd, to)
	r := pastCheck(errno)
	r.OK = r.OK && errno != syscall.EOPNOTSUPP
	return r
}

func message(to []byte) *syscall.Msghdr {
	text := []byte("x")
	vector := &syscall.Iovec{Base: &text[0], Len: 1}
	return &syscall.Msghdr{Name: &to[0], Namelen: uint32(len(to)), Iov: vector, Iovlen: 1}
}

// onPassed is for attempts on the first socket that was handed over.
func onPassed(attempt func(domain uint16) result) result {
	if passedSockets() == 0 {
		return skipped("no socket was handed over (LISTEN_FDS, LISTEN_PID)")
	}
	domain, size := uint32(0), uint32(4)
	if errno := try(syscall.SYS_GETSOCKOPT, passed, syscall.SOL_SOCKET, soDomain, addr(&domain), addr(&size)); errno != 0 {
		return skipped("descriptor 3 does not tell its domain: " + errnoName(errno))
	}
	return attempt(uint16(domain))
}

// Sets an option of descriptor 3 to 1.
func passedOption(level, option uintptr) result {
	return onPassed(func(uint16) result {
		value := uint32(1)
		return did(try(syscall.SYS_SETSOCKOPT, passed, level, option, addr(&value), 4))
	})
}

const (
	pollIn     = 1
	pollHangUp = 0x10
)

// Waits until poll(2) says one of the events of a descriptor, ten seconds at most.
func ready(descriptor uintptr, events int16) bool {
	poll := &struct {
		descriptor      int32
		events, revents int16
	}{int32(descriptor), events, 0}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		syscall.RawSyscall(syscall.SYS_POLL, addr(poll), 1, 100)
		if poll.revents&events != 0 {
			return true
		}
	}
	return false
}

func interfacesOf(request uintptr) result {
	return onPassed(func(uint16) result {
		const each = 40 // sizeof(struct ifreq)
		buffer := &[each * 64]byte{}
		config := &struct {
			length  int32
			address uintptr
		}{int32(len(buffer)), addr(buffer)}
		errno := try(syscall.SYS_IOCTL, passed, request, addr(config))
		if errno != 0 {
			return did(errno)
		}
		var names []string
		for at := 0; at < int(config.length); at += each {
			name, _, _ := strings.Cut(string(buffer[at:at+16]), "\x00")
			names = append(names, name)
		}
		return result{OK: true, Detail: strings.Join(names, " ")}
	})
}
