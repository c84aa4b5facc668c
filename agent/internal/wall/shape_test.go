package wall

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"spanflame/internal/wallprofile"
)

//go:noinline
func workA(d time.Duration) { time.Sleep(d) }

//go:noinline
func workB(d time.Duration) { time.Sleep(d) }

func TestChildrenNestUnderTheirPath(t *testing.T) {
	rec := startRecorder(t, nil)
	ctx, root := rec.begin(context.Background(), "POST /checkout")
	workA(10 * time.Millisecond)
	childCtx, child := rec.begin(ctx, "pricing")
	_, grandchild := rec.begin(childCtx, "query")
	workB(15 * time.Millisecond)
	grandchild.end()
	child.end()
	_, quick := rec.begin(ctx, "quick")
	quick.end()
	root.end()
	rec.finish()

	f := rec.exact(root)
	if got := f.sumOf("span: POST /checkout;span: pricing;span: query;", "workB;time.Sleep;[waiting: sleep]"); got < int64(15*time.Millisecond) {
		t.Errorf("the root has %v in the grandchild:\n%s", time.Duration(got), f)
	}
	if got := f.sumOf("span: query;"); !grandchild.has(got) {
		t.Errorf("the root has %v in the grandchild, which took %v", time.Duration(got), grandchild.outer)
	}
	if got := f.sumOf("span: quick"); !quick.has(got) {
		t.Errorf("the root has %v in the quick child, which took %v", time.Duration(got), quick.outer)
	}
	for _, s := range []*testSpan{child, grandchild} {
		f := rec.exact(s)
		if f.total != f.own || f.meta.Labels[wallprofile.SpanScope] != wallprofile.ScopeChild {
			t.Errorf("%s: own %d of %d, labels %v", s.name, f.own, f.total, f.meta.Labels)
		}
		for stack := range f.stacks {
			if !strings.HasPrefix(stack, "span: POST /checkout;span: pricing;") || strings.Contains(stack, "workA") {
				t.Errorf("%s has %s", s.name, stack)
			}
		}
	}
	if f := rec.flame(quick.id); f != nil && quick.outer < 10*time.Millisecond {
		t.Errorf("a child of %v has a profile", quick.outer)
	}
	if s := rec.Stats(); s.Children < 2 || s.Captured != 1 || s.Profiles != 2 {
		t.Errorf("stats: %+v", s)
	}
}

func TestFanOutStandsApart(t *testing.T) {
	rec := startRecorder(t, nil)
	ctx, root := rec.begin(context.Background(), "fan")
	var spans [4]*testSpan
	var all sync.WaitGroup
	for i := range spans {
		all.Go(func() {
			_, spans[i] = rec.begin(ctx, fmt.Sprint("part", i))
			var nested sync.WaitGroup
			nested.Go(func() { workB(30 * time.Millisecond) })
			workA(25 * time.Millisecond)
			nested.Wait()
			spans[i].end()
		})
	}
	all.Wait()
	root.end()
	rec.finish()

	f := rec.exact(root)
	if largest := f.largest(); !strings.HasSuffix(largest, "[waiting: WaitGroup]") {
		t.Errorf("largest own stack is %s", largest)
	}
	if got := f.sumOf("span: fan;"+wallprofile.Others+";span: part2;", "workA"); got < int64(25*time.Millisecond) {
		t.Errorf("part2 has %v in workA under the root:\n%s", time.Duration(got), f)
	}
	if got := f.sumOf("span: fan;"+wallprofile.Others+";span: part2;", "workB"); got < int64(30*time.Millisecond) {
		t.Errorf("part2 has %v in workB under the root:\n%s", time.Duration(got), f)
	}
	for _, s := range spans {
		f := rec.exact(s)
		if got := f.sumOf("span: fan;span: "+s.name+";"+wallprofile.Others, "workB"); got < int64(30*time.Millisecond) {
			t.Errorf("%s has %v in workB on its other goroutine:\n%s", s.name, time.Duration(got), f)
		}
		if got := f.sumOf("workA"); got < int64(25*time.Millisecond) {
			t.Errorf("%s has %v in workA:\n%s", s.name, time.Duration(got), f)
		}
	}
}

