package wall

import (
	"context"
	"iter"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"spanflame/internal/wallprofile"
)

// causeOf is the time of the span's own stacks in which the parts follow one another.
func (f *flame) causeOf(parts ...string) int64 {
	var sum int64
next:
	for s, ns := range f.whole {
		if strings.Contains(s, wallprofile.Others) {
			continue
		}
		for _, p := range parts {
			_, rest, ok := strings.Cut(s, p)
			if !ok {
				continue next
			}
			s = rest
		}
		sum += ns
	}
	return sum
}

// led fails unless the parts stand below the waits in the state for as long as the one who was waited for worked.
func (rec *recording) led(s *testSpan, state wallprofile.State, parts ...string) {
	rec.t.Helper()
	f := rec.exact(s)
	if got := f.causeOf(append([]string{state.Leaf()}, parts...)...); got < int64(wait) {
		rec.t.Errorf("%s: %v are %q\n%s", s.name, time.Duration(got), parts, f.causes())
	}
}

// causes is the profile with its causes, without the smallest stacks.
func (f *flame) causes() string {
	var b strings.Builder
	for s, ns := range f.whole {
		if ns > int64(time.Millisecond) {
			b.WriteString(time.Duration(ns).String() + " " + s + "\n")
		}
	}
	return b.String()
}

// blockedIn waits until n goroutines are blocked below a function.
func blockedIn(t *testing.T, n int, function string) {
	t.Helper()
	all := make([]byte, 1<<20)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		got := 0
		for _, g := range strings.Split(string(all[:runtime.Stack(all, true)]), "\n\n") {
			if head, stack, _ := strings.Cut(g, "\n"); strings.Contains(stack, "/wall."+function+"(") &&
				(strings.Contains(head, "[sync.") || strings.Contains(head, "[chan ") || strings.Contains(head, "[select")) {
				got++
			}
		}
		if got >= n {
			return
		}
	}
	t.Errorf("fewer than %d goroutines are blocked in %s", n, function)
}

//go:noinline
func passer(to chan<- int) {
	workB(wait)
	to <- 1
}

// relay works, and has another goroutine do the rest.
//
//go:noinline
func relay(to chan<- int) {
	workA(wait)
	go passer(to)
}

//go:noinline
func onceWaiter(once *sync.Once) { once.Do(func() {}) }

// TestFollow has a span wait in each way, and expects below its wait who made it wait, and what that one did meanwhile.
func TestFollow(t *testing.T) {
	rec := startRecorder(t, nil)
	// work begins when the waiting function waits.
	work := func(waiter string) {
		blockedIn(t, 1, waiter)
		workB(wait)
	}
	tests := []struct {
		name  string
		state wallprofile.State
		run   func()
		want  []string
	}{
		{"mutex", wallprofile.WaitMutex, func() {
			var mu sync.Mutex
			held := make(chan struct{})
			go func() { mu.Lock(); close(held); work("locker"); mu.Unlock() }()
			<-held
			locker(&mu)
		}, []string{"[held by: the same request]", "workB"}},
		{"RWMutex", wallprofile.WaitRWMutex, func() {
			var mu sync.RWMutex
			held := make(chan struct{})
			go func() { mu.Lock(); close(held); work("locker"); mu.Unlock() }()
			<-held
			locker(mu.RLocker())
		}, []string{"[held by: the same request]", "workB"}},
		{"Once", wallprofile.WaitOnce, func() {
			var once sync.Once
			begun := make(chan struct{})
			go once.Do(func() { close(begun); work("onceWaiter") })
			<-begun
			onceWaiter(&once)
		}, []string{"[held by: the same request]", "sync.(*Once).Do", "workB"}},
		{"receive", wallprofile.WaitReceive, func() {
			ch := make(chan int)
			go func() { work("receiver"); ch <- 1 }()
			receiver(ch)
		}, []string{"[sent by: the same request]", "workB"}},
		{"close", wallprofile.WaitReceive, func() {
			ch := make(chan int)
			go func() { work("receiver"); close(ch) }()
			receiver(ch)
		}, []string{"[sent by: the same request]", "workB"}},
		{"send", wallprofile.WaitSend, func() {
			ch := make(chan int)
			go func() { work("sender"); <-ch }()
			sender(ch)
		}, []string{"[received by: the same request]", "workB"}},
		{"select", wallprofile.WaitSelect, func() {
			ch := make(chan int)
			go func() { work("selecter"); ch <- 1 }()
			selecter(ch, make(chan int))
		}, []string{"[woken by: the same request]", "workB"}},
		{"WaitGroup", wallprofile.WaitWaitGroup, func() {
			var g sync.WaitGroup
			g.Go(func() { workA(time.Millisecond) })
			g.Go(func() { work("groupWaiter") })
			groupWaiter(&g)
		}, []string{"[done by: the same request]", "workB"}},
		{"Cond", wallprofile.WaitCond, func() {
			c := sync.NewCond(new(sync.Mutex))
			ready := false
			go func() { work("condWaiter"); c.L.Lock(); ready = true; c.L.Unlock(); c.Signal() }()
			condWaiter(c, &ready)
		}, []string{"[woken by: the same request]", "workB"}},
		{"a coroutine", wallprofile.WaitReceive, func() {
			ch := make(chan int)
			go func() {
				next, stop := iter.Pull(func(yield func(int) bool) { work("receiver"); yield(1) })
				defer stop()
				next()
				ch <- 1
			}()
			receiver(ch)
		}, []string{"[sent by: the same request]", "iter.Pull", "workB"}},
	}
	var spans []*testSpan
	for _, test := range tests {
		_, s := rec.begin(context.Background(), test.name)
		test.run()
		s.end()
		spans = append(spans, s)
	}
	rec.finish()
	for i, test := range tests {
		rec.led(spans[i], test.state, test.want...)
	}
}

