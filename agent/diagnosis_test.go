package agent

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/pprof/profile"

	"spanflame/agent/internal/wall"
	"spanflame/internal/record"
)

func TestDiagnosesAreCommentsOfTheirProfile(t *testing.T) {
	var got []record.Record
	d := diagnoses{save: func(r record.Record) { got = append(got, r) }}
	emit := func(scope string) []byte {
		gz := stacks(t, "wall", 5, []string{"main.work", "main.main"}, []string{"sync.(*Mutex).Lock"})
		d.put(record.Record{Meta: record.Meta{Type: record.Wall, Labels: map[string]string{"span_scope": scope}}, Profile: gz})
		return gz
	}
	d.add(wall.Diagnosis{SpanID: "00000000000000aa", Sentence: "612 ms POST /checkout: 571 ms (93 %) waiting for a mutex, held by main.audit"})
	d.add(wall.Diagnosis{SpanID: "00000000000000bb", Sentence: "größer\nals"})
	emit("child")
	first := emit("root")
	d.add(wall.Diagnosis{SpanID: "00000000000000cc", Sentence: "next"})
	emit("root")

	want := [][]string{
		nil, // a child's record comes without, and before or after its root's
		{"span_id=00000000000000aa 612 ms POST /checkout: 571 ms (93 %) waiting for a mutex, held by main.audit", "span_id=00000000000000bb größer\nals"},
		{"span_id=00000000000000cc next"},
	}
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i, r := range got {
		p, err := profile.ParseData(r.Profile)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(p.Comments, want[i]) {
			t.Errorf("record %d has the comments %q, want %q", i, p.Comments, want[i])
		}
		p.Comments = nil
		plain, err := profile.ParseData(first)
		if err != nil {
			t.Fatal(err)
		}
		if p.String() != plain.String() || len(plain.Comments) > 0 {
			t.Errorf("record %d is no longer the profile that it was:\n%v\n%v", i, p, plain)
		}
	}
}

func TestAProfileThatCannotBeReadGoesAsItIs(t *testing.T) {
	for _, bad := range [][]byte{nil, []byte("no gzip"), stacks(t, "wall", 5, []string{"main.work"})[:40]} {
		var got record.Record
		d := diagnoses{save: func(r record.Record) { got = r }}
		d.add(wall.Diagnosis{SpanID: "00000000000000aa"})
		d.put(record.Record{Meta: record.Meta{Type: record.Wall, Labels: map[string]string{"span_scope": "root"}}, Profile: bad})
		if !bytes.Equal(got.Profile, bad) {
			t.Errorf("%q became %q", bad, got.Profile)
		}
	}
}
