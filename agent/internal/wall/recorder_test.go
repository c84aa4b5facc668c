package wall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/metrics"
	"runtime/trace"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

func TestOptions(t *testing.T) {
	good := Options{SlowSpan: time.Second, Emit: func(record.Record) {}}
	for name, change := range map[string]func(*Options){
		"SlowSpan":  func(o *Options) { o.SlowSpan = 0 },
		"ChildMin":  func(o *Options) { o.ChildMin = -1 },
		"RingBytes": func(o *Options) { o.RingBytes = -1 },
		"CPUShare":  func(o *Options) { o.CPUShare = -0.1 },
		"Emit":      func(o *Options) { o.Emit = nil },
	} {
		o := good
		change(&o)
		if r, err := Start(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error is %v", name, err)
			if r != nil {
				_ = r.Stop(context.Background())
			}
		}
	}
}

func TestOneFlightRecorderPerProcess(t *testing.T) {
	other := trace.NewFlightRecorder(trace.FlightRecorderConfig{})
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	o := Options{SlowSpan: time.Second, Emit: func(record.Record) {}}
	if _, err := Start(o); !errors.Is(err, ErrBusy) {
		t.Errorf("with another flight recorder running: %v", err)
	}
	other.Stop()
	r, err := Start(o)
	if err != nil {
		t.Fatalf("after the other one stopped: %v", err)
	}
	if err := r.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

// An execution trace may be taken while the recorder runs.
func TestBesideAnExecutionTrace(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "traced")
	workA(15 * time.Millisecond)
	var out bytes.Buffer
	if err := trace.Start(&out); err != nil {
		t.Fatal(err)
	}
	workA(15 * time.Millisecond)
	trace.Stop()
	workA(15 * time.Millisecond)
	s.end()
	rec.finish()
	rec.exact(s)
	if !bytes.Contains(out.Bytes(), []byte("go 1.")) {
		t.Errorf("the execution trace has %d bytes", out.Len())
	}
}

func TestStop(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "pending")
	workA(25 * time.Millisecond)
	s.end()
	_, running := rec.begin(context.Background(), "running")
	var stops sync.WaitGroup
	for range 4 {
		stops.Go(func() {
			if err := rec.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	stops.Wait()
	rec.exact(s)
	workA(25 * time.Millisecond)
	running.end()
	if s := rec.Stats(); s.Slow != 2 || s.Captured != 1 || s.SkippedStop != 1 {
		t.Errorf("a slow span that ends after Stop is not accounted for: %+v", s)
	}
	if _, after := rec.begin(context.Background(), "after"); after.mark != nil {
		t.Error("a span is marked after Stop")
	}
}

func TestStopHonoursItsDeadline(t *testing.T) {
	blocked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	rec := startRecorder(t, func(o *Options) {
		o.Emit = func(record.Record) {
			once.Do(func() { close(blocked) })
			<-release
		}
	})
	slow := func() {
		_, s := rec.begin(context.Background(), "stuck")
		workA(21 * time.Millisecond)
		s.end()
	}
	slow()
	<-blocked
	slow() // while the record of the first is not taken
	slow()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := rec.Stop(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Stop: %v", err)
	}
	close(release)
	rec.finish()
	if s := rec.Stats(); s.Slow != 3 || s.Captured != 1 || s.SkippedStop != 2 {
		t.Errorf("stats: %+v", s)
	}
}

// noise fills the ring with events until stop is closed, in bursts of messages a millisecond apart. It calls after, if that
// is not nil, after each.
func noise(done *sync.WaitGroup, stop <-chan struct{}, burst int, after func()) {
	ping, pong := make(chan int), make(chan int)
	done.Go(func() {
		defer close(ping)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case ping <- i:
			}
			<-pong
			if i%burst == 0 {
				time.Sleep(time.Millisecond)
				if after != nil {
					after()
				}
			}
		}
	})
	done.Go(func() {
		for i := range ping {
			pong <- i
		}
	})
}

