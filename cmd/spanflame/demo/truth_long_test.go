//go:build long

package demo

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"spanflame/internal/docsection"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/compare"
	"spanflame/profiles/input"
	"spanflame/viewer/source"
	"spanflame/workload/faults"
	"spanflame/workload/load"
	"spanflame/workload/processes"
)

var update = flag.Bool("update", false, "write the tables of docs/faults.md")

// How long the load with each fault lasts, that with its repair, and that with a leak; and the window of profiles, of
// which compare needs some on each side, and leaks a dozen.
const (
	truthTime   = 8 * time.Second
	leakTime    = 30 * time.Second
	truthWindow = time.Second
)

// verdict is how much of the truth a diagnosis has.
type verdict string

// The verdicts.
const (
	function verdict = "the function"
	request  verdict = "the request"
	nothing  verdict = "nothing"
)

// expected has the faults whose diagnosis does not always name the function that is to blame, with what it names and why it
// is not more. Without a verdict, and for all others, that is the function.
var expected = map[string]struct {
	verdict verdict
	why     string
	or      verdict // that is expected too, if the result depends on the machine
}{
	"storefront/row-lock":        {nothing, "the database is not followed: the query is named", ""},
	"storefront/all-cpus":        {"", "", request},
	"storefront/much-garbage":    {"", "", nothing},
	"storefront/many-goroutines": {nothing, "what runs for less than 10 µs at a time is not told apart: each goroutine does", function},
	"storefront/open-bodies":     {nothing, "the goroutines of a connection are in no function of the service", ""},
}

// TestTruth makes each mistake that makes requests slow, under load and in services of its own, and repairs it. It
// compares the diagnosis of a victim, the one with the median duration, with what is to blame, and lists the difference
// that the repair makes, and what the usual pair of libraries shows in place of the agent.
func TestTruth(t *testing.T) {
	pair := buildPair(t)
	writeRows(t, "diagnoses", waitsHead, false, func(t *testing.T, f faults.Fault) string { return waitRow(t, f, pair) })
}

// TestTruthOfLeaks makes each leak under load, and repairs it. It compares what grows most with what is to blame.
func TestTruthOfLeaks(t *testing.T) {
	writeRows(t, "leaks", leaksHead, true, leakRow)
}

// The heads of the tables.
const (
	waitsHead = `
Each fault was made and repaired under its load, in services that ran for it alone. The arithmetic of a fault with a knob
in milliseconds says which share of the victim's time it adds. "compare" has the first function that "spanflame compare"
lists as taking less time per request after the repair (CPU time for the kinds cpu and machine), and the row of what is to
blame. "The pair" is grafana/pyroscope-go with grafana/otel-profiling-go. It profiles the CPU only, and a process has one
CPU profiler: the services ran again, under the same load, with the pair in place of the agent, and the victim is the one
with the median duration there. "Nothing of 170 ms" is an empty flame graph of a request that took 170 ms.

| Fault | To blame | Diagnosis of a victim | It names | compare: what takes less, repaired | The pair shows of a victim |
|---|---|---|---|---|---|
`
	leaksHead = `
A leak has no victims that wait. For each, what "spanflame leaks" names first after its load, and what the stacks with that
function hold before the repair and after it, while the load goes on.

| Fault | To blame | leaks: what grows most | It names | Held before the repair | after it |
|---|---|---|---|--:|--:|
`
)

// writeRows makes the faults that are leaks, or those that are not, and with -update writes their rows into a section of
// the page of faults.
func writeRows(t *testing.T, section, head string, leaks bool, row func(*testing.T, faults.Fault) string) {
	text, rows, all := head, 0, 0
	for _, f := range list(t) {
		if leaks != (f.Kind == faults.Leak) {
			continue
		}
		all++
		t.Run(f.Service+"/"+f.Name, func(t *testing.T) {
			r := row(t, f)
			t.Log(r)
			text += r
			rows++
		})
	}
	if *update && rows == all { // -run may have left some out
		docsection.Write(t, faultsPage, section+", written by make test-truth UPDATE=-update", text)
	}
}

const faultsPage = "../../../docs/faults.md"

