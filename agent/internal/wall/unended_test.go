package wall

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"testing"
	"time"
)

// registered returns the number of roots in the registry.
func (l *live) registered() (n int) {
	l.older(time.Now(), 0, func(*root) { n++ })
	return n
}

// collected runs the garbage collector until the recorder has counted the spans that it found.
func (rec *recording) collected(want map[Unended]uint64) {
	rec.t.Helper()
	for n := 0; !maps.Equal(rec.Stats().NeverEnded, want); n++ {
		if n == 1000 {
			rec.t.Fatalf("never ended: %v, want %v", rec.Stats().NeverEnded, want)
		}
		runtime.GC()
		time.Sleep(time.Millisecond) // the runtime counts on a goroutine of its own
	}
}

// Children that are never ended cost nothing once their root has ended: a fast root leaves the registry at once, and the
// recorder has nothing to follow. They are counted by name, and those that end late are not.
func TestLeakedChildrenOfFastRoots(t *testing.T) {
	rec := manual(t)
	func() {
		slow := rec.o.SlowSpan
		rec.o.SlowSpan = time.Hour // on a busy machine any of them may take long
		defer func() { rec.o.SlowSpan = slow }()
		for range 300 {
			ctx, fast := rec.begin(context.Background(), "GET /fast")
			rec.begin(ctx, "leaked")
			_, late := rec.begin(ctx, "late")
			fast.end()
			late.end()
		}
	}()
	if n := rec.live.registered(); n != 0 {
		t.Errorf("%d fast roots are in the registry after they ended", n)
	}
	if rec.forgetting(time.Now().Add(time.Second)) {
		t.Error("a capture is due though no slow span runs")
	}
	_, slow := rec.begin(context.Background(), "GET /slow")
	workA(25 * time.Millisecond)
	slow.end()
	rec.capture()
	rec.exact(slow)
	if s := rec.Stats(); s.Slow != 1 || s.Captured != 1 || s.Unended != 0 {
		t.Errorf("stats: %+v", s)
	}
	rec.collected(map[Unended]uint64{{Span: "leaked", Root: "GET /fast"}: 300})
}

// A slow root waits for its children, which may get profiles of their own, but not for long.
func TestLeakedChildOfASlowRoot(t *testing.T) {
	rec := manual(t)
	func() {
		ctx, slow := rec.begin(context.Background(), "GET /slow")
		rec.begin(ctx, "leaked")
		_, late := rec.begin(ctx, "late")
		workA(25 * time.Millisecond)
		slow.end()
		rec.capture()
		rec.exact(slow)
		if n := rec.live.registered(); n != 1 {
			t.Errorf("%d roots are in the registry, want the one whose children run", n)
		}
		workA(25 * time.Millisecond)
		late.end()
		rec.forgetting(time.Now().Add(grace + time.Second))
	}()
	if n := rec.live.registered(); n != 0 {
		t.Errorf("%d roots are in the registry after the grace period", n)
	}
	rec.capture()
	if n := len(rec.conv.tracked) + len(rec.conv.known) + len(rec.conv.goroutines); n != 0 {
		t.Errorf("the converter still holds %d of something", n)
	}
	rec.collected(map[Unended]uint64{{Span: "leaked", Root: "GET /slow"}: 1})
}

func TestUnendedNamesAreBounded(t *testing.T) {
	var u unended
	for i := range 3 * maxUnendedNames {
		u.count(Unended{Span: fmt.Sprint(i), Root: "GET /"})
	}
	got := u.counts()
	if len(got) != maxUnendedNames+1 || got[Unended{OtherNames, OtherNames}] != 2*maxUnendedNames {
		t.Errorf("%d names, of these %d of others", len(got), got[Unended{OtherNames, OtherNames}])
	}
}
