package wall

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/exp/trace"
)

// logged returns the messages of a category in an execution trace, which must be readable to its end.
func logged(t *testing.T, from io.Reader, category string) (messages []string) {
	t.Helper()
	events, err := trace.NewReader(from)
	if err != nil {
		t.Fatal(err)
	}
	for {
		e, err := events.ReadEvent()
		if errors.Is(err, io.EOF) {
			return messages
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind() == trace.EventLog && e.Log().Category == category {
			messages = append(messages, e.Log().Message)
		}
	}
}

// TestWriteTo: the ring can be read again and again while slow spans are captured, and by several at once; the spans lose
// nothing by it.
func TestWriteTo(t *testing.T) {
	rec := startRecorder(t, nil)
	_, s := rec.begin(context.Background(), "slow")
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for range 5 {
				_, newest := rec.begin(context.Background(), "newest") // an older one may be forgotten
				var out bytes.Buffer
				if n, err := rec.WriteTo(&out); err != nil || n != int64(out.Len()) {
					t.Errorf("%d bytes are written, %d counted: %v", out.Len(), n, err)
				}
				if mark := newest.mark.(*span).mark; !slices.Contains(logged(t, &out, beginCategory), mark) {
					t.Errorf("the trace has no mark %q of a span", mark)
				}
				newest.end()
			}
		})
	}
	workA(50 * time.Millisecond)
	readers.Wait()
	s.end()
	rec.finish()
	rec.exact(s)
	if _, err := rec.WriteTo(io.Discard); !errors.Is(err, ErrNotRecording) {
		t.Errorf("after Stop: %v", err)
	}
}

// TestSettle: slow spans that have ended are emitted when it returns, however long others would be waited for.
func TestSettle(t *testing.T) {
	rec := startRecorder(t, nil)
	for i := range 3 {
		_, s := rec.begin(context.Background(), "slow")
		workA(25 * time.Millisecond)
		s.end()
		if err := rec.Settle(context.Background()); err != nil {
			t.Fatal(err)
		}
		rec.mu.Lock()
		if len(rec.diagnoses) != i+1 || len(rec.records) < i+1 {
			t.Errorf("%d diagnoses and %d records after %d spans", len(rec.diagnoses), len(rec.records), i+1)
		}
		rec.mu.Unlock()
		rec.exact(s)
	}
	rec.finish()
	if err := rec.Settle(context.Background()); err != nil {
		t.Errorf("after Stop: %v", err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := manual(t).Settle(ended); !errors.Is(err, context.Canceled) { // nobody serves it
		t.Errorf("with a context that is done: %v", err)
	}
}

// TestWriteToASlowWriter: who reads slowly, or not at all, delays no capture.
func TestWriteToASlowWriter(t *testing.T) {
	rec := startRecorder(t, nil)
	from, to := io.Pipe()
	written := make(chan error)
	go func() {
		_, err := rec.WriteTo(to)
		written <- err
	}()
	if _, err := io.ReadFull(from, make([]byte, headerSize)); err != nil {
		t.Fatal(err)
	}
	_, s := rec.begin(context.Background(), "slow")
	workA(25 * time.Millisecond)
	s.end()
	rec.finish()
	rec.exact(s)
	gone := errors.New("gone")
	from.CloseWithError(gone)
	if err := <-written; !errors.Is(err, gone) {
		t.Errorf("the writer's error is lost: %v", err)
	}
}

// TestWriteToWhileArmed: what does not record has nothing to write, and says so.
func TestWriteToWhileArmed(t *testing.T) {
	rec := armed(t)
	if _, err := rec.WriteTo(io.Discard); !errors.Is(err, ErrNotRecording) {
		t.Errorf("while nothing runs: %v", err)
	}
	_, s := rec.begin(context.Background(), "slow")
	rec.after(rec.armAfter())
	var out bytes.Buffer
	if _, err := rec.WriteTo(&out); err != nil || out.Len() == 0 {
		t.Errorf("while a request runs: %d bytes, %v", out.Len(), err)
	}
	s.end()
}

// TestWithGODEBUG: a service may have any of the runtime's settings that change what a trace holds.
func TestWithGODEBUG(t *testing.T) {
	for _, setting := range []string{"traceallocfree=1", "traceadvanceperiod=100000000", "tracefpunwindoff=1", "asyncpreemptoff=1", "tracebackancestors=5"} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			run := exec.Command(os.Args[0], "-test.run=^(TestWriteTo|TestBesideAnExecutionTrace)$", "-test.v")
			run.Env = append(os.Environ(), "GODEBUG="+setting)
			if out, err := run.CombinedOutput(); err != nil || bytes.Count(out, []byte("--- PASS")) != 2 {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
