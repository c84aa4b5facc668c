package wall

import (
	"testing"
	"time"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// TestASampleWithoutAStackSaysNothing: where the profiler's signal met code that is not Go's, the time stays with
// the stack of the sample before it.
func TestASampleWithoutAStackSaysNothing(t *testing.T) {
	c := newConverter(0, nil)
	g := &goroutine{id: 7, state: wallprofile.Running, known: true, stack: noStack}
	c.goroutines[g.id] = g
	sample := func(at trace.Time, functions ...string) {
		t.Helper()
		c.event(stackSample(t, at, g.id, functions...))
	}
	sample(10, "main.work", "main.main", outermost)
	work := g.sample
	for i, function := range []string{"runtime._System", "runtime._VDSO", "runtime._ExternalCode"} {
		if sample(trace.Time(20+10*i), "__some_function", function); g.sample != work {
			t.Errorf("a sample in %s takes the place of %v", function, work.frames)
		}
	}
	if sample(60, "main.other", "main.main", outermost); g.sample == work || g.sample.frames[0].function != "main.other" {
		t.Errorf("the sample of main.other is not taken: %v", g.sample.frames)
	}
}

// stackSample is the event of a CPU sample.
func stackSample(t *testing.T, at trace.Time, on trace.GoID, functions ...string) trace.Event {
	t.Helper()
	var frames []trace.StackFrame
	for i, f := range functions {
		frames = append(frames, trace.StackFrame{PC: uint64(1000*int(at) + i + 1), Func: f, File: "x.go", Line: 1})
	}
	e, err := trace.MakeEvent(trace.EventConfig[trace.StackSample]{
		Kind: trace.EventStackSample, Time: at, Goroutine: on, Stack: trace.MakeStack(frames),
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestWhoMakesTheGarbage: of the samples shortly before a time and in it, more than half have to be one function's.
func TestWhoMakesTheGarbage(t *testing.T) {
	const ms = trace.Time(time.Millisecond)
	sample := func(g *garbage, at trace.Time, functions ...string) {
		s := &stack{}
		for _, f := range functions {
			s.frames = append(s.frames, frame{function: f, file: "x.go"})
		}
		g.sampled(at, s)
	}
	var g garbage
	if got := g.maker(0, 2000*ms); got != "" {
		t.Errorf("of no samples: %s", got)
	}
	for at := trace.Time(0); at < 1000*ms; at += 10 * ms {
		sample(&g, at, "runtime.mallocgc", "main.load")
		sample(&g, at, "main.compute")
	}
	for range 2 * maxAllocating {
		sample(&g, 1000*ms, "main.compute")
	}
	for at := 1000 * ms; at < 2000*ms; at += 10 * ms {
		sample(&g, at, "runtime.nextFreeFast", "runtime.mallocgc", "runtime.newobject", "main.importRows", "main.serve")
	}
	for _, tt := range []struct {
		from, to trace.Time
		want     string
	}{
		{600 * ms, 700 * ms, "main.load"},
		{1800 * ms, 1900 * ms, "main.importRows"},
		{1250 * ms, 1249 * ms, ""}, // as much of both
		{3000 * ms, 3100 * ms, ""},
	} {
		if got := g.maker(tt.from, tt.to); got != tt.want {
			t.Errorf("from %d to %d ms: %q, want %q", tt.from/ms, tt.to/ms, got, tt.want)
		}
	}
	for range 3 * maxAllocating {
		sample(&g, 4000*ms, "runtime.mallocgc", "main.serve")
	}
	if got := g.maker(4000*ms, 4000*ms); got != "main.serve" || len(g.ring) != maxAllocating {
		t.Errorf("after many: %q of %d samples", got, len(g.ring))
	}
}

// TestTimeFarFromSamplesIsMarked: while the CPU profile is exchanged for the next one there are no samples, and whatever
// stack the nearest event has may be wrong.
func TestTimeFarFromSamplesIsMarked(t *testing.T) {
	const ms = trace.Time(time.Millisecond)
	for _, test := range []struct {
		name            string
		samples         []trace.Time
		marked, running time.Duration
	}{
		{"every 10 ms", []trace.Time{10 * ms, 20 * ms, 30 * ms, 40 * ms, 50 * ms, 60 * ms, 70 * ms, 80 * ms, 90 * ms}, 0, 100 * time.Millisecond},
		{"a gap of 60 ms", []trace.Time{10 * ms, 20 * ms, 80 * ms, 90 * ms}, 20 * time.Millisecond, 80 * time.Millisecond},
		{"none at the start", []trace.Time{70 * ms, 80 * ms, 90 * ms}, 50 * time.Millisecond, 50 * time.Millisecond},
		{"none at the end", []trace.Time{10 * ms, 20 * ms}, 60 * time.Millisecond, 40 * time.Millisecond},
		{"none", nil, 80 * time.Millisecond, 20 * time.Millisecond},
	} {
		c := newConverter(0, nil)
		g := &goroutine{id: 7, state: wallprofile.Running, known: true, stack: noStack}
		r := &root{}
		r.span = span{root: r, conv: &spanLedger{now: make(ledger)}}
		g.lanes = []*lane{{root: r, g: g, open: []*span{&r.span}, seg: &segment{}}}
		c.goroutines[g.id] = g
		for _, at := range test.samples {
			c.event(stackSample(t, at, g.id, "main.work", outermost))
		}
		c.cut(g, 100*ms, nil)
		var marked, running time.Duration
		for k, ns := range r.span.conv.now {
			switch k.state {
			case wallprofile.Unsampled:
				marked += time.Duration(ns)
			case wallprofile.Running:
				running += time.Duration(ns)
			}
		}
		if marked != test.marked || running != test.running {
			t.Errorf("samples %s: %v marked, %v not, want %v and %v", test.name, marked, running, test.marked, test.running)
		}
	}
}
