package workload

import (
	"encoding/json"
	"fmt"
	"net/http"

	"spanflame/workload/faults"
)

// feedProducts is how many products the feed has.
const feedProducts = 10_000

// addSlowEncoding adds the fault that a large answer is encoded by reflection, from maps, for each request.
func (s *Service) addSlowEncoding() {
	f := &feed{fault: s.addFault(&fault{is: faults.Fault{
		Name:     "slow-encoding",
		Kind:     faults.CPU,
		Does:     "the feed of all products is built from maps, and encoded by reflection, for each request",
		Repair:   "the feed is encoded once, when the service starts",
		Function: "spanflame/workload.encodeFromMaps",
		Victim:   faults.Request{Method: "GET", Path: "/api/feed", PerSecond: 5},
		Knobs:    []faults.Knob{{Name: "products", Unit: "products", Default: feedProducts, Min: 1, Max: 20_000}},
		Cap:      "20000 products, which are about 3 MiB",
	}})}
	f.encoded, _ = encodeFromMaps(feedProducts) // strings and numbers cannot fail
	s.handle("GET /api/feed", f.handler)
}

// feed is an answer that is the same for all.
type feed struct {
	fault   *fault
	encoded json.RawMessage
}

// handler answers GET /api/feed.
func (f *feed) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	if knobs, on := f.fault.settings(); on {
		return encodeFromMaps(knobs[0])
	}
	return f.encoded, nil
}

// encodeFromMaps encodes a feed.
//
//go:noinline
func encodeFromMaps(products int) (json.RawMessage, error) {
	list := make([]map[string]any, products)
	for i := range list {
		p := catalogue[i%len(catalogue)]
		list[i] = map[string]any{
			"sku":   fmt.Sprintf("%s-%d", p.sku, i),
			"price": map[string]any{"cents": p.cents, "currency": "EUR"},
			"tags":  []any{"new", "in stock", i},
		}
	}
	return json.Marshal(map[string]any{"products": list})
}
