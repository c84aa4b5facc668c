// Command stacks compares the deltas of its own profiles with the differences between what runtime/pprof writes.
// Its stacks are those that an unwinder may get wrong.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/agent/internal/capture/delta"
)

// deep is how often recurse calls itself: more often than the runtime keeps frames, which are 128.
const deep = 200

// rate is that of the heap profile: nearly all large objects are sampled, and few of those that this program makes to
// compare profiles.
const rate = 4096

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
func allocate() []byte { return make([]byte, 16*rate) }

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

// again is deeper, but not to the compiler, which does not inline recursive functions.
var again func(int, func())

func step(n int, f func()) { again(n-1, f) }

// deeper recurses by a function that is inlined: two frames for each call, so that the runtime cuts off one of them.
//
//go:noinline
func deeper(n int, f func()) {
	if n == 0 {
		f()
		return
	}
	step(n, f)
}

func init() { again = deeper }

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
	"main.deeper":          func(f func()) { deeper(deep, f) },
	"main.step":            func(f func()) { inlined(func() { deeper(deep, f) }) }, // at the other frame
	"main.generic[":        func(f func()) { generic("a", f); generic(1, f); generic([]int{}, f) },
	"main.receiver.method": func(f func()) { method := receiver{f}.method; method() },
	"main.closure.func":    closure,
}

// cumulative are the profiles, by name, with a function that adds to them.
var cumulative = map[delta.Name]func(){
	delta.Mutex: section,
	delta.Block: receive,
	delta.Heap:  func() { b := allocate(); mu.Lock(); kept = append(kept, b); mu.Unlock() },
}

// work calls every function in every way, on several goroutines, and in one way that it has not before.
func work(windows int) {
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
		for range 3 {
			wg.Go(func() { recurse(10+windows, f) })
		}
	}
	wg.Wait()
	close(stop)
	runtime.GC() // the heap profile is as of the last but one
	runtime.GC()
}