// A span that ends on a goroutine which it started follows it there.
func TestHopFollowsTheLineOfDescent(t *testing.T) {
	rec := startRecorder(t, nil)
	ctx, span := rec.begin(context.Background(), "hop")
	_, child := rec.begin(ctx, "child")
	done := make(chan struct{})
	workA(15 * time.Millisecond)
	stayed := time.Since(span.outerFrom)
	go func() {
		workB(20 * time.Millisecond)
		go func() {
			defer close(done)
			workB(20 * time.Millisecond)
			child.end()
			span.end()
		}()
		workA(50 * time.Millisecond) // outlives the span: it has moved on
	}()
	workA(70 * time.Millisecond) // the starter is elsewhere
	<-done
	rec.finish()

	for _, s := range []*testSpan{span, child} {
		f := rec.exact(s)
		if got := f.sumOf("workA") - f.sumOf(wallprofile.Others, "workA"); got < int64(15*time.Millisecond) || got > int64(stayed) {
			t.Errorf("%s has %v of own time in workA:\n%s", s.name, time.Duration(got), f)
		}
		if got := f.sumOf("workB") - f.sumOf(wallprofile.Others, "workB"); got < int64(40*time.Millisecond) {
			t.Errorf("%s has %v of own time in workB:\n%s", s.name, time.Duration(got), f)
		}
		if f.leaves[wallprofile.Elsewhere.Leaf()] != 0 {
			t.Errorf("%s has time elsewhere:\n%s", s.name, f)
		}
	}
}

// A span that is handed to a goroutine which was there before stays with its starter until that one
// begins something else.
func TestHopToAPoolWorker(t *testing.T) {
	rec := startRecorder(t, nil)
	jobs := make(chan *testSpan)
	var worker sync.WaitGroup
	worker.Go(func() {
		for s := range jobs {
			workB(40 * time.Millisecond)
			s.end()
		}
	})
	_, first := rec.begin(context.Background(), "first")
	workA(15 * time.Millisecond)
	handed := time.Now()
	jobs <- first
	_, second := rec.begin(context.Background(), "second")
	workA(30 * time.Millisecond)
	second.end()
	close(jobs)
	worker.Wait()
	rec.finish()

	f := rec.exact(first)
	if got := f.sumOf("workA"); got < int64(15*time.Millisecond) || got > int64(second.innerFrom.Sub(first.outerFrom)) {
		t.Errorf("first has %v in workA:\n%s", time.Duration(got), f)
	}
	if got := f.leaves[wallprofile.Elsewhere.Leaf()]; got < int64(40*time.Millisecond-second.innerFrom.Sub(handed)) {
		t.Errorf("first has %v elsewhere:\n%s", time.Duration(got), f)
	}
	f = rec.exact(second)
	if got := f.sumOf("workA"); got < int64(30*time.Millisecond) || f.leaves[wallprofile.Elsewhere.Leaf()] != 0 || f.others != 0 {
		t.Errorf("second:\n%s", f)
	}
}

func TestOverlappingSpansOfOneTrace(t *testing.T) {
	rec := startRecorder(t, nil)
	ctx, root := rec.begin(context.Background(), "root")
	_, first := rec.begin(ctx, "first")
	workA(15 * time.Millisecond)
	_, second := rec.begin(ctx, "second")
	workA(15 * time.Millisecond)
	first.end()
	workB(15 * time.Millisecond)
	second.end()
	root.end()
	rec.finish()

	// The second began last: the root's profile has the time while both are open under it. The first has
	// it, too, in its own.
	f := rec.exact(root)
	if got := f.sumOf("span: root;span: first;"); got < int64(second.outerFrom.Sub(first.innerFrom)) || got > int64(second.innerFrom.Sub(first.outerFrom)) {
		t.Errorf("the root has %v in the first:\n%s", time.Duration(got), f)
	}
	if f := rec.exact(first); f.sumOf("workA") < int64(30*time.Millisecond) || f.sumOf("workB") != 0 || f.sumOf("span: second") != 0 {
		t.Errorf("first:\n%s", f)
	}
	if f := rec.exact(second); f.sumOf("workA") < int64(15*time.Millisecond) || f.sumOf("workB") < int64(15*time.Millisecond) {
		t.Errorf("second:\n%s", f)
	}
}

func TestOverlappingRootsAccountEachForItself(t *testing.T) {
	rec := startRecorder(t, nil)
	_, first := rec.begin(context.Background(), "first")
	workA(15 * time.Millisecond)
	_, second := rec.begin(context.Background(), "second")
	workA(15 * time.Millisecond)
	first.end()
	workB(15 * time.Millisecond)
	second.end()
	rec.finish()

	if f := rec.exact(first); f.sumOf("workA") < int64(30*time.Millisecond) || f.sumOf("workB") != 0 {
		t.Errorf("first:\n%s", f)
	}
	if f := rec.exact(second); f.sumOf("workA") < int64(15*time.Millisecond) || f.sumOf("workB") < int64(15*time.Millisecond) {
		t.Errorf("second:\n%s", f)
	}
}

