package wall

import (
	"testing"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// TestASampleWithoutAStackSaysNothing: where the profiler's signal met code that is not Go's, the time stays with
// the stack of the sample before it.
func TestASampleWithoutAStackSaysNothing(t *testing.T) {
	c := newConverter(0, nil, func() bool { return false })
	g := &goroutine{id: 7, state: wallprofile.Running, known: true, stack: noStack}
	c.goroutines[g.id] = g
	sample := func(at trace.Time, functions ...string) {
		t.Helper()
		var frames []trace.StackFrame
		for i, f := range functions {
			frames = append(frames, trace.StackFrame{PC: uint64(1000*int(at) + i + 1), Func: f, File: "x.go", Line: 1})
		}
		e, err := trace.MakeEvent(trace.EventConfig[trace.StackSample]{
			Kind: trace.EventStackSample, Time: at, Goroutine: g.id, Stack: trace.MakeStack(frames),
		})
		if err != nil {
			t.Fatal(err)
		}
		c.event(e)
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
