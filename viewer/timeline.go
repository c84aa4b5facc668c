package viewer

import (
	"fmt"
	"slices"
	"time"

	"spanflame/viewer/source"
)

// Sizes of the drawing of a problem's traces over time, in pixels.
const (
	timelineBars   = 24
	timelineBar    = 5
	timelineHeight = 16
)

// timeline is the time axis that all problems of a page share.
type timeline struct{ From, To time.Time }

// newTimeline returns the time axis of traces: the whole period, as far as it has ends, or from the first to the last of them.
func newTimeline(p period, all []source.Summary) timeline {
	t := timeline{p.from, p.to}
	if len(all) == 0 {
		return t
	}
	byStart := func(a, b source.Summary) int { return a.Start.Compare(b.Start) }
	if t.From.IsZero() {
		t.From = slices.MinFunc(all, byStart).Start
	}
	if t.To.IsZero() {
		t.To = slices.MaxFunc(all, byStart).Start
	}
	return t
}

// words describes the axis.
func (t timeline) words(z zone) string { return z.clock(t.From) + " to " + z.clock(t.To) }

// timelineRect is a bar of the drawing.
type timelineRect struct{ X, Y, Height int }

// of returns how many of some traces began in each part of the time, as bars, and in words how many did in each half.
func (t timeline) of(some []source.Summary) (bars []timelineRect, words string) {
	var counts [timelineBars]int
	earlier := 0
	for _, s := range some {
		i := 0
		if whole := t.To.Sub(t.From); whole > 0 {
			i = int(float64(timelineBars) * float64(s.Start.Sub(t.From)) / float64(whole))
		}
		i = min(max(i, 0), timelineBars-1)
		counts[i]++
		if i < timelineBars/2 {
			earlier++
		}
	}
	most := slices.Max(counts[:])
	for i, n := range counts {
		if n > 0 {
			h := max(1, timelineHeight*n/most)
			bars = append(bars, timelineRect{i * timelineBar, timelineHeight - h, h})
		}
	}
	return bars, fmt.Sprintf("%d in the earlier half of the time, %d in the later", earlier, len(some)-earlier)
}
