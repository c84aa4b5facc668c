package ending

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestDo has two callers with different deadlines, and one that comes after the end.
func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, began, failed := New(), time.Now(), errors.New("2 profiles are left")
		var calls atomic.Int32
		end := func() error {
			calls.Add(1)
			time.Sleep(time.Minute)
			return failed
		}
		impatient := make(chan error)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			impatient <- o.Do(ctx, time.Second, "agent: shutdown", end)
		}()
		go func() {
			if err := o.Do(t.Context(), 0, "agent: shutdown", end); err != failed || time.Since(began) != time.Minute {
				t.Errorf("after %v: %v, want %v after a minute", time.Since(began), err, failed)
			}
		}()
		err := <-impatient
		if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "agent: shutdown: ") || time.Since(began) != 2*time.Second {
			t.Errorf("after %v: %v, want the deadline's error a second after it", time.Since(began), err)
		}
		if err := o.Wait(); err != failed {
			t.Errorf("Wait: %v, want %v", err, failed)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 { // a select among several that are ready takes any
			if err := o.Do(ended, 0, "agent: shutdown", end); err != failed || calls.Load() != 1 {
				t.Fatalf("after the end: %v, %d calls; want %v, 1", err, calls.Load(), failed)
			}
		}
	})
}
