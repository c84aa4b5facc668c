package source

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"spanflame/internal/query"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
)

// farthest limits one search of Tempo, which accepts 7 days at most, in whole seconds.
const farthest = 167 * time.Hour

// tempoTraces has the traces of a Tempo server.
type tempoTraces struct {
	server  *query.Tempo
	address string // without its password
}

// failed wraps an error of the server.
func (t *tempoTraces) failed(err error) error { return ofServer("Tempo", t.address, err) }

// traceQL returns a query for the filter, whose name is f.Name if whole, and contains it otherwise.
func traceQL(f Filter, whole bool, more ...string) string {
	var all []string
	if f.Service != "" {
		all = append(all, "resource.service.name = "+strconv.Quote(f.Service))
	}
	if f.Version != "" {
		all = append(all, "resource.service.version = "+strconv.Quote(f.Version))
	}
	switch {
	case f.Name != "" && whole:
		all = append(all, "name = "+strconv.Quote(f.Name))
	case f.Name != "":
		all = append(all, "name =~ "+strconv.Quote("(?i).*"+regexp.QuoteMeta(f.Name)+".*"))
	}
	if f.Min > 0 {
		all = append(all, fmt.Sprintf("traceDuration >= %dns", f.Min.Nanoseconds()))
	}
	return "{ " + strings.Join(append(all, more...), " && ") + " }"
}

// Search implements [Traces]. Of a time range that is longer than Tempo accepts it searches the end.
func (t *tempoTraces) Search(ctx context.Context, f Filter) (Found, error) {
	var found Found
	from, to := limited(f.From, f.To, farthest)
	if to.Sub(from) > farthest {
		if to.Sub(from) > week {
			found.Notes = append(found.Notes, "Only the last 7 days of the time range were searched: Tempo does not accept a longer one.")
		}
		from = to.Add(-farthest)
	}
	summaries, err := t.server.Search(ctx, traceQL(f, false), from, to, searched)
	if err != nil {
		return Found{}, t.failed(err)
	}
	if len(summaries) == searched {
		found.Notes = append(
			found.Notes,
			fmt.Sprintf("These are the slowest of %d matching traces, and there are more. Choose a shorter time range or a longer duration.", searched),
		)
	}
	summaries = slices.DeleteFunc(summaries, func(t query.TraceSummary) bool { return f.leavesOut(t.RootName) })
	for _, s := range summaries[:min(len(summaries), f.Limit)] {
		found.Traces = append(found.Traces, Summary{TraceID: s.TraceID, Service: s.RootService, Name: s.RootName, Start: s.Start, Duration: s.Duration})
	}
	return found, nil
}

// Requests implements [Traces]. Tempo does not return all spans of a service.
func (t *tempoTraces) Requests(context.Context, Filter) ([]traces.Span, error) { return nil, nil }

// Trace implements [Traces].
func (t *tempoTraces) Trace(ctx context.Context, id string) ([]traces.Span, error) {
	spans, err := t.server.Trace(ctx, id)
	return spans, t.failed(err)
}

// recorded returns the condition that a span can have a profile, given how long recorded requests take, as far as a query
// can express it: a span inside a service counts although its request may have been fast, and a request is what a server
// or a consumer handles. Tempo can search by the duration of a whole trace, but only once all its spans are in one block.
func recorded(f Filter) string {
	const marked = "span." + wallprofile.ProfileIDAttribute + ` != "" && `
	request := fmt.Sprintf("duration >= %dns", f.Slow.Nanoseconds())
	if f.Requests {
		return marked + "(kind = server || kind = consumer) && " + request
	}
	return fmt.Sprintf("%s(%s || kind != server && kind != consumer && duration >= %dns)", marked, request, min(f.Child, f.Slow).Nanoseconds())
}

// Captured implements [Traces].
func (t *tempoTraces) Captured(ctx context.Context, f Filter) ([]traces.Span, error) {
	from, to := limited(f.From, f.To, query.Longest) // the time range of their profiles
	if err := checkSpans(from, to); err != nil {
		return nil, err
	}
	from = later(from, to.Add(-farthest))
	spans, err := t.server.Spans(ctx, traceQL(f, true, recorded(f))+" | select(resource.service.name, name)", from, to, min(f.Limit, searched))
	if err != nil {
		return nil, t.failed(err)
	}
	slices.SortFunc(spans, func(a, b traces.Span) int { return b.Start.Compare(a.Start) })
	for i := range spans {
		if spans[i].Service == "" {
			spans[i].Service = f.Service // older versions of Tempo leave out what the query fixes
		}
	}
	return spans[:min(len(spans), f.Limit)], nil
}
