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

	"spanflame/agent/internal/guard"
	"spanflame/internal/record"
)

// Options configure a Recorder.
type Options struct {
	Service string            // the service's name, for the records
	Labels  map[string]string // series labels copied to each record

	SlowSpan time.Duration // a local root span that takes at least this long is captured; must be positive
	ChildMin time.Duration // child spans of a captured one get a profile from this length on; 0 is 10 ms

	// RingBytes limits the trace in memory; 0 is 16 MiB: half of it is for the runtime's ring, half
	// for the copy that is being converted. Both are of whole generations, which the recorder tries to
	// keep to an eighth: the ring can exceed its half by one, the copy if it is of a single one.
	RingBytes int

	// CPUShare is the share of the CPU time that the process may use (GOMAXPROCS) which everything here may cost: writing
	// the trace, visits of goroutines, snapshots, conversion and encoding, averaged over a minute; 0 is 0.01. What writing
	// costs is an estimate.
	CPUShare float64

	// Mode is when the flight recorder runs; without it, the recorder chooses. AlwaysOn may cost more than CPUShare: what writing
	// the trace costs is then not counted against it.
	Mode *Mode

	// LogLines is how many diagnoses are logged for each span name and minute; 0 is 5, a negative number none.
	LogLines int

	Emit   func(record.Record) // called from the recorder's goroutine; required
	Guard  *guard.Guard        // recovers panics
	Logger *slog.Logger        // nil is slog.Default()

	// Diagnosed is called for each captured root span, from the recorder's goroutine; nil if nobody needs that.
	Diagnosed func(Diagnosis)

	sampleEvery time.Duration // between rounds in which fast spans are captured; 0 is 15 s
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
	maxQueue   = 4096                   // roots that wait for a snapshot
)

// ErrBusy is returned by Start when another flight recorder runs in the process.
var ErrBusy = errors.New("another flight recorder runs in this process; stop it to have wall-clock profiles of spans")

// Recorder captures slow spans. Its methods can be called concurrently.
type Recorder struct {
	o       Options
	flight  *flight
	live    live
	numbers atomic.Uint64
	stopped atomic.Bool
	stats   counters
	unended unended
	names   names

	writing atomic.Bool   // marks are written
	arms    bool          // spans have the number of their goroutine: what began before the recording can be found in it
	idle    atomic.Bool   // the recorder's goroutine waits for a root to begin
	stir    chan struct{} // a root began while it was

	mu      sync.Mutex
	pending []*root
	closed  bool  // no capture will serve what is pending
	err     error // of the last start of the flight recorder

	capturing, recording, emitting *guard.Stage

	wake         chan struct{} // a root was put into pending
	settles      chan chan<- struct{}
	stop         chan struct{}
	stopOnce     sync.Once
	deadline     chan struct{} // closed when a Stop has reached its deadline
	deadlineOnce sync.Once
	done         chan struct{}

	// The fields below belong to the recorder's goroutine.
	conv      *converter
	encoder   *encoder
	budget    *budget
	diagnoses diagnosisLog
	last      uint64    // number of the newest generation that was converted or given up
	cut       time.Time // when the newest snapshot was taken
	gap       bool      // the next generation does not continue the converter's accounts

	meter   *meter
	seen    uint64 // the newest generation of the trace in a snapshot
	chooser chooser
	sampler sampler
	paced   time.Time     // until when recording is charged to the budget
	paused  bool          // the flight recorder does not run
	short   bool          // the budget was too small for a slow span, since the last choice of the mode
	retry   time.Time     // not before, after another flight recorder was found to run
	failed  time.Time     // when the recording should have started last and could not
	refused time.Time     // when the budget was last too small for a slow span
	quiet   time.Time     // since when no old root has been running; zero if one is
	toggle  time.Duration // CPU time to stop and to start the flight recorder again, learned

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
	r.arms = numbersGoroutines()
	if err := r.flight.Start(); err != nil {
		return nil, anotherRecorder(err)
	}
	r.meter.calibrate()
	r.pace(time.Now())
	go r.run()
	return r, nil
}

// anotherRecorder is the error of a flight recorder that does not start. The runtime has no error value of its own for this; the only
// reason is a second recorder.
func anotherRecorder(err error) error { return fmt.Errorf("%w (%v)", ErrBusy, err) }

