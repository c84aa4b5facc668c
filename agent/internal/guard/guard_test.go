package guard

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// line is a line of the log.
type line struct{ Level, Msg, Stage, Panic, Stack string }

func logged(t *testing.T, b *bytes.Buffer) (lines []line) {
	t.Helper()
	for d := json.NewDecoder(bytes.NewReader(b.Bytes())); d.More(); {
		var l line
		if err := d.Decode(&l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	return lines
}

//go:noinline
func panicsHere() { panic("planted") }

func TestAPanicIsRecoveredCountedAndReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		g := New(slog.New(slog.NewJSONHandler(&log, nil)))
		stage := g.Stage("capture mutex")
		other := g.Stage("capture block")
		ran := 0
		work := func() { ran++ }

		if !stage.Run(work) || ran != 1 || len(g.Degraded()) != 0 || len(g.Panics()) != 0 {
			t.Fatalf("before: ran %d, degraded %q, panics %v", ran, g.Degraded(), g.Panics())
		}
		if stage.Run(panicsHere) {
			t.Fatal("a panic is reported as success")
		}
		if g.Stage("capture mutex").Run(work) || !stage.Paused() {
			t.Error("a stage that panicked does not pause")
		}
		if !other.Run(work) || other.Paused() {
			t.Error("another stage pauses")
		}
		if d := g.Degraded(); len(d) != 1 || !strings.Contains(d[0], "capture mutex: panics in a row: 1") {
			t.Errorf("degraded %q", d)
		}
		time.Sleep(firstPause)
		if stage.Run(panicsHere) {
			t.Fatal("a panic is reported as success")
		}
		time.Sleep(2*firstPause - time.Second)
		if stage.Run(work) {
			t.Error("the second pause is not twice as long as the first")
		}
		time.Sleep(time.Second)
		if !stage.Run(work) || stage.Paused() || len(g.Degraded()) != 0 {
			t.Errorf("after the pause: paused %v, degraded %q", stage.Paused(), g.Degraded())
		}
		if got := g.Panics(); !maps.Equal(got, map[string]int64{"capture mutex": 2}) {
			t.Errorf("panics %v", got)
		}
		lines := logged(t, &log)
		if len(lines) != 2 {
			t.Fatalf("%d lines in the log, want one for the panics and one for the success: %+v", len(lines), lines)
		}
		if l := lines[0]; l.Level != "ERROR" || l.Stage != "capture mutex" || l.Panic != "planted" || !strings.Contains(l.Stack, "guard.panicsHere") {
			t.Errorf("the panic is logged as %+v", l)
		}
		if l := lines[1]; l.Level != "INFO" || l.Stage != "capture mutex" {
			t.Errorf("the success is logged as %+v", l)
		}
	})
}

func TestPausesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stage := New(nil).Stage("s")
		for range 100 {
			stage.Try(panicsHere)
		}
		if d := time.Until(stage.pausedUntil()); d != maxPause {
			t.Errorf("a pause of %v, want %v", d, maxPause)
		}
	})
}

func TestTryDoesNotPause(t *testing.T) {
	stage := New(nil).Stage("admin")
	if stage.Try(panicsHere) || !stage.Try(func() {}) {
		t.Error("Try returns something else than whether the function returned")
	}
}

func TestKeepContinuesALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(nil)
		begun, calls := time.Now(), 0
		g.Stage("push").Keep(nil, func() {
			if calls++; calls < 3 {
				panicsHere()
			}
		})
		if calls != 3 || time.Since(begun) != 3*firstPause || g.Panics()["push"] != 2 || len(g.Degraded()) != 0 {
			t.Errorf("%d calls in %v, panics %v, degraded %q", calls, time.Since(begun), g.Panics(), g.Degraded())
		}

		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { g.Stage("push").Keep(stop, panicsHere) })
		synctest.Wait()
		close(stop)
		wg.Wait()
	})
}

func TestTheReportCannotPanic(t *testing.T) {
	g := New(slog.New(panickingHandler{slog.DiscardHandler}))
	if g.Stage("s").Try(func() { panic(panickingError{}) }) || g.Panics()["s"] != 1 {
		t.Errorf("panics %v", g.Panics())
	}
}

type panickingHandler struct{ slog.Handler }

func (panickingHandler) Enabled(context.Context, slog.Level) bool { panic("handler") }

type panickingError struct{}

func (panickingError) Error() string { panic("Error") }

func TestOtherWaysOut(t *testing.T) {
	g := New(nil)
	if g.Stage("nil").Try(func() { panic(any(nil)) }) || g.Panics()["nil"] != 1 {
		t.Errorf("panic(nil): panics %v", g.Panics())
	}
	var wg sync.WaitGroup
	wg.Go(func() { g.Stage("exit").Try(runtime.Goexit) })
	wg.Wait()
	if g.Panics()["exit"] != 0 {
		t.Errorf("a goroutine that exits counts as a panic")
	}
}

func TestANilGuardRecovers(t *testing.T) {
	var g *Guard
	if g.Stage("s").Run(panicsHere) || !g.Stage("s").Run(func() {}) {
		t.Error("a nil guard: want false for a panic, and no memory of it")
	}
}

func TestStagesAreSafeForConcurrentUse(t *testing.T) {
	g := New(slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil)))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				g.Stage("s").Try(func() {
					if i%2 == 0 {
						panicsHere()
					}
				})
				g.Panics()
				g.Degraded()
			}
		})
	}
	wg.Wait()
	if n := g.Panics()["s"]; n != 400 {
		t.Errorf("%d panics counted, want 400", n)
	}
}

func TestRecoverInAFunctionOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(nil)
		stage := g.Stage("start of a span")
		call := func(f func()) (result string) {
			defer stage.Recover()
			result = "before"
			f()
			return "after"
		}
		if got := call(func() {}); got != "after" || stage.Paused() {
			t.Errorf("result %q, paused %v", got, stage.Paused())
		}
		if got := call(panicsHere); got != "before" || !stage.Paused() || g.Panics()["start of a span"] != 1 {
			t.Errorf("after a panic: result %q, paused %v, panics %v", got, stage.Paused(), g.Panics())
		}
		if call(func() {}); stage.Paused() || len(g.Degraded()) != 0 {
			t.Errorf("after a success: paused %v, degraded %q", stage.Paused(), g.Degraded())
		}
		func() {
			defer func() {
				if v := recover(); v != "planted" {
					t.Errorf("recovered %v: the panic of another was taken", v)
				}
			}()
			defer call(func() {})
			panicsHere()
		}()
	})
}

// BenchmarkRecover is the cost of the guard for a call on the service's own goroutine.
func BenchmarkRecover(b *testing.B) {
	stage := New(nil).Stage("start of a span")
	n := 0
	guarded := func() {
		defer stage.Recover()
		n++
	}
	bare := func() { n++ }
	b.Run("without", func(b *testing.B) {
		for b.Loop() {
			bare()
		}
	})
	b.Run("with", func(b *testing.B) {
		for b.Loop() {
			guarded()
		}
	})
}
