package query

import (
	"context"
	"net/url"
	"strconv"
	"time"
)

// Listener is the operator's listener of an agent, or any other server with the pages of package net/http/pprof.
type Listener struct{ client }

// NewListener returns the server at the base URL, below which its pages begin with /debug/pprof/.
func NewListener(base string) *Listener { return &Listener{newClient(base)} }

// Profile returns the profile of a name, as it is now.
func (l *Listener) Profile(ctx context.Context, name string) ([]byte, error) {
	return l.get(ctx, name, nil)
}

// CPU returns a CPU profile of the next seconds.
func (l *Listener) CPU(ctx context.Context, seconds int) ([]byte, error) {
	waits := *l.http
	waits.Timeout += time.Duration(seconds) * time.Second
	return (&Listener{client{l.base, &waits}}).get(ctx, "profile", url.Values{"seconds": {strconv.Itoa(seconds)}})
}

func (l *Listener) get(ctx context.Context, name string, query url.Values) (b []byte, err error) {
	err = l.send(ctx, "/debug/pprof/"+name, query, "application/octet-stream", nil, func(answer []byte) error {
		b = answer
		return nil
	})
	return b, err
}
