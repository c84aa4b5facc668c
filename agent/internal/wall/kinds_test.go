package wall

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/pprof"
	runtimetrace "runtime/trace"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"spanflame/internal/wallprofile"
)

var wait = 60 * time.Millisecond

//go:noinline
func burn(d time.Duration) (n int) {
	for start := time.Now(); time.Since(start) < d; {
		for range 1000 {
			n++
		}
	}
	return n
}

// computer takes d of CPU time, however long the operating system makes it wait for it: the profiler's samples
// come by CPU time.
//
//go:noinline
func computer(d time.Duration) (n int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for start := cpuTime(); cpuTime()-start < d; {
		for range 1_000_000 {
			n++
		}
	}
	return n
}

//go:noinline
func sleeper() { time.Sleep(wait) }

//go:noinline
func locker(mu sync.Locker) { mu.Lock(); defer mu.Unlock() }

//go:noinline
func holder(mu sync.Locker, held chan<- struct{}) {
	mu.Lock()
	close(held)
	time.Sleep(wait)
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
func caller(t *testing.T, c *http.Client, url string) {
	resp, err := c.Get(url)
	if err != nil {
		t.Error(err)
		return
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}

//go:noinline
func pipeReader(t *testing.T, f *os.File) {
	if _, err := f.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// writer writes more than a pipe holds; the file is in blocking mode, so it waits inside the system call
// as a slow disk makes one wait.
//
//go:noinline
func writer(t *testing.T, f *os.File) {
	if _, err := f.Write(make([]byte, 1<<17)); err != nil {
		t.Error(err)
	}
}

// TestKinds runs one span of each kind and expects its function and state to be the largest leaf, and its
// own time to be exactly its duration.
func TestKinds(t *testing.T) { kinds(t, AlwaysOn) }

// TestKindsArmed: what is recorded of a span is as exact when the recording starts inside it.
func TestKindsArmed(t *testing.T) {
	before := wait
	defer func() { wait = before }()
	wait = 500 * time.Millisecond // on a busy machine, the recording may start late
	kinds(t, Armed)
}

func kinds(t *testing.T, mode Mode) {
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Fatal(err)
	}
	defer pprof.StopCPUProfile()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(wait) }))
	defer server.Close()
	client := server.Client()
	defer client.CloseIdleConnections()

	rec := startRecorder(t, func(o *Options) { o.Mode = &mode })
	later := func(f func()) { time.AfterFunc(wait, f) }
	tests := []struct {
		name     string
		function string
		leaf     string
		run      func(t *testing.T)
	}{
		{"cpu 200ms", "computer", "", func(*testing.T) { computer(200 * time.Millisecond) }},
		{"cpu 30ms", "computer", "", func(*testing.T) { computer(30 * time.Millisecond) }},
		{"sleep", "sleeper", "[waiting: sleep]", func(*testing.T) { sleeper() }},
		{"mutex", "locker", "[waiting: mutex]", func(*testing.T) {
			var mu sync.Mutex
			held := make(chan struct{})
			go holder(&mu, held)
			<-held
			locker(&mu)
		}},
		{"rwmutex write", "locker", "[waiting: RWMutex]", func(*testing.T) {
			var mu sync.RWMutex
			held := make(chan struct{})
			go holder(mu.RLocker(), held)
			<-held
			locker(&mu)
		}},
		{"rwmutex read", "locker", "[waiting: RWMutex]", func(*testing.T) {
			var mu sync.RWMutex
			held := make(chan struct{})
			go holder(&mu, held)
			<-held
			locker(mu.RLocker())
		}},
		{"receive", "receiver", "[waiting: channel receive]", func(*testing.T) {
			ch := make(chan int)
			later(func() { ch <- 1 })
			receiver(ch)
		}},
		{"send", "sender", "[waiting: channel send]", func(*testing.T) {
			ch := make(chan int)
			later(func() { <-ch })
			sender(ch)
		}},
		{"select", "selecter", "[waiting: select]", func(*testing.T) {
			ch := make(chan int)
			later(func() { ch <- 1 })
			selecter(ch, make(chan int))
		}},
		{"cond", "condWaiter", "[waiting: Cond]", func(*testing.T) {
			c := sync.NewCond(new(sync.Mutex))
			ready := false
			later(func() { c.L.Lock(); ready = true; c.L.Unlock(); c.Signal() })
			condWaiter(c, &ready)
		}},
		{"waitgroup", "groupWaiter", "[waiting: WaitGroup]", func(*testing.T) {
			var g sync.WaitGroup
			g.Add(1)
			later(g.Done)
			groupWaiter(&g)
		}},
		{"http", "caller", "[waiting: select]", func(t *testing.T) { caller(t, client, server.URL) }},
		{"network", "pipeReader", "[waiting: network]", func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			defer w.Close()
			later(func() { _, _ = w.Write([]byte{1}) })
			pipeReader(t, r)
		}},
		{"file", "writer", "[syscall]", func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			w.Fd() // leaves non-blocking mode
			var reader sync.WaitGroup
			reader.Go(func() {
				time.Sleep(wait)
				_, _ = io.Copy(io.Discard, r)
			})
			writer(t, w)
			_ = w.Close()
			reader.Wait()
			_ = r.Close()
		}},
		{"iter.Pull computing", "computer", "", func(*testing.T) { puller(func() { computer(50 * time.Millisecond) }) }},
		{"iter.Pull sleeping", "sleeper", "[waiting: sleep]", func(*testing.T) { puller(sleeper) }},
		{"errgroup", "errgroup.(*Group).Wait", "[waiting: WaitGroup]", func(t *testing.T) {
			var g errgroup.Group
			g.Go(func() error { sleeper(); return nil })
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
		}},
		{"singleflight", "singleflight.(*Group).Do", "[waiting: WaitGroup]", func(*testing.T) {
			var g singleflight.Group
			first := make(chan struct{})
			var leader sync.WaitGroup
			leader.Go(func() {
				_, _, _ = g.Do("key", func() (any, error) {
					close(first)
					sleeper()
					return nil, nil
				})
			})
			<-first
			_, _, _ = g.Do("key", func() (any, error) { return nil, nil })
			leader.Wait()
		}},
		{"time.AfterFunc", "receiver", "[waiting: channel receive]", func(*testing.T) {
			ch := make(chan int)
			time.AfterFunc(0, func() { sleeper(); ch <- 1 }) // on a goroutine that is nobody's
			receiver(ch)
		}},
		{"context.AfterFunc", "receiver", "[waiting: channel receive]", func(*testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			ch := make(chan int)
			context.AfterFunc(ctx, func() { sleeper(); ch <- 1 }) // on a goroutine that cancel starts, which is the span's
			cancel()
			receiver(ch)
		}},
		{"runnable", "yielder", "[runnable: waiting for CPU]", func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			stop := make(chan struct{})
			var others sync.WaitGroup
			for range 4 {
				others.Go(func() {
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
			yielder(wait)
			close(stop)
			others.Wait()
		}},
	}
	spans := make([]*testSpan, len(tests))
	slow := uint64(0)
	for range 20 { // again, if the machine was too busy to make a span of the kind
		before, flames := slow, rec.flames()
		for i, test := range tests {
			if s := spans[i]; s != nil && !flames[s.id.String()].starved(test.leaf) {
				continue
			}
			rec.quiet(mode, slow)
			_, spans[i] = rec.begin(context.Background(), test.name)
			test.run(t)
			spans[i].end()
			slow++
		}
		if slow == before {
			break
		}
		rec.captured(slow)
	}
	rec.finish()
	for name, others := range map[string]bool{"iter.Pull computing": false, "errgroup": true, "time.AfterFunc": false, "context.AfterFunc": true} {
		i := slices.IndexFunc(spans, func(s *testSpan) bool { return s.name == name })
		// Goroutines that were started before the recording are not known to be the span's.
		if f := rec.exact(spans[i]); (f.others > 0) != (others && mode == AlwaysOn) {
			t.Errorf("%s has %v on other goroutines:\n%s", name, time.Duration(f.others), f)
		}
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := rec.exact(spans[i])
			if before := f.leaves[wallprofile.BeforeRecording.Leaf()]; (before > 0) != (mode == Armed) {
				t.Errorf("%v before the recording", time.Duration(before))
			}
			delete(f.stacks, wallprofile.SpanPrefix+test.name+";"+wallprofile.BeforeRecording.Leaf()) // which is longer on a busy machine
			merged, sampled := make(map[string]int64), int64(0)
			for stack, ns := range f.stacks {
				function, far := strings.CutSuffix(stack, ";"+wallprofile.Unsampled.Leaf()) // as most samples may be on a busy machine
				merged[function] += ns
				if !far && strings.Contains(stack, test.function) {
					sampled += ns
				}
			}
			f.stacks = merged
			largest := f.largest()
			if !strings.HasPrefix(largest, wallprofile.SpanPrefix+test.name+";") {
				t.Errorf("largest stack begins with another span: %s", largest)
			}
			if mode == Armed && strings.HasPrefix(test.name, "iter.Pull") {
				// A coroutine that runs in the place of another goroutine since before the recording is known when it switches back.
				test.function, test.leaf = "puller", "[waiting: unspecified]"
			}
			in := strings.Contains(largest, "."+test.function) || strings.Contains(largest, "/"+test.function)
			if !in || !strings.HasSuffix(largest, test.leaf) || test.leaf == "" && (strings.HasSuffix(largest, "]") || sampled == 0) {
				t.Errorf("largest stack is\n%s\nwant %s … %s in\n%s", largest, test.function, test.leaf, f)
			}
			if f.meta.Labels[wallprofile.SpanScope] != wallprofile.ScopeRoot || f.meta.Labels["region"] != "here" || f.meta.Service != "shop" {
				t.Errorf("record is %+v", f.meta)
			}
		})
	}
	s := rec.Stats()
	if s.Slow != slow || s.Captured != s.Slow || s.Unreadable != 0 || s.SkippedBudget != 0 || s.Mode != mode {
		t.Errorf("stats: %+v", s)
	}
	if partial := map[Mode]uint64{AlwaysOn: 0, Armed: s.Slow}[mode]; s.Partial != partial {
		t.Errorf("%d of %d are partial, want %d", s.Partial, s.Slow, partial)
	}
}

