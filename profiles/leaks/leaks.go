// Package leaks finds stacks whose memory or goroutines grow and do not stop growing, in a series of memory and
// goroutine profiles of one service. The command "spanflame leaks" and the viewer use it.
//
// Growth alone is no leak: caches fill up, a process warms up, memory follows the load, and garbage is not collected
// at once. A stack is suspected if its floor rises throughout the series, more steadily than by chance, still rises
// at the end, and does not merely follow the load (docs/leaks.md has the methods and their sources). Stacks that
// grew for another reason are reported with that reason.
//
// It reads no files and does not use the network: the caller passes the windows (package input). A profile shows which
// code allocated memory, not what keeps it alive.
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

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/profiles"
)

// Kind is the resource that a stack holds. Its values are the names of the profile types.
type Kind string

// Kinds of leaks.
const (
	Memory     Kind = "memory"     // bytes in use, as of the last garbage collection of each window
	Goroutines Kind = "goroutines" // goroutines
)

const (
	// MinWindows is the number of profiles of one run of a process that are required: with fewer, no growth is rare
	// enough among hundreds of stacks to be significant.
	MinWindows = 12

	// maxPoints limits the data kept of a series, at 16 to 64 bytes each: its stacks, with their parents, and a value
	// for each stack of each window.
	maxPoints = 32 << 20

	// goroutineBytes is the least memory of a goroutine: its first stack. The memory that it keeps alive is in the
	// memory profiles.
	goroutineBytes = 2048

	defaultAlpha     = 0.01
	defaultMinGrowth = 256 << 10
	minGoroutines    = 8  // smallest growth of a stack
	maxDismissed     = 20 // in a report; the same number of undecided ones
)

// Options configure Find. The zero value has all defaults.
type Options struct {
	// Alpha is the false discovery rate among all stacks, 0.01 by default.
	Alpha float64
	// MinGrowth is the smallest growth of a stack over the series that is tested, in bytes, 256 KiB by default.
	MinGrowth int64
	// Limit is the memory limit of the process in bytes, 0 if it is unknown.
	Limit int64
	// Work returns the work done in a window, such as the number of requests, to recognize growth that follows the
	// load. The default is the bytes allocated, which memory profiles contain. For a profile without a length it is
	// called with the time since the end of the previous profile, and not at all for the first.
	Work func(record.Meta) (float64, error)
	// Progress, if it is not nil, is called after each window with the number of windows so far.
	Progress func(windows int)
}

// Validate returns an error that names the wrong option.
func (o Options) Validate() error {
	switch {
	case o.Alpha < 0 || !(o.Alpha < 1):
		return fmt.Errorf("alpha %g: want a number between 0 and 1", o.Alpha)
	case o.MinGrowth < 0:
		return fmt.Errorf("minimum growth %d bytes: want 0 or more", o.MinGrowth)
	case o.Limit < 0:
		return fmt.Errorf("limit %d bytes: want 0 or more", o.Limit)
	}
	return nil
}

// Report is the result of Find.
type Report struct {
	Processes []Process   `json:"processes"`
	Suspects  []Suspect   `json:"suspects"`            // by bytes per minute
	Held      []Suspect   `json:"held,omitempty"`      // grew as a leak does until the load stopped, and stayed; by their growth
	Undecided []Suspect   `json:"undecided,omitempty"` // grow as a leak does, but not significantly; by Q
	Dismissed []Dismissed `json:"dismissed,omitempty"` // grew, but not as a leak does; by their growth
	Ended     []Ended     `json:"ended,omitempty"`     // runs that ended without a shutdown, and what they held; memory first, then the latest
	Alpha     float64     `json:"alpha"`               // false discovery rate among the suspects
	Limit     int64       `json:"limit,omitempty"`     // bytes
	Notes     []string    `json:"notes,omitempty"`
}

// Process is one process, identified by its service and labels.
type Process struct {
	Service          string            `json:"service,omitempty"`
	Labels           map[string]string `json:"labels,omitempty"`
	MemoryWindows    int               `json:"heap_windows"` // of its longest run, which is the one that is analyzed
	GoroutineWindows int               `json:"goroutine_windows"`
	Start            time.Time         `json:"start"`
	End              time.Time         `json:"end"`
	Restarts         []time.Time       `json:"restarts,omitempty"`
	InUse            int64             `json:"in_use"` // bytes at the end
	// BytesPerMinute is the sum of the growth rates of its suspects.
	BytesPerMinute float64 `json:"bytes_per_minute"`
	// OverLimit reports whether more than the limit was in use at the end.
	OverLimit bool `json:"over_limit,omitempty"`
	// LimitAt is when the limit is reached at that rate; zero if it is reached already or never.
	LimitAt time.Time `json:"limit_at,omitzero"`
}

