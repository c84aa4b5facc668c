// Command handler measures the cost that profiling adds to a traced HTTP handler, with this agent and with its
// peers. Each variant runs in its own process, because a profiler is global to a process. All processes run during
// the whole measurement and are measured in turn, in a new order each round, so that changes in the machine's speed
// affect all of them. It prints ratios to the handler that is traced but not profiled.
package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"
	"golang.org/x/sync/errgroup"
	_ "modernc.org/sqlite"

	"spanflame/bench/internal/variant"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "handler:", err)
		os.Exit(1)
	}
}

var variants = []string{
	variant.None, variant.Peer, variant.NoWall, variant.Wall, variant.WallAlways, variant.WallArmed, variant.FlightRecorder, variant.FGProf,
}

// The handlers. Those that are called directly have no network, which would hide the cost of profiling.
const (
	compute  = "1 ms of CPU, called directly"
	database = "JSON and SQLite, over loopback"
	loopback = "trivial, over loopback"
	trivial  = "trivial, called directly"
	mixed    = "trivial, over 10 connections; one in 1,000 takes 200 ms"
)

var handlers = []string{compute, database, loopback, trivial, mixed}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("handler", flag.ContinueOnError)
	rounds := flags.Int("rounds", 12, "how often each variant is measured")
	slice := flags.Duration("slice", 500*time.Millisecond, "duration of each measurement")
	warm := flags.Duration("warm", 20*time.Second, "how long the agent may take to choose a mode, under full load before each row")
	child := flags.String("variant", "", "internal: run as the measured process, with this variant")
	sink := flags.String("sink", "", "internal: address that the variant pushes to")
	spins := flags.Int("spins", 0, "internal: amount of work for a millisecond")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *child != "" {
		return measured(*child, *sink, *spins)
	}
	return compare(ctx, *rounds, *slice, *warm)
}

// job is one measurement that the parent requests from a child.
type job struct {
	Handler string
	For     time.Duration
}

// result is the child's answer.
type result struct {
	Requests  int
	Wall, CPU time.Duration
	Recording variant.Recording
}

func (r result) wall() float64 { return float64(r.Wall) / float64(r.Requests) }
func (r result) cpu() float64  { return float64(r.CPU) / float64(r.Requests) }

// process is a child process.
type process struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
	end io.Closer
}

func start(ctx context.Context, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.CommandContext(ctx, self, args...)}
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.in, p.out, p.end = json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out)), in
	return p, p.cmd.Start()
}

func (p *process) measure(j job) (r result, err error) {
	if err := p.in.Encode(j); err != nil {
		return r, err
	}
	return r, p.out.Decode(&r)
}

func (p *process) stop() error { return errors.Join(p.end.Close(), p.cmd.Wait()) }

func compare(ctx context.Context, rounds int, slice, warm time.Duration) (err error) {
	sink := variant.Sink()
	defer sink.Close()
	spins := calibrate()
	children := map[string]*process{}
	for _, v := range variants {
		p, err := start(ctx, "-variant", v, "-sink", sink.URL, "-spins", fmt.Sprint(spins))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.stop()) }()
		children[v] = p
	}
	fmt.Printf("%s, %d CPUs; %d rounds of %v\n", runtime.Version(), runtime.NumCPU(), rounds, slice)
	order := slices.Clone(variants)
	for _, h := range handlers {
		all := map[string][]result{}
		for begun := time.Now(); time.Since(begun) < warm; {
			r, err := children[variant.Wall].measure(job{h, time.Second})
			if err != nil {
				return err
			}
			if r.Recording.Mode != "always on" {
				break
			}
		}
		for round := -1; round < rounds; round++ { // the first round warms up
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			for _, v := range order {
				r, err := children[v].measure(job{h, slice})
				if err != nil {
					return fmt.Errorf("%s: %w", v, err)
				}
				if round >= 0 {
					all[v] = append(all[v], r)
				}
			}
		}
		report(h, all)
	}
	return nil
}

func report(handler string, all map[string][]result) {
	fmt.Printf("\n%s\n", handler)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "variant\ttime per request\tratio to none\tCPU per request\tratio to none\tmode\twriting, estimate\tslow spans\tcaptured\trecorded of these\t")
	for _, v := range variants {
		wall := func(r result) float64 { return r.wall() }
		cpu := func(r result) float64 { return r.cpu() }
		fmt.Fprintf(w, "%s\t%.2f µs\t%.3f\t%.2f µs\t%.3f\t%s\t\n", v, typical(all[v], wall)/1e3, ratio(all[v], all[variant.None], wall),
			typical(all[v], cpu)/1e3, ratio(all[v], all[variant.None], cpu), recording(all[v]))
	}
	_ = w.Flush() // to standard output
}

// recording describes the wall profile in a row: the mode at its end, and what became of the slow spans in it.
func recording(rs []result) string {
	first, last := rs[0].Recording, rs[len(rs)-1].Recording
	if last.Mode == "" {
		return "\t\t\t\t"
	}
	requests := 0
	for _, r := range rs[1:] {
		requests += r.Requests
	}
	mode := fmt.Sprintf("%s\t%.2f µs", last.Mode, (last.Estimate-first.Estimate)*1e6/float64(requests))
	slow := last.Slow - first.Slow
	if slow == 0 {
		return mode + "\t0\t\t"
	}
	captured := last.Captured - first.Captured
	known := (last.Recorded - first.Recorded) / (last.Duration - first.Duration)
	return fmt.Sprintf("%s\t%.0f\t%.0f %%\t%.1f %%", mode, slow, 100*captured/slow, 100*known)
}

