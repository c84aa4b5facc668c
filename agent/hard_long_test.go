//go:build long

package agent_test

import (
	"context"
	"os/exec"
	"sync"
	"testing"
	"time"

	"spanflame/agent"
	"spanflame/internal/record"
)

// profiled starts the agent with the shortest windows, and ends it with the test.
func profiled(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	a, err := agent.Start(t.Context(), agent.Config{
		ServiceName: "svc", Dir: dir, SpoolDir: t.TempDir(), Window: time.Second, AdminAddress: "127.0.0.1:0",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := a.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestExecsWhileProfiling starts a thousand programs: the profiler's signals must not make a fork or an exec fail.
func TestExecsWhileProfiling(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Skip("the program true is not installed")
	}
	dir := profiled(t)
	stop := make(chan struct{})
	var busy, execs sync.WaitGroup
	busy.Go(func() { // so that there are signals all the time
		for n := 0; ; n++ {
			if n%1000 == 0 {
				select {
				case <-stop:
					return
				default:
				}
			}
		}
	})
	for range 4 {
		execs.Go(func() {
			for range 250 {
				if out, err := exec.Command(program).CombinedOutput(); err != nil || len(out) > 0 {
					t.Errorf("%s: %v, %q", program, err, out)
				}
			}
		})
	}
	execs.Wait()
	close(stop)
	busy.Wait()
	waitSaved(t, dir, record.CPU, 1)
}

// TestManyParkedGoroutines: with 120,000 goroutines, too many for a profile of them, the windows of the other types
// follow each other as before.
func TestManyParkedGoroutines(t *testing.T) {
	release := make(chan struct{})
	var parked sync.WaitGroup
	for range 120_000 {
		parked.Go(func() { <-release })
	}
	dir := profiled(t)
	for _, typ := range []record.Type{record.CPU, record.Memory, record.Mutex, record.Block} {
		waitSaved(t, dir, typ, 3)
	}
	if n := saved(t, dir, record.Goroutine); n > 0 {
		t.Errorf("%d profiles of 120,000 goroutines are saved, want none: each would stop the process for long", n)
	}
	close(release)
	parked.Wait()
	waitSaved(t, dir, record.Goroutine, 1) // they are back
}
