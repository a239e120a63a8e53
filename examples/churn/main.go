// Churn is a tenant for measuring what GOMEMLIMIT and GOMAXPROCS do: it makes garbage, or it computes, as fast as it
// can, and says how far it came.
//
//	churn alloc LIVE_MIB SECONDS   keep that much and replace it without end
//	churn serve WORKERS SECONDS    that many workers, each doing one request of 2 ms of CPU after the other
package main

import (
	"fmt"
	"os"
	"runtime"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: churn alloc LIVE_MIB SECONDS | churn serve WORKERS SECONDS")
		os.Exit(2)
	}
	n, err := strconv.Atoi(os.Args[2])
	seconds, err2 := strconv.ParseFloat(os.Args[3], 64)
	if err != nil || err2 != nil {
		fmt.Fprintln(os.Stderr, "churn: not a number:", os.Args[2:])
		os.Exit(2)
	}
	d := time.Duration(seconds * float64(time.Second))
	switch os.Args[1] {
	case "alloc":
		alloc(n, d)
	case "serve":
		serve(n, d)
	default:
		fmt.Fprintln(os.Stderr, "churn: no such command:", os.Args[1])
		os.Exit(2)
	}
}

// What is allocated at a time: a small buffer, as servers do.
const block = 4 << 10

func alloc(mib int, d time.Duration) {
	begin := time.Now()
	workers := runtime.GOMAXPROCS(0)
	var total int64
	var group sync.WaitGroup
	for w := 0; w < workers; w++ {
		group.Add(1)
		go func() {
			defer group.Done()
			live := make([][]byte, mib<<20/block/workers+1)
			for i := 0; ; i++ {
				b := make([]byte, block)
				b[0] = 1
				live[i%len(live)] = b
				if i%256 == 0 {
					atomic.AddInt64(&total, 256*block)
					if time.Since(begin) > d {
						break
					}
				}
			}
			runtime.KeepAlive(live)
		}()
	}
	group.Wait()
	took := time.Since(begin)
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	fmt.Printf("%.0f MiB/s, %d collections, %.1f s of CPU in %.1f s, %d MiB of the system\n",
		float64(atomic.LoadInt64(&total))/(1<<20)/took.Seconds(), stats.NumGC, cpu.Seconds(), took.Seconds(),
		(stats.Sys-stats.HeapReleased)>>20)
}

// Loops that take about two milliseconds where nothing is in the way.
func calibrate() int {
	best := time.Hour
	const loops = 1 << 20
	for i := 0; i < 20; i++ {
		begin := time.Now()
		work(loops)
		if took := time.Since(begin); took < best {
			best = took
		}
	}
	return int(float64(loops) * float64(2*time.Millisecond) / float64(best))
}

var sink uint64

func work(loops int) {
	x := uint64(1)
	for i := 0; i < loops; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	atomic.StoreUint64(&sink, x)
}

func serve(workers int, d time.Duration) {
	loops := calibrate()
	begin := time.Now()
	took := make([][]time.Duration, workers)
	var group sync.WaitGroup
	for w := 0; w < workers; w++ {
		w := w
		group.Add(1)
		go func() {
			defer group.Done()
			for time.Since(begin) < d {
				started := time.Now()
				work(loops)
				took[w] = append(took[w], time.Since(started))
				// As one that answers, and waits for the next request.
				time.Sleep(time.Millisecond)
			}
		}()
	}
	group.Wait()
	var all []time.Duration
	for _, one := range took {
		all = append(all, one...)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	at := func(percent int) float64 { return all[(len(all)-1)*percent/100].Seconds() * 1000 }
	fmt.Printf("%.0f requests/s, p50 %.1f ms, p99 %.1f ms, longest %.1f ms\n",
		float64(len(all))/time.Since(begin).Seconds(), at(50), at(99), at(100))
}
