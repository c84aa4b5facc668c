package workload

import (
	"context"
	"net/http"

	"golang.org/x/sync/semaphore"

	"spanflame/workload/faults"
)

// manifestMS is how many milliseconds the warehouse takes for a manifest.
const manifestMS = 420

// labelSlots is how many labels can be drawn at the same time.
const labelSlots = 4

// labels draws labels, and manifests, which need all slots.
type labels struct {
	fault *fault
	stock *inventoryClient
	slots *semaphore.Weighted
}

// addFewSlots adds the fault that one request keeps all slots of a semaphore.
func (s *Service) addFewSlots() {
	const perSecond = 2
	l := &labels{stock: s.stock, slots: semaphore.NewWeighted(labelSlots), fault: s.addFault(&fault{
		is: faults.Fault{
			Name:     "few-slots",
			Kind:     faults.Inside,
			Does:     "a manifest takes all slots of a semaphore, and keeps them while the warehouse answers",
			Repair:   "a manifest takes the slots when the warehouse has answered",
			Function: "spanflame/workload.(*labels).manifestKeepingSlots",
			Victim:   faults.Request{Method: "GET", Path: "/api/label", PerSecond: perSecond},
			Offender: &faults.Request{Method: "POST", Path: "/api/manifest", PerSecond: perSecond},
			Knobs:    []faults.Knob{{Name: "manifest_ms", Unit: "ms", Default: manifestMS, Min: 1, Max: maxWarehouseMS}},
		},
		delay: func(knobs []int) float64 { return turns(perSecond, knobs[0]) },
	})}
	s.handle("GET /api/label", l.labelHandler)
	s.handle("POST /api/manifest", l.manifestHandler)
}

// drawn is the answer to a request to draw something.
type drawn struct {
	Labels int `json:"labels"`
}

// labelHandler answers GET /api/label.
func (l *labels) labelHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	return drawn{Labels: 1}, l.draw(r.Context(), 1)
}

// draw draws n labels at the same time.
//
//go:noinline
func (l *labels) draw(ctx context.Context, n int64) error {
	if err := l.slots.Acquire(ctx, n); err != nil {
		return err
	}
	defer l.slots.Release(n)
	return (&page{title: "Label"}).print(ctx)
}

// manifestHandler answers POST /api/manifest.
func (l *labels) manifestHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	if knobs, on := l.fault.settings(); on {
		return drawn{Labels: labelSlots}, l.manifestKeepingSlots(r.Context(), knobs[0])
	}
	return drawn{Labels: labelSlots}, l.manifest(r.Context())
}

// manifest is the repaired code.
func (l *labels) manifest(ctx context.Context) error {
	if err := l.stock.warehouse(ctx, manifestMS); err != nil {
		return err
	}
	return l.draw(ctx, labelSlots)
}

// manifestKeepingSlots is manifest with the fault.
//
//go:noinline
func (l *labels) manifestKeepingSlots(ctx context.Context, ms int) error {
	if err := l.slots.Acquire(ctx, labelSlots); err != nil {
		return err
	}
	defer l.slots.Release(labelSlots)
	if err := l.stock.warehouse(ctx, ms); err != nil {
		return err
	}
	return (&page{title: "Manifest"}).print(ctx)
}
