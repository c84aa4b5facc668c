package profiles

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/wallframe"
)

// Diagnose says in one line what most of a span's own time went to, such as
// "612 ms POST /api/checkout: 571 ms (93 %) waiting for a mutex in workload.(*Stock).Reserve", from the
// wall-clock profile of that span alone. It is empty for a profile that has none of the span's own time.
func Diagnose(p *profile.Profile, spanName string, duration time.Duration) string {
	times := make(map[wallframe.Place]int64)
	for _, s := range p.Sample {
		if at, own := placeOf(s); own && len(s.Value) > 0 {
			times[at] += s.Value[0]
		}
	}
	if len(times) == 0 {
		return ""
	}
	top := slices.MinFunc(slices.Collect(maps.Keys(times)), func(a, b wallframe.Place) int {
		return cmp.Or(cmp.Compare(times[b], times[a]), strings.Compare(a.Function, b.Function), strings.Compare(a.Leaf, b.Leaf))
	})
	took := time.Duration(times[top])
	return wallframe.Sentence(spanName, duration, top, took)
}

// placeOf tells the place of a sample: the innermost function that is neither of the standard library nor of
// an instrumentation, where there is one. The time of other goroutines is not the span's own.
func placeOf(s *profile.Sample) (at wallframe.Place, own bool) {
	innermost := true
	found := false
	for _, l := range s.Location {
		for _, line := range l.Line {
			if line.Function == nil {
				continue
			}
			name := line.Function.Name
			switch {
			case name == wallframe.Others:
				return wallframe.Place{}, false
			case strings.HasPrefix(name, wallframe.Span):
			case innermost && strings.HasPrefix(name, "["):
				at.Leaf = name
			case at.Function == "" || !found && ownFunction(name):
				at.Function, found = name, ownFunction(name)
			}
			innermost = false
		}
	}
	return at, true
}

// Sentence is the diagnosis that the agent noted in a wall-clock profile for a span, in a comment such as
// "span_id=4466fc8554eaf499 612 ms POST /api/checkout: …"; it is empty if there is none. It can say more
// than Diagnose, such as who held a lock.
func Sentence(p *profile.Profile, spanID string) string {
	for _, c := range p.Comments {
		if id, sentence, ok := commentOf(c); ok && id == spanID {
			return sentence
		}
	}
	return ""
}

// commentOf takes a comment apart that the agent noted for a span.
func commentOf(comment string) (spanID, sentence string, ok bool) {
	rest, ofSpan := strings.CutPrefix(comment, spanLabel+"=")
	spanID, sentence, ok = strings.Cut(rest, " ")
	return spanID, sentence, ofSpan && ok
}

// library has the first elements of the paths of the standard library's packages. A profile does not say
// where a function's package comes from, and file names do not either in a binary built with -trimpath.
var library = strings.Fields(`archive arena bufio builtin bytes cmp compress container context crypto
	database debug embed encoding errors expvar flag fmt go hash html image index internal io iter log maps
	math mime net os path plugin reflect regexp runtime simd slices sort strconv strings structs sync syscall
	testing text time unicode unique unsafe vendor weak`)

// ownFunction tells whether a function can be blamed: what the standard library and an instrumentation do, they
// do for their caller.
func ownFunction(name string) bool { return !Standard(name) && !wallframe.Instrumentation(name) }

// Standard tells whether a function such as "net/http.(*conn).serve" is of the standard library.
func Standard(function string) bool {
	name, _, _ := strings.Cut(function, "[") // type parameters have paths of their own
	dir, _, deep := strings.Cut(name, "/")
	if !deep {
		dir, _, _ = strings.Cut(name, ".")
	}
	return slices.Contains(library, dir)
}
