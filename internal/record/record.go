// Package record is one captured profile: whose it is, what it measures, which window of time it covers,
// its series labels and its pprof bytes, together with how it lies on disk. Every other package of the
// data path (capture, wall, spool, push, saved profiles) speaks in records. It is a leaf: it knows neither
// schedule nor network.
package record

import (
	"slices"
	"time"
)

// Type names what a profile measures, in the terms of Pyroscope's profile names (the part of
// "process_cpu:cpu:nanoseconds:cpu:nanoseconds" before the first colon).
type Type string

// The types an agent captures.
const (
	CPU           Type = "process_cpu"    // cpu/nanoseconds and samples/count, one window
	Memory        Type = "memory"         // alloc_* (delta of the window) and inuse_* (at its end)
	Mutex         Type = "mutex"          // contentions/count and delay/nanoseconds, delta of the window
	Block         Type = "block"          // contentions/count and delay/nanoseconds, delta of the window
	Goroutine     Type = "goroutines"     // goroutine/count at the end of the window
	GoroutineLeak Type = "goroutine_leak" // goroutineleak/count at the end of the window
	Wall          Type = "wall"           // wall/nanoseconds of one span
)

// Names of the series labels that distinguish the parts of a service, as used by Pyroscope and Grafana.
const (
	ServiceLabel  = "service_name" // Meta.Service on a server; not among Meta.Labels
	InstanceLabel = "service_instance_id"
	VersionLabel  = "service_version"
)

// Names of labels that some profiles have.
const (
	// IncidentLabel has the trigger of the incident bundle for which the window ended early.
	IncidentLabel = "incident"
	// EndedLabel has why a run of the service ended without a shutdown, of which this is the last profile.
	EndedLabel = "ended"
)

// Meta describes a profile, without its bytes.
type Meta struct {
	Service string            // the service's name, any UTF-8
	Type    Type              // what is measured
	Start   time.Time         // start of the window (for Wall: of the span)
	End     time.Time         // end of the window
	Labels  map[string]string // series labels other than the service's name and the type
}

// Record is one captured profile. Its fields are not changed once it was emitted: receivers share them.
type Record struct {
	Meta
	Profile []byte // gzip-compressed pprof

	// Comments is a gzip member with comments, which is appended to Profile where the profile is saved (see Commented),
	// and not sent to a server. Wall profiles have one, with the diagnoses of their spans; else it is empty.
	Comments []byte
}

// Commented returns the record with its comments in its profile. Joined gzip members are one file and joined protobuf
// messages one message, so nothing is decompressed for that.
func (r Record) Commented() Record {
	if len(r.Comments) > 0 {
		r.Profile, r.Comments = slices.Concat(r.Profile, r.Comments), nil
	}
	return r
}

// Canonical returns the metadata with times as a file has them: of the wall clock alone, in UTC, and the end a duration
// after the start. A clock that was set back inside a window therefore does not end it before it began.
func (m Meta) Canonical() Meta {
	length := m.End.Sub(m.Start) // by the monotonic clock, if both have it
	m.Start = m.Start.Round(0).UTC()
	m.End = m.Start.Add(length)
	return m
}
