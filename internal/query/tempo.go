package query

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

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

// found is a trace in the answer of a search.
type found struct {
	TraceID           string `json:"traceID"`
	RootServiceName   string `json:"rootServiceName"`
	RootTraceName     string `json:"rootTraceName"`
	StartTimeUnixNano string `json:"startTimeUnixNano"`
	DurationMs        int64  `json:"durationMs"`
	SpanSets          []struct {
		Spans []struct {
			SpanID            string `json:"spanID"`
			Name              string `json:"name"`
			StartTimeUnixNano string `json:"startTimeUnixNano"`
			DurationNanos     string `json:"durationNanos"`
			Attributes        []struct {
				Key   string `json:"key"`
				Value struct {
					StringValue string `json:"stringValue"`
				} `json:"value"`
			} `json:"attributes"`
		} `json:"spans"`
	} `json:"spanSets"`
}

// search returns the traces that have spans that match, each with at most perTrace of these.
func (t *Tempo) search(ctx context.Context, traceQL string, start, end time.Time, limit, perTrace int) ([]found, error) {
	var answer struct {
		Traces []found `json:"traces"`
	}
	// Tempo accepts whole seconds: the time range is widened to them.
	err := t.call(ctx, "/api/search", url.Values{
		"q":     {traceQL},
		"start": {strconv.FormatInt(start.Unix(), 10)},
		"end":   {strconv.FormatInt(end.Unix()+1, 10)},
		"limit": {strconv.Itoa(limit)},
		"spss":  {strconv.Itoa(perTrace)},
	}, nil, into(&answer))
	for i := range answer.Traces {
		tr := &answer.Traces[i]
		if len(tr.TraceID) > 32 {
			return nil, fmt.Errorf("search: trace %q", tr.TraceID)
		}
		tr.TraceID = strings.Repeat("0", 32-len(tr.TraceID)) + tr.TraceID // a search leaves out leading zeros
	}
	return answer.Traces, err
}

// Search returns at most limit traces that match a TraceQL query between two times, slowest first.
func (t *Tempo) Search(ctx context.Context, traceQL string, start, end time.Time, limit int) ([]TraceSummary, error) {
	traces, err := t.search(ctx, traceQL, start, end, limit, 1)
	if err != nil {
		return nil, err
	}
	var all []TraceSummary
	for _, tr := range traces {
		ns, err := strconv.ParseInt(tr.StartTimeUnixNano, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("search: trace %q begins at %q", tr.TraceID, tr.StartTimeUnixNano)
		}
		all = append(all, TraceSummary{
			TraceID:     tr.TraceID,
			RootService: tr.RootServiceName,
			RootName:    tr.RootTraceName,
			Start:       time.Unix(0, ns),
			Duration:    time.Duration(tr.DurationMs) * time.Millisecond,
		})
	}
	slices.SortFunc(all, func(a, b TraceSummary) int { return cmp.Compare(b.Duration, a.Duration) })
	return all, nil
}

// Spans returns spans that match a TraceQL query between two times, of at most limit traces and at most 20 of
// each. They have ID, name, start and end, and the text attributes that the query selects.
func (t *Tempo) Spans(ctx context.Context, traceQL string, start, end time.Time, limit int) ([]Span, error) {
	traces, err := t.search(ctx, traceQL, start, end, limit, 20)
	if err != nil {
		return nil, err
	}
	var all []Span
	for _, tr := range traces {
		for _, set := range tr.SpanSets {
			for _, s := range set.Spans {
				start, err1 := strconv.ParseInt(s.StartTimeUnixNano, 10, 64)
				took, err2 := strconv.ParseInt(s.DurationNanos, 10, 64)
				if err := errors.Join(err1, err2); err != nil || len(s.SpanID) > 16 {
					return nil, fmt.Errorf("search: span %q begins at %q and has the duration %q", s.SpanID, s.StartTimeUnixNano, s.DurationNanos)
				}
				span := Span{
					TraceID:    tr.TraceID,
					ID:         strings.Repeat("0", 16-len(s.SpanID)) + s.SpanID,
					Name:       s.Name,
					Start:      time.Unix(0, start),
					End:        time.Unix(0, start+took),
					Attributes: make(map[string]string),
				}
				for _, a := range s.Attributes {
					span.Attributes[a.Key] = a.Value.StringValue
				}
				span.Service = span.Attributes["service.name"]
				all = append(all, span)
			}
		}
	}
	return all, nil
}

// Trace returns the spans of a trace, in the order of their starts; none if the trace is unknown.
func (t *Tempo) Trace(ctx context.Context, traceID string) ([]Span, error) {
	return t.spans(ctx, "/api/v2/traces/"+url.PathEscape(traceID), nil)
}
