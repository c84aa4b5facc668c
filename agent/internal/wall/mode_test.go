package wall

import (
	"context"
	"errors"
	"math"
	"runtime"
	runtimetrace "runtime/trace"
	"slices"
	"testing"
	"time"

	"spanflame/internal/wallprofile"
)

// load is what a simulated process does: how many cores recording all the time takes at a time since the start, and slow spans.
type load struct {
	always func(time.Duration) float64
	slow   float64 // cores that the recordings of slow spans take, as far as there is budget
}

// simulate has the chooser choose four times a second, with a budget of 0.02 cores that is spent as the mode allows. It
// returns the modes that were entered, with the seconds at which they were, and the CPU time spent.
func simulate(d time.Duration, l load) (entered []Mode, at []int, spent time.Duration) {
	const share = 0.02
	start := time.Unix(0, 0)
	b, c := newBudget(share, start), chooser{since: start}
	rate, was := 0.0, AlwaysOn
	for now := start; now.Sub(start) < d; now = now.Add(poll) {
		b.refill(now)
		rate += (1 - math.Exp(-poll.Seconds()/lately.Seconds())) * (l.always(now.Sub(start)) - rate) // as the meter does
		cost, short := l.slow, false
		if was == AlwaysOn {
			cost = l.always(now.Sub(start))
		} else if l.slow > 0 && b.tokens <= 0 {
			cost, short = 0, true
		}
		spent += time.Duration(cost * float64(poll))
		b.spend(time.Duration(cost * float64(poll)))
		left := float64(b.tokens) / float64(b.capacity())
		if mode := c.choose(now, finding{always: rate, share: share, left: left, short: short}); mode != was {
			entered, at, was = append(entered, mode), append(at, int(now.Sub(start).Seconds())), mode
		}
	}
	return entered, at, spent
}

// TestMode: the mode follows the load within seconds, and does not follow each of its moves.
func TestMode(t *testing.T) {
	steady := func(cores float64) func(time.Duration) float64 { return func(time.Duration) float64 { return cores } }
	tests := []struct {
		name   string
		load   load
		length time.Duration
		want   []Mode
		by     []int // the second by which each is entered, at the latest
	}{
		{"an ordinary service", load{steady(0.001), 0}, time.Hour, nil, nil},
		{"just within the share", load{steady(0.019), 0}, time.Hour, nil, nil},
		{"far beyond it", load{steady(0.25), 0}, time.Hour, []Mode{Armed}, []int{5}},
		{"very far beyond it", load{steady(4), 0}, time.Hour, []Mode{Armed}, []int{2}},
		{"a little beyond it", load{steady(0.03), 0}, time.Hour, []Mode{Armed}, []int{70}},
		{"a burst of two seconds in each minute", load{func(d time.Duration) float64 {
			if d%time.Minute < 2*time.Second {
				return 0.2
			}
			return 0.001
		}, 0}, time.Hour, nil, nil},
		{"a hundred times more, then less again", load{func(d time.Duration) float64 {
			if d < time.Minute || d > 2*time.Minute {
				return 0.005
			}
			return 0.5
		}, 0}, 10 * time.Minute, []Mode{Armed, AlwaysOn}, []int{63, 160}},
		{"slow spans alone beyond the share", load{steady(0.3), 0.1}, 10 * time.Minute, []Mode{Armed, DutyCycle}, []int{5, 30}},
		{"slow spans within it", load{steady(0.3), 0.01}, 10 * time.Minute, []Mode{Armed}, []int{5}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			entered, at, spent := simulate(test.length, test.load)
			if !slices.Equal(entered, test.want) {
				t.Fatalf("entered %v at %v, want %v", entered, at, test.want)
			}
			for i, by := range test.by {
				if at[i] > by {
					t.Errorf("%v is entered at %d s, want by %d s", entered[i], at[i], by)
				}
			}
			if most := time.Duration(0.021 * float64(budgetWindow+test.length)); spent > most {
				t.Errorf("%v are spent, at most %v may be", spent, most)
			}
		})
	}
}

