//go:build long

package demo

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/profiles"
	"spanflame/profiles/why"
	"spanflame/viewer/source"
	"spanflame/workload/faults"
)

const (
	withoutRequests = 30   // of which the median counts
	withoutWithin   = 0.10 // of what the repair saves
	withoutTries    = 3    // if the machine disturbs the measurement

	withoutHead = `
"spanflame why" says how long a trace would have taken without its largest part. For each fault with a knob in milliseconds,
that, as the median of 30 victims, and the median of 30 victims after the repair.

| Fault | with the fault | without its largest part | repaired | the largest part |
|---|--:|--:|--:|---|
`
)

// TestTruthWithout makes each fault whose time does not depend on the machine, and repairs it: what the trace of a victim would
// have taken without its largest part is what it takes after the repair.
func TestTruthWithout(t *testing.T) {
	writeRows(t, "repairs", withoutHead, false, withoutRow)
}

// withoutRow makes a fault, and returns its row, empty if its time depends on the machine.
func withoutRow(t *testing.T, f faults.Fault) string {
	if f.Predicted == nil {
		return ""
	}
	var row string
	var err error
	for range withoutTries {
		if row, err = without(t, f); err == nil {
			break
		}
		t.Log(err)
	}
	if err != nil {
		t.Error(err)
	}
	return row
}

// without makes a fault, and returns its row, and an error if the repair does not save what is predicted.
func without(t *testing.T, f faults.Fault) (row string, err error) {
	w, saved := startPair(t, binary)
	enough := time.Duration(1.5*withoutRequests/f.Victim.PerSecond*float64(time.Second)) + time.Second
	faulty, repaired := drive(t, w, f, enough, enough)
	stopPair(t, w) // saves the last spans and profiles
	dir, err := source.OpenDirectory(saved)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	request := f.Victim.Method + " " + f.Victim.Route()
	var took, less, after []time.Duration
	var largest why.Part
	for _, spans := range victims(t, dir, storefront, request, faulty) {
		of, ok := why.Main(spans, source.Marked)
		if !ok {
			continue
		}
		report, err := why.Explain(spans, of, func(s traces.Span) (*profile.Profile, error) {
			return dir.Profile(t.Context(), source.OfSpan(s, record.Wall))
		})
		switch {
		case errors.Is(err, profiles.ErrNone):
			continue
		case err != nil:
			t.Fatal(err)
		case len(took) < withoutRequests:
			largest = report.Parts[0]
			took, less = append(took, time.Duration(report.Took)), append(less, time.Duration(largest.Without))
		}
	}
	for _, spans := range victims(t, dir, storefront, request, repaired) {
		i := slices.IndexFunc(spans, func(s traces.Span) bool { return s.Service == storefront && s.Kind == "server" })
		if i >= 0 && len(after) < withoutRequests {
			after = append(after, spans[i].Duration())
		}
	}
	if min(len(took), len(after)) < withoutRequests {
		t.Fatalf("%d requests with the fault and %d with the repair are known, want %d", len(took), len(after), withoutRequests)
	}
	predicted, saves := median(took)-median(less), median(took)-median(after)
	if diff := (predicted - saves).Abs(); float64(diff) > withoutWithin*float64(saves) {
		err = fmt.Errorf("the repair saves %v, predicted are %v", saves, predicted)
	}
	ms := func(all []time.Duration) string {
		return fmt.Sprintf("%.1f ms", float64(median(all))/float64(time.Millisecond))
	}
	return fmt.Sprintf("| %s/%s | %s | %s | %s | %s |\n", f.Service, f.Name, ms(took), ms(less), ms(after), largest.Words()), err
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}
