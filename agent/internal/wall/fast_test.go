package wall

import (
	"context"
	"testing"
	"time"

	"spanflame/internal/wallprofile"
)

func alwaysOn(o *Options) {
	mode := AlwaysOn
	o.Mode, o.sampleEvery = &mode, 1
}

// until calls f until done reports true.
func until(t *testing.T, done func() bool, f func()) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); f() {
		if time.Now().After(deadline) {
			t.Fatal("not done within a minute")
		}
	}
}

// Some of the requests that are not slow are captured: exactly, apart from slow ones, without a diagnosis, and without the
// profiles of their children.
func TestFastSpansAreSampled(t *testing.T) {
	rec := startRecorder(t, func(o *Options) {
		alwaysOn(o)
		o.SlowSpan, o.ChildMin = time.Hour, 1
	})
	spans := make(map[string]*testSpan)
	until(t, func() bool { return rec.Stats().Fast >= 6 }, func() {
		ctx, root := rec.begin(context.Background(), "root")
		_, child := rec.begin(ctx, "child")
		workA(2 * time.Millisecond)
		child.end()
		time.Sleep(2 * time.Millisecond)
		root.end()
		spans[root.id.String()] = root
	})
	rec.finish()
	flames := rec.flames()
	for id, f := range flames {
		root := spans[id]
		if root == nil {
			t.Errorf("there is a profile of a span that is no root:\n%s", f)
			continue
		}
		rec.exact(root)
		if f.meta.Labels[wallprofile.SpanScope] != wallprofile.ScopeFast || f.sumOf("root;", "child;", "workA") == 0 || f.leaves["[waiting: sleep]"] == 0 {
			t.Errorf("labels %v, and its profile is\n%s", f.meta.Labels, f)
		}
	}
	s := rec.Stats()
	if s.Fast != uint64(len(flames)) || s.Slow+s.Captured+s.Children != 0 || len(rec.diagnoses) != 0 {
		t.Errorf("%d profiles and %d diagnoses; %+v", len(flames), len(rec.diagnoses), s)
	}
	if len(flames) >= len(spans) {
		t.Errorf("all %d requests were captured, want a few", len(spans))
	}
}

// A request that is slow has one profile, whether it was chosen or not.
func TestChosenSlowSpansAreSlow(t *testing.T) {
	rec := startRecorder(t, func(o *Options) {
		alwaysOn(o)
		o.SlowSpan = 1
	})
	chosen := 0
	until(t, func() bool { return chosen >= 4 }, func() {
		_, root := rec.begin(context.Background(), "root")
		workA(time.Millisecond)
		root.end()
		if root.mark.(*span).root.chosen {
			chosen++
		}
	})
	rec.finish()
	if s := rec.Stats(); s.Fast+s.FastLost != 0 || s.Captured != s.Slow {
		t.Errorf("stats: %+v", s)
	}
	for id, f := range rec.flames() {
		if f.meta.Labels[wallprofile.SpanScope] != wallprofile.ScopeRoot {
			t.Errorf("%s has the labels %v", id, f.meta.Labels)
		}
	}
}

// The rounds: a few roots after each tick, only while everything is recorded, and while most of the budget is left.
func TestRoundsOfTheSample(t *testing.T) {
	rec := manual(t)
	rec.rate = 1e-9 // the ring reaches back as far as it can
	rec.o.SlowSpan = time.Second
	now := time.Now()
	choose := func(want int) {
		t.Helper()
		n := 0
		for range 10 {
			if rec.sampler.choose() {
				n++
			}
		}
		if n != want {
			t.Errorf("%d roots were chosen, want %d", n, want)
		}
	}
	sample := func(want bool) {
		t.Helper()
		if got := rec.sample(now); got != want {
			t.Errorf("a round ended: %v, want %v", got, want)
		}
	}
	choose(0)
	if sample(false); rec.sampler.next.Before(now.Add(sampleEvery/2)) || rec.sampler.next.After(now.Add(2*sampleEvery)) {
		t.Errorf("the first round begins after %v", rec.sampler.next.Sub(now))
	}
	choose(0)
	now = rec.sampler.next
	sample(false)
	choose(fastATick)
	now = now.Add(poll)
	sample(false)
	choose(fastATick)
	now = now.Add(roundLength)
	sample(false) // the chosen ones have not ended
	choose(0)
	rec.sampler.open.Add(1 - 2*fastATick)
	now = now.Add(rec.o.SlowSpan / 2)
	sample(false)
	choose(0)
	rec.sampler.open.Add(-1)
	sample(true)
	choose(0)

	now = rec.sampler.next
	sample(false)
	choose(fastATick)
	now = now.Add(roundLength + rec.o.SlowSpan) // one never ends
	sample(true)
	choose(0)

	now = rec.sampler.next
	rec.budget.refill(now)
	rec.budget.spend(rec.budget.capacity() / 3)
	sample(false)
	choose(0)
	now = now.Add(budgetWindow)
	sample(false)
	choose(fastATick)
	rec.paused = true
	now = now.Add(poll)
	sample(false)
	choose(0)
	now = now.Add(time.Hour)
	sample(false)
	choose(0)
}

