package wall

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	oteltrace "go.opentelemetry.io/otel/trace"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// frames is a stack of functions, innermost first.
func frames(names ...string) *stack {
	s := &stack{}
	for _, n := range names {
		s.frames = append(s.frames, frame{function: n, file: "shop.go"})
	}
	return s
}

// TestFold makes the account of a request that waited for 5,000 others, each of which had the lock for a ten-thousandth of the time
// below a stack of its own, and for one that had it for half of the time.
func TestFold(t *testing.T) {
	const whole = int64(time.Second)
	label := func(name string) string {
		return wallprofile.CauseFrame(wallprofile.HeldBy, wallprofile.OtherRequest, name)
	}
	waiting := entry{stack: frames("sync.(*Mutex).Lock", "shop.buy"), state: wallprofile.WaitMutex}
	a := account{
		span:     &span{first: "POST /buy", id: oteltrace.SpanID{1}, start: time.Unix(1000, 0)},
		duration: time.Duration(whole), covered: time.Duration(whole),
	}
	add := func(below *cause, ns int64) {
		at := waiting
		at.below = below
		a.samples = append(a.samples, sample{at, false, ns})
	}
	add(&cause{
		causeKey: causeKey{link: wallprofile.HeldBy, stack: frames("shop.audit", "shop.caller"), state: wallprofile.Running},
		label:    label("POST /audit"),
	}, whole/2)
	for i := range 5000 {
		outer := &cause{causeKey: causeKey{
			link: wallprofile.HeldBy, state: wallprofile.WaitMutex,
			stack: frames("sync.(*Mutex).Lock", "shop.buy", fmt.Sprint("shop.caller", i)),
		}, label: label("POST /buy")}
		inner := &cause{causeKey: causeKey{
			above: outer, link: wallprofile.HeldBy, state: wallprofile.WaitNetwork,
			stack: frames("net.(*conn).Read", "shop.commit", fmt.Sprint("shop.deep", i)),
		}, label: label("POST /buy")}
		if i%5 == 0 {
			inner = &cause{causeKey: causeKey{above: outer, not: wallprofile.Forgotten}, label: wallprofile.Forgotten.Leaf()}
		}
		add(inner, whole/10_000)
	}
	var records []record.Record
	x := newEncoder(Options{Service: "shop", Emit: func(r record.Record) { records = append(records, r) }})
	x.add(wallprofile.ScopeRoot, a)
	x.flush(wallprofile.ScopeRoot)
	p, err := profile.ParseData(records[0].Profile)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int64)
	for _, s := range p.Sample {
		var names []string
		for _, l := range s.Location {
			names = append(names, l.Line[0].Function.Name)
		}
		got[strings.Join(names, " < ")] += s.Value[0]
	}
	above := " < [waiting: mutex] < sync.(*Mutex).Lock < shop.buy < span: POST /buy"
	want := map[string]int64{
		"shop.audit < shop.caller < " + label("POST /audit") + above:                          whole / 2,
		"[waiting: network] < net.(*conn).Read < shop.commit < " + label("POST /buy") + above: whole / 10_000 * 4000,
		wallprofile.Forgotten.Leaf() + " < " + label("POST /buy") + above:                     whole / 10_000 * 1000,
	}
	if len(got) != len(want) {
		t.Errorf("%d stacks: %v", len(got), got)
	}
	for stack, ns := range want {
		if got[stack] != ns {
			t.Errorf("%d ns, want %d: %s", got[stack], ns, stack)
		}
	}
}
