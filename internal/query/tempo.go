package query

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// ProfileIDAttribute is the attribute of a span from which Grafana links to its profile: a span id.
const ProfileIDAttribute = "pyroscope.profile.id"

// Tempo is a Tempo server.
type Tempo struct{ client }

// NewTempo returns the server at the base URL.
func NewTempo(base string) *Tempo { return &Tempo{newClient(base)} }

// TraceSummary is one line of a search.
type TraceSummary struct {
	TraceID     string // 32 hex digits
	RootService string
	RootName    string
	Start       time.Time
	Duration    time.Duration
}

// Search returns at most limit traces that match a TraceQL query between two times, slowest first.
func (t *Tempo) Search(ctx context.Context, traceQL string, start, end time.Time, limit int) ([]TraceSummary, error) {
	var answer struct {
		Traces []struct {
			TraceID           string `json:"traceID"`
			RootServiceName   string `json:"rootServiceName"`
			RootTraceName     string `json:"rootTraceName"`
			StartTimeUnixNano string `json:"startTimeUnixNano"`
			DurationMs        int64  `json:"durationMs"`
		} `json:"traces"`
	}
	// Tempo takes whole seconds: the window is widened to them.
	err := t.call(ctx, "/api/search", url.Values{
		"q":     {traceQL},
		"start": {strconv.FormatInt(start.Unix(), 10)},
		"end":   {strconv.FormatInt(end.Unix()+1, 10)},
		"limit": {strconv.Itoa(limit)},
	}, nil, into(&answer))
	if err != nil {
		return nil, err
	}
	var found []TraceSummary
	for _, tr := range answer.Traces {
		ns, err := strconv.ParseInt(tr.StartTimeUnixNano, 10, 64)
		if err != nil || len(tr.TraceID) > 32 {
			return nil, fmt.Errorf("search: trace %q begins at %q", tr.TraceID, tr.StartTimeUnixNano)
		}
		found = append(found, TraceSummary{
			TraceID:     strings.Repeat("0", 32-len(tr.TraceID)) + tr.TraceID, // a search leaves zeros at the front out
			RootService: tr.RootServiceName,
			RootName:    tr.RootTraceName,
			Start:       time.Unix(0, ns),
			Duration:    time.Duration(tr.DurationMs) * time.Millisecond,
		})
	}
	slices.SortFunc(found, func(a, b TraceSummary) int { return int(b.Duration - a.Duration) })
	return found, nil
}

// Span is one span of a trace.
type Span struct {
	ID, ParentID string // 16 hex digits; a root has no parent
	Service      string
	Name         string
	Start, End   time.Time
	Attributes   map[string]string // those that are strings, numbers or booleans, as text
	Resource     map[string]string // likewise, of what emitted it
}

// Duration is how long the span took.
func (s Span) Duration() time.Duration { return s.End.Sub(s.Start) }

// Trace returns the spans of a trace, in the order of their starts; none where it is not known.
func (t *Tempo) Trace(ctx context.Context, traceID string) ([]Span, error) {
	var answer struct {
		Trace json.RawMessage `json:"trace"`
	}
	if err := t.call(ctx, "/api/v2/traces/"+url.PathEscape(traceID), nil, nil, into(&answer)); err != nil {
		return nil, err
	}
	var data tracev1.TracesData
	if len(answer.Trace) > 0 {
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(answer.Trace, &data); err != nil {
			return nil, fmt.Errorf("trace %s: %w", traceID, err)
		}
	}
	var spans []Span
	for _, rs := range data.GetResourceSpans() {
		resource := attributes(rs.GetResource().GetAttributes())
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				spans = append(spans, Span{
					ID:         hex.EncodeToString(s.GetSpanId()),
					ParentID:   hex.EncodeToString(s.GetParentSpanId()),
					Service:    resource["service.name"],
					Name:       s.GetName(),
					Start:      time.Unix(0, int64(s.GetStartTimeUnixNano())),
					End:        time.Unix(0, int64(s.GetEndTimeUnixNano())),
					Attributes: attributes(s.GetAttributes()),
					Resource:   resource,
				})
			}
		}
	}
	slices.SortStableFunc(spans, func(a, b Span) int { return a.Start.Compare(b.Start) })
	return spans, nil
}
