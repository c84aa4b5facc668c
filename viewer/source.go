package viewer

import (
	"context"
	"slices"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
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
	// Captured returns at most f.Limit spans with a profile of their own whose service and name are f's,
	// the latest first. Their attributes may be missing.
	Captured(ctx context.Context, f Filter) ([]traces.Span, error)
}

// ProfileSource has the profiles.
type ProfileSource interface {
	// Profile is all that was selected, merged. The error wraps profiles.ErrNone where there is nothing. The
	// profile is the caller's.
	Profile(ctx context.Context, s Selection) (*profile.Profile, error)
	// Files are those that the selection is in, for the reader's own tools; none where it is in no files.
	Files(ctx context.Context, s Selection) ([]string, error)
	// Services are the names of those that have profiles between two times.
	Services(ctx context.Context, from, to time.Time) ([]string, error)
	// Memory is how much was in use at the end of each window, in the order of time: at most most points.
	Memory(ctx context.Context, service string, from, to time.Time, most int) ([]MemoryPoint, error)
}

// Filter says which traces, or which spans, are meant. Zero fields do not restrict.
type Filter struct {
	Service  string        // of one of the trace's entry spans
	Name     string        // likewise: a part of it for Search, the whole for Captured
	Min      time.Duration // of the whole trace
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
	Type     record.Type
	From, To time.Time
	SpanIDs  []string // only theirs; nil for all
}

// MemoryPoint is how much memory was in use at a time. From and To select the profile that says so.
type MemoryPoint struct {
	From, To time.Time
	Bytes    int64
}

// profileIDAttribute is the attribute of a span that has a profile: the id that its samples carry.
const profileIDAttribute = "pyroscope.profile.id"

// captured tells whether the agent marked the span as one with a profile of its own.
func captured(s traces.Span) bool { return s.Attributes[profileIDAttribute] == s.ID }

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

// sampleIndex is which of a profile's values the pages show: its default, else the last, as in pprof.
func sampleIndex(p *profile.Profile) int {
	if i := slices.IndexFunc(p.SampleType, func(t *profile.ValueType) bool { return t.Type == p.DefaultSampleType }); i >= 0 {
		return i
	}
	return len(p.SampleType) - 1
}