// One who was waited for and waited itself is followed to the one that it waited for.
func TestFollowAWaitBelowAWait(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "root")
	var mu sync.Mutex
	held, ch := make(chan struct{}), make(chan int)
	go func() { mu.Lock(); close(held); blockedIn(t, 1, "locker"); workB(wait); mu.Unlock() }()
	<-held
	go func() { blockedIn(t, 1, "receiver"); locker(&mu); ch <- 1 }()
	receiver(ch)
	s.end()
	rec.finish()
	rec.led(s, wallprofile.WaitReceive, "[sent by: the same request]", "locker", wallprofile.WaitMutex.Leaf(), "[held by: the same request]", "workB")
}

// A goroutine that is started while another one waits is followed to its start, and from there on back the one that
// started it.
func TestFollowBeyondTheStartOfAGoroutine(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "root")
	ch := make(chan int)
	go func() { blockedIn(t, 1, "receiver"); relay(ch) }()
	receiver(ch)
	s.end()
	rec.finish()
	rec.led(s, wallprofile.WaitReceive, "[sent by: the same request]", "passer", "workB")
	rec.led(s, wallprofile.WaitReceive, "[started by: the same request]", "relay", "workA")
}

// Before a goroutine that a timer started, there was the timer.
func TestFollowToATimer(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "root")
	ch := make(chan int)
	go func() {
		blockedIn(t, 1, "receiver")
		time.AfterFunc(wait, func() { passer(ch) })
	}()
	receiver(ch)
	s.end()
	rec.finish()
	rec.led(s, wallprofile.WaitReceive, "[started by: a timer]")
	rec.led(s, wallprofile.WaitReceive, "[sent by: spanflame/agent/internal/wall.TestFollowToATimer.", ", no request]", "passer", "workB")
}

// The history of a goroutine ends at the begin of the wait: what the other one did before is none of it.
func TestFollowNotBeyondTheWait(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "root")
	ch, begun := make(chan int), make(chan int)
	go func() { workA(wait); close(begun); blockedIn(t, 1, "receiver"); workB(wait); ch <- 1 }()
	<-begun
	receiver(ch)
	s.end()
	rec.finish()
	rec.led(s, wallprofile.WaitReceive, "[sent by: the same request]", "workB")
	if got := rec.exact(s).causeOf("receiver", "workA"); got != 0 {
		t.Errorf("the receiver waited %v for what was before", time.Duration(got))
	}
}

