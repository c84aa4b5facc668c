package wall

import (
	"context"
	"testing"
	"time"
)

// A handler that streams for twenty minutes, with a span for each message, takes no more memory the longer it runs. It is
// given up after its time, which is counted under its name. The messages that follow are requests of their own, whose
// profiles do not wait for its end.
func TestStreamOfTwentyMinutes(t *testing.T) {
	rec := manual(t)
	rec.o.ChildMin = 0 // each message is kept until it is known whether its root is slow
	ctx, stream := rec.begin(context.Background(), "GET /events")
	messages := func(n int) {
		for i := range n {
			_, message := rec.begin(ctx, "message")
			message.end()
			if i%500 == 499 {
				rec.capture()
			}
		}
	}
	began := time.Now()
	messages(maxSpans) // as many as a root can have at a time
	full := liveHeap()
	messages(2 * maxSpans)
	if now := liveHeap(); now > full+1<<20 {
		t.Errorf("the live heap grew from %d to %d bytes while the stream went on", full, now)
	}
	for passed := time.Duration(0); passed < 20*time.Minute; passed += time.Second {
		rec.forgetting(began.Add(passed))
	}
	if n := rec.live.registered(); n != 0 {
		t.Errorf("%d roots are in the registry after 20 minutes", n)
	}
	if s := rec.Stats(); s.Unended != 1 || s.NeverEnded[Unended{Span: "GET /events", Root: "GET /events"}] != 1 {
		t.Errorf("the stream is not counted: %+v", s)
	}
	_, slow := rec.begin(ctx, "slow message")
	workA(25 * time.Millisecond)
	slow.end()
	rec.capture()
	if f := rec.exact(slow); f.sumOf("workA") < int64(25*time.Millisecond) || f.sumOf("GET /events") != 0 {
		t.Errorf("the message after 15 minutes:\n%s", f)
	}
	stream.end()
	rec.capture()
	if n := len(rec.conv.tracked) + len(rec.conv.known) + len(rec.conv.goroutines); n != 0 {
		t.Errorf("the converter still holds %d of something", n)
	}
}
