//go:build gc && !go1.28 && !spanflame_nolinkname

package delta

import (
	"errors"
	"maps"
	"runtime"
	"slices"
	"testing"
)

// recorded is a list of records instead of the runtime's, the newest first.
type recorded struct{ records []waitRecord }

func (r *recorded) read(p []waitRecord) (int, bool) {
	if len(p) < len(r.records) {
		return len(r.records), false
	}
	return copy(p, r.records), true
}

// put sets the values of a stack.
func (r *recorded) put(stack []uintptr, count, cycles int64) {
	for i, x := range r.records {
		if same(x.Stack, stack) {
			r.records[i].Count, r.records[i].Cycles = count, cycles
			return
		}
	}
	r.records = slices.Insert(r.records, 0, waitRecord{count, cycles, stack})
}

func newRecorded() (*Delta, *recorded) {
	d, r := New(Mutex), &recorded{}
	d.source = &waits{records: r.read}
	return d, r
}

// stacks returns stacks of this program of different depths.
//
//go:noinline
func stacks(n int) [][]uintptr {
	if n == 0 {
		return nil
	}
	all := stacks(n - 1)
	pcs := make([]uintptr, 64)
	return append(all, pcs[:runtime.Callers(0, pcs)])
}

func next(t *testing.T, d *Delta) map[string][]int64 {
	t.Helper()
	p, err := d.Next(begun, end)
	if err != nil {
		t.Fatal(err)
	}
	values, _ := samples(t, p)
	return values
}

// counts returns the first value of each sample, sorted.
func counts(values map[string][]int64) (counts []int64) {
	for _, v := range values {
		counts = append(counts, v[0])
	}
	slices.Sort(counts)
	return counts
}

func TestValuesAreSubtracted(t *testing.T) {
	d, r := newRecorded()
	s := stacks(3)
	for _, window := range []struct {
		counts []int64 // by stack; -1 for one that the runtime has not
		want   []int64
	}{
		{[]int64{5, -1, -1}, []int64{5}},
		{[]int64{5, 0, -1}, nil},
		{[]int64{7, 1, -1}, []int64{1, 2}},
		{[]int64{4, 1, 9}, []int64{9}}, // a value that decreases counts as unchanged
		{[]int64{6, 1, 9}, []int64{2}}, // and is followed
	} {
		for i, n := range window.counts {
			if n >= 0 {
				r.put(s[i], n, 0)
			}
		}
		if got := counts(next(t, d)); !slices.Equal(got, window.want) {
			t.Errorf("%v: got %v, want %v", window.counts, got, window.want)
		}
	}
}

func TestAValueOfSeveralDecreases(t *testing.T) {
	d, r := newRecorded()
	stack := stacks(1)[0]
	r.put(stack, 5, 1000)
	next(t, d)
	r.put(stack, 4, 1_000_000)
	for names, v := range next(t, d) {
		if v[0] != 0 || v[1] <= 0 {
			t.Errorf("got %v, want 0 and more than 0: %s", v, names)
		}
	}
}

func TestAStackWithoutAnyNameHasAName(t *testing.T) {
	d, r := newRecorded()
	r.put([]uintptr{1}, 2, 0)
	r.put(nil, 1, 0)
	p, err := d.Next(begun, end)
	if err != nil {
		t.Fatal(err)
	}
	if got, sum := samples(t, p); len(got) != 1 || got[unknownFunction] == nil || sum[0] != 3 {
		t.Errorf("got %v, in all %v", got, sum)
	}
}

func TestFramesWithoutANameAreLeftOut(t *testing.T) {
	s := newSymbols()
	if err := s.begin(); err != nil {
		t.Fatal(err)
	}
	stack := stacks(3)[2]
	want := slices.Clone(s.locate(stack, heading{}))
	if got := s.locate(slices.Insert(slices.Clone(stack), 0, 1), heading{}); len(want) < 2 || !slices.Equal(got, want) {
		t.Errorf("locations %v with a frame that has no name, %v without", got, want)
	}
}

