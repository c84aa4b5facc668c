package agent

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	pyroscope "github.com/grafana/pyroscope-go"

	"spanflame/agent/internal/identity"
	"spanflame/agent/internal/instance"
	"spanflame/agent/internal/push"
	"spanflame/internal/record"
)

// clearEnv takes every variable that an agent reads out of the test's environment.
func clearEnv(t *testing.T) {
	t.Helper()
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "OTEL_") || strings.HasPrefix(name, "PYROSCOPE_") || strings.HasPrefix(name, "SPANFLAME_") {
			t.Setenv(name, "")
		}
	}
}

func TestConfigFromEnv(t *testing.T) {
	clearEnv(t)
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"OTEL_SERVICE_NAME":                  "checkout",
		"OTEL_RESOURCE_ATTRIBUTES":           "service.version=1.2.3, deployment.environment.name=prod,service.instance.id=pod-1,team=a%2Cb",
		"PYROSCOPE_SERVER_ADDRESS":           "https://pyroscope:4040",
		"PYROSCOPE_BASIC_AUTH_USER":          "user",
		"PYROSCOPE_BASIC_AUTH_PASSWORD_FILE": secret,
		"PYROSCOPE_TENANT_ID":                "tenant",
		"PYROSCOPE_HTTP_HEADERS":             `{"X-One":"1"}`,
		"PYROSCOPE_LABELS":                   "region=eu, zone=a",
		"PYROSCOPE_UPLOAD_INTERVAL":          "5s",
		"SPANFLAME_PROFILE_TYPES":            "cpu, inuse_space",
		"SPANFLAME_MUTEX_PROFILE_FRACTION":   "10",
		"SPANFLAME_BLOCK_PROFILE_RATE":       "1ms",
		"SPANFLAME_SLOW_SPAN":                "250ms",
		"SPANFLAME_WALL_RING_BYTES":          "4KiB",
		"SPANFLAME_WALL_CPU_SHARE":           "5%",
		"SPANFLAME_WALL_MODE":                "armed",
		"SPANFLAME_DIR":                      "/saved",
		"SPANFLAME_DIR_MAX_BYTES":            "2000000",
		"SPANFLAME_DIR_MAX_AGE":              "3h",
		"SPANFLAME_SPOOL_DIR":                "/spool",
		"SPANFLAME_SPOOL_MAX_BYTES":          "1000",
		"SPANFLAME_SPOOL_MAX_AGE":            "2h",
		"SPANFLAME_ADMIN_ADDRESS":            "off",
	} {
		t.Setenv(name, value)
	}
	got, err := ConfigFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		ServiceName: "checkout",
		ResourceAttributes: map[string]string{
			"service.version": "1.2.3", "deployment.environment.name": "prod", "service.instance.id": "pod-1", "team": "a,b",
		},
		PyroscopeAddress:           "https://pyroscope:4040",
		PyroscopeBasicAuthUser:     "user",
		PyroscopeBasicAuthPassword: "s3cret",
		PyroscopeTenantID:          "tenant",
		PyroscopeHeaders:           map[string]string{"X-One": "1"},
		ProfileLabels:              map[string]string{"region": "eu", "zone": "a"},
		ProfileTypes:               []pyroscope.ProfileType{pyroscope.ProfileCPU, pyroscope.ProfileInuseSpace},
		Window:                     5 * time.Second,
		MutexProfileFraction:       10,
		BlockProfileRate:           time.Millisecond,
		SlowSpan:                   250 * time.Millisecond,
		WallRingBytes:              4096,
		WallCPUShare:               0.05,
		WallMode:                   "armed",
		Dir:                        "/saved",
		DirMaxBytes:                2000000,
		DirMaxAge:                  3 * time.Hour,
		SpoolDir:                   "/spool",
		SpoolMaxBytes:              1000,
		SpoolMaxAge:                2 * time.Hour,
		AdminAddress:               "off",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	full := got.withDefaults()
	if err := full.Validate(); err != nil {
		t.Error(err)
	}
	want2 := map[string]string{
		"service_name": "checkout", "service_version": "1.2.3", "service_instance_id": "pod-1", "deployment_environment_name": "prod",
	}
	if got, want := identity.Labels(full.ResourceAttributes), want2; !reflect.DeepEqual(got, want) {
		t.Errorf("identity %v, want %v", got, want)
	}
	if got, want := full.recordTypes(), []record.Type{record.Memory, record.CPU}; !reflect.DeepEqual(got, want) {
		t.Errorf("record types %v, want %v", got, want)
	}
}

