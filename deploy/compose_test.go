package deploy_test

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
)

// root replaces the directory of the compose file, so that resolved paths are the same on every machine.
const root = "/repository"

// The compose file's profiles.
const (
	full    = "full"
	minimal = "minimal"
	jaeger  = "jaeger"
)

// services lists the services of each profile, with the services that each must wait for.
var services = map[string]map[string][]string{
	full: {
		"storefront":   {"inventory", "postgres", "pyroscope", "collector"},
		"inventory":    {"pyroscope", "collector"},
		"load":         {"storefront"},
		"postgres":     nil,
		"collector":    {"tempo", "prometheus", "loki"},
		"pyroscope":    nil,
		"tempo":        nil,
		"alertmanager": nil,
		"prometheus":   {"alertmanager"},
		"loki":         nil,
		"grafana":      {"pyroscope", "tempo", "prometheus", "loki"},
	},
	jaeger: {
		"storefront":       {"inventory", "postgres", "pyroscope", "collector-jaeger"},
		"inventory":        {"pyroscope", "collector-jaeger"},
		"load":             {"storefront"},
		"postgres":         nil,
		"collector-jaeger": {"tempo", "jaeger", "prometheus", "loki"},
		"pyroscope":        nil,
		"tempo":            nil,
		"jaeger":           nil,
		"alertmanager":     nil,
		"prometheus":       {"alertmanager"},
		"loki":             nil,
		"grafana":          {"pyroscope", "tempo", "prometheus", "loki"},
	},
	minimal: {
		"storefront-minimal": {"inventory-minimal", "pyroscope", "tempo-minimal"},
		"inventory-minimal":  {"pyroscope", "tempo-minimal"},
		"load":               {"storefront-minimal"},
		"pyroscope":          nil,
		"tempo-minimal":      nil,
		"grafana":            {"pyroscope", "tempo-minimal"},
	},
}

// published lists the only ports that are published on the host.
var published = map[string]string{
	"storefront":         "127.0.0.1:8080:8080",
	"storefront-minimal": "127.0.0.1:8080:8080",
	"grafana":            "127.0.0.1:3000:3000",
	"jaeger":             "127.0.0.1:16686:16686",
}

// profiled lists the services of each profile that run the agent, with their service names.
var profiled = map[string]map[string]string{
	full:    {"storefront": "storefront", "inventory": "inventory"},
	minimal: {"storefront-minimal": "storefront", "inventory-minimal": "inventory"},
}

var (
	// Three numbers, or two and the distribution, as in PostgreSQL's image tags.
	version = regexp.MustCompile(`^(v?\d+\.\d+\.\d+|\d+\.\d+-[a-z]+$)`)
	numeric = regexp.MustCompile(`^[1-9]\d*(:\d+)?$`)
	secret  = regexp.MustCompile(`(?i)passw|secret_|_secret|token|api_?key|private_?key|credential`)
	ours    = regexp.MustCompile(`\$\{SPANFLAME_VERSION[^}]*\}`)
)

// loadProject parses the compose file as Compose does, with an empty environment and the given profiles, by default
// the profile full.
func loadProject(fsys fs.FS, profiles ...string) (*types.Project, error) {
	if len(profiles) == 0 {
		profiles = []string{full}
	}
	return loadFiles(fsys, profiles, compose)
}

// loadFiles parses several files as one project.
func loadFiles(fsys fs.FS, profiles []string, names ...string) (*types.Project, error) {
	details := types.ConfigDetails{WorkingDir: root, Environment: types.Mapping{}}
	for _, name := range names {
		content, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: path.Join(root, name), Content: content})
	}
	project, err := loader.LoadWithContext(context.Background(), details, func(o *loader.Options) {
		o.SetProjectName("spanflame", true)
		o.Profiles = profiles
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(names, ", "), err)
	}
	return project, nil
}

