// Package leaks finds stacks whose memory, or whose goroutines, grow and do not stop growing, in a series of
// heap and goroutine profiles of one service. The command "spanflame leaks", the viewer and CI gates use it.
//
// Growth alone is no leak: caches fill up, a process warms up, memory follows the load, and garbage waits to
// be collected. A stack is suspected if its floor rises throughout the series, more steadily than chance allows,
// still does so at the end, and does not merely follow the load (docs/leaks.md has the methods and their
// sources). What grew for another reason is reported beside the suspects, with that reason.
//
// It reads no files and knows no network: the caller brings the windows (package input). It cannot tell what
// keeps memory alive, only who allocated it.
package leaks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// Kind is what a stack holds.
type Kind string

// Kinds of leaks.
const (
	Heap      Kind = "heap"      // bytes in use, as of the last garbage collection of each window
	Goroutine Kind = "goroutine" // goroutines
)

const (
	// MinWindows is how many profiles of one run of a process it takes: of fewer, no growth is rare enough
	// among hundreds of stacks to be told from chance.
	MinWindows = 12

	// maxPoints bounds what is kept of a series, at 16 to 64 bytes each: its stacks, with those above them, and a value
	// for each stack of each window.
	maxPoints = 32 << 20

	// goroutineBytes is what a goroutine takes at least: its first stack. What it keeps alive comes on top and
	// is seen in the heap.
	goroutineBytes = 2048

	defaultAlpha     = 0.01
	defaultMinGrowth = 256 << 10
	minGoroutines    = 8  // that a stack must have gained
	maxDismissed     = 20 // and as many undecided
)

// Options is how to look. Its zero value is the default.
type Options struct {
	// Alpha is the rate of false discoveries to allow among all stacks, 0.01 by default.
	Alpha float64
	// MinGrowth is how many bytes a stack must have gained over the series, 256 KiB by default.
	MinGrowth int64
	// Limit is how much memory the process may take, in bytes; 0 if that is not known.
	Limit int64
	// Work gives the work done in a window, such as requests, by which growth that follows the load is told
	// apart. By default it is the bytes allocated, which memory profiles have too. A profile that tells no length
	// is asked for from the end of the one before it, and the first such one not at all.
	Work func(record.Meta) (float64, error)
	// Progress, if it is not nil, is called after each window with the number of them.
	Progress func(windows int)
}

// Validate says which option is wrong.
func (o Options) Validate() error {
	switch {
	case o.Alpha < 0 || !(o.Alpha < 1):
		return fmt.Errorf("alpha %g: want a number between 0 and 1", o.Alpha)
	case o.MinGrowth < 0:
		return fmt.Errorf("smallest growth %d bytes: want 0 or more", o.MinGrowth)
	case o.Limit < 0:
		return fmt.Errorf("limit %d bytes: want 0 or more", o.Limit)
	}
	return nil
}

// Report is what was found.
type Report struct {
	Processes []Process   `json:"processes"`
	Suspects  []Suspect   `json:"suspects"`            // by bytes a minute
	Undecided []Suspect   `json:"undecided,omitempty"` // grow as a leak does, but too few profiles tell it from chance; by Q
	Dismissed []Dismissed `json:"dismissed,omitempty"` // grew, but not as a leak does; by their growth
	Alpha     float64     `json:"alpha"`               // rate of false discoveries among the suspects
	Limit     int64       `json:"limit,omitempty"`     // bytes
	Notes     []string    `json:"notes,omitempty"`
}

