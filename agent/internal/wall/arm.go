package wall

import (
	"bytes"
	"log/slog"
	"runtime"
	"strconv"
	"time"

	"github.com/petermattis/goid"
)

const (
	firstToggle = 2 * time.Millisecond // until it was measured
	maxLinger   = 250 * time.Millisecond

	// long is how long a root has to run until its name counts as one that was captured, so that roots which never end
	// leave half of the budget to the others.
	long = 10 * time.Second

	// resumeAt is the part of the budget that has to be there for the recording to start again after the budget was spent.
	resumeAt = 10
)

// armAfter is how long a root runs until the recording starts, if it does not run all the time. With the time that the
// start takes, and that the recorder's goroutine may have to wait for a CPU, that is within the first quarter of the
// time from which on a span is slow.
func (r *Recorder) armAfter() time.Duration { return r.o.SlowSpan / 5 }

// numbersGoroutines reports whether package goid knows where the runtime of this Go version has the number of a goroutine.
// Where it does not, it reads the number from a stack, as is done here to check it, which would be too slow for every span.
func numbersGoroutines() bool {
	const goroutines = 4
	right := make(chan bool)
	for range goroutines {
		go func() {
			var stack [64]byte
			text, _ := bytes.CutPrefix(stack[:runtime.Stack(stack[:], false)], []byte("goroutine "))
			text, _, _ = bytes.Cut(text, []byte(" "))
			number, err := strconv.ParseInt(string(text), 10, 64)
			right <- err == nil && number == goid.Get()
		}()
	}
	all := true
	for range goroutines {
		all = <-right && all
	}
	return all && fastest(func() { goid.Get() }) < 200
}

// charge charges to the budget what recording has cost since the last call. Where it is to run all the time whatever it
// costs, the budget is for captures alone: to refuse those would not end the recording.
func (r *Recorder) charge(now time.Time) {
	written := r.meter.read(now, r.numbers.Load())
	if !r.paused {
		written += time.Duration(visits(runtime.NumGoroutine()) * float64(now.Sub(r.paced)))
		if !r.arms || r.o.Mode == nil || *r.o.Mode != AlwaysOn {
			r.budget.spend(written)
		}
		r.stats.cpu.Add(int64(written))
		r.stats.written.Add(int64(written))
	}
	r.paced = now
}

// always returns how many cores recording all the time takes, or would take.
func (r *Recorder) always() float64 { return r.meter.cores() + visits(runtime.NumGoroutine()) }

// pace charges recording to the budget, and chooses when it runs. Where the spans that began before a recording cannot be
// found in it, recording pauses when the budget is spent and resumes when it has recovered, so that some of the slow
// spans are captured, rather than none, or all of them at any cost.
func (r *Recorder) pace(now time.Time) {
	r.charge(now)
	r.budget.limit(now, r.o.CPUShare*float64(runtime.GOMAXPROCS(0)))
	always := r.always()
	if !r.arms {
		r.pause(now, always)
		return
	}
	var mode Mode
	if r.o.Mode != nil {
		mode = *r.o.Mode
	} else {
		mode = r.chooser.choose(now, finding{
			always: always, share: r.budget.share, left: float64(r.budget.left(now)) / float64(r.budget.capacity()), short: r.short,
		})
	}
	r.short = false
	r.enter(mode, always)
	if mode == AlwaysOn && r.paused {
		r.start(now)
	}
}

// pause stops and starts the recording by the budget alone.
func (r *Recorder) pause(now time.Time, always float64) {
	expensive := always > r.budget.share
	switch {
	case !r.paused && expensive && r.budget.left(now) <= 0:
		r.refuse(now)
		r.stopRecording(now)
		r.enter(DutyCycle, always)
	case r.paused && (!expensive || r.budget.recovered(now)):
		if r.start(now) && !expensive {
			r.enter(AlwaysOn, always)
		}
	case r.paused:
		r.refuse(now)
	}
}

// enter notes the mode.
func (r *Recorder) enter(mode Mode, always float64) {
	before := Mode(r.stats.mode.Swap(int32(mode)))
	if before == mode {
		return
	}
	r.stats.entered[mode].Add(1)
	r.o.Logger.Info("recording of slow spans: "+mode.String(),
		slog.String("was", before.String()), slog.Float64("always_on_takes", always), slog.Float64("may_take", r.budget.share))
}

