// Package capture takes the runtime's profiles (CPU, memory, mutex, block, goroutines, goroutine leaks) in
// windows of equal length and emits each as a record. The agent is its only user. It knows no disk and no
// network: what becomes of a record is the receiver's business.
//
// A window ends at a multiple of its length on the wall clock, so that the windows of all instances of a
// service lie side by side. The last window, cut short, is captured by Stop for every type.
//
// No garbage collection is forced: live memory is as of the last one that the service had. Only the goroutine
// leak profile, which has to be asked for, is found by a collection of its own in every window.
package capture

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"github.com/grafana/pyroscope-go/godeltaprof"

	"spanflame/internal/record"
)

// MaxGoroutines is the number of goroutines above which the goroutine profile of a window is left out:
// taking it costs about 4.5 ms of CPU for every 1,000 labelled goroutines (Go 1.26).
const MaxGoroutines = 20_000

// Options says what is captured, for whom, and where records go.
type Options struct {
	Service string            // the service's name, copied to each record
	Labels  map[string]string // series labels, shared by all records: not changed after Start
	Types   []record.Type     // what to capture; each at most once
	Window  time.Duration     // length of a window, at least one second

	// Emit receives every captured record. It is called from one goroutine at a time; while it runs no
	// further profile is captured.
	Emit func(record.Record)

	Logger *slog.Logger
}

// Stats counts what was done since Start, by type.
type Stats struct {
	Captured map[record.Type]Count
	Skipped  map[Skip]int64 // profiles that were due and were not captured

	// CPUGap is the time without a CPU profile since Start, because the service was taking one itself.
	CPUGap time.Duration
}

// Count is a number of profiles, their size as captured (gzip-compressed) and the time it took to take them.
type Count struct {
	Profiles int64
	Bytes    int64
	Elapsed  time.Duration // zero for CPU, which is taken all the time
}

// Skip names a profile that was not captured, and why.
type Skip struct {
	Type   record.Type
	Reason string
}

// The reasons of Skip.
const (
	ReasonGoroutines = "too many goroutines"
	ReasonError      = "error"
	ReasonBusy       = "cpu profiler in use"
)

// Capturer captures until it is stopped. It owns one goroutine.
type Capturer struct {
	o    Options
	cpu  *cpuProfiler
	snap []snapshot // every other type, in the order of Options.Types

	stop chan struct{}
	done chan struct{}
	once sync.Once

	emitting sync.Mutex // held while Emit runs: profiles taken for somebody else end at any time

	mu    sync.Mutex // guards stats
	stats Stats
}

// snapshot is a type whose profile is read at the end of a window.
type snapshot struct {
	typ   record.Type
	write func(io.Writer) error
}

// Supported tells whether this build of the program can capture t. Only the goroutine leak profile depends
// on the build: Go 1.26 has it under GOEXPERIMENT=goroutineleakprofile.
func Supported(t record.Type) bool {
	return t != record.GoroutineLeak || pprof.Lookup("goroutineleak") != nil
}

// Start begins to capture. The error names a type that this build does not support.
func Start(o Options) (*Capturer, error) {
	c := &Capturer{
		o:     o,
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
		stats: Stats{Captured: map[record.Type]Count{}, Skipped: map[Skip]int64{}},
	}
	c.cpu = newCPUProfiler(slices.Contains(o.Types, record.CPU), c.emitCPU)
	for _, t := range o.Types {
		if !Supported(t) {
			return nil, fmt.Errorf("profile type %s: not in this build; build with GOEXPERIMENT=goroutineleakprofile or leave it out", t)
		}
		if t == record.CPU {
			continue
		}
		write, err := writer(t)
		if err != nil {
			return nil, err
		}
		c.snap = append(c.snap, snapshot{t, write})
	}
	for _, s := range c.snap {
		if s.typ == record.Goroutine || s.typ == record.GoroutineLeak {
			continue
		}
		// The first reading of a delta profile is everything since the process began: it is the zero point
		// of the first window, not part of it.
		if err := s.write(io.Discard); err != nil {
			return nil, fmt.Errorf("profile type %s: %w", s.typ, err)
		}
	}
	begun := time.Now()
	c.cpu.start(begun)
	go c.run(begun)
	return c, nil
}

// writer returns what writes one profile of type t, gzip-compressed. The heap, mutex and block profiles are
// differences to the reading before (in-use memory is what it is at the moment of reading).
func writer(t record.Type) (func(io.Writer) error, error) {
	lookup := func(name string) func(io.Writer) error {
		return func(w io.Writer) error { return pprof.Lookup(name).WriteTo(w, 0) }
	}
	switch t {
	case record.Memory:
		return godeltaprof.NewHeapProfiler().Profile, nil
	case record.Mutex:
		return godeltaprof.NewMutexProfiler().Profile, nil
	case record.Block:
		return godeltaprof.NewBlockProfiler().Profile, nil
	case record.Goroutine:
		return lookup("goroutine"), nil
	case record.GoroutineLeak:
		return lookup("goroutineleak"), nil
	}
	return nil, fmt.Errorf("profile type %q: the runtime has no such profile", t)
}

