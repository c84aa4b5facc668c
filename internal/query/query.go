// Package query reads traces from Tempo or Jaeger, flame graphs from Pyroscope, and profiles from the operator's listener of
// an agent; from Tempo and Pyroscope with the same calls that Grafana makes. The viewer, package profiles/input and the
// end-to-end tests use it. It changes nothing, except that it can have an agent write an incident bundle, and it is not a
// general client: it has the calls that lead from a slow trace to its flame graph.
package query

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"spanflame/internal/traces"
)

// maxAnswer limits the body of an answer, in bytes.
const maxAnswer = 64 << 20

// timeout limits one call.
const timeout = 30 * time.Second

// client calls one server.
type client struct {
	base string // URL without a slash at its end
	http *http.Client
}

func newClient(base string) client {
	return client{strings.TrimRight(base, "/"), &http.Client{Timeout: timeout}}
}

// call sends body as JSON, unless it is nil, and decodes the answer, which is JSON, with decode.
func (c client) call(ctx context.Context, path string, query url.Values, body any, decode func([]byte) error) error {
	if body == nil {
		return c.send(ctx, path, query, "application/json", nil, decode)
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.send(ctx, path, query, "application/json", b, decode)
}

// send sends body, unless it is nil, and decodes the answer, which has the same media type, with decode.
func (c client) send(ctx context.Context, path string, query url.Values, mediaType string, body []byte, decode func([]byte) error) error {
	method, reader := http.MethodGet, io.Reader(nil)
	if body != nil {
		method, reader = http.MethodPost, bytes.NewReader(body)
	}
	u := c.base + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, reader)
	if err != nil {
		return err
	}
	u = req.URL.Redacted() // errors are shown to users, and a password is the operator's
	req.Header.Set("Accept", mediaType)
	if body != nil {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", u, err)
	case len(b) > maxAnswer:
		return fmt.Errorf("%s: the answer is longer than %d bytes", u, maxAnswer)
	case resp.StatusCode != http.StatusOK:
		return StatusError{u, resp.StatusCode, fmt.Sprintf("%.200q", b)}
	}
	if err := decode(b); err != nil {
		return fmt.Errorf("%s: %w", u, err)
	}
	return nil
}

// Span is one span of a trace.
type Span = traces.Span

// spans returns the spans of an answer, in the order of their starts.
func (c client) spans(ctx context.Context, path string, query url.Values) (spans []Span, err error) {
	err = c.call(ctx, path, query, nil, func(answer []byte) (err error) {
		spans, err = traces.Unmarshal(answer)
		return err
	})
	slices.SortStableFunc(spans, func(a, b Span) int { return a.Start.Compare(b.Start) })
	return spans, err
}

// StatusError means that a server answered with another status than 200.
type StatusError struct {
	URL    string // without its password
	Status int
	Body   string // its beginning, quoted
}

func (e StatusError) Error() string { return fmt.Sprintf("%s: status %d: %s", e.URL, e.Status, e.Body) }

// into decodes JSON into v.
func into(v any) func([]byte) error {
	return func(b []byte) error { return json.Unmarshal(b, v) }
}
