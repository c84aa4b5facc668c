package wall

import (
	"time"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

const (
	maxAllocating = 1 << 12                // samples
	collected     = 500 * time.Millisecond // before a span: what was allocated then may be collected during it
)

// garbage has the newest CPU samples of goroutines that were allocating memory, in a ring: of all that is allocated, these say
// where most of the time goes.
type garbage struct {
	ring   []allocating
	newest int
}

type allocating struct {
	at    trace.Time
	where *stack
}

// sampled notes a CPU sample.
func (g *garbage) sampled(now trace.Time, at *stack) {
	switch one := (allocating{now, at}); {
	case !wallprofile.Allocates(at.functions()):
	case len(g.ring) < maxAllocating:
		g.newest = len(g.ring)
		g.ring = append(g.ring, one)
	default:
		g.newest = (g.newest + 1) % maxAllocating
		g.ring[g.newest] = one
	}
}

// maker returns the function of the service which allocated most of the time from shortly before a span's begin to its end, if that was more than
// half of the time in which any did; it is empty if there is none.
func (g *garbage) maker(from, to trace.Time) string {
	samples, all := make(map[string]int), 0
	for i := range g.ring {
		one := g.ring[(g.newest-i+len(g.ring))%len(g.ring)]
		if one.at < from-trace.Time(collected) {
			break
		}
		if one.at <= to {
			samples[one.where.own()]++
			all++
		}
	}
	for function, n := range samples {
		if all > 1 && 2*n > all {
			return function
		}
	}
	return ""
}
