package wall

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/exp/trace"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// realTrace is a small trace with the marks of spans 1 to 4, which hop, nest and fan out.
func realTrace(tb testing.TB) *snapshot {
	tb.Helper()
	r := newRecorder(Options{SlowSpan: time.Hour, Emit: func(record.Record) {}, Logger: discard})
	if err := r.flight.Start(); err != nil {
		tb.Fatal(err)
	}
	defer r.flight.Stop()
	rec := &recording{Recorder: r}
	ctx, root := rec.begin(context.Background(), "root")
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			_, s := rec.begin(ctx, "child")
			workA(time.Millisecond)
			s.end()
		})
	}
	all.Wait()
	all.Go(func() { root.end() })
	all.Wait()
	_, other := rec.begin(context.Background(), "other")
	other.end()
	return take(tb, r.flight)
}

func take(tb testing.TB, from io.WriterTo) *snapshot {
	tb.Helper()
	snap := &snapshot{}
	if _, err := from.WriteTo(snap); err != nil {
		tb.Fatal(err)
	}
	return snap
}

func (s *snapshot) bytes() []byte {
	all := bytes.Clone(s.header)
	for _, g := range s.gens {
		all = append(all, bytes.Join(g.batches, nil)...)
	}
	return all
}

// FuzzConvert feeds damaged traces: there may be an error, but no panic of this package, no hang, and
// what was accounted stays within bounds.
func FuzzConvert(f *testing.F) {
	whole := realTrace(f).bytes()
	f.Add(whole)
	for _, part := range []int{0, 8, 16, 17, 40} {
		f.Add(whole[:min(part, len(whole))])
	}
	for _, share := range []int{2, 3, 5, 9} {
		f.Add(whole[:len(whole)-len(whole)/share])
		damaged := bytes.Clone(whole)
		for i := 16 + share; i < len(damaged); i += len(damaged) / share {
			damaged[i] ^= 0xff
		}
		f.Add(damaged)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 {
			return
		}
		// As a snapshot, in pieces as a recorder would write them.
		snap := &snapshot{}
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 300)
			if _, err := snap.Write(rest[:n]); err != nil {
				break
			}
			rest = rest[n:]
		}
		if snap.size > len(data) {
			t.Fatalf("a snapshot of %d bytes from %d", snap.size, len(data))
		}

		// As a trace, twice: the second time it follows what the first left behind.
		r := newRecorder(Options{SlowSpan: 1, Emit: func(record.Record) {}, Logger: discard})
		var spans []*span
		first := &root{r: r, count: 3}
		first.root, first.first, first.number = first, "root", 1
		spans = append(spans, &first.span)
		for n := uint64(2); n <= 3; n++ {
			child := &span{root: first, parent: &first.span, number: n, first: "child"}
			first.learn(child)
			spans = append(spans, child)
		}
		second := &root{r: r, count: 1}
		second.root, second.first, second.number = second, "other", 4
		spans = append(spans, &second.span)
		for _, s := range spans {
			s.took = time.Second
			s.ended.Store(int64(time.Second))
		}
		c := newConverter(1, r.names.get)
		c.track(first)
		c.track(second)
		for _, gap := range []bool{true, false} {
			err := c.convert(bytes.NewReader(data), gap, goOn)
			if errors.Is(err, errPanic) {
				_, at, _ := strings.Cut(err.Error(), "\npanic(")
				if _, at, _ = strings.Cut(at, "\n\t"); !strings.Contains(firstFunction(at), "golang.org/x/exp/trace") {
					t.Fatalf("panic of our own: %v", err)
				}
				return
			}
		}
		for s := range first.conv.members {
			c.abandon(s)
		}
		for _, s := range spans {
			if s.conv != nil && s.conv.done {
				a := s.account()
				if a.covered > a.duration && !s.conv.lost {
					t.Errorf("%s: covered %v of %v", s.first, a.covered, a.duration)
				}
			}
		}
		c.drop(first)
		c.drop(second)
		if len(c.known)+len(c.goroutines)+c.lanes != 0 {
			t.Errorf("%d spans, %d goroutines and %d lanes are left", len(c.known), len(c.goroutines), c.lanes)
		}
	})
}

