package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"spanflame/internal/query"
	"spanflame/workload/load"
)

// found is where the results of a run lie.
type found struct {
	tempo     *query.Tempo
	pyroscope *query.Pyroscope

	begun    time.Time // the load
	stopping time.Time // the services were told to end
	ended    time.Time // they had ended
}

// show prints the load's figures, the slowest trace with its flame graph, and the leak.
func show(ctx context.Context, w io.Writer, f found, report load.Report) error {
	if err := report.WriteText(w); err != nil {
		return err
	}
	trace, err := f.slowest(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "\nThe slowest trace: %s %s took %s\n", trace.RootService, trace.RootName, trace.Duration)
	fmt.Fprintf(w, "  trace %s\n\n", trace.TraceID)
	var root query.Span
	spans, err := eventually(ctx, "the root span of trace "+trace.TraceID+" in Tempo", func() ([]query.Span, bool, error) {
		spans, err := f.tempo.Trace(ctx, trace.TraceID)
		i := slices.IndexFunc(spans, func(s query.Span) bool { return s.ParentID == "" })
		if i >= 0 {
			root = spans[i]
		}
		return spans, i >= 0, err
	})
	if err != nil {
		return err
	}
	printSpans(w, spans)
	if root.Attributes[query.ProfileIDAttribute] == "" {
		return fmt.Errorf("the root span of trace %s does not have the attribute %s", trace.TraceID, query.ProfileIDAttribute)
	}
	if err := f.printFlameGraph(ctx, w, root); err != nil {
		return err
	}
	return f.printLeak(ctx, w)
}

// slowest is the slowest trace of the run, once Tempo can find it. A search returns some of the traces that
// match, not the slowest: it is for few.
func (f found) slowest(ctx context.Context) (query.TraceSummary, error) {
	return eventually(ctx, "a trace of the storefront in Tempo", func() (query.TraceSummary, bool, error) {
		traces, err := f.tempo.Search(ctx, `{ resource.service.name = "storefront" && duration > 200ms }`, f.begun, f.ended, 1000)
		if err != nil || len(traces) == 0 {
			return query.TraceSummary{}, false, err
		}
		return traces[0], true, nil
	})
}

func printSpans(w io.Writer, spans []query.Span) {
	known := map[string]bool{}
	for _, s := range spans {
		known[s.ID] = true
	}
	var print func(parent, indent string)
	print = func(parent, indent string) {
		for _, s := range spans {
			if s.ParentID == parent || parent == "" && !known[s.ParentID] {
				fmt.Fprintf(w, "  %10s  %s%s · %s\n", s.Duration().Round(10*time.Microsecond), indent, s.Service, s.Name)
				print(s.ID, indent+"  ")
			}
		}
	}
	print("", "")
}

// printFlameGraph prints the flame graph of span: what it was doing while it took so long.
func (f found) printFlameGraph(ctx context.Context, w io.Writer, span query.Span) error {
	id := span.Attributes[query.ProfileIDAttribute]
	selector := query.Selector{"service_name": span.Service}
	// The range that Grafana asks for when a user follows the link of a span.
	start, end := span.Start.Add(-time.Minute), span.End.Add(time.Minute)
	graph, err := eventually(ctx, "the flame graph of span "+id+" in Pyroscope", func() (*query.Frame, bool, error) {
		g, err := f.pyroscope.SpanFlameGraph(ctx, query.Wall, selector, []string{id}, start, end)
		return g, err == nil && g.Total > 0, err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "\nIts flame graph: %s of %s, where %s went\n", span.Service, span.Name, time.Duration(graph.Total).Round(10*time.Microsecond))
	fmt.Fprintf(w, "  Pyroscope: %s %s, span %s\n\n", query.Wall, selector, id)
	printFrame(w, graph, graph.Total, 0)
	return nil
}

// shown is the share of the whole below which a frame is not printed.
const shown = 0.02

// printFrame prints what lies under f, each frame with its share. What only passes a call on, to one other,
// is left out, unless it is the shop's own.
func printFrame(w io.Writer, f *query.Frame, whole int64, depth int) {
	slices.SortFunc(f.Children, func(a, b *query.Frame) int { return cmp.Compare(b.Total, a.Total) })
	for _, c := range f.Children {
		share := float64(c.Total) / float64(whole)
		if share < shown {
			continue
		}
		below := depth
		if !passesOn(c, whole) {
			fmt.Fprintf(w, "  %5.1f %%  %s%s\n", 100*share, strings.Repeat("  ", depth), c.Name)
			below++
		}
		printFrame(w, c, whole, below)
	}
}

// passesOn tells whether f is a function of a library whose time is all in one function that it called.
func passesOn(f *query.Frame, whole int64) bool {
	if strings.HasPrefix(f.Name, "span: ") || strings.HasPrefix(f.Name, "[") || strings.HasPrefix(f.Name, "spanflame/workload.") {
		return false
	}
	calls := 0
	for _, c := range f.Children {
		if float64(c.Total) >= shown*float64(whole) {
			calls++
		}
	}
	return calls == 1 && float64(f.Self) < shown*float64(whole)
}

// printLeak prints the functions that hold the most memory at the end. The range holds one profile, the last
// window's: over several, Pyroscope adds up what is in use.
func (f found) printLeak(ctx context.Context, w io.Writer) error {
	type holder struct {
		name  string
		bytes int64
	}
	var holders []holder
	_, err := eventually(ctx, "the storefront's memory profile in Pyroscope", func() (struct{}, bool, error) {
		graph, err := f.pyroscope.FlameGraph(ctx, query.InuseSpace, query.Selector{"service_name": "storefront"}, f.stopping, f.ended)
		if err != nil || graph.Total == 0 {
			return struct{}{}, false, err
		}
		self := map[string]int64{}
		graph.Walk(func(_ []string, g *query.Frame) { self[g.Name] += g.Self })
		holders = holders[:0]
		for name, bytes := range self {
			holders = append(holders, holder{name, bytes})
		}
		return struct{}{}, true, nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(holders, func(a, b holder) int { return cmp.Compare(b.bytes, a.bytes) })
	fmt.Fprintf(w, "\nThe storefront's memory at the end, by who holds it\n\n")
	for _, h := range holders[:min(3, len(holders))] {
		fmt.Fprintf(w, "  %8.1f MiB  %s\n", float64(h.bytes)/(1<<20), h.name)
	}
	return nil
}

// eventually asks until there is an answer, for as long as what was sent last may take to be readable.
func eventually[T any](ctx context.Context, what string, ask func() (T, bool, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, arrival, errors.New("not there after "+arrival.String()))
	defer cancel()
	for {
		answer, ok, err := ask()
		if ok || err != nil {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return answer, fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}
