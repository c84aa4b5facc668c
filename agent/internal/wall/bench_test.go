package wall

import (
	"bytes"
	"context"
	"fmt"
	"runtime/trace"
	"sync"
	"testing"
	"time"

	"spanflame/internal/record"
)

// BenchmarkConvert is the cost of converting a trace of many events, with none and with one of the spans
// in it followed.
func BenchmarkConvert(b *testing.B) {
	for _, follow := range []bool{false, true} {
		b.Run(fmt.Sprintf("follow=%v", follow), func(b *testing.B) {
			r := newRecorder(Options{SlowSpan: time.Nanosecond, ChildMin: time.Nanosecond, Emit: func(record.Record) {}, Logger: discard})
			if err := r.flight.Start(); err != nil {
				b.Fatal(err)
			}
			rec := &recording{Recorder: r}
			stop := make(chan struct{})
			var others sync.WaitGroup
			noise(&others, stop, 1000)
			_, s := rec.begin(context.Background(), "span")
			for range 200 {
				workA(time.Millisecond)
			}
			s.end()
			close(stop)
			others.Wait()
			data := take(b, r.flight).bytes()
			r.flight.Stop()
			var events uint64
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				c := newConverter(r.o.ChildMin, r.deadlineReached)
				if t := s.mark.(*span).root; follow {
					t.conv, t.span.conv = rootLedger{}, nil
					c.track(t)
				}
				if err := c.convert(bytes.NewReader(data), true); err != nil {
					b.Fatal(err)
				}
				if follow && len(c.finished) != 1 {
					b.Fatal("the span was not found")
				}
				events = c.events
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(events), "ns/event")
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
