// Command fleet plays many agents against one Pyroscope: it sends the saved profiles of one agent repeatedly, under many
// instance names, with the schedule and the client of an agent, and prints the outcome. The figures of docs/scale.md
// come from it. It is not a general load generator.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	hdrhistogram "github.com/HdrHistogram/hdrhistogram-go"

	"spanflame/agent/internal/push"
	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// maxProfile limits the size of a saved profile, in bytes.
const maxProfile = 16 << 20

// senders is how many records one agent sends at a time.
const senders = 8

type options struct {
	url, dir          string
	agents            int
	window, length    time.Duration
	spread            time.Duration
	services, retries int
	slow              int
}

func main() {
	var o options
	flag.StringVar(&o.url, "pyroscope", "http://127.0.0.1:4040", "base `URL` of the server")
	flag.StringVar(&o.dir, "profiles", "", "`directory` with the saved profiles of one service")
	flag.IntVar(&o.agents, "agents", 1000, "number of agents")
	flag.IntVar(&o.services, "services", 50, "number of services they belong to")
	flag.DurationVar(&o.window, "window", 15*time.Second, "length of a window")
	flag.DurationVar(&o.length, "for", 2*time.Minute, "duration of the run")
	flag.DurationVar(&o.spread, "spread", 15*time.Second, "duration over which the ends of the agents' windows are spread, as agents do; with 0 all end at once")
	flag.IntVar(&o.slow, "slow", 5, "wall-clock profiles per agent and window, spread over it; the others are sent at its end")
	flag.IntVar(&o.retries, "retries", 20, "how often a record that the server did not accept is sent again")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, out io.Writer) error {
	records, err := load(o.dir, o.slow)
	if err != nil {
		return err
	}
	client, err := push.New(push.Config{URL: o.url})
	if err != nil {
		return err
	}
	defer client.Close()
	var size int
	types := map[record.Type]int{}
	for _, r := range records {
		size += len(r.Profile)
		types[r.Type]++
	}
	fmt.Fprintf(out, "an agent sends %d profiles, %d bytes a window of %s: %v\n", len(records), size, o.window, types)

	f := fleet{client: client, took: hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3), reasons: map[string]int{}}
	begun := time.Now()
	var agents sync.WaitGroup
	for i := range o.agents {
		agents.Go(func() { f.agent(ctx, o, i, records, begun) })
	}
	agents.Wait()
	f.print(out, o, size, time.Since(begun))
	return nil
}

// load reads saved profiles of one service: the largest of each type, which is from a window under load, and so many
// wall-clock profiles as slow says.
func load(dir string, slow int) ([]record.Record, error) {
	if dir == "" {
		return nil, errors.New("-profiles is not set: want a directory of saved profiles (SPANFLAME_DIR/profiles/SERVICE)")
	}
	largest := map[record.Type]record.Record{}
	var walls []record.Record
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".pb.gz") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		r, err := record.Decode(bytes.NewReader(b), maxProfile)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if r.Profile, err = timeless(r.Profile); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		switch {
		case r.Type != record.Wall:
			if len(r.Profile) > len(largest[r.Type].Profile) {
				largest[r.Type] = r
			}
		case r.Labels[wallprofile.SpanScope] != wallprofile.ScopeFast && len(walls) < slow:
			walls = append(walls, r)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var records []record.Record
	for _, typ := range slices.Sorted(maps.Keys(largest)) {
		records = append(records, largest[typ])
	}
	if len(records) == 0 || len(walls) < slow {
		return nil, fmt.Errorf("%s: %d profiles of windows and %d of slow spans, want some and %d", dir, len(records), len(walls), slow)
	}
	return append(records, walls...), nil
}

// fleet has what all agents share.
type fleet struct {
	client *push.Client

	sent, taken, again, given, bytes atomic.Int64

	mu      sync.Mutex
	took    *hdrhistogram.Histogram // microseconds from when a record was due to the server's acceptance
	reasons map[string]int
}