// Err returns why slow spans cannot be recorded now, nil if they can: another flight recorder ran when the recording should
// have started, which is tried again.
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// starting notes the result of a start of the flight recorder. It reports whether the one before had another.
func (r *Recorder) starting(err error) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed = (err == nil) != (r.err == nil)
	r.err = err
	return changed
}

func newRecorder(o Options) *Recorder {
	now := time.Now()
	r := &Recorder{
		o: o,
		flight: &flight{recorder: trace.NewFlightRecorder(trace.FlightRecorderConfig{
			MinAge:   ringAge,
			MaxBytes: uint64(max(1, o.RingBytes/2)),
		})},
		capturing: o.Guard.Stage("capture wall"),
		recording: o.Guard.Stage("record wall"),
		emitting:  o.Guard.Stage("emit"),
		wake:      make(chan struct{}, 1),
		settles:   make(chan chan<- struct{}),
		stop:      make(chan struct{}),
		deadline:  make(chan struct{}),
		done:      make(chan struct{}),
		stir:      make(chan struct{}, 1),
		budget:    newBudget(o.CPUShare*float64(runtime.GOMAXPROCS(0)), now),
		meter:     newMeter(now),
		chooser:   chooser{since: now},
		sampler:   sampler{every: cmp.Or(o.sampleEvery, sampleEvery)},
		toggle:    firstToggle,
		diagnoses: diagnosisLog{to: o.Logger, lines: cmp.Or(o.LogLines, defaultLogLines)},
		cut:       now,
		paced:     now,
		gap:       true,
	}
	guarded := o
	guarded.Emit = func(rec record.Record) { r.emitting.Try(func() { o.Emit(rec) }) }
	r.encoder = newEncoder(guarded)
	r.conv = newConverter(o.ChildMin, r.names.get)
	r.writing.Store(true)
	r.sampler.rest(now)
	return r
}

// Stop captures the slow spans that are pending, ends the flight recorder and waits for the recorder's
// goroutine. When ctx ends first it returns the context's error; pending spans are then given up and
// counted, and the goroutine ends as soon as the current snapshot allows. Every call waits.
func (r *Recorder) Stop(ctx context.Context) error {
	r.stopOnce.Do(func() { close(r.stop) })
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		r.deadlineOnce.Do(func() { close(r.deadline) })
		return fmt.Errorf("stopping the span recorder: %w", context.Cause(ctx))
	}
}

// Settle captures the slow spans that have ended by now, without the usual wait for others, and returns when they were
// emitted, at the latest when ctx is done.
func (r *Recorder) Settle(ctx context.Context) error {
	settled := make(chan struct{})
	select {
	case r.settles <- settled:
		select {
		case <-settled:
			return nil
		case <-ctx.Done():
		}
	case <-r.done:
		return nil
	case <-ctx.Done():
	}
	return fmt.Errorf("waiting for the profiles of slow spans: %w", context.Cause(ctx))
}

func (r *Recorder) settle(settled chan<- struct{}) {
	defer close(settled)
	// The second time is for spans whose end was not in the first snapshot: see resolve.
	for range 2 {
		if r.waiting() {
			r.capture()
		}
	}
}

func (r *Recorder) deadlineReached() bool {
	select {
	case <-r.deadline:
		return true
	default:
		return false
	}
}

// request asks for the capture of a root that was slow, or fast and chosen, which can wait. If that is not possible, it
// returns the counter of the reason.
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
	if !t.fast() {
		notify(r.wake)
	}
	return nil
}

