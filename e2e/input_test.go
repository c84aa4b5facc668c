//go:build !compose

package e2e

import (
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/input"
	"spanflame/workload/processes"
)

// TestInputReadsWhatWasPushed runs agents that both push and save every window. It checks that the windows read
// from the server equal the saved ones, for single windows and over several windows.
func TestInputReadsWhatWasPushed(t *testing.T) {
	t.Parallel()
	var dir, run string
	var begun time.Time
	delivered(t, func(n int) *processes.Workload {
		dir, run, begun = t.TempDir(), fmt.Sprint("input-", n), time.Now().Truncate(time.Second)
		s, err := startWorkload(t.Context(), run, "SPANFLAME_DIR="+dir, "PYROSCOPE_LABELS=run="+run)
		if err != nil {
			t.Fatal(err)
		}
		for loaded := time.Now(); time.Since(loaded) < 6*window; {
			for _, path := range []string{"/api/checkout?items=3", "/load/cpu?ms=100", "/load/alloc?mb=32", "/load/leak?mb=4"} {
				get(t, s.Storefront.URL+path)
			}
			time.Sleep(window / 10)
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s
	})
	for _, tt := range []struct {
		typ, query string
		level      bool
	}{
		{"process_cpu", "process_cpu:cpu:nanoseconds:cpu:nanoseconds", false},
		{"memory", "memory:alloc_space:bytes:space:bytes", false},
		{"memory", "memory:inuse_space:bytes:space:bytes", true},
		{"goroutines", "goroutines:goroutine:count:goroutine:count", true},
	} {
		sample := strings.Split(tt.query, ":")[1]
		entries, damaged, err := profiles.Find(t.Context(), profiles.Query{Service: "storefront", Types: []record.Type{record.Type(tt.typ)}}, dir)
		if err != nil || len(damaged) > 0 {
			t.Fatal(err, damaged)
		}
		var saved []profiles.Window
		for w, err := range profiles.Read(t.Context(), entries) {
			if err != nil {
				t.Fatal(err)
			}
			if totalOf(t, w.Profile, sample) > 0 {
				w.Start = time.Unix(0, w.Profile.TimeNanos) // the time that the server uses: a CPU profile begins a little after its window
				saved = append(saved, w)
			}
		}
		if len(saved) < 5 {
			t.Fatalf("%s: %d windows are saved, want 5 or more", sample, len(saved))
		}
		// Steps shorter than a window contain one window each. Steps of 5 s contain two or three.
		for _, step := range []time.Duration{time.Second, 5 * time.Second} {
			var want []profiles.Window
			for at := begun; at.Before(begun.Add(time.Minute)); at = at.Add(step) {
				within := slices.Clone(saved)
				within = slices.DeleteFunc(within, func(w profiles.Window) bool { return w.Start.Before(at) || !w.Start.Before(at.Add(step)) })
				if len(within) > 0 {
					want = append(want, together(t, within, sample, tt.level))
				}
			}
			address := strings.Replace(w.stack.Pyroscope().URL, "http:", "pyroscope:", 1) + "/?" + url.Values{
				"query": {tt.query + `{service_name="storefront",run="` + run + `"}`}, "step": {step.String()},
				"from": {begun.Format(time.RFC3339)}, "until": {begun.Add(time.Minute).Format(time.RFC3339)},
			}.Encode()
			eventually(t, fmt.Sprintf("%s by %v", sample, step), func() error {
				windows, err := input.Open(t.Context(), address, input.Options{})
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				for got, err := range windows {
					if err != nil {
						return err
					}
					if n++; n > len(want) {
						return fmt.Errorf("more than the %d windows that were saved, such as %s", len(want), describe(t, got, sample))
					}
					if err := sameWindow(t, got, want[n-1], sample); err != nil {
						return fmt.Errorf("window %d: %w", n, err)
					}
				}
				if n != len(want) {
					return fmt.Errorf("%d windows, want %d", n, len(want))
				}
				return nil
			})
		}
	}
}

// totalOf returns the sum of a sample type over the samples with a stack, which are those that a server keeps.
func totalOf(t *testing.T, p *profile.Profile, sample string) (sum int64) {
	t.Helper()
	i, err := p.SampleIndexByName(sample)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range p.Sample {
		if len(s.Location) > 0 {
			sum += s.Value[i]
		}
	}
	return sum
}

// together returns one window for several: their sum, or for a level their mean.
func together(t *testing.T, windows []profiles.Window, sample string, level bool) profiles.Window {
	t.Helper()
	sum := int64(0)
	for _, w := range windows {
		sum += totalOf(t, w.Profile, sample)
	}
	if level {
		sum /= int64(len(windows))
	}
	l := &profile.Location{}
	return profiles.Window{
		Meta: record.Meta{Start: windows[0].Start, End: windows[len(windows)-1].End},
		Profile: &profile.Profile{
			SampleType: []*profile.ValueType{{Type: sample}},
			Sample:     []*profile.Sample{{Location: []*profile.Location{l}, Value: []int64{sum}}},
		},
	}
}

// sameWindow compares totals, which may differ by the rounding of each sample's mean, and times, which the server
// reports to a tenth of a second. The first and the last window may be cut.
func sameWindow(t *testing.T, got, want profiles.Window, sample string) error {
	t.Helper()
	have, sum := totalOf(t, got.Profile, sample), totalOf(t, want.Profile, sample)
	if math.Abs(float64(have-sum)) > float64(len(got.Profile.Sample)) ||
		got.Start.Sub(want.Start).Abs() > 100*time.Millisecond || got.End.Sub(want.End).Abs() > window {
		return fmt.Errorf("%s, saved were %s", describe(t, got, sample), describe(t, want, sample))
	}
	return nil
}

func describe(t *testing.T, w profiles.Window, sample string) string {
	t.Helper()
	return fmt.Sprintf("%d from %s to %s", totalOf(t, w.Profile, sample), w.Start.UTC().Format(time.StampMilli), w.End.UTC().Format(time.StampMilli))
}
