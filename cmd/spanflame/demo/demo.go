// Package demo runs the whole of spanflame once: both services of the shop under load, first with mistakes in
// them and then without; the slowest trace and what it waited for; the leak; before against after. The viewer
// serves all of it meanwhile. `spanflame demo` is its only user. It sees what a user sees, programs and pages,
// and none of the agent's insides.
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

	"spanflame/workload/load"
	"spanflame/workload/processes"
)

// Options say how the demo runs.
type Options struct {
	Binary   string        // the spanflame program, which is started once for each service
	Dir      string        // of everything the demo writes; what the run before left there is removed
	Backend  Backend       // default Remote where the environment names both servers, else Local
	Environ  []string      // NAME=value: the environment, for Remote
	Listen   string        // of the pages; default 127.0.0.1:7070, or a free port where that is taken
	Rate     float64       // requests per second
	Duration time.Duration // of the load: half with the mistakes, half with their repairs
	Exit     bool          // end after the summary, not when ctx does

	Out      io.Writer // what was found
	Progress io.Writer // how far it is
	Terminal bool      // whether Progress is a terminal
}

// window is the length of the services' profiles: short, so that the first and the last are there soon.
const window = 2 * time.Second

// stopTime bounds the end of each part, once the demo ends.
const stopTime = 30 * time.Second

// mix is the demo's load: many small checkouts, some larger ones, a little of everything else that makes a
// request slow, and a leak that grows.
const mix = "single=70,checkout=8,heavy=1,lock=6,sleep=5,block=5,leak=5"

// concurrency bounds the requests in flight, and so the queue that the mistakes make on a slow machine.
const concurrency = 64

// ErrInterrupted says that the demo was ended before its summary.
var ErrInterrupted = errors.New("interrupted before the summary")

// Run runs the demo until its summary and, unless Options.Exit, until ctx ends. It leaves nothing running.
func Run(ctx context.Context, o Options) error {
	if !(o.Rate > 0) { // so written that NaN is refused
		return fmt.Errorf("rate %v: must be above 0", o.Rate)
	}
	if o.Duration < 4*window {
		return fmt.Errorf("duration %v: must be %v or more, so that there are profiles of both halves", o.Duration, 4*window)
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
	console console
	backend *backend
	pages   string // URL
	shop    *processes.Workload

	ends []func(context.Context) error // what undoes the run, in the order in which it was begun
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
	if err := d.startShop(ctx); err != nil {
		return err
	}
	phases, err := d.load(ctx)
	if err != nil {
		return err
	}
	// The services' end brings the last traces and the last window of every profile.
	if err := d.stopShop(ctx); err != nil {
		return err
	}
	if err := d.summarise(ctx, phases); err != nil {
		return err
	}
	if d.Exit {
		return nil
	}
	d.console.say("\nThe services have ended. The pages are at %s until Ctrl-C.", d.pages)
	<-ctx.Done()
	return nil
}

// end undoes the run, with the time that needs even when ctx is done already.
func (d *demo) end(ctx context.Context) error {
	var errs []error
	for _, end := range slices.Backward(d.ends) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		errs = append(errs, end(ctx))
		cancel()
	}
	return errors.Join(errs...)
}

// makeDirectory makes the directory, which nobody else may be using, and empties it of an earlier run.
func (d *demo) makeDirectory() error {
	release, err := takeDirectory(d.Dir)
	if err != nil {
		return fmt.Errorf("directory of the demo: %w; choose another with --dir", err)
	}
	d.ends = append(d.ends, func(context.Context) error { return release() })
	for _, name := range []string{"shop", "saved", "servers"} {
		path := filepath.Join(d.Dir, name)
		if err := errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o755)); err != nil {
			return err
		}
	}
	return nil
}

// startShop starts both services, whose agents have the backend's settings.
func (d *demo) startShop(ctx context.Context) error {
	env := append(slices.Clip(d.backend.env),
		"PYROSCOPE_UPLOAD_INTERVAL="+window.String(),
		"OTEL_BSP_SCHEDULE_DELAY=500", // milliseconds
		"SPANFLAME_WALL_CPU_SHARE=1",  // the trace that the demo shows must not be one that the budget left out
		"OTEL_RESOURCE_ATTRIBUTES=service.version=demo,deployment.environment.name=demo")
	s, err := processes.Start(ctx, processes.Options{Binary: d.Binary, Dir: filepath.Join(d.Dir, "shop"), Env: env})
	if err != nil {
		return err
	}
	d.shop = s
	d.ends = append(d.ends, d.stopShop)
	d.console.progressf("the storefront is at %s, the inventory at %s", s.Storefront.URL, s.Inventory.URL)
	return nil
}

// stopShop ends the services if they run.
func (d *demo) stopShop(ctx context.Context) error {
	if d.shop == nil {
		return nil
	}
	s := d.shop
	d.shop = nil
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

// phases are those of a run.
type phases struct{ faulty, repaired phase }

// load drives the shop with the mistakes and then without, and shows the first slow trace meanwhile. A service
// that ends by itself ends the load.
func (d *demo) load(ctx context.Context) (p phases, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	for _, service := range []*processes.Service{d.shop.Storefront, d.shop.Inventory} {
		watching.Go(func() {
			select {
			case <-service.Done():
				cancel(fmt.Errorf("the %s has ended by itself", service.Name))
			case <-ctx.Done():
			}
		})
	}
	begun := time.Now()
	watching.Go(func() { d.showFirst(ctx, begun) })

	if err := d.switchFaults(ctx, true); err != nil {
		return p, err
	}
	if p.faulty, err = d.drive(ctx, "with mistakes in the storefront ("+faultNames()+")"); err != nil {
		return p, err
	}
	if l, err := d.backend.leak(ctx, begun, time.Now()); err == nil { // else the summary will say
		d.console.progressf("the memory that %s holds grows: %s", short(l.function), l.course())
	}
	if err := d.switchFaults(ctx, false); err != nil {
		return p, err
	}
	p.repaired, err = d.drive(ctx, "with the mistakes repaired")
	return p, err
}

// drive sends the load of one phase.
func (d *demo) drive(ctx context.Context, title string) (phase, error) {
	m, err := load.ParseMix(mix)
	if err != nil {
		return phase{}, err
	}
	d.console.progressf("%s; %.0f requests/s for %v", title, d.Rate, d.Duration/2)
	p := phase{begun: time.Now()}
	p.report, err = load.Run(ctx, load.Config{
		Target: d.shop.Storefront.URL, Rate: d.Rate, Duration: d.Duration / 2, Mix: m,
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
