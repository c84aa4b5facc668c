// Command stacks compares the deltas of its own profiles with the differences that google/pprof makes of what
// runtime/pprof writes. Its stacks are those that an unwinder may get wrong.
package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/agent/internal/capture/delta"
	"spanflame/internal/pprofwire"
)

// deep is how often recurse calls itself: more often than the runtime keeps frames, which are 128.
const deep = 200

var (
	mu   sync.Mutex
	ch   = make(chan int)
	kept [][]byte
)

//go:noinline
func section() {
	mu.Lock()
	time.Sleep(50 * time.Microsecond)
	mu.Unlock()
}

//go:noinline
func receive() { <-ch }

//go:noinline
func allocate() []byte { return make([]byte, 300) }

// inlined functions, three of them one in the other.
func inner(f func())  { f() }
func middle(f func()) { inner(f) }
func outer(f func())  { middle(f) }

//go:noinline
func inlined(f func()) { outer(f) }

//go:noinline
func recurse(n int, f func()) {
	if n == 0 {
		f()
		return
	}
	recurse(n-1, f)
}

//go:noinline
func generic[T any](_ T, f func()) { f() }

//go:noinline
func closure(f func()) {
	defer func() { f() }()
}

type receiver struct{ f func() }

//go:noinline
func (r receiver) method() { r.f() }

// ways to call a function, by the function that each has in its stacks.
var ways = map[string]func(func()){
	"main.inlined":         inlined,
	"main.middle":          inlined,
	"main.recurse":         func(f func()) { recurse(deep, f) },
	"main.generic[":        func(f func()) { generic("a", f); generic(1, f); generic([]int{}, f) },
	"main.receiver.method": func(f func()) { method := receiver{f}.method; method() },
	"main.closure.func":    closure,
}

// cumulative are the profiles, by name, with a function that adds to them.
var cumulative = map[string]func(){
	"mutex": section,
	"block": receive,
	"heap":  func() { b := allocate(); mu.Lock(); kept = append(kept, b); mu.Unlock() },
}

// work calls every function in every way, on several goroutines.
func work() {
	var wg sync.WaitGroup
	stop := make(chan struct{})
	go func() {
		for {
			time.Sleep(100 * time.Microsecond) // a receiver has to wait
			select {
			case ch <- 1:
			case <-stop:
				return
			}
		}
	}()
	for _, f := range cumulative {
		for _, way := range ways {
			for range 3 {
				wg.Go(func() { way(f) })
			}
		}
	}
	wg.Wait()
	close(stop)
	runtime.GC() // the heap profile is as of the last but one
	runtime.GC()
}

func read(name string) ([]byte, *profile.Profile) {
	var b bytes.Buffer
	check(pprof.Lookup(name).WriteTo(&b, 0))
	raw, err := pprofwire.Gunzip(b.Bytes(), 64<<20)
	check(err)
	p, err := profile.ParseUncompressed(raw)
	check(err)
	return raw, p
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func main() {
	runtime.SetMutexProfileFraction(1)
	runtime.SetBlockProfileRate(1)
	runtime.MemProfileRate = 64
	work()
	deltas := map[string]*delta.Delta{}
	before := map[string]*profile.Profile{}
	for name := range cumulative {
		raw, p := read(name)
		deltas[name], before[name] = &delta.Delta{}, p
		check(deltas[name].Skip(raw))
	}
	failed := false
	for round := range 3 {
		work()
		for name := range cumulative {
			raw, after := read(name)
			out, err := deltas[name].Next(raw, time.Unix(0, 1), time.Unix(0, 3))
			check(err)
			got, err := profile.ParseUncompressed(out)
			check(err)
			check(got.CheckValid())
			if err := compare(got, before[name], after); err != nil {
				fmt.Printf("%s, window %d: %v\n", name, round+1, err)
				failed = true
			}
			if err := whole(got, name); err != nil {
				fmt.Printf("%s, window %d: %v\n", name, round+1, err)
				failed = true
			}
			before[name] = after
		}
	}
	if failed {
		os.Exit(1)
	}
	fmt.Println("ok")
}

// compare returns an error unless got is after less before, to the unit.
func compare(got, before, after *profile.Profile) error {
	negative := before.Copy()
	negative.Scale(-1)
	difference, err := profile.Merge([]*profile.Profile{after, negative})
	if err != nil {
		return err
	}
	want, end := sums(difference), sums(after)
	for key, values := range end {
		if want[key] == nil { // left out, since the difference is 0
			want[key] = make([]int64, len(values))
		}
		for i, t := range after.SampleType {
			if strings.HasPrefix(t.Type, "inuse_") {
				want[key][i] = values[i]
			}
		}
	}
	have := sums(got)
	if len(have) == 0 {
		return fmt.Errorf("no samples")
	}
	for key, values := range want {
		if slices.Max(values) == 0 {
			if _, ok := have[key]; ok {
				return fmt.Errorf("a sample of zeros:\n%s", key)
			}
			continue
		}
		if !slices.Equal(values, have[key]) {
			return fmt.Errorf("%v, want %v:\n%s", have[key], values, key)
		}
		delete(have, key)
	}
	for key, values := range have {
		return fmt.Errorf("%v, want none:\n%s", values, key)
	}
	return nil
}

// sums adds up the samples by stack and labels.
func sums(p *profile.Profile) map[string][]int64 {
	sums := map[string][]int64{}
	for _, s := range p.Sample {
		key := fmt.Sprint(s.Label, s.NumLabel)
		for _, l := range s.Location {
			for _, line := range l.Line {
				key += fmt.Sprintf("\n%s %s:%d", line.Function.Name, line.Function.Filename, line.Line)
			}
		}
		if sums[key] == nil {
			sums[key] = make([]int64, len(s.Value))
		}
		for i, v := range s.Value {
			sums[key][i] += v
		}
	}
	return sums
}

// leaf is the function that the stacks of a profile begin with or have near their beginning.
var leaf = map[string]string{"mutex": "main.section", "block": "main.receive", "heap": "main.allocate"}

// whole returns an error unless the profile has each way with its callers, leaf first.
func whole(p *profile.Profile, name string) error {
	missing := map[string]bool{}
	for way := range ways {
		missing[way] = true
	}
	for _, way := range alsoWanted {
		missing[way] = true
	}
	var longest int
	for _, s := range p.Sample {
		var names []string
		for _, l := range s.Location {
			if len(l.Line) == 0 {
				return fmt.Errorf("a location without a line, address %#x", l.Address)
			}
			for _, line := range l.Line {
				if line.Function == nil || line.Function.Name == "" {
					return fmt.Errorf("a frame without a name, address %#x", l.Address)
				}
				names = append(names, line.Function.Name)
			}
		}
		at := slices.Index(names, leaf[name])
		if at < 0 || at > 3 {
			continue
		}
		longest = max(longest, len(names))
		for way := range missing {
			i := slices.IndexFunc(names, func(n string) bool { return strings.HasPrefix(n, way) })
			if i > at {
				delete(missing, way)
			}
		}
		if i := slices.Index(names, "main.inner"); i > 0 {
			if chain := names[i:min(len(names), i+4)]; !slices.Equal(chain, []string{"main.inner", "main.middle", "main.outer", "main.inlined"}) {
				return fmt.Errorf("inlined functions are cut: %q", chain)
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("no stack has %v", missing)
	}
	if longest < 128 {
		return fmt.Errorf("the longest stack has %d frames, want 128", longest)
	}
	return nil
}