// What ended a wait by itself has no cause: a timer, the network.
func TestTimersAreNotFollowed(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "root")
	<-time.After(wait)
	s.end()
	rec.finish()
	f := rec.exact(s)
	if waited, below := f.causeOf(wallprofile.WaitReceive.Leaf()), f.causeOf(wallprofile.WaitReceive.Leaf(), ";"); waited == 0 || below != 0 {
		t.Errorf("%v were waited, and %v of that has a cause\n%s", time.Duration(waited), time.Duration(below), f.causes())
	}
}

// Each request has a name, also a fast one, and one that begins only after the wait; a goroutine that works for none has
// that of its function.
func TestWhoseWorkItIs(t *testing.T) {
	rec := startRecorder(t, nil)
	jobs, answers := make(chan string), make(chan int)
	var workers sync.WaitGroup
	workers.Go(func() { // a worker that was there before, and works for whoever asks
		for name := range jobs {
			blockedIn(t, 1, "receiver")
			if name != "" {
				_, s := rec.begin(context.Background(), name)
				s.name = name + " /renamed"
				workB(wait)
				s.end()
			} else {
				workB(wait)
			}
			answers <- 1
		}
	})
	var spans []*testSpan
	for _, name := range []string{"", "POST"} {
		_, s := rec.begin(context.Background(), "asks "+name)
		jobs <- name
		receiver(answers)
		s.end()
		spans = append(spans, s)
	}
	close(jobs)
	workers.Wait()
	rec.finish()
	rec.led(spans[0], wallprofile.WaitReceive, "[sent by: spanflame/agent/internal/wall.TestWhoseWorkItIs.func1, no request]", "workB")
	rec.led(spans[1], wallprofile.WaitReceive, "[sent by: POST /renamed, another request]", "workB")
}

var lines = regexp.MustCompile(` \(\w+\.go:\d+\)`)

// withoutLines returns a diagnosis without the lines of its functions.
func withoutLines(text string) string { return lines.ReplaceAllString(text, "") }

// A wait for what has a name says it, and does not blame the library's goroutine that woke the span.
func TestWaitsHaveNames(t *testing.T) {
	rec := startRecorder(t, nil)
	var begin time.Time
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		workA(max(wait, 2*time.Since(begin))) // longer than it took to connect
	}))
	defer server.Close()
	client := server.Client()
	defer client.CloseIdleConnections()
	begin = time.Now()
	_, s := rec.begin(context.Background(), "root")
	caller(t, client, server.URL)
	s.end()
	rec.finish()
	f := rec.exact(s)
	if got := f.causeOf("caller", wallprofile.WaitSelect.Leaf(), "[for: the answer of an HTTP call]", "readLoop"); got == 0 {
		t.Errorf("%s", f.causes())
	}
	text := rec.diagnoses[0].Text
	if !strings.HasSuffix(withoutLines(text), " waiting for the answer of an HTTP call in wall.caller, called by wall.TestWaitsHaveNames") ||
		!strings.Contains(text, " in wall.caller (kinds_test.go:") {
		t.Errorf("the diagnosis is %q", text)
	}
}

// Requests that queue for a lock wake one another when it is released, but who made all of them wait is the one that held it
// first.
func TestAVictimIsNotTheHolder(t *testing.T) {
	rec := startRecorder(t, nil)
	const victims = 4
	var mu sync.Mutex
	var all sync.WaitGroup
	held := make(chan struct{})
	begin := time.Now()
	all.Go(func() {
		reporter(&mu, func() {
			close(held)
			blockedIn(t, victims, "locker")
			workA(max(wait, 50*time.Since(begin))) // nearly all of each wait
		})
	})
	<-held
	for range victims {
		all.Go(func() {
			_, s := rec.begin(context.Background(), "GET /victim")
			locker(&mu)
			s.end()
		})
	}
	all.Wait()
	rec.finish()
	if len(rec.diagnoses) != victims {
		t.Fatalf("%d diagnoses, want %d", len(rec.diagnoses), victims)
	}
	for _, d := range rec.diagnoses {
		text := withoutLines(d.Text)
		if !strings.Contains(text, "waiting for a mutex in wall.locker, held by wall.reporter: ") || wallprofile.Short(d.Top.Holder) != "wall.reporter" {
			t.Errorf("%s (holder %s)", d.Text, d.Top.Holder)
		}
	}
}

//go:noinline
func reporter(mu *sync.Mutex, work func()) {
	mu.Lock()
	defer mu.Unlock()
	work()
}

