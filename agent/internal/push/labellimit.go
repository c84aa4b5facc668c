package push

import (
	"hash/maphash"
	"sync"
)

// MaxLabelValues is the number of different values of one sample label that a process sends. The server makes a
// series of each, for every type of profile, and accepts 5,000 series of all processes together by default: span
// names that contain an ID would use them up. Further values are sent as OtherValue.
const MaxLabelValues = 200

// OtherValue replaces the values above MaxLabelValues.
const OtherValue = "other"

// labelLimit limits the names and values of sample labels that are sent. A label that was sent once is sent
// indefinitely, and one that was not never is: so the parts of a split profile agree, and so do two attempts to send
// the same one. The limit of names is that of the labels of one series, that of values MaxLabelValues. The zero value
// is ready for use.
type labelLimit struct {
	mu     sync.Mutex
	seed   maphash.Seed
	values map[string]map[uint64]struct{} // hashes by name: their size does not depend on the values
}

// name reports whether a label of that name can be sent.
func (l *labelLimit) name(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.values[name]; ok {
		return true
	}
	if len(l.values) == maxLabels {
		return false
	}
	if l.values == nil {
		l.seed, l.values = maphash.MakeSeed(), map[string]map[uint64]struct{}{}
	}
	l.values[name] = map[uint64]struct{}{}
	return true
}

// value returns the value that is sent, for a label whose name can be sent.
func (l *labelLimit) value(name, value string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	sent, hash := l.values[name], maphash.String(l.seed, value)
	if _, ok := sent[hash]; ok {
		return value
	}
	if len(sent) == MaxLabelValues {
		return OtherValue
	}
	sent[hash] = struct{}{}
	return value
}
