//go:build long

package demo

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"spanflame/internal/docsection"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/viewer/source"
	"spanflame/workload/faults"
	"spanflame/workload/load"
	"spanflame/workload/processes"
)

var update = flag.Bool("update", false, "write what the diagnoses say into docs/faults.md")

// truthTime is how long the load with each fault lasts.
const truthTime = 5 * time.Second

// verdict is how much of the truth a diagnosis has.
type verdict string

// The verdicts.
const (
	function verdict = "the function"
	request  verdict = "the request"
	nothing  verdict = "nothing"
)

// expected has the faults whose diagnosis does not name the function that is to blame, with what it names and why it is
// not more. All others are expected to name the function.
var expected = map[string]struct {
	verdict verdict
	why     string
	or      verdict // that is expected too, if the result depends on the machine
}{
	"storefront/slow-pricing":     {nothing, "the rest of the pricing takes nearly as long", function},
	"storefront/pool-drain":       {request, helper, ""},
	"storefront/busy-workers":     {request, helper, ""},
	"storefront/few-slots":        {request, helper, ""},
	"storefront/blocking-refresh": {request, helper, ""},
	"storefront/straggler":        {nothing, helper, ""},
	"storefront/bad-hash":         {nothing, "making the names to look for takes as long", function},
	"storefront/cache-stampede":   {nothing, helper, ""},
	"storefront/slow-log":         {nothing, helper, ""},
	"storefront/new-connections":  {nothing, helper, ""},
	"storefront/rate-limit":       {nothing, library, ""},
	"storefront/hidden-retries":   {nothing, library, ""},
	"storefront/row-lock":         {nothing, "the database is not followed, and its driver is named", ""},
	"storefront/n-plus-one":       {nothing, "many short queries have no long wait in common", ""},
	"inventory/slow-packing":      {nothing, "the innermost function of the service is named, which is a helper that packs one article", ""},
	"inventory/ledger-scan":       {nothing, "the driver of the database is named", ""},
	"storefront/all-cpus":         {nothing, busy, ""},
	"storefront/much-garbage":     {nothing, busy, ""},
	"storefront/many-goroutines":  {nothing, busy, ""},
}

// Reasons of expected.
const (
	helper  = "the innermost function of the service is named, which is a helper that asks the inventory"
	library = "the wait is in a library, which is named"
	busy    = "who has the CPUs is not looked for"
)

// TestTruth makes each mistake under load, in services of its own, and compares the diagnosis of a victim, the one with
// the median duration, with what is to blame. Leaks have no victims that wait.
func TestTruth(t *testing.T) {
	var table strings.Builder
	fmt.Fprint(&table, "\n| Fault | To blame | Diagnosis of a victim | It names |\n|---|---|---|---|\n")
	names, rows := victimised(t), 0
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			f, diagnosis := diagnose(t, name)
			blamed := wallprofile.Short(f.Function)
			found, want := nothing, expected[name]
			switch {
			case strings.Contains(diagnosis, blamed):
				found = function
			case f.Offender != nil && strings.Contains(diagnosis, f.Offender.Method+" "+f.Offender.Route()):
				found = request
			}
			if first := cmp.Or(want.verdict, function); found != first && found != want.or {
				t.Errorf("the diagnosis names %s, and not %s as expected: %s", found, first, diagnosis)
			}
			said := string(found)
			if found == want.verdict {
				said += ": " + want.why
			}
			row := fmt.Sprintf("| %s | `%s` | %s | %s |\n", name, blamed, diagnosis, said)
			t.Log(row)
			table.WriteString(row)
			rows++
		})
	}
	if *update && rows == len(names) { // -run may have left some out
		docsection.Write(t, "../../../docs/faults.md", "diagnoses, written by make test-truth UPDATE=-update", table.String())
	}
}

// startPair starts both services in a directory, and returns the directory of what they save.
func startPair(t *testing.T) (w *processes.Workload, saved string) {
	t.Helper()
	dir := t.TempDir()
	saved = filepath.Join(dir, "saved")
	w, err := processes.Start(t.Context(), processes.Options{Binary: binary, Dir: dir, Env: []string{
		"SPANFLAME_DIR=" + saved, "PYROSCOPE_UPLOAD_INTERVAL=" + window.String(), "OTEL_BSP_SCHEDULE_DELAY=500",
		"SPANFLAME_SLOW_SPAN=4ms", "SPANFLAME_WALL_CPU_SHARE=1",
	}})
	if err != nil {
		t.Fatal(err)
	}
	return w, saved
}

func stopPair(t *testing.T, w *processes.Workload) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), stopTime)
	defer cancel()
	if err := w.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// victimised returns the names of the faults that are no leaks, each with its service.
func victimised(t *testing.T) (names []string) {
	w, _ := startPair(t)
	defer stopPair(t, w)
	all, err := faults.List(t.Context(), w.Storefront.URL, w.Inventory.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Fault.Kind != faults.Leak {
			names = append(names, s.Fault.Service+"/"+s.Fault.Name)
		}
	}
	return names
}

// diagnose returns the diagnosis of the median of the fault's victims.
func diagnose(t *testing.T, name string) (faults.Fault, string) {
	w, saved := startPair(t)
	stop := func() { stopPair(t, w) }
	defer func() { stop() }()
	found, err := faults.Find(t.Context(), name, w.Storefront.URL, w.Inventory.URL)
	if err != nil {
		t.Fatal(err)
	}
	if err := found.On(t.Context()); err != nil {
		t.Fatal(err)
	}
	mix, rate := load.FaultMix(found.Fault)
	report, err := load.Run(t.Context(), load.Config{Target: w.Storefront.URL, Rate: rate, Mix: mix, Duration: truthTime, Concurrency: concurrency})
	if err != nil || report.Failed > 0 {
		t.Fatalf("%v; %d requests failed", err, report.Failed)
	}
	stop() // saves the last spans and profiles
	stop = func() {}

	f := found.Fault
	spanName := f.Span
	if f.Service == storefront {
		spanName = f.Victim.Method + " " + f.Victim.Route() // of the local root span, which has the profile
	}
	dir, err := source.OpenDirectory(saved)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	list, err := dir.Search(t.Context(), source.Filter{Service: f.Service, Name: spanName, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	type victim struct {
		span      traces.Span
		diagnosis string
	}
	var victims []victim
	for _, summary := range list.Traces {
		spans, err := dir.Trace(t.Context(), summary.TraceID)
		if err != nil {
			t.Fatal(err)
		}
		for _, span := range spans {
			if span.Service != f.Service || span.Name != spanName {
				continue
			}
			p, err := dir.Profile(t.Context(), source.OfSpan(span, record.Wall))
			if errors.Is(err, profiles.ErrNone) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Or(profiles.SavedDiagnosis(p, span.ID), profiles.Diagnose(p, span.Name, span.Duration())); d != "" {
				victims = append(victims, victim{span, d})
			}
		}
	}
	if len(victims) == 0 {
		return f, fmt.Sprintf("none: no victim of %d has a wall-clock profile", len(list.Traces))
	}
	slices.SortFunc(victims, func(a, b victim) int { return cmp.Compare(a.span.Duration(), b.span.Duration()) })
	return f, victims[len(victims)/2].diagnosis
}