// A span far longer than the ring's reach is covered like a short one.
func TestLongSpan(t *testing.T) {
	const ring = 1 << 20
	rec := startRecorder(t, func(o *Options) { o.RingBytes = ring })
	stop := make(chan struct{})
	var others sync.WaitGroup
	bursts, seen := 0, uint64(0)
	noise(&others, stop, 8, func() {
		// On a busy machine there are few snapshots: the ring is not to be full before the next one.
		for bursts++; bursts > 300 && rec.stats.snapshots.Load() == seen; time.Sleep(time.Millisecond) {
			select {
			case <-stop:
				return
			default:
			}
		}
		if now := rec.stats.snapshots.Load(); now != seen {
			bursts, seen = 0, now
		}
	})

	ctx, root := rec.begin(context.Background(), "long")
	var spans []*testSpan
	var mu sync.Mutex
	worker := make(chan struct{})
	go func() {
		defer close(worker)
		workB(5 * time.Second)
	}()
	for i := range 5 {
		_, s := rec.begin(ctx, fmt.Sprint("step", i))
		workA(500 * time.Millisecond)
		burn(200 * time.Millisecond)
		held := make(chan struct{})
		go holder(&mu, held)
		<-held
		locker(&mu)
		s.end()
		spans = append(spans, s)
		workA(300 * time.Millisecond)
	}
	<-worker
	root.end()
	close(stop)
	others.Wait()
	rec.finish()

	stats := rec.Stats()
	if stats.Snapshots < 4 || stats.Partial != 0 || stats.Captured != 1 || stats.Bytes < ring/2 {
		t.Errorf("stats: %+v", stats)
	}
	f := rec.exact(root)
	if got := f.sumOf(wallprofile.Others, "workB"); got < int64(5*time.Second) || got > int64(root.outer) {
		t.Errorf("the goroutine that spans all snapshots has %v:\n%s", time.Duration(got), f)
	}
	for _, s := range spans {
		if got := f.sumOf("span: long;span: " + s.name + ";"); !s.has(got) {
			t.Errorf("the root has %v in %s, which took %v", time.Duration(got), s.name, s.outer)
		}
		rec.exact(s)
	}
	if got := f.sumOf("workA", "[waiting: sleep]"); got < int64(4*time.Second) {
		t.Errorf("the root slept %v:\n%s", time.Duration(got), f)
	}
}

// manual is a recorder without its goroutine: the test takes the snapshots.
func manual(t *testing.T) *recording {
	rec := &recording{t: t}
	rec.Recorder = newRecorder(Options{
		SlowSpan:  20 * time.Millisecond,
		ChildMin:  10 * time.Millisecond,
		RingBytes: 1 << 20,
		CPUShare:  1,
		Emit:      func(r record.Record) { rec.records = append(rec.records, r) },
		Diagnosed: func(d Diagnosis) { rec.diagnoses = append(rec.diagnoses, d) },
		Logger:    discard,
	})
	rec.arms = numbersGoroutines()
	if err := rec.flight.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rec.flight.Stop)
	return rec
}

// forget makes the recorder lose all of the trace so far that it has not converted.
func (rec *recording) forget() {
	snap := &snapshot{}
	if _, err := rec.flight.WriteTo(snap); err != nil {
		rec.t.Fatal(err)
	}
	rec.last = snap.gens[len(snap.gens)-1].number
	rec.gap = true
}

// Time that no snapshot covers is not invented: totals hold, and the diagnosis reports how much is missing.
func TestGapIsNotRecorded(t *testing.T) {
	rec := manual(t)
	ctx, root := rec.begin(context.Background(), "partial")
	_, lost := rec.begin(ctx, "lost end")
	workA(20 * time.Millisecond)
	rec.capture()
	workB(20 * time.Millisecond) // nobody sees this
	lost.end()
	_, unseen := rec.begin(ctx, "unseen")
	workB(20 * time.Millisecond)
	unseen.end()
	_, lostBegin := rec.begin(ctx, "lost begin")
	rec.forget()
	workA(20 * time.Millisecond)
	lostBegin.end()
	root.end()
	rec.capture()

	f := rec.exact(root)
	if got := f.leaves[wallprofile.NotRecorded.Leaf()]; got < int64(40*time.Millisecond) || got > int64(root.outer-40*time.Millisecond) {
		t.Errorf("%v is not recorded:\n%s", time.Duration(got), f)
	}
	if f.sumOf("workB") != 0 || f.sumOf("workA") < int64(40*time.Millisecond) {
		t.Errorf("recorded:\n%s", f)
	}
	d := rec.diagnoses[0]
	if d.Covered <= 0 || d.Covered+time.Duration(f.leaves[wallprofile.NotRecorded.Leaf()]) != d.Duration {
		t.Errorf("covered %v of %v", d.Covered, d.Duration)
	}
	rec.exact(lostBegin)
	if f := rec.exact(lost); f.leaves[wallprofile.NotRecorded.Leaf()] < int64(20*time.Millisecond) {
		t.Errorf("a span whose end was lost:\n%s", f)
	}
	if s := rec.Stats(); s.Partial != 1 || s.Captured != 1 {
		t.Errorf("stats: %+v", s)
	}
}