func (r *Recorder) run() {
	defer close(r.done)
	ticks := time.NewTicker(poll)
	defer ticks.Stop()
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	var due <-chan time.Time
	// armed captures if no root that is slow runs any more, and sets the alarm for the next time that arm is due.
	armed := func(next time.Time, quiet bool) {
		if quiet {
			due = nil
			r.capture()
			r.recording.Run(func() { next, _ = r.arm(time.Now(), false) })
		}
		if !next.IsZero() {
			alarm.Reset(time.Until(next))
		}
	}
	arm := func() {
		var next time.Time
		quiet := false
		r.recording.Run(func() { next, quiet = r.arm(time.Now(), false) })
		armed(next, quiet)
	}
	for {
		select {
		case <-r.wake:
			if due == nil && r.waiting() {
				due = time.After(coalesce)
			}
			arm()
		case <-due:
			due = nil
			r.capture()
		case settled := <-r.settles:
			due = nil
			r.settle(settled)
			arm()
		case <-r.stir:
			arm()
		case <-alarm.C:
			arm()
		case <-ticks.C:
			var next time.Time
			forgetting, quiet := false, false
			r.recording.Run(func() { forgetting, next, quiet = r.tick(time.Now()) })
			if forgetting {
				r.capture()
			}
			armed(next, quiet)
		case <-r.stop:
			r.stopped.Store(true)
			if !r.deadlineReached() {
				r.capture()
			}
			r.recording.Try(r.end)
			return
		}
	}
}

// look is called at every tick: it charges recording to the budget, checks the running spans, which it charges as
// well, and samples fast ones. It reports whether a capture is due.
func (r *Recorder) look(now time.Time) (due bool) {
	defer r.spending()()
	r.pace(now)
	sampled := r.sample(now)
	return r.forgetting(now) || sampled && r.waiting()
}

// spending begins a piece of the recorder's work. The function that it returns ends it, and charges its CPU time. A piece
// has no others in it.
func (r *Recorder) spending() (end func()) {
	runtime.LockOSThread()
	before := cpuTime()
	return func() {
		defer runtime.UnlockOSThread()
		cost := cpuTime() - before
		r.budget.spend(cost)
		r.stats.cpu.Add(int64(cost))
	}
}

// tick does what is due regularly. It reports whether a capture is due, and what arm returns.
func (r *Recorder) tick(now time.Time) (due bool, next time.Time, quiet bool) {
	r.diagnoses.flush(now)
	due = r.look(now)
	next, quiet = r.arm(now, true)
	if !due && !r.paused && r.overgrown(now) {
		defer r.spending()()
		r.advance()
	}
	return due, next, quiet
}

// end ends the recording.
func (r *Recorder) end() {
	defer r.giveUp()
	defer r.flight.Stop()
	r.diagnoses.end()
}

// waiting reports whether roots wait for a capture.
func (r *Recorder) waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pending) > 0
}

// forgetting reports whether a slow span is running whose trace since the newest snapshot may be overwritten
// soon. It also gives up roots that were never ended, and children that outlive their root for long.
func (r *Recorder) forgetting(now time.Time) bool {
	slow := false
	var old []*root
	r.live.older(now, r.o.SlowSpan, func(t *root) {
		if now.Sub(t.began) > maxAge || t.duration() != 0 && now.Sub(t.endTime()) > grace {
			old = append(old, t)
			return
		}
		slow = true
	})
	for _, t := range old {
		t.giveUp()
		if t.duration() == 0 {
			r.stats.unended.Add(1)
			r.unended.count(Unended{Span: t.first, Root: t.first})
		}
	}
	return slow && !r.paused && now.Sub(r.cut) >= min(maxPiece, r.reach()/2)
}

// reach returns the period that the ring covers at the current growth rate of the trace.
func (r *Recorder) reach() time.Duration {
	if r.rate == 0 {
		return time.Second
	}
	return time.Duration(min(float64(ringAge), float64(r.o.RingBytes)/2/r.rate))
}

// overgrown reports whether it is time to end a generation of the trace. The runtime ends one each
// second, however large it is, and the ring cannot be smaller than one. It is also time if the rate has
// not been measured recently.
func (r *Recorder) overgrown(now time.Time) bool {
	since := now.Sub(r.advanced)
	due := since >= maxAdvance || r.rate*float64(since) >= float64(r.o.RingBytes)/8
	// It must not take more than half of the budget: with very many goroutines it is expensive.
	return due && float64(r.budget.fixed) <= r.budget.share/2*float64(since)
}

// advance ends a generation of the trace. Its caller charges what that takes.
func (r *Recorder) advance() {
	before, now := cpuTime(), time.Now()
	snap := &snapshot{after: math.MaxUint64, seen: r.seen} // keeps nothing
	if _, err := r.flight.WriteTo(snap); err != nil {
		r.advanced = now
		r.unreadable("measuring the trace", err)
		return
	}
	r.measure(snap, now)
	r.budget.learnFixed(cpuTime() - before)
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