func checkCompose(fsys fs.FS) (errs []error) {
	project, err := loadProject(fsys, full, minimal, jaeger)
	if err != nil {
		return []error{err}
	}
	for profile := range services {
		part, err := project.WithProfiles([]string{profile})
		if err != nil {
			return append(errs, fmt.Errorf("%s: profile %s: %w", compose, profile, err))
		}
		errs = append(errs, checkProfile(fsys, part, profile)...)
	}
	content, err := fs.ReadFile(fsys, dotEnv)
	if err != nil {
		return append(errs, err)
	}
	if want := "COMPOSE_PROFILES=" + full + "\n"; !strings.HasSuffix(string(content), want) {
		errs = append(errs, fmt.Errorf("%s: must end with %q: without it docker compose up starts only a part", dotEnv, want))
	}
	return append(errs, checkTagsOnce(fsys)...)
}

// checkProfile checks the services of one profile.
func checkProfile(fsys fs.FS, project *types.Project, profile string) (errs []error) {
	if got, want := slices.Sorted(slices.Values(project.ServiceNames())), slices.Sorted(maps.Keys(services[profile])); !slices.Equal(got, want) {
		errs = append(errs, fmt.Errorf("%s: profile %s has the services %v, must be %v", compose, profile, got, want))
	}
	for _, name := range project.ServiceNames() {
		service := project.Services[name]
		report := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s: %s: %w", compose, name, fmt.Errorf(format, args...)))
		}
		checkImage(service, report)
		checkHealth(service, report)
		checkHardening(service, report)
		checkMemory(service, report)
		checkMounts(fsys, service, report)
		checkSecrets(service, report)

		for dependency, d := range service.DependsOn {
			if d.Condition != types.ServiceConditionHealthy {
				report("depends on %s by %s, must be %s", dependency, d.Condition, types.ServiceConditionHealthy)
			}
		}
		for _, dependency := range services[profile][name] {
			if _, ok := service.DependsOn[dependency]; !ok {
				report("does not wait for %s", dependency)
			}
		}
		var ports []string
		for _, p := range service.Ports {
			ports = append(ports, fmt.Sprintf("%s:%s:%d", p.HostIP, p.Published, p.Target))
		}
		if got := strings.Join(ports, " "); got != published[name] {
			report("publishes %q, must be %q", got, published[name])
		}
	}
	return errs
}

// checkTagsOnce checks that each image reference occurs once in the file, so that an upgrade changes one line.
func checkTagsOnce(fsys fs.FS) (errs []error) {
	content, err := fs.ReadFile(fsys, compose)
	if err != nil {
		return []error{err}
	}
	seen := map[string]int{}
	for line := range strings.Lines(string(content)) {
		if ref, ok := strings.CutPrefix(strings.TrimSpace(line), "image:"); ok {
			seen[strings.TrimSpace(ref)]++
		}
	}
	for ref, n := range seen {
		if n > 1 {
			errs = append(errs, fmt.Errorf("%s: image %s is named %d times, must be once", compose, ref, n))
		}
	}
	// Our own version is the image's tag and a label of the telemetry: both must use the same variable.
	versions := slices.Compact(slices.Sorted(slices.Values(ours.FindAllString(string(content), -1))))
	if len(versions) != 1 {
		errs = append(errs, fmt.Errorf("%s: SPANFLAME_VERSION has the defaults %q, must have one", compose, versions))
	}
	return errs
}

type reporter func(format string, args ...any)

func checkImage(service types.ServiceConfig, report reporter) {
	images := []string{service.Image}
	if service.Build != nil {
		if base := service.Build.Args["COLLECTOR"]; base != nil {
			images = append(images, *base)
		}
	}
	for _, image := range images {
		_, tag, _ := strings.Cut(image, ":")
		if !version.MatchString(tag) {
			report("image %q must be pinned to a full version", image)
		}
	}
}

