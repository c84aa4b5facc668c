package wall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"runtime/trace"
	"sync"
	"sync/atomic"
	"time"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// Options configure a Recorder.
type Options struct {
	Service string            // the service's name, for the records
	Labels  map[string]string // series labels copied to each record

	SlowSpan time.Duration // a local root span that takes at least this long is captured; must be positive
	ChildMin time.Duration // child spans of a captured one get a profile from this length on; 0 is 10 ms

	// RingBytes bounds the trace that is held, 0 is 16 MiB: half of it is for the runtime's ring, half
	// for the copy that is being converted. Both are of whole generations, which the recorder tries to
	// keep to an eighth: the ring can exceed its half by one, the copy if it is of a single one.
	RingBytes int

	// CPUShare is the share of one core that recording, snapshots, conversion and encoding may take
	// together, averaged over a minute; 0 is 0.01. The share of recording is an estimate.
	CPUShare float64

	Emit   func(record.Record) // called from the recorder's goroutine; required
	Logger *slog.Logger        // nil is slog.Default()

	diagnosed func(Diagnosis) // called for each captured root span: how tests see a diagnosis to the nanosecond
}

const (
	defaultChildMin  = 10 * time.Millisecond
	defaultRingBytes = 16 << 20
	defaultCPUShare  = 0.01

	coalesce   = 250 * time.Millisecond // from the first request to the snapshot that serves it
	poll       = 250 * time.Millisecond // how often running spans are looked at
	ringAge    = 10 * time.Second       // how much trace the ring keeps if it fits
	maxPiece   = time.Second            // between the snapshots of a span that runs on
	maxAdvance = 5 * time.Second        // between measurements of the trace's rate
	maxQueue   = 4096                   // slow spans that wait for a snapshot
)

// ErrBusy is returned by Start when another flight recorder runs in the process.
var ErrBusy = errors.New("another flight recorder runs in this process; stop it to have wall-clock profiles of spans")

// Recorder captures slow spans. Its methods can be called concurrently.
type Recorder struct {
	o       Options
	flight  *trace.FlightRecorder
	live    live
	numbers atomic.Uint64
	stopped atomic.Bool
	stats   counters

	mu      sync.Mutex
	pending []*root
	closed  bool // nothing takes what is pending any more

	wake     chan struct{} // a root was put into pending
	stop     chan struct{}
	stopOnce sync.Once
	hurry    chan struct{} // closed when a Stop has reached its deadline
	hurryOne sync.Once
	done     chan struct{}

	// What follows belongs to the recorder's goroutine.
	conv    *converter
	encoder *encoder
	budget  *budget
	last    uint64    // number of the newest generation that was converted or given up
	cut     time.Time // when the newest snapshot was taken
	gap     bool      // the next generation does not continue the converter's accounts

	paced  time.Time // until when recording is charged to the budget
	paused bool      // the flight recorder is stopped until the budget has recovered

	rate     float64   // bytes of trace in a nanosecond, 0 if not known
	advanced time.Time // when it was measured
}

// Start starts the flight recorder and the goroutine that serves it, which Stop ends.
func Start(o Options) (*Recorder, error) {
	o.ChildMin = cmp.Or(o.ChildMin, defaultChildMin)
	o.RingBytes = cmp.Or(o.RingBytes, defaultRingBytes)
	o.CPUShare = cmp.Or(o.CPUShare, defaultCPUShare)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	switch {
	case o.SlowSpan <= 0:
		return nil, fmt.Errorf("SlowSpan is %v; it must be positive", o.SlowSpan)
	case o.ChildMin < 0:
		return nil, fmt.Errorf("ChildMin is %v; it must not be negative", o.ChildMin)
	case o.RingBytes < 0:
		return nil, fmt.Errorf("RingBytes is %d; it must not be negative", o.RingBytes)
	case o.CPUShare < 0:
		return nil, fmt.Errorf("CPUShare is %v; it must not be negative", o.CPUShare)
	case o.Emit == nil:
		return nil, errors.New("the option Emit is nil; it must receive the records")
	}
	r := newRecorder(o)
	if err := r.flight.Start(); err != nil {
		// The runtime has no error value of its own for this; a second recorder is the reason it has.
		return nil, fmt.Errorf("%w (%v)", ErrBusy, err)
	}
	go r.run()
	return r, nil
}

