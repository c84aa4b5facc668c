package viewer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"spanflame/viewer/source"

	"github.com/go-analyze/charts"
	"github.com/google/pprof/profile"

	"spanflame/internal/flame"
	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/profiles"
)

// plotted limits the points of a plot.
const plotted = 120

// memoryPage is the data of the page Memory.
type memoryPage struct {
	head
	ofService
	Asked       string // the instance that was asked for, empty for the one with the most memory
	Instance    string // whose memory it is
	First, Last string
	From, To    time.Time
	Growth      string // per hour
	Address     string // of the page, of whichever instance
	Plot        string
	Points      []point   // the plot in numbers
	Restarted   time.Time // when the process began whose growth is shown, zero if there was no restart
	Updated     bool      // it was another version
	Leaks       leakVerdict
	Changes     []flame.Change
	Difference  *flame.Graph
	Pprof       string
	Why         string
}

// suspects is a table, each row of which leads to the memory of its instance.
type suspects struct {
	Address string
	Rows    []suspect
}

func (p memoryPage) Suspected(rows []suspect) suspects { return suspects{p.Address, rows} }

type point struct {
	Time  time.Time
	Bytes string
}

func (s *server) memory(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, "service", "instance", "last", "from", "to", "frame")
	if err != nil {
		return err
	}
	zoom, err := parseFrame(q, "frame")
	if err != nil {
		return err
	}
	page := memoryPage{head: head{Title: "Memory", Current: "memory"}, Asked: q.Get("instance")}
	if page.ofService, err = s.chooseService(r.Context(), q, time.Now()); err != nil {
		return err
	}
	if page.Service == "" {
		page.Why = "There are no profiles yet: an agent captures memory once in each window."
		return s.render(w, http.StatusOK, "memory.html", page)
	}
	points, err := s.memoryPoints(r.Context(), page.Service, page.Asked, page.Period)
	if err != nil {
		return err
	}
	if len(points) < 2 {
		of := "this service"
		if page.Asked != "" {
			of = fmt.Sprintf("the instance %q of this service", format.Clean(page.Asked, 160))
		}
		page.Why = page.known(fmt.Sprintf(
			"There are fewer than two memory profiles of %s and time: choose another service or a longer time. An agent captures memory once a window.", of,
		))
		return s.render(w, http.StatusOK, "memory.html", page)
	}
	for _, p := range source.Spread(points, 24) {
		page.Points = append(page.Points, point{p.To.UTC(), format.Bytes(p.Bytes)})
	}
	if began := lastRun(points); began > 0 {
		page.Restarted, page.Updated = points[began].From.UTC(), points[began].Version != points[began-1].Version
		points = points[began:]
	}
	first, last := points[0], points[len(points)-1]
	page.Instance = first.Instance
	page.First, page.Last, page.From, page.To = format.Bytes(first.Bytes), format.Bytes(last.Bytes), first.To.UTC(), last.To.UTC()
	if hours := last.To.Sub(first.To).Hours(); hours > 0 {
		page.Growth = format.Bytes(int64(float64(last.Bytes-first.Bytes) / hours))
	}
	of := url.Values{"service": {page.Service}}
	for _, name := range []string{"last", "from", "to"} {
		if v := q.Get(name); v != "" {
			of.Set(name, v)
		}
	}
	page.Address = "/memory?" + of.Encode()
	if page.Asked != "" {
		of.Set("instance", page.Asked)
	}
	page.Plot = "/memory/plot.svg?" + of.Encode()
	spec := url.Values{
		"kind": {"memory"}, "service": {page.Service}, "instance": {page.Instance},
		"afrom": {stamp(first.From)}, "ato": {stamp(first.End())},
		"bfrom": {stamp(last.From)}, "bto": {stamp(last.End())},
	}
	page.Pprof = "/flame/" + encodeSpec(spec) + "/flamegraph"
	grown, err := once(r.Context(), s, fmt.Sprintf("memory %q", spec), func(ctx context.Context) (difference, error) {
		p, base, err := s.memoryPair(ctx, spec)
		if err != nil {
			return difference{}, err
		}
		return newDifference(base, p, 1, 1), nil
	})
	if err != nil && !errors.Is(err, profiles.ErrNone) {
		return err
	}
	page.Changes = grown.Changes
	page.Difference = grown.draw("/memory?"+of.Encode()+"&frame=", zoom)
	sel := source.Selection{Service: page.Service, Type: record.Memory, From: first.From, To: last.End()}
	page.Leaks, err = once(r.Context(), s, fmt.Sprintf("leaks %q", sel), func(ctx context.Context) (leakVerdict, error) {
		return findLeaks(ctx, s.source, sel)
	})
	if err != nil {
		page.Leaks.Notes = append(page.Leaks.Notes, format.Clean(err.Error(), 400)) // the page is shown without it
	}
	return s.render(w, http.StatusOK, "memory.html", page)
}

