package query

import (
	"context"
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
