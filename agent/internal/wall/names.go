package wall

import "sync/atomic"

// names has the names of the local root spans that ended last: of a fast one, the trace has only the number, and
// another request may have waited for it.
type names struct {
	ring [1 << 14]atomic.Pointer[named]
}

type named struct {
	number uint64
	name   string
}

func (n *names) slot(number uint64) *atomic.Pointer[named] {
	return &n.ring[number%uint64(len(n.ring))]
}

func (n *names) put(number uint64, name string) { n.slot(number).Store(&named{number, name}) }

// get returns the name of a root, empty if it is not known.
func (n *names) get(number uint64) string {
	if p := n.slot(number).Load(); p != nil && p.number == number {
		return p.name
	}
	return ""
}