func newRecorder(o Options) *Recorder {
	now := time.Now()
	r := &Recorder{
		o: o,
		flight: trace.NewFlightRecorder(trace.FlightRecorderConfig{
			MinAge:   ringAge,
			MaxBytes: uint64(max(1, o.RingBytes/2)),
		}),
		wake:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		hurry:   make(chan struct{}),
		done:    make(chan struct{}),
		encoder: newEncoder(o),
		budget:  newBudget(o.CPUShare, now),
		cut:     now,
		paced:   now,
		gap:     true,
	}
	r.conv = newConverter(o.ChildMin, r.hurried)
	return r
}

// Stop captures the slow spans that are pending, ends the flight recorder and waits for the recorder's
// goroutine. When ctx ends first it returns the context's error; what was pending is then given up and
// counted, and the goroutine ends as soon as the snapshot at hand allows. Every call waits.
func (r *Recorder) Stop(ctx context.Context) error {
	r.stopOnce.Do(func() { close(r.stop) })
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		r.hurryOne.Do(func() { close(r.hurry) })
		return fmt.Errorf("stopping the span recorder: %w", context.Cause(ctx))
	}
}

func (r *Recorder) hurried() bool {
	select {
	case <-r.hurry:
		return true
	default:
		return false
	}
}

// request asks for the capture of a root that was slow. Where that cannot be, it returns the counter of the
// reason.
func (r *Recorder) request(t *root) (lost *atomic.Uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return &r.stats.skippedStop
	case len(r.pending) >= maxQueue:
		return &r.stats.skippedQueue
	case !t.asked:
		t.asked = true
		r.pending = append(r.pending, t)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return nil
}

func (r *Recorder) run() {
	defer close(r.done)
	ticks := time.NewTicker(poll)
	defer ticks.Stop()
	var due <-chan time.Time
	for {
		select {
		case <-r.wake:
			if due == nil {
				due = time.After(coalesce)
			}
		case <-due:
			due = nil
			r.capture()
		case <-ticks.C:
			now := time.Now()
			r.pace(now)
			if r.forgetting(now) {
				r.capture()
			} else if !r.paused && r.overgrown(now) {
				r.advance()
			}
		case <-r.stop:
			r.stopped.Store(true)
			if !r.hurried() {
				r.capture()
			}
			r.flight.Stop()
			r.giveUp()
			return
		}
	}
}

// pace charges recording to the budget. In a process with so many goroutines that the runtime's visits alone
// exceed the budget, recording pauses when the budget is spent and resumes when it has recovered, so that
// some of the slow spans are captured rather than none, or all of them at any price.
func (r *Recorder) pace(now time.Time) {
	share := visits(runtime.NumGoroutine())
	dear := share > r.o.CPUShare
	if !r.paused {
		r.budget.spend(time.Duration(share * float64(now.Sub(r.paced))))
	}
	r.paced = now
	switch {
	case !r.paused && dear && r.budget.available(now, "") <= 0:
		r.flight.Stop()
		r.paused, r.gap, r.cut = true, true, now
		if r.stats.pauses.Add(1) == 1 {
			r.o.Logger.Warn("the recording of slow spans pauses from time to time: with so many goroutines it takes more CPU than it may (said once, then counted)",
				slog.Int("goroutines", runtime.NumGoroutine()), slog.Float64("takes", share), slog.Float64("may_take", r.o.CPUShare))
		}
	case r.paused && (!dear || r.budget.recovered(now)):
		if err := r.flight.Start(); err != nil {
			r.budget.tokens = 0 // tried again when it has recovered once more
			r.o.Logger.Warn("the recording of slow spans does not resume", slog.Any("error", fmt.Errorf("%w (%v)", ErrBusy, err)))
			return
		}
		r.paused, r.advanced = false, now
	}
}

