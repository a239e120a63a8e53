// Plain is an HTTP server as it stands in the first chapter of every book: it knows nothing of sockets that are handed
// over, opens its own, and may dial out. What makes it interesting is where it runs.
//
//	/            a greeting
//	/dial?to=…   connects there (network tcp or unix), and answers with what it got: "ok", or the error
//	/get?url=…   an HTTP request to there
//
// Usage: plain [-addr :8080] [-network tcp]
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("plain: ")
	network := flag.String("network", "tcp", "tcp, tcp4, tcp6 or unix")
	addr := flag.String("addr", ":8080", "where to listen")
	flag.Parse()

	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "hello from a plain server")
	})
	http.HandleFunc("/dial", func(w http.ResponseWriter, r *http.Request) {
		network, to := r.FormValue("network"), r.FormValue("to")
		if network == "" {
			network = "tcp"
		}
		conn, err := net.DialTimeout(network, to, 5*time.Second)
		if err != nil {
			fmt.Fprintln(w, err)
			return
		}
		defer conn.Close()
		fmt.Fprintln(w, "ok")
	})
	http.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
		client := http.Client{Timeout: 5 * time.Second}
		answer, err := client.Get(r.FormValue("url"))
		if err != nil {
			fmt.Fprintln(w, err)
			return
		}
		defer answer.Body.Close()
		io.Copy(w, io.LimitReader(answer.Body, 1<<20))
	})
	if *network == "tcp" {
		log.Fatal(http.ListenAndServe(*addr, nil))
	}
	listener, err := net.Listen(*network, *addr)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(listener, nil))
}
