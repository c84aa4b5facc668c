package wall

import (
	"sync/atomic"
	"time"

	"spanflame/internal/wallprofile"
)

// Stats counts what a Recorder did since its start. Slow is the sum of Captured, the six Skipped
// of roots, the Crowded that ended later, and those that are still being processed.
type Stats struct {
	Slow     uint64 // local root spans that took at least SlowSpan
	Captured uint64 // of these: emitted
	Partial  uint64 // of the captured: with a part that is not recorded
	Children uint64 // child spans emitted
	Profiles uint64 // records emitted
	Fast     uint64 // fast root spans emitted, of the sample with which slow ones are compared
	FastLost uint64 // fast root spans that were chosen and not emitted

	SkippedBudget   uint64 // slow roots not captured: the CPU budget was spent
	SkippedBusy     uint64 // … another flight recorder ran in the process
	SkippedWindow   uint64 // … the ring had forgotten their part of the trace, or it was not readable
	SkippedQueue    uint64 // … too many were waiting
	SkippedStop     uint64 // … the recorder was stopped
	SkippedPanic    uint64 // … the recorder panicked
	SkippedChildren uint64 // child spans with a profile of their own that was not emitted, for the same reasons

	Unended            uint64 // root spans given up because they did not end for long
	Crowded            uint64 // root spans given up because more than 256 were open on one goroutine
	DroppedRoots       uint64 // root spans not marked because too many were running
	DroppedChildren    uint64 // child spans not marked because their root has too many; their time is their parent's
	SkippedGoroutines  uint64 // goroutines started by a span and not followed, because there were too many
	SkippedGenerations uint64 // generations of the trace (about a second each) that the budget did not allow to convert
	Unreadable         uint64 // snapshots that could not be read

	NotFollowed map[string]uint64 // parts of waits of which it is not known who caused them, by reason

	Mode    Mode
	Entered [NumModes]uint64 // how often each mode was entered since the start

	Duration time.Duration // of the captured slow root spans together
	Recorded time.Duration // of that: recorded

	Starts    uint64        // of the flight recorder after it was stopped
	Snapshots uint64        // taken
	Bytes     uint64        // of trace converted
	Events    uint64        // of trace converted
	CPU       time.Duration // spent on everything: writing the trace, snapshots, conversion and encoding, and looking at running spans
	Written   time.Duration // of that: to write the trace, by estimate

	NeverEnded map[Unended]uint64 // spans that were never ended, by their names; see Unended
}

type counters struct {
	slow, captured, partial, children, profiles, fast, fastLost          atomic.Uint64
	skippedBudget, skippedWindow, skippedQueue, skippedStop, unended     atomic.Uint64
	skippedPanic, skippedBusy, skippedChildren                           atomic.Uint64
	rootsDropped, childrenDropped, skippedGoroutines, skippedGenerations atomic.Uint64
	unreadable, crowded, starts, snapshots, bytes, events                atomic.Uint64
	cpu, written, duration, recorded                                     atomic.Int64
	mode                                                                 atomic.Int32
	entered                                                              [NumModes]atomic.Uint64
	notFollowed                                                          [wallprofile.NumNotFollowed]atomic.Uint64
}

// Stats returns the counts so far.
func (r *Recorder) Stats() Stats {
	c := &r.stats
	notFollowed := make(map[string]uint64)
	for why := wallprofile.Followed + 1; why < wallprofile.NumNotFollowed; why++ {
		notFollowed[why.String()] = c.notFollowed[why].Load()
	}
	var entered [NumModes]uint64
	for mode := range entered {
		entered[mode] = c.entered[mode].Load()
	}
	return Stats{
		Mode:               r.mode(),
		Entered:            entered,
		Duration:           time.Duration(c.duration.Load()),
		Recorded:           time.Duration(c.recorded.Load()),
		Written:            time.Duration(c.written.Load()),
		Slow:               c.slow.Load(),
		Captured:           c.captured.Load(),
		Partial:            c.partial.Load(),
		Children:           c.children.Load(),
		Profiles:           c.profiles.Load(),
		Fast:               c.fast.Load(),
		FastLost:           c.fastLost.Load(),
		SkippedBudget:      c.skippedBudget.Load(),
		SkippedBusy:        c.skippedBusy.Load(),
		SkippedWindow:      c.skippedWindow.Load(),
		SkippedQueue:       c.skippedQueue.Load(),
		SkippedStop:        c.skippedStop.Load(),
		SkippedPanic:       c.skippedPanic.Load(),
		SkippedChildren:    c.skippedChildren.Load(),
		Unended:            c.unended.Load(),
		Crowded:            c.crowded.Load(),
		DroppedRoots:       c.rootsDropped.Load(),
		DroppedChildren:    c.childrenDropped.Load(),
		SkippedGoroutines:  c.skippedGoroutines.Load(),
		SkippedGenerations: c.skippedGenerations.Load(),
		Unreadable:         c.unreadable.Load(),
		NotFollowed:        notFollowed,
		Starts:             c.starts.Load(),
		Snapshots:          c.snapshots.Load(),
		Bytes:              c.bytes.Load(),
		Events:             c.events.Load(),
		CPU:                time.Duration(c.cpu.Load()),
		NeverEnded:         r.unended.counts(),
	}
}
