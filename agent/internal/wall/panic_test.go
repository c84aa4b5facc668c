package wall

import (
	"context"
	"log/slog"
	"maps"
	"testing"
	"time"

	"spanflame/agent/internal/guard"
	"spanflame/internal/record"
)

// slowSpan is a span that is captured.
func (rec *recording) slowSpan() *testSpan {
	_, s := rec.begin(context.Background(), "slow")
	time.Sleep(30 * time.Millisecond)
	s.end()
	return s
}

// settled waits until every slow span so far is counted as captured or as lost.
func (rec *recording) settled(n uint64) Stats {
	rec.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		s := rec.Stats()
		if s.Captured+s.SkippedPanic+s.SkippedWindow+s.SkippedBudget+s.SkippedStop == n {
			return s
		}
		if time.Now().After(deadline) {
			rec.t.Fatalf("%d slow spans are not settled: %+v", n, s)
		}
	}
}

func TestAPanicOfACapture(t *testing.T) {
	planted := true
	g := guard.New(slog.New(slog.DiscardHandler))
	rec := startRecorder(t, func(o *Options) {
		o.Guard = g
		diagnosed := o.Diagnosed
		o.Diagnosed = func(d Diagnosis) {
			if planted {
				panic("planted")
			}
			diagnosed(d)
		}
	})
	rec.slowSpan()
	if s := rec.settled(1); s.SkippedPanic != 1 {
		t.Errorf("%+v, want one span lost by the panic", s)
	}
	if n := g.Panics(); !maps.Equal(n, map[string]int64{"capture wall": 1}) {
		t.Errorf("panics %v", n)
	}
	if !rec.capturing.Paused() {
		t.Error("capturing does not pause after the panic")
	}
	// The pause is over: the recorder works again.
	rec.capturing.Try(func() { planted = false })
	span := rec.slowSpan()
	if s := rec.settled(2); s.Captured != 1 {
		t.Errorf("%+v, want the next span captured", s)
	}
	rec.finish()
	if f := rec.flame(span.id); f == nil || f.total < int64(span.inner) || f.total > int64(span.outer) {
		t.Errorf("the next span has the profile %+v, want from %v to %v", f, span.inner, span.outer)
	}
}

func TestAPanicOfTheReceiver(t *testing.T) {
	g := guard.New(slog.New(slog.DiscardHandler))
	rec := startRecorder(t, func(o *Options) {
		o.Guard = g
		o.Emit = func(record.Record) { panic("planted") }
	})
	for i := range uint64(2) {
		rec.slowSpan()
		if s := rec.settled(i + 1); s.Captured != i+1 {
			t.Errorf("%+v, want %d captured", s, i+1)
		}
	}
	rec.finish()
	if n := g.Panics(); !maps.Equal(n, map[string]int64{"emit": 2}) {
		t.Errorf("panics %v", n)
	}
}

func TestAPanicOfTheRecording(t *testing.T) {
	g := guard.New(slog.New(slog.DiscardHandler))
	rec := startRecorder(t, func(o *Options) { o.Guard = g })
	rec.recording.Try(func() { panic("planted") }) // a tick does not run now
	rec.slowSpan()
	if s := rec.settled(1); s.Captured != 1 {
		t.Errorf("%+v, want captures to continue", s)
	}
	rec.finish()
	if rec.flight.Enabled() {
		t.Error("the flight recorder still runs after Stop")
	}
}
