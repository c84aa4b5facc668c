// Package guard keeps a panic in the agent from ending the process that the agent runs in. Every goroutine of the
// agent, and every function of the agent that the host or a library calls, does its work inside a Stage: a panic is
// recovered, counted, reported with its stack the first time, and listed as a degradation until the stage works
// again. All packages of the agent use it.
//
// It is not for errors, and it cannot help against what the runtime does not let a program recover from (running out
// of memory, concurrent writes of a map, a stack overflow), nor against a panic on a goroutine that a library starts.
package guard

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A stage pauses after a panic, twice as long after each one that follows without a success between.
const (
	firstPause = time.Minute
	maxPause   = time.Hour
)

// MetricDescription describes the metric spanflame.panics, which several packages report.
const MetricDescription = "Panics of the agent that were recovered, by stage."

// maxStack limits the part of a stack that is logged, in bytes.
const maxStack = 32 << 10

// Guard keeps the stages of one agent. A nil Guard recovers panics too, and reports them nowhere.
type Guard struct {
	mu     sync.Mutex
	log    *slog.Logger // nil until there is one
	stages map[string]*state
}

// New returns a guard that reports to the log.
func New(log *slog.Logger) *Guard { return &Guard{log: log, stages: map[string]*state{}} }

// LogTo has the guard report to the log. A guard that was made before there was one only counts until then.
func (g *Guard) LogTo(log *slog.Logger) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.log = log
}

// Stage is a part of the agent's work that can fail while the others continue. It may be used by several goroutines.
type Stage struct {
	name  string
	guard *Guard
	state *state
}

// state is the history of a stage.
type state struct {
	panics  int64
	row     atomic.Int64 // panics since the last success; changed under the guard's lock, and read without it where it is 0
	retryAt time.Time    // the end of the pause
}

// Stage returns the stage of that name, which is the same one each time. Names are metric attributes: take a few
// fixed ones, such as "capture mutex".
func (g *Guard) Stage(name string) *Stage {
	if g == nil {
		g = New(nil)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.stages[name]
	if s == nil {
		s = &state{}
		g.stages[name] = s
	}
	return &Stage{name, g, s}
}

// Panics returns the number of panics by stage. Stages that have had none are left out.
func (g *Guard) Panics() map[string]int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	panics := map[string]int64{}
	for name, s := range g.stages {
		if s.panics > 0 {
			panics[name] = s.panics
		}
	}
	return panics
}

// Degraded describes the stages that panicked and have not worked since, sorted by name.
func (g *Guard) Degraded() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var degraded []string
	for _, name := range slices.Sorted(maps.Keys(g.stages)) {
		if row := g.stages[name].row.Load(); row > 0 {
			degraded = append(degraded, fmt.Sprintf("%s: panics in a row: %d; the log has the stack of the first", name, row))
		}
	}
	return degraded
}

// Try calls f and reports whether it returned. A panic is recovered.
func (s *Stage) Try(f func()) (ok bool) {
	defer func() {
		if ok {
			s.succeeded()
		} else if v := recover(); v != nil { // else the goroutine exits
			s.failed(v)
		}
	}()
	f()
	return true
}

// Recover is Try without a call, for work that is too frequent for one or whose stack must not show it: a function defers
// it, and returns what its results are at that moment when it panics.
func (s *Stage) Recover() {
	if v := recover(); v != nil {
		s.failed(v)
	} else {
		s.succeeded()
	}
}

// Run is Try for work that comes up again and again: while the stage pauses after a panic, f is not called and the
// result is false. The first pause is a minute; each panic without a success between doubles it, up to an hour.
func (s *Stage) Run(f func()) bool { return !s.Paused() && s.Try(f) }

// Keep is Run for a loop: it calls f, which is to return when it has ended, and calls it again, after a pause, when
// it panicked. It returns when f does, or when stop is closed during a pause.
func (s *Stage) Keep(stop <-chan struct{}, f func()) {
	for !s.Try(f) {
		pause := time.NewTimer(time.Until(s.pausedUntil()))
		select {
		case <-pause.C:
		case <-stop:
			pause.Stop()
			return
		}
	}
}

// Paused reports whether the stage pauses after a panic.
func (s *Stage) Paused() bool { return s.state.row.Load() > 0 && time.Now().Before(s.pausedUntil()) }

func (s *Stage) pausedUntil() time.Time {
	s.guard.mu.Lock()
	defer s.guard.mu.Unlock()
	return s.state.retryAt
}

func (s *Stage) succeeded() {
	if s.state.row.Load() == 0 {
		return
	}
	s.guard.mu.Lock()
	row := s.state.row.Swap(0)
	s.state.retryAt = time.Time{}
	s.guard.mu.Unlock()
	if row > 0 {
		s.guard.report(slog.LevelInfo, "the agent's stage works again", "stage", s.name)
	}
}

// failed counts a panic with the value v. It is called while the stack of the panic can be read.
func (s *Stage) failed(v any) {
	s.guard.mu.Lock()
	s.state.panics++
	pause := min(maxPause, firstPause<<min(s.state.row.Load(), 10))
	s.state.row.Add(1)
	s.state.retryAt = time.Now().Add(pause)
	first := s.state.panics == 1
	s.guard.mu.Unlock()
	if !first {
		return
	}
	stack := debug.Stack()
	s.guard.report(slog.LevelError, "the agent panicked; the service is not affected, and the stage is tried again later (logged once)",
		"stage", s.name, "panic", fmt.Sprint(v), "retry", pause, "stack", strings.ToValidUTF8(string(stack[:min(len(stack), maxStack)]), ""))
}

// report logs. The host's handler may panic as well.
func (g *Guard) report(level slog.Level, message string, args ...any) {
	g.mu.Lock()
	log := g.log
	g.mu.Unlock()
	if log == nil {
		return
	}
	defer func() { _ = recover() }()
	log.Log(context.Background(), level, message, args...)
}