func TestWindowLost(t *testing.T) {
	rec := manual(t)
	_, s := rec.begin(context.Background(), "lost")
	workA(25 * time.Millisecond)
	s.end()
	rec.forget()
	rec.capture() // the mark might still come
	rec.capture()
	if f := rec.flame(s.id); f != nil {
		t.Errorf("profile of a span of which nothing is known:\n%s", f)
	}
	if s := rec.Stats(); s.Slow != 1 || s.SkippedWindow != 1 || s.Captured != 0 {
		t.Errorf("stats: %+v", s)
	}
	if len(rec.conv.tracked)+len(rec.conv.known)+len(rec.conv.goroutines)+rec.conv.lanes != 0 {
		t.Errorf("the converter still holds %d roots, %d spans, %d goroutines", len(rec.conv.tracked), len(rec.conv.known), len(rec.conv.goroutines))
	}
}

func TestBudgetSpentIsCounted(t *testing.T) {
	rec := startRecorder(t, func(o *Options) { o.CPUShare = 1e-12 })
	for range 3 {
		_, s := rec.begin(context.Background(), "slow")
		workA(21 * time.Millisecond)
		s.end()
	}
	rec.finish()
	if s := rec.Stats(); s.Slow != 3 || s.SkippedBudget != 3 || s.Captured != 0 || s.Snapshots != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// However many spans are slow, the recorder stays within its share, and each span is accounted for.
func TestBudgetIsKept(t *testing.T) {
	const share = 0.003 // of one core: 180 ms in a minute
	rec := startRecorder(t, func(o *Options) { o.CPUShare = share / float64(runtime.GOMAXPROCS(0)) })
	// While the trace is small enough for the budget on any machine, the recorder learns what converting costs on this one.
	for i := range uint64(6) {
		_, s := rec.begin(context.Background(), fmt.Sprint("first", i))
		workA(25 * time.Millisecond)
		s.end()
		for stats := rec.Stats(); stats.Captured+stats.SkippedBudget <= i; stats = rec.Stats() {
			time.Sleep(time.Millisecond)
		}
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	noise(&all, stop, 40, nil)
	start := time.Now()
	// On a busy machine there are few snapshots in a second: it takes longer until they have spent the budget.
	for time.Since(start) < 2*time.Second || rec.Stats().SkippedBudget == 0 && time.Since(start) < time.Minute {
		var some sync.WaitGroup
		for i := range 100 {
			some.Go(func() {
				_, s := rec.begin(context.Background(), fmt.Sprint("route", i%5))
				workA(25 * time.Millisecond)
				s.end()
			})
		}
		some.Wait()
	}
	close(stop)
	all.Wait()
	rec.finish()
	s := rec.Stats()
	// A conversion ends only after some events, which may overdraw the budget.
	if most := time.Duration(1.3 * share * float64(budgetWindow+time.Since(start))); s.CPU > most {
		t.Errorf("%v of CPU, %v of them to write the trace, at most %v were expected", s.CPU, s.Written, most)
	}
	if sum := s.Captured + s.SkippedBudget + s.SkippedWindow + s.SkippedQueue + s.SkippedStop; s.Slow != sum || s.Captured == 0 || s.SkippedBudget == 0 {
		t.Errorf("%d slow spans, %d accounted for: %+v", s.Slow, sum, s)
	}
}

// rootNamed returns a sampled root.
func rootNamed(name string) *root {
	t := &root{sampled: true}
	t.first = name
	return t
}

// Where the budget is short, roots that are not sampled leave it to those that are, as long as there are such.
func TestBudgetIsForSampledRootsFirst(t *testing.T) {
	now := time.Unix(0, 0)
	b := newBudget(0.01, now)
	other := rootNamed("other")
	other.sampled = false
	b.spend(200 * time.Millisecond)
	b.serve(now, other)
	if busy, rare := b.available(now, other), b.available(now, &root{}); busy != 100*time.Millisecond || rare != 400*time.Millisecond {
		t.Errorf("without sampled roots, others may spend %v and %v, want what sampled ones may", busy, rare)
	}
	b.serve(now, rootNamed("busy"))
	if sampled, rest := b.available(now, rootNamed("busy")), b.available(now, &root{}); sampled != 100*time.Millisecond || rest > 0 {
		t.Errorf("with two thirds of the budget, a sampled root may spend %v, others %v", sampled, rest)
	}
	if rest := b.available(now.Add(20*time.Second), other); rest != 150*time.Millisecond {
		t.Errorf("with all of the budget, others may spend %v", rest)
	}
	other.took = time.Hour
	if got := b.fair([]*root{other, rootNamed("busy"), rootNamed("other")}); got[2] != other {
		t.Error("a root that is not sampled comes before one that is")
	}
}

func TestBudget(t *testing.T) {
	now := time.Unix(0, 0)
	b := newBudget(0.01, now)
	if got := b.available(now, rootNamed("a")); got != 600*time.Millisecond {
		t.Errorf("a full minute's share is %v", got)
	}
	b.serve(now, rootNamed("busy"))
	b.spend(400 * time.Millisecond)
	if busy, rare := b.available(now, rootNamed("busy")), b.available(now, rootNamed("rare")); busy > 0 || rare != 200*time.Millisecond {
		t.Errorf("busy may spend %v, rare %v", busy, rare)
	}
	now = now.Add(20 * time.Second)
	if got := b.available(now, rootNamed("rare")); got != 400*time.Millisecond {
		t.Errorf("after 20 s: %v", got)
	}
	now = now.Add(time.Hour)
	if got := b.available(now, rootNamed("busy")); got != 600*time.Millisecond {
		t.Errorf("after an hour: %v", got)
	}
	for range 100 {
		b.learn(1000, 5*time.Microsecond)
	}
	if got := b.predict(1_000_000); got < 4*time.Millisecond || got > 6*time.Millisecond {
		t.Errorf("a megabyte at 5 ns a byte is predicted to take %v", got)
	}
	for i := range 3 * maxServed {
		b.serve(now, rootNamed(fmt.Sprint(i)))
	}
	if len(b.served) > maxServed {
		t.Errorf("%d names are remembered", len(b.served))
	}
}

func TestFairOrder(t *testing.T) {
	now := time.Unix(0, 0)
	b := newBudget(0.01, now)
	b.serve(now, rootNamed("busy"))
	var roots []*root
	for i, name := range []string{"busy", "busy", "rare", "busy", "other"} {
		x := &root{}
		x.first, x.number = name, uint64(i)
		x.took = time.Duration(i + 1)
		roots = append(roots, x)
	}
	var got []string
	for _, x := range b.fair(roots) {
		got = append(got, fmt.Sprint(x.first, int64(x.took)))
	}
	if want := []string{"other5", "rare3", "busy4", "busy2", "busy1"}; !slices.Equal(got, want) {
		t.Errorf("order is %v, want %v", got, want)
	}
}

func TestDiagnosis(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "POST /api/checkout")
	burn(5 * time.Millisecond)
	var mu sync.Mutex
	held := make(chan struct{})
	go holder(&mu, held)
	<-held
	locker(&mu)
	s.end()
	rec.finish()

	if len(rec.diagnoses) != 1 {
		t.Fatalf("%d diagnoses", len(rec.diagnoses))
	}
	d := rec.diagnoses[0]
	if d.SpanID != s.id.String() || d.Covered != d.Duration || !s.has(int64(d.Duration)) {
		t.Errorf("diagnosis: %+v", d)
	}
	if d.States[0].State != "waiting: mutex" || wallprofile.Short(d.Top.Function) != "wall.locker" || wallprofile.Short(d.Top.Holder) != "wall.holder" {
		t.Errorf("diagnosis: %+v", d)
	}
	var sum time.Duration
	for _, share := range d.States {
		sum += share.Time
	}
	if sum != d.Duration {
		t.Errorf("the states sum to %v of %v", sum, d.Duration)
	}
	want := fmt.Sprintf("%d ms POST /api/checkout: %d ms (%.0f %%) waiting for a mutex in wall.locker, held by wall.holder: ",
		d.Duration.Round(time.Millisecond).Milliseconds(), d.Top.Time.Round(time.Millisecond).Milliseconds(), 100*float64(d.Top.Time)/float64(d.Duration))
	if text := withoutLines(d.Text); !strings.HasPrefix(text, want) || !strings.HasSuffix(text, " ms of it sleeping in wall.holder") {
		t.Errorf("the diagnosis is %q, want %q", d.Text, want)
	}
	for _, part := range []string{d.Text, "span_id=" + d.SpanID, "trace_id=" + d.TraceID, "covered=1", "holder=spanflame"} {
		if !strings.Contains(rec.log.String(), part) {
			t.Errorf("the log lacks %q:\n%s", part, rec.log.String())
		}
	}
}

// The holder is named only if one function released the lock nearly always.
func TestHolderIsLeftOutWhenUncertain(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "two holders")
	var mu sync.Mutex
	for _, by := range []func(sync.Locker, chan<- struct{}){holder, otherHolder} {
		held := make(chan struct{})
		go by(&mu, held)
		<-held
		locker(&mu)
	}
	s.end()
	rec.finish()
	if d := rec.diagnoses[0]; d.Top.Holder != "" || d.Top.State != "waiting: mutex" {
		t.Errorf("diagnosis: %+v", d)
	}
}

