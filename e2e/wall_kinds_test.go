//go:build long

package e2e

import (
	"context"
	"database/sql"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	runtimetrace "runtime/trace"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	oteltrace "go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
	_ "modernc.org/sqlite"

	"spanflame/internal/wallprofile"
)

// The functions that the spans spend their time in, by the names that their profiles must show.

//go:noinline
func burn(d time.Duration) (n int) {
	for start := time.Now(); time.Since(start) < d; {
		for range 20_000 {
			n++
		}
	}
	return n
}

// computer takes d of CPU time, however long the operating system makes it wait for it: the profiler's
// samples come by CPU time.
//
//go:noinline
func computer(t *testing.T, d time.Duration) (n int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for start := threadTime(t); threadTime(t)-start < d; {
		for range 1_000_000 {
			n++
		}
	}
	return n
}

func threadTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_THREAD, &u); err != nil {
		t.Error(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

//go:noinline
func sleeper(d time.Duration) { time.Sleep(d) }

//go:noinline
func locker(mu sync.Locker) { mu.Lock(); defer mu.Unlock() }

//go:noinline
func holder(mu sync.Locker, held chan<- struct{}, d time.Duration) {
	mu.Lock()
	close(held)
	time.Sleep(d)
	mu.Unlock()
}

// puller has an iterator work for it in a coroutine, and works nothing itself.
//
//go:noinline
func puller(work func()) {
	next, stop := iter.Pull(func(yield func(int) bool) {
		for i := 0; yield(i); i++ {
			work()
		}
	})
	defer stop()
	next()
	next()
}

//go:noinline
func grouper(t *testing.T, work func()) {
	var g errgroup.Group
	g.Go(func() error { work(); return nil })
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// flyer asks for what another goroutine is about to find.
//
//go:noinline
func flyer(work func()) {
	var g singleflight.Group
	first := make(chan struct{})
	var leader sync.WaitGroup
	leader.Go(func() {
		_, _, _ = g.Do("key", func() (any, error) {
			close(first)
			work()
			return nil, nil
		})
	})
	<-first
	_, _, _ = g.Do("key", func() (any, error) { return nil, nil })
	leader.Wait()
}

//go:noinline
func receiver(ch <-chan int) { <-ch }

//go:noinline
func sender(ch chan<- int) { ch <- 1 }

//go:noinline
func selecter(a, b <-chan int) {
	select {
	case <-a:
	case <-b:
	}
}

//go:noinline
func condWaiter(c *sync.Cond, ready *bool) {
	c.L.Lock()
	for !*ready {
		c.Wait()
	}
	c.L.Unlock()
}

//go:noinline
func groupWaiter(g *sync.WaitGroup) { g.Wait() }

//go:noinline
func yielder(d time.Duration) {
	for start := time.Now(); time.Since(start) < d; {
		runtime.Gosched()
	}
}

//go:noinline
func caller(t *testing.T, ctx context.Context, address string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		t.Error(err)
		return
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}

//go:noinline
func counter(t *testing.T, ctx context.Context, db *sql.DB, d time.Duration) {
	for start := time.Now(); time.Since(start) < d; {
		var n int
		const count = `WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 200) SELECT count(*) FROM c`
		if err := db.QueryRowContext(ctx, count).Scan(&n); err != nil {
			t.Error(err)
		}
	}
}

//go:noinline
func updater(t *testing.T, ctx context.Context, db *sql.DB) {
	if _, err := db.ExecContext(ctx, `UPDATE stock SET left = left - 1`); err != nil {
		t.Error(err)
	}
}

//go:noinline
func pipeWriter(t *testing.T, f *os.File) {
	if _, err := f.Write(make([]byte, 1<<17)); err != nil { // more than a pipe holds
		t.Error(err)
	}
}

//go:noinline
func syncer(t *testing.T, f *os.File, d time.Duration) {
	buf := make([]byte, 1<<16)
	for start := time.Now(); time.Since(start) < d; {
		if _, err := f.WriteAt(buf, 0); err != nil {
			t.Error(err)
		}
		if err := f.Sync(); err != nil {
			t.Error(err)
		}
	}
}

// kind is a way to spend time.
type kind struct {
	name     string
	function string // of the largest stack
	state    string // its leaf; "" for running
	others   string // a function that other goroutines spend time in for the span; "" for none
	says     string // part of the root's diagnosis in the log
	spend    func(t *testing.T, ctx context.Context, d time.Duration)
}

func kinds(t *testing.T) []kind {
	later := func(d time.Duration, f func()) { time.AfterFunc(d, f) }
	dir := t.TempDir()
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(r.URL.Query().Get("after"))
		time.Sleep(d)
	}))
	t.Cleanup(server.Close)
	database := (&url.URL{Scheme: "file", OmitHost: true, Path: filepath.Join(dir, "db"), RawQuery: "_pragma=busy_timeout(60000)"}).String()
	db, err := sql.Open("sqlite", database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := db.ExecContext(t.Context(), `CREATE TABLE stock (left INTEGER)`); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	})

	lock := func(wait, hold sync.Locker, d time.Duration) {
		held := make(chan struct{})
		go holder(hold, held, d)
		<-held
		locker(wait)
	}
	return []kind{
		{"cpu", "computer", "", "", "on the CPU in e2e.computer", func(t *testing.T, _ context.Context, d time.Duration) { computer(t, d) }},
		{"sleep", "sleeper", "[waiting: sleep]", "", "sleeping in e2e.sleeper", func(_ *testing.T, _ context.Context, d time.Duration) { sleeper(d) }},
		{"mutex", "locker", "[waiting: mutex]", "holder", "waiting for a mutex in e2e.locker, held by e2e.holder",
			func(_ *testing.T, _ context.Context, d time.Duration) {
				var mu sync.Mutex
				lock(&mu, &mu, d)
			}},
		{"rwmutex write", "locker", "[waiting: RWMutex]", "holder", "waiting for an RWMutex in e2e.locker, held by e2e.holder",
			func(_ *testing.T, _ context.Context, d time.Duration) {
				var mu sync.RWMutex
				lock(&mu, mu.RLocker(), d)
			}},
		{"rwmutex read", "locker", "[waiting: RWMutex]", "holder", "waiting for an RWMutex in e2e.locker", func(_ *testing.T, _ context.Context, d time.Duration) {
			var mu sync.RWMutex
			lock(mu.RLocker(), &mu, d)
		}},
		{"receive", "receiver", "[waiting: channel receive]", "", "waiting to receive from a channel in e2e.receiver",
			func(_ *testing.T, _ context.Context, d time.Duration) {
				ch := make(chan int)
				later(d, func() { ch <- 1 })
				receiver(ch)
			}},
		{"send", "sender", "[waiting: channel send]", "", "waiting to send on a channel in e2e.sender", func(_ *testing.T, _ context.Context, d time.Duration) {
			ch := make(chan int)
			later(d, func() { <-ch })
			sender(ch)
		}},
		{"select", "selecter", "[waiting: select]", "", "waiting in a select in e2e.selecter", func(_ *testing.T, _ context.Context, d time.Duration) {
			ch := make(chan int)
			later(d, func() { ch <- 1 })
			selecter(ch, make(chan int))
		}},
		{"cond", "condWaiter", "[waiting: Cond]", "", "waiting for a Cond in e2e.condWaiter", func(_ *testing.T, _ context.Context, d time.Duration) {
			c := sync.NewCond(new(sync.Mutex))
			ready := false
			later(d, func() { c.L.Lock(); ready = true; c.L.Unlock(); c.Signal() })
			condWaiter(c, &ready)
		}},
		{"waitgroup", "groupWaiter", "[waiting: WaitGroup]", "", "waiting for a WaitGroup in e2e.groupWaiter",
			func(_ *testing.T, _ context.Context, d time.Duration) {
				var g sync.WaitGroup
				g.Add(1)
				later(d, g.Done)
				groupWaiter(&g)
			}},
		{"iter.Pull computing", "computer", "", "", "on the CPU in e2e.computer", func(t *testing.T, _ context.Context, d time.Duration) {
			puller(func() { computer(t, d) })
		}},
		{"iter.Pull sleeping", "sleeper", "[waiting: sleep]", "", "sleeping in e2e.sleeper", func(_ *testing.T, _ context.Context, d time.Duration) {
			puller(func() { sleeper(d) })
		}},
		{"errgroup", "grouper", "[waiting: WaitGroup]", "sleeper", "waiting for a WaitGroup in e2e.grouper",
			func(t *testing.T, _ context.Context, d time.Duration) { grouper(t, func() { sleeper(d) }) }},
		{"singleflight", "flyer", "[waiting: WaitGroup]", "sleeper", "waiting for a WaitGroup in e2e.flyer",
			func(_ *testing.T, _ context.Context, d time.Duration) { flyer(func() { sleeper(d) }) }},
		{"time.AfterFunc", "receiver", "[waiting: channel receive]", "", "waiting to receive from a channel in e2e.receiver",
			func(_ *testing.T, _ context.Context, d time.Duration) {
				ch := make(chan int)
				time.AfterFunc(0, func() { sleeper(d); ch <- 1 }) // on a goroutine that the runtime starts
				receiver(ch)
			}},
		{"context.AfterFunc", "receiver", "[waiting: channel receive]", "sleeper", "waiting to receive from a channel in e2e.receiver",
			func(_ *testing.T, ctx context.Context, d time.Duration) {
				ctx, cancel := context.WithCancel(ctx)
				ch := make(chan int)
				context.AfterFunc(ctx, func() { sleeper(d); ch <- 1 }) // on a goroutine that cancel starts
				cancel()
				receiver(ch)
			}},
		{"http", "caller", "[waiting: select]", "", "waiting for the answer of an HTTP call in e2e.caller", func(t *testing.T, ctx context.Context, d time.Duration) {
			caller(t, ctx, server.URL+"/?after="+d.String())
		}},
		{"sql that computes", "counter", "", "", "on the CPU in e2e.counter", func(t *testing.T, ctx context.Context, d time.Duration) { counter(t, ctx, db, d) }},
		{"sql that waits for a lock", "updater", "[syscall]", "", "in a system call in e2e.updater", func(t *testing.T, ctx context.Context, d time.Duration) {
			locked, err := db.Conn(context.Background())
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := locked.ExecContext(context.Background(), `BEGIN IMMEDIATE`); err != nil {
				t.Error(err)
			}
			var unlocked sync.WaitGroup
			unlocked.Add(1)
			later(d, func() {
				defer unlocked.Done()
				if _, err := locked.ExecContext(context.Background(), `COMMIT`); err != nil {
					t.Error(err)
				}
			})
			updater(t, ctx, db)
			unlocked.Wait()
			if err := locked.Close(); err != nil {
				t.Error(err)
			}
		}},
		{"slow file write", "pipeWriter", "[syscall]", "", "in a system call in e2e.pipeWriter", func(t *testing.T, _ context.Context, d time.Duration) {
			var reader sync.WaitGroup
			reader.Add(1)
			later(0, func() {
				defer reader.Done()
				r, err := os.Open(fifo)
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(d)
				_, _ = io.Copy(io.Discard, r)
				_ = r.Close()
			})
			f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
			if err != nil {
				t.Error(err)
				return
			}
			f.Fd() // leaves non-blocking mode: the write waits in the system call, as it does for a slow disk
			pipeWriter(t, f)
			_ = f.Close()
			reader.Wait()
		}},
		{"file sync", "syncer", "[syscall]", "", "waiting for a file to reach the disk (fsync) in e2e.syncer",
			func(t *testing.T, _ context.Context, d time.Duration) { syncer(t, file, d) }},
		{"one cpu", "yielder", "[runnable: waiting for CPU]", "burn", "runnable and waiting for a CPU in e2e.yielder",
			func(_ *testing.T, _ context.Context, d time.Duration) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
				stop := make(chan struct{})
				var busy sync.WaitGroup
				for range 4 {
					busy.Go(func() {
						for {
							select {
							case <-stop:
								return
							default:
								burn(time.Millisecond)
							}
						}
					})
				}
				yielder(d)
				close(stop)
				busy.Wait()
			}},
		{"mixed", "locker", "[waiting: mutex]", "holder", "waiting for a mutex in e2e.locker", func(_ *testing.T, _ context.Context, d time.Duration) {
			burn(d / 5)
			sleeper(d / 5)
			var mu sync.Mutex
			lock(&mu, &mu, 3*d) // long: a busy machine sleeps longer
		}},
		{"fan-out", "groupWaiter", "[waiting: WaitGroup]", "sleeper", "waiting for a WaitGroup in e2e.groupWaiter",
			func(_ *testing.T, _ context.Context, d time.Duration) {
				var g sync.WaitGroup
				for range 4 {
					g.Go(func() { sleeper(d) })
				}
				groupWaiter(&g)
			}},
	}
}