// arm starts the recording when a root has been running for so long that it may become slow, and stops it when there is none
// left. It returns when it has to be called again, zero if that is when a root begins or at the next tick; and whether everything
// that was recorded has ended, so that it can be captured. Whether the budget allows it is decided for the roots that have just become old, or for all.
func (r *Recorder) arm(now time.Time, all bool) (next time.Time, quiet bool) {
	if r.mode() == AlwaysOn || !r.arms {
		return time.Time{}, false
	}
	defer r.spending()()
	least := time.Duration(0)
	if r.paused && r.mode() == DutyCycle {
		least = r.budget.capacity() / resumeAt
	}
	may, refused := false, false
	ask := func(t *root) {
		may = may || r.budget.available(now, t) > least
		refused = !may
	}
	r.idle.Store(true) // before: a root that begins from here on and is not seen wakes the recorder
	young := r.live.ripen(now, r.armAfter(), ask)
	if !young.IsZero() {
		r.idle.Store(false)
	}
	switch any := all && r.live.old.Load() > 0; {
	case any && r.budget.left(now) <= least:
		refused = true
	case any:
		r.live.older(now, r.armAfter(), func(t *root) {
			ask(t)
			if !r.paused && now.Sub(t.began) > long {
				r.budget.serve(now, t)
			}
		})
	}
	switch old := r.live.old.Load() > 0; {
	case old && r.paused && may:
		r.start(now)
		r.quiet = time.Time{}
	case old && r.paused:
		if refused {
			r.refuse(now)
		}
	case r.paused && all && r.Err() != nil:
		r.start(now) // whether it can, so that Err does not outlast its reason
	case old && all && refused:
		r.refuse(now)
		r.stopRecording(now)
	case old:
		r.quiet = time.Time{}
	case !r.paused && r.quiet.IsZero():
		r.quiet = now
		fallthrough
	case !r.paused:
		if r.waiting() {
			return time.Time{}, true
		}
		// To leave it running costs as much as to start it again, by then.
		stop := r.quiet.Add(min(maxLinger, time.Duration(float64(r.toggle)/max(r.always(), 1e-6))))
		if now.Before(stop) {
			return stop, false
		}
		r.stopRecording(now)
	}
	if young.IsZero() || !r.paused || r.short {
		return time.Time{}, false // the tick is soon enough for what is recorded already, or cannot be
	}
	// Not for each root: with many of them, those that are due a little later are due together.
	return later(young, now.Add(r.armAfter()/8)), false
}

// refuse notes that the budget is too small to record what may become slow.
func (r *Recorder) refuse(now time.Time) { r.short, r.refused = true, now }

func (r *Recorder) mode() Mode { return Mode(r.stats.mode.Load()) }

// start starts the flight recorder, unless another one was found to run a short time ago.
func (r *Recorder) start(now time.Time) bool {
	if now.Before(r.retry) {
		r.failed = now
		return false
	}
	r.charge(now)
	r.meter.begin()
	r.conv.started = time.Now()
	before := cpuTime()
	r.writing.Store(true) // before the start: no span that begins in the recording is without a mark
	if err := r.flight.Start(); err != nil {
		r.writing.Store(false)
		r.failed, r.retry = now, now.Add(budgetWindow/2)
		if err = anotherRecorder(err); r.starting(err) {
			r.o.Logger.Warn("recording of slow spans cannot resume", slog.Any("error", err))
		}
		return false
	}
	r.starting(nil)
	r.paused, r.gap, r.cut = false, true, now
	if r.mode() != AlwaysOn {
		r.advance() // the end of a generation has the stacks of the goroutines that were waiting at its start
	}
	r.toggle += (2*(cpuTime()-before) - r.toggle) * 3 / 10
	r.stats.starts.Add(1)
	return true
}

// stopRecording stops the flight recorder.
func (r *Recorder) stopRecording(now time.Time) {
	r.charge(now)
	before := cpuTime()
	r.writing.Store(false)
	r.flight.Stop()
	r.paused, r.gap, r.cut, r.quiet = true, true, now, time.Time{}
	r.toggle += (2*(cpuTime()-before) - r.toggle) * 3 / 10
}
