package viewer

import (
	"context"
	"fmt"
	"time"

	"spanflame/viewer/source"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/profiles/compare"
	"spanflame/profiles/leaks"
)

// Limits of statistics.
const (
	testedWindows = 240 // of a side or a series, evenly over its time range
	testedRows    = 20
)

// metrics are the names that package compare has for the sample types of the pages.
var metrics = map[record.Type]string{
	record.CPU: "cpu", record.Wall: "wall", record.Memory: "inuse_space", record.Goroutine: "goroutine",
	record.Mutex: "mutex_delay", record.Block: "block_delay",
}

// verdict is the result of package compare, as the page Compare shows it.
type verdict struct {
	Per           string // what the values were divided by
	Before, After int    // windows
	Tested        bool   // there are enough windows to tell a change from chance
	Rows          []verdictRow
	Notes         []string
	totals        [2]float64
}

// verdictRow is a function including its callees, on both sides. The first row is the total.
type verdictRow struct {
	Name, Before, After, Change, Q string
	Significant, More              bool
}

// metricOf returns the name that package compare has for a sample type.
func metricOf(t record.Type, sampleType string) string {
	if mainSamples[t] == sampleType {
		return metrics[t]
	}
	return sampleType
}

// testChanges compares the windows of two selections of a type by a metric of package compare.
func testChanges(ctx context.Context, before, after source.Source, a, b source.Selection, metric string) (verdict, error) {
	o := compare.Options{Metrics: []string{metric}}
	var err error
	var readingBefore, readingAfter bool
	if o.RequestsBefore, readingBefore, err = source.RequestsOf(ctx, before, a); err != nil {
		return verdict{}, err
	}
	if o.RequestsAfter, readingAfter, err = source.RequestsOf(ctx, after, b); err != nil {
		return verdict{}, err
	}
	report, err := compare.Compare(ctx, before.Series(ctx, a, testedWindows), after.Series(ctx, b, testedWindows), o)
	if err != nil {
		return verdict{}, err
	}
	if readingBefore || readingAfter {
		report.Notes = append([]string{"Older traces, which have the number of all requests, are still being read: load the page again."}, report.Notes...)
	}
	if len(report.Metrics) == 0 {
		return verdict{Notes: notes(report.Notes)}, nil
	}
	m := report.Metrics[0]
	v := verdict{Per: m.Per, Before: m.WindowsBefore, After: m.WindowsAfter, Tested: m.Tested, Notes: notes(report.Notes)}
	v.totals = [2]float64{float64(m.Total.Cum.Before), float64(m.Total.Cum.After)}
	m.Total.Name = "all"
	for _, c := range append([]compare.Change{m.Total}, m.Top(testedRows)...) {
		values := c.Cum
		if c.Name == m.Total.Name {
			values = c.Flat
		}
		row := verdictRow{
			Name: format.Clean(c.Name, 200), Before: m.Format(float64(values.Before)), After: m.Format(float64(values.After)),
			Change: m.Change(values), Significant: values.Significant, More: values.After > values.Before,
		}
		if m.Tested {
			row.Q = format.Probability(values.Q)
		}
		v.Rows = append(v.Rows, row)
	}
	return v, nil
}

// notes makes notes, which may name functions, fit to be shown.
func notes(all []string) []string {
	shown := make([]string, len(all))
	for i, n := range all {
		shown[i] = format.Clean(n, 400)
	}
	return shown
}

// leakVerdict is the result of package leaks, as the page Memory shows it.
type leakVerdict struct {
	Suspects  []suspect
	Held      []suspect // grew until the load stopped, and stayed
	Undecided []suspect // there are too few profiles to tell them from chance
	Notes     []string
}

// suspect is a stack that grows like a leak.
type suspect struct {
	Undecided          bool
	Site, Instance     string
	Rate, Low, High, Q string // bytes per minute, and its interval
	InUse, Grown       string
	Began              time.Time
}

// findLeaks looks for leaks in the windows of a selection.
func findLeaks(ctx context.Context, from source.Source, sel source.Selection) (leakVerdict, error) {
	report, err := leaks.Find(ctx, from.Series(ctx, sel, testedWindows), leaks.Options{})
	if err != nil {
		return leakVerdict{}, err
	}
	v := leakVerdict{Notes: notes(report.Notes)}
	rows := func(of []leaks.Suspect, undecided bool) (rows []suspect) {
		for _, s := range of[:min(len(of), testedRows)] {
			rows = append(rows, suspect{
				Undecided: undecided, Site: format.Clean(s.Site, 200), Instance: report.Processes[s.Process].Labels[record.InstanceLabel],
				Rate: format.Bytes(int64(s.BytesPerMinute)), Low: format.Bytes(int64(s.Low)), High: format.Bytes(int64(s.High)), Q: format.Probability(s.Q),
				InUse: format.Bytes(s.InUse), Grown: format.Bytes(s.Grown), Began: s.Began.UTC(),
			})
		}
		return rows
	}
	v.Suspects, v.Held, v.Undecided = rows(report.Suspects, false), rows(report.Held, true), rows(report.Undecided, true)
	if grew := len(report.Dismissed); grew > 0 {
		v.Notes = append(v.Notes, fmt.Sprintf("%d more stacks grew, but not like a leak.", grew))
	}
	return v, nil
}