// FuzzFollow follows a wait through any history, be it possible or not: the parts of the wait sum to it exactly, none is
// negative, it ends, and they are the same if nothing was followed before.
func FuzzFollow(f *testing.F) {
	f.Add([]byte("a history of goroutines that wake, start and wait for one another, in any order whatever"), uint8(10), uint8(200))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, uint8(0), uint8(255))
	f.Add([]byte{200, 3, 9, 1, 200, 3, 9, 1, 200, 3, 9, 1, 200, 3, 9, 1}, uint8(0), uint8(255))
	f.Fuzz(func(t *testing.T, data []byte, from, to uint8) {
		c := newConverter(1, func(uint64) string { return "" })
		hs := c.history
		stacks := []*stack{noStack, {frames: []frame{{function: "main.a"}}}, {frames: []frame{{function: "sync.(*Mutex).Unlock"}, {function: "main.a"}}}}
		goroutines := make([]*history, 5)
		for i := range goroutines {
			goroutines[i] = &history{id: trace.GoID(i)}
		}
		requests := []*party{nil, {number: 1}, {number: 2, ended: 50}}
		for ; len(data) >= 4 && hs.kept < 3000; data = data[4:] {
			h := goroutines[int(data[0])%len(goroutines)]
			s := slice{
				from: h.from, to: h.from + trace.Time(data[1]), of: h, state: wallprofile.State(data[2]) % wallprofile.NumStates,
				stack: stacks[int(data[2])%len(stacks)], by: stacks[int(data[3])%len(stacks)], who: requests[int(data[3])%len(requests)],
				waker: uint64(data[3]), switched: data[3] > 200,
			}
			hs.keep(h, &s)
			if h.from += trace.Time(data[1]); data[3] == 0 {
				h.from += 7 // a gap
				h.born, h.starter = h.from, hs.kept
			}
			if data[0] == 255 {
				hs.stopped(worldStop{s.from, s.to, wallprofile.StoppedGC})
			}
		}
		a, b := trace.Time(min(from, to)), trace.Time(max(from, to))
		follow := func(waker uint64, a trace.Time) []part {
			return slices.Clone(hs.follow(wallprofile.WaitMutex, stacks[2], &ending{waker: waker, by: stacks[2]}, a, b))
		}
		var all [][]part
		for waker := range hs.kept + 2 {
			for _, a := range []trace.Time{a, (a + b) / 2} {
				got := follow(waker, a)
				all = append(all, got)
				var sum int64
				for _, p := range got {
					if sum += p.ns; p.ns <= 0 {
						t.Fatalf("a part of %d ns", p.ns)
					}
				}
				if sum != int64(b.Sub(a)) {
					t.Fatalf("the parts of a wait of %v sum to %d ns", b.Sub(a), sum)
				}
			}
		}
		for waker := range hs.kept + 2 {
			for _, a := range []trace.Time{a, (a + b) / 2} {
				for n := range hs.kept {
					hs.slice(n + 1).followed = nil
				}
				got := all[0]
				all = all[1:]
				if want := follow(waker, a); hs.reasons[wallprofile.TooMuch] == 0 && !slices.Equal(got, want) {
					t.Fatalf("the parts of a wait from %v are %+v, and %+v if nothing was followed before", a, got, want)
				}
			}
		}
	})
}

// firstFunction is the first function after a position in a panic's stack.
func firstFunction(stack string) string {
	for line := range strings.Lines(stack) {
		if !strings.HasPrefix(line, "\t") && strings.Contains(line, "(") && !strings.HasPrefix(line, "runtime") {
			return line
		}
	}
	return ""
}

// TestSnapshotIsBounded: of what the ring holds, a snapshot keeps the newest generations that fit, and one at least.
func TestSnapshotIsBounded(t *testing.T) {
	const size = 1000
	for _, test := range []struct{ limit, kept int }{{0, 6}, {3*size + size/2, 3}, {size / 2, 1}} {
		snap := &snapshot{limit: test.limit}
		if _, err := snap.Write(make([]byte, headerSize)); err != nil {
			t.Fatal(err)
		}
		for number := range byte(6) {
			batch := make([]byte, size-1)
			batch[0], batch[1] = evEventBatch, number+1
			for _, p := range [][]byte{batch, {evEndOfGeneration}} {
				if _, err := snap.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			if test.limit > 0 && snap.size > max(test.limit, size) {
				t.Errorf("limit %d: %d bytes are kept", test.limit, snap.size)
			}
		}
		if len(snap.gens) != test.kept || snap.gens[test.kept-1].number != 6 || snap.size != test.kept*size || snap.total != 6*size {
			t.Errorf("limit %d: %d generations of %d bytes in %d are kept, want %d", test.limit, len(snap.gens), snap.size, snap.total, test.kept)
		}
	}
}

// TestDamagedSnapshot feeds the recorder what the runtime would never write.
func TestDamagedSnapshot(t *testing.T) {
	whole := realTrace(t)
	if len(whole.gens) == 0 || whole.gens[0].number == 0 || time.Since(whole.gens[0].start).Abs() > time.Hour {
		t.Fatalf("the generations are not read: %+v", whole.gens)
	}
	snap := &snapshot{}
	if _, err := snap.Write(whole.header); err != nil {
		t.Fatal(err)
	}
	if _, err := snap.Write([]byte{200, 1, 2, 3}); !errors.Is(err, errSnapshot) {
		t.Errorf("an unknown batch: %v", err)
	}
	if _, err := snap.Write([]byte{evEventBatch, 0xff}); !errors.Is(err, errSnapshot) {
		t.Errorf("a batch that is cut short: %v", err)
	}
	if !clock([]byte{evSync, evFrequency, 0xff}).IsZero() {
		t.Error("a damaged clock batch has a time")
	}
	data := whole.bytes()
	if err := newConverter(1, nil).convert(bytes.NewReader(data[:len(data)-20]), true, goOn); err == nil {
		t.Error("a truncated trace is converted without an error")
	}
}

// goOn never stops a conversion.
func goOn() error { return nil }
