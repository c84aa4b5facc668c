package viewer

import (
	"container/list"
	"sync"
	"time"
)

// cache keeps what was expensive to make for a while: at most a number of values, those that were asked for
// last.
type cache[V any] struct {
	most int
	keep time.Duration

	mu     sync.Mutex
	order  *list.List // of *cached[V], the one that was asked for last in front
	values map[string]*list.Element
}

type cached[V any] struct {
	key   string
	value V
	until time.Time
}

func newCache[V any](most int, keep time.Duration) *cache[V] {
	return &cache[V]{most: most, keep: keep, order: list.New(), values: make(map[string]*list.Element)}
}

func (c *cache[V]) get(key string) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.values[key]; ok {
		v := e.Value.(*cached[V])
		if time.Now().Before(v.until) {
			c.order.MoveToFront(e)
			return v.value, true
		}
		c.remove(e)
	}
	var none V
	return none, false
}

func (c *cache[V]) put(key string, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.values[key]; ok {
		c.remove(e)
	}
	c.values[key] = c.order.PushFront(&cached[V]{key, value, time.Now().Add(c.keep)})
	if len(c.values) > c.most {
		c.remove(c.order.Back())
	}
}

func (c *cache[V]) remove(e *list.Element) {
	c.order.Remove(e)
	delete(c.values, e.Value.(*cached[V]).key)
}
