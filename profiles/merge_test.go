package profiles_test

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// real takes profiles of this process: several of each kind.
func real(t *testing.T) map[string][]*profile.Profile {
	t.Helper()
	defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(1))
	runtime.SetBlockProfileRate(1)
	defer runtime.SetBlockProfileRate(0)
	all := make(map[string][]*profile.Profile)
	add := func(kind string, b *bytes.Buffer) {
		p, err := profile.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		all[kind] = append(all[kind], p)
	}
	for _, span := range []string{"0000000000000001", "0000000000000002", ""} {
		var b bytes.Buffer
		if err := pprof.StartCPUProfile(&b); err != nil {
			t.Fatal(err)
		}
		pprof.Do(t.Context(), pprof.Labels("span_id", span), func(context.Context) { contend(50 * time.Millisecond) })
		pprof.StopCPUProfile()
		add("cpu", &b)
		for _, kind := range []string{"heap", "mutex", "block", "goroutine"} {
			var b bytes.Buffer
			if err := pprof.Lookup(kind).WriteTo(&b, 0); err != nil {
				t.Fatal(err)
			}
			add(kind, &b)
		}
	}
	return all
}

// contend computes on two goroutines that queue for a lock.
func contend(d time.Duration) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			sum := 0
			for start := time.Now(); time.Since(start) < d; {
				mu.Lock()
				for i := range 100_000 {
					sum += i * i
				}
				mu.Unlock()
			}
			runtime.KeepAlive(sum)
		})
	}
	wg.Wait()
}

