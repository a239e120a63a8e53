// Binds opens and dials sockets as it is told by HTTP, also in ways that package net has no words for. Its answers are
// JSON: "error" and "errno" where something failed.
//
//	/open?id=&network=&addr=[&remove=1]   listen, and answer every request there with the id
//	/raw-open?id=&addr=[&block=1][&backlog=N][&accept=1]
//	                                      the same by system calls of its own; a socket that blocks blocks in accept
//	/state?id=                            what became of a raw listener
//	/close?id=                            close either
//	/dial?network=&to=&timeout=[&count=N] connect, many at once, and read a line
//	/raw-dial?to=[&family=6][&block=1][&options=1]
//	                                      the same by system calls of its own
//	/get?url=                             an HTTP request
//	/chdir?to=, /symlink?from=&to=        what they say
//	/flood?d=&threads=                    call bind, connect, listen and shutdown with rubbish for so long
//
// Usage: binds [-inherit NAME] [-addr 127.0.0.1:8000]
//
// With -inherit it also serves on the socket of that name among LISTEN_FDS, and answers with the name.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

type reply map[string]interface{}

func main() {
	log.SetFlags(0)
	log.SetPrefix("binds: ")
	inherit := flag.String("inherit", "", "name of a socket that was handed over")
	addr := flag.String("addr", "127.0.0.1:8000", "where to be told what to do")
	flag.Parse()

	if *inherit != "" {
		listener, err := inherited(*inherit)
		if err != nil {
			log.Fatal(err)
		}
		go http.Serve(listener, answering(*inherit))
	}
	handle("/open", open)
	handle("/raw-open", rawOpen)
	handle("/state", state)
	handle("/close", closing)
	handle("/dial", dial)
	handle("/raw-dial", rawDial)
	handle("/get", get)
	handle("/chdir", func(r *http.Request) reply { return failed(os.Chdir(r.FormValue("to"))) })
	handle("/symlink", func(r *http.Request) reply { return failed(os.Symlink(r.FormValue("to"), r.FormValue("from"))) })
	handle("/flood", flood)
	handle("/unix-full", unixFull)
	handle("/lock", locked)
	log.Fatal(http.ListenAndServe(*addr, nil))
}

func handle(path string, do func(*http.Request) reply) {
	http.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(do(r))
	})
}

func inherited(name string) (net.Listener, error) {
	for i, other := range strings.Split(os.Getenv("LISTEN_FDNAMES"), ":") {
		if other == name {
			file := os.NewFile(uintptr(3+i), name)
			defer file.Close()
			return net.FileListener(file)
		}
	}
	return nil, fmt.Errorf("no %s in %q", name, os.Getenv("LISTEN_FDNAMES"))
}

func answering(id string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, id) })
}

func failed(err error) reply {
	if err == nil {
		return reply{}
	}
	r := reply{"error": err.Error()}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		r["errno"] = name(errno)
	}
	return r
}

var names = map[syscall.Errno]string{
	syscall.EACCES: "EACCES", syscall.EADDRINUSE: "EADDRINUSE", syscall.EAGAIN: "EAGAIN", syscall.EALREADY: "EALREADY",
	syscall.EBADF: "EBADF", syscall.ECONNREFUSED: "ECONNREFUSED", syscall.EFAULT: "EFAULT",
	syscall.EINPROGRESS: "EINPROGRESS", syscall.EINTR: "EINTR", syscall.EINVAL: "EINVAL", syscall.EISCONN: "EISCONN",
	syscall.ENETUNREACH: "ENETUNREACH", syscall.ENOENT: "ENOENT", syscall.ENOTSOCK: "ENOTSOCK", syscall.EPERM: "EPERM",
	syscall.ETIMEDOUT: "ETIMEDOUT", syscall.ENOTCONN: "ENOTCONN", syscall.EAFNOSUPPORT: "EAFNOSUPPORT",
}

func name(errno syscall.Errno) string {
	if text, ok := names[errno]; ok {
		return text
	}
	return strconv.Itoa(int(errno))
}

var (
	lock sync.Mutex
	all  = map[string]io.Closer{}
)

func keep(id string, closer io.Closer) {
	lock.Lock()
	defer lock.Unlock()
	all[id] = closer
}

func open(r *http.Request) reply {
	id, network, addr := r.FormValue("id"), r.FormValue("network"), r.FormValue("addr")
	if network == "" {
		network = "tcp"
	}
	if r.FormValue("remove") != "" {
		os.Remove(addr)
	}
	listener, err := net.Listen(network, addr)
	if err != nil {
		return failed(err)
	}
	server := &http.Server{Handler: answering(id)}
	// A connection that stays would answer after the listener is closed.
	server.SetKeepAlivesEnabled(false)
	go server.Serve(listener)
	keep(id, listener)
	return reply{"local": listener.Addr().String()}
}

func closing(r *http.Request) reply {
	lock.Lock()
	defer lock.Unlock()
	closer, ok := all[r.FormValue("id")]
	if !ok {
		return reply{"error": "no such listener"}
	}
	delete(all, r.FormValue("id"))
	return failed(closer.Close())
}

func get(r *http.Request) reply {
	client := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(r.FormValue("url"))
	if err != nil {
		return failed(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return failed(err)
	}
	return reply{"got": strings.TrimSpace(string(body))}
}

func dial(r *http.Request) reply {
	network, to := r.FormValue("network"), r.FormValue("to")
	if network == "" {
		network = "tcp"
	}
	timeout, err := time.ParseDuration(r.FormValue("timeout"))
	if err != nil {
		timeout = 5 * time.Second
	}
	one := func() reply {
		began := time.Now()
		conn, err := net.DialTimeout(network, to, timeout)
		took := time.Since(began).Milliseconds()
		if err != nil {
			r := failed(err)
			r["ms"] = took
			return r
		}
		defer conn.Close()
		conn.SetReadDeadline(time.Now().Add(timeout))
		line, _ := bufio.NewReader(conn).ReadString('\n')
		return reply{
			"ms": took, "got": strings.TrimSpace(line),
			"local": conn.LocalAddr().String(), "remote": conn.RemoteAddr().String(),
		}
	}
	count, err := strconv.Atoi(r.FormValue("count"))
	if err != nil {
		return one()
	}
	results := make(chan reply, count)
	for i := 0; i < count; i++ {
		go func() { results <- one() }()
	}
	outcomes := map[string]int{}
	for i := 0; i < count; i++ {
		result := <-results
		if text, ok := result["error"]; ok {
			outcomes[fmt.Sprint(text)]++
		} else {
			outcomes[fmt.Sprint(result["got"])]++
		}
	}
	return reply{"outcomes": outcomes}
}
