package workload

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
)

// fault is a mistake in the service's code that can be switched on and off while it runs; off is the repaired code.
// A switch takes effect from the next request on.
type fault struct {
	name   string
	does   string // what the fault does
	repair string
	on     atomic.Bool
}

// MarshalJSON encodes a fault for the clients of /faults.
func (f *fault) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Name   string `json:"name"`
		On     bool   `json:"on"`
		Does   string `json:"does"`
		Repair string `json:"repair"`
	}{f.name, f.on.Load(), f.does, f.repair})
}

func newSlowPricing() *fault {
	return &fault{
		name:   "slow-pricing",
		does:   "the tariff is parsed and its patterns are compiled again for each item of a basket",
		repair: "the tariff is compiled once, when the service starts",
	}
}

func newLockConvoy(lock, io string) *fault {
	return &fault{
		name:   "lock-convoy",
		does:   fmt.Sprintf("%s is locked while %s: concurrent requests queue for it", lock, io),
		repair: fmt.Sprintf("%s is locked only while it changes", lock),
	}
}

// handleFaults registers the routes that list and switch the service's faults.
func (s *Service) handleFaults(faults ...*fault) {
	s.handle("GET /faults", func(r *http.Request) (any, error) {
		_, err := queryInts(r)
		return faults, err
	})
	for method, on := range map[string]bool{http.MethodPut: true, http.MethodDelete: false} {
		s.handle(method+" /faults/{name}", func(r *http.Request) (any, error) {
			if _, err := queryInts(r); err != nil {
				return nil, err
			}
			f, err := findFault(faults, r.PathValue("name"))
			if err != nil {
				return nil, err
			}
			f.on.Store(on)
			return f, nil
		})
	}
}

func findFault(faults []*fault, name string) (*fault, error) {
	var names []string
	for _, f := range faults {
		if f.name == name {
			return f, nil
		}
		names = append(names, f.name)
	}
	allowed := strings.Join(names, ", ")
	return nil, &apiError{
		status:  http.StatusNotFound,
		Message: fmt.Sprintf("unknown fault %q: the faults are %s", truncate(name, maxEchoed), allowed),
		Value:   truncate(name, maxEchoed),
		Allowed: allowed,
	}
}
