package wall

import (
	"encoding/binary"
	"testing"
	"time"
)

// TestTheWallClockIsSet: a generation of the trace has its place by the monotonic clock, as spans have, so that setting the
// wall clock back or forward inside a span loses none of the span's trace.
func TestTheWallClockIsSet(t *testing.T) {
	reading, ok := monotonic()
	if !ok {
		t.Skip("the runtime's monotonic clock cannot be read on this system, so the wall clock is used")
	}
	for _, set := range []time.Duration{0, -10 * time.Second, time.Hour} {
		began := time.Now()
		body := []byte{0, evFrequency, 1, evClockSnapshot}
		wall := began.Add(set)
		for _, v := range []uint64{1, uint64(reading), uint64(wall.Unix()), uint64(wall.Nanosecond())} {
			body = binary.AppendUvarint(body, v)
		}
		if got := clock(body); got.Before(began.Add(-5*time.Second)) || got.After(began.Add(5*time.Second)) {
			t.Errorf("with a wall clock that was set by %v, the generation began %v after the span", set, got.Sub(began))
		}
	}
}

// What the recorder reads of a real trace is the time at which it was taken.
func TestTheTraceHasTheMonotonicClock(t *testing.T) {
	rec := manual(t)
	before := time.Now()
	for range 2 { // the second generation began after the first snapshot
		rec.forget()
	}
	snap := &snapshot{}
	if _, err := rec.flight.WriteTo(snap); err != nil {
		t.Fatal(err)
	}
	last := snap.gens[len(snap.gens)-1].start
	if last.Before(before.Add(-clockSlack)) || last.After(time.Now()) {
		t.Errorf("the newest generation began at %v, want between %v and now", last, before)
	}
}