// Fast roots leave half of the budget to slow ones, come after them, and do not count as a capture of their name.
func TestSlowSpansComeBeforeFastOnes(t *testing.T) {
	rec := manual(t)
	chosen := rec.fast("name")
	_, slow := rec.begin(context.Background(), "name")
	workA(25 * time.Millisecond)
	slow.end()
	fast, slowRoot := chosen.mark.(*span).root, slow.mark.(*span).root
	if got := rec.budget.fair([]*root{fast, slowRoot}); got[0] != slowRoot {
		t.Error("the fast root is first")
	}
	now := time.Now()
	rec.budget.spend(rec.budget.capacity() * 3 / 5)
	if f, s := rec.budget.available(now, fast), rec.budget.available(now, slowRoot); f > 0 || s <= 0 {
		t.Errorf("%v is left for the fast root, %v for the slow one", f, s)
	}
	rec.budget.spend(-rec.budget.capacity() * 3 / 5)
	rec.capture()
	if s := rec.Stats(); s.Fast != 1 || s.Captured != 1 {
		t.Errorf("stats: %+v", s)
	}
	if f := rec.flame(chosen.id); f == nil || f.own != int64(time.Millisecond) {
		t.Errorf("the profile of the fast root is\n%s", f)
	}
	rec.exact(slow)
	if len(rec.budget.served) != 1 {
		t.Errorf("served: %v", rec.budget.served)
	}
}

// fast makes a root that was chosen, and took a millisecond, however long the machine took for it.
func (rec *recording) fast(name string) *testSpan {
	ctx, s := rec.begin(context.Background(), name)
	root := s.mark.(*span).root
	root.chosen, root.start = true, root.began
	_, child := rec.begin(ctx, "child")
	child.mark.End("child", child.outerFrom.Add(time.Minute)) // long enough for a profile
	s.mark.End(name, root.began.Add(time.Millisecond))
	return s
}

// A fast root does not take the budget of a slow one that runs: the snapshot is for that.
func TestFastSpansDoNotPreventACapture(t *testing.T) {
	rec := manual(t)
	_, slow := rec.begin(context.Background(), "slow")
	workA(25 * time.Millisecond)
	rec.fast("fast")
	rec.budget.spend(rec.budget.capacity() * 3 / 5)
	rec.capture()
	if s := rec.Stats(); s.Snapshots != 1 || s.Fast != 0 || s.FastLost != 1 {
		t.Errorf("stats: %+v", s)
	}
	slow.end()
	rec.capture()
	rec.exact(slow)
}

// What was chosen and is not emitted is counted once, apart from slow roots, and so are its children.
func TestLostFastSpansAreCounted(t *testing.T) {
	for name, lose := range map[string]func(*recording){
		"forgotten": func(rec *recording) { rec.forget(); rec.capture(); rec.capture() },
		"stopped":   func(rec *recording) { rec.giveUp() },
		"a panic": func(rec *recording) {
			w := &work{r: rec.Recorder, taken: make(map[*root]bool)}
			w.take()
			for _, t := range w.pending {
				rec.conv.track(t)
			}
			w.abandon()
			rec.request(w.pending[0])
			rec.capture()
		},
		"no budget": func(rec *recording) { rec.budget.spend(rec.budget.capacity()); rec.capture() },
	} {
		rec := manual(t)
		rec.fast("lost")
		lose(rec)
		if s := rec.Stats(); s.FastLost != 1 || s.Fast+s.Slow+s.SkippedWindow+s.SkippedStop+s.SkippedPanic+s.SkippedBudget+s.SkippedChildren != 0 {
			t.Errorf("%s: stats %+v", name, s)
		}
		rec.flight.Stop()
	}
}

// Of a root that was over when it began there is nothing to show.
func TestRootsOfThePastAreNotSampled(t *testing.T) {
	rec := manual(t)
	_, s := rec.begin(context.Background(), "past")
	s.mark.(*span).root.chosen = true
	s.mark.End("past", s.outerFrom.Add(-time.Minute))
	rec.capture()
	if s := rec.Stats(); s.Fast+s.FastLost+s.Slow != 0 {
		t.Errorf("stats: %+v", s)
	}
}
