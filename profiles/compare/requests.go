package compare

import (
	"cmp"
	"slices"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Route compares the requests of one name. Routes are of all requests, not only of those that were profiled.
type Route struct {
	Name   string    `json:"name"`
	Before Durations `json:"before"`
	After  Durations `json:"after"`
}

// Durations describes how long requests took.
type Durations struct {
	Requests int           `json:"requests"`
	Median   time.Duration `json:"median_ns"`
	P99      time.Duration `json:"p99_ns"`
}

// requests are all requests of a side.
type requests struct {
	all    []traces.Span // by their start
	bySpan map[string]int
	byName map[string][]time.Duration // sorted
}

// newRequests indexes the requests of a name, or all of them if it is empty.
func newRequests(all []traces.Span, name string) *requests {
	r := &requests{bySpan: map[string]int{}, byName: map[string][]time.Duration{}}
	for _, q := range all {
		if name == "" || q.Name == name {
			r.all = append(r.all, q)
		}
	}
	slices.SortFunc(r.all, func(a, b traces.Span) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.ID, b.ID)) })
	for i, q := range r.all {
		r.bySpan[q.ID] = i
		r.byName[q.Name] = append(r.byName[q.Name], q.Duration())
	}
	for _, d := range r.byName {
		slices.Sort(d)
	}
	return r
}

// divided returns a window for each request of a wall-clock profile, which may be of several, and of other types the
// window itself.
func (s *side) divided(w profiles.Window) []profiles.Window {
	if s.requests == nil || w.Type != record.Wall {
		return []profiles.Window{w}
	}
	bySpan := map[string][]*profile.Sample{}
	var ids []string
	for _, sample := range w.Profile.Sample {
		id := spanID(sample)
		if bySpan[id] == nil {
			ids = append(ids, id)
		}
		bySpan[id] = append(bySpan[id], sample)
	}
	if len(ids) < 2 {
		return []profiles.Window{w}
	}
	all := make([]profiles.Window, len(ids))
	for i, id := range ids {
		all[i] = w
		all[i].Profile = profiles.WithSamples(w.Profile, bySpan[id])
	}
	return all
}

// spanID returns the span that a sample names, empty for none.
func spanID(s *profile.Sample) string {
	if ids := s.Label[wallprofile.SpanID]; len(ids) > 0 {
		return ids[0]
	}
	return ""
}

// find returns the index of the request that a window is the wall-clock profile of, -1 if it is of none that is known.
func (r *requests) find(w profiles.Window) int {
	if r != nil && w.Type == record.Wall && len(w.Profile.Sample) > 0 {
		if i, ok := r.bySpan[spanID(w.Profile.Sample[0])]; ok {
			return i
		}
	}
	return -1
}

// only returns a profile with the samples of the requests alone.
func (r *requests) only(p *profile.Profile) *profile.Profile {
	return profiles.WithSamples(p, slices.DeleteFunc(slices.Clone(p.Sample), func(s *profile.Sample) bool {
		_, ok := r.bySpan[spanID(s)]
		return !ok
	}))
}

// NewDurations describes sorted durations.
func NewDurations(d []time.Duration) Durations {
	if len(d) == 0 {
		return Durations{}
	}
	return Durations{Requests: len(d), Median: d[(len(d)-1)/2], P99: d[(len(d)*99-1)/100]}
}

// routes compares the requests by their names, those first that took most of the time.
func routes(before, after *requests) []Route {
	var all []Route
	took := map[string]time.Duration{}
	for _, side := range []*requests{before, after} {
		for name, durations := range side.byName {
			if _, ok := took[name]; !ok {
				all = append(all, Route{name, NewDurations(before.byName[name]), NewDurations(after.byName[name])})
			}
			for _, d := range durations {
				took[name] += d
			}
		}
	}
	slices.SortFunc(all, func(a, b Route) int {
		return cmp.Or(cmp.Compare(took[b.Name], took[a.Name]), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// byRequest divides wall-clock profiles of slow requests by all requests, of which the traces tell the number. A request
// that was not slow has no profile, and counts as one without slow time. The mean is that of each name, weighted in the
// same way on both sides, so that another mix of requests is no change; names that only one side has are left out.
// Profiles of slow requests stand for all slow requests of their name: the agent's budget may not allow a profile of each.
// A name that has slow requests on a side but no profile of one is left out, too: how they spent their time is not known.
// It returns false if no name is left.
func (c *comparison) byRequest(r *Report) bool {
	sides := [2]*requests{c.sides[0].requests, c.sides[1].requests}
	measures := [2]*measure{c.before, c.after}
	if sides[0] == nil || sides[1] == nil || !c.before.ofSpans() || !c.after.ofSpans() {
		return false
	}
	var slow time.Duration // the shortest request with a profile
	for i, m := range measures {
		for _, w := range m.windows {
			if d := sides[i].all[w.request].Duration(); slow == 0 || d < slow {
				slow = d
			}
		}
	}
	var took, profiled [2]map[string]time.Duration // of the slow requests of each name, and of those with a profile
	for i, m := range measures {
		took[i], profiled[i] = map[string]time.Duration{}, map[string]time.Duration{}
		for name, durations := range sides[i].byName {
			first, _ := slices.BinarySearch(durations, slow)
			for _, d := range durations[first:] {
				took[i][name] += d
			}
		}
		for _, w := range m.windows {
			q := sides[i].all[w.request]
			profiled[i][q.Name] += q.Duration()
		}
	}
	share, sum, common, without := map[string]float64{}, 0.0, 0, 0
	for name, before := range sides[0].byName {
		b, a := float64(len(before)), float64(len(sides[1].byName[name]))
		if a == 0 {
			continue
		}
		common++
		if took[0][name] > 0 && profiled[0][name] == 0 || took[1][name] > 0 && profiled[1][name] == 0 {
			without++
			continue
		}
		share[name] = a * b / (a + b) // the weight by which the difference is most precise
		sum += share[name]
	}
	if n := len(sides[0].byName) + len(sides[1].byName) - 2*common; n > 0 {
		r.note("%s: only one side has requests of some names (%d), which are left out", c.before.name, n)
	}
	if without > 0 {
		r.note("%s: one side has slow requests of some names (%d) but no profile of them; these names are left out", c.before.name, without)
	}
	if sum == 0 {
		return false
	}
	for i, m := range measures {
		factor := map[string]float64{}
		for name, part := range profiled[i] {
			factor[name] = share[name] / sum / float64(len(sides[i].byName[name])) * float64(took[i][name]) / float64(part)
		}
		p := points{divisors: slices.Repeat([]float64{1.0 / wallBins}, wallBins)}
		for _, w := range m.windows {
			p.of = append(p.of, w.request*wallBins/len(sides[i].all))
			p.factors = append(p.factors, factor[sides[i].all[w.request].Name])
		}
		c.points[i] = p
	}
	c.scale = float64(len(sides[1].all)) / float64(len(sides[0].all))
	c.tested = min(len(sides[0].all), len(sides[1].all)) >= wallBins
	return true
}
