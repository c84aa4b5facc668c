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
	case at == ran && Allocates(stack):
		m.Allocating += took
	}
}

// Allocates reports whether a goroutine allocated memory, by its stack.
func Allocates(stack iter.Seq2[string, string]) bool {
	for function := range stack {
		if function == "runtime.mallocgc" {
			return true
		}
	}
	return false
}

// In returns what a diagnosis says of it after the time at a place, such as ", 220 ms of it allocating memory and 120
// ms more in garbage collection". What is less than a tenth of that time is left out. Where the garbage collector took time, also of
// a function that did not run, the function that made most of the garbage follows, if there is one: the maker returns it, and is
// nil if nothing is known of that.
func (m Memory) In(most Place, took time.Duration, maker func() string) (words string) {
	collecting := 10*m.Collecting >= took && m.Collecting > 0
	if 10*m.Allocating >= took && m.Allocating > 0 {
		words = ", " + milliseconds(m.Allocating) + " of it allocating memory"
	}
	switch {
	case !collecting:
	case words == "":
		words = ", with " + milliseconds(m.Collecting) + " more in garbage collection"
	default:
		words += " and " + milliseconds(m.Collecting) + " more in garbage collection"
	}
	if maker == nil || !collecting && KindOf(most.Leaf) != KindGC {
		return words
	}
	if by := maker(); by != "" && by != most.Function {
		words += ", while " + Short(by) + " allocated most"
	}
	return words
}
