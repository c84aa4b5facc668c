// Package demo shows all of spanflame in one run. It puts both services of the workload under load, first with
// faults and then repaired, and shows the slowest trace and its diagnosis, the leak, and the difference that the
// repair makes. Meanwhile the viewer serves the traces and profiles. `spanflame demo` is its only user. It
// uses only what users have, programs and pages, and no part of the agent.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"spanflame/internal/wallprofile"
	"spanflame/workload/load"
	"spanflame/workload/processes"
)

// Options configure the demo.
type Options struct {
	Binary   string        // the spanflame program, which is started once for each service
	Dir      string        // for everything the demo writes; data of the previous run is removed
	Backend  Backend       // default Remote if the environment names both servers, else Local
	Environ  []string      // the environment, as NAME=value, for Remote
	Listen   string        // address of the pages; default 127.0.0.1:7070, or a free port if that is in use
	Faults   []string      // names of the faults to switch on, as for faults.Find; default DefaultFaults
	Rate     float64       // requests per second, without those that the faults need
	Duration time.Duration // of the load: half with the faults, half repaired
	Exit     bool          // end after the summary, not when ctx ends

	Out      io.Writer // findings
	Progress io.Writer // progress
	Terminal bool      // whether Progress is a terminal
}

// window is the window of the services' profiles. It is short, so that the first and the last profiles are there
// soon.
const window = 2 * time.Second

// stopTime limits how long each part may take to stop.
const stopTime = 30 * time.Second

// mix is the demo's load: many small checkouts, some larger ones, a few requests of each other slow kind, and a
// growing leak.
const mix = "single=70,checkout=8,heavy=1,lock=6,sleep=5,block=5,leak=5"

// concurrency limits the requests in flight, and with them the queue that the faults cause on a slow machine.
const concurrency = 64

// ErrInterrupted reports that the demo ended before its summary.
var ErrInterrupted = errors.New("interrupted before the summary")

// Run runs the demo until its summary and, unless Options.Exit, until ctx ends. It leaves nothing running.
func Run(ctx context.Context, o Options) error {
	if !(o.Rate > 0) { // written so that NaN is refused
		return fmt.Errorf("rate %v: must be above 0", o.Rate)
	}
	if o.Duration < 4*window {
		return fmt.Errorf("duration %v: must be %v or more, so that there are profiles of both halves", o.Duration, 4*window)
	}
	if len(o.Faults) == 0 {
		o.Faults = DefaultFaults
	}
	d := &demo{Options: o, console: console{out: o.Out, progress: o.Progress, terminal: o.Terminal}}
	err := d.run(ctx)
	if err != nil && ctx.Err() != nil {
		err = ErrInterrupted
	}
	return errors.Join(err, d.end(ctx))
}

// demo is one run.
type demo struct {
	Options
	console  console
	backend  *backend
	pages    string // URL
	workload *processes.Workload
	faults   []fault

	ends []func(context.Context) error // cleanup functions, in the order of the steps that they undo
}

func (d *demo) run(ctx context.Context) error {
	ln, err := d.listen() // before anything is removed
	if err != nil {
		return err
	}
	if err := d.makeDirectory(); err != nil {
		return errors.Join(err, ln.Close())
	}
	if err := d.openBackend(ctx); err != nil {
		return errors.Join(err, ln.Close())
	}
	if err := d.servePages(ln); err != nil {
		return errors.Join(err, ln.Close())
	}
	if err := d.startWorkload(ctx); err != nil {
		return err
	}
	if err := d.findFaults(ctx); err != nil {
		return err
	}
	phases, err := d.load(ctx)
	if err != nil {
		return err
	}
	// When the services end, they save the last traces and the last window of every profile.
	if err := d.stopWorkload(ctx); err != nil {
		return err
	}
	if err := d.summarise(ctx, phases); err != nil {
		return err
	}
	if d.Exit {
		return nil
	}
	d.console.findf("\nThe services have ended. The pages are at %s until Ctrl-C. In a terminal: spanflame why --dir %s",
		d.pages, filepath.Join(d.Dir, "saved"))
	<-ctx.Done()
	return nil
}