// A child may outlive its parent, and its root.
func TestChildrenThatOutlive(t *testing.T) {
	rec := startRecorder(t, nil)
	ctx, root := rec.begin(context.Background(), "root")
	parentCtx, parent := rec.begin(ctx, "parent")
	_, child := rec.begin(parentCtx, "child")
	var late *testSpan
	var outliving sync.WaitGroup
	outliving.Go(func() {
		_, late = rec.begin(parentCtx, "late")
		workB(80 * time.Millisecond)
		late.end()
	})
	workA(20 * time.Millisecond)
	parent.end()
	workB(20 * time.Millisecond)
	child.end()
	root.end()
	outliving.Wait()
	rec.finish()

	if f := rec.exact(parent); f.sumOf("workB")-f.sumOf(wallprofile.Others, "workB") != 0 {
		t.Errorf("the parent has time after its end:\n%s", f)
	}
	if f := rec.exact(child); f.sumOf("workA") < int64(20*time.Millisecond) || f.sumOf("workB") < int64(20*time.Millisecond) {
		t.Errorf("child:\n%s", f)
	}
	f := rec.exact(root)
	if got := f.sumOf("span: root;span: parent;span: child;"); !child.has(got) {
		t.Errorf("the root has %v in the child:\n%s", time.Duration(got), f)
	}
	if got := f.sumOf("span: root;" + wallprofile.Others + ";span: parent;span: late;"); got <= 0 || got > int64(root.outer) {
		t.Errorf("the root has %v in the late child:\n%s", time.Duration(got), f)
	}
	rec.exact(late)
}

// A goroutine that outlives its span is charged to the nearest ancestor that runs, then to nobody.
func TestGoroutineOutlivesItsSpan(t *testing.T) {
	rec := startRecorder(t, nil)
	ctx, root := rec.begin(context.Background(), "root")
	_, child := rec.begin(ctx, "child")
	var worker sync.WaitGroup
	next := make(chan struct{})
	worker.Go(func() {
		workB(500 * time.Millisecond) // longer than the root, however slow the machine
		<-next
		_, other := rec.begin(context.Background(), "other")
		workA(30 * time.Millisecond)
		other.end()
	})
	workA(20 * time.Millisecond)
	child.end()
	workA(20 * time.Millisecond)
	root.end()
	close(next)
	worker.Wait()
	rec.finish()

	f := rec.exact(child)
	if got := f.sumOf(wallprofile.Others, "workB"); got <= 0 || got > int64(child.outer) {
		t.Errorf("the child has %v in workB:\n%s", time.Duration(got), f)
	}
	f = rec.exact(root)
	if got := f.sumOf(wallprofile.Others, "workB"); got <= f.sumOf("span: child;"+wallprofile.Others, "workB") || got > int64(root.outer) {
		t.Errorf("the root has %v in workB:\n%s", time.Duration(got), f)
	}
}

// One worker goroutine serves requests one after the other: no request's stacks are in another's profile.
func TestWorkerServesOneAfterAnother(t *testing.T) {
	rec := startRecorder(t, nil)
	var requests []*testSpan
	for i := range 6 {
		workB(5 * time.Millisecond) // between requests
		_, s := rec.begin(context.Background(), fmt.Sprint("request", i))
		workA(25 * time.Millisecond)
		s.end()
		requests = append(requests, s)
	}
	rec.finish()
	for _, s := range requests {
		f := rec.exact(s)
		if f.sumOf("workB") != 0 || f.sumOf("span: "+s.name+";") != f.total {
			t.Errorf("%s has:\n%s", s.name, f)
		}
	}
}