// TestModeDoesNotFlap: a load that goes up and down all the time changes the mode ever less often.
func TestModeDoesNotFlap(t *testing.T) {
	const d = 10 * time.Hour
	for _, period := range []time.Duration{10 * time.Second, time.Minute, 4 * time.Minute} {
		entered, at, spent := simulate(d, load{always: func(at time.Duration) float64 {
			if at%period < period/2 {
				return 0.5
			}
			return 0.001
		}})
		late := 0
		for _, second := range at {
			if second > int(d.Seconds()/2) {
				late++
			}
		}
		if len(entered) > 150 || late > 70 || entered[0] != Armed {
			t.Errorf("a period of %v: %d changes, %d of them in the second half", period, len(entered), late)
		}
		if most := time.Duration(0.021 * float64(budgetWindow+d)); spent > most {
			t.Errorf("a period of %v: %v are spent, at most %v may be", period, spent, most)
		}
	}
}

// TestRipen: roots are found once, when they have been running for long enough, and in any order they can end.
func TestRipen(t *testing.T) {
	var l live
	start := time.Now().Add(-time.Hour)
	roots := make([]*root, 1000)
	for i := range roots {
		roots[i] = &root{}
		roots[i].number, roots[i].began = uint64(i), start.Add(time.Duration(i)*time.Millisecond)
		l.add(roots[i])
	}
	found := 0
	ripen := func(at int) time.Time {
		return l.ripen(start.Add(time.Duration(at)*time.Millisecond), 100*time.Millisecond, func(*root) { found++ })
	}
	if next := ripen(99); found != 0 || !next.Equal(start.Add(100*time.Millisecond)) {
		t.Errorf("%d are found, the next is due after %v", found, next.Sub(start))
	}
	if next := ripen(349); found != 250 || l.old.Load() != 250 || !next.Equal(start.Add(350*time.Millisecond)) {
		t.Errorf("%d are found, the next is due after %v", found, next.Sub(start))
	}
	for i := 0; i < 500; i += 2 {
		for range 2 { // the second time, it is not there
			if l.remove(roots[i]) {
				t.Error("the last old one is removed")
			}
		}
	}
	if n := l.registered(); n != 750 || l.old.Load() != 125 {
		t.Errorf("%d are left, %d of them old", n, l.old.Load())
	}
	ripen(400) // 350 to 400 less every other one
	if found != 250+25+1-1 || l.old.Load() != 150 {
		t.Errorf("%d are found, %d are old", found, l.old.Load())
	}
	last := false
	for _, t := range roots {
		last = l.remove(t) || last
	}
	if next := ripen(10_000); !last || l.old.Load() != 0 || l.registered() != 0 || !next.IsZero() {
		t.Errorf("at the end, %d are old, and %d left", l.old.Load(), l.registered())
	}
}

// TestPanicInTheRegistry: a panic of the recorder while it looks at the roots does not keep the service from starting spans.
func TestPanicInTheRegistry(t *testing.T) {
	var l live
	panics := func(*root) { panic("test") }
	for name, look := range map[string]func(now time.Time){
		"older": func(now time.Time) { l.older(now, 0, panics) },
		"ripen": func(now time.Time) { l.ripen(now, 0, panics) },
	} {
		l.add(&root{})
		func() {
			defer func() { recover() }()
			look(time.Now())
			t.Errorf("%s does not panic", name)
		}()
		for i := range l.shards {
			if !l.shards[i].mu.TryLock() {
				t.Fatalf("%s leaves a shard locked", name)
			}
			l.shards[i].mu.Unlock()
		}
	}
}

// armed is a recorder without its goroutine that is armed: the test says when it starts and stops the recording.
func armed(t *testing.T) *recording {
	rec := manual(t)
	mode := Armed
	rec.o.Mode = &mode
	if !rec.arms {
		t.Fatal("the numbers of goroutines are not known: package goid does not know this Go version")
	}
	now := time.Now()
	rec.pace(now)
	rec.arm(now, false)
	rec.arm(now.Add(time.Minute), false)
	if rec.flight.Enabled() {
		t.Fatal("nothing runs, and it is recorded")
	}
	return rec
}

// after has the recorder look as long after now.
func (rec *recording) after(d time.Duration) { rec.arm(time.Now().Add(d), false) }

