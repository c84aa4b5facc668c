package profiles

import (
	"fmt"
	"testing"

	"github.com/google/pprof/profile"

	"spanflame/internal/wallprofile"
)

func TestValues(t *testing.T) {
	function := func(id uint64, name string) *profile.Location {
		return &profile.Location{ID: id, Line: []profile.Line{{Function: &profile.Function{ID: id, Name: name}}}}
	}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}},
		Sample: []*profile.Sample{
			{Value: []int64{1, 10}, Location: []*profile.Location{function(1, "main.work"), {ID: 9}}},
			{Value: []int64{2, -3}, Location: []*profile.Location{function(2, "main.wait"), function(3, wallprofile.Others)}},
		},
	}
	for name, want := range map[string]int{"samples": 0, "cpu": 1, "wall": -1, "": -1} {
		if got := SampleIndex(p, name); got != want {
			t.Errorf("index of %q: %d, want %d", name, got, want)
		}
	}
	if got := DefaultSampleIndex(p); got != 1 {
		t.Errorf("without a default the index is %d, want that of the last", got)
	}
	p.DefaultSampleType = "samples"
	if got := DefaultSampleIndex(p); got != 0 {
		t.Errorf("the default's index is %d, want 0", got)
	}
	if got := DefaultSampleIndex(&profile.Profile{}); got != -1 {
		t.Errorf("of no values the index is %d, want -1", got)
	}
	if all, own := Total(p, 1, nil), Total(p, 1, OwnTime); all != 7 || own != 10 {
		t.Errorf("totals %d and %d, want 7 and, without other goroutines, 10", all, own)
	}
	if s := p.Sample[0]; !Calls(s, "main.work") || Calls(s, "main.wait") || Calls(s, "") {
		t.Error("functions of a stack are not distinguished from others")
	}
}

// Goroutines that live for less than a window are on a stack of their own, or have a label of their own, in each.
func TestScaleRoundsTheSum(t *testing.T) {
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "goroutine", Unit: "count"}}}
	add := func(stack int, label string) {
		for len(p.Location) < stack {
			f := &profile.Function{ID: uint64(len(p.Location) + 1), Name: fmt.Sprint("main.f", len(p.Location)+1)}
			p.Function = append(p.Function, f)
			p.Location = append(p.Location, &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f}}})
		}
		p.Sample = append(p.Sample, &profile.Sample{
			Value: []int64{1}, Location: p.Location[stack-1 : stack], Label: map[string][]string{wallprofile.SpanID: {label}},
		})
	}
	for i := range 900 {
		add(1, fmt.Sprint(i)) // one stack, and as many labels
		add(2+i, "")          // as many stacks
	}
	if err := Scale(p, 1.0/7); err != nil {
		t.Fatal(err)
	}
	same := Total(p, 0, func(s *profile.Sample) bool { return Calls(s, "main.f1") })
	if all := Total(p, 0, nil); all != 257 || same < 128 || same > 129 || len(p.Sample) != 1+int(all-same) {
		t.Errorf("a seventh of 1800 is %d, of the 900 of one stack %d, in %d samples", all, same, len(p.Sample))
	}
}

// A profile without causes has the same totals, and ends where the goroutine itself waited.
func TestOwn(t *testing.T) {
	at := make(map[string]*profile.Location)
	stack := func(functions ...string) (all []*profile.Location) {
		for _, f := range functions {
			if at[f] == nil {
				at[f] = &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: f}}}}
			}
			all = append(all, at[f])
		}
		return all
	}
	waits := &profile.Sample{Value: []int64{5}, Label: map[string][]string{wallprofile.SpanID: {"a"}}, Location: stack(
		wallprofile.WaitSleep.Leaf(), "main.audit", wallprofile.CauseFrame(wallprofile.HeldBy, wallprofile.OtherRequest, "POST /audit"),
		wallprofile.WaitMutex.Leaf(), "main.cart")}
	runs := &profile.Sample{Value: []int64{3}, Location: stack("main.cart")}
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "wall", Unit: "nanoseconds"}}, Sample: []*profile.Sample{waits, runs}, TimeNanos: 7}
	own := Own(p)
	if own.Sample[1] != runs || own.TimeNanos != 7 || Total(own, 0, nil) != 8 {
		t.Errorf("what has no cause is changed: %v", own)
	}
	if s := own.Sample[0]; len(s.Location) != 2 || Calls(s, "main.audit") || !Calls(s, wallprofile.WaitMutex.Leaf()) || s.Label[wallprofile.SpanID][0] != "a" {
		t.Errorf("the stack is %v", s)
	}
	if len(waits.Location) != 5 {
		t.Error("the given profile is changed")
	}
}
