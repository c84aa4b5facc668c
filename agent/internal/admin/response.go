package admin

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	// chunkBytes is the unit in which a response is written, and stalled how long a client may take to read one. A
	// client that stops reading would otherwise hold its handler for minutes.
	chunkBytes = 64 << 10
	stalled    = 10 * time.Second

	// longest limits a whole response: a request may profile for maxSeconds, and then write the profile.
	longest = (maxSeconds + 60) * time.Second

	// relayBytes limits what is waiting for a client that reads slower than the trace is written.
	relayBytes = 64 << 20
)

var (
	errSlowClient = errors.New("the client reads too slowly")
	errEnded      = errors.New("the response has ended")
)

// response writes a response within the time that a client is allowed.
type response struct {
	w     http.ResponseWriter
	file  string // name under which browsers save it; empty if they show it
	until time.Time
}

func newResponse(w http.ResponseWriter, file string) *response {
	return &response{w, file, time.Now().Add(longest)}
}

func (r *response) Write(b []byte) (written int, err error) {
	h := r.w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	if r.file != "" {
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", r.file))
	}
	c := http.NewResponseController(r.w)
	for len(b) > 0 {
		deadline := time.Now().Add(stalled)
		if r.until.Before(deadline) {
			deadline = r.until
		}
		_ = c.SetWriteDeadline(deadline) // a service's own writer may not support deadlines
		n, err := r.w.Write(b[:min(len(b), chunkBytes)])
		written, b = written+n, b[n:]
		if err != nil {
			return written, err
		}
	}
	if err := c.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return written, err
	}
	_ = c.SetWriteDeadline(time.Time{}) // the connection may be used again
	return written, nil
}

// relay passes on what the runtime's trace reader writes. That goroutine also feeds the flight recorder, so it must
// neither wait for a client nor panic.
type relay struct {
	mu      sync.Mutex
	waiting []byte
	err     error         // why the client does not have everything
	closed  bool          // nothing more is accepted
	more    chan struct{} // has a token while there is something to pass on
	ended   chan struct{} // closed when passing on has ended
}

// newRelay starts passing on to the response. The caller calls close before its handler returns.
func newRelay(to *response) *relay {
	r := &relay{more: make(chan struct{}, 1), ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		defer func() {
			if p := recover(); p != nil { // of a service's own writer
				r.end(fmt.Errorf("writing the response panicked: %v", p))
			}
		}()
		for range r.more {
			r.mu.Lock()
			b := r.waiting
			r.waiting = nil
			r.mu.Unlock()
			if _, err := to.Write(b); err != nil {
				r.end(err)
			}
		}
	}()
	return r
}

// end makes Write fail with err, unless it fails already.
func (r *relay) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err, r.waiting = err, nil
	}
}

// Write keeps b for the client. It never waits.
func (r *relay) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil && len(r.waiting)+len(b) > relayBytes {
		r.err, r.waiting = errSlowClient, nil
	}
	switch {
	case r.err != nil:
		return 0, r.err
	case r.closed:
		return 0, errEnded
	}
	r.waiting = append(r.waiting, b...)
	select {
	case r.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

// close passes on what is waiting. It returns nil if the client has everything.
func (r *relay) close() error {
	r.mu.Lock()
	r.closed = true
	close(r.more)
	r.mu.Unlock()
	<-r.ended
	return r.err
}
