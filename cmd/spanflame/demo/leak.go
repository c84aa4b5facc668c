package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/viewer"
)

// leak is the function of the storefront that holds more and more memory.
type leak struct {
	function string // who allocated it
	bytes    []int64
	over     time.Duration // from the first of the bytes to the last
}

// shownPoints is how much of a leak's course is told.
const shownPoints = 7

// leak finds the function that holds most of what there is more of at the end than at the begin.
func (b *backend) leak(ctx context.Context, from, to time.Time) (leak, error) {
	points, err := b.source.Memory(ctx, storefront, from, to, shownPoints)
	if err != nil {
		return leak{}, err
	}
	if len(points) < 2 {
		return leak{}, fmt.Errorf("two memory profiles of the %s: %w", storefront, profiles.ErrNone)
	}
	var course []map[string]int64
	for _, p := range points {
		held, err := b.held(ctx, p)
		if err != nil {
			return leak{}, err
		}
		course = append(course, held)
	}
	first, last := course[0], course[len(course)-1]
	l := leak{over: points[len(points)-1].To.Sub(points[0].To)}
	most := int64(0)
	for function, bytes := range last {
		if grown := bytes - first[function]; grown > most {
			l.function, most = function, grown
		}
	}
	for _, held := range course {
		l.bytes = append(l.bytes, held[l.function])
	}
	return l, nil
}

// held is how many bytes are in use at a point, by who allocated them.
func (b *backend) held(ctx context.Context, at viewer.MemoryPoint) (map[string]int64, error) {
	p, err := b.profile(ctx, viewer.Selection{Service: storefront, Instance: at.Instance, Type: record.Memory, From: at.From, To: at.To})
	if err != nil {
		return nil, err
	}
	value := profiles.SampleIndex(p, "inuse_space")
	if value < 0 {
		return nil, fmt.Errorf("a memory profile of the %s has no inuse_space", storefront)
	}
	held := map[string]int64{}
	for _, s := range p.Sample {
		if len(s.Location) > 0 && len(s.Location[0].Line) > 0 && s.Location[0].Line[0].Function != nil {
			held[s.Location[0].Line[0].Function.Name] += s.Value[value]
		}
	}
	return held, nil
}

// grown is how many bytes the function holds more at the end.
func (l leak) grown() int64 { return l.bytes[len(l.bytes)-1] - l.bytes[0] }

// course is what the function holds, from point to point.
func (l leak) course() string {
	var steps []string
	for _, b := range l.bytes {
		steps = append(steps, fmt.Sprintf("%.0f", float64(b)/(1<<20)))
	}
	return strings.Join(steps, " → ") + " MiB"
}
