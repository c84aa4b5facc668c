// Command record records the profiles in examples again: it runs the shop with each of its mistakes and with the repair, and
// with its leak, and keeps a few windows of the profiles that the agent saved. `make examples` runs it. It keeps
// windows by a fixed rule, regardless of their contents, so that the examples are typical.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/workload/load"
	"spanflame/workload/processes"
)

const (
	// window is the length of the profiles.
	window = 3 * time.Second
	// warmUp is the load before the first window that is kept.
	warmUp = window
	// stopTime bounds the end of the shop, which saves the last profiles.
	stopTime = 30 * time.Second
	// service is the one whose profiles are kept.
	service = "storefront"
)

// side is one run of the shop, from its start to its end.
type side struct {
	dir     string // below the directory of the examples
	fault   string // that is switched on; "" for none
	version string // of the service, by which labels tell the sides apart
	mix     string
	rate    float64 // requests per second
	most    int     // requests in flight
	keeps   []kept
}

// kept is the number of windows of a type that are kept.
type kept struct {
	profile record.Type
	windows int
}

// sides are the recordings. The lock of lock-convoy is held for some 45 ms for each request: more than 20
// requests a second are more than it can take, and most bounds its queue.
var sides = []side{
	{"slow-pricing/before", "slow-pricing", "slow-pricing", "checkout=1", 12, 64, pricing},
	{"slow-pricing/after", "", "repaired", "checkout=1", 12, 64, pricing},
	{"lock-convoy/before", "lock-convoy", "lock-convoy", "single=1", 30, 8, waiting},
	{"lock-convoy/after", "", "repaired", "single=1", 30, 8, waiting},
	{"leak", "", "leaking", "single=5,alloc=4,leak=1", 8, 64, []kept{{record.Memory, 16}}},
}

var (
	pricing = []kept{{record.CPU, 12}}
	waiting = []kept{{record.Block, 8}, {record.Mutex, 8}, {record.Wall, 6}}
)

// settings are of the agents: every contended lock is recorded, and every checkout is slow enough for a wall-clock
// profile, so that the repaired ones have them, too.
var settings = []string{
	"PYROSCOPE_UPLOAD_INTERVAL=" + window.String(),
	"SPANFLAME_MUTEX_PROFILE_FRACTION=1",
	"SPANFLAME_SLOW_SPAN=30ms",
}

// names of the files are by the types' short names.
var names = map[record.Type]string{
	record.CPU: "cpu", record.Memory: "heap", record.Block: "block", record.Mutex: "mutex", record.Wall: "wall",
}

func main() {
	dir := flag.String("dir", "examples", "directory of the examples")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

// run records everything before it replaces anything.
func run(ctx context.Context, dir string) (err error) {
	temp, err := os.MkdirTemp("", "spanflame-examples-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	binary := filepath.Join(temp, "spanflame")
	// Paths in the profiles are those of the module, not of this machine.
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", binary, "spanflame/cmd/spanflame")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build spanflame: %w\n%s", err, out)
	}
	notes := &strings.Builder{}
	fmt.Fprintf(notes, "Recorded by \"make examples\" on %s.\n\n", time.Now().UTC().Format(time.RFC1123))
	fmt.Fprintf(notes, "Go      %s, %s/%s\nCPUs    %d\nwindow  %v, after %v of load\nagent   %s\n\n", runtime.Version(), runtime.GOOS, runtime.GOARCH,
		runtime.NumCPU(), window, warmUp, strings.Join(settings[1:], " "))
	set := filepath.Join(temp, "set")
	for _, s := range sides {
		if err := s.record(ctx, binary, temp, set, notes); err != nil {
			return fmt.Errorf("%s: %w", s.dir, err)
		}
	}
	span, err := heaviest(ctx, filepath.Join(set, sides[0].dir))
	if err != nil {
		return err
	}
	fmt.Fprintf(notes, "\nThe span with the most CPU time in %s: %s\n", sides[0].dir, span)
	for _, s := range sides {
		name, _, _ := strings.Cut(s.dir, "/")
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := os.CopyFS(dir, os.DirFS(set)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "RECORDED.txt"), []byte(notes.String()), 0o644)
}

