package wallprofile

import (
	"cmp"
	"iter"
	"time"
)

// Spent is time by the place where it was spent.
type Spent map[Place]*spending

type spending struct {
	took   time.Duration
	stacks []spentOn
	lines  map[string]time.Duration
}

type spentOn struct {
	stack iter.Seq2[string, string]
	took  time.Duration
}

// Add adds time at a place and line of a stack, whose functions are given from the innermost outwards with their files.
func (s Spent) Add(at Place, line string, stack iter.Seq2[string, string], took time.Duration) {
	there := s[at]
	if there == nil {
		there = &spending{lines: make(map[string]time.Duration)}
		s[at] = there
	}
	there.took += took
	there.lines[line] += took
	there.stacks = append(there.stacks, spentOn{stack, took})
}

// Most returns the place with most of the time, with the line where most of that was.
func (s Spent) Most() (at Place, took time.Duration) {
	var most *spending
	for p, there := range s {
		if most == nil || there.took > most.took || there.took == most.took && p.Compare(at) < 0 {
			at, most = p, there
		}
	}
	if most == nil {
		return at, 0
	}
	at.Line = longest(most.lines)
	return at, most.took
}

// Caller returns who called the function at a place, as [Caller] does; it is empty if several did.
func (s Spent) Caller(at Place, nearest bool) (caller string) {
	at.Line = ""
	there := s[at]
	if there == nil {
		return ""
	}
	callers := make(map[string]time.Duration)
	for _, on := range there.stacks {
		callers[Caller(at.Function, on.stack, nearest)] += on.took
	}
	caller, _ = NearlyAll(callers, there.took)
	return caller
}

// Compare orders places by function, state and what was waited for.
func (p Place) Compare(q Place) int {
	return cmp.Or(cmp.Compare(p.Function, q.Function), cmp.Compare(p.Leaf, q.Leaf), cmp.Compare(p.For, q.For))
}

// nearly is the share of a time that has to be someone's for a diagnosis to name that one alone.
const nearly = 0.9

// Nearly reports whether a part is nearly all of a time.
func Nearly(part, of time.Duration) bool { return float64(part) >= nearly*float64(of) }

// longest returns what has most of a time, empty for nothing.
func longest(parts map[string]time.Duration) (of string) {
	for k, part := range parts {
		if part > parts[of] || part == parts[of] && k < of {
			of = k
		}
	}
	return of
}

// NearlyAll returns whose part is nearly all of a time, if there is one.
func NearlyAll[K comparable](parts map[K]time.Duration, of time.Duration) (whose K, ok bool) {
	for k, part := range parts {
		if Nearly(part, of) {
			return k, true
		}
	}
	return whose, false
}