var positions = regexp.MustCompile(` \(\w+\.go:\d+\)`) // of functions in a diagnosis

const rootTakes, childTakes = 200 * time.Millisecond, 20 * time.Millisecond

// TestWallOfEveryKind: a request that spends its time in any way has a flame graph whose largest stack names the function
// and the state, at its root and at a child span of a tenth of it; and the log has its diagnosis.
func TestWallOfEveryKind(t *testing.T) {
	p := startAgent(t, "wall-kinds")
	all := kinds(t)
	ids := make([]oteltrace.TraceID, len(all))
	for i, k := range all {
		ctx, root := p.Start(t.Context(), k.name)
		ids[i] = root.SpanContext().TraceID()
		inner, child := p.Start(ctx, k.name+" part")
		k.spend(t, inner, childTakes)
		child.End()
		k.spend(t, ctx, rootTakes)
		root.End()
	}
	for i, k := range all {
		t.Run(k.name, func(t *testing.T) {
			spans := spansOf(t, ids[i], 2)
			for _, s := range spans {
				graph := wallGraph(t, s, linkMargin)
				if details := wallGraph(t, s, detailsMargin); details.Total != graph.Total {
					t.Errorf("%s has %v in the span's details and %v behind the link", s.Name, time.Duration(details.Total), time.Duration(graph.Total))
				}
				t.Logf("%s took %v, its profile has %v (%+.4f %%)", s.Name, s.Duration(), own(graph), 100*(float64(own(graph))/float64(s.Duration())-1))
				if !exact(graph, s) {
					t.Errorf("%s took %v, its profile has %v", s.Name, s.Duration(), own(graph))
				}
				at := largest(graph)
				leaf := at[len(at)-1]
				running := !strings.HasPrefix(leaf, "[") || leaf == wallprofile.Unsampled.Leaf()
				path := strings.Join(at, ";")
				want := "total;span: " + k.name + ";"
				if s.ParentID != "" {
					want += "span: " + k.name + " part;"
				}
				if running != (k.state == "") || !running && leaf != k.state || !strings.Contains(path, "spanflame/e2e."+k.function) ||
					!strings.HasPrefix(path, want) {
					t.Errorf("the largest stack of %s is\n%s\nwant %s… %s … %s in\n%s", s.Name, path, want, k.function, k.state, render(graph))
				}
				if others := othersGraph(t, s, linkMargin); k.others != "" && others.Find("spanflame/e2e."+k.others) == 0 {
					t.Errorf("%s has not the time of %s on other goroutines:\n%s", s.Name, k.others, render(others))
				}
			}
			root, _ := find(spans, k.name)
			if said := positions.ReplaceAllString(p.said(t, root.ID), ""); !strings.Contains(said, " ms "+k.name+": ") || !strings.Contains(said, k.says) {
				t.Errorf("the log says of the root span %q, want %q in it", said, k.says)
			}
		})
	}
}