// waitRow makes a fault that makes requests slow, and returns its row.
func waitRow(t *testing.T, f faults.Fault, pair string) string {
	w, saved := startPair(t, binary)
	faulty, repaired := drive(t, w, f, truthTime, truthTime)
	stopPair(t, w) // saves the last spans and profiles
	v := victim(t, saved, f, faulty)
	found := nothing
	switch blamed := wallprofile.Short(f.Function); {
	case names(v.diagnosis, blamed):
		found = function
	case f.Offender != nil && strings.Contains(v.diagnosis, f.Offender.Method+" "+f.Offender.Route()):
		found = request
	}
	diagnosis := strings.ReplaceAll(v.diagnosis, "|", `\|`)
	return fmt.Sprintf("| %s/%s | %s | %s | %s | %s | %s |\n", f.Service, f.Name, planted(f, v.span.Duration()), diagnosis,
		judge(t, f, found, v.diagnosis), compared(t, saved, f, faulty, repaired), shownByPair(t, f, pair))
}

// names reports whether a text has the name of a function, and not only that of another one whose
// name begins with it.
func names(text, function string) bool {
	for _, after := range strings.Split(text, function)[1:] {
		next, _ := utf8.DecodeRuneInString(after)
		if !unicode.IsLetter(next) && !unicode.IsDigit(next) && next != '_' {
			return true
		}
	}
	return false
}

// judge compares what was found with what is expected, and returns it with the reason why it is not the function.
func judge(t *testing.T, f faults.Fault, found verdict, report string) string {
	want := expected[f.Service+"/"+f.Name]
	if first := cmp.Or(want.verdict, function); found != first && found != want.or {
		t.Errorf("the report names %s, want %s: %s", found, first, report)
	}
	if found == want.verdict {
		return string(found) + ": " + want.why
	}
	return string(found)
}

// planted describes what is to blame, with its share of the victim's time if the fault's own arithmetic says it.
func planted(f faults.Fault, duration time.Duration) string {
	text := fmt.Sprintf("`%s`, %s", wallprofile.Short(f.Function), f.Kind)
	if f.Predicted != nil {
		share := f.Predicted.AddsMS / float64(duration.Milliseconds())
		text += fmt.Sprintf(", %.0f %% of the time", 100*min(share, 1))
	}
	return text
}

// startPair starts both services, of a program that has their command line, in a directory, and returns the directory of
// what they save.
func startPair(t *testing.T, program string, env ...string) (w *processes.Workload, saved string) {
	t.Helper()
	dir := t.TempDir()
	saved = filepath.Join(dir, "saved")
	w, err := processes.Start(t.Context(), processes.Options{Binary: program, Dir: dir, Env: append([]string{
		"SPANFLAME_DIR=" + saved, "PYROSCOPE_UPLOAD_INTERVAL=" + truthWindow.String(), "OTEL_BSP_SCHEDULE_DELAY=500",
		"SPANFLAME_SLOW_SPAN=100us", "SPANFLAME_WALL_CPU_SHARE=1",
	}, env...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopPair(t, w) })
	return w, saved
}

// stopPair stops both services, if they run.
func stopPair(t *testing.T, w *processes.Workload) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), stopTime)
	defer cancel()
	if err := w.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// list returns the faults of both services.
func list(t *testing.T) (list []faults.Fault) {
	w, _ := startPair(t, binary)
	defer stopPair(t, w)
	all, err := faults.List(t.Context(), w.Storefront.URL, w.Inventory.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		list = append(list, s.Fault)
	}
	return list
}

// drive sends the load of a fault, first with the fault for a time and then with its repair.
func drive(t *testing.T, w *processes.Workload, f faults.Fault, with, without time.Duration) (faulty, repaired phase) {
	t.Helper()
	found, err := faults.Find(t.Context(), f.Service+"/"+f.Name, w.Storefront.URL, w.Inventory.URL)
	if err != nil {
		t.Fatal(err)
	}
	mix, rate := load.FaultMix(f)
	send := func(length time.Duration) phase {
		p := phase{begun: time.Now()}
		p.report, err = load.Run(t.Context(), load.Config{
			Target: w.Storefront.URL, Rate: rate, Mix: mix, Duration: length, Concurrency: concurrency,
		})
		p.ended = time.Now()
		if err != nil || p.report.Failed > 0 {
			t.Fatalf("%v; %d requests failed: %+v", err, p.report.Failed, p.report.Endpoints)
		}
		return p
	}
	if err := found.On(t.Context()); err != nil {
		t.Fatal(err)
	}
	faulty = send(with)
	if err := found.Off(t.Context()); err != nil {
		t.Fatal(err)
	}
	return faulty, send(without)
}

