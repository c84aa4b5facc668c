package workload

import (
	"crypto/rand"
	"net/http"
	"sync"

	"spanflame/workload/faults"
)

// maxLeakedKB is how many KiB a leak retains at most.
const maxLeakedKB = 128 << 10

// sessionKB is how many KiB a session has.
const sessionKB = 64

// sessions are those of customers who are in the shop.
type sessions struct {
	fault *fault

	mu     sync.Mutex
	open   map[string][]byte
	leaked int // KiB, of sessions that have ended
}

// addSessionMap adds the fault that a map only grows.
func (s *Service) addSessionMap() {
	x := &sessions{open: map[string][]byte{}}
	x.fault = s.addFault(&fault{free: x.free, is: faults.Fault{
		Name:     "session-map",
		Kind:     faults.Leak,
		Does:     "sessions are added to a map, and stay in it when they end",
		Repair:   "a session that ends is deleted from the map",
		Function: "spanflame/workload.newSession",
		Victim:   faults.Request{Method: "GET", Path: "/api/session", PerSecond: 20},
		Knobs:    []faults.Knob{{Name: "session_kb", Unit: "KiB", Default: sessionKB, Min: 1, Max: 1024}},
		Cap:      "128 MiB; after that, sessions are deleted",
	}})
	s.handle("GET /api/session", x.handler)
}

// greeting is the answer to GET /api/session.
type greeting struct {
	Sessions int `json:"sessions"`
}

// handler answers GET /api/session: a session begins and ends.
func (x *sessions) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	id, kb := rand.Text(), sessionKB
	if knobs, on := x.fault.settings(); on {
		kb = knobs[0]
	}
	session := newSession(kb)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.open[id] = session
	answer := greeting{len(x.open)}
	x.end(id)
	return answer, nil
}

// newSession returns a session that has been used.
//
//go:noinline
func newSession(kb int) []byte {
	session := make([]byte, kb<<10)
	for i := 0; i < len(session); i += 4 << 10 {
		session[i] = 1 // an untouched page costs no memory
	}
	return session
}

// end ends a session. The caller holds x.mu.
func (x *sessions) end(id string) {
	kb := len(x.open[id]) >> 10
	if x.fault.on() && x.leaked+kb <= maxLeakedKB {
		x.leaked += kb
		return // the fault
	}
	delete(x.open, id)
}

func (x *sessions) free() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.open, x.leaked = map[string][]byte{}, 0
}
