package workload

import (
	"context"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"spanflame/workload/faults"
)

// The time for which recommendations are fresh, and how many milliseconds it takes to load them.
const (
	freshTime = 50 * time.Millisecond
	loadMS    = 320
)

// recommender keeps recommendations in a cache. They are loaded once for all who ask at the same time.
type recommender struct {
	fault   *fault
	stock   *inventoryClient
	service *Service
	loads   singleflight.Group

	mu      sync.Mutex
	list    []string  // of SKUs
	expires time.Time // of the list
	loading bool      // by reload
}

// addCacheStampede adds the fault that all who ask at the same time wait for the cache to be filled.
func (s *Service) addCacheStampede() {
	const perSecond = 50
	c := &recommender{stock: s.stock, service: s, list: []string{catalogue[0].sku}, fault: s.addFault(&fault{
		is: faults.Fault{
			Name: "cache-stampede",
			Kind: faults.Inside,
			Does: "recommendations expire, for a time that is counted from the begin of their loading, before they are loaded: " +
				"all requests wait for the next loading",
			Repair:   "requests get the last recommendations, while the next ones are loaded",
			Function: "spanflame/workload.(*recommender).load",
			Victim:   faults.Request{Method: "GET", Path: "/api/recommendations", PerSecond: perSecond},
			Knobs:    []faults.Knob{{Name: "load_ms", Unit: "ms", Default: loadMS, Min: 2 * int(freshTime/time.Millisecond), Max: maxWarehouseMS}},
		},
		// Requests come evenly spaced, and the first of them waits for all of the loading.
		delay: func(knobs []int) float64 { return (float64(knobs[0]) + 1000/perSecond) / 2 },
	})}
	s.handle("GET /api/recommendations", c.handler)
}

// handler answers GET /api/recommendations.
func (c *recommender) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	if knobs, on := c.fault.settings(); on {
		return c.getOrWait(r.Context(), knobs[0])
	}
	return c.get(), nil
}

// get is the repaired code.
func (c *recommender) get() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.loading && time.Now().After(c.expires) {
		c.loading = true
		c.service.background(c.reload)
	}
	return c.list
}

// reload loads once while get returns the last list. After a failure, the next request tries again.
func (c *recommender) reload(ctx context.Context) {
	list, err := c.load(ctx, loadMS)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loading = false; err == nil {
		c.list, c.expires = list, time.Now().Add(freshTime)
	}
}

// getOrWait is get with the fault.
//
//go:noinline
func (c *recommender) getOrWait(ctx context.Context, ms int) ([]string, error) {
	c.mu.Lock()
	list, fresh := c.list, time.Now().Before(c.expires)
	c.mu.Unlock()
	if fresh {
		return list, nil
	}
	loaded, err, _ := c.loads.Do("", func() (any, error) {
		begun := time.Now()
		list, err := c.load(context.WithoutCancel(ctx), ms) // others wait for it too
		c.mu.Lock()
		defer c.mu.Unlock()
		if err == nil {
			c.list, c.expires = list, begun.Add(freshTime)
		}
		return list, err
	})
	if err != nil {
		return nil, err
	}
	return loaded.([]string), nil
}

// load makes a new list of what the warehouse says.
//
//go:noinline
func (c *recommender) load(ctx context.Context, ms int) ([]string, error) {
	if err := c.stock.warehouse(ctx, ms); err != nil {
		return nil, err
	}
	list := make([]string, 0, len(catalogue))
	for _, p := range catalogue {
		list = append(list, p.sku)
	}
	return list, nil
}
