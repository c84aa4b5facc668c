// Program cgo is a service with the agent whose goroutines call C, and C calls back into Go. Its test is
// TestCgo in package agent.
//
//	cgo spans DIR               one span of each kind; prints each as "name id nanoseconds"
//	cgo callbacks DIR DURATION  32 goroutines that go to C, back to Go, where they wait for a lock, and to C again
package main

/*
#include <time.h>
#include <unistd.h>

extern void goCallback(void);

static void sleepInC(int ms) { usleep(ms * 1000); }

// computeInC computes for so much time on the CPU.
static void computeInC(int ms) {
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	long long end = t.tv_sec * 1000000000LL + t.tv_nsec + ms * 1000000LL;
	for (;;) {
		for (volatile int i = 0; i < 10000; i++) {}
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
		if (t.tv_sec * 1000000000LL + t.tv_nsec >= end) return;
	}
}

static void viaC(void) { goCallback(); }
*/
import "C"

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"spanflame/agent"
)

//go:noinline
func sleeps() { C.sleepInC(50) }

//go:noinline
func computes() { C.computeInC(50) }

//go:noinline
func callsBack() { C.viaC() }

var mu sync.Mutex

//go:noinline
func section() {
	mu.Lock()
	defer mu.Unlock()
	time.Sleep(200 * time.Microsecond)
	C.sleepInC(0)
}

// callback is what goCallback calls.
var callback = func() { time.Sleep(50 * time.Millisecond) }

//export goCallback
func goCallback() { callback() }

// printed prints spans when they end.
type printed struct{}

func (printed) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (printed) OnEnd(s sdktrace.ReadOnlySpan) {
	fmt.Println(s.Name(), s.SpanContext().SpanID(), s.EndTime().Sub(s.StartTime()).Nanoseconds())
}
func (printed) Shutdown(context.Context) error   { return nil }
func (printed) ForceFlush(context.Context) error { return nil }

func run(args []string) error {
	ctx := context.Background()
	cfg := agent.Config{ServiceName: "svc", Dir: args[1], AdminAddress: "127.0.0.1:0"}
	options := []sdktrace.TracerProviderOption{}
	if args[0] == "spans" {
		cfg.SlowSpan, cfg.WallCPUShare = 20*time.Millisecond, 1
		options = append(options, sdktrace.WithSpanProcessor(printed{}))
	}
	a, err := agent.Start(ctx, cfg)
	if err != nil {
		return err
	}
	tracer := a.TracerProvider(sdktrace.NewTracerProvider(options...)).Tracer("cgo")
	span := func(name string, f func()) {
		_, s := tracer.Start(ctx, name)
		defer s.End()
		f()
	}
	if args[0] == "spans" {
		span("sleeps", sleeps)
		span("computes", computes)
		span("callsBack", callsBack)
		return a.Shutdown(ctx)
	}
	callback = section
	duration, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	var calls atomic.Int64
	var all sync.WaitGroup
	for end, i := time.Now().Add(duration), 0; i < 32; i++ {
		all.Go(func() {
			for time.Now().Before(end) {
				span("callsBack", callsBack)
				calls.Add(1)
			}
		})
	}
	all.Wait()
	fmt.Println("calls", calls.Load())
	return a.Shutdown(ctx)
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
