package wall

import (
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"spanflame/internal/wallprofile"
)

// capture takes a snapshot, converts what is new in it and wanted, and emits the spans that are complete.
func (r *Recorder) capture() {
	w := &work{r: r, taken: make(map[*root]bool)}
	if !r.capturing.Run(w.do) && w.begun {
		w.abandon()
	}
}

// do is the capture. The goroutine is locked to its thread meanwhile, so that its CPU time can be measured.
func (w *work) do() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := w.r
	w.begun, w.began = true, cpuTime()
	if snap := w.snapshot(); snap != nil {
		w.convert(snap)
	}
	w.resolve()
	w.emit()
	cost := w.spent()
	r.budget.spend(cost)
	r.stats.cpu.Add(int64(cost))
}

// abandon starts again after a panic, which may have come between two changes that belong together: the accounts of all
// spans are lost.
func (w *work) abandon() {
	r := w.r
	lose := func(t *root) {
		t.conv.over = true
		fast := t.chosen && t.fast()
		if t.conv.emitted || t.conv.counted || t.duration() < r.o.SlowSpan && !fast {
			return
		}
		t.conv.counted = true
		if fast {
			r.stats.fastLost.Add(1)
		} else {
			r.stats.skippedPanic.Add(1)
		}
	}
	for t := range r.conv.tracked {
		lose(t)
	}
	for _, t := range w.pending {
		lose(t)
	}
	before := r.conv
	r.conv = newConverter(r.o.ChildMin, r.names.get)
	r.conv.started = before.started
	r.conv.events, r.conv.unfollowed, r.conv.crowded = before.events, before.unfollowed, before.crowded
	r.conv.history.reasons = before.history.reasons
	clear(r.encoder.open)
	r.gap = true
}

// work is one capture.
type work struct {
	r       *Recorder
	begun   bool
	began   time.Duration // CPU time of the thread
	pending []*root       // slow roots that asked for this capture, and fast ones
	taken   map[*root]bool
	short   bool // the budget was too small for the work
}

func (w *work) spent() time.Duration { return cpuTime() - w.began }

// available returns the largest remaining budget of the roots, minus the time already spent.
func (w *work) available(roots []*root) time.Duration {
	now := time.Now()
	best := w.r.budget.left(now)
	if len(roots) > 0 {
		best = w.r.budget.available(now, roots[0])
		for _, t := range roots[1:] {
			best = max(best, w.r.budget.available(now, t))
		}
	}
	return best - w.spent()
}

// claims returns the roots whose budget a snapshot may use: fast ones have a claim only if no slow one needs it.
func (w *work) claims() []*root {
	slow := slices.DeleteFunc(slices.Clone(w.pending), (*root).fast)
	running := false
	w.r.live.older(time.Now(), w.r.o.SlowSpan, func(*root) { running = true })
	if len(slow) > 0 || running {
		return slow
	}
	return w.pending
}

// snapshot returns the generations of the trace that are new, wanted and affordable, nil if there are
// none. It decides which roots are followed.
func (w *work) snapshot() *snapshot {
	r := w.r
	w.take()
	if r.paused {
		return nil
	}
	claims := w.claims()
	if w.available(claims) <= r.budget.fixed {
		w.short = true
		return nil
	}
	asked := time.Now()
	snap := &snapshot{after: r.last, limit: r.o.RingBytes / 2, seen: r.seen}
	_, err := r.flight.WriteTo(snap)
	r.budget.learnFixed(w.spent())
	r.stats.snapshots.Add(1)
	if err != nil {
		r.unreadable("taking a snapshot", err)
		return nil
	}
	r.measure(snap, asked)
	if len(snap.gens) == 0 {
		return nil
	}

	// Only now: a root that began between the list and the snapshot's end would lose the start of its
	// account, as no generation is converted twice.
	wanted := w.follow()
	if snap.gens[0].number != r.last+1 {
		r.gap = true
	}
	r.last = snap.gens[len(snap.gens)-1].number
	if snap.since(r.oldest(wanted, asked)) > 0 {
		r.gap = true
	}
	r.cut = asked
	for len(snap.gens) > 0 && r.budget.predict(snap.size) > w.available(claims) {
		snap.drop()
		r.gap, w.short = true, true
		r.stats.skippedGenerations.Add(1)
	}
	for t := range wanted {
		r.conv.track(t)
	}
	if len(snap.gens) == 0 {
		return nil
	}
	return snap
}