// TestArmed: nothing is recorded until a span has been running for a part of what is slow. From there on its time is
// known to the nanosecond, and so is that of its children, also if they began before.
func TestArmed(t *testing.T) {
	rec := armed(t)
	for range 10 {
		_, fast := rec.begin(context.Background(), "fast")
		rec.after(rec.armAfter() / 2)
		fast.end()
	}
	rec.after(rec.armAfter())
	if rec.Stats().Starts != 0 {
		t.Error("a fast span is recorded")
	}

	ctx, root := rec.begin(context.Background(), "slow")
	_, gone := rec.begin(ctx, "gone") // before the recording
	gone.end()
	childContext, child := rec.begin(ctx, "child")
	other := make(chan *testSpan)
	go func() {
		_, s := rec.begin(childContext, "elsewhere")
		<-other
		workB(20 * time.Millisecond)
		s.end()
		other <- s
	}()
	workA(20 * time.Millisecond)
	rec.after(rec.armAfter())
	if !rec.flight.Enabled() {
		t.Fatal("a span that may become slow is not recorded")
	}
	other <- nil
	workA(30 * time.Millisecond)
	moved := <-other
	child.end()
	_, late := rec.begin(ctx, "late")
	workB(15 * time.Millisecond)
	late.end()
	root.end()
	if _, quiet := rec.arm(time.Now(), false); !quiet {
		t.Error("everything has ended, and it is not time for a capture")
	}
	rec.capture()
	rec.after(0)
	rec.after(time.Minute)
	if rec.flight.Enabled() {
		t.Error("the recording does not end")
	}

	f := rec.exact(root)
	before := f.leaves[wallprofile.BeforeRecording.Leaf()]
	if before < int64(20*time.Millisecond) || before > int64(root.outer-45*time.Millisecond) {
		t.Errorf("%v are before the recording", time.Duration(before))
	}
	if got := f.sumOf("span: slow;span: child;", "workA"); got < int64(30*time.Millisecond) || got > int64(root.outer) {
		t.Errorf("%v in the child:\n%s", time.Duration(got), f)
	}
	if got := f.sumOf("span: slow;span: late;", "workB"); got < int64(15*time.Millisecond) {
		t.Errorf("%v in a child that began in the recording:\n%s", time.Duration(got), f)
	}
	if got := f.sumOf(wallprofile.Others, "span: elsewhere", "workB"); got < int64(20*time.Millisecond) {
		t.Errorf("%v in the child on another goroutine:\n%s", time.Duration(got), f)
	}
	for _, s := range []*testSpan{child, moved, late} {
		if f := rec.exact(s); (f.leaves[wallprofile.BeforeRecording.Leaf()] > 0) != (s != late) {
			t.Errorf("%s:\n%s", s.name, f)
		}
	}
	s := rec.Stats()
	if s.Slow != 1 || s.Captured != 1 || s.Partial != 1 || s.Starts != 1 || s.Recorded != s.Duration-time.Duration(before) {
		t.Errorf("stats: %+v", s)
	}
	if n := len(rec.conv.tracked) + len(rec.conv.known) + len(rec.conv.goroutines); n != 0 {
		t.Errorf("the converter still holds %d of something", n)
	}
}

// TestArmedWithoutBudget: where the budget is spent, nothing is recorded, each slow span is counted, and the rest of the
// budget is for names that had none.
func TestArmedWithoutBudget(t *testing.T) {
	rec := armed(t)
	rec.budget.serve(time.Now(), rootNamed("busy"))
	rec.budget.tokens = rec.budget.capacity() / 3
	slow := func(name string) {
		_, s := rec.begin(context.Background(), name)
		workA(25 * time.Millisecond)
		rec.after(0)
		workA(5 * time.Millisecond)
		s.end()
		rec.tick(time.Now())
		rec.after(0)
		rec.capture()
		rec.after(0)
		rec.after(time.Minute)
	}
	slow("busy")
	if s := rec.Stats(); s.Starts != 0 || s.SkippedBudget != 1 {
		t.Errorf("a name that had its share: %+v", s)
	}
	slow("rare")
	if s := rec.Stats(); s.Starts != 1 || s.SkippedBudget != 1 || s.Slow != 2 || s.Captured != 1 {
		t.Errorf("a name that had none: %+v", s)
	}
}

