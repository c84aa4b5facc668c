package workload

import (
	"net/http"
	"sync"

	"spanflame/workload/faults"
)

// wishKB is how many KiB a list of wishes has.
const wishKB = 64

// priceHooks are called when prices change.
type priceHooks struct {
	fault *fault

	mu     sync.Mutex
	hooks  map[int]func() int
	next   int // number of the next hook
	leaked int // KiB
}

// addKeptClosures adds the fault that a registry keeps closures, and what they refer to.
func (s *Service) addKeptClosures() {
	x := &priceHooks{hooks: map[int]func() int{}}
	x.fault = s.addFault(&fault{free: x.free, is: faults.Fault{
		Name:     "kept-closures",
		Kind:     faults.Leak,
		Does:     "each request registers a function to call when prices change, which refers to a list of wishes, and nobody removes it",
		Repair:   "the function is removed when the request ends",
		Function: "spanflame/workload.readWishes",
		Victim:   faults.Request{Method: "GET", Path: "/api/wishes", PerSecond: 20},
		Knobs:    []faults.Knob{{Name: "wishes_kb", Unit: "KiB", Default: wishKB, Min: 1, Max: 1024}},
		Cap:      "128 MiB; after that, functions are removed",
	}})
	s.handle("GET /api/wishes", x.handler)
}

// wished is the answer to GET /api/wishes.
type wished struct {
	Bytes int `json:"bytes"`
}

// handler answers GET /api/wishes.
func (x *priceHooks) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	kb := wishKB
	if knobs, on := x.fault.settings(); on {
		kb = knobs[0]
	}
	wishes := readWishes(kb)
	number := x.register(func() int { return len(wishes) })
	x.remove(number, kb)
	return wished{len(wishes)}, nil
}

//go:noinline
func readWishes(kb int) []byte { return make([]byte, kb<<10) }

func (x *priceHooks) register(hook func() int) (number int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.next++
	x.hooks[x.next] = hook
	return x.next
}

// remove removes a hook.
func (x *priceHooks) remove(number, kb int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, registered := x.hooks[number] // not if a repair has freed it
	if x.fault.on() && registered && x.leaked+kb <= maxLeakedKB {
		x.leaked += kb
		return // the fault
	}
	delete(x.hooks, number)
}

func (x *priceHooks) free() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.hooks, x.leaked = map[int]func() int{}, 0
}
