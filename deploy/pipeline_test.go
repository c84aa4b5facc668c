package deploy_test

import (
	"fmt"
	"io/fs"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

type collectorConfig struct {
	Extensions struct {
		HealthCheck struct {
			Endpoint string `yaml:"endpoint"`
		} `yaml:"health_check"`
	} `yaml:"extensions"`
	Receivers  collectorReceivers `yaml:"receivers"`
	Processors struct {
		ResourceDetection struct {
			Detectors []string `yaml:"detectors"`
			Override  *bool    `yaml:"override"`
		} `yaml:"resource_detection"`
		TailSampling struct {
			Policies []struct {
				Type       string `yaml:"type"`
				StatusCode struct {
					Codes []string `yaml:"status_codes"`
				} `yaml:"status_code"`
				Latency struct {
					Milliseconds int64 `yaml:"threshold_ms"`
				} `yaml:"latency"`
			} `yaml:"policies"`
		} `yaml:"tail_sampling"`
	} `yaml:"processors"`
	Connectors struct {
		SpanMetrics struct {
			Exemplars struct {
				Enabled bool `yaml:"enabled"`
			} `yaml:"exemplars"`
		} `yaml:"span_metrics"`
	} `yaml:"connectors"`
	Exporters map[string]struct {
		Endpoint string `yaml:"endpoint"`
	} `yaml:"exporters"`
	Service struct {
		Pipelines map[string]struct {
			Receivers  []string `yaml:"receivers"`
			Processors []string `yaml:"processors"`
			Exporters  []string `yaml:"exporters"`
		} `yaml:"pipelines"`
	} `yaml:"service"`
}

type collectorReceivers struct {
	OTLP struct {
		Protocols map[string]struct {
			Endpoint string `yaml:"endpoint"`
		} `yaml:"protocols"`
	} `yaml:"otlp"`
}

// sendsTo maps each pipeline of the Collector to its exporter and that exporter's endpoint.
var sendsTo = map[string]struct{ exporter, endpoint string }{
	"traces":         {"otlp_grpc/tempo", "tempo:4317"},
	"traces/metrics": {"span_metrics", ""},
	"metrics":        {"otlp_http/prometheus", "http://prometheus:9090/api/v1/otlp"},
	"logs":           {"otlp_http/loki", "http://loki:3100/otlp"},
}

// slowSpan is the agent's default threshold: slower spans have wall-clock profiles.
const slowSpan = 100 * time.Millisecond

// checkPipeline checks that the Collector, Prometheus, Alertmanager, Loki and the compose file agree.
func checkPipeline(fsys fs.FS) (errs []error) {
	errs = append(errs, checkCollector(fsys)...)
	errs = append(errs, checkPrometheus(fsys)...)
	errs = append(errs, checkAlertmanager(fsys)...)
	errs = append(errs, checkLoki(fsys)...)
	return append(errs, checkReleases(fsys)...)
}

// checkReleases checks that the images have the releases that package stack/servers builds and tests.
// Pyroscope's and Tempo's newer releases cannot be built from their modules.
func checkReleases(fsys fs.FS) (errs []error) {
	project, err := loadProject(fsys, full, jaeger)
	if err != nil {
		return []error{err}
	}
	images := map[string]string{
		"jaeger":       project.Services["jaeger"].Image,
		"alertmanager": project.Services["alertmanager"].Image,
		"prometheus":   project.Services["prometheus"].Image,
		"loki":         project.Services["loki"].Image,
	}
	if build := project.Services["collector"].Build; build != nil && build.Args["COLLECTOR"] != nil {
		images["collector"] = *build.Args["COLLECTOR"]
	}
	for server, module := range map[string]string{
		"alertmanager": "github.com/prometheus/alertmanager",
		"jaeger":       "github.com/jaegertracing/jaeger",
		"prometheus":   "github.com/prometheus/prometheus",
		"loki":         "github.com/grafana/loki/v3",
		"collector":    "go.opentelemetry.io/collector/otelcol",
	} {
		name := path.Join("stack/servers", server, "go.mod")
		content, err := fs.ReadFile(fsys, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		_, after, _ := strings.Cut(string(content), module+" v")
		release, _, _ := strings.Cut(after, "\n")
		release, _, _ = strings.Cut(release, " ")
		// Prometheus 3.13 is the module's version 0.313.
		if minor, ok := strings.CutPrefix(release, "0.3"); ok && server == "prometheus" {
			release = "3." + minor
		}
		// Jaeger 2.0 is the module's version 1.63, and so on.
		if server == "jaeger" {
			minor, patch, _ := strings.Cut(strings.TrimPrefix(release, "1."), ".")
			if n, err := strconv.Atoi(minor); err == nil {
				release = fmt.Sprintf("2.%d.%s", n-63, patch)
			}
		}
		_, tag, _ := strings.Cut(images[server], ":")
		if release == "" || strings.TrimPrefix(tag, "v") != release {
			errs = append(errs, fmt.Errorf("%s: image %q, but %s builds release %s", compose, images[server], name, release))
		}
	}
	return errs
}

func checkCollector(fsys fs.FS) (errs []error) {
	report := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", collector, fmt.Errorf(format, args...)))
	}
	var c collectorConfig
	if err := readYAML(fsys, collector, &c); err != nil {
		return []error{err}
	}
	for protocol, want := range map[string]string{"grpc": "0.0.0.0:4317", "http": "0.0.0.0:4318"} {
		if got := c.Receivers.OTLP.Protocols[protocol].Endpoint; got != want {
			report("the OTLP receiver for %s listens on %q, must be %q", protocol, got, want)
		}
	}
	if _, port, err := net.SplitHostPort(c.Extensions.HealthCheck.Endpoint); err != nil || port != "13133" {
		report("health_check listens on %q, must be port 13133: the health check of the compose file asks there", c.Extensions.HealthCheck.Endpoint)
	}
	if d := c.Processors.ResourceDetection; !slices.Equal(d.Detectors, []string{"env"}) || d.Override == nil || *d.Override {
		report("resource_detection is %+v: must detect env alone and override nothing, or services get the name of the Collector's host", d)
	}
	for name, want := range sendsTo {
		p, ok := c.Service.Pipelines[name]
		if !ok {
			report("no pipeline %s", name)
			continue
		}
		if len(p.Processors) == 0 || p.Processors[0] != "memory_limiter" {
			report("pipeline %s: processors are %v, must begin with memory_limiter", name, p.Processors)
		}
		if !slices.Contains(p.Receivers, "otlp") {
			report("pipeline %s: receivers are %v, must have otlp", name, p.Receivers)
		}
		if !slices.Equal(p.Exporters, []string{want.exporter}) {
			report("pipeline %s: exporters are %v, must be %s", name, p.Exporters, want.exporter)
		}
		if got := c.Exporters[want.exporter].Endpoint; got != want.endpoint {
			report("exporter %s: endpoint is %q, must be %q", want.exporter, got, want.endpoint)
		}
	}
	if slices.Contains(c.Service.Pipelines["traces/metrics"].Processors, "tail_sampling") {
		report("pipeline traces/metrics: must count spans before sampling")
	}
	if !slices.Contains(c.Service.Pipelines["metrics"].Receivers, "span_metrics") {
		report("pipeline metrics: must receive span_metrics")
	}
	if !c.Connectors.SpanMetrics.Exemplars.Enabled {
		report("span_metrics.exemplars.enabled must be true: without it no metric leads to a trace")
	}
	failed, slow := false, false
	for _, p := range c.Processors.TailSampling.Policies {
		failed = failed || p.Type == "status_code" && slices.Equal(p.StatusCode.Codes, []string{"ERROR"})
		slow = slow || p.Type == "latency" && time.Duration(p.Latency.Milliseconds)*time.Millisecond == slowSpan
	}
	if !failed || !slow {
		report("tail_sampling must keep all failed traces and all of at least %s", slowSpan)
	}
	return errs
}

func checkPrometheus(fsys fs.FS) (errs []error) {
	project, err := loadProject(fsys)
	if err != nil {
		return []error{err}
	}
	report := func(file, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", file, fmt.Errorf(format, args...)))
	}
	command := project.Services["prometheus"].Command
	for _, want := range []string{
		"--web.enable-otlp-receiver", "--web.enable-remote-write-receiver", "--enable-feature=exemplar-storage",
		"--storage.tsdb.path=/prometheus", "--storage.tsdb.retention.size=2GB",
	} {
		if !slices.Contains(command, want) {
			report(compose, "prometheus: command lacks %s", want)
		}
	}
	if !onVolume(project.Services["prometheus"], "/prometheus") {
		report(compose, "prometheus: /prometheus is on no volume")
	}

	var p struct {
		OTLP struct {
			Promote []string `yaml:"promote_resource_attributes"`
			Keep    bool     `yaml:"keep_identifying_resource_attributes"`
		} `yaml:"otlp"`
		Rules    []string `yaml:"rule_files"`
		Alerting struct {
			Alertmanagers []struct {
				Static []struct {
					Targets []string `yaml:"targets"`
				} `yaml:"static_configs"`
			} `yaml:"alertmanagers"`
		} `yaml:"alerting"`
	}
	if err := readYAML(fsys, prometheus, &p); err != nil {
		return append(errs, err)
	}
	for _, attribute := range []string{"service.name", "service.version", "service.instance.id"} {
		if !slices.Contains(p.OTLP.Promote, attribute) {
			report(prometheus, "promote_resource_attributes lacks %s: dashboards select by it", attribute)
		}
	}
	if !p.OTLP.Keep {
		report(prometheus, "keep_identifying_resource_attributes must be true: dashboards find the services on target_info")
	}
	if !slices.Equal(p.Rules, []string{path.Base(alerts)}) {
		report(prometheus, "rule_files are %v, must be %s", p.Rules, path.Base(alerts))
	}
	if a := p.Alerting.Alertmanagers; len(a) != 1 || len(a[0].Static) != 1 || !slices.Equal(a[0].Static[0].Targets, []string{"alertmanager:9093"}) {
		report(prometheus, "alerting is %+v, must have alertmanager:9093 alone", p.Alerting)
	}
	if got := onHost(project, "prometheus", "/etc/prometheus/"+path.Base(alerts)); got != alerts {
		report(compose, "prometheus: %s is not mounted next to its configuration", alerts)
	}
	return append(errs, checkAlerts(fsys)...)
}

// checkAlertmanager checks that alerts reach the receiver whose address is in a file.
func checkAlertmanager(fsys fs.FS) (errs []error) {
	project, err := loadProject(fsys)
	if err != nil {
		return []error{err}
	}
	report := func(file, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", file, fmt.Errorf(format, args...)))
	}
	if !onVolume(project.Services["alertmanager"], "/alertmanager") {
		report(compose, "alertmanager: /alertmanager is on no volume")
	}
	var a struct {
		Route struct {
			Receiver string `yaml:"receiver"`
		} `yaml:"route"`
		Receivers []struct {
			Name     string `yaml:"name"`
			Webhooks []struct {
				File string `yaml:"url_file"`
			} `yaml:"webhook_configs"`
		} `yaml:"receivers"`
	}
	if err := readYAML(fsys, notifier, &a); err != nil {
		return append(errs, err)
	}
	if len(a.Receivers) != 1 || a.Receivers[0].Name != a.Route.Receiver || len(a.Receivers[0].Webhooks) != 1 {
		report(notifier, "the route's receiver is %q, and the receivers are %+v: must have one with a webhook", a.Route.Receiver, a.Receivers)
	} else if file := a.Receivers[0].Webhooks[0].File; onHost(project, "alertmanager", file) != "deploy/alertmanager/receiver/url" {
		report(compose, "alertmanager: the file %s is not of the directory deploy/alertmanager/receiver", file)
	}
	return errs
}

// checkAlerts checks that each rule has the texts and links that a person on call needs. The expressions are tested with a
// real Prometheus.
func checkAlerts(fsys fs.FS) (errs []error) {
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert       string            `yaml:"alert"`
				Expr        string            `yaml:"expr"`
				Labels      map[string]string `yaml:"labels"`
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := readYAML(fsys, alerts, &file); err != nil {
		return []error{err}
	}
	var names []string
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			names = append(names, r.Alert)
			if r.Expr == "" || r.Annotations["description"] == "" || !strings.Contains(r.Annotations["summary"], "$labels.service_name") {
				errs = append(errs, fmt.Errorf("%s: %s: must have an expression, a description, and a summary that names the service", alerts, r.Alert))
			}
			errs = append(errs, checkAnnotations(fsys, r.Alert, r.Annotations)...)
			if severity := r.Labels["severity"]; severity != "critical" && severity != "warning" {
				errs = append(errs, fmt.Errorf("%s: %s: severity is %q, must be critical or warning", alerts, r.Alert, severity))
			}
		}
	}
	slices.Sort(names)
	if want := []string{"FunctionSlower", "HeapGrows", "HighErrorRate", "NoProfilesArrive", "ProfilesDropped", "SlowRequests"}; !slices.Equal(names, want) {
		errs = append(errs, fmt.Errorf("%s: the rules are %v, must be %v", alerts, names, want))
	}
	return errs
}