// read returns a profile as runtime/pprof writes it.
func read(name delta.Name) *profile.Profile {
	var b bytes.Buffer
	check(pprof.Lookup(string(name)).WriteTo(&b, 0))
	p, err := profile.Parse(&b)
	check(err)
	return p
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// still calls f while a profile does not change, and returns what runtime/pprof writes of it then.
func still(name delta.Name, f func()) (map[string][]int64, bool) {
	before := sums(read(name))
	f()
	after := sums(read(name))
	return after, maps.EqualFunc(before, after, slices.Equal)
}

func main() {
	runtime.SetMutexProfileFraction(1)
	runtime.SetBlockProfileRate(1)
	runtime.MemProfileRate = rate
	debug.SetGCPercent(-1) // the heap profile changes at a garbage collection
	work(0)
	for name := range cumulative {
		if err := windows(name); err != nil {
			fmt.Printf("%s: %v\n", name, err)
			os.Exit(1)
		}
	}
	fmt.Println("ok")
}

// windows compares deltas until there were three and each stack that is wanted was in one.
func windows(name delta.Name) error {
	d := delta.New(name)
	var before map[string][]int64 // nil if it is not known what the delta begins with
	missing := map[string]bool{}
	for way := range ways {
		missing[way] = true
	}
	for _, way := range alsoWanted {
		missing[way] = true
	}
	longest := 0
	const tries = 200
	for compared, try := 0, 0; compared < 3 || len(missing) > 0 || longest < 128; try++ {
		if try == tries {
			return fmt.Errorf("after %d windows: %d compared, no stack with %v, at most %d frames", tries, compared, missing, longest)
		}
		if before == nil {
			if sum, ok := still(name, func() { check(d.Skip()) }); ok {
				before = sum
			}
			continue
		}
		work(try)
		var out delta.Profile
		after, ok := still(name, func() {
			var err error
			out, err = d.Next(time.Unix(0, 1), time.Unix(0, 3))
			check(err)
		})
		if !ok {
			before = nil
			continue
		}
		got, err := profile.ParseUncompressed(out.Raw)
		check(err)
		check(got.CheckValid())
		if got.TimeNanos != 1 || got.DurationNanos != 2 || out.Summed != 0 {
			return fmt.Errorf("time %d, duration %d, %d stacks summed", got.TimeNanos, got.DurationNanos, out.Summed)
		}
		n, err := whole(got, name, missing)
		if err := errors.Join(err, header(got, read(name)), compare(sums(got), before, after)); err != nil {
			return err
		}
		longest = max(longest, n)
		compared++
		before = after
	}
	return nil
}

// header returns an error unless what is not in samples is as runtime/pprof has it.
func header(got, want *profile.Profile) error {
	text := func(p *profile.Profile) string {
		s := fmt.Sprintln(p.PeriodType, p.Period, p.DefaultSampleType, p.DropFrames, p.KeepFrames, p.DocURL, p.Comments, mapping(p.Mapping[0]))
		for _, t := range p.SampleType {
			s += fmt.Sprintln(t)
		}
		return s
	}
	if text(got) != text(want) {
		return fmt.Errorf("got %s, want %s", text(got), text(want))
	}
	return nil
}

// compare returns an error unless got is after less before, to the unit.
func compare(got, before, after map[string][]int64) error {
	if len(got) == 0 {
		return fmt.Errorf("no samples")
	}
	for key, values := range after {
		want := slices.Clone(values)
		for i, v := range before[key] {
			if i < 2 { // others are levels
				want[i] -= v
			}
		}
		have, ok := got[key]
		if slices.Max(want) == 0 {
			if ok {
				return fmt.Errorf("a sample of %v, want none:\n%s", have, key)
			}
			continue
		}
		if !slices.Equal(want, have) {
			return fmt.Errorf("%v, want %v:\n%s", have, want, key)
		}
		delete(got, key)
	}
	for key, values := range got {
		return fmt.Errorf("%v, want none:\n%s", values, key)
	}
	return nil
}

func mapping(m *profile.Mapping) string {
	if m == nil {
		return "no mapping"
	}
	return fmt.Sprintf("%x-%x %x %s %s %v", m.Start, m.Limit, m.Offset, m.File, m.BuildID, m.HasFunctions)
}

// sums adds up the samples by stack and labels, except for samples of zeros: allocations that are not yet in the profile.
// A stack has its locations, with all that they have, but for frames without a name.
func sums(p *profile.Profile) map[string][]int64 {
	sums := map[string][]int64{}
	for _, s := range p.Sample {
		if slices.Max(s.Value) == 0 {
			continue
		}
		key := fmt.Sprint(s.Label, s.NumLabel, s.NumUnit)
		for _, l := range s.Location {
			var lines string
			for _, x := range l.Line {
				if f := x.Function; f.Name != "" {
					lines += fmt.Sprintf("\n  %s %s %s:%d, begins at %d", f.Name, f.SystemName, file(f), x.Line, f.StartLine)
				}
			}
			if lines != "" {
				key += fmt.Sprintf("\n%#x in %s%s", l.Address, mapping(l.Mapping), lines)
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

// file returns the file of a function, none for a package's initialization of variables: it is one function with lines in
// several files, and runtime/pprof has that of the first line which it comes across.
func file(f *profile.Function) string {
	if strings.HasSuffix(f.Name, ".init") {
		return ""
	}
	return f.Filename
}

// leaf is the function that the stacks of a profile begin with or have near their beginning.
var leaf = map[delta.Name]string{delta.Mutex: "main.section", delta.Block: "main.receive", delta.Heap: "main.allocate"}

// whole returns an error unless the stacks are whole, leaf first. It removes from missing the functions that they have,
// and returns the length of the longest.
func whole(p *profile.Profile, name delta.Name, missing map[string]bool) (longest int, err error) {
	for _, s := range p.Sample {
		if slices.Max(s.Value) == 0 {
			return 0, fmt.Errorf("a sample of zeros")
		}
		var names []string
		for _, l := range s.Location {
			if len(l.Line) == 0 {
				return 0, fmt.Errorf("a location without a line, address %#x", l.Address)
			}
			for _, line := range l.Line {
				if line.Function == nil || line.Function.Name == "" {
					return 0, fmt.Errorf("a frame without a name, address %#x", l.Address)
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
				return 0, fmt.Errorf("inlined functions are cut: %q", chain)
			}
		}
	}
	return longest, nil
}
