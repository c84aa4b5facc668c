package source

import (
	"context"
	"fmt"

	"spanflame/internal/query"
	"spanflame/internal/traces"
)

// askedServices is the number of services whose traces are searched at most: Jaeger searches those of one at a time.
const askedServices = 50

// jaegerTraces has the traces of a Jaeger server.
type jaegerTraces struct {
	server  *query.Jaeger
	address string // without its password
}

// failed wraps an error of the server.
func (j *jaegerTraces) failed(err error) error { return ofServer("Jaeger", j.address, err) }

// Search implements [Traces]. Of the traces that take as long as f.Min it finds those with one span that does. Jaeger does
// not search for a part of a name: the index does.
func (j *jaegerTraces) Search(ctx context.Context, f Filter) (Found, error) {
	index, notes, err := j.index(ctx, f, query.JaegerQuery{AtLeast: f.Min})
	if err != nil {
		return Found{}, err
	}
	found := index.search(f)
	found.Notes = append(found.Notes, notes...)
	return found, nil
}

// Trace implements [Traces].
func (j *jaegerTraces) Trace(ctx context.Context, id string) ([]traces.Span, error) {
	spans, err := j.server.Trace(ctx, id)
	return spans, j.failed(err)
}

// Captured implements [Traces].
func (j *jaegerTraces) Captured(ctx context.Context, f Filter) ([]traces.Span, error) {
	if err := checkSpans(limited(f.From, f.To, query.Longest)); err != nil {
		return nil, err
	}
	index, _, err := j.index(ctx, f, query.JaegerQuery{Operation: f.Name, AtLeast: min(f.Child, f.Slow)})
	if err != nil {
		return nil, err
	}
	return index.captured(f), nil
}

// Requests implements [Traces]. Jaeger does not return all spans of a service.
func (j *jaegerTraces) Requests(context.Context, Filter) ([]traces.Span, error) { return nil, nil }

// index returns the traces of the filter's service, or of all, that match the query, and what was not searched.
func (j *jaegerTraces) index(ctx context.Context, f Filter, q query.JaegerQuery) (x *traceIndex, notes []string, err error) {
	services := []string{f.Service}
	if f.Service == "" {
		if services, err = j.server.Services(ctx); err != nil {
			return nil, nil, j.failed(err)
		}
		if len(services) > askedServices {
			notes = append(notes, fmt.Sprintf("Only the traces of %d of %d services were searched: choose a service.", askedServices, len(services)))
			services = services[:askedServices]
		}
	}
	q.From, q.To = limited(f.From, f.To, week)
	q.Limit = searched
	x = newTraceIndex(nil, "", false)
	for _, service := range services {
		q.Service = service
		spans, err := j.server.Find(ctx, q)
		if err != nil {
			return nil, nil, j.failed(err)
		}
		found := make(map[string]bool)
		var added []traces.Span
		for _, s := range spans {
			found[s.TraceID] = true
			if x.traces[s.TraceID] == nil {
				added = append(added, s)
			}
		}
		x.add(line{}, added)
		if len(found) >= searched {
			notes = append(notes, fmt.Sprintf(
				"These are the slowest of the latest %d traces of %s, and there are more. Choose a shorter time range.", searched, service))
		}
	}
	return x, notes, nil
}
