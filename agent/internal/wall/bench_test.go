package wall

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"runtime/trace"
	"sync"
	"testing"
	"time"

	"spanflame/internal/record"
)

// BenchmarkConvert is the cost of converting a trace of many events, with no span followed, with one that waits for
// nobody, and with twenty that wait for one another.
func BenchmarkConvert(b *testing.B) {
	for _, test := range []struct {
		name  string
		spans int
	}{{"follow=none", 0}, {"follow=one", 1}, {"follow=convoy", 20}} {
		b.Run(test.name, func(b *testing.B) {
			r := newRecorder(Options{SlowSpan: time.Nanosecond, ChildMin: time.Nanosecond, Emit: func(record.Record) {}, Logger: discard})
			if err := r.flight.Start(); err != nil {
				b.Fatal(err)
			}
			rec := &recording{Recorder: r}
			stop := make(chan struct{})
			var others, all sync.WaitGroup
			noise(&others, stop, 1000)
			var mu sync.Mutex
			var spans []*root
			for range max(1, test.spans) {
				all.Go(func() {
					_, s := rec.begin(context.Background(), "span")
					mu.Lock()
					spans = append(spans, s.mark.(*span).root)
					mu.Unlock()
					for range 200 / max(1, test.spans) {
						mu.Lock()
						workA(time.Millisecond)
						mu.Unlock()
					}
					s.end()
				})
			}
			all.Wait()
			close(stop)
			others.Wait()
			data := take(b, r.flight).bytes()
			r.flight.Stop()
			var events uint64
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			before := cpuTime()
			for b.Loop() {
				c := newConverter(r.o.ChildMin, r.names.get, r.deadlineReached)
				for _, t := range spans[:test.spans] {
					t.conv, t.span.conv = rootLedger{}, nil
					c.track(t)
				}
				if err := c.convert(bytes.NewReader(data), true); err != nil {
					b.Fatal(err)
				}
				if len(c.finished) != test.spans {
					b.Fatal("the spans were not found")
				}
				events = c.events
			}
			each := float64(b.N) * float64(events)
			b.ReportMetric(float64(cpuTime()-before)/each, "cpu-ns/event")
		})
	}
}

// BenchmarkSnapshot measures a snapshot in a process with parked goroutines. The runtime visits all of them when a
// generation of the trace ends: once a second, and once more for each snapshot.
func BenchmarkSnapshot(b *testing.B) {
	for _, parked := range []int{10, 1_000, 100_000} {
		b.Run(fmt.Sprintf("parked=%d", parked), func(b *testing.B) {
			release := make(chan struct{})
			var all sync.WaitGroup
			for range parked {
				all.Go(func() { <-release })
			}
			flight := trace.NewFlightRecorder(trace.FlightRecorderConfig{MaxBytes: defaultRingBytes / 2})
			if err := flight.Start(); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				take(b, flight)
			}
			flight.Stop()
			close(release)
			all.Wait()
		})
	}
}