// Suspect is a stack that probably leaks.
type Suspect struct {
	Process int      `json:"process"` // index
	Kind    Kind     `json:"kind"`
	Site    string   `json:"site"`  // the function to blame, see [wallprofile.Blamed]
	Stack   []string `json:"stack"` // outermost function first
	// BytesPerMinute is the growth rate since the growth began, with its confidence interval. A goroutine counts as
	// 2 KiB, the size of its first stack.
	BytesPerMinute float64 `json:"bytes_per_minute"`
	Low            float64 `json:"bytes_per_minute_low"`
	High           float64 `json:"bytes_per_minute_high"`
	// PerMinute is the growth rate of goroutines; 0 for memory.
	PerMinute float64 `json:"per_minute,omitempty"`
	// Began is when the growth began. If it is the start of the first window, the growth began then or earlier.
	Began time.Time `json:"began"`
	Grown int64     `json:"grown"` // bytes since the start of the series
	InUse int64     `json:"in_use"`
	// P is the probability that a stack without a trend rises as steadily, and Q the false discovery rate among all
	// stacks that rise as steadily.
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

// errNothing is the error for profiles in which no leak can be found.
var errNothing = errors.New("no profile has inuse_space or goroutines: record memory or goroutine profiles")

// Find reads all windows, in the order of time, and looks for leaks. Windows of other types are skipped. Find fails at
// the first window that has an error.
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
	case len(r.processes) == 0 && len(r.ended) == 0:
		return nil, fmt.Errorf("leaks: %w", errNothing)
	}
	return r.report()
}

// report analyzes all processes.
func (r *reader) report() (*Report, error) {
	report := &Report{Alpha: r.o.Alpha, Limit: r.o.Limit, Suspects: []Suspect{}} // not null in JSON
	var found []*growth
	looked := false
	for i, p := range r.processes {
		out := Process{Service: p.service, Labels: p.labels}
		for _, kind := range []Kind{Memory, Goroutines} {
			t := p.timelines[kind]
			if t == nil {
				continue
			}
			run, restarts := t.longestRun()
			n := run.end - run.start
			least := float64(r.o.MinGrowth)
			switch kind {
			case Memory:
				out.MemoryWindows, out.Restarts = n, restarts
				out.InUse = int64(t.total[run.end-1])
			case Goroutines:
				out.GoroutineWindows = n
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
				report.Notes = append(report.Notes, fmt.Sprintf("%s: %s of one run: too few for a significance test, which needs %d",
					out.name(), format.Count(n, string(kind)+" profile"), MinWindows))
				continue
			}
			looked = true
			load := p.load(run, t)
			if load == nil {
				report.Notes = append(report.Notes, fmt.Sprintf("%s: the %s profiles do not show the load, so growth that follows the load may be suspected",
					out.name(), kind))
			}
			for _, g := range t.growing(run, load, least) {
				g.process, g.kind = i, kind
				found = append(found, g)
			}
		}
		report.Processes = append(report.Processes, out)
	}
	report.Ended = r.endings()
	if !looked && len(report.Ended) == 0 {
		return nil, fmt.Errorf("leaks: %s", strings.Join(report.Notes, "; "))
	}
	correct(found)
	for _, g := range found {
		r.sort(report, g)
	}
	slices.SortStableFunc(report.Suspects, func(a, b Suspect) int { return cmp.Compare(b.BytesPerMinute, a.BytesPerMinute) })
	slices.SortStableFunc(report.Held, func(a, b Suspect) int { return cmp.Compare(b.Grown, a.Grown) })
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

// sort adds a stack that grew to the suspects, the held, the undecided or the dismissed.
func (r *reader) sort(report *Report, g *growth) {
	bytes := 1.0
	if g.kind == Goroutines {
		bytes = goroutineBytes
	}
	grown := int64(g.grown * bytes)
	path := r.table.Path(g.node)
	if g.reason != "" {
		d := Dismissed{Process: g.process, Kind: g.kind, Site: r.site(g.node), Stack: path, Grown: grown, Reason: g.reason}
		report.Dismissed = append(report.Dismissed, d)
		return
	}
	s := Suspect{
		Process: g.process, Kind: g.kind, Site: r.site(g.node), Stack: path,
		BytesPerMinute: g.slope * bytes, Low: g.low * bytes, High: g.high * bytes,
		Began: g.began, Grown: grown, InUse: int64(g.last * bytes), P: g.p, Q: g.q,
	}
	if g.kind == Goroutines {
		s.PerMinute = g.slope
	}
	if g.q > r.o.Alpha {
		report.Undecided = append(report.Undecided, s)
		return
	}
	if g.held {
		report.Held = append(report.Held, s)
		return
	}
	report.Suspects = append(report.Suspects, s)
}

// forecast computes when the limit is reached.
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

// name returns the name of a process in a report.
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
