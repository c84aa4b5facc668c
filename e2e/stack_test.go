//go:build stack

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"spanflame/internal/query"
	"spanflame/internal/shop"
	"spanflame/stack/servers"
)

// loadFor is how long the shop is under load before anything is asked for.
const loadFor = time.Minute

// pipeline is the whole pipeline and a shop that sends through it.
type pipeline struct {
	stack     *servers.Stack
	shop      *shop.Shop
	grafana   *grafana
	tempo     *query.Tempo
	pyroscope *query.Pyroscope
}

// TestStack puts a shop under load on the whole pipeline, all servers by the configuration that
// docker-compose.yml mounts, and then follows every link that Grafana would offer, by the requests that it would
// send: it cannot be run here, and what it sends follows from its provisioned data sources and dashboards.
func TestStack(t *testing.T) {
	p := startPipeline(t)
	begun := time.Now()
	load(t, p.shop.Storefront.URL)

	t.Run("trace to profile", p.traceToProfile)
	t.Run("trace to logs and back", p.traceToLogsAndBack)
	t.Run("trace to metrics", p.traceToMetrics)
	t.Run("metric to trace", func(t *testing.T) { p.metricToTrace(t, begun) })
	t.Run("dashboards", p.dashboards)
	t.Run("alerts", p.alerts)
	stop(t, p.shop.Inventory.Stop) // Checkouts fail from now on.
	t.Run("alert on failing requests", p.alertOnFailingRequests)
	t.Run("sampling", p.sampling)
}

func startPipeline(t *testing.T) *pipeline {
	stack, err := servers.Start(t.Context(), servers.Options{
		Servers: servers.All(), DataDir: filepath.Join(w.dir, "pipeline"), Progress: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, stack.Stop) })
	s, err := startShop(t.Context(), "pipeline-shop",
		"PYROSCOPE_SERVER_ADDRESS="+stack.Pyroscope().URL,
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=", // all three signals go where the next line says
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://"+stack.Collector().OTLPGRPC,
		"OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
		"OTEL_METRIC_EXPORT_INTERVAL=2000",
		"OTEL_BLRP_SCHEDULE_DELAY=500",
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop(t, s.Stop)
		if err := noRace(s); err != nil {
			t.Error(err)
		}
	})
	return &pipeline{
		stack: stack, shop: s,
		grafana:   newGrafana(t, stack),
		tempo:     query.NewTempo(stack.Tempo().URL),
		pyroscope: query.NewPyroscope(stack.Pyroscope().URL),
	}
}

// stop ends what the test has started, when the test's own context has ended.
func stop(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := f(ctx); err != nil {
		t.Error(err)
	}
}

// load runs the load generator with its usual mix.
func load(t *testing.T, target string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), w.binary, "load", "--target", target, "--rate", "10", "--duration", loadFor.String()).CombinedOutput()
	if err != nil {
		t.Fatalf("load: %v\n%s", err, out)
	}
}

// slow sends a request that waits, and returns its server span once it is in Tempo.
func (p *pipeline) slow(t *testing.T) (traceID string, root query.Span) {
	t.Helper()
	traceID = get(t, p.shop.Storefront.URL+"/load/sleep?ms=400")
	return traceID, p.span(t, traceID, "GET /load/sleep")
}

// span is a span of a trace once Tempo has it.
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

