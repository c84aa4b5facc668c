package delta

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
)

// The window of the tests.
var (
	begun = time.Unix(1_800_000_000, 5)
	end   = begun.Add(15 * time.Second)
)

// sampled is a sample: its frames, leaf first, each "function" or "function:line"; its value for each sample type.
type sampled struct {
	frames string
	values []int64
	bytes  int64 // label; 0 for none
}

// newProfile makes a profile. Its functions and locations are numbered, and its strings written, in the order of use.
func newProfile(types string, samples ...sampled) *profile.Profile {
	p := &profile.Profile{
		PeriodType: &profile.ValueType{Type: "space", Unit: "bytes"}, Period: 512, TimeNanos: 7,
		Mapping: []*profile.Mapping{{ID: 1, Start: 0x400000, Limit: 0x500000, File: "/bin/service", HasFunctions: true}},
	}
	for _, t := range strings.Fields(types) {
		p.SampleType = append(p.SampleType, &profile.ValueType{Type: t, Unit: "count"})
	}
	locations := map[string]*profile.Location{}
	functions := map[string]*profile.Function{}
	for _, s := range samples {
		x := &profile.Sample{Value: s.values}
		if s.bytes > 0 {
			x.NumLabel = map[string][]int64{"bytes": {s.bytes}}
		}
		for _, frame := range strings.Fields(s.frames) {
			l := locations[frame]
			if l == nil {
				l = &profile.Location{ID: uint64(len(p.Location)) + 1, Mapping: p.Mapping[0], Address: 0x400000 + uint64(len(p.Location))}
				locations[frame], p.Location = l, append(p.Location, l)
				for _, inlined := range strings.Split(frame, "+") {
					if inlined == "0x1" { // an address without a name
						continue
					}
					name, number, _ := strings.Cut(inlined, ":")
					f := functions[name]
					if f == nil {
						f = &profile.Function{ID: uint64(len(p.Function)) + 1, Name: strings.TrimPrefix(name, "noname"), Filename: name + ".go"}
						functions[name], p.Function = f, append(p.Function, f)
					}
					var at int64
					_, _ = fmt.Sscan(number, &at) // 0 for none
					l.Line = append(l.Line, profile.Line{Function: f, Line: at})
				}
			}
			x.Location = append(x.Location, l)
		}
		p.Sample = append(p.Sample, x)
	}
	return p
}

