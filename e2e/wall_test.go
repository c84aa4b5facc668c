//go:build long

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	oteltrace "go.opentelemetry.io/otel/trace"

	"spanflame/agent"
	"spanflame/agent/otelsetup"
	"spanflame/internal/query"
	"spanflame/internal/wallprofile"
)

const (
	unknownFrame   = "[not recorded]"
	elsewhereFrame = "[elsewhere: span ended on another goroutine]"
)

// inProcess is an agent in the test's own process: the spans are the test's, their wall-clock profiles and
// traces are on the real servers. There can be one at a time, so its tests do not run in parallel.
type inProcess struct {
	oteltrace.Tracer
	agent *otelsetup.Agent
	log   string // file
}

// startAgent starts an agent that is allowed any CPU time, since its budget is not what these tests are about.
func startAgent(t *testing.T, service string) *inProcess { return startAgentIn(t, service, "auto") }

// startAgentIn starts it in one of the modes of Config.WallMode.
func startAgentIn(t *testing.T, service, mode string) *inProcess {
	t.Helper()
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "500")
	t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "50000")
	p := &inProcess{log: filepath.Join(t.TempDir(), "log")}
	stdout, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	p.agent, err = otelsetup.Start(t.Context(), otelsetup.Config{
		Agent: agent.Config{
			ServiceName:      service,
			PyroscopeAddress: w.stack.Pyroscope().URL,
			AdminAddress:     "127.0.0.1:0",
			SpoolDir:         t.TempDir(),
			Window:           time.Minute, // between two windows there are no CPU samples for a moment
			SlowSpan:         100 * time.Millisecond,
			WallCPUShare:     1,
			WallMode:         mode,
		},
		Traces: otelsetup.Signal{Endpoint: "http://" + w.stack.Tempo().OTLPHTTP + "/v1/traces"},
		Stdout: stdout,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(p.agent.Shutdown(ctx), stdout.Close()); err != nil {
			t.Error(err)
		}
	})
	p.Tracer = otel.Tracer("e2e")
	return p
}

