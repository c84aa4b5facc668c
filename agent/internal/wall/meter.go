package wall

import (
	"context"
	"math"
	"runtime/metrics"
	"runtime/trace"
	"time"
)

// meter estimates what writing the trace costs, which cannot be measured: it is done in small pieces by all goroutines of
// the process. The estimate is the number of events, at a price for each that is measured once. While nothing is recorded,
// the number is unknown, too: it is taken to be as large, for what the process does, as when something was recorded.
type meter struct {
	perEvent float64 // ns of CPU to write an event
	perSpan  float64 // … and for a span, beyond its events: its marks have texts, and the clock is read for them
	size     float64 // bytes of an event
	events   float64 // for each of what activity counts

	sample   []metrics.Sample
	activity float64 // so far
	at       time.Time
	rate     float64 // of the activity in a second, lately
	spans    uint64  // so far
	spanRate float64 // of the spans in a second, lately

	grown int     // bytes of trace that nothing was learned of
	from  float64 // the activity at their begin
}

const (
	firstPerEvent = 100 // until it was measured
	firstSize     = 5
	firstEvents   = 5

	// schedulingSample is how many times a goroutine is scheduled for each time that the runtime's histogram has.
	schedulingSample = 8

	// cold is how much more an event costs in a service than in a loop, where the caches are warm and the runtime has
	// nothing to copy: so much that bench/handler adds what is estimated, within a third.
	cold = 1.5

	lately  = 2 * time.Second
	minSize = 256 << 10 // of less, much is tables of strings and stacks
)

func newMeter(now time.Time) *meter {
	m := &meter{
		perEvent: firstPerEvent, size: firstSize, events: firstEvents, at: now,
		sample: []metrics.Sample{{Name: "/sched/latencies:seconds"}},
	}
	m.activity = m.scheduled()
	m.begin()
	return m
}

// scheduled returns how often goroutines were scheduled.
func (m *meter) scheduled() float64 {
	metrics.Read(m.sample)
	if m.sample[0].Value.Kind() != metrics.KindFloat64Histogram {
		return 0
	}
	n := uint64(0)
	for _, count := range m.sample[0].Value.Float64Histogram().Counts {
		n += count
	}
	return float64(n) * schedulingSample
}

// read returns the cost of what was written since the last call if all of that time was recorded. Spans is how many have begun
// so far.
func (m *meter) read(now time.Time, spans uint64) time.Duration {
	activity, since := m.scheduled()+float64(spans), now.Sub(m.at)
	n, begun := max(0, activity-m.activity), float64(spans-m.spans)
	m.activity, m.spans = activity, spans
	if since > 0 {
		m.at = now
		part := 1 - math.Exp(-since.Seconds()/lately.Seconds())
		m.rate += part * (n/since.Seconds() - m.rate)
		m.spanRate += part * (begun/since.Seconds() - m.spanRate)
	}
	return time.Duration(n*m.events*m.perEvent + begun*m.perSpan)
}

// cores returns how many cores writing the trace takes now, or would take.
func (m *meter) cores() float64 {
	return (m.rate*m.events*m.perEvent + m.spanRate*m.perSpan) / float64(time.Second)
}

// begin notes that a recording begins.
func (m *meter) begin() { m.grown, m.from = 0, m.activity }

// learn corrects the estimate by how much the trace has grown since the last call, up to the last one of read.
func (m *meter) learn(grown int) {
	if m.grown += grown; m.grown < minSize {
		return
	}
	if n := m.activity - m.from; n > 0 {
		events := float64(m.grown) / m.size / n
		m.events += 0.5 * (min(100, max(1, events)) - m.events)
	}
	m.begin()
}

// learnSize corrects the size of an event.
func (m *meter) learnSize(bytes int, events uint64) {
	if bytes >= minSize && events > 0 {
		m.size += 0.3 * (float64(bytes)/float64(events) - m.size)
	}
}

// calibrate measures what writing an event and marking a span costs on this machine. The trace is being recorded. It takes
// about a millisecond.
func (m *meter) calibrate() {
	const name = "spanflame.calibration"
	ctx := context.Background()
	event := fastest(func() { trace.StartRegion(ctx, name).End() }) / 2
	span := fastest(func() {
		// As the SDK and Begin and End do.
		within, task := trace.NewTask(ctx, name)
		for range 2 {
			before := time.Now()
			mark := [...]byte{byte(before.UnixNano()), 1, 2, byte(time.Since(before))}
			trace.Log(within, name, string(mark[:]))
		}
		task.End()
	})
	m.perEvent = min(1000, max(20, cold*event))
	m.perSpan = min(10_000, max(0, span-4*event))
}

// fastest returns how many ns a call takes at best, below a stack that is as deep as those of a server. It does not read the
// CPU time, whose steps are too large on some systems, but takes the fastest of many short series, in which nobody interfered.
func fastest(f func()) float64 {
	const series, calls = 40, 25
	best := time.Duration(math.MaxInt64)
	deep(serverDepth, func() {
		for range series {
			before := time.Now()
			for range calls {
				f()
			}
			best = min(best, time.Since(before))
		}
	})
	return float64(best) / calls
}

const serverDepth = 24

//go:noinline
func deep(depth int, f func()) {
	if depth == 0 {
		f()
		return
	}
	deep(depth-1, f)
}