// end cleans up after the run, even if ctx has already ended.
func (d *demo) end(ctx context.Context) error {
	var errs []error
	for _, end := range slices.Backward(d.ends) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		errs = append(errs, end(ctx))
		cancel()
	}
	return errors.Join(errs...)
}

// makeDirectory creates the directory, which no other demo must be using, and removes the data of an earlier run.
func (d *demo) makeDirectory() error {
	release, err := takeDirectory(d.Dir)
	if err != nil {
		return fmt.Errorf("directory of the demo: %w; choose another with --dir", err)
	}
	d.ends = append(d.ends, func(context.Context) error { return release() })
	for _, name := range []string{"workload", "saved", "servers"} {
		path := filepath.Join(d.Dir, name)
		if err := errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o755)); err != nil {
			return err
		}
	}
	return nil
}

// startWorkload starts both services, with the backend's settings for their agents.
func (d *demo) startWorkload(ctx context.Context) error {
	env := append(slices.Clip(d.backend.env),
		"PYROSCOPE_UPLOAD_INTERVAL="+window.String(),
		"OTEL_BSP_SCHEDULE_DELAY=500", // milliseconds
		"SPANFLAME_WALL_CPU_SHARE=1",  // the budget must not leave out the profile of the trace that the demo shows
		"OTEL_RESOURCE_ATTRIBUTES=service.version=demo,deployment.environment.name=demo")
	s, err := processes.Start(ctx, processes.Options{Binary: d.Binary, Dir: filepath.Join(d.Dir, "workload"), Env: env})
	if err != nil {
		return err
	}
	d.workload = s
	d.ends = append(d.ends, d.stopWorkload)
	d.console.progressf("the storefront is at %s, the inventory at %s", s.Storefront.URL, s.Inventory.URL)
	return nil
}

// stopWorkload stops the services if they run.
func (d *demo) stopWorkload(ctx context.Context) error {
	if d.workload == nil {
		return nil
	}
	s := d.workload
	d.workload = nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	return s.Stop(ctx)
}

// phase is a part of the load.
type phase struct {
	begun, ended time.Time
	report       load.Report
}

func (p phase) length() time.Duration { return p.ended.Sub(p.begun) }

// phases are the two phases of a run.
type phases struct{ faulty, repaired phase }

// load drives the workload first with the faults and then without them, and meanwhile shows the first slow trace.
// If a service ends unexpectedly, the load ends.
func (d *demo) load(ctx context.Context) (p phases, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	for _, service := range []*processes.Service{d.workload.Storefront, d.workload.Inventory} {
		watching.Go(func() {
			select {
			case <-service.Done():
				cancel(fmt.Errorf("the %s ended unexpectedly", service.Name))
			case <-ctx.Done():
			}
		})
	}
	begun := time.Now()
	watching.Go(func() { d.showFirst(ctx, begun) })

	if err := d.switchFaults(ctx, true); err != nil {
		return p, err
	}
	if p.faulty, err = d.drive(ctx, "with faults ("+d.faultNames()+")"); err != nil {
		return p, err
	}
	if l, err := d.backend.leak(ctx, begun, time.Now()); err == nil { // otherwise the summary reports the error
		d.console.progressf("the memory that %s holds grows: %s", wallprofile.Short(l.function), l.course())
	}
	if err := d.switchFaults(ctx, false); err != nil {
		return p, err
	}
	p.repaired, err = d.drive(ctx, "with the faults repaired")
	return p, err
}

// drive sends the load of one phase.
func (d *demo) drive(ctx context.Context, title string) (phase, error) {
	m, rate, err := d.mixAndRate()
	if err != nil {
		return phase{}, err
	}
	d.console.progressf("%s; %.0f requests/s for %v", title, rate, d.Duration/2)
	p := phase{begun: time.Now()}
	p.report, err = load.Run(ctx, load.Config{
		Target: d.workload.Storefront.URL, Rate: rate, Duration: d.Duration / 2, Mix: m,
		Concurrency: concurrency, Progress: d.console.load, Interval: d.console.interval(),
	})
	p.ended = time.Now()
	d.console.endLine()
	switch {
	case err != nil:
		return p, err
	case ctx.Err() != nil:
		return p, context.Cause(ctx)
	case p.report.AllFailed():
		return p, errors.New("load: every request failed")
	}
	return p, nil
}
