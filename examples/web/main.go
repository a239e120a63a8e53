// Web is a small HTTP server, of the kind that a tenant brings. It takes its listening sockets from whoever started it
// (LISTEN_FDS, as systemd and gosandbox hand them over) and opens one itself only where there are none.
//
//	/                 a greeting
//	/whoami           a few facts about the process, as JSON
//	/gc?mb=N          make N MiB of garbage
//	/file             write, sync, read and remove a temporary file
//	/exec             start a child of itself and return what that prints
//	/env              the environment
//	/slow?d=1s        answer late
//	/panic-goroutine  bring the whole process down
//
// SIGTERM lets running requests finish, prints "drained" and exits 0.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("web: ")
	addr := flag.String("addr", ":8080", "where to listen when no socket was handed over")
	useTLS := flag.Bool("tls", false, "serve TLS, with a certificate made at start")
	grace := flag.Duration("grace", 25*time.Second, "how long running requests may take after SIGTERM")
	flag.Parse()

	if flag.Arg(0) == "child" {
		fmt.Println("hello from a child of", tenant())
		return
	}

	listeners, err := inherited()
	if err != nil {
		log.Fatal(err)
	}
	if len(listeners) == 0 {
		listener, err := net.Listen("tcp", *addr)
		if err != nil {
			log.Fatal(err)
		}
		listeners = append(listeners, named{listener, "own"})
	}

	// Before the first request can be served, so that a SIGTERM that comes early is no sudden death.
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM, syscall.SIGINT)

	server := &http.Server{Handler: routes(listeners), ReadHeaderTimeout: 10 * time.Second}
	if *useTLS {
		certificate, err := selfSigned()
		if err != nil {
			log.Fatal(err)
		}
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}}
	}
	failed := make(chan error, len(listeners))
	for _, listener := range listeners {
		log.Printf("listening on %s (%s)", listener.Addr(), listener.name)
		go func(listener net.Listener) {
			if *useTLS {
				failed <- server.ServeTLS(listener, "", "")
			} else {
				failed <- server.Serve(listener)
			}
		}(listener)
	}

	select {
	case err := <-failed:
		log.Fatal(err)
	case <-terminate:
	}
	ctx, cancel := context.WithTimeout(context.Background(), *grace)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		log.Fatal("not drained: ", err)
	}
	fmt.Println("drained")
}

type named struct {
	net.Listener
	name string
}

// inherited returns the sockets that were handed over, if they were meant for this process: LISTEN_PID tells, since the
// variables themselves would also reach a child that is started later.
func inherited() ([]named, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 {
		return nil, fmt.Errorf("LISTEN_FDS is no number: %q", os.Getenv("LISTEN_FDS"))
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	var all []named
	for i := 0; i < n; i++ {
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		fd := 3 + i
		syscall.CloseOnExec(fd)
		file := os.NewFile(uintptr(fd), name)
		listener, err := net.FileListener(file)
		file.Close() // FileListener works on a copy
		if err != nil {
			return nil, fmt.Errorf("descriptor %d (%s) is no listening socket: %w", fd, name, err)
		}
		all = append(all, named{listener, name})
	}
	return all, nil
}

func tenant() string {
	if name := os.Getenv("GOSANDBOX_TENANT"); name != "" {
		return name
	}
	return "(none)"
}

func routes(listeners []named) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, "hello from %s\n", tenant())
	})
	mux.HandleFunc("/whoami", func(w http.ResponseWriter, r *http.Request) {
		whoami(w, r, listeners)
	})
	mux.HandleFunc("/gc", garbage)
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		reply(w, temporaryFile)
	})
	mux.HandleFunc("/exec", func(w http.ResponseWriter, r *http.Request) {
		reply(w, func() (string, error) {
			path, err := os.Executable()
			if err != nil {
				return "", err
			}
			output, err := exec.CommandContext(r.Context(), path, "child").Output()
			return string(output), err
		})
	})
	mux.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) {
		env := os.Environ()
		sort.Strings(env)
		fmt.Fprintln(w, strings.Join(env, "\n"))
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.URL.Query().Get("d"))
		if err != nil {
			d = time.Second
		}
		time.Sleep(d)
		fmt.Fprintln(w, "slept", d)
	})
	mux.HandleFunc("/panic-goroutine", func(w http.ResponseWriter, r *http.Request) {
		// net/http recovers what panics in the handler itself, nobody recovers this.
		go panic("a goroutine of web panics, as it was told to")
		time.Sleep(time.Second)
	})
	return mux
}

func reply(w http.ResponseWriter, work func() (string, error)) {
	text, err := work()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, text)
}

func whoami(w http.ResponseWriter, r *http.Request, listeners []named) {
	names := make([]string, 0, len(listeners))
	for _, listener := range listeners {
		names = append(names, listener.name+"="+listener.Addr().String())
	}
	hostname, _ := os.Hostname()
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.Encode(map[string]interface{}{
		"tenant":     tenant(),
		"pid":        os.Getpid(),
		"ppid":       os.Getppid(),
		"uid":        os.Getuid(),
		"gid":        os.Getgid(),
		"hostname":   hostname,
		"go":         runtime.Version(),
		"gomaxprocs": runtime.GOMAXPROCS(0),
		"gomemlimit": debug.SetMemoryLimit(-1),
		"listeners":  names,
		"remote":     r.RemoteAddr,
		"protocol":   r.Proto,
		"tls":        r.TLS != nil,
	})
}

// Where the garbage goes: a package variable, or the compiler would keep it on the stack.
var sink []byte

func garbage(w http.ResponseWriter, r *http.Request) {
	mb, err := strconv.Atoi(r.URL.Query().Get("mb"))
	if err != nil || mb < 0 {
		mb = 64
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := 0; i < mb*16; i++ {
		block := make([]byte, 64<<10)
		for at := 0; at < len(block); at += 4096 {
			block[at] = 1
		}
		if i%16 == 0 {
			sink = block
		}
	}
	runtime.ReadMemStats(&after)
	fmt.Fprintf(w, "%d MiB of garbage, %d collections\n", mb, after.NumGC-before.NumGC)
}

func temporaryFile() (string, error) {
	file, err := os.CreateTemp("", "web-")
	if err != nil {
		return "", err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	const text = "written, synced, read\n"
	if _, err := file.WriteString(text); err != nil {
		return "", err
	}
	if err := file.Sync(); err != nil {
		return "", err
	}
	read, err := os.ReadFile(file.Name())
	if err == nil && string(read) != text {
		err = errors.New("read something else than what was written")
	}
	return string(read), err
}
