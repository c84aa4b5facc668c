// Package source reads traces and profiles from where they are kept: a directory that agents save to, any other
// directory or file with profiles, Tempo or Jaeger with Pyroscope, or an agent's listener, of which it saves the profiles
// first. The pages of package viewer, the command mcp and the demo read through it. It makes no pages and serves nothing.
package source

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// ErrTooLong means that a time range is longer than a source can search at once.
var ErrTooLong = errors.New("the time range is too long")

// ErrReading means that some traces are not read yet. The next call continues to read them.
var ErrReading = errors.New("older traces are still being read: try again in a moment")

// Source has traces and profiles.
type Source interface {
	Traces
	Profiles
}

// Traces has the traces.
type Traces interface {
	// Search returns at most f.Limit traces that match, slowest first.
	Search(ctx context.Context, f Filter) (Found, error)
	// Trace returns the spans of a trace by their start, or none if the trace is not known.
	Trace(ctx context.Context, id string) ([]traces.Span, error)
	// Captured returns at most f.Limit spans of f's service and name that can have a profile of their own, given how
	// long recorded requests take (f.Slow, f.Child), the latest first. Their attributes may be missing.
	Captured(ctx context.Context, f Filter) ([]traces.Span, error)
	// Requests returns all sampled spans by which requests of f's service, name and version entered it, whether they were
	// slow or not, or none if the source does not have them all. Their attributes are missing. The error is ErrReading if
	// they are not all read yet.
	Requests(ctx context.Context, f Filter) ([]traces.Span, error)
}

// Profiles has the profiles.
type Profiles interface {
	// Profile returns all selected profiles merged into one, which the caller owns. Of values that are in use at a
	// moment (memory, goroutines) it is the mean of a window. The error wraps profiles.ErrNone if there are none.
	Profile(ctx context.Context, s Selection) (*profile.Profile, error)
	// Files returns the selected files, for other tools to read; none if the source does not keep files.
	Files(ctx context.Context, s Selection) ([]string, error)
	// Series returns the selected windows one by one, by time: at most most of them, evenly over the time range. Each
	// profile is of one instance.
	Series(ctx context.Context, s Selection, most int) iter.Seq2[profiles.Window, error]
	// Windows returns the times of the selected windows of all instances, by time.
	Windows(ctx context.Context, s Selection) ([]Window, error)
	// Contents returns the types and versions of a service's profiles between two times, sorted by version and type; the
	// versions by time, if that is known.
	Contents(ctx context.Context, service string, from, to time.Time) ([]Content, error)
	// Services returns the names of the services that have profiles between two times.
	Services(ctx context.Context, from, to time.Time) ([]string, error)
	// LeftOut describes the profiles that cannot be used, as far as they were found; it is empty if there are none.
	LeftOut() string
	// Memory returns how much memory was in use at the end of each selected window, by time, with at most most points,
	// whatever the type in s. If s selects several instances, it is of the one that used most at its start or end.
	Memory(ctx context.Context, s Selection, most int) ([]MemoryPoint, error)
}

// Filter selects traces or spans. Zero fields do not restrict.
type Filter struct {
	Service  string        // of one of the spans by which the trace entered a service
	Name     string        // of the same span: a part of the name for Search, the whole name for Captured
	Min      time.Duration // of the whole trace
	Slow     time.Duration // for Captured: the least duration of a request that is recorded
	Child    time.Duration // for Captured: the least duration of a span inside such a request
	Requests bool          // for Captured: only the spans by which requests entered their service
	Version  string        // for Captured and Requests: of the service, if the source knows the versions of spans
	From, To time.Time     // between which it starts
	Without  string        // for Search: parts of names, with commas between them; traces whose root has one are left out
	Diagnose bool          // for Search: with the diagnoses that agents saved, if the source has them without their profiles
	Limit    int
}

// leavesOut reports whether Without has a part of the name of a root.
func (f Filter) leavesOut(root string) bool {
	root = strings.ToLower(root)
	for part := range strings.SplitSeq(strings.ToLower(f.Without), ",") {
		if part = strings.TrimSpace(part); part != "" && strings.Contains(root, part) {
			return true
		}
	}
	return false
}

// Summary is a trace in a list.
type Summary struct {
	TraceID       string
	Service, Name string // of the root
	Start         time.Time
	Duration      time.Duration
	Spans, Errors int // Spans is 0 if the number is not known

	Main      traces.Span // the one to diagnose, without its attributes; zero if it is not known or there is none
	Diagnosis string      // of it, in one line; empty if it is not known
	Cause     string      // what the diagnoses of one cause have in common; empty without a diagnosis
	Lasts     bool        // it is of a request that is meant to last, such as a stream
}