//go:noinline
func otherHolder(mu sync.Locker, held chan<- struct{}) {
	mu.Lock()
	close(held)
	time.Sleep(wait)
	mu.Unlock()
}

// TestEntriesAreBounded: the account of every span has a limited size and loses no time.
func TestEntriesAreBounded(t *testing.T) {
	var root rootLedger
	var paths = make(paths)
	account, child := make(ledger), make(ledger)
	seg := &segment{}
	for i := range maxEntries + 1000 {
		root.put(account, entry{seg: seg, at: paths.join(nil, step{name: fmt.Sprint(i)}), stack: &stack{}, state: wallprofile.WaitSleep}, 2)
		root.put(child, entry{seg: seg, at: paths.join(nil, step{name: "same"}), stack: noStack, state: wallprofile.WaitSleep}, 1)
	}
	if root.entries > maxEntries+2 || root.entries != len(account)+len(child) {
		t.Errorf("%d entries are counted, there are %d and %d", root.entries, len(account), len(child))
	}
	var sum int64
	for _, ns := range account {
		sum += ns
	}
	if sum != 2*(maxEntries+1000) {
		t.Errorf("the account has %d of %d", sum, 2*(maxEntries+1000))
	}
	root.empty(account, child)
	if root.entries != 0 || len(account)+len(child) != 0 {
		t.Errorf("%d entries are counted after all were discarded", root.entries)
	}
}