// Process is one process, as its service and labels tell it from others.
type Process struct {
	Service    string            `json:"service,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Heap       int               `json:"heap_windows"` // that were looked at: those of its longest run
	Goroutines int               `json:"goroutine_windows"`
	Start      time.Time         `json:"start"`
	End        time.Time         `json:"end"`
	Restarts   []time.Time       `json:"restarts,omitempty"`
	InUse      int64             `json:"in_use"` // bytes at the end
	// BytesPerMinute is what its suspects gain together.
	BytesPerMinute float64 `json:"bytes_per_minute"`
	// OverLimit tells whether more than the limit was in use at the end.
	OverLimit bool `json:"over_limit,omitempty"`
	// LimitAt is when the limit is reached at that rate, if it is not yet but will be.
	LimitAt time.Time `json:"limit_at,omitzero"`
}

// Suspect is a stack that leaks as far as one can tell.
type Suspect struct {
	Process int      `json:"process"` // index
	Kind    Kind     `json:"kind"`
	Site    string   `json:"site"`  // the innermost function that is not of the standard library
	Stack   []string `json:"stack"` // outermost function first
	// BytesPerMinute is the rate since it began, with its confidence interval. A goroutine counts for the
	// 2 KiB that it takes at least.
	BytesPerMinute float64 `json:"bytes_per_minute"`
	Low            float64 `json:"bytes_per_minute_low"`
	High           float64 `json:"bytes_per_minute_high"`
	// PerMinute is the rate in goroutines, for those.
	PerMinute float64 `json:"per_minute,omitempty"`
	// Began is when the growth began. It began no later where that is the start of the first window.
	Began time.Time `json:"began"`
	Grown int64     `json:"grown"` // bytes since the start of the series
	InUse int64     `json:"in_use"`
	// P is the probability that a stack without a trend rises as steadily, and Q the rate of false discoveries
	// among all stacks that do.
	P float64 `json:"p"`
	Q float64 `json:"q"`
}

// Dismissed is a stack that grew for another reason.
type Dismissed struct {
	Process int      `json:"process"`
	Kind    Kind     `json:"kind"`
	Site    string   `json:"site"`
	Stack   []string `json:"stack"`
	Grown   int64    `json:"grown"` // bytes
	Reason  string   `json:"reason"`
}

// errNothing says that there were profiles, but none to look for leaks in.
var errNothing = errors.New("no profile has inuse_space or goroutines: save heap or goroutine profiles")

// Find reads all windows, in the order of time, and looks for leaks. Windows of other profiles are passed over.
// It fails at the first window that has an error.
func Find(ctx context.Context, windows iter.Seq2[profiles.Window, error], o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("leaks: %w", err)
	}
	o.Alpha = cmp.Or(o.Alpha, defaultAlpha)
	o.MinGrowth = cmp.Or(o.MinGrowth, defaultMinGrowth)
	r := newReader(o)
	for w, err := range windows {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = r.add(w)
		}
		if err != nil {
			return nil, fmt.Errorf("leaks: %w", err)
		}
	}
	switch {
	case r.read == 0:
		return nil, fmt.Errorf("leaks: %w", profiles.ErrNone)
	case len(r.processes) == 0:
		return nil, fmt.Errorf("leaks: %w", errNothing)
	}
	return r.report()
}

// report judges all processes.
func (r *reader) report() (*Report, error) {
	report := &Report{Alpha: r.o.Alpha, Limit: r.o.Limit}
	var found []*growth
	looked := false
	for i, p := range r.processes {
		out := Process{Service: p.service, Labels: p.labels}
		for _, kind := range []Kind{Heap, Goroutine} {
			t := p.timelines[kind]
			if t == nil {
				continue
			}
			run, restarts := t.longestRun()
			n := run.end - run.start
			least := float64(r.o.MinGrowth)
			switch kind {
			case Heap:
				out.Heap, out.Restarts = n, restarts
				out.InUse = int64(t.total[run.end-1])
			case Goroutine:
				out.Goroutines = n
				least = minGoroutines
				if len(out.Restarts) == 0 {
					out.Restarts = restarts
				}
			}
			if out.Start.IsZero() || t.starts[run.start].Before(out.Start) {
				out.Start = t.starts[run.start]
			}
			if end := t.ends[run.end-1]; end.After(out.End) {
				out.End = end
			}
			if n < MinWindows {
				report.Notes = append(report.Notes, fmt.Sprintf("%s: %d %s profiles of one run are too few to tell growth from chance: it takes %d", out.name(), n, kind, MinWindows))
				continue
			}
			looked = true
			load := p.load(run, t)
			if load == nil {
				report.Notes = append(report.Notes, fmt.Sprintf("%s: nothing tells the load beside the %s profiles, so memory that follows it may be suspected", out.name(), kind))
			}
			for _, g := range t.growing(run, load, least) {
				g.process, g.kind = i, kind
				found = append(found, g)
			}
		}
		report.Processes = append(report.Processes, out)
	}
	if !looked {
		return nil, fmt.Errorf("leaks: %s", strings.Join(report.Notes, "; "))
	}
	correct(found)
	for _, g := range found {
		r.sort(report, g)
	}
	slices.SortStableFunc(report.Suspects, func(a, b Suspect) int { return cmp.Compare(b.BytesPerMinute, a.BytesPerMinute) })
	slices.SortStableFunc(report.Undecided, func(a, b Suspect) int { return cmp.Compare(a.Q, b.Q) })
	report.Undecided = report.Undecided[:min(len(report.Undecided), maxDismissed)]
	slices.SortStableFunc(report.Dismissed, func(a, b Dismissed) int { return cmp.Compare(b.Grown, a.Grown) })
	report.Dismissed = report.Dismissed[:min(len(report.Dismissed), maxDismissed)]
	for _, s := range report.Suspects {
		report.Processes[s.Process].BytesPerMinute += s.BytesPerMinute
	}
	for i := range report.Processes {
		report.Processes[i].forecast(r.o.Limit)
	}
	return report, nil
}

// sort puts a stack that grew among the suspects, the undecided or the dismissed.
func (r *reader) sort(report *Report, g *growth) {
	bytes := 1.0
	if g.kind == Goroutine {
		bytes = goroutineBytes
	}
	grown := int64(g.grown * bytes)
	path := r.table.Path(g.node)
	if g.reason != "" {
		report.Dismissed = append(report.Dismissed, Dismissed{Process: g.process, Kind: g.kind, Site: site(path), Stack: path, Grown: grown, Reason: g.reason})
		return
	}
	s := Suspect{
		Process: g.process, Kind: g.kind, Site: site(path), Stack: path,
		BytesPerMinute: g.slope * bytes, Low: g.low * bytes, High: g.high * bytes,
		Began: g.began, Grown: grown, InUse: int64(g.last * bytes), P: g.p, Q: g.q,
	}
	if g.kind == Goroutine {
		s.PerMinute = g.slope
	}
	if g.q > r.o.Alpha {
		report.Undecided = append(report.Undecided, s)
		return
	}
	report.Suspects = append(report.Suspects, s)
}

// forecast says when the limit is reached.
func (p *Process) forecast(limit int64) {
	p.OverLimit = limit > 0 && p.InUse > limit
	if limit == 0 || p.OverLimit || p.BytesPerMinute <= 0 {
		return
	}
	minutes := float64(limit-p.InUse) / p.BytesPerMinute
	if d := minutes * float64(time.Minute); d < math.MaxInt64 {
		p.LimitAt = p.End.Add(time.Duration(d))
	}
}

// name is how a process is called in texts.
func (p Process) name() string {
	name := cmp.Or(p.Service, "the process")
	if len(p.Labels) == 0 {
		return name
	}
	var labels []string
	for _, label := range slices.Sorted(maps.Keys(p.Labels)) {
		labels = append(labels, fmt.Sprintf("%s=%q", label, p.Labels[label]))
	}
	return name + " {" + strings.Join(labels, ", ") + "}"
}
