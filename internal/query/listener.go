package query

import (
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Listener is the operator's listener of an agent, or any other server with the pages of package net/http/pprof.
type Listener struct{ client }

// NewListener returns the server at the base URL.
func NewListener(base string) *Listener { return &Listener{newClient(base)} }

// Profile returns the profile of a name below /debug/pprof/, as it is now.
func (l *Listener) Profile(ctx context.Context, name string) ([]byte, error) {
	return l.Get(ctx, "/debug/pprof/"+name, nil, 0)
}

// CPU returns a CPU profile of the next seconds.
func (l *Listener) CPU(ctx context.Context, seconds int) ([]byte, error) {
	return l.Get(ctx, "/debug/pprof/profile", url.Values{"seconds": {strconv.Itoa(seconds)}}, time.Duration(seconds)*time.Second)
}

// Incident has the agent write an incident bundle, and returns its file, which must be closed, and the name that it has.
func (l *Listener) Incident(ctx context.Context) (name string, bundle io.ReadCloser, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.base+"/incidents", nil)
	if err != nil {
		return "", nil, err
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return "", nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 500)) // as much of it as can be read
		return "", nil, StatusError{req.URL.Redacted(), resp.StatusCode, fmt.Sprintf("%.200q", b)}
	}
	_, parameters, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition"))
	if err != nil {
		resp.Body.Close()
		return "", nil, fmt.Errorf("%s: the answer is not an incident bundle", req.URL.Redacted())
	}
	return parameters["filename"], resp.Body, nil
}

// Get returns what is at a path. The server takes a time to record it, for which it is given longer to answer.
func (l *Listener) Get(ctx context.Context, path string, query url.Values, takes time.Duration) (b []byte, err error) {
	waits := *l.http
	waits.Timeout += takes
	err = client{l.base, &waits}.send(ctx, path, query, "application/octet-stream", nil, func(answer []byte) error {
		b = answer
		return nil
	})
	return b, err
}
