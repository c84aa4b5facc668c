package workload

import (
	"context"
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"spanflame/workload/faults"
)

// parcels is how many parcels an order is sent in, each with a quote of its own.
const parcels = 5

// carrier quotes prices for parcels, as often as its limiter allows.
type carrier struct {
	fault    *fault
	contract *rate.Limiter // of the contract with the carrier
	cautious *rate.Limiter // of the fault
}

// addRateLimit adds the fault that a rate limiter is set too low.
func (s *Service) addRateLimit() {
	c := &carrier{contract: rate.NewLimiter(100, 100), cautious: rate.NewLimiter(1, 1), fault: s.addFault(&fault{
		is: faults.Fault{
			Name:     "rate-limit",
			Kind:     faults.Inside,
			Does:     "a rate limiter for the carrier admits one quote at a time, although an order needs five at once",
			Repair:   "the limiter admits as many at once as the contract with the carrier does",
			Function: "spanflame/workload.(*carrier).quoteInTurn",
			Victim:   faults.Request{Method: "GET", Path: "/api/shipping", PerSecond: 3},
			Knobs:    []faults.Knob{{Name: "interval_ms", Unit: "ms", Default: 40, Min: 1, Max: 1000}},
		},
		delay: func(knobs []int) float64 { return float64((parcels - 1) * knobs[0]) }, // the first one need not wait
	})}
	s.handle("GET /api/shipping", c.handler)
}

// quote is the answer to GET /api/shipping.
type quote struct {
	Parcels int   `json:"parcels"`
	Cents   int64 `json:"cents"`
}

// handler answers GET /api/shipping.
func (c *carrier) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	q := quote{Parcels: parcels}
	for range parcels {
		cents, err := c.quote(r.Context())
		if err != nil {
			return nil, err
		}
		q.Cents += cents
	}
	return q, nil
}

// parcelCents is what the carrier takes for a parcel.
const parcelCents = 490

func (c *carrier) quote(ctx context.Context) (cents int64, err error) {
	if knobs, on := c.fault.settings(); on {
		return c.quoteInTurn(ctx, knobs[0])
	}
	return parcelCents, c.contract.Wait(ctx)
}

// quoteInTurn is quote with the fault.
//
//go:noinline
func (c *carrier) quoteInTurn(ctx context.Context, ms int) (cents int64, err error) {
	c.cautious.SetLimit(rate.Every(time.Duration(ms) * time.Millisecond))
	return parcelCents, c.cautious.Wait(ctx)
}
