package wallprofile

import (
	"iter"
	"time"
)

// Memory is how much of the time of a function was spent for its memory.
type Memory struct {
	Allocating time.Duration // a part of the time in which it ran
	Collecting time.Duration // in addition to it: it helped the garbage collector, or waited for it
}

// Add adds time of a span, if it belongs to the function of a place where that ran.
func (m *Memory) Add(ran, at Place, stack iter.Seq2[string, string], took time.Duration) {
	switch {
	case KindOf(ran.Leaf) != KindRunning || at.Function != ran.Function:
	case KindOf(at.Leaf) == KindGC:
		m.Collecting += took
	case at == ran && allocates(stack):
		m.Allocating += took
	}
}

// allocates reports whether a goroutine allocated memory, by its stack.
func allocates(stack iter.Seq2[string, string]) bool {
	for function := range stack {
		if function == "runtime.mallocgc" {
			return true
		}
	}
	return false
}

// In returns what a diagnosis says of it after a time in which the function ran, such as ", 220 ms of it allocating memory and 120
// ms more in garbage collection". What is less than a tenth of that time is left out.
func (m Memory) In(ran time.Duration) (words string) {
	if 10*m.Allocating >= ran && m.Allocating > 0 {
		words = ", " + milliseconds(m.Allocating) + " of it allocating memory"
	}
	if 10*m.Collecting < ran || m.Collecting == 0 {
		return words
	}
	if words == "" {
		words = ", with "
	} else {
		words += " and "
	}
	return words + milliseconds(m.Collecting) + " more in garbage collection"
}