var linkedDashboard = regexp.MustCompile(`^http://127\.0\.0\.1:3000/d/([a-z-]+)\?var-service=\{\{ \$labels\.service_name \| urlquery \}\}&from=`)

// checkAnnotations checks that the links of an alert lead to what there is.
func checkAnnotations(fsys fs.FS, alert string, annotations map[string]string) (errs []error) {
	report := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s: %w", alerts, alert, fmt.Errorf(format, args...)))
	}
	var found bool
	if link := linkedDashboard.FindStringSubmatch(annotations["dashboard"]); link != nil {
		files, err := fs.Glob(fsys, path.Join(path.Dir(dashboard), "*.json"))
		if err != nil {
			return []error{err}
		}
		for _, file := range files {
			content, err := fs.ReadFile(fsys, file)
			found = found || err == nil && strings.Contains(string(content), fmt.Sprintf("%q: %q", "uid", link[1]))
		}
	}
	if !found {
		report("the dashboard %q is none of this repository with the alert's service", annotations["dashboard"])
	}
	page, heading, _ := strings.Cut(annotations["runbook"], "#")
	content, err := fs.ReadFile(fsys, page)
	if err != nil || heading != strings.ToLower(alert) || !strings.Contains(string(content), "\n## "+alert+"\n") {
		report("the runbook %q is no paragraph of %s with its name", annotations["runbook"], runbook)
	}
	if alert == "SlowRequests" && !strings.HasPrefix(annotations["slow_requests"], "http://127.0.0.1:7070/?service={{ $labels.service_name | urlquery }}&from=") {
		report("slow_requests is %q, must be the page of the service's slow requests", annotations["slow_requests"])
	}
	return errs
}