func checkHealth(service types.ServiceConfig, report reporter) {
	h := service.HealthCheck
	if h == nil || h.Disable || len(h.Test) < 2 {
		report("no health check")
		return
	}
	if h.Test[0] != "CMD" {
		report("health check %q must be CMD: the images have no shell", h.Test)
	}
	if h.Interval == nil || h.Timeout == nil || h.Retries == nil || h.StartPeriod == nil {
		report("health check must set interval, timeout, retries and start_period")
	}
	if h.StartInterval != nil {
		report("health check has start_interval, which Docker before release 25 refuses")
	}
}

func checkHardening(service types.ServiceConfig, report reporter) {
	if !numeric.MatchString(service.User) {
		report("user %q must be numeric and not root", service.User)
	}
	if !service.ReadOnly {
		report("the root filesystem must be read-only")
	}
	if !slices.Equal(service.CapDrop, []string{"ALL"}) || len(service.CapAdd) > 0 {
		report("capabilities dropped %q, added %q: must drop ALL and add none", service.CapDrop, service.CapAdd)
	}
	if !slices.Contains(service.SecurityOpt, "no-new-privileges:true") {
		report("security_opt %q must have no-new-privileges:true", service.SecurityOpt)
	}
	if service.Privileged {
		report("must not be privileged")
	}
	if service.Restart != types.RestartPolicyUnlessStopped {
		report("restart %q must be %s", service.Restart, types.RestartPolicyUnlessStopped)
	}
}

// checkMemory checks that there is a memory limit, and that the Go garbage collector's limit is below it: otherwise
// the kernel would kill the process before the garbage collector works harder.
func checkMemory(service types.ServiceConfig, report reporter) {
	if service.MemLimit <= 0 {
		report("no memory limit")
		return
	}
	value := service.Environment["GOMEMLIMIT"]
	if value == nil {
		return
	}
	mib, err := strconv.ParseInt(strings.TrimSuffix(*value, "MiB"), 10, 64)
	if err != nil || mib<<20 >= int64(service.MemLimit) {
		report("GOMEMLIMIT %q must be in MiB and below the memory limit of %d MiB", *value, service.MemLimit>>20)
	}
}

func checkMounts(fsys fs.FS, service types.ServiceConfig, report reporter) {
	for _, v := range service.Volumes {
		if v.Type != types.VolumeTypeBind {
			continue
		}
		name, inside := strings.CutPrefix(v.Source, root+"/")
		if !inside {
			report("mounts %s, which is outside the repository", v.Source)
		} else if _, err := fs.Stat(fsys, name); err != nil {
			report("mounts a missing file: %w", err)
		}
		if !v.ReadOnly {
			report("%s is mounted writable, must be read-only", v.Source)
		}
	}
}

func checkSecrets(service types.ServiceConfig, report reporter) {
	for name, value := range service.Environment {
		if value == nil || *value == "" {
			continue
		}
		if secret.MatchString(name) {
			report("%s looks like a secret: it must not be in this file", name)
		}
		if u, err := url.Parse(*value); err == nil && u.User != nil {
			if _, password := u.User.Password(); password {
				report("%s has credentials in its URL: they must not be in this file", name)
			}
		}
	}
}

// environment returns a service's variables, none if the service is missing.
func environment(project *types.Project, service string) map[string]string {
	vars := map[string]string{}
	for name, value := range project.Services[service].Environment {
		if value != nil {
			vars[name] = *value
		}
	}
	return vars
}

