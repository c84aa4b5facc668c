// Package capture takes the runtime's profiles (CPU, memory, mutex, block, goroutines, goroutine leaks) in windows of
// equal length and emits each as a record. The agent is its only user. It uses no disk and no network: what happens to
// a record is up to the receiver.
//
// A window ends at a multiple of its length on the wall clock, plus an offset that each instance of a service has for
// itself and keeps: all types of one instance have the same windows, and the windows of many instances, after which they
// all push, end at different moments. Stop captures the last window, cut short, for every type.
//
// No garbage collection is forced: live memory is as of the service's last one. Only the goroutine leak profile, which
// is off by default, needs a collection of its own in every window.
package capture

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"maps"
	"math/bits"
	"reflect"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"spanflame/agent/internal/capture/delta"
	"spanflame/agent/internal/guard"
	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
)

// MaxGoroutines is the number of goroutines above which the goroutine profile of a window is left out: it costs about
// 4.5 ms of CPU for every 1,000 labelled goroutines (Go 1.26).
const MaxGoroutines = 20_000

// Options has the types that are captured, whose they are, and where records go.
type Options struct {
	Service string            // the service's name, copied to each record
	Labels  map[string]string // series labels, shared by all records: not changed after Start
	Types   []record.Type     // what to capture; each at most once
	Window  time.Duration     // length of a window, at least one second

	// Instance names the process among all that push to one server. The offset of its windows is made of it.
	Instance string

	// Emit receives every captured record. It is called by one goroutine at a time, and no other profile is captured
	// while it runs.
	Emit func(record.Record)

	Guard  *guard.Guard // recovers panics
	Logger *slog.Logger
}

// Stats has counts since Start, by type.
type Stats struct {
	Captured map[record.Type]Count
	Skipped  map[Skip]int64 // profiles that were due and were not captured

	// Summed counts the stacks of profiles that had too many, so that their values are those of one sample together.
	Summed map[record.Type]int64

	// CPUGap is the time without a CPU profile since Start because the service took one itself.
	CPUGap time.Duration
	// CPURotation is the time without a CPU profile since Start because one window had ended and the next had not begun.
	CPURotation time.Duration
}

// Count is a number of profiles, their compressed size, and the time spent to take them.
type Count struct {
	Profiles int64
	Bytes    int64
	Elapsed  time.Duration // zero for CPU, which is profiled all the time
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
	ReasonPanic      = "panic" // now, or a short time ago
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
	ends chan end

	emitting sync.Mutex        // held while Emit runs: a profile that was requested ends at any time
	extra    map[string]string // labels of the windows that end now, changed while emitting is held

	mu    sync.Mutex // guards stats
	stats Stats
}

// end asks for the end of the open windows.
type end struct {
	labels map[string]string
	done   chan struct{}
}

// snapshot is a type whose profile is read at the end of a window.
type snapshot struct {
	typ     record.Type
	stage   *guard.Stage
	profile string       // its name in package runtime/pprof, if it is not cumulative
	delta   *delta.Delta // nil if it is not
}

// Supported reports whether this build of the program can capture t. Only the goroutine leak profile depends on the
// build: Go 1.26 has it with GOEXPERIMENT=goroutineleakprofile.
func Supported(t record.Type) bool {
	return t != record.GoroutineLeak || pprof.Lookup("goroutineleak") != nil
}