// TestWallOfEveryKindArmed: where the recording begins inside a request, its profile accounts for all of it, and what was
// recorded is as exact as ever.
func TestWallOfEveryKindArmed(t *testing.T) {
	p := startAgentIn(t, "wall-kinds-armed", "armed")
	before := wallprofile.BeforeRecording.Leaf()
	all := kinds(t)
	ids := make([]oteltrace.TraceID, len(all))
	for i, k := range all {
		for runtimetrace.IsEnabled() {
			time.Sleep(10 * time.Millisecond)
		}
		ctx, root := p.Start(t.Context(), k.name)
		ids[i] = root.SpanContext().TraceID()
		k.spend(t, ctx, 3*rootTakes) // on a busy machine the recording may begin late
		root.End()
	}
	for i, k := range all {
		t.Run(k.name, func(t *testing.T) {
			s := spansOf(t, ids[i], 1)[0]
			graph := wallGraph(t, s, linkMargin)
			t.Logf("%v of %v are before the recording", time.Duration(graph.Find(before)), s.Duration())
			if graph.Find(before) == 0 {
				t.Error("nothing is before the recording")
			}
			if !exact(graph, s) {
				t.Errorf("%s took %v, its profile has %v:\n%s", s.Name, s.Duration(), own(graph), render(graph))
			}
			if strings.HasPrefix(k.name, "iter.Pull") {
				return // a coroutine that runs in the place of another goroutine since before the recording is known when it switches back
			}
			at := largest(graph)
			if at[len(at)-1] == before {
				t.Fatalf("most of %s is before the recording:\n%s", s.Name, render(graph))
			}
			leaf := at[len(at)-1]
			running := !strings.HasPrefix(leaf, "[") || leaf == wallprofile.Unsampled.Leaf()
			path := strings.Join(at, ";")
			if running != (k.state == "") || !running && leaf != k.state || !strings.Contains(path, "spanflame/e2e."+k.function) {
				t.Errorf("the largest stack is\n%s\nwant %s … %s in\n%s", path, k.function, k.state, render(graph))
			}
			if said := positions.ReplaceAllString(p.said(t, s.ID), ""); !strings.Contains(said, " ms "+k.name+": ") || !strings.Contains(said, k.says) {
				t.Errorf("the log says %q, want %q in it", said, k.says)
			}
		})
	}
}