// TestWhereThingsAreKept: without a server profiles are saved below the user's cache directory, with one they
// wait there; the two never share a directory.
func TestWhereThingsAreKept(t *testing.T) {
	clearEnv(t)
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", "")
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	const server = "http://127.0.0.1:4040"
	saved := filepath.Join(cache, "spanflame", "saved")
	for _, tt := range []struct {
		address, dir, want string
		saves              bool
	}{
		{"", "", saved, true},
		{"", "/mine", "/mine", true},
		{"", "off", "off", false},
		{server, "", "", false},
		{server, "/mine", "/mine", true},
		{server, "off", "off", false},
	} {
		c := Config{ServiceName: "saved", PyroscopeAddress: tt.address, Dir: tt.dir}.over(Config{}).withDefaults()
		if c.Dir != tt.want || c.saves() != tt.saves {
			t.Errorf("address %q, directory %q: saved in %q: %v, want %q: %v", tt.address, tt.dir, c.Dir, c.saves(), tt.want, tt.saves)
		}
		if want := filepath.Join(cache, "spanflame", "spool", "saved"); c.SpoolDir != want {
			t.Errorf("the spool is in %q, want %q", c.SpoolDir, want)
		}
	}
	if c := (Config{ServiceName: ".."}).over(Config{}).withDefaults(); filepath.Dir(c.SpoolDir) != filepath.Join(cache, "spanflame", "spool") {
		t.Errorf("a service called .. has its spool in %q", c.SpoolDir)
	}
	t.Setenv("HOME", "")
	t.Setenv("XDG_CACHE_HOME", "")
	if c := (Config{}).over(Config{}).withDefaults(); c.Dir != "" || c.saves() || c.SpoolDir != "" {
		t.Errorf("without a home saved in %q and spooled in %q, want neither", c.Dir, c.SpoolDir)
	}
}

func TestSlowSpanOff(t *testing.T) {
	for _, value := range []string{"off", "0"} {
		clearEnv(t)
		t.Setenv("SPANFLAME_SLOW_SPAN", value)
		c, err := ConfigFromEnv()
		if err != nil || c.withDefaults().SlowSpan >= 0 {
			t.Errorf("SPANFLAME_SLOW_SPAN=%s: %v, %v, want below zero", value, c.SlowSpan, err)
		}
	}
}

