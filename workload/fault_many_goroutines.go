package workload

import (
	"net/http"
	"sync"

	"spanflame/workload/faults"
)

// The customers who are notified, by default and at most, and how many workers do it.
const (
	customers       = 20_000
	maxCustomers    = 50_000
	notifierWorkers = 4
)

// notifier notifies customers, in one run at a time.
type notifier struct {
	fault   *fault
	running sync.Mutex

	mu   sync.Mutex
	sent map[int]int // notifications by customer
}

// addManyGoroutines adds the fault that there is a goroutine for each customer.
func (s *Service) addManyGoroutines() {
	n := &notifier{sent: map[int]int{}, fault: s.addFault(&fault{is: faults.Fault{
		Name:     "many-goroutines",
		Kind:     faults.Machine,
		Does:     "a goroutine is started for each customer who is notified: they queue for the CPUs, and so do all requests",
		Repair:   "a few workers notify all customers",
		Function: "spanflame/workload.(*notifier).notifyFromOwnGoroutine",
		Victim:   faults.Request{Method: "POST", Path: "/api/notify", PerSecond: 2},
		Knobs:    []faults.Knob{{Name: "customers", Unit: "goroutines", Default: customers, Min: 1, Max: maxCustomers}},
		Cap:      "one run at a time, with 50000 goroutines at most",
	}})}
	s.handle("POST /api/notify", n.handler)
}

// notified is the answer to POST /api/notify.
type notified struct {
	Customers int `json:"customers"`
}

// handler answers POST /api/notify.
func (n *notifier) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	n.running.Lock()
	defer n.running.Unlock()
	var working sync.WaitGroup
	defer working.Wait()
	if knobs, on := n.fault.settings(); on {
		for first := 0; first < knobs[0]; first += maxGoroutines {
			begin := make(chan struct{})
			for customer := first; customer < min(first+maxGoroutines, knobs[0]); customer++ {
				working.Go(func() { n.notifyFromOwnGoroutine(customer, begin) })
			}
			close(begin)
			working.Wait()
		}
		return notified{knobs[0]}, nil
	}
	for worker := range notifierWorkers {
		working.Go(func() {
			for customer := worker; customer < customers; customer += notifierWorkers {
				n.notify(customer)
			}
		})
	}
	return notified{customers}, nil
}

// notify is the work for one customer.
func (n *notifier) notify(customer int) {
	value := xorshift(uint64(customer)+1, 1000)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent[customer%1000] += int(value & 1)
}

// notifyFromOwnGoroutine is notify with the fault: when all may begin, all want to.
//
//go:noinline
func (n *notifier) notifyFromOwnGoroutine(customer int, begin <-chan struct{}) {
	<-begin
	n.notify(customer)
}
