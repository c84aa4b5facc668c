package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
)

// stacks makes a profile with one sample of each stack, all of value n.
func stacks(t *testing.T, sampleType string, n int64, stacks ...[]string) []byte {
	t.Helper()
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: sampleType, Unit: "x"}}}
	for _, names := range stacks {
		s := &profile.Sample{Value: []int64{1, n}}
		for _, name := range names {
			id := uint64(len(p.Function) + 1)
			f := &profile.Function{ID: id, Name: name}
			l := &profile.Location{ID: id, Line: []profile.Line{{Function: f}}}
			p.Function, p.Location = append(p.Function, f), append(p.Location, l)
			s.Location = append(s.Location, l)
		}
		p.Sample = append(p.Sample, s)
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSelf(t *testing.T) {
	service := []string{"main.work", "main.main"}
	inside := []string{"runtime.memmove", "spanflame/agent/internal/push.(*Client).Push", "spanflame/agent/internal/deliver.(*Delivery).run"}
	similar := []string{"spanflame/agentless.f"}
	var s self
	cpu := record.Record{Meta: record.Meta{Type: record.CPU}, Profile: stacks(t, "cpu", 10_000_000, service, inside, inside, similar)}
	s.look(cpu)
	s.look(cpu)
	if got := s.cpuTime(); got != 40*time.Millisecond {
		t.Errorf("CPU time %v, want 40ms", got)
	}
	for i := range heapEvery + 1 {
		s.look(record.Record{Meta: record.Meta{Type: record.Memory}, Profile: stacks(t, "inuse_space", int64(100+i), service, inside)})
	}
	if got := s.heap.Load(); got != 100+heapEvery {
		t.Errorf("heap %d bytes, want %d: that of the last profile looked at", got, 100+heapEvery)
	}
	s.look(record.Record{Meta: record.Meta{Type: record.CPU}, Profile: []byte("not a profile")})
	s.look(record.Record{Meta: record.Meta{Type: record.Memory}, Profile: stacks(t, "alloc_space", 1, inside)})
	if s.cpuTime() != 40*time.Millisecond || s.heap.Load() != 100+heapEvery {
		t.Errorf("what cannot be read changed the counts: %v, %d", s.cpuTime(), s.heap.Load())
	}
}

// TestOwnShareOfRealProfiles compares the sums with those of google/pprof.
func TestOwnShareOfRealProfiles(t *testing.T) {
	files, err := filepath.Glob("../examples/*/*/*.pb.gz")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d recorded profiles: %v", len(files), err)
	}
	found := false
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p, err := profile.ParseData(b)
		if err != nil {
			t.Fatal(err)
		}
		for i, st := range p.SampleType {
			var want int64
			for _, s := range p.Sample {
				if slices.ContainsFunc(s.Location, func(l *profile.Location) bool {
					return slices.ContainsFunc(l.Line, func(x profile.Line) bool { return isOwn(x.Function.Name) })
				}) {
					want += s.Value[i]
				}
			}
			found = found || want > 0
			if got, ok := ownShare(b, st.Type); !ok || got != want {
				t.Errorf("%s, %s: %d, %v, want %d", file, st.Type, got, ok, want)
			}
		}
	}
	if !found {
		t.Error("no recorded profile has a function of the agent")
	}
}