func (s *server) memoryPoints(ctx context.Context, service, instance string, p period) ([]source.MemoryPoint, error) {
	key := fmt.Sprintf("memory %q %q %q %q %q", service, instance, p.Last, p.From, p.To)
	if points, ok := s.memories.get(key); ok {
		return points, nil
	}
	return once(ctx, s, key, func(ctx context.Context) ([]source.MemoryPoint, error) {
		points, err := s.source.Memory(ctx, source.Selection{Service: service, Instance: instance, From: p.from, To: p.to}, plotted)
		if err == nil {
			s.memories.put(key, points)
		}
		return points, err
	})
}

// memoryPair reads the memory in use in two windows, a later one and an earlier one.
func (s *server) memoryPair(ctx context.Context, q url.Values) (p, base *profile.Profile, err error) {
	a, err := parsePeriod(q, "a", time.Time{})
	if err != nil {
		return nil, nil, err
	}
	b, err := parsePeriod(q, "b", time.Time{})
	if err != nil {
		return nil, nil, err
	}
	if a.from.IsZero() || a.to.IsZero() || b.from.IsZero() || b.to.IsZero() || q.Get("service") == "" {
		return nil, nil, badRequest("The address of this flame graph is not whole.")
	}
	sel := source.Selection{Service: q.Get("service"), Instance: q.Get("instance"), Type: record.Memory, From: b.from, To: b.to}
	if p, err = s.source.Profile(ctx, sel); err != nil {
		return nil, nil, err
	}
	sel.From, sel.To = a.from, a.to
	base, err = s.source.Profile(ctx, sel)
	return inuse(p), inuse(base), err
}

// inuse makes the memory in use the default sample type.
func inuse(p *profile.Profile) *profile.Profile {
	if p != nil {
		p.DefaultSampleType = "inuse_space"
	}
	return p
}

// memoryPlot draws memory over time. The page has it as an image and in numbers.
func (s *server) memoryPlot(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, "service", "instance", "last", "from", "to", "theme")
	if err != nil {
		return err
	}
	theme, ok := plotThemes[q.Get("theme")]
	if !ok {
		return badRequest("theme=%q: want dark, or none.", q.Get("theme"))
	}
	p, err := parsePeriod(q, "", time.Now())
	if err != nil {
		return err
	}
	points, err := s.memoryPoints(r.Context(), q.Get("service"), q.Get("instance"), p)
	if err != nil {
		return err
	}
	if len(points) < 2 {
		return refusal{http.StatusNotFound, "There are fewer than two memory profiles of this service and time."}
	}
	svg, err := plot(points, theme, s.zone)
	if err != nil {
		return err
	}
	// The drawing has style attributes. Opened as a page, it can do nothing else.
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	w.Header().Set("Content-Type", "image/svg+xml")
	_, _ = w.Write(svg) // a client that is gone need not have it
	return nil
}

// restartShare is the share of its memory that a process holds at most after a restart.
const restartShare = 0.5

// restarted reports whether the process was another one before a point: of another version, or with far more memory.
func restarted(before, p source.MemoryPoint) bool {
	return before.Version != p.Version || float64(p.Bytes) < restartShare*float64(before.Bytes)
}

// lastRun returns the first of the points after the last restart that has another one after it, 0 without a restart.
func lastRun(points []source.MemoryPoint) int {
	for i := len(points) - 2; i > 0; i-- {
		if restarted(points[i-1], points[i]) {
			return i
		}
	}
	return 0
}

// plotThemes are the colors of the plot, by their names in addresses.
var plotThemes = map[string]string{"": charts.ThemeLight, "dark": charts.ThemeDark}

// plot draws the points as a line, at equal distances, as those of their windows are, with a gap at each restart. The background is that of the page.
func plot(points []source.MemoryPoint, theme string, z zone) ([]byte, error) {
	var values []float64
	var labels []string
	for i, p := range points {
		if i > 0 && restarted(points[i-1], p) {
			values, labels = append(values, charts.GetNullValue()), append(labels, "")
		}
		values, labels = append(values, float64(p.Bytes)/(1<<20)), append(labels, z.in(p.To).Format(time.TimeOnly))
	}
	o := charts.NewLineChartOptionWithData([][]float64{values})
	o.Theme = charts.GetTheme(theme).WithBackgroundColor(charts.ColorTransparent)
	o.XAxis.Labels = labels
	o.XAxis.LabelCount = 6
	o.Legend.Show = charts.Ptr(false)
	o.Symbol.Shape = charts.SymbolNone
	o.FillArea = charts.Ptr(len(values) == len(points)) // which would bridge a gap
	o.YAxis[0].Min = charts.Ptr(0.0)
	o.ValueFormatter = func(v float64) string { return fmt.Sprintf("%.4g MiB", v) }
	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: 960, Height: 300})
	if err := painter.LineChart(o); err != nil {
		return nil, fmt.Errorf("draw memory: %w", err)
	}
	return painter.Bytes()
}
