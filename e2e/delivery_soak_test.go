//go:build long

package e2e

import (
	"slices"
	"testing"
	"time"

	"spanflame/e2e/faultproxy"
)

// soakFor is the length of the soak, unless the variable SPANFLAME_SOAK is set.
const soakFor = time.Minute

// flat are the figures of a service that must not grow, and how much above the middle third of the soak the
// last third may be: a quarter, and so much more for what comes and goes.
var flat = map[string]int{
	"go_memory_gc_goal_bytes":       8 << 20, // twice the live heap
	"process_resident_memory_bytes": 32 << 20,
	"go_goroutine_count":            10,
	"process_open_fds":              10,
	"spanflame_spool_waiting":       10, // as many files; two windows
}

// TestSoak sends to a server that fails one request in three: nothing is lost, and nothing grows.
func TestSoak(t *testing.T) {
	length := durationFromEnv(t, "SPANFLAME_SOAK", soakFor)
	t.Parallel()
	h := startHarmed(t, "soak", w.stack.Pyroscope().URL)
	fails := []faultproxy.Fault{faultproxy.Unavailable, faultproxy.ResetRequest, faultproxy.Throttled}
	h.proxy.Plan(func(n int) faultproxy.Fault {
		if n%3 != 0 {
			return faultproxy.None
		}
		return fails[n/3%len(fails)]
	})

	type figure struct{ service, name string }
	figures := map[figure][]int{}
	step := max(time.Second, length/100)
	for begun := time.Now(); time.Since(begun) < length; {
		loadAll(t, []*harmed{h}, step)
		for _, s := range h.services() {
			m := scrape(t, s)
			for name := range flat {
				key := figure{s.Name, name}
				figures[key] = append(figures[key], m.sum(t, name))
			}
		}
	}
	for key, all := range figures {
		third := len(all) / 3
		middle, last := median(all[third:2*third]), median(all[2*third:])
		t.Logf("%s %s: at first %d, middle third %d, last third %d, at most %d", key.service, key.name, all[0], middle, last, slices.Max(all))
		if last > middle+middle/4+flat[key.name] {
			t.Errorf("%s %s grows: %d in the middle third, %d in the last", key.service, key.name, middle, last)
		}
	}
	h.proxy.Harm(faultproxy.None)
	h.settle(t)
	for _, s := range h.services() {
		m := scrape(t, s)
		t.Logf("%s: captured %d, put %d, delivered %d, dropped %d, set aside %d; it saw %d outages", s.Name, m.sum(t, "spanflame_profiles_captured_total"),
			m.spooled(t, "put"), m.spooled(t, "delivered"), m.spooled(t, "dropped"), m.spooled(t, "set_aside"), len(logged(t, s, saidDown)))
	}
	h.stop(t)
	if length == soakFor {
		h.verify(t, w.pyroscope, nil) // of a longer one by the counters alone
	}
}

func median(all []int) int {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}