// TestThousandsOfGoroutines: however many goroutines a root has started, it is known where its own one was, and who was waited for.
func TestThousandsOfGoroutines(t *testing.T) {
	var root rootLedger
	account, at := make(ledger), &stack{}
	own := &lane{}
	for range maxEntries + 1000 {
		root.put(account, entry{seg: &segment{lane: &lane{creator: own}}, stack: at, state: wallprofile.Runnable}, 1)
	}
	k := entry{seg: &segment{lane: own}, stack: at, state: wallprofile.WaitWaitGroup, below: &cause{}}
	if root.put(account, k, 1); account[k] != 1 {
		t.Error("the own stack is lost")
	}
	if root.empty(account); root.entries != 0 || root.own != 0 {
		t.Errorf("%d and %d entries are counted after all were discarded", root.entries, root.own)
	}
}

// A span that is never ended, and more children than a root may have, do not pile up.
func TestLimits(t *testing.T) {
	rec := startRecorder(t, nil)
	ctx, crowd := rec.begin(context.Background(), "many")
	for range maxSpans + 10 {
		_, s := rec.begin(ctx, "child")
		s.end()
	}
	workA(25 * time.Millisecond)
	crowd.end()
	for range maxOpen + 10 {
		rec.begin(context.Background(), "never ended")
		workA(0)
	}
	_, last := rec.begin(context.Background(), "ended")
	workA(25 * time.Millisecond)
	last.end()
	rec.finish()
	rec.exact(crowd)
	rec.exact(last)
	if s := rec.Stats(); s.DroppedChildren < 10 || s.Crowded != 11 {
		t.Errorf("stats: %+v", s)
	}

	var l live
	refused := 0
	for i := range len(l.shards)*maxLive + 10 {
		x := &root{}
		x.number = uint64(i)
		if !l.add(x) {
			refused++
		}
	}
	if refused != 10 {
		t.Errorf("%d roots are refused", refused)
	}
}

