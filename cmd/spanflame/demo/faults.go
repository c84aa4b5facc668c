package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"spanflame/internal/record"
	"spanflame/workload/faults"
	"spanflame/workload/load"
)

// DefaultFaults are the faults that the demo switches on unless others are chosen. The requests of its load show them.
var DefaultFaults = []string{"slow-pricing", "lock-convoy"}

// fault is a fault of the workload, and where it shows in profiles.
type fault struct {
	*faults.Switch
	within  string // a function that must be in the stack too, or ""
	profile record.Type
	sample  string // the profile's sample type, in nanoseconds; "" if the fault shows as a leak
	shows   string // description of the time
}

// findFaults finds the chosen faults in the services.
func (d *demo) findFaults(ctx context.Context) error {
	for _, name := range d.Faults {
		found, err := faults.Find(ctx, name, d.workload.Storefront.URL, d.workload.Inventory.URL)
		if err != nil {
			return err
		}
		f := fault{Switch: found}
		switch {
		case found.Fault.Kind == faults.Leak:
		case found.Fault.Kind == faults.CPU:
			f.profile, f.sample, f.shows = record.CPU, "cpu", "on the CPU in"
		case found.Fault.Name == "lock-convoy":
			f.profile, f.sample, f.shows, f.within = record.Block, "delay", "waiting for the lock in", "sync.(*Mutex).Lock"
		default:
			f.profile, f.sample, f.shows = record.Wall, "wall", "in slow requests, in"
		}
		d.faults = append(d.faults, f)
	}
	return nil
}

// leaks reports whether one of the faults is a leak.
func (d *demo) leaks() bool {
	return slices.ContainsFunc(d.faults, func(f fault) bool { return f.Fault.Kind == faults.Leak })
}

// victim returns the path of the requests that the first fault makes slow.
func (d *demo) victim() string {
	for _, f := range d.faults {
		if f.Fault.Kind != faults.Leak {
			return f.Fault.Victim.Route()
		}
	}
	return checkout
}

// checkout is the path of the requests that most of the load is, whatever the faults.
const checkout = "/api/checkout"

// mixAndRate returns the load: that of the demo, without its leak if a fault is one, and the requests that show the
// faults.
func (d *demo) mixAndRate() (load.Mix, float64, error) {
	own, err := load.ParseMix(mix)
	if err != nil {
		return nil, 0, err
	}
	// Weights are requests in 100 s, so that those of the faults can be added.
	total := 0
	for _, share := range own {
		total += share.Weight
	}
	var all load.Mix
	rate := 0.0
	add := func(share load.Share, perSecond float64) {
		share.Weight = max(1, int(perSecond*100))
		all = append(all, share)
		rate += perSecond
	}
	for _, share := range own {
		if share.Name != "leak" || !d.leaks() {
			add(share, d.Rate*float64(share.Weight)/float64(total))
		}
	}
	for _, f := range d.faults {
		if f.Fault.Victim.Route() == checkout {
			continue
		}
		shares, perSecond := load.FaultMix(f.Fault)
		weights := 0
		for _, share := range shares {
			weights += share.Weight
		}
		for _, share := range shares {
			part := float64(share.Weight) / float64(weights)
			share.Name = f.Fault.Name + " " + share.Name
			add(share, perSecond*part)
		}
	}
	return all, rate, nil
}

func (d *demo) faultNames() string {
	var names []string
	for _, f := range d.faults {
		names = append(names, f.Fault.Name+" in the "+f.Fault.Service)
	}
	return strings.Join(names, ", ")
}

// switchFaults switches all faults on or off.
func (d *demo) switchFaults(ctx context.Context, on bool) error {
	for _, f := range d.faults {
		turn := f.Off
		if on {
			turn = f.On
		}
		if err := turn(ctx); err != nil {
			return fmt.Errorf("switch %s: %w", f.Fault.Name, err)
		}
	}
	return nil
}
