package workload

import (
	"context"
	"net/http"

	"golang.org/x/sync/errgroup"

	"spanflame/workload/faults"
)

// The suppliers that are asked for offers at the same time, and how many milliseconds one takes.
const (
	suppliers  = 8
	supplierMS = 10
)

// buyer asks suppliers for offers.
type buyer struct {
	fault *fault
	stock *inventoryClient
}

// addStraggler adds the fault that one of many answers is late.
func (s *Service) addStraggler() {
	b := &buyer{stock: s.stock, fault: s.addFault(&fault{
		is: faults.Fault{
			Name:     "straggler",
			Kind:     faults.Inside,
			Does:     "eight suppliers are asked for offers at the same time; one of them is slow, and all wait for it",
			Repair:   "the offer of the slow supplier is the one that it made last",
			Function: "spanflame/workload.(*buyer).askSlowSupplier",
			Victim:   faults.Request{Method: "GET", Path: "/api/offers", PerSecond: 5},
			Knobs:    []faults.Knob{{Name: "supplier_ms", Unit: "ms", Default: 200, Min: supplierMS, Max: maxWarehouseMS}},
		},
		delay: func(knobs []int) float64 { return max(0, float64(knobs[0])-supplierMS) },
	})}
	s.handle("GET /api/offers", b.handler)
}

// offers is the answer to a request for offers.
type offers struct {
	Offers int `json:"offers"`
}

// handler answers GET /api/offers.
func (b *buyer) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	asking, ctx := errgroup.WithContext(r.Context())
	for range suppliers - 1 {
		asking.Go(func() error { return b.askSupplier(ctx) })
	}
	if knobs, on := b.fault.settings(); on {
		asking.Go(func() error { return b.askSlowSupplier(ctx, knobs[0]) })
	}
	return offers{Offers: suppliers}, asking.Wait()
}

func (b *buyer) askSupplier(ctx context.Context) error { return b.stock.warehouse(ctx, supplierMS) }

// askSlowSupplier is the fault; nothing is asked in its place.
//
//go:noinline
func (b *buyer) askSlowSupplier(ctx context.Context, ms int) error { return b.stock.warehouse(ctx, ms) }