// forgetting reports whether a slow span runs whose part since the newest snapshot the ring may lose
// soon. It also lets go of spans that were never ended.
func (r *Recorder) forgetting(now time.Time) bool {
	slow := false
	var old []*root
	r.live.older(now, r.o.SlowSpan, func(t *root) {
		if now.Sub(t.began) > maxAge || t.duration() != 0 && now.Sub(t.endTime()) > maxLate {
			old = append(old, t)
			return
		}
		slow = true
	})
	for _, t := range old {
		t.giveUp()
		r.stats.unended.Add(1)
	}
	return slow && now.Sub(r.cut) >= min(maxPiece, r.reach()/2)
}

// capture takes a snapshot, converts what is new in it and wanted, and emits the spans that are complete.
// The thread is the recorder's own meanwhile, so that its CPU time can be told.
func (r *Recorder) capture() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w := &work{r: r, began: cpuTime(), taken: make(map[*root]bool)}
	if snap := w.snapshot(); snap != nil {
		w.convert(snap)
	}
	w.resolve()
	w.emit()
	cost := w.spent()
	r.budget.spend(cost)
	r.stats.cpu.Add(int64(cost))
}

// work is one capture.
type work struct {
	r       *Recorder
	began   time.Duration // CPU time of the thread
	pending []*root       // slow roots that asked for this capture
	taken   map[*root]bool
	short   bool // the budget did not allow all that was needed
}

func (w *work) spent() time.Duration { return cpuTime() - w.began }

// available is what the budget still allows for the span names that have most of it left.
func (w *work) available(roots []*root) time.Duration {
	now := time.Now()
	best := w.r.budget.available(now, "")
	if len(roots) > 0 {
		best = w.r.budget.available(now, roots[0].currentName())
		for _, t := range roots[1:] {
			best = max(best, w.r.budget.available(now, t.currentName()))
		}
	}
	return best - w.spent()
}