// traceToProfile follows "Profiles for this span", and looks at the flame graph in the span's details: the same
// query over a minute, and over half a minute, on each side of the span.
func (p *pipeline) traceToProfile(t *testing.T) {
	_, root := p.slow(t)
	link := p.grafana.source(t, "tempo").JSONData.TracesToProfiles
	if link.DatasourceUID != "pyroscope" || link.CustomQuery {
		t.Fatalf("tracesToProfiles is %+v", link)
	}
	id := root.Attributes[query.ProfileIDAttribute]
	if id == "" {
		t.Fatalf("%s has no %s: Grafana shows no link; it has %v", root.Name, query.ProfileIDAttribute, root.Attributes)
	}
	selector := query.Selector{}
	for _, tag := range link.Tags {
		selector[tag.Value] = root.Resource[tag.Key]
	}
	for name, around := range map[string]time.Duration{"link": time.Minute, "embedded": 30 * time.Second} {
		eventually(t, "the flame graph of the "+name, func() error {
			graph, err := p.pyroscope.SpanFlameGraph(t.Context(), link.ProfileTypeID, selector, []string{id}, root.Start.Add(-around), root.End.Add(around))
			if err != nil {
				return err
			}
			if got := time.Duration(graph.Total); got < root.Duration()*99/100 || got > root.Duration()*101/100 {
				return fmt.Errorf("it accounts for %v of %v: %s", got, root.Duration(), functions(graph))
			}
			if n := graph.Find("workload.sleepFor"); time.Duration(n) < 390*time.Millisecond {
				return fmt.Errorf("workload.sleepFor has %v of it, want the 400 ms it slept", time.Duration(n))
			}
			if n := graph.Find("workload.priceBasket"); n != 0 {
				return fmt.Errorf("it has %v of another request", time.Duration(n))
			}
			return nil
		})
	}
	// Another span's id opens nothing: the answer above was not the whole service's.
	graph, err := p.pyroscope.SpanFlameGraph(t.Context(), link.ProfileTypeID, selector, []string{"00000000000000ff"}, root.Start.Add(-time.Minute), root.End.Add(time.Minute))
	if err != nil || graph.Total != 0 {
		t.Errorf("a span that is not there has a flame graph of %v: %v", time.Duration(graph.Total), err)
	}
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

// metricToTrace clicks the exemplars on the dashboard's graph of durations: each opens the very request that it
// stands for.
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
		// Their series also count what is no request.
		found = slices.DeleteFunc(all, func(e exemplar) bool { return e.Value < 0.1 })
		if len(found) == 0 {
			return fmt.Errorf("none of a slow request among %d", len(all))
		}
		return nil
	})
	for _, e := range found[:min(5, len(found))] {
		traceID := e.Labels[destinations[0].Name]
		var spans []query.Span
		eventually(t, "trace "+traceID, func() (err error) {
			spans, err = p.tempo.Trace(t.Context(), traceID)
			if err == nil && len(spans) == 0 {
				err = errors.New("not in Tempo")
			}
			return err
		})
		i := slices.IndexFunc(spans, func(s query.Span) bool { return s.ID == e.Labels["span_id"] })
		if i < 0 {
			t.Errorf("the exemplar's span %s is not among %s", e.Labels["span_id"], names(spans))
		} else if got := spans[i].Duration().Seconds(); math.Abs(got-e.Value) > 1e-6 {
			t.Errorf("the exemplar stands for %v s, its span took %v s", e.Value, got)
		}
	}
}

// dashboards runs the query of every panel, as Grafana does when the dashboard is opened.
func (p *pipeline) dashboards(t *testing.T) {
	if len(p.grafana.dashboards) < 4 {
		t.Errorf("%d dashboards, want Service, Memory leak, Agent and Before/after", len(p.grafana.dashboards))
	}
	for _, d := range p.grafana.dashboards {
		for _, panel := range d.Panels {
			for _, target := range panel.Targets {
				t.Run(d.Title+"/"+panel.Title+"/"+target.RefID, func(t *testing.T) {
					eventually(t, panel.Title, func() error { return p.grafana.run(t, d, panel, target) })
				})
			}
		}
	}
}

var metricName = regexp.MustCompile(`[a-z_:]+\{`)

