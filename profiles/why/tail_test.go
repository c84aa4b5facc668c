package why

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// at is a part of the time of a simulated request.
type at struct {
	function, state string
	took            time.Duration
}

// window is the wall-clock profile of a simulated request.
func window(id int, scope, name string, parts ...at) profiles.Window {
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "wall", Unit: "nanoseconds"}}}
	frame := func(name string) *profile.Location {
		return &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: name, Filename: "shop/shop.go"}}}}
	}
	for _, part := range parts {
		s := &profile.Sample{Value: []int64{int64(part.took)}, Label: map[string][]string{wallprofile.SpanID: {fmt.Sprintf("%016x", id)}}}
		if part.state != "" {
			s.Location = append(s.Location, frame("["+part.state+"]"))
		}
		s.Location = append(s.Location, frame(part.function), frame(wallprofile.SpanPrefix+name))
		p.Sample = append(p.Sample, s)
	}
	w := profiles.Window{Profile: p}
	w.Service, w.Labels = "shop", map[string]string{wallprofile.SpanScope: scope}
	w.Start = time.Unix(int64(1_700_000_000+id), 0)
	w.End = w.Start.Add(time.Second)
	return w
}

func TestTail(t *testing.T) {
	r := NewRequests("GET /item")
	// Ten requests have a cause, half of them another one as well. The other thirty take 100 to 129 ms, their faster half
	// 107 ms on average.
	for i := range 40 {
		parts := []at{{"shop.work", "", time.Duration(100+max(0, i-10)) * time.Millisecond}}
		if i < 10 {
			parts = append(parts, at{"shop.wait", "waiting: sleep", time.Second})
		}
		if i < 5 {
			parts = append(parts, at{"shop.lock", "waiting: mutex", 300 * time.Millisecond}, at{"shop.little", "", time.Millisecond})
		}
		r.Add(window(i, wallprofile.ScopeRoot, "GET /item", parts...))
		r.Add(window(1000+i, wallprofile.ScopeRoot, "GET /other", at{"shop.other", "", time.Second}))
		r.Add(window(i, wallprofile.ScopeChild, "GET /item", at{"shop.child", "", time.Second}))
	}
	tail, err := r.Tail(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	const ms = Millis(time.Millisecond)
	want := []TailPart{
		{Function: "shop.wait", State: "waiting: sleep", Slow: 1000 * ms, More: 1000 * ms, Have: 10},
		{Function: "shop.lock", State: "waiting: mutex", Slow: 150 * ms, More: 150 * ms, Have: 5},
	}
	if !slices.Equal(tail.Parts, want) {
		t.Errorf("parts %+v, want %+v", tail.Parts, want)
	}
	if tail.Slow != (TailSide{10, 1250*ms + ms/2, 1100 * ms, 1401 * ms}) || tail.Faster != (TailSide{15, 107 * ms, 100 * ms, 114 * ms}) {
		t.Errorf("slow ones %+v, faster ones %+v", tail.Slow, tail.Faster)
	}
	var text strings.Builder
	if err := tail.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if want := "GET /item: the slowest 10 took 1.10 s to 1.40 s, the faster half of the other recorded ones (15) 100 ms to 114 ms\n" +
		"      1 s more  in 10 of 10: waiting: sleep in shop.wait (1 s instead of 0 ns)\n" +
		"   150 ms more  in 5 of 10: waiting: mutex in shop.lock (150 ms instead of 0 ns)\n"; text.String() != want {
		t.Errorf("the text is\n%s, want\n%s", &text, want)
	}
	if tail, err := r.Tail(t.Context(), 30); err != nil || tail.Slow.Requests != 13 {
		t.Errorf("more than a third are slow: %+v, %v", tail, err)
	}

	for i := range 4 {
		r.Add(window(2000+i, wallprofile.ScopeFast, "GET /item", at{"shop.work", "", time.Duration(50+i) * time.Millisecond}))
	}
	if tail, err = r.Tail(t.Context(), 10); err != nil || len(tail.Parts) == 0 || !tail.Sampled || tail.Faster != (TailSide{4, 51*ms + ms/2, 50 * ms, 53 * ms}) {
		t.Fatalf("with a sample: %+v, %v", tail, err)
	}
	if p := tail.Parts[0]; p.Function != "shop.wait" || p.Q <= 0 || p.Q > 0.05 || p.More != 1000*ms {
		t.Errorf("with a sample, the first part is %+v", p)
	}
	text.Reset()
	if err := tail.WriteText(&text); err != nil || !strings.Contains(text.String(), ", 4 fast ones 50 ms to 53 ms\n") ||
		!strings.Contains(text.String(), ", q 0.0") {
		t.Errorf("with a sample: %v\n%s", err, &text)
	}
	if tail, err := r.Tail(t.Context(), 30); err != nil || tail.Slow.Requests != 30 {
		t.Errorf("not all slow ones are compared: %+v, %v", tail, err)
	}
	if _, err := NewRequests("GET /none").Tail(t.Context(), 30); !errors.Is(err, profiles.ErrNone) {
		t.Errorf("no requests have a tail: %v", err)
	}
}

// TestTailOfSimilarNames: a function that only slow requests have is not taken for one of the same name that only fast ones have,
// and a state without a function is a part as any other.
func TestTailOfSimilarNames(t *testing.T) {
	r := NewRequests("GET /item")
	for i := range 10 {
		took := time.Duration(100+i) * time.Millisecond
		r.Add(window(i, wallprofile.ScopeRoot, "GET /item",
			at{"db.(*Store).Get", "", 2 * took}, at{"shop.List[go.shape.int]", "", took}, at{"", "not recorded", took}))
		r.Add(window(100+i, wallprofile.ScopeFast, "GET /item", at{"cache.(*Store).Get", "", took / 2}))
	}
	tail, err := r.Tail(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	var functions []string
	for _, p := range tail.Parts {
		functions = append(functions, p.Function)
	}
	if want := []string{"db.(*Store).Get", "", "shop.List[go.shape.int]"}; !slices.Equal(functions, want) {
		t.Errorf("parts %q, want %q", functions, want)
	}
}
