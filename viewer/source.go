package viewer

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Source is where the pages take traces and profiles from. It is only read.
type Source interface {
	TraceSource
	ProfileSource
}

// TraceSource has the traces.
type TraceSource interface {
	// Search returns at most f.Limit traces that match, slowest first.
	Search(ctx context.Context, f Filter) (Found, error)
	// Trace returns the spans of a trace in the order of their starts, none where it is not known.
	Trace(ctx context.Context, id string) ([]traces.Span, error)
	// Captured returns at most f.Limit spans that can have a profile of their own, by f.Slow, and whose service
	// and name are f's, the latest first. Their attributes may be missing.
	Captured(ctx context.Context, f Filter) ([]traces.Span, error)
}

// ProfileSource has the profiles.
type ProfileSource interface {
	// Profile is all that was selected, merged; of what is in use at a moment (memory, goroutines) it is the
	// mean of a window. The error wraps profiles.ErrNone where there is nothing. The profile is the caller's.
	Profile(ctx context.Context, s Selection) (*profile.Profile, error)
	// Files are those that the selection is in, for the reader's own tools; none where it is in no files.
	Files(ctx context.Context, s Selection) ([]string, error)
	// Series is the windows of the selection one by one, in the order of time: where there are too many, some
	// of them, evenly over the time. Each profile is of one instance.
	Series(ctx context.Context, s Selection) iter.Seq2[profiles.Window, error]
	// Windows are those that the selection is in, of all instances of the service, in the order of time.
	Windows(ctx context.Context, s Selection) ([]Window, error)
	// Contents are the types and versions of a service's profiles between two times, by version and type; the versions
	// in the order of time, where that is known.
	Contents(ctx context.Context, service string, from, to time.Time) ([]Content, error)
	// Services are the names of those that have profiles between two times.
	Services(ctx context.Context, from, to time.Time) ([]string, error)
	// LeftOut says which profiles cannot be used, as far as that was found; it is empty where there is none.
	LeftOut() string
	// Memory is how much was in use at the end of each window, in the order of time: at most most points. Where
	// the service has several instances it is of the one that has most, at the beginning or the end.
	Memory(ctx context.Context, service string, from, to time.Time, most int) ([]MemoryPoint, error)
}

// Filter says which traces, or which spans, are meant. Zero fields do not restrict.
type Filter struct {
	Service  string        // of one of the trace's entry spans
	Name     string        // likewise: a part of it for Search, the whole for Captured
	Min      time.Duration // of the whole trace
	Slow     time.Duration // for Captured: of the request that a span belongs to, in its service
	Requests bool          // for Captured: only the spans by which requests entered their service
	Version  string        // for Captured: of the service, where the source knows the versions of spans
	From, To time.Time     // it begins in between
	Limit    int
}

// Summary is a trace in a list.
type Summary struct {
	TraceID       string
	Service, Name string // of the root
	Start         time.Time
	Duration      time.Duration
	Spans, Errors int // Spans is 0 where the number is not known
}

// Found is the result of a search.
type Found struct {
	Traces []Summary
	Notes  []string // what the reader has to know about what is missing
}

// Selection says which samples are meant.
type Selection struct {
	Service  string
	Instance string // of the service; empty for all
	Version  string // likewise
	Type     record.Type
	From, To time.Time
	SpanIDs  []string // only theirs; nil for all

	// Slow is how long requests take at least that have wall-clock profiles, for sources whose profiles do not say of
	// which spans they are.
	Slow time.Duration
}

// Window is the time of one profile. Instance, From and To select it.
type Window struct {
	Instance string // empty where it is not known
	From, To time.Time
}

// end is the time before which all of the window is. A profile of a moment, which is one without a duration, ends when it
// begins: up to that time there is nothing of it.
func (w Window) end() time.Time { return later(w.To, w.From.Add(time.Nanosecond)) }

// MemoryPoint is how much memory was in use at the end of a window.
type MemoryPoint struct {
	Window
	Bytes int64
}

// Content is that there are profiles of a type.
type Content struct {
	Type     record.Type
	Version  string    // of the service; empty where it is not known
	From, To time.Time // of the first and the last of them; zero where it is not known
	Several  bool      // windows, or it is not known
}

// sortContents sorts by the versions' times and, within a version, by type, in the order in which they are offered.
func sortContents(all []Content) {
	began := make(map[string]time.Time, len(all))
	for _, c := range all {
		if t, ok := began[c.Version]; !ok || c.From.Before(t) {
			began[c.Version] = c.From
		}
	}
	place := func(c Content) int {
		return slices.IndexFunc(profileTypes, func(t profileType) bool { return t.Type == c.Type })
	}
	slices.SortFunc(all, func(a, b Content) int {
		return cmp.Or(began[a.Version].Compare(began[b.Version]), cmp.Compare(a.Version, b.Version), cmp.Compare(place(a), place(b)), cmp.Compare(a.Type, b.Type))
	})
}

// largest are the windows of the instance that has the largest value, in its first window or its last. Windows
// of different instances side by side would say nothing about growth, and neither does a single one.
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
		its := byInstance[name]
		has := math.Inf(-1)
		if len(its) > 1 {
			has = max(value(its[0]), value(its[len(its)-1]))
		}
		if found == nil || has > most {
			found, most = its, has
		}
	}
	return found
}

// captured tells whether the agent marked the span as one with a profile of its own.
func captured(s traces.Span) bool { return s.Attributes[wallprofile.ProfileIDAttribute] == s.ID }

// entry tells whether a span is where its service was entered: the root, or the child of another service's
// span. Parents are looked up in byID.
func entry(s traces.Span, byID map[string]traces.Span) bool {
	parent, known := byID[s.ParentID]
	return !known || parent.Service != s.Service
}

func index(spans []traces.Span) map[string]traces.Span {
	byID := make(map[string]traces.Span, len(spans))
	for _, s := range spans {
		byID[s.ID] = s
	}
	return byID
}

// spanSelection is the profile of one span.
func spanSelection(s traces.Span, t record.Type) Selection {
	return Selection{Service: s.Service, Type: t, From: s.Start, To: s.End, SpanIDs: []string{s.ID}}
}

// gauge tells whether profiles of a type are of a moment: those of several moments are not to be added up.
func gauge(t record.Type) bool { return t == record.Memory || t == record.Goroutine }