// Start begins to capture. The error names a type that this build does not support.
func Start(o Options) (*Capturer, error) {
	c := &Capturer{
		o:     o,
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
		ends:  make(chan end),
		stats: Stats{Captured: map[record.Type]Count{}, Skipped: map[Skip]int64{}, Summed: map[record.Type]int64{}},
	}
	c.cpu = newCPUProfiler(slices.Contains(o.Types, record.CPU), o.Guard.Stage(stage(record.CPU)), c.emitCPU)
	for _, t := range o.Types {
		if !Supported(t) {
			return nil, fmt.Errorf("profile type %s: not in this build; build with GOEXPERIMENT=goroutineleakprofile or leave it out", t)
		}
		if t == record.CPU {
			continue
		}
		s, err := newSnapshot(t, o.Guard)
		if err != nil {
			return nil, err
		}
		c.snap = append(c.snap, s)
	}
	for _, s := range c.snap {
		// The first reading of a cumulative profile has everything since the process began: it is the zero point of
		// the first window, not part of it.
		if s.delta == nil {
			continue
		}
		var err error
		s.stage.Try(func() { err = s.delta.Skip() })
		if err != nil {
			return nil, fmt.Errorf("profile type %s: %w", s.typ, err)
		}
	}
	begun := time.Now()
	c.cpu.start(begun)
	go func() {
		defer close(c.done)
		o.Guard.Stage("capture").Keep(c.stop, func() { c.run(begun) })
	}()
	return c, nil
}

// stage returns the name of the stage that captures a type.
func stage(t record.Type) string { return "capture " + string(t) }

func newSnapshot(t record.Type, g *guard.Guard) (snapshot, error) {
	s := snapshot{typ: t, stage: g.Stage(stage(t))}
	switch t {
	case record.Memory:
		s.delta = delta.New(delta.Heap)
	case record.Mutex:
		s.delta = delta.New(delta.Mutex)
	case record.Block:
		s.delta = delta.New(delta.Block)
		s.delta.LeaveOut = ownGoroutine // which wait most of the time, longer than any of an idle service
	case record.Goroutine:
		s.profile = "goroutine"
	case record.GoroutineLeak:
		s.profile = "goroutineleak"
	default:
		return s, fmt.Errorf("profile type %q: the runtime has no such profile", t)
	}
	return s, nil
}

// agentPath is the path of the package agent, whatever this module is called.
var agentPath = strings.TrimSuffix(reflect.TypeFor[snapshot]().PkgPath(), "/internal/capture")

// ownGoroutine reports whether goroutines that begin in a function are the agent's.
func ownGoroutine(function string) bool {
	rest, ok := strings.CutPrefix(function, agentPath)
	return ok && (strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "/"))
}

// capture returns the compressed profile of a window that ends now, and how many of its stacks have one sample together.
func (s snapshot) capture(begun, end time.Time) (profile []byte, summed int, err error) {
	if s.delta != nil {
		p, err := s.delta.Next(begun, end)
		if err != nil {
			return nil, 0, err
		}
		return pprofwire.Gzip(p.Raw), p.Summed, nil
	}
	var zipped bytes.Buffer
	if err := pprof.Lookup(s.profile).WriteTo(&zipped, 0); err != nil {
		return nil, 0, err
	}
	raw, err := pprofwire.Gunzip(zipped.Bytes(), maxProfileBytes)
	if err != nil {
		return nil, 0, fmt.Errorf("decompress: %w", err)
	}
	if raw, err = pprofwire.Stamp(raw, begun, end); err != nil {
		return nil, 0, fmt.Errorf("read: %w", err)
	}
	return pprofwire.Gzip(raw), 0, nil
}

// run ends a window at every boundary, and tries to get the CPU profiler back every second while the
// service itself holds it.
func (c *Capturer) run(begun time.Time) {
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
			case asked := <-c.ends:
				end.Stop()
				begun = c.endAsked(begun, asked)
				break waiting
			case <-end.C:
				begun = c.end(begun)
				break waiting
			}
		}
	}
}

// end ends the windows that began at begun, and returns when the next ones have begun.
func (c *Capturer) end(begun time.Time) time.Time {
	c.cpu.next()
	now := time.Now()
	c.snapshots(begun, now)
	return now
}

// endAsked is end for windows that get more labels.
func (c *Capturer) endAsked(begun time.Time, asked end) time.Time {
	defer close(asked.done)
	c.label(asked.labels)
	defer c.label(nil)
	return c.end(begun)
}

// label gives more labels to the windows that end from here on.
func (c *Capturer) label(labels map[string]string) {
	c.emitting.Lock()
	defer c.emitting.Unlock()
	c.extra = labels
}

