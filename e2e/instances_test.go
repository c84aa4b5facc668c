//go:build long

package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"spanflame/workload/processes"
)

// instancesFor is how long the instances are killed and restarted, unless the variable SPANFLAME_INSTANCES says
// otherwise.
const instancesFor = 30 * time.Second

// TestInstancesLoseNothing runs eight processes of one service on one host, with one spool directory, kills one of them
// again and again, and finds every window of each in Pyroscope. Their windows begin in the same milliseconds, and
// Pyroscope keeps one profile of a series for each.
func TestInstancesLoseNothing(t *testing.T) {
	length := durationFromEnv(t, "SPANFLAME_INSTANCES", instancesFor)
	t.Parallel()
	h := startHarmed(t, "instances", w.stack.Pyroscope().URL) // whose inventory is the first instance
	const more = 7
	spool := filepath.Join(h.dir, "spool-inventory")
	env := append(slices.Clone(h.env), "SPANFLAME_SPOOL_DIR="+spool, "SPANFLAME_SLOW_SPAN=off")
	var others []*processes.Service
	start := func(i int) *processes.Service {
		dir := filepath.Join(h.dir, fmt.Sprint("instance-", i))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s, err := processes.StartInventory(t.Context(), processes.Options{Binary: w.binary, Dir: dir, Env: env})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Kill(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	for i := range more {
		others = append(others, start(i))
	}
	kills := 0
	for begun := time.Now(); kills < 5 || time.Since(begun) < length; kills++ {
		loadAll(t, []*harmed{h}, 500*time.Millisecond+rand.N(2*time.Second))
		i := rand.IntN(more)
		if err := others[i].Kill(); err != nil {
			t.Fatal(err)
		}
		others[i] = start(i)
	}
	loadAll(t, []*harmed{h}, 2*time.Second)
	for _, s := range others { // the first one takes over what they leave
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := h.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	eventually(t, "an empty spool", func() error {
		files, err := filepath.Glob(filepath.Join(spool, "*", "*.pb.gz"))
		if err != nil || len(files) == 0 {
			return err
		}
		last, err := processes.StartInventory(t.Context(), processes.Options{Binary: w.binary, Dir: t.TempDir(), Env: env})
		if err != nil {
			return err
		}
		return errors.Join(fmt.Errorf("%d profiles are left", len(files)), last.Stop(t.Context()))
	})

	ids := map[string]bool{}
	for _, p := range h.seen(t) {
		if p.Labels["service_name"] == "inventory" {
			ids[p.Labels["service_instance_id"]] = true
		}
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for i := range more + 1 {
		id := host
		if i > 0 {
			id = fmt.Sprintf("%s-%d", host, i)
		}
		if !ids[id] {
			t.Errorf("no profile of the instance %s", id)
		}
		delete(ids, id)
	}
	for id := range ids {
		t.Errorf("an instance %s: restarts must make no new series", id)
	}
	t.Logf("%d processes were killed and started again", kills)
	h.verify(t, w.pyroscope, nil)
}
