package push

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
)

// values are the different values of a label.
func values(p *profile.Profile, name string) map[string]bool {
	all := map[string]bool{}
	for _, s := range p.Sample {
		for _, v := range s.Label[name] {
			all[v] = true
		}
	}
	return all
}

func TestFurtherValuesOfALabelAreSentAsOther(t *testing.T) {
	const n = MaxLabelValues + 50
	p := newProfile(n, func(i int) map[string][]string {
		return map[string][]string{"span_id": {fmt.Sprintf("%016x", i)}, "span_name": {fmt.Sprint("GET /orders/", i)}, "region": {"eu"}}
	})
	got, res, _ := sent(t, "", record.CPU, p)
	names := values(got, "span_name")
	if len(names) != MaxLabelValues+1 || !names[OtherValue] || !names["GET /orders/0"] {
		t.Errorf("%d span names, want %d and %q", len(names), MaxLabelValues, OtherValue)
	}
	if ids := len(values(got, "span_id")); ids != n {
		t.Errorf("%d span ids, want all %d: they are no series", ids, n)
	}
	if ch := res.Changes; ch.Other != 1 || !slices.Equal(ch.Names, []string{"span_name"}) {
		t.Errorf("%+v, want that span_name was changed", ch)
	}
	var before, after int64
	for _, s := range p.Sample {
		before += s.Value[1]
	}
	for _, s := range got.Sample {
		after += s.Value[1]
	}
	if before != after {
		t.Errorf("the samples add up to %d, want %d", after, before)
	}
}

// The decision for a value is permanent; otherwise the parts of one profile would contradict each other.
func TestTheBoundHoldsForAllProfilesOfAProcess(t *testing.T) {
	var last []byte
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		last, _ = io.ReadAll(r.Body)
		accept(w, r)
	})
	c := client(t, Config{URL: s.URL})
	arrive := func(from, to int) map[string]bool {
		t.Helper()
		r := cpuRecord()
		r.Profile = pack(newProfile(to-from, func(i int) map[string][]string {
			return map[string][]string{"span_name": {fmt.Sprint(from + i)}}
		}))
		if res := c.Push(t.Context(), r); res.Outcome != Accepted {
			t.Fatalf("%+v", res)
		}
		_, b := decodeRequest(t, last)
		return values(unpack(t, b), "span_name")
	}
	if got := arrive(0, MaxLabelValues); len(got) != MaxLabelValues || got[OtherValue] {
		t.Errorf("the first %d values: %d arrived", MaxLabelValues, len(got))
	}
	if got := arrive(MaxLabelValues, MaxLabelValues+9); len(got) != 1 || !got[OtherValue] {
		t.Errorf("further values arrive as %v", got)
	}
	if got := arrive(100, 103); !got["100"] || !got["101"] || !got["102"] {
		t.Errorf("values that were sent before arrive as %v", got)
	}
}

func TestLabelNamesAreBounded(t *testing.T) {
	var b labelLimit
	var wg sync.WaitGroup
	for i := range 2 * maxLabels {
		wg.Go(func() {
			for range 2 {
				if name := fmt.Sprint("l", i); b.name(name) && b.value(name, "v") != "v" {
					t.Error("the only value of a label is not sent")
				}
			}
		})
	}
	wg.Wait()
	if len(b.values) != maxLabels || b.name("another") {
		t.Errorf("%d label names, want %d", len(b.values), maxLabels)
	}
}
