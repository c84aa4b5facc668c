package incident

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
	"io"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/incidentfile"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// The page is made without html/template: a program that links it keeps all methods of all types, which costs megabytes.
// All text goes through text, which escapes it.

const pageStyle = `body{font:15px/1.5 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;margin:.5em 0 1.5em}td,th{text-align:left;vertical-align:top;padding:.2em .8em .2em 0;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}code,td.f{font-family:ui-monospace,monospace;font-size:13px;overflow-wrap:anywhere}
svg{background:#f6f6f6;display:block}polyline{fill:none;stroke:#a33;stroke-width:1.5}.warn{color:#a33}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}td,th{border-color:#444}svg{background:#262626}}`

// page writes HTML.
type page struct{ bytes.Buffer }

// add writes markup, with texts for its verbs, escaped.
func (p *page) add(markup string, texts ...any) {
	for i, t := range texts {
		texts[i] = html.EscapeString(strings.ToValidUTF8(fmt.Sprint(t), "\ufffd"))
	}
	fmt.Fprintf(p, markup, texts...)
}

// The rows of tables.
const (
	topFunctions = 10
	pageSlow     = 50
)

// writePage writes the page that is read first.
func (c *collector) writePage(w io.Writer) error {
	a := c.about
	var p page
	p.add(`<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">`+
		`<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"><title>%s: %s</title>`, a.Service, a.ID)
	p.WriteString("<style>" + pageStyle + "</style>\n")
	p.add("<h1>%s: what happened before %s</h1>\n<p>Trigger: <b>%s</b> %s. ", a.Service, a.At.Format("2006-01-02 15:04:05.000 UTC"), a.Trigger, a.Detail)
	p.add("Instance %s, version %s. Collected in %s.</p>\n", cmp.Or(a.Instance, "unknown"), cmp.Or(a.Version, "unknown"), a.Took)
	for _, m := range a.Missing {
		p.add(`<p class="warn">Missing: %s</p>`+"\n", m)
	}
	c.pageSlow(&p)
	c.pageSamples(&p)
	c.pageProfiles(&p)
	p.add("<h2>Files</h2>\n<table>")
	for _, f := range [][2]string{
		{incidentfile.Trace, "the execution trace of the last seconds: go tool trace " + incidentfile.Trace},
		{incidentfile.Profiles, "the last windows of every profile, and slow requests (wall): go tool pprof -http=: FILE"},
		{incidentfile.Slow, "the slow requests with their diagnoses"}, {incidentfile.Metrics, "the runtime's metrics of the last minutes, one row a second"},
		{incidentfile.Build, "how the program was built, and where it runs"}, {incidentfile.Settings, "the agent's settings, without secrets"},
		{incidentfile.About, "what this page begins with, for programs"},
	} {
		p.add("<tr><td class=f>%s<td>%s\n", f[0], f[1])
	}
	p.add("</table>\n")
	_, err := p.WriteTo(w)
	return err
}

func (c *collector) pageSlow(p *page) {
	p.add("<h2>Slow requests</h2>\n")
	if len(c.slow) == 0 {
		p.add("<p>None is known.</p>\n")
		return
	}
	p.add("<table><tr><th>Start (UTC)<th>Took<th>Request<th>Where its time went<th>Trace\n")
	for i, s := range slices.Backward(c.slow) {
		if i < len(c.slow)-pageSlow {
			p.add("<tr><td colspan=5>%d older ones are in %s\n", i+1, incidentfile.Slow)
			break
		}
		p.add("<tr><td class=n>%s<td class=n>%s<td>%s<td>%s<td class=f>%s\n",
			s.Start.UTC().Format("15:04:05.000"), s.Duration.Round(time.Millisecond), s.Name, s.Diagnosis, s.TraceID)
	}
	p.add("</table>\n")
}

// pageSamples draws each metric.
func (c *collector) pageSamples(p *page) {
	if len(c.samples) < 2 {
		return
	}
	p.add("<h2>The last %s</h2>\n<table><tr><th>Metric<th>Least<th>Most<th>Last<th>\n",
		c.samples[len(c.samples)-1].at.Sub(c.samples[0].at).Round(time.Second))
	for i, name := range columns {
		least, most := math.Inf(1), math.Inf(-1)
		for _, s := range c.samples {
			if v := s.values[i]; !math.IsNaN(v) {
				least, most = min(least, v), max(most, v)
			}
		}
		if math.IsInf(least, 1) {
			continue
		}
		p.add("<tr><td>%s<td class=n>%s<td class=n>%s<td class=n>%s<td>", name, short(least), short(most), short(c.samples[len(c.samples)-1].values[i]))
		p.add(`<svg width="%v" height="40" role="img" aria-label="%s over time"><polyline points="`, 2*keptSamples, name)
		for n, s := range c.samples {
			if v := s.values[i]; !math.IsNaN(v) {
				fmt.Fprintf(p, "%d,%.1f ", 2*n, 38-36*(v-least)/max(most-least, 1e-12))
			}
		}
		p.add(`"/></svg>` + "\n")
	}
	p.add("</table>\n")
}

func short(f float64) string { return fmt.Sprintf("%.4g", f) }

// pageProfiles lists the functions that are to blame for most of the last profile of each type.
func (c *collector) pageProfiles(p *page) {
	p.add("<h2>Profiles</h2>\n")
	for i, r := range c.windows {
		if i+1 < len(c.windows) && c.windows[i+1].Type == r.Type {
			continue
		}
		p.add("<h3>%s, %s to %s UTC</h3>\n", r.Type, r.Start.UTC().Format("15:04:05.000"), r.End.UTC().Format("15:04:05.000"))
		rows, unit, err := top(r)
		switch {
		case err != nil:
			p.add("<p class=warn>It cannot be read: %s</p>\n", err)
			continue
		case len(rows) == 0:
			p.add("<p>It is empty.</p>\n")
			continue
		}
		p.add("<table><tr><th>%s<th>Function\n", unit)
		for _, row := range rows {
			p.add("<tr><td class=n>%s<td class=f>%s\n", row.value, row.function)
		}
		p.add("</table>\n")
	}
}

type topRow struct {
	function string
	value    string
}

// functions returns the functions of a sample, from the innermost outwards, with their files.
func functions(s *profile.Sample) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, l := range s.Location {
			for _, line := range l.Line {
				if line.Function != nil && !yield(line.Function.Name, line.Function.Filename) {
					return
				}
			}
		}
	}
}

// top returns the functions that are to blame for the largest parts of a profile's last sample type.
func top(r record.Record) ([]topRow, string, error) {
	prof, err := profile.ParseData(r.Profile)
	if err != nil || len(prof.SampleType) == 0 {
		return nil, "", err
	}
	at := len(prof.SampleType) - 1
	sums, total := map[string]int64{}, int64(0)
	for _, s := range prof.Sample {
		name := cmp.Or(wallprofile.Blamed(functions(s)), "unknown")
		sums[name] += s.Value[at]
		total += s.Value[at]
	}
	names := make([]string, 0, len(sums))
	for name, v := range sums {
		if v != 0 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(sums[b], sums[a]), cmp.Compare(a, b)) })
	var rows []topRow
	for _, name := range names[:min(len(names), topFunctions)] {
		rows = append(rows, topRow{name, fmt.Sprintf("%d (%.0f %%)", sums[name], 100*float64(sums[name])/float64(max(total, 1)))})
	}
	t := prof.SampleType[at]
	return rows, t.Type + ", " + t.Unit, nil
}