func TestThousandConcurrentSpans(t *testing.T) {
	rec := manual(t) // between two snapshots, a busy machine may keep the process from running for longer than the ring reaches
	spans := make([]*testSpan, 1000)
	children := make([]*testSpan, len(spans))
	var all sync.WaitGroup
	for i := range spans {
		all.Go(func() {
			ctx, s := rec.begin(context.Background(), fmt.Sprint("request", i))
			spans[i] = s
			ended := make(chan struct{})
			all.Go(func() {
				defer close(ended)
				_, children[i] = rec.begin(ctx, fmt.Sprint("child", i))
				workB(20 * time.Millisecond)
				children[i].end()
			})
			workA(40 * time.Millisecond)
			<-ended // a child that outlives its root by long has no profile
			s.end()
		})
	}
	all.Wait()
	rec.capture()
	s := rec.Stats()
	if s.Captured != uint64(len(spans)) || s.Partial != 0 {
		t.Fatalf("stats: %+v", s)
	}
	flames := rec.flames()
	for i, s := range spans {
		f := flames[s.id.String()]
		if f == nil {
			t.Fatalf("%s has no profile", s.name)
		}
		if !s.has(f.own) {
			t.Errorf("%s: own time is %v, the span took from %v to %v", s.name, time.Duration(f.own), s.inner, s.outer)
		}
		for stack := range f.stacks {
			if !strings.HasPrefix(stack, "span: "+s.name+";") || strings.Contains(stack, "span: child") && !strings.Contains(stack, "span: "+children[i].name+";") {
				t.Fatalf("%s has %s", s.name, stack)
			}
		}
		if child := flames[children[i].id.String()]; child == nil || child.sumOf("workA") != 0 {
			t.Errorf("%s has %v", children[i].name, child)
		}
	}
}

// TestEndsOfTheSpan: a profile sums to what the span itself says it took, whenever its goroutine was kept waiting after a
// mark and before it read the clock.
func TestEndsOfTheSpan(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name              string
		head, whole       time.Duration
		starting, endings time.Duration
	}{
		{"undisturbed", ms, 101 * ms, ms, 0},
		{"waited after the first mark", 300 * ms, 102 * ms, 2 * ms, 0},
		{"waited after the last mark", ms, 401 * ms, ms, 300 * ms},
		{"the end is not known yet", ms, 0, ms, 0},
		{"the clocks differ by a step", 0, 100*ms - 64, 0, 0},
	} {
		s := &span{head: test.head}
		s.whole.Store(int64(test.whole))
		if got := s.ends(100 * ms); got[wallprofile.Starting] != test.starting || got[wallprofile.Ending] != test.endings {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

// TestAccountFitsItsSpan: where the trace's times are too long, the account still sums to what the span took.
func TestAccountFitsItsSpan(t *testing.T) {
	a := account{duration: 1300, covered: 1300, samples: []sample{
		{entry{state: wallprofile.WaitSleep}, false, 900}, {entry{state: wallprofile.WaitSleep}, true, 5000}, {entry{state: wallprofile.Running}, false, 400},
	}}
	a.fit(1000)
	if own := a.samples[0].ns + a.samples[2].ns; own != 1000 || a.samples[1].ns != 5000 || a.samples[2].ns != 307 || a.duration != 1000 || a.covered != 1000 {
		t.Errorf("%+v", a)
	}
}

// Whoever needs the garbage collector first starts its workers, which are nobody's.
func TestWorkersOfTheRuntimeAreNotTheSpans(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "collects")
	// One more P needs one more worker of the collector than there has been so far.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1))
	runtime.GC()
	workA(25 * time.Millisecond)
	s.end()
	rec.finish()
	if f := rec.exact(s); f.others != 0 {
		t.Errorf("the span has time on other goroutines:\n%s", f)
	}
}

func TestEndTwice(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "twice")
	workA(25 * time.Millisecond)
	s.end()
	workB(25 * time.Millisecond)
	var again sync.WaitGroup
	for range 4 {
		again.Go(func() {
			if _, again := s.mark.End("again", time.Time{}); again {
				t.Error("the second End reports a profile")
			}
		})
	}
	again.Wait()
	rec.finish()
	if f := rec.exact(s); f.sumOf("workB") != 0 {
		t.Errorf("after its end:\n%s", f)
	}
	if n := rec.Stats().Captured; n != 1 {
		t.Errorf("captured %d times", n)
	}
}

func TestFastSpansAreNotCaptured(t *testing.T) {
	rec := startRecorder(t, func(o *Options) { o.SlowSpan = time.Minute })
	for range 100 {
		_, s := rec.begin(context.Background(), "fast")
		s.end()
	}
	rec.finish()
	if s := rec.Stats(); s.Slow != 0 || s.Snapshots > 1 || len(rec.records) != 0 {
		t.Errorf("stats: %+v, %d records", s, len(rec.records))
	}
}
