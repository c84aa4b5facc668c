package workload

import (
	"context"
	"net/http"
	"runtime"
	"sync"

	"spanflame/workload/faults"
)

// forecastWorkers is how many workers of the fault share a CPU.
const forecastWorkers = 4

// forecast predicts sales, in one run at a time.
type forecast struct {
	fault   *fault
	running sync.Mutex
}

// addAllCPUs adds the fault that a batch job takes all CPUs.
func (s *Service) addAllCPUs() {
	f := &forecast{fault: s.addFault(&fault{is: faults.Fault{
		Name:     "all-cpus",
		Kind:     faults.Machine,
		Does:     "a forecast computes with four workers for each CPU: requests can run, but wait for a CPU",
		Repair:   "the forecast has one worker",
		Function: "spanflame/workload.computeForecast",
		Victim:   faults.Request{Method: "GET", Path: "/api/price", PerSecond: 10},
		Offender: &faults.Request{Method: "POST", Path: "/api/forecast", PerSecond: 1},
		Knobs:    []faults.Knob{{Name: "forecast_ms", Unit: "ms", Default: 900, Min: 1, Max: 2000}},
		Cap:      "one forecast at a time",
	}})}
	s.handle("GET /api/price", priceHandler)
	s.handle("POST /api/forecast", f.handler)
}

// price is the answer to GET /api/price.
type price struct {
	Cents int64 `json:"cents"`
}

// priceHandler answers GET /api/price, with 40 ms of CPU time: more than a goroutine may run at a time while others wait.
func priceHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	var sum price
	for _, p := range catalogue[:4] {
		sum.Cents += bestOffer(p.cents)
	}
	return sum, nil
}

// forecasted is the answer to POST /api/forecast.
type forecasted struct {
	Workers int `json:"workers"`
}

// handler answers POST /api/forecast.
func (f *forecast) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	f.running.Lock()
	defer f.running.Unlock()
	workers, ms := 1, f.fault.is.Knobs[0].Default
	if knobs, on := f.fault.settings(); on {
		workers, ms = forecastWorkers*runtime.GOMAXPROCS(0), knobs[0]
	}
	var working sync.WaitGroup
	for range workers {
		working.Go(func() { computeForecast(r.Context(), ms) })
	}
	working.Wait()
	return forecasted{Workers: workers}, r.Context().Err()
}

// computeForecast computes for so many milliseconds, or until ctx ends.
//
//go:noinline
func computeForecast(ctx context.Context, ms int) { _, _ = burnCPU(ctx, milliseconds(ms)) }
