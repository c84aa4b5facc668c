package workload

import (
	"context"
	"net/http"
	"sync"

	"spanflame/workload/faults"
)

// refreshMS is how many milliseconds the warehouse takes for new rates.
const refreshMS = 420

// rates are the rates of currencies. They are refreshed by POST /api/rates.
type rates struct {
	fault *fault
	stock *inventoryClient

	mu        sync.Mutex
	refreshed sync.Cond // of mu: signals that stale may have changed
	stale     int       // refreshes that are not done yet
	number    int64     // of the rates, which counts the refreshes
}

// addBlockingRefresh adds the fault that readers wait for fresh rates.
func (s *Service) addBlockingRefresh() {
	const perSecond = 2
	x := &rates{stock: s.stock, fault: s.addFault(&fault{
		is: faults.Fault{
			Name:     "blocking-refresh",
			Kind:     faults.Inside,
			Does:     "a refresh first says that the rates are stale, and then asks the warehouse: requests wait for its signal",
			Repair:   "requests use the last rates until there are new ones",
			Function: "spanflame/workload.(*rates).refreshBlockingReaders",
			Victim:   faults.Request{Method: "GET", Path: "/api/rates", PerSecond: perSecond},
			Offender: &faults.Request{Method: "POST", Path: "/api/rates", PerSecond: perSecond},
			Knobs:    []faults.Knob{{Name: "refresh_ms", Unit: "ms", Default: refreshMS, Min: 1, Max: maxWarehouseMS}},
		},
		delay: func(knobs []int) float64 { return turns(perSecond, knobs[0]) },
	})}
	x.refreshed.L = &x.mu
	s.handle("GET /api/rates", x.readHandler)
	s.handle("POST /api/rates", x.refreshHandler)
}

// ratesNumber is the answer about rates.
type ratesNumber struct {
	Number int64 `json:"number"`
}

// readHandler answers GET /api/rates.
func (x *rates) readHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	return ratesNumber{x.read()}, nil
}

// read returns the number of the rates as soon as they are not stale.
//
//go:noinline
func (x *rates) read() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	for x.stale > 0 {
		x.refreshed.Wait()
	}
	return x.number
}

// refreshHandler answers POST /api/rates.
func (x *rates) refreshHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	if knobs, on := x.fault.settings(); on {
		return x.refreshBlockingReaders(r.Context(), knobs[0])
	}
	return x.refresh(r.Context())
}

// refresh is the repaired code.
func (x *rates) refresh(ctx context.Context) (ratesNumber, error) {
	if err := x.stock.warehouse(ctx, refreshMS); err != nil {
		return ratesNumber{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.number++
	return ratesNumber{x.number}, nil
}

// refreshBlockingReaders is refresh with the fault.
//
//go:noinline
func (x *rates) refreshBlockingReaders(ctx context.Context, ms int) (ratesNumber, error) {
	x.mu.Lock()
	x.stale++
	x.mu.Unlock()
	err := x.stock.warehouse(ctx, ms)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stale--
	x.refreshed.Broadcast()
	if err != nil {
		return ratesNumber{}, err
	}
	x.number++
	return ratesNumber{x.number}, nil
}
