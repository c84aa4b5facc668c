package capture

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"runtime/pprof"
	"testing"
	"time"

	"spanflame/agent/internal/guard"
	"spanflame/internal/record"
)

func TestAPanicInOneTypeLeavesTheOthersAlone(t *testing.T) {
	for _, planted := range []record.Type{record.Memory, record.Mutex, record.Block, record.Goroutine} {
		t.Run(string(planted), func(t *testing.T) {
			c, s := start(t, time.Hour, everyType...)
			for i := range c.snap {
				if c.snap[i].typ == planted {
					c.snap[i].delta, c.snap[i].profile = nil, "no such profile" // whose lookup is nil
				}
			}
			if err := c.Stop(context.Background()); err != nil {
				t.Fatal(err)
			}
			for _, typ := range everyType {
				want := 1
				if typ == planted {
					want = 0
				}
				if n := len(s.of(typ)); n != want {
					t.Errorf("%s: %d records, want %d", typ, n, want)
				}
			}
			if n := c.Stats().Skipped; !maps.Equal(n, map[Skip]int64{{planted, ReasonPanic}: 1}) {
				t.Errorf("skipped %v", n)
			}
			if n := c.o.Guard.Panics(); !maps.Equal(n, map[string]int64{"capture " + string(planted): 1}) {
				t.Errorf("panics %v", n)
			}
			c.snapshots(time.Now(), time.Now())
			other := record.Mutex
			if planted == other {
				other = record.Block
			}
			if n, m := c.Stats().Skipped[Skip{planted, ReasonPanic}], len(s.of(other)); n != 2 || m != 2 {
				t.Errorf("during the pause: skipped %d times, and %s captured %d times; want 2 and 2", n, other, m)
			}
		})
	}
}

func TestAPanicOfTheReceiver(t *testing.T) {
	g := guard.New(slog.New(slog.DiscardHandler))
	c, err := Start(Options{
		Types: everyType, Window: time.Hour, Guard: g, Logger: slog.New(slog.DiscardHandler),
		Emit: func(record.Record) { panic("planted") },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := g.Panics(); !maps.Equal(n, map[string]int64{"emit": int64(len(everyType))}) {
		t.Errorf("panics %v, want one for each type", n)
	}
}

func TestAPanicInTheCPUProfiler(t *testing.T) {
	g := guard.New(slog.New(slog.DiscardHandler))
	p := newCPUProfiler(true, g.Stage("cpu"), func(time.Time, time.Time, []byte) { panic("planted") })
	p.start(time.Now())
	if _, err := p.foreground(t.Context(), nil, time.Millisecond); !errors.Is(err, errPanic) { // it ends the window first
		t.Errorf("a requested profile: %v, want %v", err, errPanic)
	}
	if _, err := p.foreground(t.Context(), nil, time.Millisecond); !errors.Is(err, errPanic) { // so does this one
		t.Errorf("another one: %v, want %v", err, errPanic)
	}
	p.next()  // paused
	p.close() // waits for no requested profile
	if n := g.Panics()["cpu"]; n != 3 {
		t.Errorf("%d panics, want 3", n)
	}
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Fatalf("the service's own profile afterwards: %v", err)
	}
	pprof.StopCPUProfile()
}

func TestAPanicInTheLoopIsFollowedByAnother(t *testing.T) {
	var log bytes.Buffer
	g := guard.New(slog.New(slog.NewTextHandler(&log, nil)))
	c, err := Start(Options{
		Types: []record.Type{record.Goroutine}, Window: time.Hour, Guard: g, Logger: slog.New(slog.DiscardHandler),
		Emit: func(record.Record) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.cpu = nil // the loop's own use of it, at the end, panics
	if err := c.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := g.Panics()["capture"]; n != 1 || !bytes.Contains(log.Bytes(), []byte("stage=capture ")) {
		t.Errorf("%d panics, want 1, and a line in the log: %s", n, &log)
	}
}
