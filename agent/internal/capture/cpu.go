package capture

import (
	"bytes"
	"context"
	"errors"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"
)

// ErrBusy is returned while another CPU profile is being taken: the runtime has one at a time.
var ErrBusy = errors.New("a CPU profile is being taken already: try again when it has ended")

func newCPUProfiler(windows bool, emit func(begun, end time.Time, profile []byte)) *cpuProfiler {
	p := &cpuProfiler{windows: windows, emit: emit}
	p.back.L = &p.mu
	return p
}

// cpuProfiler shares the runtime's one CPU profiler between the windows of the capturer and profiles taken
// for somebody else.
//
// Ending a profile takes up to 100 ms, because the runtime hands over its samples at that interval; between
// two windows that time is not profiled.
type cpuProfiler struct {
	windows bool // whether windows are taken and emitted; if not, profiles for somebody else alone
	emit    func(begun, end time.Time, profile []byte)

	mu    sync.Mutex
	back  sync.Cond    // on mu: signalled when a lent profile has ended
	buf   bytes.Buffer // receives the profile that runs
	begun time.Time    // when the profile that runs was started; zero while none does
	lent  bool         // the profile that runs was asked for by somebody else
	ended bool         // the last window was cut: no further one is started

	// counting is taken while mu is held, never the other way round, and for moments only: whoever asks for
	// the gap waits for no profile.
	counting sync.Mutex
	gapFrom  time.Time // since when the service holds the profiler; zero while it does not
	gap      time.Duration

	refused atomic.Int64 // how often the service was found to hold the profiler
}

// start begins a window unless one is open. Where the service itself is taking a CPU profile, the time until
// a later call succeeds is counted as a gap.
func (p *cpuProfiler) start(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.windows && p.begun.IsZero() && !p.ended {
		_ = p.startLocked(now) // counted; tried again by the caller
	}
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

// stopLocked ends the profile that runs, emits it and returns it; nil where none runs.
func (p *cpuProfiler) stopLocked() []byte {
	if p.begun.IsZero() {
		return nil
	}
	pprof.StopCPUProfile()
	profile := bytes.Clone(p.buf.Bytes())
	if p.windows {
		p.emit(p.begun, time.Now(), profile)
	}
	p.begun = time.Time{}
	return profile
}

// next ends the window and begins another. A profile that is lent goes on: it is emitted when it ends.
func (p *cpuProfiler) next() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lent || !p.windows {
		return
	}
	p.stopLocked()
	_ = p.startLocked(time.Now()) // counted; tried again by the capturer
}

// close ends the last window. A profile that is lent has been told to end by the capturer's stop channel and
// is waited for, since it is that window.
func (p *cpuProfiler) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for p.lent {
		p.back.Wait()
	}
	p.stopLocked()
}

// foreground takes a profile of length d, or until ctx or stop ends.
func (p *cpuProfiler) foreground(ctx context.Context, stop <-chan struct{}, d time.Duration) ([]byte, error) {
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
	profile := p.stopLocked()
	p.lent = false
	p.back.Broadcast()
	if p.windows && !p.ended && !last {
		_ = p.startLocked(time.Now()) // counted; tried again by the capturer
	}
	return profile, nil
}

func (p *cpuProfiler) lend() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lent || p.ended {
		return ErrBusy
	}
	p.stopLocked()
	if err := p.startLocked(time.Now()); err != nil {
		return err
	}
	p.lent = true
	return nil
}

func (p *cpuProfiler) gapSoFar() time.Duration {
	p.counting.Lock()
	defer p.counting.Unlock()
	if p.gapFrom.IsZero() {
		return p.gap
	}
	return p.gap + time.Since(p.gapFrom)
}