func checkLoki(fsys fs.FS) (errs []error) {
	project, err := loadProject(fsys)
	if err != nil {
		return []error{err}
	}
	report := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", loki, fmt.Errorf(format, args...)))
	}
	var l struct {
		Server struct {
			Port int `yaml:"http_listen_port"`
		} `yaml:"server"`
		Common struct {
			Path    string `yaml:"path_prefix"`
			Storage struct {
				Filesystem map[string]string `yaml:"filesystem"`
			} `yaml:"storage"`
		} `yaml:"common"`
		Compactor struct {
			Dir       string `yaml:"working_directory"`
			Retention bool   `yaml:"retention_enabled"`
		} `yaml:"compactor"`
		Limits struct {
			Retention string `yaml:"retention_period"`
		} `yaml:"limits_config"`
		Analytics struct {
			Reporting *bool `yaml:"reporting_enabled"`
		} `yaml:"analytics"`
	}
	if err := readYAML(fsys, loki, &l); err != nil {
		return []error{err}
	}
	if l.Server.Port != 3100 {
		report("http_listen_port is %d, must be 3100", l.Server.Port)
	}
	if l.Analytics.Reporting == nil || *l.Analytics.Reporting {
		report("analytics.reporting_enabled must be false: the demo works offline")
	}
	if !l.Compactor.Retention || l.Limits.Retention == "" {
		report("must delete old logs: retention_enabled and retention_period limit the volume")
	}
	dirs := []string{l.Common.Path, l.Compactor.Dir}
	for _, dir := range l.Common.Storage.Filesystem {
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		if !onVolume(project.Services["loki"], dir) {
			report("directory %q is on no volume of loki", dir)
		}
	}
	return errs
}
