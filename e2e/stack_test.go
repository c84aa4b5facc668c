//go:build stack

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"spanflame/stack/servers"
	"spanflame/viewer/source"
	"spanflame/workload/processes"
)

// loadFor is the time that the workload is under load before the checks.
const loadFor = time.Minute

// native is a pipeline of processes, without containers.
type native struct {
	*pipeline
	stack    *servers.Stack
	workload *processes.Workload
}

// TestStack runs the workload under load on the whole pipeline, with the configuration that docker-compose.yml
// mounts. Then it follows every link that Grafana shows. Grafana cannot be run here; its requests follow from its
// provisioned data sources and dashboards.
func TestStack(t *testing.T) {
	notified := newPager(t)
	p := startPipeline(t, notified)
	begun := time.Now()
	underLoad(t, p.storefront)

	t.Run("trace to profile", p.traceToProfile)
	t.Run("trace in Jaeger to profile", p.jaeger)
	t.Run("profiles by way of the Collector", p.profilesByCollector)
	t.Run("trace to logs and back", p.traceToLogsAndBack)
	t.Run("trace to metrics", p.traceToMetrics)
	t.Run("metric to trace", func(t *testing.T) { p.metricToTrace(t, begun) })
	t.Run("dashboards", p.dashboards)
	t.Run("alerts", p.alerts)
	t.Run("alert on slow requests", func(t *testing.T) { p.alertOnSlowRequests(t, notified) })
	stop(t, p.workload.Inventory.Stop) // Checkouts fail from now on.
	t.Run("alert on failing requests", func(t *testing.T) { p.alertOnFailingRequests(t, notified) })
	t.Run("sampling", p.sampling)
}

func startPipeline(t *testing.T, notified *pager) native {
	stack, err := servers.Start(t.Context(), servers.Options{
		Servers: servers.All(), DataDir: filepath.Join(w.dir, "pipeline"), Progress: t.Output(),
		Overlays: map[string]string{
			servers.Prometheus:   fmt.Sprintf("global: {evaluation_interval: 5s}\nrule_files: [%s]", quickRules(t)),
			servers.Alertmanager: "route: {group_wait: 1s}",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	notified.named(t, filepath.Join(stack.Alertmanager().DataDir, "receiver", "url"))
	t.Cleanup(func() { stop(t, stack.Stop) })
	s, err := startWorkload(t.Context(), "pipeline-workload",
		"PYROSCOPE_SERVER_ADDRESS="+stack.Pyroscope().URL,
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=", // all three signals go to the address of the next line
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
	p := newPipeline(t, s.Storefront.URL, map[string]string{
		"tempo":      stack.Tempo().URL,
		"pyroscope":  stack.Pyroscope().URL,
		"prometheus": stack.Prometheus().URL,
		"loki":       stack.Loki().URL,
	})
	p.unbudgeted = true // set by startWorkload
	return native{p, stack, s}
}

// underLoad runs the load generator with its usual mix.
func underLoad(t *testing.T, target string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), w.binary, "load", "--target", target, "--rate", "10", "--duration", loadFor.String()).CombinedOutput()
	if err != nil {
		t.Fatalf("load: %v\n%s", err, out)
	}
}

// dashboards runs the query of every panel, like Grafana when a dashboard is opened.
func (p native) dashboards(t *testing.T) {
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

// alerts checks that Prometheus evaluates every rule, that no rule uses a metric that nobody sends, and that none
// fires for a healthy workload, except the rule for slow requests, which depends on the machine.
func (p native) alerts(t *testing.T) {
	want := []string{"FunctionSlower", "HeapGrows", "HighErrorRate", "NoProfilesArrive", "ProfilesDropped", "SlowRequests"}
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
			if name == "FunctionSlower" {
				continue // of "spanflame watch", which the stack does not run
			}
			for _, metric := range metricName.FindAllString(rule.Query, -1) {
				metric = strings.TrimSuffix(metric, "{")
				series, err := p.grafana.metrics(t, promQuery{expr: metric, from: time.Now().Add(-5 * time.Minute), to: time.Now(), step: 15 * time.Second})
				if err != nil {
					return err
				}
				if len(series) == 0 {
					return fmt.Errorf("%s uses %s, which nobody sends", name, metric)
				}
			}
		}
		return nil
	})
}

// alertOnFailingRequests makes checkouts fail until the alert has reached the receiver.
func (p native) alertOnFailingRequests(t *testing.T, notified *pager) {
	notified.await(t, "HighErrorRate", func() error {
		if status, _, body := request(t, http.MethodPost, p.storefront+"/api/checkout"); status < 500 {
			return fmt.Errorf("a checkout without inventory has status %d: %s", status, body)
		}
		return nil
	})
}

// alertOnSlowRequests sends slow requests until the alert has reached the receiver. Its links open on data.
func (p native) alertOnSlowRequests(t *testing.T, notified *pager) {
	alert := notified.await(t, "SlowRequests", func() error {
		get(t, p.storefront+"/load/sleep?ms=1500")
		return nil
	})
	pages, err := source.NewServers(p.stack.Tempo().URL, p.stack.Pyroscope().URL)
	if err != nil {
		t.Fatal(err)
	}
	path, ok := strings.CutPrefix(alert.Annotations["slow_requests"], "http://127.0.0.1:7070")
	if !ok {
		t.Fatalf("the link slow_requests is %q", alert.Annotations["slow_requests"])
	}
	eventually(t, "the page of slow requests", func() error {
		if page := content(t, servePages(t, pages)+path); !strings.Contains(page, "GET /load/sleep") {
			return fmt.Errorf("%s has no GET /load/sleep:\n%s", path, page)
		}
		return nil
	})
	link, err := url.Parse(alert.Annotations["dashboard"])
	if err != nil {
		t.Fatal(err)
	}
	query := link.Query()
	if got := query.Get("var-service"); got != "storefront" {
		t.Errorf("the dashboard is opened for the service %q: %s", got, link)
	}
	from, err1 := strconv.ParseInt(query.Get("from"), 10, 64)
	to, err2 := strconv.ParseInt(query.Get("to"), 10, 64)
	if err := errors.Join(err1, err2); err != nil || to-from != (30*time.Minute).Milliseconds() || time.Since(time.UnixMilli(to)) > time.Hour {
		t.Errorf("the dashboard is opened for another time: %s, %v", link, err)
	}
	if i := slices.IndexFunc(p.grafana.dashboards, func(d dashboard) bool { return link.Path == "/d/"+d.UID }); i < 0 {
		t.Errorf("no dashboard is at %s", link)
	}
}

// sampling restarts the Collector so that it keeps slow and failed traces only. It checks that all of these are
// kept and no others, and that the metrics count all requests.
func (p native) sampling(t *testing.T) {
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
	dropped := []string{get(t, p.storefront+quick), get(t, p.storefront+quick)}
	status, header, _ := request(t, http.MethodPost, p.storefront+"/api/checkout")
	if status < 500 {
		t.Fatalf("a checkout without inventory has status %d", status)
	}
	p.span(t, header.Get("X-Trace-ID"), "POST /api/checkout")
	// The slow request is sent last: once its trace is there, the earlier ones have been decided.
	p.slow(t)
	for _, id := range dropped {
		if spans, err := p.tempo.Trace(t.Context(), id); err != nil || len(spans) > 0 {
			t.Errorf("a quick trace was kept: %s, %v", names(spans), err)
		}
	}
	want := float64(len(dropped) + 1)
	eventually(t, "the metrics of traces that were not kept", func() error {
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
