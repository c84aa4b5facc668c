package query

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Jaeger is a Jaeger server, which is asked through version 3 of its API.
type Jaeger struct{ client }

// NewJaeger returns the server at the base URL, which may have the path that its pages have.
func NewJaeger(base string) *Jaeger { return &Jaeger{newClient(base)} }

// JaegerQuery selects traces of one service.
type JaegerQuery struct {
	Service   string
	Operation string        // the whole name of one of its spans, empty for any
	AtLeast   time.Duration // of one of its spans
	From, To  time.Time
	Limit     int // of traces, the latest
}

// Services returns the names of the services that have traces.
func (j *Jaeger) Services(ctx context.Context) ([]string, error) {
	var answer struct {
		Services []string `json:"services"`
	}
	err := j.call(ctx, "/api/v3/services", nil, nil, into(&answer))
	return answer.Services, err
}

// Find returns all spans of the traces that match, in the order of their starts.
func (j *Jaeger) Find(ctx context.Context, q JaegerQuery) ([]Span, error) {
	params := url.Values{
		"query.service_name":   {q.Service},
		"query.start_time_min": {q.From.UTC().Format(time.RFC3339Nano)},
		"query.start_time_max": {q.To.UTC().Format(time.RFC3339Nano)},
		"query.num_traces":     {strconv.Itoa(q.Limit)},
	}
	if q.Operation != "" {
		params.Set("query.operation_name", q.Operation)
	}
	if q.AtLeast > 0 {
		params.Set("query.duration_min", q.AtLeast.String())
	}
	return j.found(ctx, "/api/v3/traces", params)
}

// Trace returns the spans of a trace, in the order of their starts; none if the trace is unknown.
func (j *Jaeger) Trace(ctx context.Context, traceID string) ([]Span, error) {
	return j.found(ctx, "/api/v3/traces/"+url.PathEscape(traceID), nil)
}

// found returns the spans of an answer; none if it is that nothing was found.
func (j *Jaeger) found(ctx context.Context, path string, params url.Values) ([]Span, error) {
	spans, err := j.spans(ctx, path, params)
	if status, ok := errors.AsType[StatusError](err); ok && status.Status == http.StatusNotFound {
		return nil, nil
	}
	return spans, err
}
