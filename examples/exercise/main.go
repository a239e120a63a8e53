// Exercise does what honest Go servers do: files, children, signals, threads, garbage, TLS, the network. It prints a line
// for each section, "ok NAME" or "FAIL NAME: why", and exits 1 if one has failed. In a sandbox all of it has to work.
//
//	exercise              everything but what makes outgoing connections
//	exercise -net         that as well, within this machine
//	exercise NAME...      these sections
//	exercise -list        their names
//
// "info NAME: ..." stands for something that a sandbox may refuse.
package main

import (
	"flag"
	"fmt"
	"os"
	"sort"
	"time"
)

type section struct {
	name string
	net  bool // binds or connects, which a private network refuses
	run  func() error
}

var sections = []section{
	{"files", false, files},
	{"copy", false, copies},
	{"exec", false, children},
	{"signals", false, signals},
	{"preempt", false, preempt},
	{"gc", false, collect},
	{"profile", false, profiles},
	{"timers", false, timers},
	{"contention", false, contention},
	{"threads", false, threads},
	{"pipes", false, pipes},
	{"events", false, events},
	{"inotify", false, inotify},
	{"memory", false, memory},
	{"facts", false, facts},
	{"user", false, whoAmI},
	{"zone", false, zone},
	{"random", false, random},
	{"limits", false, limits},
	{"interfaces", false, interfaces},
	{"listen", true, listen},
	{"unix-listen", true, unixListen},
	{"tls-in-memory", false, tlsInMemory},
	{"http", true, serveHTTP},
	{"https", true, serveHTTPS},
	{"unix-connect", true, unixConnect},
	{"dns", true, dns},
	{"udp", true, udp},
}

func main() {
	network := flag.Bool("net", false, "also what makes outgoing connections")
	list := flag.Bool("list", false, "list the sections")
	child := flag.String("child", "", "for its own children: echo, sleep")
	flag.Parse()
	if *child != "" {
		runChild(*child)
		return
	}
	chosen := map[string]bool{}
	for _, name := range flag.Args() {
		chosen[name] = true
	}
	failed := false
	for _, s := range sections {
		if *list {
			fmt.Println(s.name)
			continue
		}
		if len(chosen) > 0 && !chosen[s.name] || len(chosen) == 0 && s.net && !*network {
			continue
		}
		delete(chosen, s.name)
		if err := within(20*time.Second, s.run); err != nil {
			failed = true
			fmt.Printf("FAIL %s: %v\n", s.name, err)
		} else {
			fmt.Printf("ok %s\n", s.name)
		}
		if len(flag.Args()) > 0 && len(chosen) == 0 {
			break
		}
	}
	if unknown := keys(chosen); !*list && len(unknown) > 0 {
		fmt.Fprintln(os.Stderr, "exercise: no such section:", unknown)
		os.Exit(2)
	}
	if failed {
		os.Exit(1)
	}
}

func keys(set map[string]bool) (all []string) {
	for key := range set {
		all = append(all, key)
	}
	sort.Strings(all)
	return all
}

func within(limit time.Duration, work func() error) error {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				done <- fmt.Errorf("panic: %v", r)
			}
		}()
		done <- work()
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return fmt.Errorf("not done within %v", limit)
	}
}

// step says at which of several things a section has failed.
func step(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// firstError runs the steps until one fails.
func firstError(steps ...func() error) error {
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

func info(name string, about interface{}) {
	fmt.Printf("info %s: %v\n", name, about)
}