func add(t *testing.T, m *profiles.Merger, ps ...*profile.Profile) *profile.Profile {
	t.Helper()
	for _, p := range ps {
		if err := m.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := m.Profile()
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestMergeOfRealProfilesIsThatOfPprof(t *testing.T) {
	for kind, ps := range real(t) {
		want, err := profile.Merge(ps)
		if err != nil {
			t.Fatal(err)
		}
		if got := add(t, new(profiles.Merger), ps...); got.String() != want.String() {
			t.Errorf("%s: got\n%v\nwant\n%v", kind, got, want)
		}
	}
}

// A profile with everything that the format has.
func ornate(start uint64) *profile.Profile {
	kind := &profile.ValueType{Type: "alloc", Unit: "bytes"}
	size := &profile.ValueType{Type: "objects", Unit: "count"}
	program := &profile.Mapping{
		ID:             7,
		Start:          start,
		Limit:          start + 0x3456,
		Offset:         0x1000,
		File:           "shop",
		BuildID:        "abc",
		HasFunctions:   true,
		HasLineNumbers: true,
	}
	library := &profile.Mapping{ID: 1 << 40, Start: start + 0x10000, Limit: start + 0x20000, File: "libc.so"}
	f := &profile.Function{ID: 1 << 50, Name: "main.a", SystemName: "main.a[abi]", Filename: "a.go", StartLine: 3}
	g := &profile.Function{ID: 2, Name: "main.b", Filename: "b.go"}
	unused := &profile.Function{ID: 3, Name: "main.unused"}
	inlined := &profile.Location{
		ID:       1 << 60,
		Mapping:  program,
		Address:  start + 0x1234,
		Line:     []profile.Line{{Function: f, Line: 1, Column: 9}, {Function: g, Line: 2}},
		IsFolded: true,
	}
	plain := &profile.Location{ID: 5, Mapping: library, Address: start + 0x10010}
	bare := &profile.Location{ID: 6, Address: 0x99}
	lonely := &profile.Location{ID: 8, Line: []profile.Line{{Function: unused, Line: 1}}}
	return &profile.Profile{
		SampleType: []*profile.ValueType{size, kind}, DefaultSampleType: "alloc", PeriodType: kind, Period: 512,
		TimeNanos: int64(start), DurationNanos: 1e9, Comments: []string{"one", "two"}, DocURL: "https://example.org/doc",
		DropFrames: "drop", KeepFrames: "keep",
		Mapping: []*profile.Mapping{program, library}, Function: []*profile.Function{f, g, unused},
		Location: []*profile.Location{inlined, plain, bare, lonely},
		Sample: []*profile.Sample{
			{Location: []*profile.Location{inlined, plain, bare}, Value: []int64{1, 64},
				Label:    map[string][]string{"z": {"1", "2"}, "a": {"3"}},
				NumLabel: map[string][]int64{"bytes": {64, 128}, "n": {5}}, NumUnit: map[string][]string{"bytes": {"bytes", "kilobytes"}}},
			{Location: []*profile.Location{plain, bare}, Value: []int64{-3, 9}, NumLabel: map[string][]int64{"z": {1}}, Label: map[string][]string{"z": {"1"}}},
			{Location: []*profile.Location{plain}, Value: []int64{0, 0}},
			{Value: []int64{1, 1}},
		},
	}
}

// The program is loaded at another address each time.
func TestMergeKeepsEverythingThatTheFormatHas(t *testing.T) {
	ps := []*profile.Profile{ornate(0x40000), ornate(0x990000), ornate(0x40000)}
	ps[1].Comments = []string{"two", "three"}
	ps[1].Period = 1024
	want, err := profile.Merge(ps)
	if err != nil {
		t.Fatal(err)
	}
	got := add(t, new(profiles.Merger), ps...)
	if got.String() != want.String() {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
	if !bytes.Equal(wire(t, got), wire(t, want)) {
		t.Error("written, the two differ")
	}
}

// wire is the profile as google/pprof writes it.
func wire(t *testing.T, p *profile.Profile) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := p.WriteUncompressed(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestMergeDropsLabelsWhenTold(t *testing.T) {
	p := newProfile(record.CPU, noon, time.Second,
		stack{[]string{"main.a"}, "0000000000000001", 3}, stack{[]string{"main.a"}, "0000000000000002", 4}, stack{[]string{"main.a"}, "", 5})
	if got := add(t, &profiles.Merger{DropLabels: true}, p); len(got.Sample) != 1 || got.Sample[0].Value[0] != 12 {
		t.Errorf("got %v, want one sample of 12", got)
	}
	if got := add(t, new(profiles.Merger), p, p); len(got.Sample) != 3 || got.Sample[0].Value[0] != 6 {
		t.Errorf("got %v, want three samples, the first of 6", got)
	}
}

func TestMergeRefuses(t *testing.T) {
	one := func(v int64) *profile.Profile {
		return newProfile(record.CPU, noon, time.Second, stack{[]string{"main.a"}, "", v})
	}
	long := one(1)
	long.DurationNanos = math.MaxInt64
	dangling := one(1)
	dangling.Location = nil
	for name, tt := range map[string]struct {
		second *profile.Profile
		want   string
	}{
		"another kind": {newProfile(record.Wall, noon, time.Second, stack{[]string{"main.a"}, "", 1}),
			"it measures wall/nanoseconds per wall/nanoseconds, those before it cpu/nanoseconds per cpu/nanoseconds"},
		"too much":               {one(math.MaxInt64 - 9), "the sum of cpu does not fit into 64 bits"},
		"too little":             {one(math.MinInt64), "the sum of cpu does not fit into 64 bits"},
		"too long":               {long, "the sum of durations does not fit into 64 bits"},
		"a sample of no profile": {&profile.Profile{Sample: []*profile.Sample{{Value: []int64{1}}}}, "not a valid profile"},
		"a location of no table": {dangling, "there is no location 1"},
	} {
		t.Run(name, func(t *testing.T) {
			var m profiles.Merger
			want := add(t, &m, one(10)).String()
			if err := m.Add(tt.second); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if got := add(t, &m).String(); got != want {
				t.Errorf("after the error the sum is\n%s\nbefore it\n%s", got, want)
			}
			if sum := add(t, &m, one(5)).Sample[0].Value[0]; sum != 15 {
				t.Errorf("after one more the sum is %d, want 15", sum)
			}
		})
	}
}

func windows(ps ...*profile.Profile) iter.Seq2[profiles.Window, error] {
	return func(yield func(profiles.Window, error) bool) {
		for _, p := range ps {
			if !yield(profiles.Window{Profile: p}, nil) {
				return
			}
		}
	}
}

func TestMergeOfWindows(t *testing.T) {
	p := small(meta(record.CPU))
	got, err := profiles.Merge(t.Context(), windows(p, p, p))
	if err != nil || got.Sample[0].Value[0] != 3e7 || got.DurationNanos != 3*15e9 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := profiles.Merge(t.Context(), windows()); !errors.Is(err, profiles.ErrNone) {
		t.Errorf("of nothing: %v, want %v", err, profiles.ErrNone)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := profiles.Merge(ctx, windows(p)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	broken := profiles.Damaged{Path: "x.pb.gz", Err: record.ErrDamaged}
	with := func(yield func(profiles.Window, error) bool) {
		_ = yield(profiles.Window{Profile: p}, nil) && yield(profiles.Window{}, broken) && yield(profiles.Window{Profile: p}, nil)
	}
	if _, err := profiles.Merge(t.Context(), with); !errors.Is(err, record.ErrDamaged) {
		t.Errorf("with a damaged file: %v", err)
	}
	var reported []profiles.Damaged
	got, err = profiles.Merge(t.Context(), profiles.WithoutDamaged(with, func(d profiles.Damaged) { reported = append(reported, d) }))
	if err != nil || got.Sample[0].Value[0] != 2e7 || len(reported) != 1 || reported[0] != broken {
		t.Errorf("without the damaged file: %v, %v, reported %v", got, err, reported)
	}
}

func TestMergeOfFilesIsThatOfProfiles(t *testing.T) {
	dir := t.TempDir()
	var files, whole profiles.Merger
	for i := range 5 {
		m := meta(record.CPU)
		m.Start = m.Start.Add(time.Duration(i) * time.Minute)
		m.End = m.Start.Add(15 * time.Second)
		p := newProfile(
			record.CPU,
			m.Start,
			15*time.Second,
			stack{[]string{"main.a", "main.main"}, "", int64(i)},
			stack{[]string{"main.b", "main.main"}, "00000000000000aa", 7},
		)
		if err := files.AddFile(save(t, dir, m, p)); err != nil {
			t.Fatal(err)
		}
		add(t, &whole, p)
	}
	cut := filepath.Join(dir, "cut.pb.gz")
	if err := os.WriteFile(cut, gzipped(t, small(meta(record.CPU)))[:40], 0o644); err != nil {
		t.Fatal(err)
	}
	err := files.AddFile(cut)
	if damaged, ok := errors.AsType[profiles.Damaged](err); !ok || damaged.Path != cut || !errors.Is(err, record.ErrDamaged) {
		t.Errorf("a file that is cut off: %v", err)
	}
	var b bytes.Buffer
	if err := files.Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := profiles.Parse(&b)
	if err != nil {
		t.Fatal(err)
	}
	if want := add(t, &whole); got.String() != want.String() {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
	if err := new(profiles.Merger).Write(&b); !errors.Is(err, profiles.ErrNone) {
		t.Errorf("writing nothing: %v", err)
	}
}
