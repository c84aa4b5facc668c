//go:build long

package demo

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/profiles"
	"spanflame/workload/faults"
	"spanflame/workload/load"
	"spanflame/workload/processes"
)

// inTurnTime is how long the faults are on and off in turn, unless the variable SPANFLAME_FAULTS is set.
const inTurnTime = 2 * time.Minute

// faster is how much more often than its list says the requests of a leak are sent, so that it holds more than may be left.
const faster = 5

// left is what a service has, and how much more it may have after the repair of all faults than before them.
var left = map[string]int{
	"go_goroutine_count": 20,
	"process_open_fds":   20,
	heap:                 8 << 20,
}

// heap are the bytes that the stacks of the workload hold after a garbage collection. Not those of the process: the agent
// keeps a history, and the runtime the descriptors of goroutines that have ended.
const heap = "heap of the workload"

// leaveTime is how long connections that are idle may stay open after the load.
const leaveTime = 3 * time.Minute

// TestFaultsInTurn makes all mistakes in turn, and repairs each under its load. No request fails, both services stay
// alive, and nothing stays: no goroutine, memory or open file.
func TestFaultsInTurn(t *testing.T) {
	length := inTurnTime
	if text := os.Getenv("SPANFLAME_FAULTS"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("SPANFLAME_FAULTS: %v", err)
		}
	}
	w, _ := startPair(t, binary)
	all, err := faults.List(t.Context(), w.Storefront.URL, w.Inventory.URL)
	if err != nil {
		t.Fatal(err)
	}
	send := func(s *faults.Switch, length time.Duration) {
		t.Helper()
		mix, rate := load.FaultMix(s.Fault)
		if s.Fault.Kind == faults.Leak {
			rate *= faster
		}
		report, err := load.Run(t.Context(), load.Config{
			Target: w.Storefront.URL, Rate: rate, Mix: mix, Duration: length, Concurrency: concurrency,
		})
		if err != nil || report.Failed > 0 {
			t.Errorf("%s: %v; %d of %d requests failed", s.Fault.Name, err, report.Failed, report.Sent)
		}
	}
	for _, s := range all { // what the first requests of a route open stays open
		send(s, time.Second/2)
	}
	services := []*processes.Service{w.Storefront, w.Inventory}
	before := make([]map[string]int, len(services))
	for i, s := range services {
		before[i] = figures(t, s)
	}
	each := length / time.Duration(len(all))
	for _, s := range all {
		if err := s.On(t.Context()); err != nil {
			t.Fatal(err)
		}
		repaired := make(chan error)
		time.AfterFunc(each*2/3, func() { repaired <- s.Off(t.Context()) })
		send(s, each)
		if err := <-repaired; err != nil {
			t.Error(err)
		}
	}
	for i, s := range services {
		for began := time.Now(); ; time.Sleep(time.Second) {
			after := figures(t, s)
			grown := ""
			for name, more := range left {
				if after[name] > before[i][name]+more {
					grown += fmt.Sprintf(" %s: %d, before %d;", name, after[name], before[i][name])
				}
			}
			if grown == "" {
				t.Logf("%s: before %v, %v after the last repair %v", s.Name, before[i], time.Since(began).Round(time.Second), after)
				break
			}
			if time.Since(began) > leaveTime {
				t.Errorf("%s has more than before the faults:%s", s.Name, grown)
				break
			}
		}
	}
}

// figures returns what a service has, of the names in left.
func figures(t *testing.T, s *processes.Service) map[string]int {
	t.Helper()
	p, err := profile.ParseData([]byte(page(t, s.Admin+"/debug/pprof/heap?gc=1")))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{heap: int(profiles.Total(p, profiles.SampleIndex(p, "inuse_space"), ofWorkload))}
	for line := range strings.Lines(page(t, s.Admin+"/metrics")) {
		fields := strings.Fields(line)
		if len(fields) != 2 {
			continue
		}
		name, _, _ := strings.Cut(fields[0], "{")
		if _, wanted := left[name]; !wanted {
			continue
		}
		value, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		found[name] = int(value)
	}
	if len(found) != len(left) {
		t.Fatalf("the %s has only %v", s.Name, found)
	}
	return found
}

// ofWorkload reports whether a function of the workload is on the stack of a sample.
func ofWorkload(s *profile.Sample) bool {
	return slices.ContainsFunc(s.Location, func(l *profile.Location) bool {
		return slices.ContainsFunc(l.Line, func(line profile.Line) bool {
			return line.Function != nil && strings.HasPrefix(line.Function.Name, "spanflame/workload.")
		})
	})
}
