package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"go.uber.org/goleak"

	"spanflame/agent/internal/guard"
	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink collects records.
type sink struct {
	mu      sync.Mutex
	records []record.Record
}

func (s *sink) emit(r record.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = append(s.records, r)
}

func (s *sink) of(t record.Type) []record.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rs []record.Record
	for _, r := range s.records {
		if r.Type == t {
			rs = append(rs, r)
		}
	}
	return rs
}

var everyType = []record.Type{record.CPU, record.Memory, record.Mutex, record.Block, record.Goroutine}

func start(t *testing.T, window time.Duration, types ...record.Type) (*Capturer, *sink) {
	t.Helper()
	s := &sink{}
	c, err := Start(Options{
		Service: "svc", Labels: map[string]string{"service_version": "1"}, Types: types, Window: window,
		Emit: s.emit, Guard: guard.New(slog.New(slog.DiscardHandler)), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c, s
}

func parse(t *testing.T, b []byte) *profile.Profile {
	t.Helper()
	p, err := profile.ParseData(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

//go:noinline
func allocateForTest(n int) [][]byte {
	var kept [][]byte
	for range n {
		kept = append(kept, make([]byte, 1<<20))
	}
	return kept
}

// total sums sample type st over the samples that have a function whose name contains fn.
func total(p *profile.Profile, st, fn string) int64 {
	index := -1
	for i, s := range p.SampleType {
		if s.Type == st {
			index = i
		}
	}
	var sum int64
	for _, s := range p.Sample {
		if hasFunction(s, fn) {
			sum += s.Value[index]
		}
	}
	return sum
}

func hasFunction(s *profile.Sample, fn string) bool {
	for _, l := range s.Location {
		for _, line := range l.Line {
			if strings.Contains(line.Function.Name, fn) {
				return true
			}
		}
	}
	return false
}

func TestStopCapturesTheLastWindowOfEveryType(t *testing.T) {
	before := time.Now()
	c, s := start(t, time.Hour, everyType...)
	kept := allocateForTest(64)
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, typ := range everyType {
		rs := s.of(typ)
		if len(rs) != 1 {
			t.Errorf("%s: %d records, want 1", typ, len(rs))
			continue
		}
		r := rs[0]
		if r.Service != "svc" || r.Labels["service_version"] != "1" {
			t.Errorf("%s: record of %q with labels %v", typ, r.Service, r.Labels)
		}
		if r.Start.Before(before) || r.End.Before(r.Start) || r.End.After(time.Now()) {
			t.Errorf("%s: window %v to %v", typ, r.Start, r.End)
		}
		if n := c.Stats().Captured[typ]; n.Profiles != 1 || n.Bytes != int64(len(r.Profile)) {
			t.Errorf("%s: counted %+v, want one profile of %d bytes", typ, n, len(r.Profile))
		}
		parse(t, r.Profile)
	}
	_ = kept
}

func TestDeltaBeginsAtStart(t *testing.T) {
	old := allocateForTest(64)
	runtime.GC() // the profile is as of the last but one
	runtime.GC()
	c, s := start(t, time.Hour, record.Memory)
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := total(parse(t, s.of(record.Memory)[0].Profile), "alloc_space", "allocateForTest"); got != 0 {
		t.Errorf("the first window holds %d bytes that were allocated before it", got)
	}
	_ = old
}

// A goroutine of the agent waits for all of each window, which says nothing about the service.
func TestBlocksOfTheAgentAreLeftOut(t *testing.T) {
	runtime.SetBlockProfileRate(1)
	defer runtime.SetBlockProfileRate(0)
	c, s := start(t, time.Hour, record.Block)
	begun, done := make(chan bool), make(chan bool)
	go func() { // in this package, and so of the agent
		waitForTest(begun)
		close(done)
	}()
	var group sync.WaitGroup
	group.Go(func() { waitForTest(done) })
	time.AfterFunc(10*time.Millisecond, func() { close(begun) })
	waitForTest(done) // on the goroutine of package testing
	group.Wait()
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	p := parse(t, s.of(record.Block)[0].Profile)
	if total(p, "delay", "waitForTest") == 0 {
		t.Error("the profile has no wait of another goroutine")
	}
	for _, sample := range p.Sample {
		var stack []string
		for _, l := range slices.Backward(sample.Location) {
			for _, line := range slices.Backward(l.Line) {
				stack = append(stack, line.Function.Name)
			}
		}
		if ownGoroutine(stack[0]) || strings.HasPrefix(stack[0], "sync.(*WaitGroup).Go.") && ownGoroutine(stack[1]) {
			t.Errorf("the profile has %v of a goroutine that began in %s", sample.Value, stack[0])
		}
	}
	if ownGoroutine("spanflame/agents.Run") || !ownGoroutine("spanflame/agent.Start.func1") {
		t.Error("by its name another package is the agent's, or it is not")
	}
}

//go:noinline
func waitForTest(ch chan bool) { <-ch }

func TestStacksAboveTheLimitAreCounted(t *testing.T) {
	c, s := start(t, time.Hour, record.Memory, record.Goroutine)
	kept := allocateForTest(64)
	runtime.GC()
	runtime.GC()
	for _, snap := range c.snap {
		if snap.typ == record.Memory {
			snap.delta.MaxSamples = 0
		}
	}
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	p := parse(t, s.of(record.Memory)[0].Profile)
	if n := c.Stats().Summed; len(p.Sample) != 1 || n[record.Memory] == 0 || len(n) != 1 {
		t.Errorf("%d samples, %v stacks are summed", len(p.Sample), n)
	}
	if got := total(p, "alloc_space", "[other stacks]"); got < 16<<20 { // a quarter: not every object is sampled
		t.Errorf("%d bytes in the sample, want about the 64 MiB that were allocated", got)
	}
	runtime.KeepAlive(kept)
}

func TestWindowsFollowEachOther(t *testing.T) {
	_, s := start(t, time.Second, record.Goroutine)
	deadline := time.Now().Add(time.Minute)
	for len(s.of(record.Goroutine)) < 3 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	rs := s.of(record.Goroutine)
	if len(rs) < 3 {
		t.Fatalf("%d windows in a minute, want one a second", len(rs))
	}
	for i := 1; i < len(rs); i++ {
		if !rs[i].Start.Equal(rs[i-1].End) {
			t.Errorf("window %d begins at %v, the one before ended at %v", i, rs[i].Start, rs[i-1].End)
		}
	}
}

// TestBoundary checks that all windows end at the instance's offset after a multiple of their length.
// TestEndWindows: windows can end early. They have one label more, the next ones begin where they end, and nothing is missing.
func TestEndWindows(t *testing.T) {
	c, s := start(t, 10*time.Minute, everyType...)
	more := map[string]string{"why": "asked"}
	if err := c.EndWindows(t.Context(), more); err != nil {
		t.Fatal(err)
	}
	for _, typ := range everyType {
		if n := len(s.of(typ)); n != 1 {
			t.Errorf("%d records of type %s when it returns", n, typ)
		}
	}
	if err := c.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	for _, typ := range everyType {
		rs := s.of(typ)
		if len(rs) != 2 {
			t.Fatalf("%d records of type %s", len(rs), typ)
		}
		if !maps.Equal(rs[0].Labels, map[string]string{"service_version": "1", "why": "asked"}) || !maps.Equal(rs[1].Labels, c.o.Labels) {
			t.Errorf("%s has the labels %v, then %v", typ, rs[0].Labels, rs[1].Labels)
		}
		if gap := rs[1].Start.Sub(rs[0].End); typ != record.CPU && gap != 0 {
			t.Errorf("%s: the second window begins %v after the end of the first", typ, gap)
		}
	}
	if err := c.EndWindows(t.Context(), more); err != nil { // there are none any more
		t.Error(err)
	}
}

// TestEndWindowsHonoursItsDeadline: a receiver that hangs delays nobody who asks for the end of windows.
func TestEndWindowsHonoursItsDeadline(t *testing.T) {
	release, emitting := make(chan struct{}), make(chan struct{}, 10)
	c, err := Start(Options{
		Service: "svc", Types: []record.Type{record.Goroutine}, Window: 10 * time.Minute, Logger: slog.New(slog.DiscardHandler),
		Emit: func(record.Record) { emitting <- struct{}{}; <-release },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-emitting; cancel() }()
	for range 2 { // while it hangs, and before it begins
		if err := c.EndWindows(ctx, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	}
	close(release)
	if err := c.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestBoundary(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse("15:04:05.000", s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, instance := range []string{"", "host", "host-1"} {
		c := &Capturer{o: Options{Window: 15 * time.Second, Instance: instance}}
		late := offset(instance, c.o.Window)
		for _, tt := range []struct{ begun, end string }{
			{"10:00:00.000", "10:00:15.000"},
			{"10:00:07.300", "10:00:15.000"},
			{"10:00:15.001", "10:00:30.000"},
			{"10:00:14.990", "10:00:30.000"}, // fired early: not a window of 10 ms
		} {
			if got := c.boundary(at(tt.begun).Add(late)); !got.Equal(at(tt.end).Add(late)) {
				t.Errorf("%q: window begun %v after %s ends at %v, want as long after %s", instance, late, tt.begun, got, tt.end)
			}
		}
	}
}

// TestWindowsOfAFleetAreSpread: in each tenth of a window, about a tenth of the instances end theirs, whatever their names.
func TestWindowsOfAFleetAreSpread(t *testing.T) {
	const window = 15 * time.Second
	for _, names := range []string{"pod-%d", "10.0.3.%d", "shop-7d9f8b6c5-%05x", "%d-host"} {
		var ends [10]int
		for i := range 1000 {
			late := offset(fmt.Sprintf(names, i), window)
			if late < 0 || late >= window {
				t.Fatalf("an offset of %v", late)
			}
			ends[late*10/window]++
		}
		for tenth, n := range ends {
			if n < 50 || n > 150 {
				t.Errorf("%s: %d of 1000 windows end in tenth %d: %v", names, n, tenth, ends)
			}
		}
	}
}

func TestCPUProfileForSomebodyElse(t *testing.T) {
	c, s := start(t, time.Hour, record.CPU)
	var buf bytes.Buffer
	if err := c.CPUProfile(context.Background(), &buf, 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	got := parse(t, buf.Bytes())
	if got.SampleType[1].Type != "cpu" {
		t.Errorf("sample types %v, want cpu", got.SampleType)
	}
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	rs := s.of(record.CPU)
	if len(rs) != 3 {
		t.Fatalf("%d windows, want 3: before, during and after", len(rs))
	}
	if !bytes.Equal(rs[1].Profile, buf.Bytes()) {
		t.Error("the window in the middle is not the profile that was asked for")
	}
}

func TestCPUProfileWhereNoWindowsAreTaken(t *testing.T) {
	c, s := start(t, time.Hour, record.Goroutine)
	for range 2 {
		var buf bytes.Buffer
		if err := c.CPUProfile(context.Background(), &buf, 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		parse(t, buf.Bytes())
	}
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := len(s.of(record.CPU)); n != 0 {
		t.Errorf("%d CPU windows emitted, want none", n)
	}
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Fatalf("the service's own profile afterwards: %v", err)
	}
	pprof.StopCPUProfile()
}

func TestOneForegroundProfileAtATime(t *testing.T) {
	c, _ := start(t, time.Hour, record.CPU)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- c.CPUProfile(ctx, &bytes.Buffer{}, time.Hour) }()
	for !lent(c) {
		time.Sleep(time.Millisecond)
	}
	if err := c.CPUProfile(context.Background(), &bytes.Buffer{}, time.Second); !errors.Is(err, ErrBusy) {
		t.Errorf("a second profile: %v, want ErrBusy", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("cancelled profile: %v", err)
	}
}

func lent(c *Capturer) bool {
	c.cpu.mu.Lock()
	defer c.cpu.mu.Unlock()
	return c.cpu.lent
}

func TestStopEndsAForegroundProfile(t *testing.T) {
	c, s := start(t, time.Hour, record.CPU)
	var buf bytes.Buffer
	ended := make(chan error)
	go func() { ended <- c.CPUProfile(context.Background(), &buf, time.Hour) }()
	for !lent(c) {
		time.Sleep(time.Millisecond)
	}
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := len(s.of(record.CPU)); n != 2 {
		t.Errorf("%d windows when Stop returned, want 2", n)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	parse(t, buf.Bytes())
	if err := c.CPUProfile(context.Background(), &buf, time.Second); !errors.Is(err, ErrBusy) {
		t.Errorf("a profile after Stop: %v, want ErrBusy", err)
	}
}

func TestTheServicesOwnCPUProfileIsLeftAlone(t *testing.T) {
	var own bytes.Buffer
	if err := pprof.StartCPUProfile(&own); err != nil {
		t.Fatal(err)
	}
	c, s := start(t, time.Hour, record.CPU)
	for c.Stats().Skipped[Skip{record.CPU, ReasonBusy}] == 0 {
		time.Sleep(time.Millisecond)
	}
	pprof.StopCPUProfile()
	parse(t, own.Bytes())
	for !running(c) { // the capturer tries once a second
		time.Sleep(10 * time.Millisecond)
	}
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := len(s.of(record.CPU)); n != 1 {
		t.Errorf("%d CPU windows after the service's own profile ended, want 1", n)
	}
	if st := c.Stats(); st.CPUGap <= 0 {
		t.Errorf("gap %v, want the time that the service held the profiler", st.CPUGap)
	}
}

func running(c *Capturer) bool {
	c.cpu.mu.Lock()
	defer c.cpu.mu.Unlock()
	return !c.cpu.begun.IsZero()
}

func TestTooManyGoroutines(t *testing.T) {
	c, s := start(t, time.Hour, record.Goroutine)
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range MaxGoroutines + 1 {
		wg.Go(func() { <-release })
	}
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	close(release)
	wg.Wait()
	if n := len(s.of(record.Goroutine)); n != 0 {
		t.Errorf("%d goroutine profiles of more than %d goroutines, want none", n, MaxGoroutines)
	}
	if n := c.Stats().Skipped[Skip{record.Goroutine, ReasonGoroutines}]; n != 1 {
		t.Errorf("counted %d skipped, want 1", n)
	}
}

func TestStopTwiceAndAtOnce(t *testing.T) {
	c, s := start(t, time.Hour, everyType...)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := c.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(s.of(record.Memory)); n != 1 {
		t.Errorf("%d last windows, want 1", n)
	}
}

func TestStopHonoursItsDeadline(t *testing.T) {
	hold := make(chan struct{})
	c, err := Start(Options{
		Types: []record.Type{record.Goroutine}, Window: time.Hour,
		Emit: func(record.Record) { <-hold }, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Stop(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Stop: %v, want context.Canceled", err)
	}
	close(hold)
	if err := c.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestUnknownType(t *testing.T) {
	_, err := Start(Options{Types: []record.Type{"nonsense"}})
	if err == nil || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("error %v, want one that names the type", err)
	}
}

func TestStatsWhileAProfileIsEmitted(t *testing.T) {
	var c *Capturer
	var started sync.WaitGroup
	started.Add(1)
	asked := make(chan Stats, 1)
	var err error
	c, err = Start(Options{
		Service: "svc", Types: []record.Type{record.CPU}, Window: time.Hour, Logger: slog.New(slog.DiscardHandler),
		Emit: func(record.Record) {
			started.Wait()
			asked <- c.Stats() // callers of Stats must not wait for a slow receiver
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	started.Done()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // locking a mutex twice would block indefinitely
	defer cancel()
	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if n := (<-asked).Captured[record.CPU].Profiles; n != 1 {
		t.Errorf("%d CPU profiles captured, want 1", n)
	}
}

func TestProfilesCarryTheirWindow(t *testing.T) {
	c, s := start(t, time.Hour, everyType...)
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, typ := range everyType {
		r := s.of(typ)[0]
		p := parse(t, r.Profile)
		off := time.Unix(0, p.TimeNanos).Sub(r.Start)
		if typ == record.CPU { // the runtime notes the start itself, a moment after
			if off < 0 || p.TimeNanos > r.End.UnixNano() {
				t.Errorf("%s: the profile begins %v after its window, want within it", typ, off)
			}
			continue
		}
		if off != 0 || time.Duration(p.DurationNanos) != r.End.Sub(r.Start) {
			t.Errorf("%s: the profile begins %v after its window and is %v long; the window is %v", typ, off, time.Duration(p.DurationNanos), r.End.Sub(r.Start))
		}
	}
}

func TestAWindowIsEmittedAfterTheNextHasBegun(t *testing.T) {
	var emitted, profiled int
	p := newCPUProfiler(true, guard.New(slog.New(slog.DiscardHandler)).Stage("cpu"), func(_, _ time.Time, b []byte) {
		emitted++
		if err := pprof.StartCPUProfile(io.Discard); err != nil {
			profiled++
			return
		}
		pprof.StopCPUProfile()
	})
	p.start(time.Now())
	p.next()
	p.next()
	if emitted != 2 || profiled != 2 {
		t.Errorf("%d windows emitted, %d while the next was open; want 2 and 2", emitted, profiled)
	}
	if p.rotationSoFar() <= 0 || p.gapSoFar() != 0 {
		t.Errorf("%v between windows and %v without the profiler, want the first alone", p.rotationSoFar(), p.gapSoFar())
	}
	before := p.rotationSoFar()
	p.close()
	if emitted != 3 || profiled != 2 || p.rotationSoFar() != before {
		t.Errorf("after the last window: %d windows emitted, %v between windows, want 3 and still %v", emitted, p.rotationSoFar(), before)
	}
}

func TestStampChangesTheTimesAlone(t *testing.T) {
	var gz bytes.Buffer
	if err := pprof.Lookup("allocs").WriteTo(&gz, 0); err != nil {
		t.Fatal(err)
	}
	begun := time.Unix(1_800_000_000, 5)
	raw, err := pprofwire.Gunzip(gz.Bytes(), maxProfileBytes)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pprofwire.Stamp(raw, begun, begun.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	want, got := parse(t, gz.Bytes()), parse(t, pprofwire.Gzip(out))
	want.TimeNanos, want.DurationNanos = begun.UnixNano(), int64(time.Minute)
	if len(got.Sample) == 0 || got.String() != want.String() {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestCaptureForcesNoGarbageCollection(t *testing.T) {
	forced := func() uint32 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.NumForcedGC
	}
	before := forced()
	c, s := start(t, time.Second, everyType...)
	for deadline := time.Now().Add(time.Minute); len(s.of(record.Memory)) < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no second window in a minute")
		}
	}
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := forced() - before; n != 0 {
		t.Errorf("%d garbage collections were forced, want none", n)
	}
}

func FuzzStamp(f *testing.F) {
	var gz bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&gz, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(gz.Bytes())
	f.Add([]byte("no profile"))
	begun := time.Unix(1_800_000_000, 5)
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := pprofwire.Stamp(b, begun, begun.Add(time.Second))
		if err != nil {
			return
		}
		p, err := profile.ParseData(out)
		if err != nil {
			return // nor was it one before
		}
		if p.TimeNanos != begun.UnixNano() || p.DurationNanos != int64(time.Second) {
			t.Errorf("stamped with %d and %d", p.TimeNanos, p.DurationNanos)
		}
	})
}
