package workload

import (
	"context"
	"errors"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// maxParked limits how many goroutines /load/goroutines parks in total; that many need about 250 MB.
const maxParked = 100_000

// done is the answer of a load endpoint that retains nothing.
type done struct {
	Load string `json:"load"`
	MS   int    `json:"ms,omitempty"`
	MB   int    `json:"mb,omitempty"`
}

// retained is the answer of a load endpoint that retains something, and of the DELETE that frees it.
type retained struct {
	Load     string `json:"load"`
	Retained int    `json:"retained"`           // MiB or goroutines now
	Released int    `json:"released,omitempty"` // by this request
	Unit     string `json:"unit"`
}

// handleLoads registers the load endpoints.
func (s *Service) handleLoads() {
	s.handleTimed("cpu", 10_000, func(ctx context.Context, d time.Duration) error {
		_, err := burnCPU(ctx, d)
		return err
	})
	s.handleTimed("lock", 10_000, s.lock.contend)
	s.handleTimed("block", 30_000, waitForChannel)
	s.handleTimed("sleep", 30_000, sleepFor)

	alloc := param{name: "mb", fallback: 64, min: 1, max: 4096}
	s.handle("GET /load/alloc", func(r *http.Request) (any, error) {
		return s.load(r, "alloc", []param{alloc}, func(ctx context.Context, v []int) (any, error) {
			return done{Load: "alloc", MB: v[0]}, churnMemory(ctx, v[0])
		})
	})

	leak := param{name: "mb", fallback: 10, min: 1, max: 1024}
	s.handle("GET /load/leak", func(r *http.Request) (any, error) {
		return s.load(r, "leak", []param{leak}, func(ctx context.Context, v []int) (any, error) {
			n, err := s.leak.grow(ctx, v[0])
			return retained{Load: "leak", Retained: n, Unit: "MiB"}, err
		})
	})
	s.handle("DELETE /load/leak", func(r *http.Request) (any, error) {
		return s.load(r, "leak", nil, func(context.Context, []int) (any, error) {
			return retained{Load: "leak", Released: s.leak.release(), Unit: "MiB"}, nil
		})
	})

	count := param{name: "n", fallback: 100, min: 1, max: maxParked}
	park := param{name: "ms", fallback: 60_000, min: 1, max: 600_000}
	s.handle("GET /load/goroutines", func(r *http.Request) (any, error) {
		return s.load(r, "goroutines", []param{count, park}, func(_ context.Context, v []int) (any, error) {
			n, err := s.parking.park(v[0], milliseconds(v[1]))
			return retained{Load: "goroutines", Retained: n, Unit: "goroutines"}, err
		})
	})
	s.handle("DELETE /load/goroutines", func(r *http.Request) (any, error) {
		return s.load(r, "goroutines", nil, func(context.Context, []int) (any, error) {
			return retained{Load: "goroutines", Released: s.parking.drain(), Unit: "goroutines"}, nil
		})
	})
}

// handleTimed registers GET /load/NAME?ms= for a load with a duration.
func (s *Service) handleTimed(name string, maxMS int, f func(context.Context, time.Duration) error) {
	ms := param{name: "ms", fallback: 100, min: 1, max: maxMS}
	s.handle("GET /load/"+name, func(r *http.Request) (any, error) {
		return s.load(r, name, []param{ms}, func(ctx context.Context, v []int) (any, error) {
			return done{Load: name, MS: v[0]}, f(ctx, milliseconds(v[0]))
		})
	})
}

func milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// load reads the parameters and runs f with them in a span "load_NAME" that carries them.
func (s *Service) load(r *http.Request, name string, params []param, f func(context.Context, []int) (any, error)) (answer any, err error) {
	values, err := queryInts(r, params...)
	if err != nil {
		return nil, err
	}
	err = s.inSpan(r.Context(), "load_"+name, func(ctx context.Context) error {
		for i, p := range params {
			trace.SpanFromContext(ctx).SetAttributes(attribute.Int("load."+p.name, values[i]))
		}
		var err error
		answer, err = f(ctx, values)
		return err
	})
	var limit *limitError
	if errors.As(err, &limit) {
		err = &apiError{status: http.StatusInsufficientStorage, Message: limit.Error()}
	}
	return answer, err
}
