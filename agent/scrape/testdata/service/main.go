// Command service is a service that serves its profiles and knows no agent. It listens on the address that is its argument, and
// allocates, contends and blocks all the time.
package main

import (
	"log"
	"net/http"
	_ "net/http/pprof"
	"os"
	"runtime"
	"sync"
	"time"
)

var kept [][]byte

func main() {
	runtime.SetMutexProfileFraction(1)
	runtime.SetBlockProfileRate(1)
	var mu sync.Mutex
	for range 3 {
		go func() {
			for {
				contend(&mu)
				block()
			}
		}()
	}
	go func() {
		for i := 0; ; i++ {
			allocate(i)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}

//go:noinline
func contend(mu *sync.Mutex) {
	mu.Lock()
	defer mu.Unlock()
	for end := time.Now().Add(time.Millisecond); time.Now().Before(end); {
	}
}

//go:noinline
func block() {
	done := make(chan struct{})
	time.AfterFunc(2*time.Millisecond, func() { close(done) })
	<-done
}

//go:noinline
func allocate(i int) {
	b := make([]byte, 1<<20)
	if i%50 == 0 && len(kept) < 20 {
		kept = append(kept, b)
	}
	if i%10 == 0 {
		runtime.GC() // of which the profile of memory is
	}
}
