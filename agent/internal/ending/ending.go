// Package ending ends something a single time for many callers, each of which waits until its own deadline. The agent
// and its OpenTelemetry set-up use it to shut down. What is to be done, and in which order, is theirs.
package ending

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Once runs a function a single time. [New] returns one.
type Once struct {
	once  sync.Once
	ended chan struct{}
	err   error // read after ended is closed
}

// New returns a Once whose function has not been called.
func New() *Once { return &Once{ended: make(chan struct{})} }

// Do calls f if no Do has been called before, waits for the end of the call and returns its error. If ctx ends
// before, it waits no longer than grace, and returns an error that begins with what was to be done.
func (o *Once) Do(ctx context.Context, grace time.Duration, what string, f func() error) error {
	o.once.Do(func() {
		go func() {
			defer close(o.ended)
			o.err = f()
		}()
	})
	select {
	case <-o.ended:
		return o.err
	case <-ctx.Done():
	}
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case <-o.ended:
		return o.err
	case <-late.C:
	}
	select {
	case <-o.ended: // at the same time
		return o.err
	default:
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}

// Wait waits for the end of the call and returns its error.
func (o *Once) Wait() error {
	<-o.ended
	return o.err
}
