package compare

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"spanflame/internal/flame"
	"spanflame/internal/format"
)

const frameHeight = 19 // pixels, with the gap

// flameLimits are the limits of the flame graph of one metric.
var flameLimits = flame.Limits{Share: 0.001, Depth: 256, Frames: 20_000}

//go:embed page.html.tmpl
var pageSource string

var page = template.Must(template.New("page").Funcs(template.FuncMap{"side": Side.String}).Parse(pageSource))

// String describes a side on one line.
func (s Side) String() string {
	name := cmp.Or(strings.Join(s.Services, ", "), "profiles")
	windows := format.Count(s.Windows, "window")
	if s.Start.IsZero() {
		return name + ", " + windows
	}
	return fmt.Sprintf("%s, %s from %s to %s", name, windows, format.Clock(s.Start), s.End.UTC().Format(time.DateTime+" MST"))
}

// rect is a frame as it is drawn.
type rect struct {
	X, Width    string // per cent
	Y           int    // pixels
	Name, Title string
	Fill        string
}

type htmlRow struct {
	Changed bool
	Cells   []string
}

type htmlTable struct {
	Caption, What string
	Rows          []htmlRow
}

type htmlMetric struct {
	Metric
	Heading string
	Height  int
	Rects   []rect
	Tables  []htmlTable
	LeftOut string
}

// WriteHTML writes one self-contained page: for each metric tables of at most rows lines, and a difference flame graph.
func (r *Report) WriteHTML(w io.Writer, rows int) error {
	data := struct {
		Title   string
		Report  *Report
		Summary []string
		Remarks []string
		Metrics []htmlMetric
	}{"Comparison of two sets of profiles", r, r.summary(), r.remarks(), nil}
	for _, m := range r.Metrics {
		h := htmlMetric{Metric: m, Heading: m.heading(), LeftOut: m.leftOut(rows)}
		h.Rects = m.draw()
		for _, rect := range h.Rects {
			h.Height = max(h.Height, rect.Y+frameHeight)
		}
		functions := htmlTable{Caption: "Functions", What: "function"}
		for _, c := range append([]Change{m.Total}, m.Top(rows)...) {
			functions.Rows = append(functions.Rows, htmlRow{c.Significant(), m.row(c)})
		}
		stacks := htmlTable{Caption: "Stacks", What: "stack, the outermost function first"}
		for _, c := range m.Stacks[:min(rows, len(m.Stacks))] {
			c.Name = strings.Join(c.Stack, " → ")
			stacks.Rows = append(stacks.Rows, htmlRow{c.Significant(), m.row(c)})
		}
		h.Tables = []htmlTable{functions, stacks}
		data.Metrics = append(data.Metrics, h)
	}
	return page.Execute(w, data)
}

// draw lays out the flame graph, outermost functions on top.
func (m Metric) draw() []rect {
	if m.Flame == nil || m.Flame.Width <= 0 {
		return nil
	}
	var rects []rect
	for _, at := range flame.Place(m.Flame, 0, flameLimits).Frames {
		f := at.Node
		rects = append(rects, rect{
			X: decimal(100 * at.X), Width: decimal(100 * at.Width), Y: at.Depth * frameHeight, Name: f.Name, Fill: color(f),
			Title: fmt.Sprintf("%s: %s before, %s after, %s", f.Name, m.Format(f.Before), m.Format(f.After),
				m.Change(Values{Before: Number(f.Before), After: Number(f.After), Significant: true,
					Difference: unbounded(f.After - f.Before), Ratio: unbounded(quotient(f.Before, f.After))})),
		})
	}
	return rects
}

func decimal(v float64) string { return strconv.FormatFloat(v, 'f', 3, 64) }

// Colors of frames, red, green and blue. The nearly black text on them has a contrast of more than 6:1.
var (
	unchanged = [3]float64{200, 200, 200}
	grown     = [3]float64{245, 110, 100}
	shrunk    = [3]float64{110, 165, 250}
)

// color returns red for growth and blue for shrinkage, the stronger the larger the relative change of the frame.
func color(f *flame.Difference) string {
	change := (f.After - f.Before) / math.Max(math.Abs(f.After), math.Abs(f.Before))
	if math.IsNaN(change) {
		change = 0
	}
	change = math.Max(-1, math.Min(1, 2*change))
	end := grown
	if change < 0 {
		end = shrunk
	}
	var c [3]int
	for i := range c {
		c[i] = int(math.Round(unchanged[i] + math.Abs(change)*(end[i]-unchanged[i])))
	}
	return fmt.Sprintf("#%02x%02x%02x", c[0], c[1], c[2])
}