// TestFewWakeUps: however many roots run, the recorder looks after them no more often than is needed, and while it records,
// or cannot, only at the ticks.
func TestFewWakeUps(t *testing.T) {
	rec := armed(t)
	rec.o.SlowSpan = time.Minute
	for range 100 {
		rec.begin(context.Background(), "waits")
	}
	now := time.Now()
	least := rec.armAfter() / 8
	if next, _ := rec.arm(now.Add(rec.armAfter()/2), false); next.Before(now.Add(rec.armAfter()/2+least)) || next.After(now.Add(rec.armAfter())) {
		t.Errorf("it looks again after %v, the first is due after %v", next.Sub(now), rec.armAfter())
	}
	_, first := rec.begin(context.Background(), "first")
	due := first.mark.(*span).began.Add(rec.armAfter())
	rec.begin(context.Background(), "later")
	if next, _ := rec.arm(now, false); next.After(due) {
		t.Errorf("it looks again after %v", next.Sub(now))
	}
	rec.budget.tokens = -rec.budget.capacity()
	if next, _ := rec.arm(due, false); rec.flight.Enabled() || !next.IsZero() {
		t.Errorf("without budget, it looks again after %v", next.Sub(now))
	}
	rec.short = false // as at a tick
	if next, _ := rec.arm(due, false); next.Before(due.Add(least)) {
		t.Errorf("it looks again after %v, for one root", next.Sub(due))
	}
	rec.budget = newBudget(1, now)
	rec.begin(context.Background(), "young")
	if next, _ := rec.arm(due, true); !rec.flight.Enabled() || !next.IsZero() {
		t.Errorf("while it records, it looks again after %v", next.Sub(now))
	}
}

// TestStartIsChargedOnce: the CPU time that a start of the recording takes is charged, and no more than that.
func TestStartIsChargedOnce(t *testing.T) {
	rec := armed(t)
	runtime.LockOSThread() // whose CPU time is the recorder's
	defer runtime.UnlockOSThread()
	rec.begin(context.Background(), "slow")
	charged := func() time.Duration { s := rec.Stats(); return s.CPU - s.Written }
	for range 10 {
		before, was := cpuTime(), charged()
		rec.after(rec.armAfter())
		if got, spent := charged()-was, cpuTime()-before; !rec.flight.Enabled() || got > spent {
			t.Fatalf("%v are charged for %v", got, spent)
		}
		rec.stopRecording(time.Now())
		rec.arm(time.Now(), false)
		rec.begin(context.Background(), "slow")
	}
	if cpuTime() > 0 && charged() <= 0 {
		t.Error("nothing is charged")
	}
}

// TestArmedWithChosenStart: what start the author of a span chooses, however long ago or far in the future, decides neither
// how long it is waited for nor when the recording starts. The time before the code started the span is not that before the recording.
func TestArmedWithChosenStart(t *testing.T) {
	rec := armed(t)
	early, late := spanContext(1), spanContext(2)
	start := time.Now().Add(-maxAge - time.Minute)
	slow := rec.Begin(nil, early, "early", start)
	future := rec.Begin(nil, late, "late", time.Now().Add(time.Hour))
	n := 2 * len(rec.live.shards)
	for range n {
		rec.begin(context.Background(), "waits")
	}
	rec.look(time.Now())
	if s := rec.Stats(); s.Unended != 0 || rec.live.registered() != n+2 {
		t.Errorf("of %d roots, %d are registered, %d given up", n+2, rec.live.registered(), s.Unended)
	}
	rec.after(rec.armAfter())
	if got := rec.live.old.Load(); got != int64(n+2) || !rec.flight.Enabled() {
		t.Errorf("%d of %d roots may be slow", got, n+2)
	}
	workA(25 * time.Millisecond)
	future.End("late", time.Time{})
	end := time.Now()
	slow.End("early", end)
	rec.capture()
	f := rec.flame(early.SpanID())
	if f == nil || f.own != int64(end.Sub(start)) {
		t.Fatalf("the span took %v, its profile is %v", end.Sub(start), f)
	}
	if head := slow.(*span).began.Sub(start); f.leaves[wallprofile.Starting.Leaf()] != int64(head) {
		t.Errorf("it is started for %v, want %v:\n%s", time.Duration(f.leaves[wallprofile.Starting.Leaf()]), head, f)
	}
	if f.leaves[wallprofile.BeforeRecording.Leaf()] <= 0 || f.sumOf("workA") < int64(20*time.Millisecond) {
		t.Errorf("what comes after that is not there:\n%s", f)
	}
}

