package wall

import (
	"context"
	"fmt"
	"io"
	"iter"
	"runtime"
	"runtime/pprof"
	"sync"
	"testing"
	"time"
)

// A consumer that takes a batch of messages has a span of each open on its one goroutine.
func TestBatch(t *testing.T) {
	rec := startRecorder(t, nil)
	var spans []*testSpan
	for i := range 200 {
		_, s := rec.begin(context.Background(), fmt.Sprint("message ", i))
		spans = append(spans, s)
	}
	workA(25 * time.Millisecond)
	for _, s := range spans {
		s.end()
	}
	rec.finish()
	for _, s := range spans {
		if f := rec.exact(s); f.sumOf("workA") < int64(25*time.Millisecond) {
			t.Fatalf("%s:\n%s", s.name, f)
		}
	}
	if s := rec.Stats(); s.Captured != 200 || s.Crowded != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// A goroutine that is locked to its thread, and one that changes threads, have their time like any other.
func TestLockedThread(t *testing.T) {
	rec := startRecorder(t, nil)
	var spans []*testSpan
	var all sync.WaitGroup
	for range 4 {
		_, s := rec.begin(context.Background(), "unlocked")
		s.end()
		_, s = rec.begin(context.Background(), "locked")
		spans = append(spans, s)
		runtime.LockOSThread()
		all.Go(func() { workB(time.Millisecond) })
		workA(25 * time.Millisecond)
		runtime.UnlockOSThread()
		s.end()
	}
	all.Wait()
	rec.finish()
	for _, s := range spans {
		if f := rec.exact(s); f.sumOf("workA") < int64(25*time.Millisecond) {
			t.Errorf("%s:\n%s", s.name, f)
		}
	}
}

// A goroutine profile stops the world, and a CPU profile interrupts threads, while coroutines switch.
func TestCoroutinesUnderProfiles(t *testing.T) {
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Fatal(err)
	}
	defer pprof.StopCPUProfile()
	rec := startRecorder(t, nil)
	stop := make(chan struct{})
	var profiler sync.WaitGroup
	profiler.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				if err := pprof.Lookup("goroutine").WriteTo(io.Discard, 0); err != nil {
					t.Error(err)
				}
			}
		}
	})
	var spans []*testSpan
	for range 5 {
		_, s := rec.begin(context.Background(), "pulls")
		spans = append(spans, s)
		next, stop := iter.Pull(func(yield func(int) bool) {
			for i := 0; yield(i); i++ {
				burn(100 * time.Microsecond)
			}
		})
		for range 200 {
			next()
		}
		workA(5 * time.Millisecond)
		stop()
		s.end()
	}
	close(stop)
	profiler.Wait()
	rec.finish()
	for _, s := range spans {
		if f := rec.exact(s); f.sumOf("[waiting: unspecified]") > int64(time.Millisecond) {
			t.Errorf("the span waits for its coroutine:\n%s", f)
		}
	}
}