// spanName returns the name of the spans that show a fault: the service's local root spans, which have profiles.
func spanName(f faults.Fault) string {
	if f.Service == storefront {
		return f.Victim.Method + " " + f.Victim.Route()
	}
	return f.Span
}

// diagnosed is a span with the diagnosis of its wall-clock profile.
type diagnosed struct {
	span      traces.Span
	diagnosis string
}

// victim returns the median of the fault's victims.
func victim(t *testing.T, saved string, f faults.Fault, faulty phase) diagnosed {
	dir, err := source.OpenDirectory(saved)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	name := spanName(f)
	var found []diagnosed
	sent := 0
	for _, spans := range victims(t, dir, f.Service, name, faulty) {
		for _, span := range spans {
			if span.Service != f.Service || span.Name != name {
				continue
			}
			sent++
			p, err := dir.Profile(t.Context(), source.OfSpan(span, record.Wall))
			if errors.Is(err, profiles.ErrNone) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := profiles.DiagnosisOf(p, span.ID, span.Name, span.Duration()); d != "" {
				found = append(found, diagnosed{span, d})
			}
		}
	}
	if len(found) == 0 {
		t.Fatalf("no victim of %d has a wall-clock profile", sent)
	}
	if 2*len(found) < sent {
		t.Errorf("of %d requests, only %d have a wall-clock profile: the median may be of those that did not wait", sent, len(found))
	}
	slices.SortFunc(found, func(a, b diagnosed) int { return cmp.Compare(a.span.Duration(), b.span.Duration()) })
	return found[len(found)/2]
}

// victims returns the traces in a phase of the load that entered a service by spans of a name.
func victims(t *testing.T, dir *source.Directory, service, name string, in phase) (all [][]traces.Span) {
	t.Helper()
	list, err := dir.Search(t.Context(), source.Filter{Service: service, Name: name, From: in.begun, To: in.ended, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list.Traces {
		spans, err := dir.Trace(t.Context(), s.TraceID)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, spans)
	}
	return all
}

// read returns the saved windows of some profile types, as the commands do.
func read(t *testing.T, saved string, f faults.Fault, from, to time.Time, kinds ...record.Type) iter.Seq2[profiles.Window, error] {
	t.Helper()
	query := profiles.Query{Service: f.Service, Types: kinds, From: from, To: to}
	windows, err := input.Open(t.Context(), saved, input.Options{Query: query})
	if err != nil {
		t.Fatal(err)
	}
	return windows
}

// compared returns what spanflame says of the time or the CPU time of a request, with the fault and with its repair: the
// first function that takes less.
func compared(t *testing.T, saved string, f faults.Fault, faulty, repaired phase) string {
	kind := record.Wall
	if f.Kind == faults.CPU || f.Kind == faults.Machine {
		kind = record.CPU
	}
	report, err := compare.Compare(t.Context(), read(t, saved, f, faulty.begun, faulty.ended.Add(-truthWindow), kind),
		read(t, saved, f, repaired.begun.Add(truthWindow), time.Time{}, kind),
		compare.Options{WorkBefore: float64(faulty.report.Sent), WorkAfter: float64(repaired.report.Sent)})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Metrics) != 1 {
		t.Fatalf("%d metrics of %s are compared", len(report.Metrics), kind)
	}
	m := report.Metrics[0]
	less := slices.DeleteFunc(m.Changed(), func(c compare.Change) bool { return c.Cum.Difference.Value >= 0 })
	if len(less) == 0 {
		return "no function takes less"
	}
	first := less[0]
	text := fmt.Sprintf("%s: %s → %s", wallprofile.Short(first.Name), m.Format(float64(first.Cum.Before)), m.Format(float64(first.Cum.After)))
	switch i := slices.IndexFunc(less, func(c compare.Change) bool { return c.Name == f.Function }); i {
	case 0:
		return text
	case -1:
		return fmt.Sprintf("%s; what is to blame is not among the %d that take less", text, len(less))
	default:
		return fmt.Sprintf("%s; what is to blame is row %d of %d", text, i+1, len(less))
	}
}