// alerts checks that Prometheus evaluates every rule, that no rule asks for a metric that nobody sends, and that
// none is about a shop that is well: but for slow requests, which are the machine's affair.
func (p *pipeline) alerts(t *testing.T) {
	want := []string{"HeapGrows", "HighErrorRate", "NoProfilesArrive", "ProfilesDropped", "SlowRequests"}
	eventually(t, "the rules", func() error {
		rules, err := p.grafana.rules(t)
		if err != nil {
			return err
		}
		if got := slices.Sorted(maps.Keys(rules)); !slices.Equal(got, want) {
			return fmt.Errorf("Prometheus has the rules %v, want %v", got, want)
		}
		for name, rule := range rules {
			if rule.Health != "ok" {
				return fmt.Errorf("%s: health %q: %s", name, rule.Health, rule.LastError)
			}
			if rule.State != "inactive" && name != "SlowRequests" {
				return fmt.Errorf("%s is %s although nothing is wrong", name, rule.State)
			}
			for _, metric := range metricName.FindAllString(rule.Query, -1) {
				metric = strings.TrimSuffix(metric, "{")
				series, err := p.grafana.metrics(t, promQuery{expr: metric, from: time.Now().Add(-5 * time.Minute), to: time.Now(), step: 15 * time.Second})
				if err != nil {
					return err
				}
				if len(series) == 0 {
					return fmt.Errorf("%s asks for %s, which nobody sends", name, metric)
				}
			}
		}
		return nil
	})
}

// alertOnFailingRequests has checkouts fail until Prometheus says so.
func (p *pipeline) alertOnFailingRequests(t *testing.T) {
	eventually(t, "the alert", func() error {
		if status, _, body := request(t, http.MethodPost, p.shop.Storefront.URL+"/api/checkout"); status < 500 {
			return fmt.Errorf("a checkout without inventory has status %d: %s", status, body)
		}
		rules, err := p.grafana.rules(t)
		if err != nil {
			return err
		}
		for _, a := range rules["HighErrorRate"].Alerts {
			if a.Labels["service_name"] == "storefront" {
				return nil
			}
		}
		return fmt.Errorf("HighErrorRate is %s", rules["HighErrorRate"].State)
	})
}

// sampling restarts the Collector with nothing kept but slow and failed traces, and checks that they are all kept,
// that of the others none is, and that the metrics count them all the same.
func (p *pipeline) sampling(t *testing.T) {
	counted := func() (map[string]float64, error) {
		const expr = `traces_span_metrics_calls_total{service_name="storefront", span_name="GET /load/sleep", span_kind="SPAN_KIND_SERVER"}`
		series, err := p.grafana.metrics(t, promQuery{expr: expr, from: time.Now().Add(-15 * time.Minute), to: time.Now(), step: time.Second})
		byCollector := map[string]float64{}
		for _, s := range series {
			byCollector[s.Labels["collector_instance_id"]] = s.Last
		}
		return byCollector, err
	}
	before, err := counted()
	if err != nil || len(before) != 1 {
		t.Fatalf("counts of %d Collectors, want one: %v", len(before), err)
	}
	t.Setenv("SPANFLAME_KEEP_PERCENT", "0")
	if err := p.stack.Collector().Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	const quick = "/load/sleep?ms=1"
	dropped := []string{get(t, p.shop.Storefront.URL+quick), get(t, p.shop.Storefront.URL+quick)}
	status, header, _ := request(t, http.MethodPost, p.shop.Storefront.URL+"/api/checkout")
	if status < 500 {
		t.Fatalf("a checkout without inventory has status %d", status)
	}
	p.span(t, header.Get("X-Trace-ID"), "POST /api/checkout")
	// The slow one is sent last: once it is there, those before it have been judged.
	p.slow(t)
	for _, id := range dropped {
		if spans, err := p.tempo.Trace(t.Context(), id); err != nil || len(spans) > 0 {
			t.Errorf("a quick trace was kept: %s, %v", names(spans), err)
		}
	}
	want := float64(len(dropped) + 1)
	eventually(t, "the metrics of what was not kept", func() error {
		after, err := counted()
		if err != nil {
			return err
		}
		for collector, n := range after {
			if _, old := before[collector]; !old && n == want {
				return nil
			}
		}
		return fmt.Errorf("counts by Collector are %v, want %v of the new one", after, want)
	})
}