// EndWindows ends the open windows of all types now, and returns when their records have been emitted, with more labels; the
// next ones are as short as it takes to end when they would have. It waits until ctx is done. A profile that was requested
// and one that the service takes itself are left alone.
func (c *Capturer) EndWindows(ctx context.Context, labels map[string]string) error {
	asked := end{labels, make(chan struct{})}
	select {
	case c.ends <- asked:
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end the windows of the profiles: %w", context.Cause(ctx))
	}
	select {
	case <-asked.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end the windows of the profiles: %w", context.Cause(ctx))
	}
}

// boundary returns when the window that began at t ends. A timer may fire a little before the wall clock reaches the
// boundary: the rest of that window belongs to the next.
func (c *Capturer) boundary(t time.Time) time.Time { return Boundary(t, c.o.Window, c.o.Instance) }

// Boundary returns the end of the window of an instance that begins at t.
func Boundary(t time.Time, window time.Duration, instance string) time.Time {
	late := offset(instance, window)
	return t.Add(window/50 - late).Truncate(window).Add(window + late)
}

// offset returns how long after the multiples of its length an instance's windows end.
func offset(instance string, window time.Duration) time.Duration {
	h := fnv.New64a()
	_, _ = h.Write([]byte(instance)) // never fails
	// Instances that differ in their last digit alone differ in the lowest bits: these are spread over the window.
	const golden = 0x9e3779b97f4a7c15
	part, _ := bits.Mul64(h.Sum64()*golden, uint64(window))
	return time.Duration(part).Truncate(time.Millisecond)
}

// snapshots captures every type that is read at the end of a window.
func (c *Capturer) snapshots(begun, end time.Time) {
	for _, s := range c.snap {
		if s.typ == record.Goroutine && runtime.NumGoroutine() > MaxGoroutines {
			c.skipped(s.typ, ReasonGoroutines)
			continue
		}
		var profile []byte
		var summed int
		var err error
		t := time.Now()
		switch ok := s.stage.Run(func() { profile, summed, err = s.capture(begun, end) }); {
		case !ok:
			c.skipped(s.typ, ReasonPanic)
		case err != nil:
			c.skipped(s.typ, ReasonError)
			c.o.Logger.Warn("capture of a profile failed", "type", s.typ, "error", err)
		default:
			if summed > 0 {
				c.mu.Lock()
				c.stats.Summed[s.typ] += int64(summed)
				c.mu.Unlock()
			}
			c.emit(s.typ, begun, end, profile, time.Since(t))
		}
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
	labels := c.o.Labels
	if len(c.extra) > 0 {
		labels = map[string]string{}
		maps.Copy(labels, c.o.Labels)
		maps.Copy(labels, c.extra)
	}
	c.o.Guard.Stage("emit").Try(func() {
		c.o.Emit(record.Record{
			Meta:    record.Meta{Service: c.o.Service, Type: t, Start: begun, End: end, Labels: labels},
			Profile: profile,
		})
	})
}

func (c *Capturer) skipped(t record.Type, reason string) {
	c.mu.Lock()
	c.stats.Skipped[Skip{t, reason}]++
	c.mu.Unlock()
}

// CPUProfile takes a CPU profile of length d on request and writes it to w, gzip-compressed. If CPU windows are captured,
// the open one ends first, and the requested profile is emitted as a window too, so nothing is missing on either side.
// It ends early, with the samples so far, when ctx or the capturer does.
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
	s := Stats{Captured: maps.Clone(c.stats.Captured), Skipped: maps.Clone(c.stats.Skipped), Summed: maps.Clone(c.stats.Summed)}
	s.CPUGap, s.CPURotation = c.cpu.gapSoFar(), c.cpu.rotationSoFar()
	if n := c.cpu.refused.Load(); n > 0 {
		s.Skipped[Skip{record.CPU, ReasonBusy}] = n
	}
	return s
}

// Stop captures the last window of every type and joins the capturer's goroutine. It may be called more than once and
// at the same time; each call waits, until its ctx is done.
func (c *Capturer) Stop(ctx context.Context) error {
	c.once.Do(func() { close(c.stop) })
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("capture of the last profiles: %w", context.Cause(ctx))
	}
}