// record runs the shop with the side's load and copies what is kept to set.
func (s side) record(ctx context.Context, binary, temp, set string, notes io.Writer) error {
	mix, err := load.ParseMix(s.mix)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(temp, "shop-")
	if err != nil {
		return err
	}
	saved := filepath.Join(dir, "saved")
	running, err := processes.Start(ctx, processes.Options{Binary: binary, Dir: dir, Env: append(slices.Clip(settings),
		"SPANFLAME_DIR="+saved, "OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none",
		"OTEL_RESOURCE_ATTRIBUTES=service.version="+s.version+",service.instance.id=1")})
	if err != nil {
		return err
	}
	busy := machineLoad()
	from, report, err := s.drive(ctx, running, mix)
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if err := errors.Join(err, running.Stop(stopping)); err != nil {
		return err
	}
	fmt.Fprintf(notes, "%-20s %v requests a second, %s; %d in flight at most\n", s.dir, s.rate, s.mix, s.most)
	fmt.Fprintf(notes, "%-20s %d sent, %d failed, %d shed; machine load %s before, %s after\n", "", report.Sent, report.Failed, report.Shed, busy, machineLoad())
	return s.keep(ctx, saved, filepath.Join(set, filepath.FromSlash(s.dir)), from)
}

// drive sends the load, and returns from when on windows are kept.
func (s side) drive(ctx context.Context, running *processes.Workload, mix load.Mix) (from time.Time, report load.Report, err error) {
	if s.fault != "" {
		if err := switchOn(ctx, running.Storefront.URL+"/faults/"+s.fault); err != nil {
			return from, report, err
		}
	}
	from = time.Now().Add(warmUp)
	report, err = load.Run(ctx, load.Config{
		Target: running.Storefront.URL, Rate: s.rate, Concurrency: s.most, Mix: mix,
		// The windows began when the agent did: one more is lost to that.
		Duration: warmUp + time.Duration(s.keeps[0].windows+1)*window + time.Second,
		Interval: window,
		Progress: func(p load.Snapshot) {
			fmt.Fprintf(os.Stderr, "%s: %v of %v\n", s.dir, p.Elapsed.Round(time.Second), p.Duration)
		},
	})
	switch {
	case err != nil:
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case report.Failed > 0:
		err = fmt.Errorf("%d of %d requests failed", report.Failed, report.Sent)
	}
	return from, report, err
}

func switchOn(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("PUT %s: %s", url, resp.Status)
	}
	return nil
}

// keep copies the first windows of each type that began at from or later. There are many wall-clock profiles in a
// window: of these the first of whole requests is kept.
func (s side) keep(ctx context.Context, saved, dir string, from time.Time) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	all, err := profiles.Open(saved)
	if err != nil {
		return err
	}
	for _, k := range s.keeps {
		query := profiles.Query{Service: service, Types: []record.Type{k.profile}, From: from}
		if k.profile == record.Wall {
			query.Labels = map[string]string{wallprofile.SpanScope: wallprofile.ScopeRoot}
		}
		entries, damaged, err := all.List(ctx, query)
		if err != nil {
			return err
		}
		if len(damaged) > 0 {
			return damaged[0]
		}
		n, next := 0, from
		for _, e := range entries {
			if e.Start.Before(next) || n == k.windows {
				continue
			}
			n++
			if k.profile == record.Wall {
				next = from.Add(time.Duration(n) * window)
			}
			b, err := os.ReadFile(e.Path)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%02d.pb.gz", names[k.profile], n)), b, 0o644); err != nil {
				return err
			}
		}
		if n < k.windows {
			return fmt.Errorf("%d windows of type %s are saved, want %d", n, k.profile, k.windows)
		}
	}
	return nil
}

// heaviest is the span that has the most CPU time in the profiles of dir.
func heaviest(ctx context.Context, dir string) (string, error) {
	entries, _, err := profiles.Find(ctx, profiles.Query{Types: []record.Type{record.CPU}}, dir)
	if err != nil {
		return "", err
	}
	time := map[string]int64{}
	for w, err := range profiles.Read(ctx, entries) {
		if err != nil {
			return "", err
		}
		for _, s := range w.Profile.Sample {
			for _, span := range s.Label[wallprofile.SpanID] {
				time[span] += s.Value[len(s.Value)-1]
			}
		}
	}
	if len(time) == 0 {
		return "", fmt.Errorf("%s: no sample is of a span", dir)
	}
	return slices.MaxFunc(slices.Sorted(maps.Keys(time)), func(a, b string) int { return cmp.Compare(time[a], time[b]) }), nil
}

// machineLoad is the number of processes that ran or waited to, as a mean over the last minute, where the system
// tells.
func machineLoad() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
