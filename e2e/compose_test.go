//go:build compose

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"spanflame/internal/query"
	"spanflame/internal/wallprofile"
)

const (
	composeFile = "../docker-compose.yml"
	composeOTLP = "../docker-compose.otlp.yml" // in addition
)

// composed is the project of docker-compose.yml, run on an engine.
type composed struct {
	engine
	project string // a name that no user's project has
}

// TestCompose runs docker-compose.yml unchanged on a Docker engine, with stand-ins for the images that the engine
// does not have. It follows the links between the signals, restarts each server under load, and removes everything
// again. Grafana has no stand-in: it is left out, unless its image was pulled.
func TestCompose(t *testing.T) {
	c := composed{findEngine(t), fmt.Sprintf("spanflame-e2e-%d", time.Now().Unix())}
	services := c.services(t)
	begun := time.Now()
	t.Cleanup(func() { c.down(t) })
	c.compose(t, append([]string{"up", "--no-build", "--detach", "--wait", "--wait-timeout", "180"}, services...)...)
	t.Logf("all %d containers are healthy after %s", len(services), time.Since(begun).Round(time.Second))

	t.Run("hardened", func(t *testing.T) { c.hardened(t, services) })
	p := c.pipeline(t)
	t.Run("trace to profile", p.traceToProfile)
	t.Run("trace to logs and back", p.traceToLogsAndBack)
	t.Run("trace to metrics", p.traceToMetrics)
	t.Run("metric to trace", func(t *testing.T) { p.metricToTrace(t, begun) })
	t.Run("restarts", c.restarts)
	t.Run("traces in Jaeger", c.tracesInJaeger)
	t.Run("profiles by way of the Collector", c.profilesByCollector)
}

// profilesByCollector starts the services and the Collector again so that profiles pass through it.
func (c composed) profilesByCollector(t *testing.T) {
	if _, err := c.try(t, nil, c.arguments("full", "--file", composeOTLP, "up", "--no-build", "--detach", "--wait", "--wait-timeout", "180",
		"storefront", "inventory", "collector")...); err != nil {
		t.Fatalf("%v\n%s", err, c.state(t))
	}
	p := c.pipeline(t)
	p.profiled(t)
	// Only by OTLP does a type have this name.
	const byOTLP = "memory:inuse_space:bytes:memory:bytes"
	eventually(t, "memory profiles by OTLP", func() error {
		types, err := p.pyroscope.ProfileTypes(t.Context(), time.Now().Add(-time.Hour), time.Now())
		if err == nil && !slices.Contains(types, byOTLP) {
			err = fmt.Errorf("%s is not among %v", byOTLP, types)
		}
		return err
	})
}

// tracesInJaeger replaces the Collector by the one that sends traces to Jaeger too, and finds a slow request there, with
// the attribute that its link is for.
func (c composed) tracesInJaeger(t *testing.T) {
	var project struct {
		Services map[string]struct{ Image string }
	}
	if err := json.Unmarshal([]byte(c.run(t, "jaeger", "config", "--format", "json")), &project); err != nil {
		t.Fatal(err)
	}
	if !c.provideImage(t, project.Services["jaeger"].Image) {
		t.Fatal("Jaeger has no image")
	}
	t.Cleanup(func() { c.run(t, "jaeger", "rm", "--stop", "--force", "jaeger", "collector-jaeger") }) // before its image is removed
	up := []string{"up", "--no-build", "--detach", "--wait", "--wait-timeout", "180"}
	// While the other Collector runs: with its address, Jaeger would get the traces of services that connect there again.
	c.run(t, "jaeger", append(up, "jaeger")...)
	c.compose(t, "stop", "collector")
	c.run(t, "jaeger", append(up, "collector-jaeger")...)
	c.hardened(t, slices.Sorted(maps.Keys(c.containers(t))))
	root := c.pipeline(t).profiled(t)
	jaeger := query.NewJaeger("http://" + c.address(t, "jaeger") + ":16686")
	eventually(t, "the trace in Jaeger", func() error {
		spans, err := jaeger.Trace(t.Context(), root.TraceID)
		if err != nil {
			return err
		}
		if span, ok := find(spans, root.Name); !ok || span.Attributes[wallprofile.ProfileIDAttribute] != root.ID {
			return fmt.Errorf("Jaeger has %s, and the span %v", names(spans), span)
		}
		return nil
	})
}

// services checks the file, provides the images, and returns the services whose image the engine has.
func (c composed) services(t *testing.T) []string {
	t.Helper()
	c.run(t, "minimal", "config", "--quiet")
	c.run(t, "full", "config", "--quiet")
	var project struct {
		Services map[string]struct{ Image string }
	}
	if err := json.Unmarshal([]byte(c.compose(t, "config", "--format", "json")), &project); err != nil {
		t.Fatal(err)
	}
	tags, there := map[string]string{}, map[string]bool{}
	var services []string
	for _, name := range slices.Sorted(maps.Keys(project.Services)) {
		image := project.Services[name].Image
		repository, _, _ := strings.Cut(image, ":")
		if tag, ok := tags[repository]; !ok {
			tags[repository], there[image] = image, c.provideImage(t, image)
		} else if tag != image {
			t.Errorf("the image %s is named with two tags, %s and %s", repository, tag, image)
		}
		if there[image] {
			services = append(services, name)
		}
	}
	return services
}