// starved reports whether most of a span's time is that of a busy machine, and not in the state that it was to be in.
func (f *flame) starved(leaf string) bool {
	if f == nil {
		return false
	}
	sum := int64(0)
	for _, s := range []wallprofile.State{wallprofile.Runnable, wallprofile.StoppedGC, wallprofile.StoppedOther, wallprofile.BeforeRecording} {
		if s.Leaf() != leaf {
			sum += f.leaves[s.Leaf()]
		}
	}
	return sum > f.own/2
}

func ended(s Stats) uint64 { return s.Captured + s.SkippedBudget + s.SkippedWindow }

// captured waits until all of n slow spans have been captured.
func (rec *recording) captured(n uint64) {
	rec.t.Helper()
	for start := time.Now(); ended(rec.Stats()) < n; time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			rec.t.Fatalf("a minute after the end of %d slow spans, they are not captured: %+v", n, rec.Stats())
		}
	}
}

// quiet waits until all of n slow spans have been captured and nothing is recorded, if that is the mode.
func (rec *recording) quiet(mode Mode, n uint64) {
	rec.t.Helper()
	if mode != Armed {
		return
	}
	rec.captured(n)
	for start := time.Now(); runtimetrace.IsEnabled(); time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			rec.t.Fatalf("a minute after the end of %d slow spans, it is still recorded: %+v", n, rec.Stats())
		}
	}
}

//go:noinline
func yielder(d time.Duration) {
	for start := time.Now(); time.Since(start) < d; {
		runtime.Gosched()
	}
}