// take adds the roots that have asked for a capture since.
func (w *work) take() {
	w.r.mu.Lock()
	for _, t := range w.r.pending {
		t.asked = false
		if !w.taken[t] {
			w.taken[t] = true
			w.pending = append(w.pending, t)
		}
	}
	w.r.pending = nil
	w.r.mu.Unlock()
}

// follow returns the roots to follow, which are those that still run and those that asked for this capture
// (in this order: see span.End), and stops following all others.
func (w *work) follow() map[*root]struct{} {
	wanted := make(map[*root]struct{})
	want := func(t *root) {
		if !t.conv.over {
			wanted[t] = struct{}{}
		}
	}
	w.r.live.older(time.Now(), 0, want)
	w.take()
	for _, t := range w.pending {
		want(t)
	}
	for t := range w.r.conv.tracked {
		if _, ok := wanted[t]; !ok {
			w.r.conv.drop(t)
		}
	}
	return wanted
}

// measure learns how fast the trace grows.
func (r *Recorder) measure(snap *snapshot, now time.Time) {
	r.advanced, r.seen = now, snap.newest
	r.charge(now)
	r.meter.learn(snap.grown)
	if d := now.Sub(snap.first); !snap.first.IsZero() && d > 0 {
		r.rate = float64(snap.total) / float64(d)
	}
}

// oldest is the start of the earliest root that is not followed yet, or the newest cut if one is.
func (r *Recorder) oldest(wanted map[*root]struct{}, now time.Time) time.Time {
	oldest := now
	for t := range wanted {
		from := t.began
		if _, ok := r.conv.tracked[t]; ok {
			from = r.cut
		}
		if from.Before(oldest) {
			oldest = from
		}
	}
	return oldest
}

// Why a conversion ends before the end of its snapshot: nobody waits for it any more, or it costs more than was predicted.
var (
	errDeadline = errors.New("stopped because the recorder is shutting down")
	errBudget   = errors.New("stopped because the budget is spent")
)

func (w *work) convert(snap *snapshot) {
	r := w.r
	size, events, before := snap.size, r.conv.events, cpuTime()
	most := w.spent() + w.available(w.pending)*7/8 // the rest is for the encoding
	err := r.conv.convert(snap.reader(), r.gap, func() error {
		switch {
		case r.deadlineReached():
			return errDeadline
		case w.spent() > most:
			return errBudget
		}
		return nil
	})
	r.gap = err != nil
	cost := cpuTime() - before
	switch {
	case err == nil:
		r.meter.learnSize(size, r.conv.events-events)
	case errors.Is(err, errBudget):
		cost *= 2 // at least, it is assumed, so that the next one is not begun in vain
	}
	r.budget.learn(size, cost)
	r.stats.bytes.Add(uint64(size))
	r.stats.events.Add(r.conv.events - events)
	r.stats.skippedGoroutines.Store(r.conv.unfollowed)
	r.stats.crowded.Store(r.conv.crowded)
	for why, n := range r.conv.history.reasons {
		r.stats.notFollowed[why].Store(n)
	}
	switch {
	case err == nil:
		return
	case errors.Is(err, errBudget):
		w.short = true
		r.stats.skippedGenerations.Add(1)
		return
	}
	r.unreadable("converting a snapshot", err)
	if errors.Is(err, errPanic) {
		// The panic may have come between two changes that belong together: none of the accounts can be trusted.
		for t := range r.conv.tracked {
			r.conv.drop(t)
		}
		r.conv.finished = nil
	}
}

// unreadable reports a snapshot that could not be used. The spans that needed it are counted with those
// whose part of the trace was lost.
func (r *Recorder) unreadable(doing string, err error) {
	if r.stats.unreadable.Add(1) == 1 {
		r.o.Logger.Warn("part of the execution trace is not readable and will be missing from wall-clock profiles (logged once, then counted)",
			slog.String("while", doing), slog.Any("error", err))
	}
}

// resolve finds the roots whose end the conversion did not see: the mark may be in the next snapshot, or
// it is lost.
func (w *work) resolve() {
	r := w.r
	for _, t := range w.pending {
		switch {
		case t.conv.queued:
		case t.conv.over:
			r.lose(t, &r.stats.skippedWindow) // given up while it ran
		case !w.short && !r.paused && !t.conv.missed && !r.stopped.Load():
			t.conv.missed = true
			if lost := r.request(t); lost != nil {
				r.lose(t, lost)
			}
		case t.conv.emitted:
			r.conv.drop(t) // a child that outlived it, whose end is lost
		case t.span.conv != nil:
			r.conv.abandon(&t.span)
		default:
			r.lose(t, w.reason(t))
		}
	}
}

