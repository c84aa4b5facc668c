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

// check is one family of rules. It reports everything that is wrong, each error naming the file and the item.
type check func(fsys fs.FS) []error

// repository copies what the checks read out of the working tree, so that a test can break one thing.
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
	add("docker-compose.yml")
	add("Dockerfile")
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ext := path.Ext(name); ext == ".yaml" || ext == ".json" {
			add(path.Join("deploy", name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestFilesHoldTogether(t *testing.T) {
	for name, check := range map[string]check{
		"compose":     checkCompose,
		"agent":       checkAgentEnvironment,
		"grafana":     checkGrafanaEnvironment,
		"Dockerfile":  checkDockerfile,
		"servers":     checkServers,
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
	dockerfile  = "Dockerfile"
	pyroscope   = "deploy/pyroscope/pyroscope.yaml"
	tempo       = "deploy/tempo/tempo.yaml"
	datasources = "deploy/grafana/provisioning/datasources/datasources.yaml"
	providers   = "deploy/grafana/provisioning/dashboards/dashboards.yaml"
	dashboard   = "deploy/grafana/dashboards/service.json"
)

// TestChecksFindWhatIsBroken breaks one thing per row: old becomes new in one file, and the check must say want.
func TestChecksFindWhatIsBroken(t *testing.T) {
	rows := []struct {
		name     string
		check    check
		file     string
		old, new string // an empty old removes the file
		want     string
	}{
		{"unknown key", checkCompose, compose, "    mem_limit: 128m", "    memory: 128m", "memory"},
		{"latest tag", checkCompose, compose, "grafana/tempo:3.0.3", "grafana/tempo:latest", "pinned"},
		{"no tag", checkCompose, compose, "grafana/tempo:3.0.3", "grafana/tempo", "pinned"},
		{"floating tag", checkCompose, compose, "grafana/tempo:3.0.3", "grafana/tempo:main", "pinned"},
		{"tag twice", checkCompose, compose, "  load:\n    <<: *spanflame\n", "  load:\n    <<: *spanflame\n    image: grafana/tempo:3.0.3\n", "2 times"},
		{"versions differ", checkCompose, compose, "VERSION: ${SPANFLAME_VERSION:-0.1.0}", "VERSION: ${SPANFLAME_VERSION:-0.2.0}", "SPANFLAME_VERSION"},
		{"no health check", checkCompose, compose, "    healthcheck:\n      <<: *health\n      test: [CMD, wget, -q, -O, /dev/null, \"http://127.0.0.1:3000/api/health\"]\n", "", "grafana: no health check"},
		{"health check by shell", checkCompose, compose, "[CMD, /tempo, -health, \"-health.url=http://127.0.0.1:3200/ready\"]", "wget -q http://127.0.0.1:3200/ready", "tempo: health check"},
		{"health check switched off", checkCompose, compose, "      test: [CMD, /tempo, -health, \"-health.url=http://127.0.0.1:3200/ready\"]", "      disable: true", "tempo: no health check"},
		{"starts too early", checkCompose, compose, "      storefront: {condition: service_healthy}", "      storefront: {condition: service_started}", "load: depends on storefront"},
		{"dependency missing", checkCompose, compose, "      inventory: {condition: service_healthy}\n", "", "storefront: does not wait for inventory"},
		{"dependency unknown", checkCompose, compose, "      inventory: {condition: service_healthy}", "      stock: {condition: service_healthy}", "stock"},
		{"published on all interfaces", checkCompose, compose, "127.0.0.1:3000:3000", "3000:3000", "grafana: publishes"},
		{"published beyond the two", checkCompose, compose, "    image: grafana/tempo:3.0.3\n", "    image: grafana/tempo:3.0.3\n    ports: [\"127.0.0.1:3200:3200\"]\n", "tempo: publishes"},
		{"storefront not published", checkCompose, compose, "    ports: [\"127.0.0.1:8080:8080\"]\n", "", "storefront: publishes"},
		{"root", checkCompose, compose, `user: "65532:65532"`, `user: "0:0"`, "user"},
		{"user by name", checkCompose, compose, `user: "10001:10001" # the image's own user` + "\n    environment:\n      GOMEMLIMIT: 900MiB\n    volumes:\n      - ./deploy/tempo", "user: tempo\n    environment:\n      GOMEMLIMIT: 900MiB\n    volumes:\n      - ./deploy/tempo", "tempo: user"},
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
		{"password", checkCompose, compose, "      GF_LOG_MODE: console", "      GF_LOG_MODE: console\n      GF_SECURITY_ADMIN_PASSWORD: admin", "GF_SECURITY_ADMIN_PASSWORD"},
		{"credentials in a URL", checkCompose, compose, "http://pyroscope:4040", "http://user:pass@pyroscope:4040", "credentials"},

		{"service name", checkAgentEnvironment, compose, "OTEL_SERVICE_NAME: inventory", "OTEL_SERVICE_NAME: stock", "OTEL_SERVICE_NAME"},
		{"logs to Tempo", checkAgentEnvironment, compose, "OTEL_LOGS_EXPORTER: none", "OTEL_LOGS_EXPORTER: otlp", "OTEL_LOGS_EXPORTER"},
		{"admin listener open", checkAgentEnvironment, compose, "SPANFLAME_ADMIN_ADDRESS: 127.0.0.1:6060", "SPANFLAME_ADMIN_ADDRESS: 0.0.0.0:6060", "SPANFLAME_ADMIN_ADDRESS"},
		{"no version label", checkAgentEnvironment, compose, "service.version=${SPANFLAME_VERSION:-0.1.0},", "", "service.version"},
		{"spool on no volume", checkAgentEnvironment, compose, "SPANFLAME_SPOOL_DIR: /data/spool", "SPANFLAME_SPOOL_DIR: /spool", "SPANFLAME_SPOOL_DIR"},
		{"killed before the last profiles", checkAgentEnvironment, compose, "stop_grace_period: 30s", "stop_grace_period: 10s", "stop_grace_period"},
		{"protocol", checkAgentEnvironment, compose, "OTEL_EXPORTER_OTLP_PROTOCOL: grpc", "OTEL_EXPORTER_OTLP_PROTOCOL: http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL"},

		{"plugins preinstalled", checkGrafanaEnvironment, compose, `GF_PLUGINS_PREINSTALL_DISABLED: "true"`, `GF_PLUGINS_PREINSTALL_DISABLED: "false"`, "GF_PLUGINS_PREINSTALL_DISABLED"},
		{"plugin downloaded", checkGrafanaEnvironment, compose, "      GF_LOG_MODE: console", "      GF_LOG_MODE: console\n      GF_INSTALL_PLUGINS: grafana-pyroscope-app", "GF_INSTALL_PLUGINS"},
		{"home dashboard missing", checkGrafanaEnvironment, compose, "/etc/grafana/dashboards/service.json", "/etc/grafana/dashboards/home.json", "home.json"},
		{"anonymous administrator", checkGrafanaEnvironment, compose, "GF_AUTH_ANONYMOUS_ORG_ROLE: Editor", "GF_AUTH_ANONYMOUS_ORG_ROLE: Admin", "GF_AUTH_ANONYMOUS_ORG_ROLE"},

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
		{"no certificates", checkDockerfile, dockerfile, "COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt\n", "", "certificates"},
		{"volume owned by root", checkDockerfile, dockerfile, "--chown=65532:65532 /out/data", "/out/data", "/data"},

		{"Pyroscope on another port", checkServers, pyroscope, "http_listen_port: 4040", "http_listen_port: 4041", "4040"},
		{"Pyroscope's first storage", checkServers, pyroscope, "architecture_storage: v2", "architecture_storage: v1", "architecture_storage"},
		{"raft log lost", checkServers, pyroscope, "dir: /data/metastore/raft\n    snap", "dir: /var/raft\n    snap", "/var/raft"},
		{"Pyroscope reports usage", checkServers, pyroscope, "reporting_enabled: false", "reporting_enabled: true", "analytics"},
		{"Tempo on another port", checkServers, tempo, "http_listen_port: 3200", "http_listen_port: 3201", "3200"},
		{"receiver on another port", checkServers, tempo, "0.0.0.0:4317", "0.0.0.0:5317", "4317"},
		{"receiver on loopback", checkServers, tempo, "0.0.0.0:4317", "127.0.0.1:4317", "4317"},
		{"ingester of Tempo 2", checkServers, tempo, "usage_report:", "ingester: {}\nusage_report:", "ingester"},
		{"blocks lost", checkServers, tempo, "path: /var/tempo/blocks", "path: /blocks", "/blocks"},
		{"Tempo reports usage", checkServers, tempo, "reporting_enabled: false", "reporting_enabled: true", "usage_report"},
		{"not YAML", checkServers, tempo, "server:", "server", "tempo.yaml"},

		{"link to nowhere", checkDataSources, datasources, "datasourceUid: pyroscope", "datasourceUid: profiles", "profiles"},
		{"link of another type", checkDataSources, datasources, "datasourceUid: pyroscope", "datasourceUid: tempo", "datasourceUid"},
		{"link to CPU", checkDataSources, datasources, "profileTypeId: wall:wall:nanoseconds:wall:nanoseconds", "profileTypeId: process_cpu:cpu:nanoseconds:cpu:nanoseconds", "profileTypeId"},
		{"link by template", checkDataSources, datasources, "customQuery: false", "customQuery: true", "customQuery"},
		{"default tags", checkDataSources, datasources, "        tags:\n          - key: service.name\n            value: service_name\n", "", "tags"},
		{"another tag", checkDataSources, datasources, "value: service_name", "value: service", "tags"},
		{"uid twice", checkDataSources, datasources, "    uid: pyroscope\n", "    uid: tempo\n", "twice"},
		{"no uid", checkDataSources, datasources, "    uid: pyroscope\n", "", "uid"},
		{"unknown host", checkDataSources, datasources, "http://tempo:3200", "http://traces:3200", "traces:3200"},
		{"unknown port", checkDataSources, datasources, "http://pyroscope:4040", "http://pyroscope:4041", "pyroscope:4041"},
		{"editable", checkDataSources, datasources, "url: http://pyroscope:4040\n    editable: false", "url: http://pyroscope:4040\n    editable: true", "editable"},

		{"provider of another directory", checkDashboards, providers, "path: /etc/grafana/dashboards", "path: /var/lib/grafana/dashboards", "/var/lib/grafana/dashboards"},
		{"no dashboard", checkDashboards, dashboard, "", "", "no dashboard"},
		{"not JSON", checkDashboards, dashboard, `"panels": [`, `"panels": [,`, "service.json"},
		{"instance's id", checkDashboards, dashboard, `"uid": "spanflame-service"`, `"id": 7, "uid": "spanflame-service"`, "id 7"},
		{"no dashboard uid", checkDashboards, dashboard, `"uid": "spanflame-service",`, "", "uid"},
		{"no schema version", checkDashboards, dashboard, `"schemaVersion": 39,`, "", "schemaVersion"},
		{"unknown data source", checkDashboards, dashboard, `"uid": "pyroscope"`, `"uid": "profiles"`, "profiles"},
		{"data source of another type", checkDashboards, dashboard, `"type": "tempo"`, `"type": "jaeger"`, "jaeger"},
		{"unknown panel", checkDashboards, dashboard, `"type": "flamegraph"`, `"type": "flame"`, `"flame"`},
		{"flame graph of metrics", checkDashboards, dashboard, `"queryType": "profile"`, `"queryType": "metrics"`, "queryType"},
		{"unknown profile type", checkDashboards, dashboard, "memory:inuse_space:bytes:space:bytes", "memory:inuse_space:bytes", "memory:inuse_space:bytes"},
		{"every service at once", checkDashboards, dashboard, `"labelSelector": "{service_name=\"$service\"}"`, `"labelSelector": "{}"`, "service_name"},
		{"memory added up over windows", checkDashboards, dashboard, `"timeFrom": "15s"`, `"timeFrom": "1h"`, "one window"},
		{"children counted twice", checkDashboards, dashboard, `, span_scope=\"root\"`, "", "span_scope"},
		{"unknown variable", checkDashboards, dashboard, `service_name=\"$service\"`, `service_name=\"$service\", pod=\"$pod\"`, "$pod"},
		{"variable without that service", checkDashboards, dashboard, `"query": "storefront,inventory"`, `"query": "storefront,stock"`, "stock"},
		{"empty query", checkDashboards, dashboard, `"query": "{ resource.service.name = \"$service\" && kind = server } | rate() by (name)"`, `"query": ""`, "Requests"},
		{"panels overlap", checkDashboards, dashboard, `"x": 12,`, `"x": 6,`, "overlap"},
		{"panel out of the grid", checkDashboards, dashboard, `"w": 24,`, `"w": 25,`, "grid"},
		{"panel without height", checkDashboards, dashboard, `"h": 9`, `"h": 0`, "grid"},
		{"panel id twice", checkDashboards, dashboard, `"id": 2,`, `"id": 1,`, "panel id 1"},
		{"no flame graph", checkDashboards, dashboard, `"type": "flamegraph"`, `"type": "table"`, "no flame graph"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
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
