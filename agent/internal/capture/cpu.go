package capture

import (
	"bytes"
	"context"
	"errors"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"spanflame/agent/internal/guard"
)

// ErrBusy is returned while another CPU profile is being taken: the runtime takes one at a time.
var ErrBusy = errors.New("a CPU profile is being taken already: try again when it has ended")

var errPanic = errors.New("the CPU profile failed: the agent panicked, see its log")

func newCPUProfiler(windows bool, stage *guard.Stage, emit func(begun, end time.Time, profile []byte)) *cpuProfiler {
	p := &cpuProfiler{windows: windows, stage: stage, emit: emit}
	p.back.L = &p.mu
	return p
}

// cpuProfiler shares the runtime's one CPU profiler between the windows of the capturer and profiles on request.
//
// The runtime takes one profile at a time, and one ends when it is written, which takes from less than a millisecond to
// some, and longer where the CPUs are busy. Between two windows this time is not profiled, but nothing else happens in
// it: a window is emitted when the next one has begun. The time is counted.
type cpuProfiler struct {
	windows bool // whether windows are taken and emitted; if not, there are only profiles on request
	stage   *guard.Stage
	emit    func(begun, end time.Time, profile []byte)

	mu    sync.Mutex
	back  sync.Cond    // on mu: signalled when a requested profile has ended
	buf   bytes.Buffer // receives the open profile
	begun time.Time    // start of the open profile; zero while there is none
	lent  bool         // the open profile was requested
	ended bool         // the last window has ended: no other one is started

	// counting is locked while mu is held, never the other way round, and for a short time only: readers of the gap
	// do not wait for a profile.
	counting sync.Mutex
	gapFrom  time.Time // since when the service has the profiler; zero while it does not
	gap      time.Duration
	rotation time.Duration // between windows

	refused atomic.Int64 // how often the service was found to have the profiler
}

// start begins a window unless one is open. While the service itself takes a CPU profile, the time until a later call
// succeeds is counted as a gap.
func (p *cpuProfiler) start(now time.Time) {
	p.stage.Run(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.windows && p.begun.IsZero() && !p.ended {
			_ = p.startLocked(now) // counted; tried again by the caller
		}
	})
}

func (p *cpuProfiler) startLocked(now time.Time) error {
	p.buf.Reset()
	err := pprof.StartCPUProfile(&p.buf)
	p.counting.Lock()
	defer p.counting.Unlock()
	if err != nil {
		if p.windows && p.gapFrom.IsZero() {
			p.refused.Add(1)
			p.gapFrom = now
		}
		return ErrBusy
	}
	if !p.gapFrom.IsZero() {
		p.gap += now.Sub(p.gapFrom)
		p.gapFrom = time.Time{}
	}
	p.begun = now
	return nil
}

// cpuProfile is a profile that has ended.
type cpuProfile struct {
	begun, end time.Time
	profile    []byte // nil if there was none
}

// stopLocked ends the open profile, if there is one, and returns it.
func (p *cpuProfiler) stopLocked() cpuProfile {
	if p.begun.IsZero() {
		return cpuProfile{}
	}
	begun := p.begun
	p.begun = time.Time{} // first: what follows may panic
	pprof.StopCPUProfile()
	return cpuProfile{begun, time.Now(), bytes.Clone(p.buf.Bytes())}
}

// rotateLocked ends the open profile, begins another one, and emits the first.
func (p *cpuProfiler) rotateLocked() (profile []byte, err error) {
	from := time.Now()
	ended := p.stopLocked()
	err = p.startLocked(time.Now())
	if p.windows && ended.profile != nil && err == nil {
		p.counting.Lock()
		p.rotation += time.Since(from)
		p.counting.Unlock()
	}
	p.emitLocked(ended)
	return ended.profile, err
}

func (p *cpuProfiler) emitLocked(ended cpuProfile) {
	if p.windows && ended.profile != nil {
		p.emit(ended.begun, ended.end, ended.profile)
	}
}

// next ends the window and begins another. A requested profile continues: it is emitted when it ends.
func (p *cpuProfiler) next() {
	p.stage.Run(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.lent || !p.windows {
			return
		}
		_, _ = p.rotateLocked() // a failure to start is counted; tried again by the capturer
	})
}

// close ends the last window. A requested profile ends with the capturer's stop channel, and is waited for, since it is
// that window.
func (p *cpuProfiler) close() {
	p.stage.Try(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = true
		for p.lent {
			p.back.Wait()
		}
		p.emitLocked(p.stopLocked())
	})
}

// foreground takes the requested profile of length d, or until ctx or stop ends.
func (p *cpuProfiler) foreground(ctx context.Context, stop <-chan struct{}, d time.Duration) (profile []byte, err error) {
	if !p.stage.Try(func() { profile, err = p.take(ctx, stop, d) }) {
		return nil, errPanic
	}
	return profile, err
}

func (p *cpuProfiler) take(ctx context.Context, stop <-chan struct{}, d time.Duration) ([]byte, error) {
	if err := p.lend(); err != nil {
		return nil, err
	}
	end := time.NewTimer(d)
	defer end.Stop()
	last := false
	select {
	case <-end.C:
	case <-ctx.Done():
	case <-stop:
		last = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lent = false // first: what follows may panic
	p.back.Broadcast()
	if p.windows && !p.ended && !last {
		profile, _ := p.rotateLocked() // a failure to start is counted; tried again by the capturer
		return profile, nil
	}
	ended := p.stopLocked()
	p.emitLocked(ended)
	return ended.profile, nil
}

func (p *cpuProfiler) lend() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lent || p.ended {
		return ErrBusy
	}
	if _, err := p.rotateLocked(); err != nil {
		return err
	}
	p.lent = true
	return nil
}

// rotationSoFar returns the time between windows since the start.
func (p *cpuProfiler) rotationSoFar() time.Duration {
	p.counting.Lock()
	defer p.counting.Unlock()
	return p.rotation
}

func (p *cpuProfiler) gapSoFar() time.Duration {
	p.counting.Lock()
	defer p.counting.Unlock()
	if p.gapFrom.IsZero() {
		return p.gap
	}
	return p.gap + time.Since(p.gapFrom)
}
