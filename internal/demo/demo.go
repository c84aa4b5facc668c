// Package demo runs the whole of spanflame once, on real servers: both services of the shop under load, the
// slowest trace, its flame graph, and the leak in the memory profile. `make demo` is its only user.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"spanflame/internal/query"
	"spanflame/internal/shop"
	"spanflame/stack/servers"
	"spanflame/workload/load"
)

// Options say how the demo runs.
type Options struct {
	Binary   string        // the spanflame program, which is started once for each service
	Dir      string        // of everything the demo writes; logs and spools of the run before are removed
	Rate     float64       // requests per second
	Duration time.Duration // of the load

	Out      io.Writer // what was found
	Progress io.Writer // how far it is
	Terminal bool      // whether Progress is a terminal
}

// window is the length of the services' profiles: short, so that the last ones are there soon.
const window = 5 * time.Second

// arrival bounds how long the last trace and profile may take from the services to the servers.
const arrival = 60 * time.Second

// Run runs the demo. It leaves nothing running.
func Run(ctx context.Context, o Options) (err error) {
	if err := os.RemoveAll(filepath.Join(o.Dir, "shop")); err != nil {
		return err
	}
	dir := filepath.Join(o.Dir, "shop")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	stack, err := servers.Start(ctx, servers.Options{DataDir: filepath.Join(o.Dir, "servers"), Progress: o.Progress})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end(ctx, stack.Stop)) }()
	fmt.Fprintf(o.Progress, "Pyroscope is ready at %s, Tempo at %s\n", stack.Pyroscope().URL, stack.Tempo().URL)

	s, err := shop.Start(ctx, shop.Options{Binary: o.Binary, Dir: dir, Env: environment(stack)})
	if err != nil {
		return err
	}
	stop := sync.OnceValue(func() error { return end(ctx, s.Stop) })
	defer func() { err = errors.Join(err, stop()) }()
	fmt.Fprintf(o.Progress, "the storefront is ready at %s, the inventory at %s\n", s.Storefront.URL, s.Inventory.URL)

	begun := time.Now()
	fmt.Fprintf(o.Progress, "load: %.0f requests/s for %s\n", o.Rate, o.Duration)
	report, err := drive(ctx, o, s.Storefront.URL)
	if err != nil {
		return err
	}
	// The services' end brings the last traces and the last window of every profile to the servers.
	stopping := time.Now()
	if stop() != nil {
		return nil // the deferred call reports it
	}
	return show(ctx, o.Out, found{
		tempo:     query.NewTempo(stack.Tempo().URL),
		pyroscope: query.NewPyroscope(stack.Pyroscope().URL),
		begun:     begun, stopping: stopping, ended: time.Now(),
	}, report)
}

// end calls stop with the time it needs, even when ctx is done already.
func end(ctx context.Context, stop func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	return stop(ctx)
}

// environment has the agents of both services send to the servers.
func environment(stack *servers.Stack) []string {
	return []string{
		"PYROSCOPE_SERVER_ADDRESS=" + stack.Pyroscope().URL,
		"PYROSCOPE_UPLOAD_INTERVAL=" + window.String(),
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://" + stack.Tempo().OTLPHTTP + "/v1/traces",
		"SPANFLAME_WALL_CPU_SHARE=1", // the trace that the demo shows must not be one that the budget left out
		"OTEL_RESOURCE_ATTRIBUTES=service.version=demo,deployment.environment.name=demo",
	}
}

// drive sends the demo's load: mostly checkouts, some heavy ones, and a little of everything that makes a
// request slow, with a leak that grows.
func drive(ctx context.Context, o Options, target string) (load.Report, error) {
	mix, err := load.ParseMix("checkout=70,heavy=5,lock=10,sleep=5,block=5,leak=5")
	if err != nil {
		return load.Report{}, err
	}
	interval := 5 * time.Second
	if o.Terminal {
		interval = 200 * time.Millisecond
	}
	report, err := load.Run(ctx, load.Config{
		Target: target, Rate: o.Rate, Duration: o.Duration, Mix: mix,
		Progress: load.ProgressPrinter(o.Progress, o.Terminal), Interval: interval,
	})
	if err != nil {
		return load.Report{}, err
	}
	if err := ctx.Err(); err != nil {
		return load.Report{}, err
	}
	fmt.Fprintln(o.Progress)
	if report.AllFailed() {
		return load.Report{}, errors.New("load: every request failed")
	}
	return report, nil
}
