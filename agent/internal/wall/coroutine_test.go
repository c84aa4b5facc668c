package wall

import (
	"context"
	"iter"
	"sync"
	"testing"
	"time"

	"spanflame/internal/wallprofile"
)

// A coroutine belongs to the line of descent of the goroutine that pulls from it. The cases are nested coroutines, one from
// which two goroutines pull in turn, an exhausted one, and spans that begin and end in a coroutine.
func TestCoroutines(t *testing.T) {
	const ms = time.Millisecond
	rec := startRecorder(t, nil)
	ctx, root := rec.begin(context.Background(), "root")
	var inside *testSpan
	numbers := func(yield func(int) bool) {
		_, inside = rec.begin(ctx, "inside")
		workA(15 * ms)
		inside.end()
		for i := range 3 {
			if !yield(i) {
				return
			}
			workB(10 * ms)
		}
	}
	next, stop := iter.Pull(func(yield func(int) bool) {
		inner, stop := iter.Pull(numbers)
		defer stop()
		for {
			v, ok := inner()
			if !ok || !yield(v) {
				return
			}
		}
	})
	next()
	var other *testSpan
	var puller sync.WaitGroup
	puller.Go(func() {
		_, other = rec.begin(context.Background(), "other")
		next()
		workA(25 * ms)
		other.end()
	})
	puller.Wait()
	for {
		if _, ok := next(); !ok { // exhausted
			break
		}
	}
	stop()
	root.end()
	_, after := rec.begin(context.Background(), "after")
	workA(25 * ms)
	after.end()
	rec.finish()

	f := rec.exact(root)
	if in := f.sumOf("span: root;span: inside;", "workA"); in < int64(15*ms) {
		t.Errorf("the span in the coroutine has %v in its root:\n%s", time.Duration(in), f)
	}
	if own := f.sumOf("workB") - f.sumOf(wallprofile.Others, "workB"); own < int64(10*ms) {
		t.Errorf("the root has %v of its coroutine:\n%s", time.Duration(own), f)
	}
	if waited := f.sumOf(wallprofile.WaitOther.Leaf()); waited > int64(ms) {
		t.Errorf("the root waits %v for a coroutine that runs in its place:\n%s", time.Duration(waited), f)
	}
	if f := rec.exact(inside); f.sumOf("workA") < int64(15*ms) {
		t.Errorf("the span in the coroutine:\n%s", f)
	}
	if f := rec.exact(other); f.sumOf("workB") < int64(10*ms) {
		t.Errorf("the second goroutine's own span has not what it pulled:\n%s", f)
	}
	if f := rec.exact(after); f.sumOf("workB") != 0 {
		t.Errorf("the next span has time of the coroutine:\n%s", f)
	}
	if n := len(rec.conv.goroutines); n != 0 {
		t.Errorf("the converter still follows %d goroutines", n)
	}
}