func TestRecursionIsNotInlining(t *testing.T) {
	s := newSymbols()
	a := frame{line: line{function: s.function(name{"a", "a.go"}, 1)}, entry: 7, inlined: true}
	b := a
	b.function = s.function(name{"b", "b.go"}, 1)
	outer, elsewhere := b, b
	outer.inlined = false
	elsewhere.entry = 8
	if !s.inlinedInto(a, b) || s.inlinedInto(a, a) || s.inlinedInto(outer, a) || s.inlinedInto(a, elsewhere) {
		t.Error("only two functions of one entry are inlined, the first into the second")
	}
}

// TestAFullCacheIsEmptied compares deltas with a cache that is too small to those with a large one.
func TestAFullCacheIsEmptied(t *testing.T) {
	d, r := newRecorded()
	small := New(Mutex)
	small.source, small.maxCached = &waits{records: r.read}, 20
	s := stacks(6)
	for window := range int64(4) {
		for i, stack := range s {
			r.put(stack, (window+1)*int64(i+1), 0)
		}
		want, got := next(t, d), next(t, small)
		if len(want) != len(s) || !maps.EqualFunc(got, want, slices.Equal) {
			t.Errorf("window %d: got %v, want %v", window, got, want)
		}
		if !small.full || len(small.cache) > small.maxCached {
			t.Errorf("window %d: %d locations cached, want at most %d", window, len(small.cache), small.maxCached)
		}
	}
	last := len(s) - 1
	if small.cached[last] != 0 {
		t.Fatal("the last stack is in the cache, too small for all")
	}
	r.put(s[last], 1000, 0)
	if next(t, small); small.cached[last] == 0 {
		t.Error("the last stack is not in the cache although it alone has changed")
	}
}

// TestAnotherOrderIsNoticed: the runtime of a known Go version never changes it.
func TestAnotherOrderIsNoticed(t *testing.T) {
	for name, change := range map[string]func([]waitRecord) []waitRecord{
		"turned round": func(r []waitRecord) []waitRecord { r[0], r[1] = r[1], r[0]; return r },
		"one less":     func(r []waitRecord) []waitRecord { return r[1:] },
	} {
		d, r := newRecorded()
		s := stacks(3)
		for i, stack := range s {
			r.put(stack, int64(10*i), 0)
		}
		next(t, d)
		r.records = change(r.records)
		if _, err := d.Next(begun, end); !errors.Is(err, errOrder) {
			t.Errorf("%s: error %v", name, err)
		}
		fresh := New(Mutex)
		fresh.source = &waits{records: r.read}
		if err := fresh.Skip(); err != nil {
			t.Fatal(err)
		}
		r.put(s[1], 14, 0)
		r.put(stacks(5)[4], 7, 0)
		if got, want := next(t, d), next(t, fresh); !slices.Equal(counts(got), []int64{4, 7}) || !maps.EqualFunc(got, want, slices.Equal) {
			t.Errorf("%s: then got %v, want %v", name, got, want)
		}
	}
}

func TestTheStateIsBounded(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const above = 1000
	d, r := newRecorded()
	stack := slices.Clip(stacks(1)[0])
	for range MaxSamples + above {
		r.records = append(r.records, waitRecord{1, 1, slices.Clone(stack)})
	}
	before := heap()
	for window := range 2 {
		p, err := d.Next(begun, end)
		if err != nil {
			t.Fatal(err)
		}
		if want := []int{above, 0}[window]; p.Summed != want {
			t.Errorf("window %d: %d stacks are summed, want %d", window, p.Summed, want)
		}
	}
	size := heap() - before
	t.Logf("%d stacks take %d bytes, %d each", len(r.records), size, size/uint64(len(r.records)))
	if size > 64<<20 {
		t.Errorf("%d bytes, want at most 64 MiB", size)
	}
	runtime.KeepAlive(d)
}