func raw(t testing.TB, p *profile.Profile) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := p.WriteUncompressed(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// next returns the samples of a difference, in the form "a:1 b{bytes} values".
func next(t *testing.T, d *Delta, p *profile.Profile) ([]string, *profile.Profile) {
	t.Helper()
	out, err := d.Next(raw(t, p), begun, end)
	if err != nil {
		t.Fatal(err)
	}
	got, err := profile.ParseUncompressed(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.CheckValid(); err != nil {
		t.Fatal(err)
	}
	var samples []string
	for _, s := range got.Sample {
		var frames []string
		for _, l := range s.Location {
			for _, line := range l.Line {
				frame := line.Function.Name
				if line.Line > 0 {
					frame += fmt.Sprintf(":%d", line.Line)
				}
				frames = append(frames, frame)
			}
		}
		text := strings.Join(frames, " ")
		if b := s.NumLabel["bytes"]; len(b) > 0 {
			text += fmt.Sprintf("{%d}", b[0])
		}
		samples = append(samples, fmt.Sprint(text, " ", s.Value))
	}
	return samples, got
}

func skip(t *testing.T, d *Delta, p *profile.Profile) {
	t.Helper()
	if err := d.Skip(raw(t, p)); err != nil {
		t.Fatal(err)
	}
}

func TestDifferences(t *testing.T) {
	const mutex, heap = "contentions delay", "alloc_objects inuse_objects"
	for name, tt := range map[string]struct {
		types         string
		before, after []sampled
		want          []string
	}{
		"what was there is subtracted, and what has not changed is left out": {mutex,
			[]sampled{{"a b", []int64{1, 10}, 0}, {"c b", []int64{5, 5}, 0}},
			[]sampled{{"c b", []int64{5, 5}, 0}, {"a b", []int64{3, 15}, 0}, {"d b", []int64{1, 1}, 0}},
			[]string{"a b [2 5]", "d b [1 1]"}},
		"numbers of functions, locations and strings do not matter": {mutex,
			[]sampled{{"a b", []int64{1, 1}, 0}, {"b a", []int64{10, 10}, 0}},
			[]sampled{{"b a", []int64{11, 11}, 0}, {"a b", []int64{3, 3}, 0}},
			[]string{"b a [1 1]", "a b [2 2]"}},
		"levels are not subtracted": {heap,
			[]sampled{{"a", []int64{5, 5}, 0}, {"b", []int64{5, 0}, 0}},
			[]sampled{{"a", []int64{5, 3}, 0}, {"b", []int64{5, 0}, 0}, {"c", []int64{2, 0}, 0}},
			[]string{"a [0 3]", "c [2 0]"}},
		"labels keep samples apart": {heap,
			[]sampled{{"a", []int64{5, 0}, 16}, {"a", []int64{7, 0}, 32}},
			[]sampled{{"a", []int64{8, 0}, 32}, {"a", []int64{7, 0}, 16}, {"a", []int64{1, 0}, 0}},
			[]string{"a{32} [1 0]", "a{16} [2 0]", "a [1 0]"}},
		"lines keep samples apart": {mutex,
			[]sampled{{"a:1 b", []int64{1, 1}, 0}, {"a:2 b", []int64{2, 2}, 0}},
			[]sampled{{"a:1 b", []int64{2, 2}, 0}, {"a:2 b", []int64{5, 5}, 0}},
			[]string{"a:1 b [1 1]", "a:2 b [3 3]"}},
		"frames are compared, not locations": {mutex,
			[]sampled{{"a+b c", []int64{1, 1}, 0}},
			[]sampled{{"a b+c", []int64{2, 2}, 0}, {"a b c", []int64{3, 3}, 0}},
			[]string{"a b c [4 4]"}},
		"recursion counts": {mutex,
			[]sampled{{"a a b", []int64{1, 1}, 0}},
			[]sampled{{"a a b", []int64{1, 1}, 0}, {"a b", []int64{1, 1}, 0}, {"a a a b", []int64{1, 1}, 0}},
			[]string{"a b [1 1]", "a a a b [1 1]"}},
		"a value that decreases counts as unchanged": {mutex,
			[]sampled{{"a", []int64{5, 50}, 0}, {"b", []int64{5, 50}, 0}},
			[]sampled{{"a", []int64{4, 60}, 0}, {"b", []int64{1, 1}, 0}},
			[]string{"a [0 10]"}},
		"frames without a name are left out": {mutex,
			[]sampled{{"a 0x1 b", []int64{1, 1}, 0}},
			[]sampled{{"a b", []int64{2, 2}, 0}, {"0x1 a noname b", []int64{2, 2}, 0}, {"a+noname b", []int64{1, 1}, 0}},
			[]string{"a b [4 4]"}},
		"a stack without any name has a name": {mutex,
			nil, []sampled{{"0x1", []int64{1, 1}, 0}, {"", []int64{1, 1}, 0}, {"noname 0x1", []int64{1, 1}, 0}},
			[]string{"[unknown] [3 3]"}},
		"nothing": {mutex, nil, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			d := &Delta{}
			skip(t, d, newProfile(tt.types, tt.before...))
			got, _ := next(t, d, newProfile(tt.types, tt.after...))
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if again, _ := next(t, d, newProfile(tt.types, tt.after...)); len(again) > 0 && tt.types == mutex {
				t.Errorf("the same profile again: %q, want nothing", again)
			}
		})
	}
}

func TestADecreaseIsFollowed(t *testing.T) {
	d := &Delta{}
	skip(t, d, newProfile("contentions", sampled{"a", []int64{9}, 0}))
	next(t, d, newProfile("contentions", sampled{"a", []int64{4}, 0}))
	if got, _ := next(t, d, newProfile("contentions", sampled{"a", []int64{6}, 0})); !slices.Equal(got, []string{"a [2]"}) {
		t.Errorf("got %q, want 2: from 4 to 6", got)
	}
}

func TestAStackThatIsMissingOnceIsNotCountedTwice(t *testing.T) {
	d := &Delta{}
	skip(t, d, newProfile("contentions", sampled{"a", []int64{9}, 0}))
	next(t, d, newProfile("contentions"))
	if got, _ := next(t, d, newProfile("contentions", sampled{"a", []int64{11}, 0})); !slices.Equal(got, []string{"a [2]"}) {
		t.Errorf("got %q, want 2: from 9 to 11", got)
	}
}

func TestTheRestOfTheProfileIsKept(t *testing.T) {
	in := newProfile("alloc_space", sampled{"a b", []int64{1}, 8})
	in.DefaultSampleType, in.DropFrames, in.KeepFrames, in.DocURL, in.Comments = "alloc_space", "drop", "keep", "https://example.com", []string{"one", "two"}
	in.Location[0].IsFolded = true
	in.Location[0].Line[0].Column = 3
	in.Function[0].StartLine, in.Function[0].SystemName = 4, "system"
	_, got := next(t, &Delta{}, in)
	in.TimeNanos, in.DurationNanos = begun.UnixNano(), int64(end.Sub(begun))
	if got.String() != in.String() || got.DocURL != in.DocURL || got.Location[0].Line[0].Column != 3 || got.Function[0].StartLine != 4 ||
		got.Function[0].SystemName != "system" || !got.Location[0].IsFolded || got.Mapping[0].Start != in.Mapping[0].Start {
		t.Errorf("got\n%v\nwant\n%v", got, in)
	}
}

func TestWhatNoSampleUsesIsLeftOut(t *testing.T) {
	d := &Delta{}
	skip(t, d, newProfile("contentions", sampled{"a b", []int64{9}, 0}))
	_, got := next(t, d, newProfile("contentions", sampled{"a b", []int64{9}, 0}, sampled{"c b", []int64{9}, 0}))
	if len(got.Sample) != 1 || len(got.Location) != 2 || len(got.Function) != 2 {
		t.Errorf("%d samples, %d locations, %d functions, want 1, 2 and 2", len(got.Sample), len(got.Location), len(got.Function))
	}
}

func TestAnErrorChangesNothing(t *testing.T) {
	d := &Delta{}
	good := raw(t, newProfile("contentions", sampled{"a", []int64{5}, 0}))
	skip(t, d, newProfile("contentions", sampled{"a", []int64{1}, 0}))
	for name, b := range map[string][]byte{
		"nothing":            nil,
		"cut off":            good[:len(good)-1],
		"another type":       raw(t, newProfile("delay", sampled{"a", []int64{5}, 0})),
		"a missing location": append(bytes.Clone(good), 0x12, 4, 0x0a, 1, 99, 0x10),
	} {
		if _, err := d.Next(b, begun, end); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if got, _ := next(t, d, newProfile("contentions", sampled{"a", []int64{7}, 0})); !slices.Equal(got, []string{"a [6]"}) {
		t.Errorf("got %q, want 6: from 1 to 7", got)
	}
}

func TestTheStateIsBounded(t *testing.T) {
	many := func(n int) *profile.Profile {
		p := newProfile("alloc_objects alloc_space inuse_objects inuse_space", sampled{"a", []int64{1, 1, 1, 1}, 0})
		l, s := p.Location[0], p.Sample[0]
		p.Sample = nil
		for i := range n {
			p.Sample = append(p.Sample, &profile.Sample{Location: []*profile.Location{l}, Value: s.Value, NumLabel: map[string][]int64{"bytes": {int64(i) + 1}}})
		}
		return p
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	largest := raw(t, many(MaxStacks))
	before, d := heap(), &Delta{}
	if err := d.Skip(largest); err != nil {
		t.Fatal(err)
	}
	size := heap() - before
	t.Logf("%d stacks take %d bytes, %d each", MaxStacks, size, size/MaxStacks)
	if size > 64<<20 {
		t.Errorf("%d bytes, want at most 64 MiB", size)
	}
	if err := d.Skip(raw(t, many(MaxStacks+1))); !errors.Is(err, ErrTooManyStacks) {
		t.Errorf("one stack more: %v", err)
	}
	runtime.KeepAlive(d)
}

// TestDeltasOfRealProfiles builds and runs testdata/stacks, which compares the deltas of its own profiles with what
// google/pprof makes of those of runtime/pprof.
func TestDeltasOfRealProfiles(t *testing.T) {
	for _, cgo := range []string{"0", "1"} {
		program := filepath.Join(t.TempDir(), "stacks")
		build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./testdata/stacks")
		build.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build with CGO_ENABLED=%s: %v\n%s", cgo, err, out)
		}
		for _, unwinder := range []string{"0", "1"} {
			run := exec.CommandContext(t.Context(), program)
			run.Env = append(os.Environ(), "GODEBUG=tracefpunwindoff="+unwinder)
			if out, err := run.CombinedOutput(); err != nil {
				t.Errorf("CGO_ENABLED=%s GODEBUG=tracefpunwindoff=%s: %v\n%s", cgo, unwinder, err, out)
			}
		}
	}
}

func FuzzNext(f *testing.F) {
	f.Add([]byte{})
	f.Add(raw(f, newProfile("contentions delay", sampled{"a+b c", []int64{1, 2}, 3}, sampled{"0x1 noname", []int64{4, 5}, 0})))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &Delta{}
		for range 2 {
			out, err := d.Next(b, begun, end)
			if err != nil {
				return
			}
			p, err := profile.ParseUncompressed(out)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range p.Sample {
				if slices.Min(s.Value) < 0 {
					t.Errorf("a negative value: %v", s.Value)
				}
			}
		}
	})
}
