package wallprofile

import (
	"cmp"
	"time"
)

// Spent is time by the place where it was spent.
type Spent map[Place]*spending

type spending struct {
	took    time.Duration
	callers map[string]time.Duration // of the place's function
}

// Add adds time at a place, whose function the caller called, as Caller returns it.
func (s Spent) Add(at Place, caller string, took time.Duration) {
	there := s[at]
	if there == nil {
		there = &spending{callers: make(map[string]time.Duration)}
		s[at] = there
	}
	there.took += took
	there.callers[caller] += took
}

// Most returns the place with most of the time, and who called the function there, empty if several did.
func (s Spent) Most() (at Place, took time.Duration, caller string) {
	var most *spending
	for p, there := range s {
		if most == nil || there.took > most.took || there.took == most.took && p.compare(at) < 0 {
			at, most = p, there
		}
	}
	if most == nil {
		return at, 0, ""
	}
	for name, ns := range most.callers {
		if Nearly(ns, most.took) {
			caller = name
		}
	}
	return at, most.took, caller
}

func (p Place) compare(q Place) int {
	return cmp.Or(cmp.Compare(p.Function, q.Function), cmp.Compare(p.Leaf, q.Leaf), cmp.Compare(p.For, q.For))
}