// TestUnended: a root that is never ended is given up once. What starts below it is a root from then on, and when it ends
// after all, nothing comes of it.
func TestUnended(t *testing.T) {
	rec := manual(t)
	ctx, forgotten := rec.begin(context.Background(), "forgotten")
	_, early := rec.begin(ctx, "early")
	for range 2 {
		rec.forgetting(time.Now().Add(maxAge + time.Second))
	}
	early.end()
	ctx, late := rec.begin(ctx, "late")
	_, part := rec.begin(ctx, "part")
	workA(25 * time.Millisecond)
	part.end()
	late.end()
	forgotten.end()
	rec.capture()
	for _, s := range []*testSpan{late, part} {
		if f := rec.exact(s); f.sumOf("span: late;") != f.total || f.sumOf("span: forgotten") != 0 {
			t.Errorf("%s:\n%s", s.name, f)
		}
	}
	if s := rec.Stats(); s.Unended != 1 || s.Slow != 1 || s.Captured != 1 {
		t.Errorf("stats: %+v", s)
	}
	if n := len(rec.conv.tracked) + len(rec.conv.known) + len(rec.conv.goroutines); n != 0 {
		t.Errorf("the converter still holds %d of something", n)
	}
}

// liveHeap returns the number of bytes that a collection found reachable.
func liveHeap() uint64 {
	runtime.GC()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	return live[0].Value.Uint64()
}

// TestMemory: at the default ring the recorder's live heap stays within 48 MiB, however much there is to record and while
// slow spans are captured all the time. The bursts of messages and the long lines in the trace are a millisecond apart,
// which limits the load on a fast machine; the test continues until the trace is larger than the limit.
func TestMemory(t *testing.T) {
	const limit = 48 << 20
	before := liveHeap()
	rec := startRecorder(t, nil)
	stop := make(chan struct{})
	var others sync.WaitGroup
	for range 2 {
		noise(&others, stop, 100, nil)
	}
	others.Go(func() {
		line := strings.Repeat("x", 1<<10) // the longest that the runtime takes
		for {
			select {
			case <-stop:
				return
			default:
				for range 16 {
					trace.Log(context.Background(), "noise", line)
				}
				time.Sleep(time.Millisecond)
			}
		}
	})
	var most uint64
	for rec.Stats().Bytes < 5*limit/4 {
		_, s := rec.begin(context.Background(), "slow")
		workA(100 * time.Millisecond)
		s.end()
		now := liveHeap()
		most = max(most, now-min(before, now))
	}
	close(stop)
	others.Wait()
	rec.finish()
	s := rec.Stats()
	t.Logf("the live heap grew by %d KiB; %d events, %d KiB in %d snapshots, converted in %v of CPU", most>>10, s.Events, s.Bytes>>10, s.Snapshots, s.CPU)
	if most > limit {
		t.Errorf("the live heap grew by %d bytes, more than %d", most, limit)
	}
	if s.Captured == 0 || s.Captured+s.SkippedBudget+s.SkippedWindow != s.Slow {
		t.Errorf("stats: %+v", s)
	}
}
