package wall

import (
	"context"
	"testing"
	"time"

	oteltrace "go.opentelemetry.io/otel/trace"

	"spanflame/internal/wallprofile"
)

// A span has the profile of the time from its own start to its own end, whichever times its author chose for them.
func TestChosenTimes(t *testing.T) {
	const ms = time.Millisecond
	type times struct{ start, mid, now time.Time } // the span's own start, in the middle of it, before its end mark
	for _, test := range []struct {
		name  string
		early time.Duration // how long before its mark it started
		end   func(times) time.Time
		slow  bool
		check func(t *testing.T, f *flame)
	}{
		{"a message that waited in a queue", 10 * time.Second, func(a times) time.Time { return a.now }, true, func(t *testing.T, f *flame) {
			if got := f.leaves[wallprofile.Starting.Leaf()]; got < int64(9*time.Second) {
				t.Errorf("the time in the queue is %v", time.Duration(got))
			}
			if f.sumOf("workA") == 0 || f.sumOf("workB") == 0 {
				t.Errorf("what was done is not there:\n%s", f)
			}
		}},
		{"an end before the mark", 0, func(a times) time.Time { return a.mid }, true, func(t *testing.T, f *flame) {
			late := f.leaves[wallprofile.Starting.Leaf()] + int64(ms) // the clip is as exact as the begin mark
			if f.sumOf("workA") < int64(20*ms) || f.sumOf("workB") > late {
				t.Errorf("the profile does not end where the span does:\n%s", f)
			}
		}},
		{"an end after the mark", 0, func(a times) time.Time { return a.now.Add(time.Hour) }, true, func(t *testing.T, f *flame) {
			if got := f.leaves[wallprofile.Ending.Leaf()]; got < int64(59*time.Minute) {
				t.Errorf("the time after the mark is %v", time.Duration(got))
			}
		}},
		{"a short time of a long one", 0, func(a times) time.Time { return a.start.Add(5 * ms) }, false, nil},
		{"over before it was marked", time.Second, func(a times) time.Time { return a.start.Add(900 * ms) }, false, nil},
	} {
		for _, seen := range []bool{false, true} { // whether a capture saw part of it before its end was known
			name := test.name
			if seen {
				name += ", seen while it ran"
			}
			t.Run(name, func(t *testing.T) {
				rec := manual(t)
				sc := spanContext(7)
				at := times{start: time.Now().Add(-test.early)}
				mark := rec.Begin(nil, sc, "op", at.start)
				workA(30 * ms)
				at.mid = time.Now()
				if seen {
					rec.capture()
				}
				workB(30 * ms)
				at.now = time.Now()
				end := test.end(at)
				if _, profiled := mark.End("op", end); profiled != test.slow {
					t.Errorf("profiled: %v, want %v", profiled, test.slow)
				}
				rec.capture()
				f := rec.flame(sc.SpanID())
				if (f != nil) != test.slow {
					t.Fatalf("the profile is %v", f)
				}
				if s := rec.Stats(); (s.Slow == 1) != test.slow || s.Slow != s.Captured {
					t.Errorf("stats: %+v", s)
				}
				if f == nil {
					return
				}
				if want := int64(end.Sub(at.start)); f.own != want {
					t.Errorf("the profile sums to %v, the span took %v", time.Duration(f.own), time.Duration(want))
				}
				if !seen {
					test.check(t, f)
				}
			})
		}
	}
}

// A child that ends before its mark leaves the rest to its parent.
func TestChosenEndOfAChild(t *testing.T) {
	rec := manual(t)
	_, root := rec.begin(context.Background(), "root")
	start := time.Now()
	sc := oteltrace.NewSpanContext(oteltrace.SpanContextConfig{
		TraceID: root.mark.(*span).root.traceID, SpanID: oteltrace.SpanID{8}, TraceFlags: oteltrace.FlagsSampled,
	})
	child := rec.Begin(root.mark, sc, "child", start)
	workA(30 * time.Millisecond)
	end := time.Now()
	workB(30 * time.Millisecond)
	child.End("child", end)
	root.end()
	rec.capture()
	f := rec.exact(root)
	c := rec.flame(sc.SpanID())
	if c == nil || c.own != int64(end.Sub(start)) {
		t.Fatalf("the child took %v, its profile is\n%v", end.Sub(start), c)
	}
	late := c.leaves[wallprofile.Starting.Leaf()] + int64(time.Millisecond)
	if in := f.sumOf("span: child;", "workB"); in > late || f.sumOf("workB") < int64(25*time.Millisecond) {
		t.Errorf("the child has the time after its end:\n%s", f)
	}
}

// spanContext is of a root span.
func spanContext(id byte) oteltrace.SpanContext {
	return oteltrace.NewSpanContext(oteltrace.SpanContextConfig{
		TraceID: oteltrace.TraceID{id}, SpanID: oteltrace.SpanID{id}, TraceFlags: oteltrace.FlagsSampled,
	})
}
