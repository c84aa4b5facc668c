package wall

import (
	"context"
	"testing"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// TestCausesAreForgotten has a span run on, which waits for another request each time, and no span end meanwhile.
func TestCausesAreForgotten(t *testing.T) {
	hs := newHistorian(newConverter(0, func(uint64) string { return "" }), nil)
	hs.waiting = 1
	at := &stack{frames: []frame{{function: "main.work"}}}
	for i := range 3 * maxPaths {
		from := trace.Time(2*i + 1)
		h := &history{base: &party{number: uint64(i + 1)}}
		hs.keep(h, &slice{from: from, to: from + 1, of: h, who: h.base, stack: at})
		hs.c.events++
		parts := hs.follow(wallprofile.WaitMutex, at, &ending{waker: h.last, by: noStack}, from, from+1)
		if len(parts) != 1 || parts[0].below.who != h.base {
			t.Fatalf("the parts of wait %d are %+v", i, parts)
		}
		if n := len(hs.causes); n > maxPaths+1 {
			t.Fatalf("%d causes are kept after %d waits", n, i+1)
		}
	}
}

// TestAFunctionIsOneParty has a goroutine that works for no span be at several places while it holds a lock.
func TestAFunctionIsOneParty(t *testing.T) {
	hs := newHistorian(newConverter(0, func(uint64) string { return "" }), nil)
	hs.waiting = 1
	entry := frame{function: "main.refresh"}
	h := &history{}
	const places = 4 * maxStacks
	for i := range places {
		at := &stack{frames: []frame{{function: "main.step", line: int64(i)}, entry}}
		hs.keep(h, &slice{from: trace.Time(i), to: trace.Time(i + 1), of: h, stack: at})
		hs.nobody(at)
	}
	if n := len(hs.alone); n > maxStacks {
		t.Errorf("%d stacks are kept", n)
	}
	holders := make(map[*party]int64)
	for _, p := range hs.follow(wallprofile.WaitMutex, noStack, &ending{waker: h.last, by: noStack}, places-100, places) {
		holders[p.below.who] += p.ns
	}
	if len(holders) != 1 {
		t.Errorf("%d holders, want one", len(holders))
	}
	for h, ns := range holders {
		if h.name != "main.refresh" || ns != 100 {
			t.Errorf("%s for %d ns, want main.refresh for 100", h.name, ns)
		}
	}
}

// TestOnlyWhatAWaitNeedsIsKept: the ring is for the waits, and neither marks nor the runtime's sweeper may fill it.
func TestOnlyWhatAWaitNeedsIsKept(t *testing.T) {
	hs := newHistorian(newConverter(0, func(uint64) string { return "" }), nil)
	for i, tt := range []struct {
		waiting int
		stack   *stack
		kept    uint64
	}{
		{0, noStack, 0},
		{1, noStack, 1},
		{1, &stack{frames: []frame{{function: "runtime.goschedIfBusy"}, {function: "runtime.bgsweep"}}}, 1},
	} {
		hs.waiting = tt.waiting
		h := &history{from: trace.Time(i), stack: tt.stack}
		hs.cut(h, trace.Time(i+1), noStack)
		if hs.kept != tt.kept || h.from != trace.Time(i+1) {
			t.Errorf("%d waiting, %v: %d kept from %d on, want %d", tt.waiting, tt.stack.frames, hs.kept, h.from, tt.kept)
		}
	}
}

// TestSpansThatNeverEndAreForgotten has children that nobody ends, on a goroutine that serves one request after the other,
// and on one for each request.
func TestSpansThatNeverEndAreForgotten(t *testing.T) {
	rec := manual(t)
	_, stream := rec.begin(context.Background(), "GET /events")
	rec.capture()
	request := func() {
		ctx, root := rec.begin(context.Background(), "GET /leaky")
		rec.begin(ctx, "never ended")
		root.end()
	}
	for range 2 * maxOpen {
		request()
		over := make(chan struct{})
		go func() {
			defer close(over)
			request()
		}()
		<-over
	}
	rec.capture()
	if n := len(rec.conv.history.begun); n > maxOpen {
		t.Errorf("%d spans are kept as running", n)
	}
	stream.end()
}

// TestAStatementIsTakenApartOnce has a span's frame read again and again, as for each sample of its account.
func TestAStatementIsTakenApartOnce(t *testing.T) {
	s := &span{first: "SELECT", call: wallprofile.CallOf(func(key string) string {
		return map[string]string{"db.query.text": "SELECT name FROM article WHERE id = 17"}[key]
	})}
	if at := s.step(); at.call != "" {
		t.Errorf("while it runs its call is %q, which its goroutine may be writing", at.call)
	}
	s.ended.Store(1)
	want := "query: SELECT name FROM article WHERE id = ?"
	if at := s.step(); at.call != want {
		t.Errorf("its call is %q, want %q", at.call, want)
	}
	if n := testing.AllocsPerRun(10, func() { s.step() }); n != 0 || s.step().call != want || s.call != (wallprofile.Call{}) {
		t.Errorf("its call is %q after %v allocations, and of the statement is kept %v", s.step().call, n, s.call)
	}
}
