package workload

import (
	"context"
	"net/http"
	"time"

	"github.com/cenkalti/backoff/v5"

	"spanflame/workload/faults"
)

// ratingTries is how often the storefront asks for what the inventory does not serve any more.
const ratingTries = 3

// The version of ratings that the inventory serves, and the one before it.
const (
	ratingsPath    = "/api/ratings?version=2"
	oldRatingsPath = "/api/ratings?version=1"
)

// addHiddenRetries adds the fault that a request is repeated that cannot succeed.
func (s *Service) addHiddenRetries() {
	f := s.addFault(&fault{
		is: faults.Fault{
			Name:     "hidden-retries",
			Kind:     faults.Outside,
			Does:     "an old version of the ratings is asked for three times, with growing pauses, before the new one: no error shows",
			Repair:   "the new version is asked for",
			Function: "spanflame/workload.(*inventoryClient).ratingsWithRetries",
			Victim:   faults.Request{Method: "GET", Path: "/api/rating", PerSecond: 5},
			Knobs:    []faults.Knob{{Name: "pause_ms", Unit: "ms", Default: 50, Min: 1, Max: 1000}},
		},
		delay: func(knobs []int) float64 { return float64(knobs[0] + 2*knobs[0]) }, // the second pause is twice as long
	})
	s.handle("GET /api/rating", func(r *http.Request) (any, error) {
		if _, err := queryInts(r); err != nil {
			return nil, err
		}
		if knobs, on := f.settings(); on {
			return ratings{Version: 2}, s.stock.ratingsWithRetries(r.Context(), milliseconds(knobs[0]))
		}
		return ratings{Version: 2}, s.stock.ratings(r.Context())
	})
}

// ratings is the repaired code.
func (c *inventoryClient) ratings(ctx context.Context) error {
	return c.ask(ctx, http.MethodGet, ratingsPath, http.NoBody)
}

// ratingsWithRetries is ratings with the fault.
//
//go:noinline
func (c *inventoryClient) ratingsWithRetries(ctx context.Context, pause time.Duration) error {
	growing := &backoff.ExponentialBackOff{InitialInterval: pause, Multiplier: 2, MaxInterval: time.Minute}
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		return struct{}{}, c.ask(ctx, http.MethodGet, oldRatingsPath, http.NoBody)
	}, backoff.WithBackOff(growing), backoff.WithMaxTries(ratingTries))
	if err != nil {
		return c.ratings(ctx)
	}
	return nil
}

// ratings is the answer about ratings.
type ratings struct {
	Version int `json:"version"`
}

// ratingsHandler answers the inventory's GET /api/ratings.
func ratingsHandler(r *http.Request) (any, error) {
	values, err := queryInts(r, param{name: "version", fallback: 2, min: 1, max: 2})
	if err != nil {
		return nil, err
	}
	if values[0] == 1 {
		return nil, &apiError{status: http.StatusGone, Message: "version 1 of the ratings is not served any more: use version 2"}
	}
	return ratings{Version: 2}, nil
}