// A goroutine that began during the wait was not waited for before: who started it is not to blame.
func TestWhoStartedTheWakerIsNotToBlame(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "root")
	ch := make(chan int)
	var all sync.WaitGroup
	all.Go(func() {
		blockedIn(t, 1, "receiver")
		workA(5 * wait)
		all.Go(func() { workB(wait); ch <- 1 })
	})
	receiver(ch)
	s.end()
	all.Wait()
	rec.finish()
	if d := rec.diagnoses[0]; strings.Contains(d.Text, "workA") || wallprofile.Short(d.Top.Cause.Function) == "wall.workA" {
		t.Errorf("%s", d.Text)
	}
	rec.led(s, wallprofile.WaitReceive, "[started by: the same request]", "workA")
	if text := rec.diagnoses[0].Text; !strings.Contains(text, "waiting to receive from a channel in wall.receiver") || strings.Contains(text, "sent by") {
		t.Errorf("the diagnosis is %q", text)
	}
}

// A convoy is not a stack: each holder of the lock stands below the wait, with its work while it held the lock, and with
// the name of its request, be that slow or not.
func TestConvoy(t *testing.T) {
	rec := startRecorder(t, func(o *Options) { o.SlowSpan = time.Millisecond })
	const holders = 7
	var mu sync.Mutex
	var all sync.WaitGroup
	held := make(chan struct{})
	begin := time.Now()
	hold := 8 * time.Millisecond
	for i := range holders {
		all.Go(func() {
			if i > 0 {
				<-held
			}
			_, s := rec.begin(context.Background(), "POST /audit")
			auditor(&mu, func() {
				if i > 0 {
					workA(hold)
					return
				}
				close(held)
				blockedIn(t, holders-1, "auditor")
				blockedIn(t, 1, "locker")
				hold = max(hold, time.Since(begin)) // as long as the first one, so that none is alone to blame
			})
			s.end()
		})
	}
	blockedIn(t, holders-1, "auditor")
	_, victim := rec.begin(context.Background(), "GET /victim")
	locker(&mu)
	victim.end()
	all.Wait()
	rec.finish()
	f := rec.exact(victim)
	audits := f.causeOf("locker", wallprofile.WaitMutex.Leaf(), "[held by: POST /audit, another request]", "auditor", "workA")
	if audits < int64((holders-1)*hold) {
		t.Errorf("the holders' work is %v\n%s", time.Duration(audits), f.causes())
	}
	for s := range f.whole {
		if strings.Count(s, "[held by:") > 1 {
			t.Errorf("%s", s)
		}
	}
	d := rec.diagnoses[slices.IndexFunc(rec.diagnoses, func(d Diagnosis) bool { return d.Name == "GET /victim" })]
	if want := "waiting for a mutex in wall.locker, held in turn by 7 other requests in wall.auditor: "; !strings.Contains(withoutLines(d.Text), want) ||
		!strings.HasSuffix(withoutLines(d.Text), " ms of it sleeping in wall.workA, called by wall.TestConvoy") {
		t.Errorf("the diagnosis is %q, want %q", d.Text, want)
	}
}

//go:noinline
func auditor(mu *sync.Mutex, work func()) {
	mu.Lock()
	defer mu.Unlock()
	work()
}

