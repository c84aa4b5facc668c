package why

import (
	"fmt"
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
	for i := range 40 {
		scope, took := wallprofile.ScopeRoot, 300*time.Millisecond
		if i%2 == 0 {
			scope, took = wallprofile.ScopeOrdinary, time.Duration(i)*time.Microsecond
		}
		r.Add(window(i, scope, "GET /item", at{"shop.wait", "waiting: sleep", took}, at{"shop.work", "", time.Duration(10+i%3) * time.Millisecond}))
		r.Add(window(1000+i, wallprofile.ScopeRoot, "GET /other", at{"shop.other", "", time.Second}))
		r.Add(window(i, wallprofile.ScopeChild, "GET /item", at{"shop.child", "", time.Second}))
	}
	tail, err := r.Tail(t.Context(), 20)
	if err != nil {
		t.Fatal(err)
	}
	var text, js strings.Builder
	if err := tail.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if err := tail.WriteJSON(&js); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"GET /item: the slowest 20 took 310 ms to 312 ms, 20 ordinary requests 10 ms to 12.0 ms\n",
		"   300 ms more  in 20 of 20, q <0.001: waiting: sleep in shop.wait (300 ms instead of 19 µs)\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in\n%s", want, &text)
		}
	}
	if strings.Contains(text.String()+js.String(), "shop.other") || strings.Contains(text.String(), "shop.child") || strings.Contains(text.String(), "shop.work") {
		t.Errorf("%s\n%s", &text, &js)
	}
	if _, err := NewRequests("GET /none").Tail(t.Context(), 30); err == nil {
		t.Error("no requests have a tail")
	}
	if _, err := r.Tail(t.Context(), MaxTail+1); err == nil {
		t.Errorf("more than %d slow requests are compared", MaxTail)
	}
	// Without a sample of ordinary requests, the faster half of the recorded ones is it.
	r = NewRequests("GET /item")
	for i := range 40 {
		took := time.Duration(100+i) * time.Millisecond
		if i < 10 {
			took += time.Second
		}
		r.Add(window(i, wallprofile.ScopeRoot, "GET /item", at{"shop.wait", "waiting: sleep", took}))
	}
	if tail, err := r.Tail(t.Context(), 10); err != nil || len(tail.Parts) != 1 || len(tail.Notes) != 1 || tail.Ordinary.Requests != 15 {
		t.Errorf("%+v, %v", tail, err)
	}
}
