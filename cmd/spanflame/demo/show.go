package demo

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"spanflame/internal/wallprofile"
	"spanflame/viewer"
	"spanflame/workload/faults"
	"spanflame/workload/load"
)

// showFirst shows the first slow trace as soon as there is one. It chooses a request that a fault makes slow, since one
// like /load/sleep is slow by design. It ignores errors, which the summary will report.
func (d *demo) showFirst(ctx context.Context, begun time.Time) {
	tick := time.NewTicker(pollTime)
	defer tick.Stop()
	for {
		t, err := d.backend.slowest(ctx, d.victim(), begun, time.Now())
		if err == nil {
			d.console.findf("\nA slow trace, and where its time went:\n%s", d.describe(t))
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// describe returns a trace's diagnosis and its link.
func (d *demo) describe(t slowTrace) string {
	return fmt.Sprintf("  %s\n  %s\n", t.diagnosis, d.pages+viewer.SpanPath(t.root.TraceID, t.root.ID))
}

// summarise prints the findings of the run. The services have ended.
func (d *demo) summarise(ctx context.Context, p phases) error {
	begun, ended := p.faulty.begun, time.Now()
	t, err := eventually(ctx, func() (slowTrace, error) { return d.backend.slowest(ctx, "", begun, ended) })
	if err != nil {
		return err
	}
	d.console.findf("\nThe slowest trace\n%s", d.describe(t))

	leaked := ended
	if d.leaks() { // and frees what it held, when it is repaired
		leaked = p.faulty.ended
	}
	l, err := eventually(ctx, func() (leak, error) { return d.backend.leak(ctx, begun, leaked) })
	if err != nil {
		return err
	}
	d.console.findf("The leak\n  %s holds %s more after %v: %s\n  %s\n", wallprofile.Short(l.function), mebibytes(l.grown()),
		l.over.Round(time.Second), l.course(), d.pages+"/memory?"+url.Values{"service": {storefront}}.Encode())

	rows, err := d.compare(ctx, p)
	if err != nil {
		return err
	}
	d.console.findf("Before and after the repair\n%s", rows)

	// The slowest traces are those of one fault; the others show in the spans of one name.
	var pages strings.Builder
	for _, f := range d.faults {
		fmt.Fprintf(&pages, "  %s: all spans %s of the %s\n  %s\n", f.Fault.Name, f.Fault.Span, f.Fault.Service,
			d.pages+viewer.NamePath(f.Fault.Service, f.Fault.Span))
	}
	d.console.findf("Each fault in the spans of one name\n%s", &pages)

	file, err := d.backend.file(ctx, t)
	if err != nil {
		return err
	}
	if file != "" {
		d.console.findf("The slowest trace in a terminal\n  go tool pprof -top -unit=ms -relative_percentages -tagfocus=%s=%s %s",
			wallprofile.SpanID, t.root.ID, file)
	}
	return nil
}

// compare returns a table of the changes that the repair made.
func (d *demo) compare(ctx context.Context, p phases) (string, error) {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	row := func(what string, before, after any) { fmt.Fprintf(table, "  %s\t%v\t%v\n", what, before, after) }
	row("the storefront", "before", "after")
	shown := []string{"single"} // the small checkouts, which are most of the load
	for _, f := range d.faults {
		if f.Fault.Kind != faults.Leak && f.Fault.Victim.Route() != checkout {
			shown = append(shown, f.Fault.Name+" victim")
		}
	}
	for _, name := range shown {
		before, after := endpoint(p.faulty.report, name), endpoint(p.repaired.report, name)
		request := before.Method + " " + before.Path
		row(request+", median", milliseconds(before.P50), milliseconds(after.P50))
		row(request+", 99th percentile", milliseconds(before.P99), milliseconds(after.P99))
	}
	row("requests that failed", p.faulty.report.Failed, p.repaired.report.Failed)
	row(fmt.Sprintf("requests shed because %d were in flight", concurrency), p.faulty.report.Shed, p.repaired.report.Shed)
	for _, f := range d.faults {
		if f.sample == "" {
			continue
		}
		// A window that spans both phases belongs to the first one.
		wrong, err := d.backend.spent(ctx, f, p.faulty.begun, p.faulty.ended)
		if err != nil {
			return "", err
		}
		right, err := d.backend.spent(ctx, f, p.repaired.begun.Add(window), p.repaired.ended)
		if err != nil {
			return "", err
		}
		row(f.shows+" "+wallprofile.Short(f.Fault.Function), perSecond(wrong, p.faulty.length()), perSecond(right, p.repaired.length()-window))
	}
	if err := table.Flush(); err != nil {
		return "", err
	}
	return text.String(), nil
}

// endpoint returns the report of one kind of request.
func endpoint(r load.Report, name string) load.EndpointReport {
	for _, e := range r.Endpoints {
		if e.Name == name {
			return e
		}
	}
	return load.EndpointReport{}
}

func milliseconds(ms float64) string { return fmt.Sprintf("%.0f ms", ms) }

// perSecond is a time per second, summed over all goroutines: 2 s/s is two goroutines at any time.
func perSecond(spent, length time.Duration) string {
	if spent == 0 {
		return "none"
	}
	return fmt.Sprintf("%.2f s/s", spent.Seconds()/length.Seconds())
}

func mebibytes(n int64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }
