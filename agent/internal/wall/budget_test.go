package wall

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"spanflame/internal/record"
)

// TestPauses: where the process's goroutines alone take more than the budget, recording pauses when it is
// spent, says so once, counts the slow spans of that time, and resumes when the budget has recovered.
func TestPauses(t *testing.T) {
	var log bytes.Buffer
	var records []record.Record
	r := newRecorder(Options{
		Service: "shop", SlowSpan: 20 * time.Millisecond, ChildMin: time.Millisecond, RingBytes: defaultRingBytes,
		CPUShare: 1e-7, // less than a single goroutine takes
		Emit:     func(rec record.Record) { records = append(records, rec) },
		Logger:   slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err := r.flight.Start(); err != nil {
		t.Fatal(err)
	}
	defer r.flight.Stop()
	rec := &recording{t: t, Recorder: r}
	slow := func() {
		_, s := rec.begin(t.Context(), "slow")
		time.Sleep(25 * time.Millisecond)
		s.end()
		r.capture()
		r.capture() // the first one may look again for the end of a span
	}

	now := time.Now()
	for range 3 {
		r.budget.tokens = 0
		now = now.Add(time.Second)
		r.pace(now)
		if !r.paused || r.flight.Enabled() {
			t.Fatal("the recording goes on beyond the budget")
		}
		slow()
		if s := r.Stats(); s.Captured != 0 || s.SkippedBudget != s.Slow || s.Unreadable != 0 {
			t.Fatalf("while paused: %+v", s)
		}
		r.budget.tokens = 0
		now = now.Add(budgetWindow / 2)
		r.pace(now)
		if !r.paused {
			t.Fatal("it resumes before the budget has recovered")
		}
		now = now.Add(budgetWindow)
		r.pace(now)
		if r.paused || !r.flight.Enabled() {
			t.Fatal("it does not resume when the budget has recovered")
		}
	}
	if s := r.Stats(); s.Pauses != 3 || strings.Count(log.String(), "pauses from time to time") != 1 {
		t.Errorf("%d pauses, and the log says %s", s.Pauses, log.String())
	}

	// With a budget that allows it, spans are captured again, and a pause does not come.
	r.o.CPUShare, r.budget = 1, newBudget(1, now)
	r.pace(now.Add(time.Second))
	if r.paused {
		t.Fatal("it pauses within the budget")
	}
	slow()
	if s := r.Stats(); s.Captured != 1 || s.Partial != 0 || len(records) != 1 {
		t.Errorf("after the pauses: %d records, %+v", len(records), s)
	}
}