// A convoy of fifty requests queues for a lock, among a thousand requests that have nothing to do with it and wait for one
// another: each names the routes of those that hold its own lock, and no others.
func TestConvoyAmongAThousandRequests(t *testing.T) {
	rec := manual(t) // between two snapshots, a busy machine may keep the process from running for longer than the ring reaches
	const victims, pairs, alone = 50, 300, 350
	var mu sync.Mutex
	var all, begun sync.WaitGroup
	var waiting atomic.Bool
	held := make(chan struct{})
	spans := make([]*testSpan, victims+2*pairs+alone)
	begin := func(i int, name string) { _, spans[i] = rec.begin(context.Background(), name) }
	all.Go(func() {
		_, s := rec.begin(context.Background(), "POST /audit")
		auditor(&mu, func() {
			close(held)
			for !waiting.Load() {
				time.Sleep(10 * time.Millisecond)
			}
			workA(wait)
		})
		s.end()
	})
	<-held
	begun.Add(victims + pairs + alone)
	for i := range victims {
		all.Go(func() {
			begin(i, "GET /victim")
			begun.Done()
			auditor(&mu, func() { workB(time.Millisecond) })
			spans[i].end()
		})
	}
	for i := range pairs {
		var own sync.Mutex
		locked := make(chan struct{})
		all.Go(func() {
			begin(victims+i, "PUT /holder")
			auditor(&own, func() { close(locked); begun.Done(); workB(wait) })
			spans[victims+i].end()
		})
		all.Go(func() {
			<-locked
			begin(victims+pairs+i, "GET /unrelated")
			locker(&own)
			spans[victims+pairs+i].end()
		})
	}
	for i := victims + 2*pairs; i < len(spans); i++ {
		all.Go(func() {
			begin(i, "GET /unrelated")
			begun.Done()
			ch := make(chan int)
			go passer(ch)
			receiver(ch)
			spans[i].end()
		})
	}
	begun.Wait()
	blockedIn(t, victims, "auditor")
	waiting.Store(true)
	all.Wait()
	rec.capture()
	flames := rec.flames()
	for i, s := range spans {
		f := flames[s.id.String()]
		if f == nil && i >= victims && s.inner < rec.o.SlowSpan {
			continue // the lock was free again when a busy machine let it begin
		}
		if f == nil {
			t.Fatalf("%s has no profile; %+v", s.name, rec.Stats())
		}
		if i < victims && f.causeOf("auditor", "[held by: POST /audit, another request]", "workA") < int64(wait) {
			t.Errorf("%s does not wait for the one that holds the lock\n%s", s.name, f.causes())
		}
		for stack := range f.whole {
			stack, _, _ = strings.Cut(stack, "[CPUs busy with: ") // whoever it is
			frames := strings.Split(stack, ";")
			causes := strings.Join(frames[slices.IndexFunc(append(frames, "[held by: ]"), wallprofile.IsCause):], ";")
			for _, other := range []string{"POST /audit", "GET /victim", "PUT /holder", "GET /unrelated"} {
				own := i < victims && other != "PUT /holder" && other != "GET /unrelated" || i >= victims+pairs && i < victims+2*pairs && other == "PUT /holder"
				if strings.Contains(causes, other) && !own {
					t.Errorf("%s has %s", s.name, stack)
				}
			}
		}
		if !s.has(f.own) {
			t.Errorf("%s: own time is %v, the span took from %v to %v", s.name, time.Duration(f.own), s.inner, s.outer)
		}
	}
}

// A goroutine that works for no request is known by the function of the service in which it began, or else by that of a
// dependency.
func TestNobody(t *testing.T) {
	const own, module = "shop/a.go", "golang.org/x/sync@v0.24.0/a.go"
	group := frame{function: "golang.org/x/sync/errgroup.(*Group).Go.func1", file: module}
	serve := frame{function: "net/http.(*conn).serve", file: "net/http/server.go"}
	for _, tt := range []struct {
		frames []frame // from the innermost outwards
		want   party
	}{
		{[]frame{{function: "main.read", file: own}, {function: "main.loop", file: own}, group}, party{name: "main.loop"}},
		{[]frame{{function: "runtime.gopark", file: "runtime/proc.go"}, group}, party{name: group.function}},
		{[]frame{{function: "runtime.gopark", file: "runtime/proc.go"}, serve}, party{name: serve.function, served: true, anyones: true}},
		{[]frame{{function: "github.com/go-chi/chi/v5.(*Mux).ServeHTTP", file: "github.com/go-chi/chi/v5@v5.2.1/mux.go"}, serve},
			party{name: "github.com/go-chi/chi/v5.(*Mux).ServeHTTP", served: true}},
		{nil, party{name: "unknown goroutine", anyones: true}},
	} {
		hs := newHistorian(newConverter(0, func(uint64) string { return "" }), nil)
		if got := hs.nobody(&stack{frames: tt.frames}); *got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.frames, *got, tt.want)
		}
	}
}