func typical(rs []result, of func(result) float64) float64 {
	var xs []float64
	for _, r := range rs {
		xs = append(xs, of(r))
	}
	return median(xs)
}

// ratio returns the median over the rounds of the ratios within each round.
func ratio(rs, to []result, of func(result) float64) float64 {
	var xs []float64
	for i := range rs {
		xs = append(xs, of(rs[i])/of(to[i]))
	}
	return median(xs)
}

func median(xs []float64) float64 {
	slices.Sort(xs)
	n := len(xs)
	return (xs[(n-1)/2] + xs[n/2]) / 2
}

// spin uses CPU time and nothing else.
//
//go:noinline
func spin(n int) (x uint64) {
	for i := range n {
		x = x*6364136223846793005 + uint64(i)
	}
	return x
}

// calibrate returns how many turns of spin need a millisecond of CPU.
func calibrate() int {
	const turns = 100_000_000
	before := variant.CPUTime()
	runtime.KeepAlive(spin(turns))
	return int(float64(turns) * float64(time.Millisecond) / float64(variant.CPUTime()-before))
}

// ballast is live memory in every child, as in a service. Without it, a profiler's own buffers would make the
// garbage collector run less often than in the child without a profiler, and look like a gain.
var ballast = make([]byte, 64<<20)

// measured is the child process: it runs the jobs that it reads from standard input.
func measured(name, sink string, spins int) (err error) {
	defer runtime.KeepAlive(ballast)
	v, err := variant.Start(name, sink, variant.All)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Stop()) }()
	traced := func(f http.HandlerFunc) http.Handler {
		return otelhttp.NewHandler(f, "request", otelhttp.WithTracerProvider(v.Tracing), otelhttp.WithMeterProvider(noop.NewMeterProvider()))
	}
	ok := traced(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	work := traced(func(w http.ResponseWriter, _ *http.Request) {
		runtime.KeepAlive(spin(spins))
		_, _ = io.WriteString(w, "ok")
	})
	db, err := sql.Open("sqlite", "file::memory:?cache=shared")
	if err != nil {
		return err
	}
	defer db.Close()
	const schema = `CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price INTEGER);
		INSERT INTO items VALUES (1, 'tea', 250), (2, 'cup', 900)`
	if _, err := db.Exec(schema); err != nil {
		return err
	}
	routes := http.NewServeMux()
	routes.Handle("/", ok)
	routes.Handle("/items", traced(func(w http.ResponseWriter, r *http.Request) { items(w, r, db) }))
	var served atomic.Uint64
	routes.Handle("/mixed", traced(func(w http.ResponseWriter, _ *http.Request) {
		if served.Add(1)%1000 == 0 {
			time.Sleep(200 * time.Millisecond)
		}
		_, _ = io.WriteString(w, "ok")
	}))
	server := httptest.NewServer(routes)
	defer server.Close()
	server.Client().Transport.(*http.Transport).MaxIdleConnsPerHost = 10
	request, err := http.NewRequest(http.MethodGet, server.URL, nil)
	if err != nil {
		return err
	}
	direct := func(h http.Handler) func() error {
		return func() error {
			h.ServeHTTP(discard{http.Header{}}, request)
			return nil
		}
	}
	over := func(path string) func() error {
		return func() error {
			resp, err := server.Client().Get(server.URL + path)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, resp.Body)
			return errors.Join(err, resp.Body.Close())
		}
	}
	do := map[string]func() error{compute: direct(work), trivial: direct(ok), loopback: over("/"), database: over("/items"), mixed: over("/mixed")}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var j job
		if err := in.Decode(&j); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		connections := 1
		if j.Handler == mixed {
			connections = 10
		}
		r, err := drive(do[j.Handler], connections, j.For)
		if err != nil {
			return err
		}
		r.Recording = v.Recording()
		if err := out.Encode(r); err != nil {
			return err
		}
	}
}

// drive sends requests over so many connections for as long as d.
func drive(do func() error, connections int, d time.Duration) (result, error) {
	var requests atomic.Int64
	var clients errgroup.Group
	cpu, begun := variant.CPUTime(), time.Now()
	for range connections {
		clients.Go(func() error {
			for time.Since(begun) < d {
				for range 10 {
					if err := do(); err != nil {
						return err
					}
				}
				requests.Add(10)
			}
			return nil
		})
	}
	err := clients.Wait()
	return result{Requests: int(requests.Load()), Wall: time.Since(begun), CPU: variant.CPUTime() - cpu}, err
}

// items is a small JSON API.
func items(w http.ResponseWriter, r *http.Request, db *sql.DB) {
	type item struct {
		ID, Price int
		Name      string
	}
	rows, err := db.QueryContext(r.Context(), "SELECT id, name, price FROM items ORDER BY id")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer rows.Close()
	var all []item
	for rows.Next() {
		var i item
		if err := rows.Scan(&i.ID, &i.Name, &i.Price); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		all = append(all, i)
	}
	if err := rows.Err(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(all) // the client is in this process
}

// discard is a ResponseWriter that discards everything.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}