func TestWrongEnvironment(t *testing.T) {
	for _, tt := range []struct{ name, value, says string }{
		{"OTEL_RESOURCE_ATTRIBUTES", "a", `OTEL_RESOURCE_ATTRIBUTES="a": want name=value pairs`},
		{"OTEL_RESOURCE_ATTRIBUTES", "a=%zz", "a percent-encoded value for a"},
		{"PYROSCOPE_LABELS", "=x", "name=value pairs"},
		{"PYROSCOPE_HTTP_HEADERS", "hunter2", "PYROSCOPE_HTTP_HEADERS: want a JSON object"},
		{"PYROSCOPE_UPLOAD_INTERVAL", "15m", `PYROSCOPE_UPLOAD_INTERVAL="15m": want 1s to 10m`},
		{"PYROSCOPE_UPLOAD_INTERVAL", "-1s", "a duration above zero"},
		{"SPANFLAME_MUTEX_PROFILE_FRACTION", "x", "want a whole number above zero"},
		{"SPANFLAME_SLOW_SPAN", "-5s", `SPANFLAME_SLOW_SPAN="-5s": want a duration`},
		{"SPANFLAME_WALL_CPU_SHARE", "2", `SPANFLAME_WALL_CPU_SHARE="2": want a share`},
		{"SPANFLAME_DIR_MAX_BYTES", "1 gigabyte", `SPANFLAME_DIR_MAX_BYTES="1 gigabyte": want a whole number of bytes above zero`},
		{"PYROSCOPE_UPLOAD_INTERVAL", "abc", `want a duration above zero with its unit, like "15s" or "7d", or a number of seconds`},
		{"SPANFLAME_DIR_MAX_AGE", "7w", `SPANFLAME_DIR_MAX_AGE="7w": want a duration above zero with its unit`},
		{"SPANFLAME_SPOOL_MAX_BYTES", "-5", `SPANFLAME_SPOOL_MAX_BYTES="-5"`},
		{"PYROSCOPE_BASIC_AUTH_PASSWORD_FILE", "/does/not/exist", "PYROSCOPE_BASIC_AUTH_PASSWORD_FILE: open /does/not/exist"},
	} {
		t.Run(tt.name+"="+tt.value, func(t *testing.T) {
			clearEnv(t)
			t.Setenv(tt.name, tt.value)
			_, err := ConfigFromEnv()
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
	t.Run("a secret given twice", func(t *testing.T) {
		clearEnv(t)
		t.Setenv("PYROSCOPE_AUTH_TOKEN", "hunter2")
		t.Setenv("PYROSCOPE_AUTH_TOKEN_FILE", "/dev/null")
		_, err := ConfigFromEnv()
		if err == nil || !strings.Contains(err.Error(), "PYROSCOPE_AUTH_TOKEN and PYROSCOPE_AUTH_TOKEN_FILE") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a secret without end", func(t *testing.T) {
		clearEnv(t)
		t.Setenv("PYROSCOPE_AUTH_TOKEN_FILE", "/dev/zero")
		_, err := ConfigFromEnv()
		if err == nil || !strings.Contains(err.Error(), "at most 65536 bytes") {
			t.Errorf("error %v", err)
		}
	})
}

// TestWhatIsDiscardedIsLogged covers profiles that are discarded although nobody chose that, and a misspelt variable.
func TestWhatIsDiscardedIsLogged(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // accepts everything
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
	}))
	defer server.Close()
	for _, tt := range []struct {
		name string
		env  map[string]string
		want []string // of warnings, in their order
	}{
		{"all is off", map[string]string{"SPANFLAME_DIR": "off"}, []string{"no profiles are captured"}},
		{"a server", map[string]string{"PYROSCOPE_SERVER_ADDRESS": "SERVER"}, nil},
		{"misspelt", map[string]string{"SPANFLAME_DIR": "DIR", "SPANFLAME_TEMPO_ADDRESS": "SERVER", "SPANFLAME_SLOWSPAN": "1s"}, []string{"SPANFLAME_SLOWSPAN"}},
		{"saved", map[string]string{"SPANFLAME_DIR": "DIR"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clearEnv(t)
			for name, value := range tt.env {
				switch value {
				case "DIR":
					value = t.TempDir()
				case "SERVER":
					value = server.URL
				}
				t.Setenv(name, value)
			}
			var out bytes.Buffer
			a, err := Start(t.Context(), Config{ServiceName: "svc", SpoolDir: t.TempDir(), AdminAddress: "off", SlowSpan: -1, Logger: logTo(&out)})
			if err != nil {
				t.Fatal(err)
			}
			shutdown(t, a)
			if got := warnings(out.String()); len(got) != len(tt.want) || len(got) > 0 && !strings.Contains(got[0], tt.want[0]) {
				t.Errorf("warnings %q, want %q", got, tt.want)
			}
		})
	}
}

