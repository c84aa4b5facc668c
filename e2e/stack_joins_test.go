//go:build stack || compose

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"spanflame/internal/query"
	"spanflame/internal/wallprofile"
)

// pipeline holds the addresses of the servers of a whole pipeline, and the workload that sends through it.
type pipeline struct {
	storefront string // URL
	grafana    *grafana
	tempo      *query.Tempo
	pyroscope  *query.Pyroscope

	unbudgeted bool // no budget for wall-clock profiles, so that they are complete
}

// newPipeline returns a pipeline for the URLs of the servers by the uid of their data source.
func newPipeline(t *testing.T, storefront string, urls map[string]string) *pipeline {
	t.Helper()
	g := newGrafana(t, urls)
	return &pipeline{storefront: storefront, grafana: g, tempo: g.tempo, pyroscope: g.pyroscope}
}

// stop ends what the test has started, also after the test's own context has ended.
func stop(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := f(ctx); err != nil {
		t.Error(err)
	}
}

// slow sends a request that waits, and returns its server span once it is in Tempo.
func (p *pipeline) slow(t *testing.T) (traceID string, root query.Span) {
	t.Helper()
	traceID = get(t, p.storefront+"/load/sleep?ms=400")
	return traceID, p.span(t, traceID, "GET /load/sleep")
}

// span returns a span of a trace once Tempo has it.
func (p *pipeline) span(t *testing.T, traceID, name string) (span query.Span) {
	t.Helper()
	eventually(t, "trace "+traceID, func() error {
		spans, err := p.tempo.Trace(t.Context(), traceID)
		if err != nil {
			return err
		}
		var ok bool
		if span, ok = find(spans, name); !ok {
			return fmt.Errorf("no span %q among %s", name, names(spans))
		}
		return nil
	})
	return span
}

// traceToProfile sends a request that waits, and opens the profile of its span.
func (p *pipeline) traceToProfile(t *testing.T) { p.profiled(t) }

// profiled sends requests that wait, and returns the span of one once that opens a profile with the waiting function. The
// budget of wall-clock profiles leaves out most requests under load.
func (p *pipeline) profiled(t *testing.T) (root query.Span) {
	t.Helper()
	var sent time.Time
	var ids []string
	eventually(t, "a span that opens on its profile", func() (err error) {
		if time.Since(sent) > 10*time.Second {
			for range 5 {
				ids = append(ids, get(t, p.storefront+"/load/sleep?ms=400"))
			}
			sent = time.Now()
		}
		for _, id := range ids {
			spans, e := p.tempo.Trace(t.Context(), id)
			span, ok := find(spans, "GET /load/sleep")
			switch {
			case e != nil:
				err = e
			case !ok:
				err = fmt.Errorf("trace %s is not in Tempo", id)
			default:
				if err = p.opensOnProfile(t, span); err == nil {
					root = span
					return nil
				}
			}
		}
		return err
	})
	return root
}

// opensOnProfile follows "Profiles for this span", and looks at the flame graph in the span's details: the same
// query over a minute, and over half a minute, on each side of the span.
func (p *pipeline) opensOnProfile(t *testing.T, root query.Span) error {
	t.Helper()
	link := p.grafana.source(t, "tempo").JSONData.TracesToProfiles
	if link.DatasourceUID != "pyroscope" || link.CustomQuery {
		t.Fatalf("tracesToProfiles is %+v", link)
	}
	id := root.Attributes[wallprofile.ProfileIDAttribute]
	if id == "" {
		t.Fatalf("%s has no %s: Grafana shows no link; it has %v", root.Name, wallprofile.ProfileIDAttribute, root.Attributes)
	}
	selector := query.Selector{}
	for _, tag := range link.Tags {
		selector[tag.Value] = root.Resource[tag.Key]
	}
	for name, around := range map[string]time.Duration{"link": time.Minute, "embedded": 30 * time.Second} {
		graph, err := p.pyroscope.SpanFlameGraph(t.Context(), link.ProfileTypeID, selector, []string{id}, root.Start.Add(-around), root.End.Add(around))
		if err != nil {
			return err
		}
		if got := time.Duration(graph.Total); got < root.Duration()*99/100 || got > root.Duration()*101/100 {
			return fmt.Errorf("the flame graph of the %s accounts for %v of %v: %s", name, got, root.Duration(), functions(graph))
		}
		slept, missing := time.Duration(graph.Find("workload.sleepFor")), time.Duration(graph.Find("[not recorded]"))
		if slept == 0 || slept+missing < 390*time.Millisecond || p.unbudgeted && missing > 0 {
			return fmt.Errorf("workload.sleepFor has %v of it, want the 400 ms it slept; %v is not recorded", slept, missing)
		}
		if n := graph.Find("workload.priceBasket"); n != 0 {
			return fmt.Errorf("it has %v of another request", time.Duration(n))
		}
	}
	// An unknown span id opens nothing: the answer above was not that of the whole service.
	graph, err := p.pyroscope.SpanFlameGraph(t.Context(), link.ProfileTypeID, selector, []string{"00000000000000ff"},
		root.Start.Add(-time.Minute), root.End.Add(time.Minute))
	if err == nil && graph.Total != 0 {
		err = fmt.Errorf("a span that is not there has a flame graph of %v", time.Duration(graph.Total))
	}
	return err
}

