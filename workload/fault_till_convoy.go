package workload

import (
	"context"
	"sync"

	"spanflame/workload/faults"
)

// addTillConvoy adds the fault that the till is locked while others answer.
func (s *Service) addTillConvoy() {
	s.lockConvoy = s.addFault(&fault{is: faults.Fault{
		Name:     "lock-convoy",
		Kind:     faults.Inside,
		Does:     "the till is locked while the inventory and the database answer: concurrent requests queue for it",
		Repair:   "the till is locked only while it changes",
		Function: "spanflame/workload.(*Service).settleHoldingTill",
		Victim:   faults.Request{Method: "POST", Path: "/api/checkout?items=1", PerSecond: 30},
	}})
}

// till numbers the orders.
type till struct {
	mu   sync.Mutex
	last int64 // guarded by mu
}

// next returns the number of the next order.
func (t *till) next() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	return t.last
}

// settle reserves and saves an order and returns its number. A failed order uses no number.
func (s *Service) settle(ctx context.Context, o order) (number int64, err error) {
	if s.lockConvoy.on() {
		return s.settleHoldingTill(ctx, o)
	}
	if err := s.reserveAndSave(ctx, o); err != nil {
		return 0, err
	}
	return s.till.next(), nil
}

// settleHoldingTill is settle with the fault lock-convoy: it holds the lock while two other services answer.
//
//go:noinline
func (s *Service) settleHoldingTill(ctx context.Context, o order) (number int64, err error) {
	s.till.mu.Lock()
	defer s.till.mu.Unlock()
	if err := s.reserveAndSave(ctx, o); err != nil {
		return 0, err
	}
	s.till.last++
	return s.till.last, nil
}