// compose runs Compose on the project with the profile full.
func (c composed) compose(t *testing.T, args ...string) (output string) {
	t.Helper()
	return c.run(t, "full", args...)
}

func (c composed) run(t *testing.T, profile string, args ...string) (output string) {
	t.Helper()
	output, err := c.try(t, nil, c.arguments(profile, args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, c.state(t))
	}
	return output
}

// arguments returns a whole command line of Compose.
func (c composed) arguments(profile string, args ...string) []string {
	return slices.Concat(c.command, []string{"--file", composeFile, "--project-name", c.project, "--profile", profile}, args)
}

// state describes the containers and quotes their last log lines, for an error.
func (c composed) state(t *testing.T) string {
	var all strings.Builder
	for _, args := range [][]string{{"ps", "--all"}, {"logs", "--no-color", "--tail", "10"}} {
		out, err := c.try(t, nil, c.arguments("full", args...)...)
		fmt.Fprintln(&all, out)
		if err != nil {
			fmt.Fprintln(&all, err)
		}
	}
	return all.String()
}

// container is a container as the engine describes it.
type container struct {
	State struct {
		Health struct{ Status string }
	}
	Config struct {
		User   string
		Labels map[string]string
	}
	HostConfig struct {
		ReadonlyRootfs bool
		Privileged     bool
		Memory         int64
		CapDrop        []string
		RestartPolicy  struct{ Name string }
	}
	NetworkSettings struct {
		Ports    map[string][]struct{ HostIP string }
		Networks map[string]struct{ IPAddress string }
	}
}

// containers returns the project's containers by service.
func (c composed) containers(t *testing.T) map[string]container {
	t.Helper()
	ids := strings.Fields(c.docker(t, "ps", "--all", "--quiet", "--filter", c.filter()))
	if len(ids) == 0 {
		t.Fatal("the project has no containers")
	}
	var all []container
	if err := json.Unmarshal([]byte(c.docker(t, append([]string{"inspect"}, ids...)...)), &all); err != nil {
		t.Fatal(err)
	}
	byService := map[string]container{}
	for _, each := range all {
		byService[each.Config.Labels["com.docker.compose.service"]] = each
	}
	return byService
}

func (c composed) filter() string { return "label=com.docker.compose.project=" + c.project }

// hardened checks the settings of each container in the engine.
func (c composed) hardened(t *testing.T, services []string) {
	found := c.containers(t)
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, services) {
		t.Errorf("the containers are %v, want %v", got, services)
	}
	for name, each := range found {
		user, _, _ := strings.Cut(each.Config.User, ":")
		host := each.HostConfig
		if user == "" || user == "0" || user == "root" || host.Privileged || !slices.Equal(host.CapDrop, []string{"ALL"}) {
			t.Errorf("%s runs as %q, privileged: %v, without the capabilities %v", name, each.Config.User, host.Privileged, host.CapDrop)
		}
		if !host.ReadonlyRootfs || host.Memory == 0 || host.RestartPolicy.Name != "unless-stopped" {
			t.Errorf("%s: read-only root %v, memory limit %d, restart policy %q", name, host.ReadonlyRootfs, host.Memory, host.RestartPolicy.Name)
		}
		for port, bindings := range each.NetworkSettings.Ports {
			for _, b := range bindings {
				if b.HostIP != "127.0.0.1" {
					t.Errorf("%s publishes %s on %s, not on loopback alone", name, port, b.HostIP)
				}
			}
		}
	}
}

// pipeline returns the servers at their current addresses: a restarted container may get another address.
func (c composed) pipeline(t *testing.T) *pipeline {
	t.Helper()
	at := func(service, port string) string { return "http://" + c.address(t, service) + ":" + port }
	return newPipeline(t, at("storefront", "8080"), map[string]string{
		"tempo": at("tempo", "3200"), "pyroscope": at("pyroscope", "4040"), "prometheus": at("prometheus", "9090"), "loki": at("loki", "3100"),
	})
}

// address returns the current address of a service's container.
func (c composed) address(t *testing.T, service string) string {
	t.Helper()
	for _, network := range c.containers(t)[service].NetworkSettings.Networks {
		return network.IPAddress
	}
	t.Fatalf("%s is in no network", service)
	return ""
}

