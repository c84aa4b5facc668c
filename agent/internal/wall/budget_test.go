package wall

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"spanflame/internal/record"
)

// TestPauses: where the process's goroutines alone take more than the budget and the numbers of goroutines are not known,
// recording pauses when it is spent, says so once, counts the slow spans of that time, and resumes when the budget has
// recovered.
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
			t.Fatal("the recording continues beyond the budget")
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
	if s := r.Stats(); s.Starts != 3 || s.Entered[DutyCycle] != 1 || strings.Count(log.String(), "recording of slow spans: duty cycle") != 1 {
		t.Errorf("%d starts, and the log says %s", s.Starts, log.String())
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

// TestBudgetIsCheckedBeforeEncoding: where the conversion took more than was predicted, only what is still allowed is
// encoded. Here that is the share that is kept for names which had no capture lately.
func TestBudgetIsCheckedBeforeEncoding(t *testing.T) {
	rec := manual(t)
	var spans []*testSpan
	for _, name := range []string{"busy", "rare"} {
		ctx, s := rec.begin(context.Background(), name)
		_, child := rec.begin(ctx, "part")
		workA(25 * time.Millisecond)
		child.end()
		s.end()
		spans = append(spans, s)
	}
	runtime.LockOSThread() // as capture does: its CPU time is the thread's
	defer runtime.UnlockOSThread()
	w := &work{r: rec.Recorder, began: cpuTime(), taken: make(map[*root]bool)}
	snap := w.snapshot()
	if snap == nil {
		t.Fatal("there is no snapshot")
	}
	w.convert(snap)
	rec.budget.serve(time.Now(), rootNamed("busy"))
	rec.budget.tokens = rec.budget.capacity() / 4
	w.resolve()
	w.emit()

	if f := rec.flame(spans[0].id); f != nil {
		t.Errorf("a name that was just served is encoded beyond its half of the budget:\n%s", f)
	}
	rec.exact(spans[1])
	if s := rec.Stats(); s.Slow != 2 || s.Captured != 1 || s.SkippedBudget != 1 || s.Children != 1 || s.SkippedChildren != 1 {
		t.Errorf("stats: %+v", s)
	}
	if n := len(rec.conv.tracked) + len(rec.conv.known) + len(rec.conv.goroutines); n != 0 {
		t.Errorf("the converter still holds %d of something", n)
	}
}

// TestConversionEndsWithTheBudget: where a conversion costs more than was predicted, it ends when the budget is spent, and what
// it was for is counted. The next snapshots are converted as if there were a gap.
func TestConversionEndsWithTheBudget(t *testing.T) {
	rec := manual(t)
	_, s := rec.begin(context.Background(), "expensive")
	for range 2 * pollEvents {
		runtime.Gosched() // two events or more
	}
	workA(25 * time.Millisecond)
	s.end()
	runtime.LockOSThread() // as capture does: its CPU time is the thread's
	defer runtime.UnlockOSThread()
	w := &work{r: rec.Recorder, began: cpuTime(), taken: make(map[*root]bool)}
	snap := w.snapshot()
	if snap == nil {
		t.Fatal("there is no snapshot")
	}
	rec.budget.tokens = -time.Minute
	before := rec.budget.perByte
	w.convert(snap)
	w.resolve()
	w.emit()
	if s := rec.Stats(); s.Events > pollEvents || s.Captured != 0 || s.SkippedBudget != 1 || s.SkippedGenerations != 1 || s.Unreadable != 0 {
		t.Errorf("stats: %+v", s)
	}
	if now := rec.budget.perByte; now == before {
		t.Errorf("nothing was learned of the cost: %v ns a byte", now)
	}

	rec.budget.tokens = rec.budget.capacity()
	_, next := rec.begin(context.Background(), "next")
	workA(25 * time.Millisecond)
	next.end()
	rec.capture()
	rec.exact(next)
	if s := rec.Stats(); s.Captured != 1 || s.Partial != 0 {
		t.Errorf("stats: %+v", s)
	}
	if n := len(rec.conv.tracked) + len(rec.conv.known) + len(rec.conv.goroutines); n != 0 {
		t.Errorf("the converter still holds %d of something", n)
	}
}
