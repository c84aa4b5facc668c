package query

import (
	"context"
	"slices"
	"time"
)

const (
	// Longest is the longest time range that one query of Pyroscope has: a server accepts a day unless it is configured
	// otherwise.
	Longest = 23 * time.Hour

	// Cell is the least time between two captures of an instance. Agents capture once a second or less often, but their
	// first window and their last are shorter.
	Cell = 100 * time.Millisecond
)

// Daily calls ask for the consecutive parts of a time range that are no longer than Longest. A part includes both its
// ends, so the next one starts a millisecond after it.
func Daily(from, to time.Time, ask func(from, to time.Time) error) error {
	for ; to.Sub(from) > Longest; from = from.Add(Longest) {
		if err := ask(from, from.Add(Longest-time.Millisecond)); err != nil {
			return err
		}
	}
	return ask(from, to)
}

// Capture is the total of the profile that an agent captured at a time.
type Capture struct {
	Point
	// Start and End select this capture and no other of the instance. The server rounds the time of a total up to the end
	// of its Cell, which is the time of the point.
	Start, End time.Time
}

// Captures returns the captures of a profile type between two times, both included, by time. Captures whose labels of
// these names are equal must not be of the same moment: their totals would be added up.
func (p *Pyroscope) Captures(ctx context.Context, profileType string, s Selector, from, to time.Time, labels ...string) ([]Capture, error) {
	var all []Capture
	err := Daily(from, to, func(from, to time.Time) error {
		before := from.Add(-time.Millisecond) // a cell begins after the end of the one before it
		points, err := p.Totals(ctx, profileType, s, before, to, Cell, labels...)
		for _, pt := range points {
			if pt.Time.After(before) {
				// The point has no fractions of a millisecond; the start of what was captured can have some.
				all = append(all, Capture{Point: pt, Start: pt.Time.Add(time.Millisecond - Cell), End: pt.Time.Add(time.Millisecond)})
			}
		}
		return err
	})
	slices.SortStableFunc(all, func(a, b Capture) int { return a.Time.Compare(b.Time) })
	return all, err
}
