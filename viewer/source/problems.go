package source

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
)

// SetDiagnosis sets the diagnosis of a trace, which is of one of its spans, and whether that is of a request that is meant to
// last.
func (t *Summary) SetDiagnosis(of traces.Span, text string, lasts bool) {
	t.Main, t.Diagnosis, t.Lasts = of, text, lasts
	t.Cause = wallprofile.WithoutNumbers(text, of.Name)
}

// Line returns the diagnosis for a list that has the name and the duration of the trace: without these if they are those of the
// span that it is of.
func (t Summary) Line() string {
	if t.Main.Name == t.Name && (t.Main.Duration()-t.Duration).Abs() <= time.Millisecond {
		if _, rest, ok := strings.Cut(t.Diagnosis, " "+t.Name+": "); ok {
			return rest
		}
	}
	return t.Diagnosis
}

// Problem is the slow traces of one service and route that have one cause.
type Problem struct {
	Service, Name string    // of the root
	Cause         string    // empty if it is not known; it has the caller if that is the same for all
	Lasts         bool      // the requests are meant to last
	Traces        []Summary // slowest first; there is one at least
}

// Cost returns the sum of the traces' durations.
func (p Problem) Cost() (sum time.Duration) {
	for _, t := range p.Traces {
		sum += t.Duration
	}
	return sum
}

// Median returns the duration that half of the traces do not exceed.
func (p Problem) Median() time.Duration { return p.Traces[len(p.Traces)/2].Duration }

// ID returns 16 hexadecimal digits that stand for the service, route and cause.
func (p Problem) ID() string {
	sum := sha256.Sum256([]byte(strings.Join([]string{p.Service, p.Name, wallprofile.WithoutCaller(p.Cause)}, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// Problems groups traces that took as long as slow, or have a diagnosis, by service, route and cause without its caller. The first is what cost
// most time in all. Those that are meant to last, as most of their traces are, come after all others.
func Problems(all []Summary, slow time.Duration) []Problem {
	type key struct{ service, name, cause string }
	at := make(map[key]int)
	var problems []Problem
	for _, t := range all {
		if t.Duration < slow && t.Diagnosis == "" {
			continue
		}
		k := key{t.Service, t.Name, wallprofile.WithoutCaller(t.Cause)}
		i, ok := at[k]
		if !ok {
			i = len(problems)
			at[k] = i
			problems = append(problems, Problem{Service: t.Service, Name: t.Name, Cause: t.Cause})
		}
		if problems[i].Cause != t.Cause {
			problems[i].Cause = k.cause
		}
		problems[i].Traces = append(problems[i].Traces, t)
	}
	for i, p := range problems {
		lasting := 0
		for _, t := range p.Traces {
			if t.Lasts {
				lasting++
			}
		}
		problems[i].Lasts = 2*lasting > len(p.Traces)
	}
	for _, p := range problems {
		slices.SortFunc(p.Traces, func(a, b Summary) int {
			return cmp.Or(cmp.Compare(b.Duration, a.Duration), cmp.Compare(a.TraceID, b.TraceID))
		})
	}
	slices.SortFunc(problems, func(a, b Problem) int {
		if a.Lasts != b.Lasts {
			if b.Lasts {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.Cost(), a.Cost()), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Cause, b.Cause))
	})
	return problems
}

// Undiagnosed returns the IDs of at most that many traces without a diagnosis, in the order in which to make them: the slowest
// of each problem, then the second ones, and so on.
func Undiagnosed(all []Summary, slow time.Duration, most int) (ids []string) {
	problems := Problems(all, slow)
	for round, more := 0, true; more; round++ {
		more = false
		for _, p := range problems {
			if p.Cause == "" && round < len(p.Traces) {
				if len(ids) == most {
					return ids
				}
				ids, more = append(ids, p.Traces[round].TraceID), true
			}
		}
	}
	return ids
}