// Who ended a wait is named by the function of the service that did, and for a lock by the one that released it.
func TestWhoEndedTheWait(t *testing.T) {
	sent, export := frame{function: "main.send", file: "shop/a.go"}, frame{function: "main.export", file: "shop/a.go"}
	group := frame{function: "golang.org/x/sync/errgroup.(*Group).done", file: "golang.org/x/sync@v0.24.0/a.go"}
	unlock, release := frame{function: "sync.(*Mutex).Unlock"}, frame{function: "database/sql.(*DB).putConn"}
	at := &root{span: span{number: 1}}
	for _, tt := range []struct {
		link   wallprofile.Link
		who    party
		frames []frame
		want   string
	}{
		{wallprofile.SentBy, party{number: 2, name: "POST /a"}, []frame{{function: "runtime.chansend1"}, sent, export}, "sent by POST /a in main.send"},
		{wallprofile.WokenBy, party{number: 2, name: "POST /a"}, []frame{release, export}, "woken by POST /a in main.export"},
		{wallprofile.WokenBy, party{number: 2}, []frame{release, export}, "woken by another request in main.export"},
		{wallprofile.WokenBy, party{number: 2, name: "POST /a"}, []frame{release, {function: "main.wait", file: "shop/a.go"}}, "woken by POST /a"},
		{wallprofile.DoneBy, party{number: 1}, []frame{group}, "done by the same request"},
		{wallprofile.DoneBy, party{number: 1}, []frame{group, export}, "done by main.export"},
		{wallprofile.ReceivedBy, party{name: "main.loop"}, []frame{sent}, "received by main.send"},
		{wallprofile.HeldBy, party{number: 2, name: "POST /a"}, []frame{unlock, group, export}, "held by POST /a in errgroup.(*Group).done"},
		{wallprofile.HeldBy, party{number: 2, name: "POST /a"}, []frame{sent}, "held by POST /a"},
	} {
		by := (&below{link: tt.link, by: &stack{frames: tt.frames}}).endedBy()
		if got := tt.who.caused(tt.link, at, by, "main.wait"); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.frames, got, tt.want)
		}
	}
}

// A request that has no route yet is named by what it runs.
func TestARequestWithoutARoute(t *testing.T) {
	at := &stack{frames: []frame{{function: "runtime.mallocgc"}, {function: "main.report", file: "shop/a.go"}, {function: "net/http.HandlerFunc.ServeHTTP"}}}
	for name, want := range map[string]string{
		"POST":         "[CPUs busy with: POST in main.report, another request]",
		"POST /report": "[CPUs busy with: POST /report, another request]",
	} {
		c := &cause{causeKey: causeKey{link: wallprofile.BusyWith, who: &party{number: 2, name: name}, stack: at}}
		if got := c.frame(&root{span: span{number: 1}}); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

//go:noinline
func hog(stop <-chan struct{}) (n int) {
	for {
		select {
		case <-stop:
			return n
		default:
			n++
		}
	}
}

// A request that waits for a CPU names the one that had it.
func TestWhoHadTheCPUs(t *testing.T) {
	rec := startRecorder(t, nil)
	procs := runtime.GOMAXPROCS(1)
	stop := make(chan struct{})
	var others sync.WaitGroup
	for range 3 {
		others.Go(func() {
			_, s := rec.begin(context.Background(), "POST /report")
			hog(stop)
			s.end()
		})
	}
	_, victim := rec.begin(context.Background(), "GET /victim")
	yielder(4 * wait)
	victim.end()
	close(stop)
	others.Wait()
	runtime.GOMAXPROCS(procs)
	rec.finish()
	f := rec.exact(victim)
	runnable := f.causeOf(wallprofile.Runnable.Leaf())
	if got := f.causeOf(wallprofile.Runnable.Leaf(), "[CPUs busy with: POST /report, another request]", "hog"); 2*got < runnable || got == 0 {
		t.Errorf("%v of %v\n%s", time.Duration(got), time.Duration(runnable), f.causes())
	}
	i := slices.IndexFunc(rec.diagnoses, func(d Diagnosis) bool { return d.Name == "GET /victim" })
	text := withoutLines(rec.diagnoses[i].Text)
	if !strings.Contains(text, " runnable and waiting for a CPU in wall.yielder, the CPUs busy with POST /report in wall.hog (") ||
		!strings.Contains(text, " %): ") || !strings.HasSuffix(text, " ms of it on the CPU in wall.hog, called by wall.TestWhoHadTheCPUs") {
		t.Errorf("the diagnosis is %q", text)
	}
}
