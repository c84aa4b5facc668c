package delta

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/pprof/profile"
)

// heapOf returns a profile of memory with a stack for each pair of values: allocated, and in use. A pair of zeros is no stack.
func heapOf(t *testing.T, values ...[2]int64) []byte {
	t.Helper()
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "alloc_space", Unit: "bytes"}, {Type: "inuse_space", Unit: "bytes"}}}
	for i, v := range values {
		if v == [2]int64{} {
			continue
		}
		n := uint64(i + 1)
		f := &profile.Function{ID: n, Name: string(rune('a' + i))}
		l := &profile.Location{ID: n, Address: 0x1000 * n, Line: []profile.Line{{Function: f}}}
		p.Function, p.Location = append(p.Function, f), append(p.Location, l)
		p.Sample = append(p.Sample, &profile.Sample{Location: []*profile.Location{l}, Value: v[:]})
	}
	var b bytes.Buffer
	if err := p.WriteUncompressed(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBetween(t *testing.T) {
	before := heapOf(t, [2]int64{10, 5}, [2]int64{20, 0}, [2]int64{1 << 60, 1})
	for name, tt := range map[string]struct {
		after []byte
		same  bool
		want  map[string][]int64
	}{
		"more": {heapOf(t, [2]int64{15, 2}, [2]int64{20, 0}, [2]int64{1<<60 + 1, 1}, [2]int64{7, 7}), true,
			map[string][]int64{"a": {5, 2}, "c": {1, 1}, "d": {7, 7}}},
		"less in use":    {heapOf(t, [2]int64{10, 0}, [2]int64{20, 0}, [2]int64{1 << 60, 0}), true, map[string][]int64{}},
		"less allocated": {heapOf(t, [2]int64{15, 5}, [2]int64{19, 0}, [2]int64{1 << 60, 1}), false, nil},
		"a stack less":   {heapOf(t, [2]int64{15, 5}, [2]int64{}, [2]int64{1 << 60, 1}), false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p, same, err := Between(before, tt.after, begun, end)
			if err != nil || same != tt.same {
				t.Fatalf("same: %t, want %t, %v", same, tt.same, err)
			}
			if !same {
				return
			}
			got, err := profile.ParseUncompressed(p.Raw)
			if err != nil || got.TimeNanos != begun.UnixNano() || got.DurationNanos != int64(15*time.Second) || len(got.Sample) != len(tt.want) {
				t.Fatalf("%v, %v", got, err)
			}
			for _, s := range got.Sample {
				if want := tt.want[s.Location[0].Line[0].Function.Name]; s.Value[0] != want[0] || s.Value[1] != want[1] {
					t.Errorf("%v, want %v", s.Value, want)
				}
			}
		})
	}
	if _, _, err := Between(before, []byte("garbage"), begun, end); err == nil {
		t.Error("garbage is read")
	}
}
