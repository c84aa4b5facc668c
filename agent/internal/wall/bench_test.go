package wall

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	runtimetrace "runtime/trace"
	"sync"
	"testing"
	"time"

	"golang.org/x/exp/trace"

	"spanflame/internal/record"
)

// BenchmarkConvert is the cost of converting a trace of many events and of the diagnoses, with following the waits and, in
// turn with that, with the spans' own time only. The spans wait for nobody, for a chain of goroutines, for one another's
// lock, and for goroutines that they start.
func BenchmarkConvert(b *testing.B) {
	for _, test := range []struct {
		name          string
		spans, rounds int
		round         func(mu *sync.Mutex, chain chan<- chan<- int)
	}{
		{"waits=none", 1, 200, func(*sync.Mutex, chan<- chan<- int) { workA(time.Millisecond) }},
		{"waits=chain", 1, 50, func(_ *sync.Mutex, chain chan<- chan<- int) {
			answer := make(chan int)
			chain <- answer
			<-answer
		}},
		{"waits=convoy", 50, 4, func(mu *sync.Mutex, _ chan<- chan<- int) {
			mu.Lock()
			defer mu.Unlock()
			workA(time.Millisecond)
		}},
		{"waits=fan-out", 1, 100, func(*sync.Mutex, chan<- chan<- int) {
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() { workA(time.Duration(i) * time.Millisecond / 8) })
			}
			all.Wait()
		}},
	} {
		b.Run(test.name, func(b *testing.B) {
			r := newRecorder(Options{
				SlowSpan: time.Nanosecond, ChildMin: time.Nanosecond, RingBytes: defaultRingBytes, Emit: func(record.Record) {}, Logger: discard,
			})
			if err := r.flight.Start(); err != nil {
				b.Fatal(err)
			}
			rec := &recording{Recorder: r}
			stop := make(chan struct{})
			var others, all sync.WaitGroup
			noise(&others, stop, 1000, nil)
			chain := links(&others, 4)
			var mu, lock sync.Mutex
			var spans []*root
			for range test.spans {
				all.Go(func() {
					_, s := rec.begin(context.Background(), "span")
					mu.Lock()
					spans = append(spans, s.mark.(*span).root)
					mu.Unlock()
					for range test.rounds {
						test.round(&lock, chain)
					}
					s.end()
				})
			}
			all.Wait()
			close(stop)
			close(chain)
			others.Wait()
			data := take(b, r.flight).bytes()
			r.flight.Stop()
			var cost [2]struct {
				c     *converter
				cpu   time.Duration
				bytes uint64
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for b.Loop() {
				for follow := range cost {
					of := &cost[follow]
					if of.c == nil {
						of.c = newConverter(r.o.ChildMin, r.names.get)
					}
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					bytes, cpu := m.TotalAlloc, cpuTime()
					diagnosed(b, of.c, data, spans, follow == 1)
					of.cpu += cpuTime() - cpu
					runtime.ReadMemStats(&m)
					of.bytes += m.TotalAlloc - bytes
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(cost[1].cpu)/float64(cost[0].cpu), "cpu-ratio")
			events := float64(cost[1].c.events)
			for follow, unit := range []string{"/event-own", "/event"} {
				b.ReportMetric(float64(cost[follow].cpu)/events, "cpu-ns"+unit)
				b.ReportMetric(float64(cost[follow].bytes)/events, "B"+unit)
			}
		})
	}
}

// links starts goroutines of which each hands what it receives to the next one, and the last one answers.
func links(done *sync.WaitGroup, n int) chan<- chan<- int {
	in := make(chan chan<- int)
	first := in
	for i := range n {
		from, to := in, make(chan chan<- int)
		in = to
		done.Go(func() {
			defer close(to)
			for answer := range from {
				workA(time.Millisecond / 10)
				if i == n-1 {
					answer <- 1
				} else {
					to <- answer
				}
			}
		})
	}
	return first
}

// diagnosed converts a trace and diagnoses its spans. Without following waits, it does what [converter.convert] does, but
// keeps no history.
func diagnosed(b *testing.B, c *converter, data []byte, spans []*root, follow bool) {
	b.Helper()
	for _, t := range spans {
		t.conv, t.span.conv = rootLedger{}, nil
		c.track(t)
	}
	reader, err := trace.NewReader(bytes.NewReader(data))
	if err != nil {
		b.Fatal(err)
	}
	c.history.run(follow, 0)
	for {
		e, err := reader.ReadEvent()
		if err == io.EOF {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
		c.events++
		c.event(e)
		c.last = e.Time()
	}
	if len(c.finished) != len(spans) {
		b.Fatal("the spans were not found")
	}
	for _, t := range c.finished {
		if d := diagnose(t.span.account(), c.garbage.maker); d.Text == "" {
			b.Fatal("a span has no diagnosis")
		}
		c.drop(t)
	}
	c.finished = nil
	c.history.run(false, 0)
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
			flight := runtimetrace.NewFlightRecorder(runtimetrace.FlightRecorderConfig{MaxBytes: defaultRingBytes / 2})
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
