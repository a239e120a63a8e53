// Dials opens connections or listeners one after the other, as any Go program does, and prints how long one took: what is
// added where each has to be asked for shows here.
//
//	dials tcp ADDRESS N      connect there N times; prints the median in microseconds
//	dials listen ADDRESS N   listen there and close again, N times; the same
//
// With -every it pauses in between.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"sort"
	"strconv"
	"time"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("dials: ")
	every := flag.Duration("every", 0, "how long to pause in between")
	flag.Parse()
	if flag.NArg() != 3 {
		log.Fatal("usage: dials [-every TIME] tcp|listen ADDRESS N")
	}
	what, address := flag.Arg(0), flag.Arg(1)
	n, err := strconv.Atoi(flag.Arg(2))
	if err != nil || n < 1 {
		log.Fatalf("not a number: %s", flag.Arg(2))
	}
	one, known := map[string]func(string) (interface{ Close() error }, error){"tcp": dial, "listen": listen}[what]
	if !known {
		log.Fatalf("neither tcp nor listen: %s", what)
	}
	times := make([]time.Duration, n)
	for i := range times {
		begun := time.Now()
		made, err := one(address)
		times[i] = time.Since(begun)
		if err != nil {
			log.Fatal(err)
		}
		made.Close()
		if *every > 0 {
			time.Sleep(*every)
		}
	}
	sort.Slice(times, func(a, b int) bool { return times[a] < times[b] })
	fmt.Printf("%.2f\n", float64(times[n/2].Nanoseconds())/1000)
}

func dial(address string) (interface{ Close() error }, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	// No TIME_WAIT: there would be no port left after some ten thousand.
	return conn, conn.(*net.TCPConn).SetLinger(0)
}

func listen(address string) (interface{ Close() error }, error) {
	return net.Listen("tcp", address)
}
