package leaks

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/internal/stacks"
)

// Ended is a run that ended without a shutdown, and what it held in the last profile of its memory or goroutines. One profile
// proves no leak: this is what the memory was used for.
type Ended struct {
	Service string            `json:"service,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Kind    Kind              `json:"kind"`
	Why     string            `json:"why"` // memory, crash or unknown
	At      time.Time         `json:"at"`  // of the profile
	InUse   int64             `json:"in_use"`
	Grew    []Grew            `json:"grew"` // by what they grew
}

// Grew is a stack of a run that ended.
type Grew struct {
	Site  string   `json:"site"`
	Stack []string `json:"stack"` // outermost function first
	InUse int64    `json:"in_use"`
	Grown int64    `json:"grown"` // since the first profile of the process, or all of it if there is none
}

// maxGrew limits the stacks of a run that ended.
const maxGrew = 5

// ended is the last profile of a run.
type ended struct {
	Ended
	sums map[int32]int64
}

// addEnded reads the last profile of a run.
func (r *reader) addEnded(w profiles.Window, kind Kind, sums map[int32]int64, total int64) {
	labels := maps.Clone(w.Labels)
	delete(labels, record.EndedLabel)
	r.ended = append(r.ended, ended{Ended{w.Service, labels, kind, w.Labels[record.EndedLabel], w.End, total, nil}, sums})
}

// endings returns what the runs held that ended: first the memory, of the latest first. Stacks that grew little are left
// out, and so are goroutines if none grew.
func (r *reader) endings() (all []Ended) {
	for _, e := range slices.Backward(r.ended) {
		first := map[int32]float64{}
		for _, p := range r.processes {
			if t := p.timelines[e.Kind]; t != nil && p.service == e.Service && maps.Equal(p.labels, e.Labels) && t.ends[0].Before(e.At) {
				for id, points := range t.stacks {
					if points[0].window == 0 {
						first[id] = points[0].value
					}
				}
			}
		}
		least := r.o.MinGrowth
		if e.Kind == Goroutines {
			least = minGoroutines
		}
		for id, v := range e.sums {
			if grown := v - int64(first[id]); grown >= least {
				e.Grew = append(e.Grew, Grew{Site: r.site(id), Stack: r.table.Path(id), InUse: v, Grown: grown})
			}
		}
		slices.SortFunc(e.Grew, func(a, b Grew) int {
			return cmp.Or(cmp.Compare(b.Grown, a.Grown), slices.Compare(a.Stack, b.Stack))
		})
		e.Grew = e.Grew[:min(len(e.Grew), maxGrew)]
		if e.Kind == Memory || len(e.Grew) > 0 {
			all = append(all, e.Ended)
		}
	}
	slices.SortStableFunc(all, func(a, b Ended) int {
		return cmp.Or(cmp.Compare(b.Kind, a.Kind), b.At.Compare(a.At))
	})
	return all
}

// write writes what a run held for a terminal.
func (e Ended) write(b *strings.Builder) {
	why := map[string]string{"memory": "killed for memory", "crash": "crashed"}[e.Why]
	name := Process{Service: e.Service, Labels: e.Labels}.name()
	fmt.Fprintf(b, "%s: a run ended without a shutdown (%s); its last %s profile, of %s, has %s\n",
		name, cmp.Or(why, "it is not known why"), e.Kind, utc(e.At), e.Kind.amount(e.InUse))
	for i, g := range e.Grew {
		fmt.Fprintf(b, "  %d. %s: +%s, %s in use\n     %s\n",
			i+1, stacks.Printable(g.Site), e.Kind.amount(g.Grown), e.Kind.amount(g.InUse), stacks.Printable(strings.Join(g.Stack, " → ")))
	}
	b.WriteString("\n")
}

// amount writes a number of bytes or of goroutines.
func (k Kind) amount(n int64) string {
	if k == Goroutines {
		return format.Count(int(n), "goroutine")
	}
	return format.Bytes(n)
}