// restarts restarts each server under load. It checks that every profile is delivered, that all profiles of slow
// requests in that time are there, and that earlier data is still there.
func (c composed) restarts(t *testing.T) {
	early := c.pipeline(t).profiled(t)
	for _, name := range []string{"pyroscope", "tempo", "prometheus", "loki", "collector", "postgres"} {
		if ok := t.Run(name, func(t *testing.T) {
			before := c.pipeline(t).balance(t)
			begun := time.Now()
			c.compose(t, "restart", name)
			eventually(t, "all are healthy again", func() error {
				for service, each := range c.containers(t) {
					if status := each.State.Health.Status; status != "healthy" {
						return fmt.Errorf("%s is %s", service, status)
					}
				}
				return nil
			})
			p := c.pipeline(t)
			c.captured(t, p, begun)
			var after map[string]map[string]float64
			eventually(t, "every profile is accounted for", func() error {
				after = p.balance(t)
				for service, now := range after {
					then := before[service]
					if now["put"] != now["delivered"]+now["waiting"] || now["delivered"] <= then["delivered"] {
						return fmt.Errorf("%s: %v, before the restart %v", service, now, then)
					}
				}
				return nil
			})
			t.Logf("profiles before %v, after %v", before, after)
		}); !ok {
			return // A failure here would fail the next restarts too.
		}
	}
	p := c.pipeline(t)
	eventually(t, "the span from before the restarts", func() error { return p.opensOnProfile(t, early) })
	p.profiled(t)
	p.traceToLogsAndBack(t)
}

// diagnosis is the line that the storefront logs for a slow request that it captured.
type diagnosis struct {
	Time     string   `json:"time"`
	SpanID   string   `json:"span_id"`
	Duration int64    `json:"duration_ms"`
	Covered  *float64 `json:"covered"` // only this line has it
}

// captured checks that every slow request that the storefront captured since begun, by its log, has its flame
// graph.
func (c composed) captured(t *testing.T, p *pipeline, begun time.Time) {
	t.Helper()
	var slow []diagnosis
	eventually(t, "slow requests", func() error {
		slow = nil
		for line := range strings.Lines(c.compose(t, "logs", "--no-log-prefix", "--since", begun.UTC().Format(time.RFC3339Nano), "storefront")) {
			var d diagnosis
			if err := json.Unmarshal([]byte(line), &d); err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
			if d.Covered != nil {
				slow = append(slow, d)
			}
		}
		if len(slow) == 0 {
			return errors.New("none is logged")
		}
		return nil
	})
	link := p.grafana.source(t, "tempo").JSONData.TracesToProfiles
	for _, d := range slow {
		took := time.Duration(d.Duration) * time.Millisecond
		eventually(t, "the flame graph of span "+d.SpanID, func() error {
			graph, err := p.pyroscope.SpanFlameGraph(t.Context(), link.ProfileTypeID, query.Selector{"service_name": "storefront"},
				[]string{d.SpanID}, begun.Add(-time.Hour), time.Now()) // on a busy machine a line is logged long after its request
			if err != nil {
				return err
			}
			if got := time.Duration(graph.Total); got < took*98/100 {
				return fmt.Errorf("it has %v of %v, and was logged at %s", got, took, d.Time)
			}
			return nil
		})
	}
	t.Logf("%d slow requests have their flame graphs", len(slow))
}

// balance returns the number of each service's profiles by outcome, from the agents' metrics in Prometheus.
func (p *pipeline) balance(t *testing.T) (byService map[string]map[string]float64) {
	t.Helper()
	const expr = `sum by (service_name, event) (spanflame_spool_profiles_total)
		or sum by (service_name, event) (label_replace(spanflame_spool_waiting, "event", "waiting", "", ""))`
	eventually(t, "the agents' metrics", func() error {
		now := time.Now()
		series, err := p.grafana.metrics(t, promQuery{expr: expr, from: now, to: now, step: time.Second})
		if err != nil {
			return err
		}
		byService = map[string]map[string]float64{}
		for _, s := range series {
			service := s.Labels["service_name"]
			if byService[service] == nil {
				byService[service] = map[string]float64{}
			}
			byService[service][s.Labels["event"]] = s.Last
		}
		for _, service := range []string{"storefront", "inventory"} {
			if byService[service]["delivered"] == 0 {
				return errors.New("nothing is delivered by " + service)
			}
		}
		return nil
	})
	return byService
}

// down removes the project, and checks that nothing of it is left.
func (c composed) down(t *testing.T) {
	if t.Failed() {
		t.Log(c.state(t))
	}
	c.run(t, "*", "down", "--volumes", "--timeout", "30")
	for _, list := range [][]string{
		{"ps", "--all", "--quiet", "--filter", c.filter()},
		{"network", "ls", "--quiet", "--filter", c.filter()},
		{"volume", "ls", "--quiet", "--filter", c.filter()},
	} {
		if left := c.docker(t, list...); left != "" {
			t.Errorf("down left what docker %s lists: %s", strings.Join(list, " "), left)
		}
	}
}