// Found is the result of a search.
type Found struct {
	Traces []Summary
	Notes  []string // in sentences: what is missing, and why
}

// Selection selects profiles or samples.
type Selection struct {
	Service  string
	Instance string // of the service; empty for all
	Version  string // of the service; empty for all
	Type     record.Type
	From, To time.Time
	SpanIDs  []string // only the samples of these spans; nil for all

	// Slow is the least duration of a request that is recorded. Sources need it whose wall-clock profiles do not have the
	// IDs of their spans.
	Slow time.Duration
}

// OfSpan selects the profile of one span.
func OfSpan(s traces.Span, t record.Type) Selection {
	return Selection{Service: s.Service, Type: t, From: s.Start, To: s.End, SpanIDs: []string{s.ID}}
}

// RequestsOf returns all requests in the time of selected wall-clock profiles, by whose number these are divided; none for
// other types. Reading reports that there are none because the traces are not all read yet.
func RequestsOf(ctx context.Context, from Traces, s Selection) (requests []traces.Span, reading bool, err error) {
	if s.Type != record.Wall {
		return nil, false, nil
	}
	requests, err = from.Requests(ctx, Filter{Service: s.Service, Version: s.Version, From: s.From, To: s.To})
	if errors.Is(err, ErrReading) {
		return nil, true, nil
	}
	return requests, false, err
}

// Window is the time of one profile. Instance, From and End select it.
type Window struct {
	Instance string // empty if it is not known
	From, To time.Time
}

// End returns the time before which all of the window lies. A profile without a duration is of a moment, which a range
// that ends at To does not include.
func (w Window) End() time.Time { return later(w.To, w.From.Add(time.Nanosecond)) }

// MemoryPoint is the memory in use at the end of a window.
type MemoryPoint struct {
	Window
	Version string // of the service, if it is known
	Bytes   int64
}

// Content describes the profiles of one type.
type Content struct {
	Type     record.Type
	Version  string    // of the service; empty if it is not known
	From, To time.Time // of the first and the last of them; zero if not known
	Several  bool      // there are several windows, or their number is not known
}

// sortContents sorts by the versions' times and, within a version, by type.
func sortContents(all []Content) {
	began := make(map[string]time.Time, len(all))
	for _, c := range all {
		if t, ok := began[c.Version]; !ok || c.From.Before(t) {
			began[c.Version] = c.From
		}
	}
	slices.SortFunc(all, func(a, b Content) int {
		return cmp.Or(began[a.Version].Compare(began[b.Version]), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Type, b.Type))
	})
}

// Marked reports whether the agent marked a span as one that has a profile of its own.
func Marked(s traces.Span) bool { return wallprofile.Marked(s.Attributes, s.ID) }

// levels are the types whose profiles are of a moment.
var levels = []record.Type{record.Memory, record.Goroutine, record.GoroutineLeak, "goroutineleak", "threadcreate"}

// Level reports whether the profiles of a type are of a moment: several of them are averaged, not added up.
func Level(t record.Type) bool { return slices.Contains(levels, Base(t)) }

// Base returns the type that the profiles of a file have, from a type that has only some of their kinds.
func Base(t record.Type) record.Type {
	base, _, _ := strings.Cut(string(t), " (")
	return record.Type(base)
}

// Spread returns at most n of all, evenly, including the first and the last.
func Spread[T any](all []T, n int) []T {
	if len(all) <= n {
		return all
	}
	var some []T
	for i := range n {
		some = append(some, all[i*(len(all)-1)/(n-1)])
	}
	return some
}

// largest returns the windows of the instance that has the largest value in its first or its last window. Windows of
// different instances side by side would not show growth, and neither would a single one.
func largest[T any](all []T, instance func(T) string, value func(T) float64) []T {
	byInstance := make(map[string][]T)
	for _, w := range all {
		byInstance[instance(w)] = append(byInstance[instance(w)], w)
	}
	if len(byInstance) < 2 {
		return all
	}
	var found []T
	most := math.Inf(-1)
	for _, name := range slices.Sorted(maps.Keys(byInstance)) {
		windows := byInstance[name]
		has := math.Inf(-1)
		if len(windows) > 1 {
			has = max(value(windows[0]), value(windows[len(windows)-1]))
		}
		if found == nil || has > most {
			found, most = windows, has
		}
	}
	return found
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func sortByStart(spans []traces.Span) {
	slices.SortStableFunc(spans, func(a, b traces.Span) int { return a.Start.Compare(b.Start) })
}
