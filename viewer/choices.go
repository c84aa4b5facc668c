package viewer

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"time"

	"spanflame/viewer/source"

	"spanflame/internal/format"
	"spanflame/internal/traces"
)

// Limits of the choices on the page Compare.
const (
	listedSpans    = 12
	chosenNames    = 12
	listedVersions = 8
	recentTime     = 26 * time.Hour   // a day, and an hour to compare with
	recently       = 10 * time.Minute // after its last profile, a service counts as running
)

// choices are the possible sides of a comparison, so that users need not type IDs or times.
type choices struct {
	Chosen  string // the span that was chosen, as TRACE/SPAN
	Alone   bool   // no other span of its name is known: the spans have other names
	Spans   []chosenSpan
	Names   []link        // span names: the slowest against the median
	Service string        // whose types these are
	Types   []typeChoices // that the service has
	Others  []link        // services
}

// chosenSpan is a span, with the addresses of the comparisons that have it as one side; an address is empty if that side is
// already chosen.
type chosenSpan struct {
	Path, Service, Name, Duration string
	Started                       time.Time
	Before, After                 string
}

// typeChoices is a type with the comparisons that can be made of it.
type typeChoices struct {
	Words string
	Links []link
}

// choices returns what can be compared.
func (s *server) choices(ctx context.Context, c comparison, services []string) (*choices, error) {
	o := &choices{Service: c.service}
	if err := s.addSpans(ctx, c, o); err != nil {
		return nil, err
	}
	if o.Service == "" && len(o.Spans) > 0 {
		o.Service = o.Spans[0].Service // that of the slowest request
	} else if o.Service == "" && len(services) > 0 {
		o.Service = services[0]
	}
	for _, name := range services {
		if name != o.Service && len(o.Others) < listedNames {
			o.Others = append(o.Others, link{name, "/compare?" + url.Values{"what": {"times"}, "service": {name}}.Encode()})
		}
	}
	if o.Service != "" {
		contents, err := s.contents(ctx, o.Service, period{})
		if err != nil {
			return nil, err
		}
		o.Types = choicesOf(o.Service, contents, s.options.Base != nil, time.Now(), s.zone)
	}
	return o, nil
}

// contents returns the contents of a service in a time range. Without a range they are those of the last day or, if there
// are none, all: finding the versions of everything in a large directory takes long.
func (s *server) contents(ctx context.Context, service string, p period) ([]source.Content, error) {
	if p.from.IsZero() && p.to.IsZero() {
		recent, err := s.source.Contents(ctx, service, time.Now().Add(-recentTime), time.Time{})
		if err != nil || len(recent) > 0 {
			return recent, err
		}
	}
	return s.source.Contents(ctx, service, p.from, p.to)
}

// addSpans adds the slowest spans or, if one side is already chosen, spans of the same name from the slowest to the
// fastest; if there are none, spans of any name.
func (s *server) addSpans(ctx context.Context, c comparison, o *choices) error {
	f := source.Filter{Slow: s.options.SlowSpan, Child: defaultChildSpan, Limit: capturedSpans}
	var chosen traces.Span
	if o.Chosen = cmp.Or(c.spanA, c.spanB); o.Chosen != "" {
		var err error
		if chosen, err = s.spanAt(ctx, o.Chosen); err != nil {
			return err
		}
		f.Service, f.Name = chosen.Service, chosen.Name
	}
	captured := func(f source.Filter) ([]traces.Span, error) {
		spans, err := s.source.Captured(ctx, f)
		return slices.DeleteFunc(spans, func(sp traces.Span) bool { return sp.ID == chosen.ID }), err
	}
	spans, err := captured(f)
	if o.Alone = err == nil && o.Chosen != "" && len(spans) == 0; o.Alone {
		f.Service, f.Name = "", ""
		spans, err = captured(f)
	}
	if err != nil {
		return err
	}
	if o.Chosen == "" {
		for _, n := range byName(spans, nil) {
			if n.Count > 1 && len(o.Names) < chosenNames {
				o.Names = append(o.Names, link{n.Service + " " + n.Name, n.Path + "#difference"})
			}
		}
	}
	slices.SortFunc(spans, func(a, b traces.Span) int {
		return cmp.Or(cmp.Compare(b.Duration(), a.Duration()), cmp.Compare(a.ID, b.ID))
	})
	if o.Chosen != "" {
		spans = source.Spread(spans, listedSpans)
	}
	for _, sp := range spans[:min(len(spans), listedSpans)] {
		listed := chosenSpan{
			Path: SpanPath(sp.TraceID, sp.ID), Service: sp.Service, Name: sp.Name, Duration: format.Duration(sp.Duration()),
			Started: sp.Start.UTC(),
		}
		with := func(side string) string {
			q := url.Values{"type": {c.Type.Name}, side: {sp.TraceID + "/" + sp.ID}}
			for name, v := range map[string]string{"a": c.spanA, "b": c.spanB} {
				if v != "" {
					q.Set(name, v)
				}
			}
			return "/compare?" + q.Encode()
		}
		if c.spanA == "" {
			listed.Before = with("a")
		}
		if c.spanB == "" {
			listed.After = with("b")
		}
		o.Spans = append(o.Spans, listed)
	}
	return nil
}

