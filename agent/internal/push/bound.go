package push

import (
	"hash/maphash"
	"sync"
)

// MaxLabelValues is how many different values of one sample label are sent, in the life of a process. The
// server makes a series of each, for every type of profile, and takes 5,000 series of all processes together
// by default: span names that hold an id would use them up. Further values are sent as OtherValue.
const MaxLabelValues = 200

// OtherValue stands for all the values above MaxLabelValues.
const OtherValue = "other"

// bound remembers what sample labels were sent. What it has let pass once passes for ever, and what it has
// not never does: the parts of a split profile agree, and so do two attempts to send the same one. Names are
// bounded as the labels of one series are, values by MaxLabelValues. The zero value is ready for use.
type bound struct {
	mu     sync.Mutex
	seed   maphash.Seed
	values map[string]map[uint64]struct{} // hashes by name: they take the same room however long the values are
}

// name says whether the label may be sent at all.
func (b *bound) name(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.values[name]; ok {
		return true
	}
	if len(b.values) == maxLabels {
		return false
	}
	if b.values == nil {
		b.seed, b.values = maphash.MakeSeed(), map[string]map[uint64]struct{}{}
	}
	b.values[name] = map[uint64]struct{}{}
	return true
}

// value returns the value as it may be sent, for a label whose name has passed.
func (b *bound) value(name, value string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	sent, hash := b.values[name], maphash.String(b.seed, value)
	if _, ok := sent[hash]; ok {
		return value
	}
	if len(sent) == MaxLabelValues {
		return OtherValue
	}
	sent[hash] = struct{}{}
	return value
}