// hop1 and hop2 each spend time and hand the span on to a goroutine of their own; hop3 ends it.

//go:noinline
func hop1(d time.Duration, end func()) { time.Sleep(d); go hop2(d, end) }

//go:noinline
func hop2(d time.Duration, end func()) { time.Sleep(d); go hop3(3*d, end) }

//go:noinline
func hop3(d time.Duration, end func()) { time.Sleep(d); end() }

// TestWallOfHoppingSpan: the time of a span that hops from goroutine to goroutine is its own on each of them.
func TestWallOfHoppingSpan(t *testing.T) {
	p := startAgent(t, "wall-hop")
	ctx, root := p.Start(t.Context(), "hop")
	_, child := p.Start(ctx, "hop part")
	ended := make(chan struct{})
	hop1(10*time.Millisecond, func() {
		child.End()
		hop1(40*time.Millisecond, func() {
			root.End()
			close(ended)
		})
	})
	<-ended
	for _, s := range spansOf(t, root.SpanContext().TraceID(), 2) {
		graph := wallGraph(t, s, linkMargin)
		t.Logf("%s took %v, its profile has %v", s.Name, s.Duration(), own(graph))
		if !exact(graph, s) {
			t.Errorf("%s took %v, its profile has %v", s.Name, s.Duration(), own(graph))
		}
		path := strings.Join(largest(graph), ";")
		if !strings.Contains(path, "spanflame/e2e.hop3") || !strings.HasSuffix(path, "[waiting: sleep]") {
			t.Errorf("the largest stack of %s is %s, want hop3 sleeping in\n%s", s.Name, path, render(graph))
		}
		for _, function := range []string{"hop1", "hop2", "hop3"} {
			if graph.Find("spanflame/e2e."+function) == 0 {
				t.Errorf("%s has no time in %s:\n%s", s.Name, function, render(graph))
			}
		}
	}
}
