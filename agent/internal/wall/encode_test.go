package wall

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	oteltrace "go.opentelemetry.io/otel/trace"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// accountAt is the account of a span that slept for a second from the given time on.
func accountAt(id byte, start time.Time) account {
	return account{
		span:     &span{first: "op", id: oteltrace.SpanID{id}, start: start},
		duration: time.Second,
		samples:  []sample{{entry{stack: noStack, state: wallprofile.WaitSleep}, false, int64(time.Second)}},
	}
}

// Spans of one capture share a record, unless they start far from each other: they are found by its start.
func TestSpansAreFoundByTheStartOfTheirRecord(t *testing.T) {
	var records []record.Record
	x := newEncoder(Options{Service: "shop", Emit: func(r record.Record) { records = append(records, r) }})
	epoch := time.Unix(1000, 42)
	for i, at := range []time.Duration{3 * time.Second, 0, 40 * time.Second, 41 * time.Second} {
		x.add(wallprofile.ScopeChild, accountAt(byte(i+1), epoch.Add(at)))
	}
	if n := x.flush(wallprofile.ScopeChild); n != 1 {
		t.Fatalf("flush: %d", n)
	}
	if n := x.flush(wallprofile.ScopeRoot); n != 0 {
		t.Errorf("nothing of roots was gathered, and flush: %d", n)
	}
	if len(records) != 2 {
		t.Fatalf("%d records, want 2", len(records))
	}
	for i, want := range []struct{ from, to time.Duration }{{0, 4 * time.Second}, {40 * time.Second, 42 * time.Second}} {
		r := records[i]
		p, err := profile.ParseData(r.Profile)
		if err != nil {
			t.Fatal(err)
		}
		if !r.Start.Equal(epoch.Add(want.from)) || !r.End.Equal(epoch.Add(want.to)) || p.TimeNanos != r.Start.UnixNano() {
			t.Errorf("record %d is from %v to %v, its profile at %d; want %v to %v", i, r.Start, r.End, p.TimeNanos, want.from, want.to)
		}
		if r.Type != record.Wall || r.Service != "shop" || r.Labels[wallprofile.SpanScope] != wallprofile.ScopeChild {
			t.Errorf("record %d is of %+v", i, r.Meta)
		}
		ids := map[string]bool{}
		for _, sm := range p.Sample {
			ids[sm.Label["span_id"][0]] = true
		}
		if len(ids) != 2 {
			t.Errorf("record %d has the spans %v, want two", i, ids)
		}
	}
}

// A server keeps one profile of a series and millisecond: no two records may have the same.
func TestNoTwoRecordsOfASeriesStartTogether(t *testing.T) {
	starts := map[string]map[int64]bool{wallprofile.ScopeRoot: {}, wallprofile.ScopeChild: {}}
	x := newEncoder(Options{Emit: func(r record.Record) {
		at := starts[r.Labels[wallprofile.SpanScope]]
		if at[r.Start.UnixMilli()] {
			t.Errorf("two records at %v", r.Start)
		}
		at[r.Start.UnixMilli()] = true
	}})
	for range 50 {
		for scope := range starts {
			x.add(scope, accountAt(1, time.Unix(1000, 0)))
			x.flush(scope)
		}
	}
	for scope, at := range starts {
		if len(at) != 50 {
			t.Errorf("%d %s records, want 50", len(at), scope)
		}
		for ms := range at {
			if off := ms - 1000_000; off < 0 || off > 50 {
				t.Errorf("a %s record starts %d ms after its span", scope, off)
			}
		}
	}
}

func TestRecordsAreBounded(t *testing.T) {
	samples := 0
	x := newEncoder(Options{Emit: func(r record.Record) {
		p, err := profile.ParseData(r.Profile)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Sample) > maxRecordSamples {
			t.Errorf("a record of %d samples", len(p.Sample))
		}
		samples += len(p.Sample)
	}})
	a := accountAt(1, time.Unix(1000, 0))
	for i := range maxRecordSamples/2 - 1 {
		a.samples = append(a.samples, sample{entry{stack: &stack{frames: []frame{{fmt.Sprint(i), "file.go", 1}}}}, false, 1})
	}
	for range 5 {
		x.add(wallprofile.ScopeRoot, a)
	}
	x.flush(wallprofile.ScopeRoot)
	if samples != 5*maxRecordSamples/2 {
		t.Errorf("%d samples in all, want %d", samples, 5*maxRecordSamples/2)
	}
}

// A record carries the diagnoses of its own spans. Its profile has none: they are for saved profiles.
func TestRecordsCarryTheirDiagnoses(t *testing.T) {
	var records []record.Record
	x := newEncoder(Options{Emit: func(r record.Record) { records = append(records, r) }})
	at := time.Unix(1000, 0)
	add := func(scope string, after time.Duration, comment string) {
		a := accountAt(1, at.Add(after))
		a.comment = comment
		x.add(scope, a)
	}
	add(wallprofile.ScopeRoot, 0, "span_id=00000000000000aa 612 ms POST /checkout")
	add(wallprofile.ScopeChild, 0, "")
	add(wallprofile.ScopeRoot, time.Second, "span_id=00000000000000bb größer\nals")
	add(wallprofile.ScopeRoot, 2*maxSpread, "span_id=00000000000000cc next") // too late for the same record
	x.flush(wallprofile.ScopeChild)
	x.flush(wallprofile.ScopeRoot)

	want := [][]string{
		{"span_id=00000000000000aa 612 ms POST /checkout", "span_id=00000000000000bb größer\nals"},
		nil,
		{"span_id=00000000000000cc next"},
	}
	if len(records) != len(want) {
		t.Fatalf("%d records, want %d", len(records), len(want))
	}
	for i, r := range records {
		plain, err := profile.ParseData(r.Profile)
		if err != nil {
			t.Fatal(err)
		}
		commented, err := profile.ParseData(r.Commented().Profile)
		if err != nil {
			t.Fatal(err)
		}
		if len(plain.Comments) > 0 || !slices.Equal(commented.Comments, want[i]) {
			t.Errorf("record %d has the comments %q and, commented, %q; want none and %q", i, plain.Comments, commented.Comments, want[i])
		}
		commented.Comments = nil
		if commented.String() != plain.String() {
			t.Errorf("record %d is another profile with its comments:\n%v\n%v", i, commented, plain)
		}
	}
}