// traceToLogsAndBack follows "Logs for this span", and from the log line that it finds the link to its trace.
func (p *pipeline) traceToLogsAndBack(t *testing.T) {
	traceID, root := p.slow(t)
	expr, from, to := p.grafana.logsOf(t, traceID, root)
	var line logLine
	eventually(t, expr, func() error {
		lines, err := p.grafana.logs(t, expr, from, to)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if l.Labels["trace_id"] != traceID || l.Labels["service_name"] != root.Service {
				return fmt.Errorf("a line of another trace or service: %v", l)
			}
		}
		i := slices.IndexFunc(lines, func(l logLine) bool { return l.Text == "HTTP Request Processed" })
		if i < 0 {
			return fmt.Errorf("no line of the request among %v", lines)
		}
		line = lines[i]
		return nil
	})
	if line.Labels["span_id"] != root.ID || line.Labels["http_path"] != "/load/sleep" {
		t.Errorf("the line is of span %s and path %s, want %s and /load/sleep", line.Labels["span_id"], line.Labels["http_path"], root.ID)
	}

	fields := p.grafana.source(t, "loki").JSONData.DerivedFields
	if len(fields) != 1 || fields[0].MatcherType != "label" || fields[0].DatasourceUID != "tempo" {
		t.Fatalf("the derived fields of Loki are %+v, want one of a label that leads to Tempo", fields)
	}
	matcher := regexp.MustCompile(fields[0].MatcherRegex)
	var matched []string
	for name := range line.Labels {
		if matcher.MatchString(name) {
			matched = append(matched, name)
		}
	}
	if len(matched) != 1 {
		t.Fatalf("%s matches the labels %v, want one", matcher, matched)
	}
	opens := strings.ReplaceAll(fields[0].URL, "${__value.raw}", line.Labels[matched[0]])
	if back := p.span(t, opens, "GET /load/sleep"); back.ID != root.ID {
		t.Errorf("the line opens span %s of trace %s, want %s", back.ID, opens, root.ID)
	}
}

// traceToMetrics follows each link below "Related metrics" of a span.
func (p *pipeline) traceToMetrics(t *testing.T) {
	_, root := p.slow(t)
	for name, q := range p.grafana.metricsOf(t, root) {
		eventually(t, name+": "+q.expr, func() error {
			series, err := p.grafana.metrics(t, q)
			if err != nil {
				return err
			}
			if len(series) == 0 {
				return errors.New("no data")
			}
			for _, s := range series {
				if spanName, by := s.Labels["span_name"]; by && spanName == root.Name || !by {
					return nil
				}
			}
			return fmt.Errorf("no series of %q among %v", root.Name, series)
		})
	}
}

// metricToTrace follows the exemplars on the dashboard's graph of durations: each opens the request that it stands
// for.
func (p *pipeline) metricToTrace(t *testing.T, begun time.Time) {
	destinations := p.grafana.source(t, "prometheus").JSONData.ExemplarTraceIDDestinations
	if len(destinations) != 1 || destinations[0].DatasourceUID != "tempo" {
		t.Fatalf("exemplars lead to %+v, want to Tempo", destinations)
	}
	var expr string
	for _, d := range p.grafana.dashboards {
		for _, panel := range d.Panels {
			for _, q := range panel.Targets {
				if d.Title == "Service" && q.Exemplar {
					expr = p.grafana.substitute(t, d, q.Expr)
				}
			}
		}
	}
	if expr == "" {
		t.Fatal("no panel of the dashboard Service shows exemplars")
	}
	var found []exemplar
	eventually(t, "exemplars of "+expr, func() error {
		all, err := p.grafana.exemplars(t, expr, begun, time.Now())
		if err != nil {
			return err
		}
		// Their series also count spans that are not requests.
		found = slices.DeleteFunc(all, func(e exemplar) bool { return e.Value < 0.1 })
		if len(found) == 0 {
			return fmt.Errorf("none of a slow request among %d", len(all))
		}
		return nil
	})
	for _, e := range found[:min(5, len(found))] {
		traceID := e.Labels[destinations[0].Name]
		var stands query.Span
		eventually(t, "trace "+traceID, func() error { // its services send their spans at different times
			spans, err := p.tempo.Trace(t.Context(), traceID)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(spans, func(s query.Span) bool { return s.ID == e.Labels["span_id"] })
			if i < 0 {
				return fmt.Errorf("the exemplar's span %s is not among %s", e.Labels["span_id"], names(spans))
			}
			stands = spans[i]
			return nil
		})
		if got := stands.Duration().Seconds(); math.Abs(got-e.Value) > 1e-6 {
			t.Errorf("the exemplar stands for %v s, its span took %v s", e.Value, got)
		}
	}
}