// said returns the log's line about the span's time.
func (p *inProcess) said(t *testing.T, spanID string) (diagnosis string) {
	t.Helper()
	f, err := os.Open(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var line struct {
			Msg    string `json:"msg"`
			SpanID string `json:"span_id"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("%v: %s", err, lines.Bytes())
		}
		if line.SpanID == spanID {
			diagnosis = line.Msg
		}
	}
	return diagnosis
}

// What Grafana asks for, around a span: the link for more than the graph inside the span's details.
const linkMargin, detailsMargin = time.Minute, 30 * time.Second

// wallGraph is the flame graph of a slow span by its own span id, as Grafana asks for it.
func wallGraph(t *testing.T, s query.Span, margin time.Duration) *query.Frame {
	t.Helper()
	if id := s.Attributes[wallprofile.ProfileIDAttribute]; id != s.ID {
		t.Fatalf("span %q of %v has %s %q, want its own id %s", s.Name, s.Duration(), wallprofile.ProfileIDAttribute, id, s.ID)
	}
	var graph *query.Frame
	eventually(t, fmt.Sprintf("the wall-clock profile of span %s (%s of %v)", s.ID, s.Name, s.Duration()), func() (err error) {
		graph, err = w.pyroscope.SpanFlameGraph(t.Context(), query.Wall, query.Selector{"service_name": s.Service}, []string{s.ID},
			s.Start.Add(-margin), s.End.Add(margin))
		if err == nil && graph.Total == 0 {
			err = errors.New("it is empty")
		}
		return err
	})
	return graph
}

// othersGraph is the flame graph of other goroutines that worked for a span. Its Total is 0 if there were none.
func othersGraph(t *testing.T, s query.Span, margin time.Duration) *query.Frame {
	t.Helper()
	graph, err := w.pyroscope.SpanFlameGraph(t.Context(), query.WallOthers, query.Selector{"service_name": s.Service}, []string{s.ID},
		s.Start.Add(-margin), s.End.Add(margin))
	if err != nil {
		t.Fatal(err)
	}
	return graph
}

// own returns the recorded time of the span's own goroutine.
func own(graph *query.Frame) time.Duration {
	return time.Duration(graph.Total - graph.Find(unknownFrame) - graph.Find(elsewhereFrame))
}

// exact reports whether a profile accounts for a span's duration within one hundredth.
func exact(graph *query.Frame, s query.Span) bool {
	return (own(graph) - s.Duration()).Abs() <= s.Duration()/100
}

// largest is the stack with the most time of its own, on the span's own goroutine, whoever that waited for there.
func largest(graph *query.Frame) (at []string) {
	times := make(map[string]int64)
	most := int64(0)
	graph.Walk(func(stack []string, f *query.Frame) {
		if cause := slices.IndexFunc(stack, wallprofile.IsCause); cause >= 0 {
			stack = stack[:cause]
		}
		path := strings.Join(stack, ";")
		if times[path] += f.Self; times[path] > most {
			most, at = times[path], stack
		}
	})
	return at
}

// render is a flame graph as lines of text, for messages.
func render(graph *query.Frame) string {
	var b strings.Builder
	graph.Walk(func(stack []string, f *query.Frame) {
		fmt.Fprintf(&b, "%12v %s%s\n", time.Duration(f.Total), strings.Repeat("  ", len(stack)-1), f.Name)
	})
	return b.String()
}

// spansOf are the spans of a trace, once it has this many.
func spansOf(t *testing.T, id oteltrace.TraceID, count int) []query.Span {
	t.Helper()
	var spans []query.Span
	eventually(t, "trace "+id.String(), func() (err error) {
		if spans, err = w.tempo.Trace(t.Context(), id.String()); err == nil && len(spans) != count {
			err = fmt.Errorf("it has %d spans, want %d: %s", len(spans), count, names(spans))
		}
		return err
	})
	return spans
}

// TestWallUnderLoad: of 500 requests with a child span each, next to quick requests that keep the CPUs busy, every span has
// its profile, and 99 of 100 profiles account for their span within one hundredth.
func TestWallUnderLoad(t *testing.T) {
	p := startAgent(t, "wall-load")
	stop := make(chan struct{})
	var noise sync.WaitGroup
	for range 4 {
		noise.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, quick := p.Start(context.Background(), "quick")
				_, part := p.Start(ctx, "part")
				burn(200 * time.Microsecond)
				part.End()
				quick.End()
				time.Sleep(time.Millisecond)
			}
		})
	}
	const requests, atOnce = 500, 40
	var ids [requests]oteltrace.TraceID
	var mu sync.Mutex // contended
	var all sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range ids {
		slots <- struct{}{}
		all.Go(func() {
			ctx, root := p.Start(context.Background(), "GET /load")
			ids[i] = root.SpanContext().TraceID()
			_, child := p.Start(ctx, "part")
			burn(time.Millisecond)
			mu.Lock()
			time.Sleep(100 * time.Microsecond)
			mu.Unlock()
			time.Sleep(20 * time.Millisecond)
			child.End()
			var others sync.WaitGroup
			for range 2 {
				others.Go(func() { sleeper(30 * time.Millisecond) })
			}
			others.Wait()
			sleeper(60 * time.Millisecond)
			root.End()
			<-slots
		})
	}
	all.Wait()
	close(stop)
	noise.Wait()

	// Where the operating system keeps a thread from running while it writes an event, the trace has all that depends
	// on it at a later time, and goroutines other than the span's own, whose time is not known, have less.
	spans, off, short := 0, 0, 0
	for _, id := range ids {
		for _, s := range spansOf(t, id, 2) {
			spans++
			graph := wallGraph(t, s, detailsMargin)
			if !exact(graph, s) {
				off++
				t.Logf("%s took %v, its profile has %v", s.Name, s.Duration(), own(graph))
			}
			if others := othersGraph(t, s, detailsMargin); s.Name == "GET /load" && others.Total < int64(2*30*time.Millisecond) {
				short++
				t.Logf("the goroutines that a request started have %v of it, not 60ms:\n%s", time.Duration(others.Total), render(others))
			}
		}
	}
	t.Logf("%d of %d profiles are within 1 %% of their span; in %d of %d the other goroutines have less time than they slept", spans-off, spans, short, requests)
	if short > requests/100 {
		t.Errorf("in %d of %d profiles the goroutines that a request started have less time than they slept, want at most one in a hundred", short, requests)
	}
	if spans != 2*requests || off > spans/100 {
		t.Errorf("%d of %d profiles are more than 1 %% off, want at most one in a hundred", off, spans)
	}
}

// spell calls f below frames that spell the lowest bits of n, so that a stack identifies its request.
//
//go:noinline
func spell(n uint, bits int, f func()) {
	switch {
	case bits == 0:
		f()
	case n>>(bits-1)&1 == 1:
		one(n, bits-1, f)
	default:
		zero(n, bits-1, f)
	}
}

//go:noinline
func one(n uint, bits int, f func()) { spell(n, bits, f) }

//go:noinline
func zero(n uint, bits int, f func()) { spell(n, bits, f) }

// spelled returns the number that the frames of a stack encode, outermost first, one bit each.
func spelled(stack []string) (n uint, bits int) {
	for _, f := range stack {
		switch f {
		case "spanflame/e2e.one":
			n, bits = n<<1|1, bits+1
		case "spanflame/e2e.zero":
			n, bits = n<<1, bits+1
		}
	}
	return n, bits
}

// TestWallKeepsRequestsApart: a thousand requests at once, all in the same code, on the same lock and
// through the same worker goroutines; each profile has its own request's stacks and no others.
func TestWallKeepsRequestsApart(t *testing.T) {
	p := startAgent(t, "wall-apart")
	const requests, bits = 1000, 10
	type job struct {
		ctx  context.Context
		n    uint
		done chan<- struct{}
	}
	jobs := make(chan job)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for j := range jobs {
				spell(j.n, bits, func() {
					_, s := p.Start(j.ctx, "job")
					time.Sleep(500 * time.Microsecond)
					s.End()
				})
				close(j.done)
			}
		})
	}
	var ids [requests]oteltrace.TraceID
	var mu sync.Mutex
	var all, ready sync.WaitGroup
	ready.Add(requests)
	for i := range ids {
		all.Go(func() {
			ctx, root := p.Start(context.Background(), "GET /item")
			ids[i] = root.SpanContext().TraceID()
			spell(uint(i), bits, func() {
				ready.Done()
				ready.Wait()
				_, child := p.Start(ctx, "part")
				mu.Lock()
				burn(20 * time.Microsecond)
				mu.Unlock()
				sleeper(100 * time.Millisecond)
				child.End()
				done := make(chan struct{})
				jobs <- job{ctx, uint(i), done}
				<-done
				var helper sync.WaitGroup
				helper.Go(func() { spell(uint(i), bits, func() { sleeper(10 * time.Millisecond) }) })
				helper.Wait()
			})
			root.End()
		})
	}
	all.Wait()
	close(jobs)
	workers.Wait()

	spans, off := 0, 0
	for i, id := range ids {
		for _, s := range spansOf(t, id, 3) {
			if s.Name == "job" {
				continue // too short for a profile of its own, unless the machine is slow
			}
			graph := wallGraph(t, s, detailsMargin)
			spans++
			if !exact(graph, s) {
				off++
				t.Logf("%s took %v, its profile has %v", s.Name, s.Duration(), own(graph))
			}
			full := false
			graph.Walk(func(stack []string, f *query.Frame) {
				for _, part := range ofRequest(stack) {
					n, have := spelled(part)
					if have > bits || n != uint(i)>>(bits-have) {
						t.Fatalf("the profile of request %d has a stack of another one, which spells %0*b: %s", i, have, n, strings.Join(stack, ";"))
					}
					full = full || have == bits && f.Self > 0
				}
			})
			if !full {
				t.Fatalf("the profile of request %d has no stack that spells it:\n%s", i, render(graph))
			}
		}
	}
	t.Logf("%d of %d profiles are within 1 %% of their span", spans-off, spans)
	if spans != 2*requests || off > spans/100 {
		t.Errorf("%d of %d profiles are more than 1 %% off, want at most one in a hundred of %d", off, spans, 2*requests)
	}
}

// ofRequest returns the parts of a stack that are of the request itself: its own, and those of goroutines that it waited for
// and that worked for it.
func ofRequest(stack []string) (parts [][]string) {
	for own := true; ; {
		cause := slices.IndexFunc(stack, wallprofile.IsCause)
		if own && cause < 0 {
			return append(parts, stack)
		}
		if own {
			parts = append(parts, stack[:cause])
		}
		if cause < 0 {
			return parts
		}
		own, stack = strings.HasSuffix(stack[cause], ": the same request]"), stack[cause+1:]
	}
}

//go:noinline
func first(d time.Duration) { time.Sleep(d) }

//go:noinline
func second(d time.Duration) { time.Sleep(d) }

// TestWallOfWorker: two requests in turn on one worker goroutine that outlives both. Each profile has its own.
func TestWallOfWorker(t *testing.T) {
	p := startAgent(t, "wall-worker")
	jobs, done := make(chan func()), make(chan struct{})
	var worker sync.WaitGroup
	worker.Go(func() {
		for job := range jobs {
			job()
			done <- struct{}{}
		}
	})
	var ids []oteltrace.TraceID
	var foreign []string
	for range 3 {
		for _, work := range []struct {
			name, foreign string
			do            func(time.Duration)
		}{{"first", "second", first}, {"second", "first", second}} {
			jobs <- func() {
				ctx, root := p.Start(context.Background(), work.name)
				defer root.End()
				_, child := p.Start(ctx, work.name+" part")
				work.do(20 * time.Millisecond)
				child.End()
				work.do(100 * time.Millisecond)
				ids = append(ids, root.SpanContext().TraceID())
			}
			<-done
			foreign = append(foreign, work.foreign)
		}
	}
	close(jobs)
	worker.Wait()
	for i, id := range ids {
		for _, s := range spansOf(t, id, 2) {
			graph := wallGraph(t, s, detailsMargin)
			if !exact(graph, s) {
				t.Errorf("%s took %v, its profile has %v", s.Name, s.Duration(), own(graph))
			}
			if graph.Find("e2e."+foreign[i]) != 0 || graph.Find("span: "+foreign[i]) != 0 || othersGraph(t, s, detailsMargin).Total != 0 {
				t.Errorf("the profile of %s has time of another request:\n%s", s.Name, render(graph))
			}
		}
	}
}

// TestWallIsThereSoon measures the time from the end of a slow span to its flame graph. It asserts only that
// it comes, since machines differ; the median is in the log.
func TestWallIsThereSoon(t *testing.T) {
	p := startAgent(t, "wall-soon")
	var took []time.Duration
	for range 25 {
		_, s := p.Start(t.Context(), "GET /slow")
		begun := time.Now()
		sleeper(120 * time.Millisecond)
		s.End()
		ended := time.Now()
		for time.Since(ended) < patience {
			graph, err := w.pyroscope.SpanFlameGraph(t.Context(), query.Wall, query.Selector{"service_name": "wall-soon"},
				[]string{s.SpanContext().SpanID().String()}, begun.Add(-time.Minute), ended.Add(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if own(graph) >= 120*time.Millisecond {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		took = append(took, time.Since(ended))
	}
	slices.Sort(took)
	t.Logf("from a span's end to its flame graph, %d spans: median %v, slowest %v", len(took), took[len(took)/2], took[len(took)-1])
	if took[len(took)-1] >= patience {
		t.Errorf("a flame graph was not there after %v", patience)
	}
}
