package workload

import (
	"net/http"

	"spanflame/workload/faults"
)

// boxSize is the size of a box, in the unit of articles.
const boxSize = 10

// articles are the sizes of what is packed into boxes.
var articles = [...]int{7, 3, 5, 5, 2, 8, 6, 4, 1, 9}

// addSlowPacking adds the fault that the inventory tries all orders of articles.
func (s *Service) addSlowPacking() {
	f := s.addFault(&fault{is: faults.Fault{
		Name:     "slow-packing",
		Kind:     faults.CPU,
		Does:     "the inventory packs articles into boxes in every order, to find the one that needs the fewest boxes",
		Repair:   "it begins with the largest article, and puts each into the first box that has room",
		Function: "spanflame/workload.packEveryWay",
		Victim:   faults.Request{Method: "GET", Path: "/api/boxes", PerSecond: 3},
		Span:     "POST /api/pack",
		Knobs:    []faults.Knob{{Name: "articles", Unit: "articles", Default: 9, Min: 2, Max: len(articles)}},
		Cap:      "10 articles, which take less than a second",
	}})
	s.handle("POST /api/pack", func(r *http.Request) (any, error) {
		if _, err := queryInts(r); err != nil {
			return nil, err
		}
		n := f.is.Knobs[0].Default
		if knobs, on := f.settings(); on {
			return packed{packEveryWay(append([]int(nil), articles[:knobs[0]]...), 0)}, nil
		}
		return packed{packLargestFirst(articles[:n])}, nil
	})
}

// packed is the answer to a request to pack.
type packed struct {
	Boxes int `json:"boxes"`
}

// boxesHandler answers the storefront's GET /api/boxes: it has the inventory pack.
func (s *Service) boxesHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	return answered{}, s.stock.ask(r.Context(), http.MethodPost, "/api/pack", http.NoBody)
}

// packLargestFirst is the repaired code.
func packLargestFirst(sizes []int) int {
	var boxes []int // what is in them
	for size := boxSize; size > 0; size-- {
		for _, s := range sizes {
			if s == size {
				boxes = putFirstFit(boxes, s)
			}
		}
	}
	return len(boxes)
}

func putFirstFit(boxes []int, size int) []int {
	for i := range boxes {
		if boxes[i]+size <= boxSize {
			boxes[i] += size
			return boxes
		}
	}
	return append(boxes, size)
}

// packEveryWay is packLargestFirst with the fault. The first articles are in their places.
//
//go:noinline
func packEveryWay(sizes []int, placed int) int {
	if placed == len(sizes) {
		var room [len(articles)]int
		boxes := room[:0]
		for _, size := range sizes {
			boxes = putFirstFit(boxes, size)
		}
		return len(boxes)
	}
	best := len(sizes)
	for i := placed; i < len(sizes); i++ {
		sizes[placed], sizes[i] = sizes[i], sizes[placed]
		best = min(best, packEveryWay(sizes, placed+1))
		sizes[placed], sizes[i] = sizes[i], sizes[placed]
	}
	return best
}
