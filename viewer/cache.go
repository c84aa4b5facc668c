package viewer

import (
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// cache keeps values that were expensive to make, for a limited time and in a limited number: it forgets first what was
// asked for longest ago.
type cache[V any] struct {
	values *lru.Cache[string, kept[V]]
	keep   time.Duration
}

type kept[V any] struct {
	value V
	until time.Time
}

func newCache[V any](most int, keep time.Duration) *cache[V] {
	values, _ := lru.New[string, kept[V]](max(most, 1)) // it fails only for a size below 1
	return &cache[V]{values, keep}
}

func (c *cache[V]) get(key string) (V, bool) {
	v, ok := c.values.Get(key)
	if ok && !time.Now().Before(v.until) {
		c.values.Remove(key)
		return kept[V]{}.value, false
	}
	return v.value, ok
}

func (c *cache[V]) put(key string, value V) { c.putFor(key, value, c.keep) }

// putFor keeps a value for a time of its own.
func (c *cache[V]) putFor(key string, value V, keep time.Duration) {
	c.values.Add(key, kept[V]{value, time.Now().Add(keep)})
}
