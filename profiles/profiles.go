// Package profiles reads saved profiles: it lists them, reads one within limits, merges many, and extracts the samples of
// a span. The viewer, the commands of spanflame and the packages below this one use it. It does not write directories or
// record profiles: the agent does.
//
// A directory in which agents save profiles contains DIR/profiles/SERVICE/DAY/HOUR/FILE, in UTC. Every file is an
// ordinary compressed pprof profile with metadata in its gzip header (package record), so that a directory is listed
// without decompressing anything. It may be written to, and old files removed from it,
// while it is read.
package profiles

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
)

// ErrNone means that no profile, or none with samples, matches the request.
var ErrNone = errors.New("no profile matches")

// Entry is a saved profile as it is listed, without its samples. Its labels are shared between entries and
// must not be changed.
type Entry struct {
	record.Meta
	Path  string
	Bytes int64 // of the file
	// Kind is the sample types and the period type of a profile of another tool: only profiles of one kind can be merged.
	// It is empty for a saved profile, whose type says it.
	Kind string
}

// Window is a profile that was read. For a file of another tool Meta is what the profile itself says, and
// the service is empty.
type Window struct {
	record.Meta
	Profile *profile.Profile
}

// Damaged is a file that cannot be used, and why. Err wraps one of package record's errors where the bytes
// are at fault.
type Damaged struct {
	Path string
	Err  error
}

func (d Damaged) Error() string { return fmt.Sprintf("%s: %v", d.Path, d.Err) }

func (d Damaged) Unwrap() error { return d.Err }

// Benchmark is the type of windows with the results of benchmarks instead of a profile: their functions are the benchmarks,
// and each value is in parts of its unit, BenchmarkParts to one, as it may have a fraction.
const (
	Benchmark      record.Type = "benchmark"
	BenchmarkParts             = 1e6
)

// Query chooses saved profiles. Its zero value chooses all.
type Query struct {
	Service  string            // empty for every service
	Types    []record.Type     // empty for every type
	From, To time.Time         // windows that overlap [From, To); zero for no bound
	Labels   map[string]string // that a profile must have, with these values
}

// Match reports whether the query chooses a profile.
func (q Query) Match(m record.Meta) bool {
	if q.Service != "" && m.Service != q.Service || len(q.Types) > 0 && !slices.Contains(q.Types, m.Type) {
		return false
	}
	if !q.From.IsZero() && !m.End.After(q.From) && !m.Start.Equal(q.From) { // a window may be a moment
		return false
	}
	if !q.To.IsZero() && !m.Start.Before(q.To) {
		return false
	}
	for name, value := range q.Labels {
		if have, ok := m.Labels[name]; !ok || have != value {
			return false
		}
	}
	return true
}

// mayMatch reports whether the query can choose a saved profile with this in its name. A window that began more than an
// hour before the query's time range is not found.
func (q Query) mayMatch(t record.Type, start time.Time) bool {
	if len(q.Types) > 0 && !slices.Contains(q.Types, t) {
		return false
	}
	if !q.From.IsZero() && start.Before(q.From.Add(-longest)) {
		return false
	}
	return q.To.IsZero() || start.Before(q.To)
}

// types are the types of profiles that an agent captures.
var types = []record.Type{
	record.CPU, record.Wall, record.Memory, record.Mutex, record.Block, record.Goroutine, record.GoroutineLeak,
}

// TypeName returns the name of a type in flags, reports and pages: the type itself, but cpu for CPU profiles.
func TypeName(t record.Type) string {
	if t == record.CPU {
		return "cpu"
	}
	return string(t)
}

// ParseType returns the type of that name: one that agents capture, or the first sample type of a profile by another tool.
func ParseType(name string) (record.Type, error) {
	var names []string
	for _, t := range types {
		if names = append(names, TypeName(t)); name == TypeName(t) {
			return t, nil
		}
	}
	if name == "" || name != strings.ToLower(name) || strings.TrimSpace(name) != name || replaced[name] {
		return "", fmt.Errorf("profile type %q: want one of %s, or the first sample type of a profile by another tool",
			name, strings.Join(names, ", "))
	}
	return record.Type(name), nil
}

// replaced are names that Go uses for types that agents capture. No profile has them as its type.
var replaced = map[string]bool{"heap": true, "allocs": true, "goroutine": true, "goroutineleak": true, "profile": true, string(record.CPU): true}

// ServiceNames returns the services of entries, sorted. Files of other tools name no service.
func ServiceNames(entries []Entry) []string {
	var names []string
	for _, e := range entries {
		if e.Service != "" && !slices.Contains(names, e.Service) {
			names = append(names, e.Service)
		}
	}
	slices.Sort(names)
	return names
}

// Limits of a time that is asked for: how long ago it may be, and its years, which fit into nanoseconds since 1970.
const (
	longestAgo          = 10 * 365 * 24 * time.Hour
	firstYear, lastYear = 1970, 2261
)

// timeLayouts are the forms of a time, in UTC unless it has an offset. Browsers send the second, reports and pages show
// the last two.
var timeLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04", "2006-01-02T15:04:05", time.DateTime, time.DateTime + " -07:00"}

// ParseTime parses a time that a person wrote: one like 2026-01-02T15:04:05Z, one like "2026-01-02 15:04:05", which is
// in UTC as in reports and pages, or a duration such as 15m, which is that long before now.
func ParseTime(text string, now time.Time) (time.Time, error) {
	s := strings.TrimSuffix(strings.TrimSpace(text), " UTC")
	var t time.Time
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 && ago <= longestAgo {
		t = now.Add(-ago)
	}
	for _, layout := range timeLayouts {
		if parsed, err := time.Parse(layout, s); err == nil {
			t = parsed
		}
	}
	if t.Year() < firstYear || t.Year() > lastYear {
		return time.Time{}, fmt.Errorf(
			"time %q: want one like 2026-01-02T15:04:05Z, one like %q in UTC, from %d to %d, or how long ago it was, such as 15m",
			text, "2026-01-02 15:04:05", firstYear, lastYear,
		)
	}
	return t, nil
}
