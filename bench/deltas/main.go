// Command deltas measures the CPU time of taking the memory profile of one window after the other, in a process with
// many allocation stacks of which a share allocates in each window: by this agent, by godeltaprof, which keeps the
// runtime's records, and by runtime/pprof alone, which writes everything since the start. Each measurement is a process.
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
	"strconv"
	"strings"
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

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "deltas:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("deltas", flag.ContinueOnError)
	span := flags.Duration("for", 10*time.Second, "duration of each measurement")
	stacks := flags.Int("stacks", 4000, "number of allocation stacks, of 24 frames")
	method := flags.String("method", "", "internal: run as the measured process, with this method")
	sink := flags.String("sink", "", "internal: address that the method pushes to")
	changing := flags.Int("changing", 0, "internal: how many stacks allocate in each window")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *method != "" {
		return measured(*method, *sink, *stacks, *changing, *span)
	}
	return compare(ctx, *stacks, *span)
}

func compare(ctx context.Context, stacks int, span time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	sink := variant.Sink()
	defer sink.Close()
	shares := []int{0, 5, 25, 100}
	fmt.Printf("%s, %d CPUs, %d stacks; CPU time in milliseconds per profile, without that of the process itself\n",
		runtime.Version(), runtime.NumCPU(), stacks)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "stacks that allocate in a window\t")
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
			cmd := exec.CommandContext(ctx, self, "-method", method, "-sink", sink.URL, "-stacks", strconv.Itoa(stacks),
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

// measured is the child process: it prints the CPU time that it used, in milliseconds per window.
func measured(method, sink string, stacks, changing int, span time.Duration) (err error) {
	allocateAll(stacks)
	name, profile := method, func() error { return nil }
	switch method {
	case deltas:
		p := godeltaprof.NewHeapProfiler()
		name, profile = variant.None, func() error { return p.Profile(io.Discard) }
	case whole:
		name, profile = variant.None, func() error { return pprof.Lookup("heap").WriteTo(io.Discard, 0) }
	}
	if err := profile(); err != nil {
		return err
	}
	v, err := variant.StartWindow(name, sink, []pyroscope.ProfileType{pyroscope.ProfileAllocObjects}, window)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Stop()) }()
	work := func(d time.Duration) (windows int, err error) {
		ticks := time.NewTicker(window)
		defer ticks.Stop()
		for begun := time.Now(); time.Since(begun) < d; windows++ {
			allocateAll(changing)
			if err := profile(); err != nil {
				return windows, err
			}
			<-ticks.C
		}
		return windows, nil
	}
	if _, err := work(3 * window); err != nil { // until start-up is over
		return err
	}
	cpu := variant.CPUTime()
	windows, err := work(span)
	fmt.Println(float64(variant.CPUTime()-cpu) / float64(windows) / float64(time.Millisecond))
	return err
}

// allocateAll allocates once from each of n stacks, and has the profile show it, which takes two garbage collections.
func allocateAll(n int) {
	rate := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	for i := range n {
		descend(uint64(i)*0x9e3779b97f4a7c15, 20) // spreads the numbers over all bits
	}
	runtime.MemProfileRate = rate
	runtime.GC()
	runtime.GC()
}

var kept []byte

// descend calls one of four functions by each two bits of path, so that each path is a stack of its own.
func descend(path uint64, depth int) {
	if depth == 0 {
		kept = make([]byte, 64)
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
