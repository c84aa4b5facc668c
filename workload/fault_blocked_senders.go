package workload

import (
	"net/http"
	"sync"

	"spanflame/workload/faults"
)

// maxBlocked is how many goroutines the fault leaves behind at most.
const maxBlocked = 10_000

// mirrors are two sources of the same answer, of which the faster one counts.
type mirrors struct {
	fault *fault

	mu        sync.Mutex
	abandoned []chan int // with a sender each
}

// addBlockedSenders adds the fault that goroutines send to channels that nobody reads.
func (s *Service) addBlockedSenders() {
	m := &mirrors{}
	m.fault = s.addFault(&fault{free: m.free, is: faults.Fault{
		Name:     "blocked-senders",
		Kind:     faults.Leak,
		Does:     "two goroutines send their answers to a channel without room, and the request reads one: the other goroutine never ends",
		Repair:   "the channel has room for both answers",
		Function: "spanflame/workload.sendAnswer",
		Victim:   faults.Request{Method: "GET", Path: "/api/fastest", PerSecond: 20},
		Cap:      "10000 goroutines; after that, channels have room",
	}})
	s.handle("GET /api/fastest", m.handler)
}

// fastest is the answer to GET /api/fastest.
type fastest struct {
	Mirror int `json:"mirror"`
}

// handler answers GET /api/fastest.
func (m *mirrors) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	answers := m.newChannel()
	for mirror := range 2 {
		go sendAnswer(answers, mirror)
	}
	return fastest{<-answers}, nil
}

//go:noinline
func sendAnswer(answers chan<- int, mirror int) { answers <- mirror }

func (m *mirrors) newChannel() chan int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault.on() && len(m.abandoned) < maxBlocked {
		answers := make(chan int) // the fault
		m.abandoned = append(m.abandoned, answers)
		return answers
	}
	return make(chan int, 2)
}

// free ends the goroutines. A request in flight can take the second answer instead of the first: it gets one in any
// case.
func (m *mirrors) free() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, answers := range m.abandoned {
		<-answers
	}
	m.abandoned = nil
}