// reason returns the counter of the reason why a root is lost of which nothing was seen.
func (w *work) reason(t *root) *atomic.Uint64 {
	r := w.r
	unrecorded := r.paused || t.endTime().Before(r.conv.started)
	// A reason holds until the next tick.
	was := func(reason time.Time) bool { return unrecorded && t.began.Before(reason.Add(poll)) }
	switch {
	case was(r.failed) && r.failed.After(r.refused):
		return &r.stats.skippedBusy
	case w.short || was(r.refused):
		return &r.stats.skippedBudget
	default:
		return &r.stats.skippedWindow
	}
}

// lose gives up a root, and what it has to emit, and counts the reason.
func (r *Recorder) lose(t *root, why *atomic.Uint64) {
	if !t.conv.emitted && !t.conv.counted {
		t.conv.counted = true
		if t.fast() {
			why = &r.stats.fastLost
		}
		why.Add(1)
	}
	if !t.fast() { // whose children get no profiles
		r.stats.skippedChildren.Add(uint64(len(t.conv.children)))
	}
	t.conv.children = nil
	r.conv.drop(t)
}

// emit encodes the spans that are complete, in a fair order, until the budget is spent.
func (w *work) emit() {
	r := w.r
	finished := r.conv.finished
	r.conv.finished = nil
	wanted := finished[:0]
	for _, t := range finished {
		if t.duration() != 0 && (t.chosen || !t.fast()) {
			wanted = append(wanted, t)
		} else {
			r.conv.drop(t)
		}
	}
	for _, t := range r.budget.fair(wanted) {
		switch {
		case r.deadlineReached():
			r.lose(t, &r.stats.skippedStop)
		case w.available([]*root{t}) <= 0:
			r.lose(t, &r.stats.skippedBudget)
		case t.fast():
			r.emitFast(t)
		default:
			r.budget.serve(time.Now(), t)
			r.emit(t)
		}
	}
	for _, scope := range scopes {
		r.stats.profiles.Add(uint64(r.encoder.flush(scope)))
	}
}

// emitFast emits a root of the sample of fast ones, without the profiles of its children and without a diagnosis. It has
// one only if it is known completely: half of a fast request would seem to be a faster one.
func (r *Recorder) emitFast(t *root) {
	a := t.span.account()
	if a.covered == 0 || a.covered < a.duration {
		r.lose(t, &r.stats.fastLost)
		return
	}
	r.stats.profiles.Add(uint64(r.encoder.add(wallprofile.ScopeFast, a)))
	r.stats.fast.Add(1)
	t.conv.emitted, t.conv.children = true, nil
	r.conv.drop(t)
}

// emit emits the complete parts of a root: itself, unless that was done, and its children.
func (r *Recorder) emit(t *root) {
	if !t.conv.emitted {
		a := t.span.account()
		if a.covered == 0 {
			r.lose(t, &r.stats.skippedWindow)
			return
		}
		d := diagnose(a, r.conv.garbage.maker)
		r.diagnoses.add(time.Now(), &d)
		if r.o.Diagnosed != nil {
			r.o.Diagnosed(d)
		}
		a.comment = wallprofile.Comment(d.SpanID, d.Text)
		r.stats.profiles.Add(uint64(r.encoder.add(wallprofile.ScopeRoot, a)))
		r.stats.captured.Add(1)
		r.stats.duration.Add(int64(a.duration))
		r.stats.recorded.Add(int64(a.covered))
		if a.covered < a.duration {
			r.stats.partial.Add(1)
		}
		t.conv.emitted, t.conv.missed = true, false
		t.conv.empty(t.span.conv.now)
	}
	for _, s := range t.conv.children {
		r.stats.profiles.Add(uint64(r.encoder.add(wallprofile.ScopeChild, s.account())))
		t.conv.empty(s.conv.now)
	}
	r.stats.children.Add(uint64(len(t.conv.children)))
	t.conv.children, t.conv.queued = nil, false
	if len(t.conv.members) == 0 {
		r.conv.drop(t)
	}
}
