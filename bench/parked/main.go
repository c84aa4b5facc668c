// Command parked measures the CPU time that three methods of profiling waiting goroutines add to a process with
// very many parked goroutines: this agent's wall-clock profiles of slow spans, fgprof at 99 Hz, and the runtime's
// goroutine profile with labels at 20 Hz. Each measurement is a process with one slow span per second.
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

	"github.com/felixge/fgprof"
	"github.com/grafana/pyroscope-go"

	"spanflame/bench/internal/variant"
)

// The methods that are measured in addition to the variants.
const (
	fgprofile = "fgprof at 99 Hz"
	labelled  = "goroutine profile at 20 Hz"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "parked:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("parked", flag.ContinueOnError)
	span := flags.Duration("for", 3*time.Second, "duration of each measurement")
	long := flags.Duration("long", time.Minute, "from 10,000 goroutines on, how long the wall recorder runs before it is "+
		"measured, and how long it is measured: its budget is an average over a minute, and the first minute may use twice as much")
	settle := flags.Duration("settle", 2*time.Second, "how long a process runs before it is measured")
	method := flags.String("method", "", "internal: run as the measured process, with this method")
	sink := flags.String("sink", "", "internal: address that the method pushes to")
	count := flags.Int("goroutines", 0, "internal: number of parked goroutines")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *method != "" {
		return measured(*method, *sink, *count, *settle, *span)
	}
	return compare(ctx, *settle, *span, *long)
}

func compare(ctx context.Context, settle, span, long time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	sink := variant.Sink()
	defer sink.Close()
	counts := []int{10, 1_000, 10_000, 100_000}
	fmt.Printf("%s, %d CPUs; CPU time in milliseconds per second\n", runtime.Version(), runtime.NumCPU())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "parked goroutines\t")
	for _, n := range counts {
		fmt.Fprintf(w, "%d\t", n)
	}
	fmt.Fprintln(w)
	for _, method := range []string{variant.None, variant.NoWall, variant.Wall, fgprofile, labelled} {
		fmt.Fprintf(w, "%s\t", method)
		for _, n := range counts {
			before, d := settle, span
			if method == variant.Wall && n >= 10_000 {
				before, d = long, long
			}
			cmd := exec.CommandContext(ctx, self, "-method", method, "-sink", sink.URL, "-goroutines", strconv.Itoa(n), "-settle", before.String(), "-for", d.String())
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("%s with %d goroutines: %w", method, n, err)
			}
			share, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "%.1f\t", 1000*share)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// measured is the child process: it prints the CPU time that it used, as a share of one core.
func measured(method, sink string, parked int, settle, span time.Duration) (err error) {
	release := make(chan struct{})
	defer close(release)
	for range parked {
		go func() { <-release }()
	}
	name := method
	var stop func() error
	switch method {
	case fgprofile:
		name, stop = variant.None, fgprof.Start(io.Discard, fgprof.FormatPprof)
	case labelled:
		name, stop = variant.None, sample(20)
	default:
		stop = func() error { return nil }
	}
	defer func() { err = errors.Join(err, stop()) }()
	v, err := variant.Start(name, sink, []pyroscope.ProfileType{pyroscope.ProfileCPU})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Stop()) }()
	slow := func(d time.Duration) {
		tracer := v.Tracing.Tracer("parked")
		for begun := time.Now(); time.Since(begun) < d; {
			_, s := tracer.Start(context.Background(), "slow")
			time.Sleep(150 * time.Millisecond)
			s.End()
			time.Sleep(850 * time.Millisecond)
		}
	}
	slow(settle) // until the goroutines are parked and start-up is over
	cpu, begun := variant.CPUTime(), time.Now()
	slow(span)
	fmt.Println(float64(variant.CPUTime()-cpu) / float64(time.Since(begun)))
	return nil
}

// sample captures the goroutine profile with labels at a rate, until the returned function is called.
func sample(hz int) (stop func() error) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for ticks := time.NewTicker(time.Second / time.Duration(hz)); ; {
			select {
			case <-done:
				return
			case <-ticks.C:
				_ = pprof.Lookup("goroutine").WriteTo(io.Discard, 0) // io.Discard never fails
			}
		}
	}()
	return func() error {
		close(done)
		<-ended
		return nil
	}
}
