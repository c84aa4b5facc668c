//go:build !compose

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"spanflame/internal/query"
	"spanflame/internal/wallprofile"
	"spanflame/stack/servers"
	"spanflame/workload/processes"
)

// window is the window of the services' profiles in these tests.
const window = 2 * time.Second

// version is the version of the workload that all tests share.
const version = "1.2.3"

// world is shared by the tests: the servers and the workload.
type world struct {
	dir       string
	binary    string // path of spanflame, built with the race detector
	stack     *servers.Stack
	workload  *processes.Workload
	tempo     *query.Tempo
	pyroscope *query.Pyroscope
}

var w world

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx := context.Background()
	if w.dir, err = os.MkdirTemp("", "spanflame-e2e-"); err != nil {
		return 1, err
	}
	defer func() {
		if code != 0 || err != nil {
			fmt.Fprintln(os.Stderr, "e2e: the files of the servers and services are kept in", w.dir)
			return
		}
		err = os.RemoveAll(w.dir)
	}()
	w.binary = filepath.Join(w.dir, "spanflame")
	flags := []string{"-race"}
	if os.Getenv(picturesVariable) != "" { // which show what a user sees, and not the race detector
		flags = nil
	}
	if err := processes.Build(ctx, w.binary, flags...); err != nil {
		return 1, err
	}
	if w.stack, err = servers.Start(ctx, servers.Options{DataDir: filepath.Join(w.dir, "servers"), Progress: os.Stderr}); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, w.stack.Stop(ctx)) }()
	w.tempo, w.pyroscope = query.NewTempo(w.stack.Tempo().URL), query.NewPyroscope(w.stack.Pyroscope().URL)

	if w.workload, err = startWorkload(ctx, "shared"); err != nil {
		return 1, err
	}
	code = m.Run()
	err = w.workload.Stop(ctx)
	return code, errors.Join(err, noRace(w.workload))
}

// startWorkload starts both services, with their own directory and with agents that send to the servers.
func startWorkload(ctx context.Context, name string, env ...string) (*processes.Workload, error) {
	dir := filepath.Join(w.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	return processes.Start(ctx, processes.Options{Binary: w.binary, Dir: dir, Env: append([]string{
		"PYROSCOPE_SERVER_ADDRESS=" + w.stack.Pyroscope().URL,
		"PYROSCOPE_UPLOAD_INTERVAL=" + window.String(),
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://" + w.stack.Tempo().OTLPHTTP + "/v1/traces",
		"OTEL_BSP_SCHEDULE_DELAY=500",
		"SPANFLAME_WALL_CPU_SHARE=1", // the budget is tested elsewhere
		"OTEL_RESOURCE_ATTRIBUTES=service.version=" + version + ",deployment.environment.name=e2e",
	}, env...)})
}

// noRace returns an error if a service's race detector reported a race.
func noRace(s *processes.Workload) error {
	for _, service := range []*processes.Service{s.Storefront, s.Inventory} {
		b, err := os.ReadFile(service.LogFile)
		if err != nil {
			return err
		}
		if i := bytes.Index(b, []byte("DATA RACE")); i >= 0 {
			return fmt.Errorf("%s: %s", service.Name, b[i:])
		}
	}
	return nil
}

// trace returns the trace once Tempo has its spans with the names want.
func trace(t *testing.T, id string, want ...string) []query.Span {
	t.Helper()
	var spans []query.Span
	eventually(t, "trace "+id, func() (err error) {
		if spans, err = w.tempo.Trace(t.Context(), id); err != nil {
			return err
		}
		for _, name := range want {
			if _, ok := find(spans, name); !ok {
				return fmt.Errorf("no span %q among %s", name, names(spans))
			}
		}
		return nil
	})
	return spans
}

// flameGraph returns the flame graph that a span's link opens, once it contains the function want. It sends the
// query that Grafana sends for a span with the attribute pyroscope.profile.id, by the settings of the provisioned
// Tempo data source.
func flameGraph(t *testing.T, span query.Span, profileType, want string) *query.Frame {
	t.Helper()
	id := span.Attributes[wallprofile.ProfileIDAttribute]
	if id == "" {
		t.Fatalf("span %q has no %s: Grafana shows no link; its attributes are %v", span.Name, wallprofile.ProfileIDAttribute, span.Attributes)
	}
	var graph *query.Frame
	eventually(t, fmt.Sprintf("%s of span %s (%s)", profileType, id, span.Name), func() (err error) {
		graph, err = w.pyroscope.SpanFlameGraph(t.Context(), profileType, query.Selector{"service_name": span.Service}, []string{id},
			span.Start.Add(-time.Minute), span.End.Add(time.Minute))
		if err == nil && graph.Find(want) == 0 {
			err = fmt.Errorf("%s is not in the flame graph; it has %s", want, functions(graph))
		}
		return err
	})
	return graph
}