// TestArmedWithAnotherRecorder: where the service itself uses the flight recorder, that is why slow spans are not recorded, and
// not the budget.
func TestArmedWithAnotherRecorder(t *testing.T) {
	rec := armed(t)
	rec.o.Mode, rec.chooser = nil, chooser{mode: Armed, since: time.Now(), stay: time.Hour}
	other := runtimetrace.NewFlightRecorder(runtimetrace.FlightRecorderConfig{})
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Stop()
	slow := func() {
		_, s := rec.begin(context.Background(), "slow")
		rec.after(rec.armAfter())
		workA(25 * time.Millisecond)
		rec.after(0)
		rec.look(time.Now())
		rec.arm(time.Now(), true)
		s.end()
		rec.capture()
		rec.capture() // the first one may look again for the end of a span
	}
	for range 3 {
		slow()
	}
	if s := rec.Stats(); s.SkippedBusy != 3 || s.Slow != 3 || s.Mode != Armed || !errors.Is(rec.Err(), ErrBusy) {
		t.Errorf("the error is %v, and the stats are %+v", rec.Err(), s)
	}
	other.Stop()
	rec.arm(time.Now().Add(budgetWindow), true)
	if rec.Err() != nil || !rec.flight.Enabled() {
		t.Errorf("after the other one has ended: %v", rec.Err())
	}
	slow()
	if s := rec.Stats(); s.Captured != 1 || s.SkippedBusy != 3 {
		t.Errorf("after the other one has ended: %+v", s)
	}
}

// TestAlwaysWithoutBudget: where everything is to be recorded whatever that costs, the budget is for captures: load for hours
// takes none of it.
func TestAlwaysWithoutBudget(t *testing.T) {
	rec := manual(t)
	mode := AlwaysOn
	rec.o.Mode, rec.o.CPUShare = &mode, 0.01
	rec.budget = newBudget(rec.o.CPUShare, time.Now())
	rec.meter.perEvent = 1e9
	for range 100 {
		runtime.Gosched()
		rec.numbers.Add(1000)
		rec.pace(time.Now())
	}
	if s := rec.Stats(); s.Written < time.Hour || s.Entered[Armed] != 0 {
		t.Fatalf("not much is recorded: %+v", s)
	}
	_, s := rec.begin(context.Background(), "slow")
	workA(25 * time.Millisecond)
	s.end()
	rec.capture()
	rec.capture() // the first one may look again for the end of a span
	rec.exact(s)
}

// TestDebtIsBounded: however much was spent, a budget has recovered two minutes later.
func TestDebtIsBounded(t *testing.T) {
	now := time.Now()
	b := newBudget(0.01, now)
	b.spend(time.Hour)
	if b.left(now) > 0 || b.left(now.Add(budgetWindow+time.Second)) <= 0 || !b.recovered(now.Add(2*budgetWindow)) {
		t.Errorf("after an hour was spent: %v of %v", b.tokens, b.capacity())
	}
}

// TestCalibration: the price of an event is measured, and bounded.
func TestCalibration(t *testing.T) {
	rec := manual(t)
	rec.meter.perEvent = 0
	rec.meter.calibrate()
	if p := rec.meter.perEvent; p < 20 || p > 1000 {
		t.Errorf("an event costs %v ns", p)
	}
	spin := func() {
		for begun := time.Now(); time.Since(begun) < 10*time.Microsecond; {
		}
	}
	if ns := fastest(spin); ns < 10_000 {
		t.Errorf("what spins for 10 µs takes %v ns", ns)
	}
	before := rec.meter.read(time.Now(), 0)
	for range 10_000 {
		runtime.Gosched()
	}
	if n := rec.meter.read(time.Now(), 5000); n <= 0 {
		t.Errorf("5000 spans cost %v, after %v", n, before)
	}
}

// TestEstimate: what was learned of a load holds for it, however it is spread over time.
func TestEstimate(t *testing.T) {
	now := time.Now()
	m := newMeter(now)
	m.perEvent, m.size = 100, 5
	spans := uint64(0)
	for i := range 200 {
		now = now.Add(250 * time.Millisecond)
		if i%8 == 0 {
			spans += 100_000 // of ten events each
			m.read(now, spans)
			m.learn(100_000 * 10 * 5)
			continue
		}
		m.read(now, spans)
		m.learn(0)
	}
	now = now.Add(time.Second)
	spans += 100_000
	if got := m.read(now, spans); got < 80*time.Millisecond || got > 120*time.Millisecond {
		t.Errorf("100,000 spans of ten events at 100 ns each cost %v, want 100ms", got)
	}
}