// warnings returns the lines of a JSON log that are warnings.
func warnings(log string) (lines []string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, `"level":"WARN"`) {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestValidate(t *testing.T) {
	clearEnv(t)
	for _, tt := range []struct {
		name   string
		change func(*Config)
		says   string // "" where the configuration is right
	}{
		{"nothing set", func(*Config) {}, ""},
		{"address", func(c *Config) { c.PyroscopeAddress = "pyroscope:4040" }, `PyroscopeAddress (PYROSCOPE_SERVER_ADDRESS) "pyroscope:4040": want a URL`},
		{"the service's name as a label", func(c *Config) { c.ProfileLabels = map[string]string{"service_name": "x"} },
			`ProfileLabels (PYROSCOPE_LABELS) "service_name"`},
		{"address with a password", func(c *Config) { c.PyroscopeAddress = "ftp://u:hunter2@h" }, "PyroscopeAddress"},
		{"label", func(c *Config) { c.ProfileLabels = map[string]string{"a-b": "x"} }, `ProfileLabels (PYROSCOPE_LABELS) "a-b"`},
		{"reserved label", func(c *Config) { c.ProfileLabels = map[string]string{"__name__": "x"} }, `ProfileLabels (PYROSCOPE_LABELS) "__name__"`},
		{"profile type", func(c *Config) { c.ProfileTypes = []pyroscope.ProfileType{"gpu"} },
			`ProfileTypes (SPANFLAME_PROFILE_TYPES) "gpu": want one or more of alloc_objects, alloc_space`},
		{"short window", func(c *Config) { c.Window = time.Millisecond }, `Window (PYROSCOPE_UPLOAD_INTERVAL) "1ms": want 1s to 10m`},
		{"long window", func(c *Config) { c.Window = time.Hour }, "Window"},
		{"negative fraction", func(c *Config) { c.MutexProfileFraction = -1 }, `MutexProfileFraction (SPANFLAME_MUTEX_PROFILE_FRACTION) "-1"`},
		{"negative rate", func(c *Config) { c.BlockProfileRate = -1 }, "BlockProfileRate"},
		{"small directory", func(c *Config) { c.DirMaxBytes = 1 << 19 }, `DirMaxBytes (SPANFLAME_DIR_MAX_BYTES) "524288": want at least 1MiB`},
		{"negative age in the directory", func(c *Config) { c.DirMaxAge = -time.Hour }, `DirMaxAge (SPANFLAME_DIR_MAX_AGE) "-1h0m0s": want a duration above zero`},
		{"nothing saved", func(c *Config) { c.Dir = "off" }, ""},
		{"listener", func(c *Config) { c.AdminAddress = "6060" }, `AdminAddress (SPANFLAME_ADMIN_ADDRESS) "6060": want host:port`},
		{"listener off", func(c *Config) { c.AdminAddress = "off" }, ""},
		{"listener by service name", func(c *Config) { c.AdminAddress = "127.0.0.1:http" }, "numeric port"},
		{"two things at once", func(c *Config) { c.Window, c.AdminAddress = time.Hour, "x" }, "AdminAddress"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c Config
			tt.change(&c)
			err := c.Validate()
			if tt.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

func TestNamesAmongTheCallersAttributesWin(t *testing.T) {
	clearEnv(t)
	c := Config{ResourceAttributes: map[string]string{"service.name": "mine", "service.version": "2"}}.
		over(Config{ServiceName: "theirs", ResourceAttributes: map[string]string{"service.version": "1", "deployment.environment.name": "prod"}}).
		withDefaults()
	if got, want := [3]string{c.ServiceName, c.ServiceVersion, c.Environment}, [3]string{"mine", "2", "prod"}; got != want {
		t.Errorf("name, version and environment are %q, want %q", got, want)
	}
	if c.ResourceAttributes["service.name"] != "mine" {
		t.Errorf("attributes %v", c.ResourceAttributes)
	}
}

// TestInstances: where profiles are delivered or saved, the process has an identity of its own.
func TestInstances(t *testing.T) {
	const server = "http://127.0.0.1:9"
	for want, c := range map[string]Config{
		"[/spool]":       {PyroscopeAddress: server, SpoolDir: "/spool"},
		"[/spool /save]": {PyroscopeAddress: server, SpoolDir: "/spool", Dir: "/save"},
		"[/save]":        {SpoolDir: "/spool", Dir: "/save"},
		"[]":             {SpoolDir: "/spool", Dir: off},
	} {
		if got := fmt.Sprint(c.kept()); got != want {
			t.Errorf("%+v: kept in %s, want %s", c, got, want)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	cfg := quiet(t)
	cfg.PyroscopeAddress = server
	other, err := instance.Claim(cfg.ServiceName, host, cfg.SpoolDir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Release()
	for range 2 { // the second one as the first has ended
		a, err := Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.cfg.ResourceAttributes[identity.ServiceInstance]; got != host+"-1" {
			t.Errorf("the second process is the instance %q, want %q", got, host+"-1")
		}
		if err := a.Shutdown(t.Context()); err == nil {
			t.Error("nothing is left for the next start")
		}
	}
	records, err := filepath.Glob(filepath.Join(cfg.SpoolDir, "0", "*.pb.gz"))
	if err != nil || len(records) == 0 {
		t.Fatalf("records %v, %v", records, err)
	}
	f, err := os.Open(records[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if m, err := record.DecodeMeta(f); err != nil || m.Labels[record.InstanceLabel] != host+"-1" {
		t.Errorf("labels %v, %v", m.Labels, err)
	}
}

func TestTheCallersFieldsWin(t *testing.T) {
	labels := map[string]string{"region": "eu"}
	c := Config{ServiceName: "mine", ProfileLabels: labels, ResourceAttributes: map[string]string{"a": "1"}}.over(Config{
		ServiceName: "theirs", Window: time.Minute, ProfileLabels: map[string]string{"region": "us"},
		ResourceAttributes: map[string]string{"a": "2", "b": "2"},
	})
	labels["region"] = "changed"
	if c.ServiceName != "mine" || c.Window != time.Minute || c.ProfileLabels["region"] != "eu" {
		t.Errorf("got %+v", c)
	}
	if want := map[string]string{"a": "1", "b": "2"}; !reflect.DeepEqual(c.ResourceAttributes, want) {
		t.Errorf("attributes %v, want %v", c.ResourceAttributes, want)
	}
}

// TestProfilesByOTLP: profiles are sent by OTLP only where somebody chose that. What OTLP sets for all signals counts where
// nothing is set for profiles.
func TestProfilesByOTLP(t *testing.T) {
	const pyroscope = "http://pyroscope:4040"
	for name, tt := range map[string]struct {
		env      map[string]string
		exporter string
		url      string
		protocol push.Protocol
		header   string // X-Key
	}{
		"nothing is set":        {nil, "none", "", push.Pyroscope, ""},
		"OTLP of other signals": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "none", "", push.Pyroscope, ""},
		"Pyroscope": {map[string]string{"PYROSCOPE_SERVER_ADDRESS": pyroscope, "OTEL_EXPORTER_OTLP_HEADERS": "x-key=1"},
			"pyroscope", pyroscope, push.Pyroscope, ""},
		"both": {map[string]string{"PYROSCOPE_SERVER_ADDRESS": pyroscope, "OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT": "http://p/x"},
			"pyroscope", pyroscope, push.Pyroscope, ""},
		"both, and OTLP is chosen": {map[string]string{"PYROSCOPE_SERVER_ADDRESS": pyroscope, "OTEL_PROFILES_EXPORTER": "otlp",
			"OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT": "http://p/x"}, "otlp", "http://p/x", push.OTLPHTTP, ""},
		"none is chosen": {map[string]string{"PYROSCOPE_SERVER_ADDRESS": pyroscope, "OTEL_PROFILES_EXPORTER": "none"}, "none", pyroscope, push.Pyroscope, ""},
		"an endpoint for profiles": {map[string]string{"OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT": "http://p/x", "OTEL_EXPORTER_OTLP_HEADERS": "x-key=1"},
			"otlp", "http://p/x", push.OTLPHTTP, "1"},
		"the common endpoint": {map[string]string{"OTEL_PROFILES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/a/",
			"OTEL_EXPORTER_OTLP_PROFILES_HEADERS": "x-key=%32", "OTEL_EXPORTER_OTLP_HEADERS": "x-key=1"},
			"otlp", "http://c:4318/a/v1development/profiles", push.OTLPHTTP, "2"},
		"the common endpoint with gRPC": {map[string]string{"OTEL_PROFILES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317",
			"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp", "http://c:4317", push.OTLPGRPC, ""},
		"gRPC for profiles alone": {map[string]string{"OTEL_PROFILES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
			"OTEL_EXPORTER_OTLP_PROFILES_PROTOCOL": "grpc"}, "otlp", "http://localhost:4317", push.OTLPGRPC, ""},
		"no endpoint":         {map[string]string{"OTEL_PROFILES_EXPORTER": "otlp"}, "otlp", "http://localhost:4318/v1development/profiles", push.OTLPHTTP, ""},
		"no Pyroscope server": {map[string]string{"OTEL_PROFILES_EXPORTER": "pyroscope"}, "none", "", push.Pyroscope, ""},
	} {
		t.Run(name, func(t *testing.T) {
			clearEnv(t)
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			c, ignored, err := Config{}.resolve()
			if err != nil || len(ignored) > 0 {
				t.Fatal(err, ignored)
			}
			server := c.Server()
			if c.ProfilesExporter != tt.exporter || server.URL != tt.url || server.Protocol != tt.protocol || server.Headers["x-key"] != tt.header {
				t.Errorf("%s: %q %q %v, want %s: %q %q %q", c.ProfilesExporter, server.URL, server.Protocol, server.Headers,
					tt.exporter, tt.url, tt.protocol, tt.header)
			}
			if saved := c.Dir != off && c.Dir != ""; saved == c.Delivers() {
				t.Errorf("saved: %t, sent: %t", saved, c.Delivers())
			}
		})
	}
	clearEnv(t)
	t.Setenv("OTEL_PROFILES_EXPORTER", "otlp")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier pigeon")
	if _, ignored, err := (Config{}).resolve(); err != nil || len(ignored) != 1 || !strings.Contains(ignored[0].Error(), "OTEL_EXPORTER_OTLP_PROTOCOL") {
		t.Errorf("%v, ignored %v", err, ignored)
	}
}
