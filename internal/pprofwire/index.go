package pprofwire

import (
	"errors"
	"fmt"
)

// Index has the positions in a slice of the elements with an ID. IDs are any number but 0; small ones, which are usual,
// are looked up in a slice.
type Index struct {
	small []uint32 // position + 1, by ID
	large map[uint64]uint32
}

// Reset empties the index, for about n elements.
func (x *Index) Reset(n int) {
	if cap(x.small) < n+1 {
		x.small = make([]uint32, n+1)
	}
	x.small = x.small[:n+1]
	clear(x.small)
	clear(x.large)
}

// Put adds the position of an ID, which must be neither 0 nor there already.
func (x *Index) Put(id uint64, position int) error {
	if id == 0 {
		return errors.New("an ID is 0")
	}
	if _, ok := x.Get(id); ok {
		return fmt.Errorf("two have the ID %d", id)
	}
	if id < uint64(len(x.small)) {
		x.small[id] = uint32(position) + 1
		return nil
	}
	if x.large == nil {
		x.large = make(map[uint64]uint32)
	}
	x.large[id] = uint32(position) + 1
	return nil
}

// Get returns the position of an ID.
func (x *Index) Get(id uint64) (uint32, bool) {
	if id < uint64(len(x.small)) {
		at := x.small[id]
		return at - 1, at != 0
	}
	at, ok := x.large[id]
	return at - 1, ok
}