// snapshot returns the generations of the trace that are new, wanted and affordable, nil if there are
// none. It decides which roots are followed.
func (w *work) snapshot() *snapshot {
	r := w.r
	w.take()
	if r.paused || w.available(w.pending) <= r.budget.fixed {
		w.short = true
		return nil
	}
	asked := time.Now()
	snap := &snapshot{after: r.last, limit: r.o.RingBytes / 2}
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
	for len(snap.gens) > 0 && r.budget.predict(snap.size) > w.available(w.pending) {
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

// take adds the roots that asked meanwhile.
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

// follow returns the roots that are worth following, which are those that still run and those that ask
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
	r.advanced = now
	if d := now.Sub(snap.first); !snap.first.IsZero() && d > 0 {
		r.rate = float64(snap.total) / float64(d)
	}
}

// reach is how far back the ring goes at the rate at which the trace grows now.
func (r *Recorder) reach() time.Duration {
	if r.rate == 0 {
		return time.Second
	}
	return time.Duration(min(float64(ringAge), float64(r.o.RingBytes)/2/r.rate))
}

// overgrown reports whether it is time to end a generation of the trace. The runtime ends one each
// second, however large it is by then, and the ring cannot be smaller than one. It is also time if the
// rate has not been measured for long.
func (r *Recorder) overgrown(now time.Time) bool {
	since := now.Sub(r.advanced)
	due := since >= maxAdvance || r.rate*float64(since) >= float64(r.o.RingBytes)/8
	// It must not take more than half of the budget: with very many goroutines it is dear.
	return due && float64(r.budget.fixed) <= r.o.CPUShare/2*float64(since)
}

// advance ends a generation of the trace.
func (r *Recorder) advance() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, now := cpuTime(), time.Now()
	snap := &snapshot{after: math.MaxUint64} // keeps nothing
	if _, err := r.flight.WriteTo(snap); err != nil {
		r.advanced = now
		r.unreadable("measuring the trace", err)
		return
	}
	r.measure(snap, now)
	cost := cpuTime() - before
	r.budget.learnFixed(cost)
	r.budget.spend(cost)
	r.stats.cpu.Add(int64(cost))
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

func (w *work) convert(snap *snapshot) {
	r := w.r
	size, events, before := snap.size, r.conv.events, cpuTime()
	err := r.conv.convert(snap.reader(), r.gap)
	r.gap = err != nil
	r.budget.learn(size, cpuTime()-before)
	r.stats.bytes.Add(uint64(size))
	r.stats.events.Add(r.conv.events - events)
	r.stats.skippedGoroutines.Store(r.conv.unfollowed)
	r.stats.crowded.Store(r.conv.crowded)
	if err == nil {
		return
	}
	r.unreadable("converting a snapshot", err)
	if errors.Is(err, errPanic) {
		// It may have happened between two changes that belong together: trust none of the accounts.
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
		r.o.Logger.Warn("a part of the execution trace is not readable: wall-clock profiles of spans will lack it (said once, then counted)",
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
		case !w.short && !t.conv.missed && !r.stopped.Load():
			t.conv.missed = true
			if lost := r.request(t); lost != nil {
				r.lose(t, lost)
			}
		case t.conv.emitted:
			r.conv.drop(t) // a child that outlived it, whose end is lost
		case t.span.conv != nil:
			r.conv.abandon(&t.span)
		default:
			why := &r.stats.skippedWindow
			if w.short {
				why = &r.stats.skippedBudget
			}
			r.lose(t, why)
		}
	}
}

// lose gives up a root, and what it has to emit, for the reason that the counter stands for.
func (r *Recorder) lose(t *root, why *atomic.Uint64) {
	if !t.conv.emitted && !t.conv.counted {
		t.conv.counted = true
		why.Add(1)
	}
	r.stats.skippedChildren.Add(uint64(len(t.conv.children)))
	t.conv.children = nil
	r.conv.drop(t)
}

// emit encodes the spans that are complete, in a fair order, until the budget is spent.
func (w *work) emit() {
	r := w.r
	finished := r.conv.finished
	r.conv.finished = nil
	slow := finished[:0]
	for _, t := range finished {
		if t.duration() >= r.o.SlowSpan {
			slow = append(slow, t)
		} else {
			r.conv.drop(t)
		}
	}
	for _, t := range r.budget.fair(slow) {
		switch name := t.currentName(); {
		case r.hurried():
			r.lose(t, &r.stats.skippedStop)
		case w.available([]*root{t}) <= 0:
			r.lose(t, &r.stats.skippedBudget)
		default:
			r.budget.serve(time.Now(), name)
			r.emit(t)
		}
	}
	r.stats.profiles.Add(uint64(r.encoder.flush(wallprofile.ScopeRoot)))
	r.stats.profiles.Add(uint64(r.encoder.flush(wallprofile.ScopeChild)))
}

// emit emits what is complete of a root: itself, unless that was done, and its children.
func (r *Recorder) emit(t *root) {
	if !t.conv.emitted {
		a := t.span.account()
		if a.covered == 0 {
			r.lose(t, &r.stats.skippedWindow)
			return
		}
		d := diagnose(a)
		d.log(r.o.Logger)
		if r.o.diagnosed != nil {
			r.o.diagnosed(d)
		}
		a.comment = wallprofile.Comment(d.SpanID, d.Sentence)
		r.stats.profiles.Add(uint64(r.encoder.gather(wallprofile.ScopeRoot, a)))
		r.stats.captured.Add(1)
		if a.covered < a.duration {
			r.stats.partial.Add(1)
		}
		t.conv.emitted, t.conv.missed = true, false
		t.conv.empty(t.span.conv.now)
	}
	for _, s := range t.conv.children {
		r.stats.profiles.Add(uint64(r.encoder.gather(wallprofile.ScopeChild, s.account())))
		t.conv.empty(s.conv.now)
	}
	r.stats.children.Add(uint64(len(t.conv.children)))
	t.conv.children, t.conv.queued = nil, false
	if len(t.conv.members) == 0 {
		r.conv.drop(t)
	}
}

// giveUp counts what no capture will serve any more.
func (r *Recorder) giveUp() {
	r.mu.Lock()
	pending := r.pending
	r.pending, r.closed = nil, true
	r.mu.Unlock()
	for _, t := range pending {
		r.lose(t, &r.stats.skippedStop)
	}
}
