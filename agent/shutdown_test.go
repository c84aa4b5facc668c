package agent

import (
	"bytes"
	"compress/gzip"
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"spanflame/agent/internal/deliver"
	"spanflame/agent/internal/ending"
	"spanflame/agent/internal/push"
	"spanflame/agent/internal/spool"
	"spanflame/internal/record"
)

// aRecord returns the i-th record of a test. Its profile is empty.
func aRecord(t *testing.T, i int) record.Record {
	t.Helper()
	var b bytes.Buffer
	if err := gzip.NewWriter(&b).Close(); err != nil {
		t.Fatal(err)
	}
	start := time.Now().Truncate(time.Second).Add(time.Duration(i) * time.Millisecond)
	return record.Record{Meta: record.Meta{Service: "svc", Type: record.CPU, Start: start, End: start.Add(time.Second)}, Profile: b.Bytes()}
}

// pushes is a client without a network, so that a test can have a time of its own.
type pushes func(context.Context) push.Result

func (f pushes) Push(ctx context.Context, _ record.Record) push.Result { return f(ctx) }
func (f pushes) Close()                                                {}

func TestShutdownKeepsItsDeadline(t *testing.T) {
	unreachable := push.Result{Outcome: push.Transient, Reason: "connection refused"}
	for name, client := range map[string]pushes{
		"never answered": func(ctx context.Context) push.Result {
			<-ctx.Done()
			return unreachable
		},
		"cannot be cancelled": func(context.Context) push.Result {
			time.Sleep(time.Minute)
			return unreachable
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				queue, err := spool.Open(spool.Options{Service: "svc", Dir: dir})
				if err != nil {
					t.Fatal(err)
				}
				d, err := deliver.Start(deliver.Options{Spool: queue, Client: client, Meter: noop.Meter{}, Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				const n = 20 // more than are sent at once
				for i := range n {
					d.Put(aRecord(t, i))
				}
				a := &Agent{deliver: d, restore: func() {}, stopped: ending.New(), finished: ending.New()}
				const patience, late = 5 * time.Second, 200 * time.Millisecond
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				begun := time.Now()
				err = a.Shutdown(ctx)
				if took := time.Since(begun); took < patience || took > patience+late {
					t.Errorf("Shutdown took %v, want %v and at most %v more", took, patience, late)
				}
				if err == nil {
					t.Error("the error does not say what is left")
				}
				_ = a.finished.Wait()
				next, err := spool.Open(spool.Options{Service: "svc", Dir: dir})
				if err != nil {
					t.Fatal(err)
				}
				if left := next.Stats().Items; left != n {
					t.Errorf("the next start finds %d profiles, want %d", left, n)
				}
				if err := next.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
