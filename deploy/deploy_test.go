package deploy_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// check checks one group of rules. It returns an error for each violation, which names the file and the item.
type check func(fsys fs.FS) []error

// repository copies the files that the checks read from the working tree, so that a test can change them.
func repository(t *testing.T) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	add := func(name string) {
		data, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: data, Mode: 0o644}
	}
	add(compose)
	add(composeOTLP)
	add("Dockerfile")
	add(".env")
	add(runbook)
	for _, server := range []string{"alertmanager", "jaeger", "prometheus", "loki", "collector"} {
		add("stack/servers/" + server + "/go.mod")
	}
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ext := path.Ext(name); ext == ".yaml" || ext == ".json" || ext == ".gitignore" {
			add(path.Join("deploy", name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestFilesAgree(t *testing.T) {
	for name, check := range map[string]check{
		"compose":     checkCompose,
		"agent":       checkAgentEnvironment,
		"grafana":     checkGrafanaEnvironment,
		"Dockerfile":  checkDockerfile,
		"servers":     checkServers,
		"pipeline":    checkPipeline,
		"Jaeger":      checkJaeger,
		"OTLP":        checkOTLP,
		"datasources": checkDataSources,
		"dashboards":  checkDashboards,
	} {
		t.Run(name, func(t *testing.T) {
			for _, err := range check(repository(t)) {
				t.Error(err)
			}
		})
	}
}

const (
	compose     = "docker-compose.yml"
	composeOTLP = "docker-compose.otlp.yml"
	dockerfile  = "Dockerfile"
	dotEnv      = ".env"
	pyroscope   = "deploy/pyroscope/pyroscope.yaml"
	tempo       = "deploy/tempo/tempo.yaml"
	loki        = "deploy/loki/loki.yaml"
	notifier    = "deploy/alertmanager/alertmanager.yaml"
	prometheus  = "deploy/prometheus/prometheus.yaml"
	alerts      = "deploy/prometheus/alerts.yaml"
	runbook     = "docs/alerts.md"
	collector   = "deploy/collector/collector.yaml"
	toJaeger    = "deploy/collector/jaeger.yaml"
	toPyroscope = "deploy/collector/profiles.yaml"
	jaegerLink  = "deploy/jaeger/grafana.json"
	jaegerFile  = "deploy/jaeger/jaeger.yaml"
	datasources = "deploy/grafana/provisioning/datasources/datasources.yaml"
	providers   = "deploy/grafana/provisioning/dashboards/dashboards.yaml"
	dashboard   = "deploy/grafana/dashboards/service.json"
	memory      = "deploy/grafana/dashboards/memory.json"
)

// TestChecksFindDefects makes one change per row: old becomes new in one file, and an error must contain want.
func TestChecksFindDefects(t *testing.T) {
	rows := []struct {
		name     string
		check    check
		file     string
		old, new string // if old is empty, the file is removed
		want     string
	}{
		{"unknown key", checkCompose, compose, "    mem_limit: 128m", "    memory: 128m", "memory"},
		{"latest tag", checkCompose, compose, "grafana/tempo:3.0.3", "grafana/tempo:latest", "pinned"},
		{"no tag", checkCompose, compose, "grafana/tempo:3.0.3", "grafana/tempo", "pinned"},
		{"floating tag", checkCompose, compose, "grafana/tempo:3.0.3", "grafana/tempo:main", "pinned"},
		{"tag twice", checkCompose, compose, "  load:\n    <<: *spanflame\n", "  load:\n    <<: *spanflame\n    image: grafana/tempo:3.0.3\n", "2 times"},
		{"versions differ", checkCompose, compose, "VERSION: ${SPANFLAME_VERSION:-0.1.0}", "VERSION: ${SPANFLAME_VERSION:-0.2.0}", "SPANFLAME_VERSION"},
		{
			"no health check", checkCompose, compose,
			"    healthcheck:\n      <<: *health\n      test: [CMD, wget, -q, -O, /dev/null, \"http://127.0.0.1:3000/api/health\"]\n",
			"",
			"grafana: no health check",
		},
		{
			"health check by shell", checkCompose, compose,
			"[CMD, /tempo, -health, \"-health.url=http://127.0.0.1:3200/ready\"]", "wget -q http://127.0.0.1:3200/ready", "tempo: health check",
		},
		{"health check of new engines", checkCompose, compose, "  start_period: 60s\n", "  start_period: 60s\n  start_interval: 1s\n", "start_interval"},
		{
			"health check switched off", checkCompose, compose,
			"    test: [CMD, /tempo, -health, \"-health.url=http://127.0.0.1:3200/ready\"]", "    disable: true", "tempo: no health check",
		},
		{
			"starts too early", checkCompose, compose,
			"      storefront: {condition: service_healthy, required: false}",
			"      storefront: {condition: service_started, required: false}",
			"load: depends on storefront",
		},
		{"dependency missing", checkCompose, compose, "      inventory: {condition: service_healthy}\n", "", "storefront: does not wait for inventory"},
		{
			"dependency unknown", checkCompose, compose,
			"      inventory: {condition: service_healthy}", "      stock: {condition: service_healthy}", "stock",
		},
		{"published on all interfaces", checkCompose, compose, "127.0.0.1:3000:3000", "3000:3000", "grafana: publishes"},
		{
			"additional published port", checkCompose, compose,
			"  image: grafana/tempo:3.0.3\n", "  image: grafana/tempo:3.0.3\n  ports: [\"127.0.0.1:3200:3200\"]\n", "tempo: publishes",
		},
		{"storefront not published", checkCompose, compose, "  ports: [\"127.0.0.1:8080:8080\"]\n", "", "storefront: publishes"},
		{
			"not in the profile full", checkCompose, compose,
			"    profiles: [full, jaeger]\n    image: postgres", "    profiles: [all]\n    image: postgres", "postgres",
		},
		{
			"additional service in the profile minimal", checkCompose, compose,
			"    profiles: [full, jaeger]\n    image: grafana/loki", "    image: grafana/loki", "profile minimal has the services",
		},
		{"no profile by default", checkCompose, dotEnv, "COMPOSE_PROFILES=full", "COMPOSE_PROFILES=", "COMPOSE_PROFILES"},
		{
			"base image not pinned", checkCompose, compose,
			"COLLECTOR: otel/opentelemetry-collector-contrib:0.155.0", "COLLECTOR: otel/opentelemetry-collector-contrib", "pinned",
		},
		{"database's image by its major version", checkCompose, compose, "postgres:17.6-bookworm", "postgres:17-bookworm", "pinned"},
		{"root", checkCompose, compose, `user: "65532:65532"`, `user: "0:0"`, "user"},
		{
			"user by name", checkCompose, compose,
			`user: "10001:10001" # the image's own user` + "\n  volumes:\n    - ./deploy/tempo",
			"user: tempo\n  volumes:\n    - ./deploy/tempo",
			"tempo: user",
		},
		{"writable root", checkCompose, compose, "  read_only: true\n", "", "read-only"},
		{"capabilities", checkCompose, compose, "  cap_drop: [ALL]\n", "", "capabilities"},
		{"new privileges", checkCompose, compose, `  security_opt: ["no-new-privileges:true"]` + "\n", "", "no-new-privileges"},
		{"privileged", checkCompose, compose, "  cap_drop: [ALL]\n", "  cap_drop: [ALL]\n  privileged: true\n", "privileged"},
		{"no restart", checkCompose, compose, "  restart: unless-stopped\n", "", "restart"},
		{"no memory limit", checkCompose, compose, "    mem_limit: 128m\n", "", "load: no memory limit"},
		{"collector limit too high", checkCompose, compose, "GOMEMLIMIT: 110MiB", "GOMEMLIMIT: 1GiB", "load: GOMEMLIMIT"},
		{"bind source missing", checkCompose, tempo, "", "", "deploy/tempo/tempo.yaml"},
		{"bind source writable", checkCompose, compose, "tempo.yaml:ro", "tempo.yaml", "writable"},
		{"volume undeclared", checkCompose, compose, "  tempo-data:\n", "", "tempo-data"},
		{
			"password", checkCompose, compose,
			"      GF_LOG_MODE: console", "      GF_LOG_MODE: console\n      GF_SECURITY_ADMIN_PASSWORD: admin", "GF_SECURITY_ADMIN_PASSWORD",
		},
		{"credentials in a URL", checkCompose, compose, "http://pyroscope:4040", "http://user:pass@pyroscope:4040", "credentials"},

		{"service name", checkAgentEnvironment, compose, "OTEL_SERVICE_NAME: inventory", "OTEL_SERVICE_NAME: stock", "OTEL_SERVICE_NAME"},
		{"past the Collector", checkAgentEnvironment, compose, "http://collector:4317", "http://tempo:4317", "storefront: OTEL_EXPORTER_OTLP_ENDPOINT"},
		{"logs to Tempo", checkAgentEnvironment, compose, "OTEL_LOGS_EXPORTER: none", "OTEL_LOGS_EXPORTER: otlp", "OTEL_LOGS_EXPORTER"},
		{
			"admin listener open", checkAgentEnvironment, compose,
			"SPANFLAME_ADMIN_ADDRESS: 127.0.0.1:6060", "SPANFLAME_ADMIN_ADDRESS: 0.0.0.0:6060", "SPANFLAME_ADMIN_ADDRESS",
		},
		{"no version label", checkAgentEnvironment, compose, "service.version=${SPANFLAME_VERSION:-0.1.0},", "", "service.version"},
		{"spool on no volume", checkAgentEnvironment, compose, "SPANFLAME_SPOOL_DIR: /data/spool", "SPANFLAME_SPOOL_DIR: /spool", "SPANFLAME_SPOOL_DIR"},
		{"killed before the last profiles are delivered", checkAgentEnvironment, compose, "stop_grace_period: 30s", "stop_grace_period: 10s", "stop_grace_period"},
		{
			"protocol", checkAgentEnvironment, compose,
			"OTEL_EXPORTER_OTLP_PROTOCOL: grpc", "OTEL_EXPORTER_OTLP_PROTOCOL: http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL",
		},

		{
			"plugins preinstalled", checkGrafanaEnvironment, compose,
			`GF_PLUGINS_PREINSTALL_DISABLED: "true"`, `GF_PLUGINS_PREINSTALL_DISABLED: "false"`, "GF_PLUGINS_PREINSTALL_DISABLED",
		},
		{
			"plugin downloaded", checkGrafanaEnvironment, compose,
			"      GF_LOG_MODE: console", "      GF_LOG_MODE: console\n      GF_INSTALL_PLUGINS: grafana-pyroscope-app", "GF_INSTALL_PLUGINS",
		},
		{
			"home dashboard missing", checkGrafanaEnvironment, compose,
			"/etc/grafana/dashboards/service.json", "/etc/grafana/dashboards/home.json", "home.json",
		},
		{
			"anonymous administrator", checkGrafanaEnvironment, compose,
			"GF_AUTH_ANONYMOUS_ORG_ROLE: Editor", "GF_AUTH_ANONYMOUS_ORG_ROLE: Admin", "GF_AUTH_ANONYMOUS_ORG_ROLE",
		},

		{"image runs as root", checkDockerfile, dockerfile, "USER 65532:65532", "USER 0", "USER"},
		{"image user by name", checkDockerfile, dockerfile, "USER 65532:65532", "USER nobody", "USER"},
		{"image without user", checkDockerfile, dockerfile, "USER 65532:65532\n", "", "USER"},
		{"image and compose users differ", checkDockerfile, dockerfile, "USER 65532:65532", "USER 1000:1000", "docker-compose.yml"},
		{"floating builder", checkDockerfile, dockerfile, "golang:1.26.5-bookworm", "golang:latest", "golang:latest"},
		{"builder by minor version", checkDockerfile, dockerfile, "golang:1.26.5-bookworm", "golang:1.26", "golang:1.26"},
		{"final image with a shell", checkDockerfile, dockerfile, "FROM scratch", "FROM alpine:3.23.4", "scratch"},
		{"linked to libc", checkDockerfile, dockerfile, "CGO_ENABLED=0 ", "", "CGO_ENABLED=0"},
		{"machine paths in the binary", checkDockerfile, dockerfile, " -trimpath", "", "-trimpath"},
		{"entry point by shell", checkDockerfile, dockerfile, `ENTRYPOINT ["/spanflame"]`, "ENTRYPOINT /spanflame", "ENTRYPOINT"},
		{
			"no certificates", checkDockerfile, dockerfile,
			"COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt\n", "", "certificates",
		},
		{"volume owned by root", checkDockerfile, dockerfile, "--chown=65532:65532 /out/data", "/out/data", "/data"},

		{"Pyroscope on another port", checkServers, pyroscope, "http_listen_port: 4040", "http_listen_port: 4041", "4040"},
		{"Pyroscope's first storage", checkServers, pyroscope, "architecture_storage: v2", "architecture_storage: v1", "architecture_storage"},
		{"raft log lost", checkServers, pyroscope, "dir: /data/metastore/raft\n    snap", "dir: /var/raft\n    snap", "/var/raft"},
		{"Pyroscope reports usage", checkServers, pyroscope, "reporting_enabled: false", "reporting_enabled: true", "analytics"},
		{"Tempo on another port", checkServers, tempo, "http_listen_port: 3200", "http_listen_port: 3201", "3200"},
		{"receiver on another port", checkServers, tempo, "0.0.0.0:4317", "0.0.0.0:5317", "4317"},
		{"receiver on loopback", checkServers, tempo, "0.0.0.0:4317", "127.0.0.1:4317", "4317"},
		{"ingester of Tempo 2", checkServers, tempo, "usage_report:", "ingester: {}\nusage_report:", "ingester"},
		{"service map of no traces", checkServers, compose, `: "[service-graphs]"`, `: "[]"`, "service-graphs"},
		{"service map to nowhere", checkServers, tempo, "http://prometheus:9090/api/v1/write", "http://prometheus:9090/write", "remote_write"},
		{"service map not taken", checkPipeline, compose, "      - --web.enable-remote-write-receiver #", "      #", "--web.enable-remote-write-receiver"},
		{"blocks lost", checkServers, tempo, "path: /var/tempo/blocks", "path: /blocks", "/blocks"},
		{"Tempo reports usage", checkServers, tempo, "reporting_enabled: false", "reporting_enabled: true", "usage_report"},
		{"not YAML", checkServers, tempo, "server:", "server", "tempo.yaml"},

		{
			"metrics after sampling", checkPipeline, collector,
			"[memory_limiter, resource_detection]\n      exporters: [span_metrics]",
			"[memory_limiter, tail_sampling]\n      exporters: [span_metrics]",
			"before sampling",
		},
		{
			"no memory limiter", checkPipeline, collector,
			"[memory_limiter, resource_detection, tail_sampling, batch]", "[resource_detection, tail_sampling, batch]", "memory_limiter",
		},
		{"failed traces dropped", checkPipeline, collector, "status_codes: [ERROR]", "status_codes: [OK]", "tail_sampling"},
		{"slow traces dropped", checkPipeline, collector, "threshold_ms: 100", "threshold_ms: 500", "tail_sampling"},
		{"no exemplars", checkPipeline, collector, "      enabled: true\n", "      enabled: false\n", "exemplars"},
		{"traces to nowhere", checkPipeline, collector, "endpoint: tempo:4317", "endpoint: traces:4317", "traces:4317"},
		{"logs to Prometheus", checkPipeline, collector, "exporters: [otlp_http/loki]", "exporters: [otlp_http/prometheus]", "pipeline logs"},
		{"span metrics lost", checkPipeline, collector, "receivers: [otlp, span_metrics]", "receivers: [otlp]", "must receive span_metrics"},
		{"services named after the Collector's host", checkPipeline, collector, "detectors: [env]", "detectors: [env, system]", "resource_detection"},
		{"Collector's receiver on loopback", checkPipeline, collector, "endpoint: 0.0.0.0:4317", "endpoint: 127.0.0.1:4317", "receiver for grpc"},
		{"Collector's health on another port", checkPipeline, collector, "0.0.0.0:13133", "0.0.0.0:13134", "13133"},
		{"Prometheus takes no OTLP", checkPipeline, compose, "      - --web.enable-otlp-receiver\n", "", "--web.enable-otlp-receiver"},
		{"no exemplar storage", checkPipeline, compose, "      - --enable-feature=exemplar-storage\n", "", "exemplar-storage"},
		{"metrics lost", checkPipeline, compose, "      - prometheus-data:/prometheus\n", "", "on no volume"},
		{"rules not mounted", checkPipeline, compose, "/etc/prometheus/alerts.yaml:ro", "/etc/prometheus/rules.yaml:ro", "not mounted"},
		{"rules not read", checkPipeline, prometheus, "rule_files: [alerts.yaml]", "rule_files: []", "rule_files"},
		{"no version on metrics", checkPipeline, prometheus, "service.version, ", "", "service.version"},
		{
			"services not found", checkPipeline, prometheus,
			"keep_identifying_resource_attributes: true", "keep_identifying_resource_attributes: false", "target_info",
		},
		{"untested release of Prometheus", checkPipeline, compose, "prom/prometheus:v3.13.0", "prom/prometheus:v3.14.0", "builds release 3.13.0"},
		{"untested release of the Collector", checkPipeline, compose, "contrib:0.155.0", "contrib:0.159.0", "builds release 0.155.0"},
		{"alert missing", checkPipeline, alerts, "alert: HeapGrows", "alert: HeapShrinks", "HeapGrows"},
		{"alert of no service", checkPipeline, alerts, "{{ $labels.service_name }}", "service", "names the service"},
		{"alert without a link", checkPipeline, alerts, "d/spanflame-memory?", "d/spanflame-heap?", "HeapGrows: the dashboard"},
		{"alert without a paragraph", checkPipeline, runbook, "## HeapGrows", "## Memory", "HeapGrows: the runbook"},
		{"slow requests without their page", checkPipeline, alerts, "slow_requests:", "slow:", "SlowRequests: slow_requests"},
		{"nobody is notified", checkPipeline, prometheus, "alertmanager:9093", "alertmanager:9094", "alertmanager:9093"},
		{"no receiver", checkPipeline, notifier, "receiver: people", "receiver: nobody", "nobody"},
		{"receiver's address not mounted", checkPipeline, notifier, "/etc/alertmanager/receiver/url", "/etc/receiver/url", "/etc/receiver/url"},
		{"silences lost", checkPipeline, compose, "      - alertmanager-data:/alertmanager\n", "", "on no volume"},
		{"untested release of Alertmanager", checkPipeline, compose, "prom/alertmanager:v0.31.1", "prom/alertmanager:v0.35.0", "builds release 0.31.1"},
		{"alert without severity", checkPipeline, alerts, "labels: {severity: critical}", "labels: {}", "severity"},
		{"Jaeger gets no traces", checkJaeger, toJaeger, "[otlp_grpc/tempo, otlp_grpc/jaeger]", "[otlp_grpc/tempo]", "otlp_grpc/jaeger"},
		{"Tempo gets no traces", checkJaeger, toJaeger, "[otlp_grpc/tempo, otlp_grpc/jaeger]", "[otlp_grpc/jaeger]", "otlp_grpc/tempo"},
		{"traces to another port of Jaeger", checkJaeger, toJaeger, "jaeger:4317", "jaeger:4318", "jaeger:4318"},
		{"Jaeger's receiver on loopback", checkJaeger, jaegerFile, "0.0.0.0:4317", "127.0.0.1:4317", "127.0.0.1:4317"},
		{"Jaeger's pages on another port", checkJaeger, jaegerFile, "0.0.0.0:16686", "0.0.0.0:16687", "16687"},
		{"Jaeger's link for another attribute", checkJaeger, jaegerLink, `"key": "pyroscope.profile.id"`, `"key": "profile.id"`, "profile.id"},
		{"Jaeger's link without the span", checkJaeger, jaegerLink, "#{pyroscope.profile.id}", "", "spanSelector"},
		{"Jaeger's link to CPU", checkJaeger, jaegerLink, "wall%3Awall", "cpu%3Acpu", "profileTypeId"},
		{"Jaeger's link not mounted", checkJaeger, compose, "grafana.json:/etc/jaeger/ui.json", "ui.json:/etc/jaeger/ui.json", "grafana.json"},
		{"Jaeger's configuration not mounted", checkJaeger, compose, "- ./deploy/collector/jaeger.yaml:", "- ./deploy/collector/profiles.yaml:", "jaeger.yaml"},
		{"untested release of Jaeger", checkPipeline, compose, "jaegertracing/jaeger:2.13.0", "jaegertracing/jaeger:2.14.1", "builds release 2.13.0"},
		{"profiles by Pyroscope's protocol", checkOTLP, composeOTLP, "OTEL_PROFILES_EXPORTER: otlp", "OTEL_TRACES_EXPORTER: otlp", "OTEL_PROFILES_EXPORTER"},
		{"profiles not allowed", checkOTLP, composeOTLP, ", --feature-gates=service.profilesSupport", "", "service.profilesSupport"},
		{"profiles' pipeline not read", checkOTLP, composeOTLP, ", --config=/etc/otelcol/profiles.yaml", "", "profiles.yaml"},
		{"profiles' pipeline not mounted", checkOTLP, composeOTLP, "/etc/otelcol/profiles.yaml:ro", "/etc/otelcol/p.yaml:ro", "not mounted"},
		{"profiles to nowhere", checkOTLP, toPyroscope, "http://pyroscope:4040", "http://pyroscope:4041", "4041"},
		{"profiles to the log", checkOTLP, toPyroscope, "exporters: [otlp_http/pyroscope]", "exporters: [debug]", "debug"},

		{"Loki on another port", checkPipeline, loki, "http_listen_port: 3100", "http_listen_port: 3101", "3100"},
		{"logs lost", checkPipeline, loki, "chunks_directory: /loki/chunks", "chunks_directory: /tmp/chunks", "/tmp/chunks"},
		{"logs kept indefinitely", checkPipeline, loki, "retention_enabled: true", "retention_enabled: false", "retention"},
		{"Loki reports usage", checkPipeline, loki, "reporting_enabled: false", "reporting_enabled: true", "analytics"},

		{"link to nowhere", checkDataSources, datasources, "datasourceUid: pyroscope", "datasourceUid: profiles", "profiles"},
		{"link of another type", checkDataSources, datasources, "datasourceUid: pyroscope", "datasourceUid: tempo", "datasourceUid"},
		{
			"link to CPU", checkDataSources, datasources,
			"profileTypeId: wall:wall:nanoseconds:wall:nanoseconds", "profileTypeId: process_cpu:cpu:nanoseconds:cpu:nanoseconds", "profileTypeId",
		},
		{"link by template", checkDataSources, datasources, "customQuery: false", "customQuery: true", "customQuery"},
		{"default tags", checkDataSources, datasources, "        tags:\n          - key: service.name\n            value: service_name\n", "", "tags"},
		{"another tag", checkDataSources, datasources, "value: service_name", "value: service", "tags"},
		{"uid twice", checkDataSources, datasources, "    uid: pyroscope\n", "    uid: tempo\n", "twice"},
		{"no uid", checkDataSources, datasources, "    uid: pyroscope\n", "", "uid"},
		{"unknown host", checkDataSources, datasources, "http://tempo:3200", "http://traces:3200", "traces:3200"},
		{"unknown port", checkDataSources, datasources, "http://pyroscope:4040", "http://pyroscope:4041", "pyroscope:4041"},
		{"logs of no trace", checkDataSources, datasources, "filterByTraceID: true", "filterByTraceID: false", "filterByTraceID"},
		{"service map of no metrics", checkDataSources, datasources, "      serviceMap:\n        datasourceUid: prometheus\n", "", "serviceMap"},
		{"service map of every service", checkDashboards, dashboard, `"{client=\"$service\"}",`, `"{}",`, "the query is"},
		{"no service map", checkDashboards, dashboard, `"type": "nodeGraph"`, `"type": "table"`, "nodeGraph"},
		{"link to no logs", checkDataSources, datasources, "datasourceUid: loki", "datasourceUid: logs", "tracesToLogsV2"},
		{"link to no metrics", checkDataSources, datasources, "datasourceUid: prometheus", "datasourceUid: loki", "tracesToMetrics"},
		{"metrics of every service", checkDataSources, datasources, "sum(go_goroutine_count{$$__tags})", "sum(go_goroutine_count)", "Goroutines"},
		{"exemplar by another label", checkDataSources, datasources, "- name: trace_id", "- name: traceID", "exemplarTraceIdDestinations"},
		{"derived field not escaped", checkDataSources, datasources, "$${__value.raw}", "${__value.raw}", "derivedFields"},
		{"derived field of the text", checkDataSources, datasources, "matcherType: label", "matcherType: regex", "derivedFields"},
		{
			"editable", checkDataSources, datasources,
			"url: http://pyroscope:4040\n    editable: false", "url: http://pyroscope:4040\n    editable: true", "editable",
		},

		{
			"provider of another directory", checkDashboards, providers,
			"path: /etc/grafana/dashboards", "path: /var/lib/grafana/dashboards", "/var/lib/grafana/dashboards",
		},
		{"no dashboard", checkDashboards, dashboard, "", "", "no dashboard"},
		{"not JSON", checkDashboards, dashboard, `"panels": [`, `"panels": [,`, "service.json"},
		{"instance's id", checkDashboards, dashboard, `"uid": "spanflame-service"`, `"id": 7, "uid": "spanflame-service"`, "id 7"},
		{"no dashboard uid", checkDashboards, dashboard, `"uid": "spanflame-service",`, "", "uid"},
		{"no schema version", checkDashboards, dashboard, `"schemaVersion": 39,`, "", "schemaVersion"},
		{"unknown data source", checkDashboards, dashboard, `"uid": "pyroscope"`, `"uid": "profiles"`, "profiles"},
		{"data source of another type", checkDashboards, dashboard, `"type": "tempo"`, `"type": "jaeger"`, "jaeger"},
		{"unknown panel", checkDashboards, dashboard, `"type": "flamegraph"`, `"type": "flame"`, `"flame"`},
		{"flame graph of metrics", checkDashboards, dashboard, `"queryType": "profile"`, `"queryType": "metrics"`, "queryType"},
		{
			"unknown profile type", checkDashboards, dashboard,
			"memory:inuse_space:bytes:space:bytes", "memory:inuse_space:bytes", "memory:inuse_space:bytes",
		},
		{"every service at once", checkDashboards, dashboard, `"labelSelector": "{service_name=\"$service\"}"`, `"labelSelector": "{}"`, "service_name"},
		{"memory added up over windows", checkDashboards, dashboard, `"timeFrom": "15s"`, `"timeFrom": "1h"`, "one window"},
		{"children counted twice", checkDashboards, dashboard, `, span_scope=\"root\"`, "", "span_scope"},
		{"unknown variable", checkDashboards, dashboard, `service_name=\"$service\"`, `service_name=\"$service\", pod=\"$pod\"`, "$pod"},
		{
			"variable of an unknown data source", checkDashboards, memory,
			"\"datasource\": {\n          \"type\": \"prometheus\",\n          \"uid\": \"prometheus\"\n        },\n        \"definition\"",
			"\"datasource\": {\"type\": \"prometheus\", \"uid\": \"mimir\"},\n        \"definition\"",
			"mimir",
		},
		{"time shift by an unknown variable", checkDashboards, memory, `"timeShift": "$ago"`, `"timeShift": "$earlier"`, "$earlier"},
		{
			"empty query", checkDashboards, dashboard,
			`"query": "{ resource.service.name = \"$service\" && kind = server && duration >= 100ms }"`, `"query": ""`, "Slow traces",
		},
		{
			"metrics of every service", checkDashboards, dashboard,
			`traces_span_metrics_calls_total{service_name=\"$service\", `, `traces_span_metrics_calls_total{`, "must name the service",
		},
		{"logs of every service", checkDashboards, dashboard, `"expr": "{service_name=\"$service\"}"`, `"expr": "{}"`, "must name the service"},
		{"logs in a table", checkDashboards, dashboard, `"type": "logs"`, `"type": "table"`, "does not show"},
		{"dashboard uid twice", checkDashboards, memory, `"uid": "spanflame-memory"`, `"uid": "spanflame-service"`, "is that of"},
		{"another title", checkDashboards, dashboard, `"title": "Service"`, `"title": "Services"`, "no dashboard Service"},
		{"panels overlap", checkDashboards, dashboard, `"x": 12,`, `"x": 6,`, "overlap"},
		{"panel out of the grid", checkDashboards, dashboard, `"w": 24,`, `"w": 25,`, "grid"},
		{"panel without height", checkDashboards, dashboard, `"h": 9`, `"h": 0`, "grid"},
		{"panel id twice", checkDashboards, dashboard, `"id": 2,`, `"id": 1,`, "panel id 1"},
		{"no flame graph", checkDashboards, dashboard, `"type": "flamegraph"`, `"type": "table"`, "has no panel of type flamegraph"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			files := repository(t)
			if row.old == "" {
				delete(files, row.file)
			} else {
				before := string(files[row.file].Data)
				after := strings.ReplaceAll(before, row.old, row.new)
				if after == before {
					t.Fatalf("%s has no %q to break", row.file, row.old)
				}
				files[row.file].Data = []byte(after)
			}
			errs := row.check(files)
			for _, err := range errs {
				if strings.Contains(err.Error(), row.want) {
					return
				}
			}
			t.Errorf("got %v, want an error with %q", errs, row.want)
		})
	}
}