// recentTimes are the comparisons of a running service, as parameters. Each begins so long ago.
var recentTimes = []struct {
	words string
	begin time.Duration
	of    url.Values
}{
	{"the last 5 minutes against the 5 before", 10 * time.Minute, url.Values{"afrom": {"10m"}, "ato": {"5m"}, "bfrom": {"5m"}}},
	{"the last 15 minutes against the 15 before", 30 * time.Minute, url.Values{"afrom": {"30m"}, "ato": {"15m"}, "bfrom": {"15m"}}},
	{"the last hour against the hour before", 2 * time.Hour, url.Values{"afrom": {"2h"}, "ato": {"1h"}, "bfrom": {"1h"}}},
	{"the last hour against that of a day ago", 25 * time.Hour, url.Values{"afrom": {"25h"}, "ato": {"24h"}, "bfrom": {"1h"}}},
}

// choicesOf returns the comparisons of a service with the base directory, of each version with the one before it, and of
// times.
func choicesOf(service string, contents []source.Content, hasBase bool, now time.Time, z zone) []typeChoices {
	var all []typeChoices
	for _, t := range typesIn(contents) {
		var versions []string
		var from, to time.Time
		has, several := false, 0
		for _, c := range contents {
			if c.Type != t.Type {
				continue
			}
			if !has || c.From.Before(from) {
				from = c.From
			}
			if c.To.After(to) {
				to = c.To
			}
			has = true
			if several++; c.Several {
				several++
			}
			if c.Version != "" {
				versions = append(versions, c.Version)
			}
		}
		if !has {
			continue
		}
		chosen := typeChoices{Words: t.Words}
		add := func(what, words string, more url.Values) {
			q := url.Values{"what": {what}, "service": {service}, "type": {t.Name}}
			for name, v := range more {
				q[name] = v
			}
			chosen.Links = append(chosen.Links, link{words, "/compare?" + q.Encode()})
		}
		if hasBase {
			add("directories", "against the base directory", nil)
		}
		for i := max(1, len(versions)-listedVersions); i < len(versions); i++ {
			before, after := versions[i-1], versions[i]
			add(
				"versions", fmt.Sprintf("version %s against %s", format.Clean(after, 80), format.Clean(before, 80)),
				url.Values{"aversion": {before}, "bversion": {after}},
			)
		}
		unknown := to.IsZero()
		for _, r := range recentTimes {
			if unknown || now.Sub(to) < recently && now.Add(-r.begin).After(from) {
				add("times", r.words, r.of)
			}
		}
		if !unknown && several > 1 && to.After(from) {
			middle := from.Add(to.Sub(from) / 2)
			add("times", fmt.Sprintf("the half from %s against the half before", z.clock(middle)), url.Values{
				"afrom": {stamp(from)}, "ato": {stamp(middle)}, "bfrom": {stamp(middle)},
				"bto": {stamp(to.Add(time.Millisecond))}, // which includes a profile of that moment
			})
		}
		all = append(all, chosen)
	}
	return all
}

// stamp formats a time for an address.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
