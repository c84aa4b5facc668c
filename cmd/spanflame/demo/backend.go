package demo

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"spanflame/viewer/source"

	"spanflame/stack/servers"
)

// Backend is where the services' traces and profiles go, and where the viewer reads them.
type Backend string

// The backends.
const (
	Local  Backend = "local"   // a directory
	Stack  Backend = "stack"   // a real Pyroscope and a real Tempo, started by the demo
	Remote Backend = "servers" // the servers that the environment names
)

// Variables with the addresses of the servers' APIs. The agent uses the first one too.
const (
	pyroscopeVariable = "PYROSCOPE_SERVER_ADDRESS"
	tempoVariable     = "SPANFLAME_TEMPO_ADDRESS"
)

// backend is an open Backend.
type backend struct {
	env    []string // NAME=value, for the services' agents
	source source.Source
}

func (d *demo) openBackend(ctx context.Context) error {
	chosen := d.Backend
	if chosen == "" {
		chosen = Local
		if d.variable(pyroscopeVariable) != "" && d.variable(tempoVariable) != "" {
			chosen = Remote
		}
	}
	switch chosen {
	case Local:
		return d.openLocal()
	case Stack:
		return d.openStack(ctx)
	case Remote:
		return d.openRemote()
	}
	return fmt.Errorf("backend %q: must be %q, %q or %q", chosen, Local, Stack, Remote)
}

func (d *demo) openLocal() error {
	dir := filepath.Join(d.Dir, "saved")
	source, err := source.OpenDirectory(dir)
	if err != nil {
		return err
	}
	d.ends = append(d.ends, func(context.Context) error { return source.Close() })
	d.backend = &backend{env: []string{"SPANFLAME_DIR=" + dir}, source: source}
	d.console.progressf("traces and profiles are saved in %s", dir)
	return nil
}

func (d *demo) openStack(ctx context.Context) error {
	stack, err := servers.Start(ctx, servers.Options{DataDir: filepath.Join(d.Dir, "servers"), Progress: d.Progress})
	if err != nil {
		return err
	}
	d.ends = append(d.ends, stack.Stop)
	return d.read(stack.Tempo().URL, stack.Pyroscope().URL,
		pyroscopeVariable+"="+stack.Pyroscope().URL,
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://"+stack.Tempo().OTLPHTTP+"/v1/traces")
}

func (d *demo) openRemote() error {
	for _, name := range []string{pyroscopeVariable, tempoVariable} {
		if d.variable(name) == "" {
			return fmt.Errorf("backend %q: %s is not set: it must be the address of a server", Remote, name)
		}
	}
	if d.variable("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && d.variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return fmt.Errorf("backend %q: OTEL_EXPORTER_OTLP_ENDPOINT is not set: no trace would reach Tempo", Remote)
	}
	var env []string
	for _, v := range d.Environ {
		if strings.HasPrefix(v, "PYROSCOPE_") || strings.HasPrefix(v, "OTEL_") && !strings.HasPrefix(v, "OTEL_SERVICE_NAME=") {
			env = append(env, v)
		}
	}
	return d.read(d.variable(tempoVariable), d.variable(pyroscopeVariable), env...)
}

// read sets two servers as the backend.
func (d *demo) read(tempo, pyroscope string, env ...string) error {
	source, err := source.NewServers(tempo, pyroscope)
	if err != nil {
		return err
	}
	d.backend = &backend{env: env, source: source}
	d.console.progressf("traces are in Tempo at %s, profiles in Pyroscope at %s", tempo, pyroscope)
	return nil
}

// variable returns the value of an environment variable, or "" if it is not set.
func (d *demo) variable(name string) string {
	i := slices.IndexFunc(d.Environ, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	if i < 0 {
		return ""
	}
	return strings.TrimPrefix(d.Environ[i], name+"=")
}
