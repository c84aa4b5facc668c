//go:build long

package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"runtime/trace"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	exptrace "golang.org/x/exp/trace"

	"spanflame/internal/incidentfile"
)

// TestSpikesAreInBundles plants spikes of 50 to 500 ms, as many as SPANFLAME_SPIKES says, and requests a bundle after each: the
// spike is in its trace. It logs how long the bundles took, and the requests meanwhile.
func TestSpikesAreInBundles(t *testing.T) {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("SPANFLAME_SPIKES"), "20"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := quiet(t)
	cfg.Dir, cfg.WallMode, cfg.Window = t.TempDir(), "always", 15*time.Second
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer shutdown(t, a)
	tracer := a.TracerProvider(sdktrace.NewTracerProvider()).Tracer("test")

	// Requests all the time: fifty a second, of which each works for half a millisecond.
	var writing atomic.Bool
	var mu sync.Mutex
	took := map[bool][]time.Duration{}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			for ticks := time.NewTicker(40 * time.Millisecond); ; {
				select {
				case <-stop:
					ticks.Stop()
					return
				case due := <-ticks.C:
					during := writing.Load()
					_, span := tracer.Start(context.Background(), "GET /work")
					spin(500 * time.Microsecond)
					span.End()
					mu.Lock()
					took[during] = append(took[during], time.Since(due))
					mu.Unlock()
				}
			}
		})
	}
	found, longest := 0, time.Duration(0)
	for i := range n {
		length := 50*time.Millisecond + time.Duration(rand.Int64N(int64(450*time.Millisecond)))
		kind := []string{"lock", "cpu", "gc", "runnable"}[i%4]
		task := "spike " + strconv.Itoa(i)
		ctx, end := trace.NewTask(context.Background(), task)
		_, span := tracer.Start(ctx, kind)
		spike(kind, length)
		span.End()
		end.End()
		writing.Store(true)
		begun := time.Now()
		id, bundle, err := a.incident.Request(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(begun))
		writing.Store(false)
		b, err := io.ReadAll(bundle)
		bundle.Close()
		if err != nil {
			t.Fatal(err)
		}
		if whole(t, contents(t, b)[incidentfile.Trace], task) {
			found++
		} else {
			t.Errorf("%s: the trace does not have the %s of %v", id, kind, length)
		}
		time.Sleep(200 * time.Millisecond)
	}
	close(stop)
	clients.Wait()
	p99 := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)*99/100]
	}
	t.Logf("%d of %d spikes are in their bundles, the longest took %v; requests: 99 %% within %v before, within %v while bundles are written (%d and %d)",
		found, n, longest.Round(time.Millisecond), p99(took[false]), p99(took[true]), len(took[false]), len(took[true]))
	http.DefaultClient.CloseIdleConnections()
}

// whole reports whether a trace has both ends of a task.
func whole(t *testing.T, from []byte, task string) bool {
	t.Helper()
	events, err := exptrace.NewReader(bytes.NewReader(from))
	if err != nil {
		t.Fatal(err)
	}
	begun, ended := exptrace.NoTask, false
	for {
		e, err := events.ReadEvent()
		if errors.Is(err, io.EOF) {
			return begun != exptrace.NoTask && ended
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e.Kind() {
		case exptrace.EventTaskBegin:
			if e.Task().Type == task {
				begun = e.Task().ID
			}
		case exptrace.EventTaskEnd:
			ended = ended || begun != exptrace.NoTask && e.Task().ID == begun
		}
	}
}

//go:noinline
func spin(d time.Duration) {
	for begun := time.Now(); time.Since(begun) < d; {
	}
}

var spikeGarbage [][]byte

// spike makes one thing slow for a time.
func spike(kind string, d time.Duration) {
	switch kind {
	case "lock":
		var mu sync.Mutex
		mu.Lock()
		go func() { time.Sleep(d); mu.Unlock() }()
		mu.Lock()
		mu.Unlock() //nolint:staticcheck // it was waited for
	case "cpu":
		spin(d)
	case "gc":
		for begun := time.Now(); time.Since(begun) < d; runtime.GC() {
			spikeGarbage = append(spikeGarbage[:0], make([]byte, 8<<20))
		}
	case "runnable":
		var all sync.WaitGroup
		for range 4 * runtime.GOMAXPROCS(0) {
			all.Go(func() { spin(d / 4) })
		}
		all.Wait()
	}
}
