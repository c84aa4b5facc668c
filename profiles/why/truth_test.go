//go:build !race

// These tests simulate thousands of requests, which takes minutes with the race detector.

package why

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"spanflame/internal/wallprofile"
)

// ordinary are the parts of a simulated request without a cause: forty functions that take a millisecond on average, some
// of them in few requests.
func ordinary(random *rand.Rand) []at {
	var parts []at
	for i := range 40 {
		if i%4 == 3 && random.IntN(10) > 0 {
			continue
		}
		state := []string{"", "waiting: network", "waiting: mutex"}[i%3]
		parts = append(parts, at{fmt.Sprintf("shop.f%d", i), state, time.Duration(random.ExpFloat64() * 1e6)})
	}
	return parts
}

const trials = 100

// simulate serves requests, of which a share has a cause, and compares the slowest thirty with a sample of all others.
func simulate(t *testing.T, random *rand.Rand, share float64) *Tail {
	t.Helper()
	const served, sampleOf = 3000, 60
	r := NewRequests("GET /item")
	for i := range served {
		parts := ordinary(random)
		caused := random.Float64() < share
		if caused {
			parts = append(parts, at{"shop.(*Stock).Reserve", "waiting: mutex", time.Duration(100e6 + random.ExpFloat64()*100e6)})
		}
		switch {
		case caused: // above the least duration that is recorded
			r.Add(window(i, wallprofile.ScopeRoot, "GET /item", parts...))
		case i%(served/sampleOf) == 0:
			r.Add(window(i, wallprofile.ScopeFast, "GET /item", parts...))
		}
	}
	tail, err := r.Tail(t.Context(), 30)
	if err != nil {
		t.Fatal(err)
	}
	return tail
}

// foundFirst fails unless the first part of nearly all tails is the planted one.
func foundFirst(t *testing.T, tail func() *Tail, planted func(TailPart) bool) {
	t.Helper()
	found := 0
	for range trials {
		if parts := tail().Parts; len(parts) > 0 && parts[0].Function == "shop.(*Stock).Reserve" && planted(parts[0]) {
			found++
		}
	}
	t.Logf("found first in %d of %d", found, trials)
	if found < trials*95/100 {
		t.Errorf("found first in %d of %d trials, want at least 95 %%", found, trials)
	}
}

// TestTheCauseOfTheTailIsFound: what one of a hundred requests has is found from thirty slow ones.
func TestTheCauseOfTheTailIsFound(t *testing.T) {
	random := rand.New(rand.NewPCG(21, 22))
	foundFirst(t, func() *Tail { return simulate(t, random, 0.01) },
		func(p TailPart) bool { return p.State == "waiting: mutex" && p.Q < 0.05 })
}

// TestARareCauseOfTheTailIsFound: a cause that only half of the slow requests have, the others being slow by chance.
func TestARareCauseOfTheTailIsFound(t *testing.T) {
	random := rand.New(rand.NewPCG(23, 24))
	foundFirst(t, func() *Tail {
		r := NewRequests("GET /item")
		for i := range 90 {
			parts := ordinary(random)
			switch {
			case i >= 30:
				r.Add(window(i, wallprofile.ScopeFast, "GET /item", parts...))
				continue
			case i%2 == 0:
				parts = append(parts, at{"shop.(*Stock).Reserve", "waiting: mutex", time.Duration(100e6 + random.ExpFloat64()*100e6)})
			default:
				parts = append(parts, at{fmt.Sprintf("shop.chance%d", i), "", 150e6})
			}
			r.Add(window(i, wallprofile.ScopeRoot, "GET /item", parts...))
		}
		tail, err := r.Tail(t.Context(), 30)
		if err != nil {
			t.Fatal(err)
		}
		return tail
	}, func(p TailPart) bool { return p.Have == 15 })
}

// TestEqualRequestsHaveNoCause: between sets of requests that differ by chance alone, something is found in at most one of
// twenty.
func TestEqualRequestsHaveNoCause(t *testing.T) {
	random := rand.New(rand.NewPCG(25, 26))
	for _, sizes := range [][2]int{{30, 60}, {10, 40}} {
		wrong := 0
		for range trials {
			r := NewRequests("GET /item")
			for i := range sizes[0] + sizes[1] {
				scope := wallprofile.ScopeRoot
				if i >= sizes[0] {
					scope = wallprofile.ScopeFast
				}
				r.Add(window(i, scope, "GET /item", ordinary(random)...))
			}
			tail, err := r.Tail(t.Context(), sizes[0])
			if err != nil {
				t.Fatal(err)
			}
			if len(tail.Parts) > 0 {
				wrong++
			}
		}
		t.Logf("%d and %d: something in %d of %d", sizes[0], sizes[1], wrong, trials)
		if wrong > trials*5/100 {
			t.Errorf("%d and %d equal requests: something in %d of %d trials, want at most 5 %%", sizes[0], sizes[1], wrong, trials)
		}
	}
}
