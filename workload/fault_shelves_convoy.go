package workload

import (
	"context"

	"spanflame/workload/faults"
)

// addShelvesConvoy adds the fault that the stock is locked while the warehouse answers.
func (s *Service) addShelvesConvoy() {
	s.lockConvoy = s.addFault(&fault{is: faults.Fault{
		Name:     "lock-convoy",
		Kind:     faults.Outside,
		Does:     "the stock is locked while the warehouse answers: concurrent reservations queue for it",
		Repair:   "the stock is locked only while it changes",
		Function: "spanflame/workload.(*stock).reserveHoldingShelves",
		Victim:   faults.Request{Method: "POST", Path: "/api/checkout?items=1", PerSecond: 30},
		Span:     "POST /api/reserve",
	}})
}

// reserve takes either all lines from the shelves, once the warehouse has confirmed them, or none.
func (s *stock) reserve(ctx context.Context, lines []line) (reserved, error) {
	if s.lockConvoy.on() {
		return s.reserveHoldingShelves(ctx, lines)
	}
	s.mu.Lock()
	answer, err := s.take(lines)
	s.mu.Unlock()
	if err != nil {
		return reserved{}, err
	}
	if err := s.confirm(ctx, warehouseTime); err != nil {
		s.mu.Lock()
		s.putBack(lines)
		s.mu.Unlock()
		return reserved{}, err
	}
	return answer, nil
}

// reserveHoldingShelves is reserve with the fault lock-convoy: it holds the lock until the warehouse has answered.
//
//go:noinline
func (s *stock) reserveHoldingShelves(ctx context.Context, lines []line) (reserved, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, err := s.take(lines)
	if err != nil {
		return reserved{}, err
	}
	if err := s.confirm(ctx, warehouseTime); err != nil {
		s.putBack(lines)
		return reserved{}, err
	}
	return answer, nil
}
