// Command deltas measures the CPU time of taking the memory, mutex or block profile of one window after the other, in a
// process with many stacks of which a share allocates or waits in each window: by this agent, by godeltaprof, and by
// runtime/pprof alone, which writes everything since the start. Each measurement is a process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/grafana/pyroscope-go"
	"github.com/grafana/pyroscope-go/godeltaprof"

	"spanflame/bench/internal/variant"
)

// The methods that are measured in addition to the variants.
const (
	deltas = "godeltaprof"
	whole  = "runtime/pprof, not subtracted"
)

// window is the time between two profiles.
const window = time.Second

// group is the number of windows that are measured at once, of which the median counts: the agent looks for its own part
// in every fourth memory profile.
const group = 4

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "deltas:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("deltas", flag.ContinueOnError)
	span := flags.Duration("for", 20*time.Second, "duration of each measurement, at least 4 s")
	stacks := flags.Int("stacks", 4000, "number of stacks, of 24 frames")
	profiles := flags.String("profiles", "heap,mutex,block", "which profiles to measure, by their names in runtime/pprof")
	method := flags.String("method", "", "internal: run as the measured process, with this method")
	sink := flags.String("sink", "", "internal: address that the method pushes to")
	changing := flags.Int("changing", 0, "internal: how many stacks allocate in each window")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *span < group*window {
		return fmt.Errorf("-for %v: it must be at least %v", *span, group*window)
	}
	if *method != "" {
		return measured(*profiles, *method, *sink, *stacks, *changing, *span)
	}
	fmt.Printf("%s, %d CPUs, %d stacks; CPU time in milliseconds per profile, without that of the process itself\n",
		runtime.Version(), runtime.NumCPU(), *stacks)
	for _, name := range strings.Split(*profiles, ",") {
		if err := compare(ctx, name, *stacks, *span); err != nil {
			return err
		}
	}
	return nil
}

func compare(ctx context.Context, name string, stacks int, span time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	sink := variant.Sink()
	defer sink.Close()
	shares := []int{0, 5, 25, 100}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%s, stacks that change in a window\t", name)
	for _, share := range shares {
		fmt.Fprintf(w, "%d %%\t", share)
	}
	fmt.Fprintln(w)
	baseline := make([]float64, len(shares))
	for _, method := range []string{variant.None, deltas, whole, variant.NoWall} {
		if method != variant.None {
			fmt.Fprintf(w, "%s\t", method)
		}
		for i, share := range shares {
			cmd := exec.CommandContext(ctx, self, "-profiles", name, "-method", method, "-sink", sink.URL, "-stacks", strconv.Itoa(stacks),
				"-changing", strconv.Itoa(stacks*share/100), "-for", span.String())
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("%s with %d %%: %w", method, share, err)
			}
			ms, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
			if err != nil {
				return err
			}
			if method == variant.None {
				baseline[i] = ms
				continue
			}
			fmt.Fprintf(w, "%.1f\t", ms-baseline[i])
		}
		if method != variant.None {
			fmt.Fprintln(w)
		}
	}
	return w.Flush()
}

// measured is the child process: it prints the CPU time that it uses in a window, in milliseconds.
func measured(profile, method, sink string, stacks, changing int, span time.Duration) (err error) {
	var change func(int)
	var typ pyroscope.ProfileType
	var peer interface{ Profile(io.Writer) error }
	switch profile {
	case "heap":
		change, typ, peer = allocateAll, pyroscope.ProfileAllocObjects, godeltaprof.NewHeapProfiler()
	case "mutex":
		change, typ, peer = lockAll, pyroscope.ProfileMutexCount, godeltaprof.NewMutexProfiler()
	case "block":
		change, typ, peer = lockAll, pyroscope.ProfileBlockCount, godeltaprof.NewBlockProfiler()
	default:
		return fmt.Errorf("no profile %q: heap, mutex or block", profile)
	}
	defer runtime.KeepAlive(ballast)
	name, take := method, func() error { return nil }
	switch method {
	case deltas:
		name, take = variant.None, func() error { return peer.Profile(io.Discard) }
	case whole:
		name, take = variant.None, func() error { return pprof.Lookup(profile).WriteTo(io.Discard, 0) }
	}
	rates := func() { // the agent's defaults record a share of the events
		if profile == "mutex" {
			runtime.SetMutexProfileFraction(1)
		}
		if profile == "block" {
			runtime.SetBlockProfileRate(1)
		}
	}
	rates()
	change(stacks)
	if err := take(); err != nil {
		return err
	}
	v, err := variant.StartWindow(name, sink, []pyroscope.ProfileType{typ}, window)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Stop()) }()
	rates()
	var used []float64 // milliseconds a window
	ticks := time.NewTicker(window)
	defer ticks.Stop()
	const startUp = 3
	cpu := variant.CPUTime()
	for i := 1; i <= startUp+int(span/window); i++ {
		change(changing)
		if err := take(); err != nil {
			return err
		}
		<-ticks.C
		if n := i - startUp; n <= 0 {
			cpu = variant.CPUTime()
		} else if n%group == 0 {
			now := variant.CPUTime()
			used = append(used, float64(now-cpu)/group/float64(time.Millisecond))
			cpu = now
		}
	}
	slices.Sort(used)
	fmt.Println(used[len(used)/2])
	return nil
}

// ballast is live memory in every child, as in a service. Without it, a profiler's own buffers would make the collector
// run less often.
var ballast = make([]byte, 64<<20)

// path returns the i-th of many paths: it spreads the numbers over all bits.
func path(i int) uint64 { return uint64(i) * 0x9e3779b97f4a7c15 }

// allocateAll allocates once from each of n stacks, and has the profile show it, which takes two garbage collections.
func allocateAll(n int) {
	rate := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	leaf = func() { kept = make([]byte, 64) }
	for i := range n {
		descend(path(i), 20)
	}
	runtime.MemProfileRate = rate
	runtime.GC()
	runtime.GC()
}

// lockAll has n goroutines, each with a stack of its own, wait for one lock. Each unlocks it for the next.
func lockAll(n int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	leaf = func() { mu.Lock(); mu.Unlock() } //nolint:staticcheck // nothing is to be done meanwhile
	mu.Lock()
	for i := range n {
		wg.Go(func() { descend(path(i), 20) })
	}
	time.Sleep(window / 4) // until they wait
	mu.Unlock()
	wg.Wait()
}

var (
	kept []byte
	leaf func() // what each stack ends with
)

// descend calls one of four functions by each two bits of path, so that each path is a stack of its own.
func descend(path uint64, depth int) {
	if depth == 0 {
		leaf()
		return
	}
	switch path & 3 {
	case 0:
		zero(path>>2, depth-1)
	case 1:
		one(path>>2, depth-1)
	case 2:
		two(path>>2, depth-1)
	default:
		three(path>>2, depth-1)
	}
}

//go:noinline
func zero(path uint64, depth int) { descend(path, depth) }

//go:noinline
func one(path uint64, depth int) { descend(path, depth) }

//go:noinline
func two(path uint64, depth int) { descend(path, depth) }

//go:noinline
func three(path uint64, depth int) { descend(path, depth) }
