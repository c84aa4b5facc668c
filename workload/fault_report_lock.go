package workload

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"

	"spanflame/workload/faults"
)

// priceBook has the prices of the day. Many requests read it, and a nightly report, here POST /api/report, corrects it
// by what the warehouse says.
type priceBook struct {
	fault *fault
	stock *inventoryClient

	mu     sync.RWMutex
	prices map[string]int64 // by SKU, in cents
}

// reportMS is how many milliseconds the warehouse takes for a report.
const reportMS = 420

// addReportLock adds the fault that the report locks the prices against their readers.
func (s *Service) addReportLock() {
	const perSecond = 2
	b := &priceBook{stock: s.stock, prices: map[string]int64{}, fault: s.addFault(&fault{
		is: faults.Fault{
			Name:     "report-lock",
			Kind:     faults.Inside,
			Does:     "the report locks the prices for writing while the warehouse answers: nobody can read them",
			Repair:   "the report asks the warehouse first, and locks the prices only to correct them",
			Function: "spanflame/workload.(*priceBook).reportHoldingLock",
			Victim:   faults.Request{Method: "GET", Path: "/api/prices", PerSecond: perSecond},
			Offender: &faults.Request{Method: "POST", Path: "/api/report", PerSecond: perSecond},
			Knobs:    []faults.Knob{{Name: "report_ms", Unit: "ms", Default: reportMS, Min: 1, Max: maxWarehouseMS}},
		},
		delay: func(knobs []int) float64 { return turns(perSecond, knobs[0]) },
	})}
	for _, p := range catalogue {
		b.prices[p.sku] = p.cents
	}
	s.handle("GET /api/prices", b.pricesHandler)
	s.handle("POST /api/report", b.reportHandler)
}

// pricesHandler answers GET /api/prices.
func (b *priceBook) pricesHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	return b.read(), nil
}

//go:noinline
func (b *priceBook) read() map[string]int64 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return maps.Clone(b.prices)
}

// reported is the answer to a report.
type reported struct {
	Prices int `json:"prices"`
}

// reportHandler answers POST /api/report.
func (b *priceBook) reportHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	if knobs, on := b.fault.settings(); on {
		return b.reportHoldingLock(r.Context(), knobs[0])
	}
	return b.report(r.Context())
}

// report is the repaired code.
func (b *priceBook) report(ctx context.Context) (reported, error) {
	if err := b.stock.warehouse(ctx, reportMS); err != nil {
		return reported{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.correct(), nil
}

// reportHoldingLock is report with the fault.
//
//go:noinline
func (b *priceBook) reportHoldingLock(ctx context.Context, ms int) (reported, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.stock.warehouse(ctx, ms); err != nil {
		return reported{}, err
	}
	return b.correct(), nil
}

// correct rounds the prices. The caller holds b.mu.
func (b *priceBook) correct() reported {
	for _, sku := range slices.Sorted(maps.Keys(b.prices)) {
		b.prices[sku] -= b.prices[sku] % 5
	}
	return reported{Prices: len(b.prices)}
}
