package workload

import (
	"net/http"
	"sync"
	"time"

	"spanflame/workload/faults"
)

// The size of what a reminder reminds of, and how often it does.
const (
	basketKB     = 64
	reminderTime = 10 * time.Second
)

// reminders remind customers of their baskets.
type reminders struct {
	fault *fault

	mu      sync.Mutex
	running []*reminder // that nobody stops
	leaked  int         // KiB
}

// reminder is a timer that starts itself again until it is stopped.
type reminder struct {
	basket []byte

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

// addForgottenTimers adds the fault that timers are not stopped.
func (s *Service) addForgottenTimers() {
	x := &reminders{}
	x.fault = s.addFault(&fault{free: x.free, is: faults.Fault{
		Name:     "forgotten-timers",
		Kind:     faults.Leak,
		Does:     "each request starts a timer that reminds of the basket again and again, and nobody stops it",
		Repair:   "the timer is stopped when the request ends",
		Function: "spanflame/workload.newReminder",
		Victim:   faults.Request{Method: "GET", Path: "/api/basket", PerSecond: 20},
		Knobs:    []faults.Knob{{Name: "basket_kb", Unit: "KiB", Default: basketKB, Min: 16, Max: 1024}},
		Cap:      "128 MiB; after that, timers are stopped",
	}})
	s.handle("GET /api/basket", x.handler)
}

// basketSize is the answer to GET /api/basket.
type basketSize struct {
	Bytes int `json:"bytes"`
}

// handler answers GET /api/basket.
func (x *reminders) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	kb := basketKB
	if knobs, on := x.fault.settings(); on {
		kb = knobs[0]
	}
	m := newReminder(kb)
	x.end(m, kb)
	return basketSize{len(m.basket)}, nil
}

//go:noinline
func newReminder(kb int) *reminder {
	m := &reminder{basket: make([]byte, kb<<10)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.timer = time.AfterFunc(reminderTime, m.remind)
	return m
}

// remind looks into the basket.
func (m *reminder) remind() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.basket) > 0 && !m.stopped {
		m.timer.Reset(reminderTime)
	}
}

// stop ends the reminder, also if it is about to remind.
func (m *reminder) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
	m.timer.Stop()
}

// end ends a request.
func (x *reminders) end(m *reminder, kb int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.fault.on() && x.leaked+kb <= maxLeakedKB {
		x.leaked += kb
		x.running = append(x.running, m) // so that a repair finds it
		return                           // the fault
	}
	m.stop()
}

func (x *reminders) free() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, m := range x.running {
		m.stop()
	}
	x.running, x.leaked = nil, 0
}
