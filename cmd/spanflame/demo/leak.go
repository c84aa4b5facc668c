package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"spanflame/viewer/source"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// leak is the function of the storefront whose memory in use grows most.
type leak struct {
	function string // the function that allocated it
	bytes    []int64
	over     time.Duration // from the first value of bytes to the last
}

// shownPoints is the number of points printed of a leak's growth.
const shownPoints = 7

// leak returns the function whose memory in use grew most from the beginning to the end.
func (b *backend) leak(ctx context.Context, from, to time.Time) (leak, error) {
	points, err := b.source.Memory(ctx, source.Selection{Service: storefront, From: from, To: to}, shownPoints)
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

// held returns the bytes in use at a point, by the function that allocated them.
func (b *backend) held(ctx context.Context, at source.MemoryPoint) (map[string]int64, error) {
	p, err := b.profile(ctx, source.Selection{Service: storefront, Instance: at.Instance, Type: record.Memory, From: at.From, To: at.To})
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

// grown returns how many more bytes the function holds at the end.
func (l leak) grown() int64 { return l.bytes[len(l.bytes)-1] - l.bytes[0] }

// course describes what the function holds at each point.
func (l leak) course() string {
	var steps []string
	for _, b := range l.bytes {
		steps = append(steps, fmt.Sprintf("%.0f", float64(b)/(1<<20)))
	}
	return strings.Join(steps, " → ") + " MiB"
}