// run ends a window at every multiple of its length, and tries to have the CPU profiler back every second
// while the service itself holds it.
func (c *Capturer) run(begun time.Time) {
	defer close(c.done)
	retry := time.NewTicker(time.Second)
	defer retry.Stop()
	for {
		end := time.NewTimer(time.Until(c.boundary(begun)))
	waiting:
		for {
			select {
			case <-c.stop:
				end.Stop()
				c.cpu.close()
				c.snapshots(begun, time.Now())
				return
			case <-retry.C:
				c.cpu.start(time.Now())
			case <-end.C:
				break waiting
			}
		}
		c.cpu.next()
		now := time.Now()
		c.snapshots(begun, now)
		begun = now
	}
}

// boundary is when the window that began at t ends. A timer may fire a little before the wall clock reaches
// the boundary: what is left of that window belongs to the next.
func (c *Capturer) boundary(t time.Time) time.Time {
	return t.Add(c.o.Window / 50).Truncate(c.o.Window).Add(c.o.Window)
}

// snapshots captures every type that is read at the end of a window.
func (c *Capturer) snapshots(begun, end time.Time) {
	var buf bytes.Buffer
	for _, s := range c.snap {
		if s.typ == record.Goroutine && runtime.NumGoroutine() > MaxGoroutines {
			c.skipped(s.typ, ReasonGoroutines)
			continue
		}
		buf.Reset()
		t := time.Now()
		err := s.write(&buf)
		var profile []byte
		if err == nil {
			profile, err = stamp(buf.Bytes(), begun, end)
		}
		if err != nil {
			c.skipped(s.typ, ReasonError)
			c.o.Logger.Warn("a profile could not be captured", "type", s.typ, "error", err)
			continue
		}
		c.emit(s.typ, begun, end, profile, time.Since(t))
	}
}

func (c *Capturer) emitCPU(begun, end time.Time, profile []byte) {
	c.emit(record.CPU, begun, end, profile, 0)
}

func (c *Capturer) emit(t record.Type, begun, end time.Time, profile []byte, took time.Duration) {
	c.mu.Lock()
	n := c.stats.Captured[t]
	c.stats.Captured[t] = Count{n.Profiles + 1, n.Bytes + int64(len(profile)), n.Elapsed + took}
	c.mu.Unlock()
	c.emitting.Lock()
	defer c.emitting.Unlock()
	c.o.Emit(record.Record{
		Meta:    record.Meta{Service: c.o.Service, Type: t, Start: begun, End: end, Labels: c.o.Labels},
		Profile: profile,
	})
}

func (c *Capturer) skipped(t record.Type, reason string) {
	c.mu.Lock()
	c.stats.Skipped[Skip{t, reason}]++
	c.mu.Unlock()
}

// CPUProfile takes a CPU profile of length d for somebody else and writes it to w, gzip-compressed. The
// window that is open, if CPU windows are captured, ends first, and what is taken meanwhile is emitted as a
// window too, so nothing is missing on either side. It ends early, with what there is, when ctx or the capturer does.
//
// The error is ErrBusy while another one runs or while the service itself takes one.
func (c *Capturer) CPUProfile(ctx context.Context, w io.Writer, d time.Duration) error {
	profile, err := c.cpu.foreground(ctx, c.stop, d)
	if err != nil {
		return err
	}
	_, err = w.Write(profile)
	return err
}

// Stats returns the counts since Start.
func (c *Capturer) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Stats{Captured: make(map[record.Type]Count, len(c.stats.Captured)), Skipped: make(map[Skip]int64, len(c.stats.Skipped))}
	for t, n := range c.stats.Captured {
		s.Captured[t] = n
	}
	for k, n := range c.stats.Skipped {
		s.Skipped[k] = n
	}
	s.CPUGap = c.cpu.gapSoFar()
	if n := c.cpu.refused.Load(); n > 0 {
		s.Skipped[Skip{record.CPU, ReasonBusy}] = n
	}
	return s
}

// Stop captures the last window of every type and joins the capturer's goroutine. It may be called more
// than once and at the same time; each call waits, until its ctx is done.
func (c *Capturer) Stop(ctx context.Context) error {
	c.once.Do(func() { close(c.stop) })
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("capture of the last profiles: %w", context.Cause(ctx))
	}
}