// checkAgentEnvironment checks that the settings of the profiled services let the four signals refer to each other.
func checkAgentEnvironment(fsys fs.FS) (errs []error) {
	project, err := loadProject(fsys, full, minimal)
	if err != nil {
		return []error{err}
	}
	// The profile minimal has only Tempo, which accepts only traces.
	for profile, signals := range map[string]map[string]string{
		full:    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_LOGS_EXPORTER": "", "OTEL_METRICS_EXPORTER": ""},
		minimal: {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://tempo:4317", "OTEL_LOGS_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "prometheus"},
	} {
		for name, serviceName := range profiled[profile] {
			errs = append(errs, checkAgent(project, name, serviceName, signals)...)
		}
	}
	return errs
}

// checkAgent checks the settings of one profiled service and the destinations of its signals.
func checkAgent(project *types.Project, name, serviceName string, signals map[string]string) (errs []error) {
	// The service drains for up to 12 s, then the agent delivers for up to 10 s.
	if grace := project.Services[name].StopGracePeriod; grace == nil || time.Duration(*grace) < 25*time.Second {
		errs = append(errs, fmt.Errorf("%s: %s: stop_grace_period %v must be at least 25s: otherwise the last profiles are lost", compose, name, grace))
	}
	vars := environment(project, name)
	_, tag, _ := strings.Cut(project.Services[name].Image, ":")
	expected := map[string]string{
		"OTEL_SERVICE_NAME":           serviceName,
		"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
		"OTEL_RESOURCE_ATTRIBUTES":    "service.version=" + tag + ",deployment.environment.name=demo",
		"PYROSCOPE_SERVER_ADDRESS":    "http://pyroscope:4040",
		"SPANFLAME_ADMIN_ADDRESS":     "127.0.0.1:6060",
	}
	maps.Copy(expected, signals)
	for key, want := range expected {
		if vars[key] != want {
			errs = append(errs, fmt.Errorf("%s: %s: %s is %q, must be %q", compose, name, key, vars[key], want))
		}
	}
	if spool := vars["SPANFLAME_SPOOL_DIR"]; !onVolume(project.Services[name], spool) {
		errs = append(errs, fmt.Errorf("%s: %s: SPANFLAME_SPOOL_DIR %q is on no volume: profiles would be lost with the container", compose, name, spool))
	}
	return errs
}

// onVolume reports whether a directory of the container outlives it.
func onVolume(service types.ServiceConfig, dir string) bool {
	return slices.ContainsFunc(service.Volumes, func(v types.ServiceVolumeConfig) bool {
		return v.Type == types.VolumeTypeVolume && (dir == v.Target || strings.HasPrefix(dir, v.Target+"/"))
	})
}

// checkGrafanaEnvironment checks that Grafana starts offline, without accounts, on a dashboard that exists.
func checkGrafanaEnvironment(fsys fs.FS) (errs []error) {
	project, err := loadProject(fsys)
	if err != nil {
		return []error{err}
	}
	vars := environment(project, "grafana")
	for key, want := range map[string]string{
		"GF_PLUGINS_PREINSTALL_DISABLED":             "true",
		"GF_INSTALL_PLUGINS":                         "",
		"GF_PLUGINS_PREINSTALL":                      "",
		"GF_PLUGINS_PREINSTALL_SYNC":                 "",
		"GF_AUTH_ANONYMOUS_ENABLED":                  "true",
		"GF_AUTH_ANONYMOUS_ORG_ROLE":                 "Editor",
		"GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION": "true",
	} {
		if vars[key] != want {
			errs = append(errs, fmt.Errorf("%s: grafana: %s is %q, must be %q", compose, key, vars[key], want))
		}
	}
	home := vars["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	if _, err := fs.Stat(fsys, cmp.Or(onHost(project, "grafana", home), home)); err != nil {
		errs = append(errs, fmt.Errorf("%s: grafana: home dashboard: %w", compose, err))
	}
	return errs
}

// onHost returns the repository's file that is mounted at a path of a container, or "".
func onHost(project *types.Project, service, name string) string {
	for _, v := range project.Services[service].Volumes {
		if rest, ok := strings.CutPrefix(name, v.Target); ok && v.Type == types.VolumeTypeBind {
			return strings.TrimPrefix(v.Source, root+"/") + rest
		}
	}
	return ""
}