// agent plays one agent: it sends its profiles at the end of each window.
func (f *fleet) agent(ctx context.Context, o options, i int, records []record.Record, begun time.Time) {
	var offset time.Duration
	if o.spread > 0 {
		offset = rand.N(o.spread)
	}
	labels := map[string]string{record.InstanceLabel: fmt.Sprintf("pod-%05d", i), record.VersionLabel: "1.0.0", "deployment_environment_name": "fleet"}
	for end := begun.Truncate(o.window).Add(o.window + offset); end.Before(begun.Add(o.length)); end = end.Add(o.window) {
		if !sleep(ctx, time.Until(end)) {
			return
		}
		free := make(chan struct{}, senders)
		var wg sync.WaitGroup
		for n, r := range records {
			due := end
			if i := n - (len(records) - o.slow); i >= 0 {
				due = end.Add(o.window * time.Duration(i+1) / time.Duration(o.slow+1)) // a slow span of the next window
			}
			if !sleep(ctx, time.Until(due)) {
				break
			}
			r.Service, r.Labels = fmt.Sprintf("service-%03d", i%o.services), labels
			r.Start, r.End = due.Add(-o.window), due
			r.Profile = at(r.Profile, r.Start.Add(time.Duration(n)*time.Millisecond)) // one profile a series and millisecond
			free <- struct{}{}
			wg.Go(func() {
				defer func() { <-free }()
				f.deliver(ctx, o, r, due)
			})
		}
		wg.Wait()
	}
}

// deliver sends one record until the server accepts it.
func (f *fleet) deliver(ctx context.Context, o options, r record.Record, due time.Time) {
	f.sent.Add(1)
	for try := range o.retries + 1 {
		result := f.client.Push(ctx, r)
		if result.Outcome == push.Accepted {
			f.taken.Add(1)
			f.bytes.Add(int64(len(r.Profile)))
			f.mu.Lock()
			_ = f.took.RecordValue(time.Since(due).Microseconds()) // more than a minute does not fit
			f.mu.Unlock()
			return
		}
		f.mu.Lock()
		f.reasons[fmt.Sprintf("%s (status %d): %.120s", result.Outcome, result.Status, result.Reason)]++
		f.mu.Unlock()
		if result.Outcome != push.Throttled && result.Outcome != push.Transient {
			break
		}
		f.again.Add(1)
		if !sleep(ctx, max(result.RetryAfter, min(30*time.Second, (500*time.Millisecond)<<min(try, 6)))) {
			break
		}
	}
	f.given.Add(1)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// timeless returns the profile without its time.
func timeless(profile []byte) ([]byte, error) {
	raw, err := pprofwire.Gunzip(profile, maxProfile)
	if err != nil {
		return nil, err
	}
	raw, err = pprofwire.AppendWithout(nil, raw, pprofwire.ProfileTime)
	if err != nil {
		return nil, err
	}
	return pprofwire.Gzip(raw), nil
}

// at returns a timeless profile with the time t, which follows in a gzip member of its own.
func at(timeless []byte, t time.Time) []byte {
	var field pprofwire.Encoder
	field.Number(pprofwire.ProfileTime, uint64(t.UnixNano()))
	return append(slices.Clip(timeless), pprofwire.Gzip(field)...)
}

func (f *fleet) print(out io.Writer, o options, size int, took time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(out, "%d agents for %s: %d profiles sent, %d accepted, %d sent again, %d given up; %.2f MB/s\n",
		o.agents, took.Round(time.Second), f.sent.Load(), f.taken.Load(), f.again.Load(), f.given.Load(), float64(f.bytes.Load())/1e6/took.Seconds())
	fmt.Fprintf(out, "from when a profile was due until the server accepted it: median %s, 90 %% within %s, 99 %% within %s, slowest %s\n",
		micro(f.took.ValueAtQuantile(50)), micro(f.took.ValueAtQuantile(90)), micro(f.took.ValueAtQuantile(99)), micro(f.took.Max()))
	for _, reason := range slices.Sorted(maps.Keys(f.reasons)) {
		fmt.Fprintf(out, "%8d × %s\n", f.reasons[reason], reason)
	}
}

func micro(n int64) time.Duration {
	return (time.Duration(n) * time.Microsecond).Round(time.Millisecond)
}
