package viewer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/viewer/internal/pprofui"
	"spanflame/viewer/source"

	"spanflame/internal/flame"
	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/why"
)

// Limits of the page of a trace.
const (
	shownSpans      = 500
	shownAttributes = 100
	shownEvents     = 50
	shownText       = 2_000 // runes of an attribute's value
	indents         = 12    // levels of the waterfall
)

// Default thresholds of an agent, below which a span has no wall-clock profile.
const (
	defaultSlowSpan  = 100 * time.Millisecond
	defaultChildSpan = 10 * time.Millisecond
)

// tracePage is the data of the page of a trace.
type tracePage struct {
	head
	TraceID, Service, Name, Duration string
	Started                          time.Time
	Count, Services                  int
	More                             int // spans that are not shown
	Errors                           int
	Unsampled                        bool // only spans of slow requests were saved
	Diagnosis                        string
	Critical                         *criticalPath // nil if no span has a profile
	Rows                             []row
	Span                             *spanView // the selected one; nil if there is none
}

// row is a span in the waterfall.
type row struct {
	ID, Service, Name, Kind string
	Target                  string // of its call or request, if the name does not say it: method and address, or query
	Repeats                 int    // how many equal spans this row is of, 0 for one
	RepeatsTook             string // by all of them, this one included
	Duration, After         string // how long it took, and how long after the trace began; "" if it began with it
	X, W                    string // of the bar, in percent
	Indent                  int
	Hue                     int // of its service
	Selected, Error         bool
	StatusMessage           string
	Links                   []link
	Why                     string // why it has no flame graph
	Attributes, Resource    []pair
	Events                  []event
}

type pair struct{ Name, Value string }

type event struct {
	After, Name string
	Attributes  []pair
}

// spanView is the selected span with its flame graph.
type spanView struct {
	ID, Service, Name, Duration string
	Type                        string
	Types                       []link
	Flame                       graph
	Others                      flame.Graph
	Whole                       bool   // it is of the whole trace
	Switches                    []link // to the same with the causes of waits, or without them, and to the whole trace or a span
	Why                         string // why it is empty
	Pprof, Top, Graph           string
	Download, Compare           string
	Commands                    []string
	Grafana                     template.URL
}

func (s *server) trace(w http.ResponseWriter, r *http.Request) error {
	id, err := parseID(r.PathValue("trace"), traceDigits)
	if err != nil {
		return err
	}
	q, err := parameters(r, "span", "type", "own", "whole", "frame", "code")
	if err != nil {
		return err
	}
	spans, err := s.spans(r.Context(), id)
	if err != nil {
		return err
	}
	byID := index(spans)
	root := rootOf(spans, byID)
	page := tracePage{
		head: head{Title: fmt.Sprintf("%s %s", root.Service, root.Name), Current: "traces"}, TraceID: id,
		Service: root.Service, Name: root.Name, Count: len(spans), More: max(0, len(spans)-shownSpans),
	}
	start, end := bounds(spans)
	page.Started, page.Duration = start.UTC(), format.Duration(end.Sub(start))

	selected, ok := why.Main(spans, source.Marked)
	if ok {
		// The page is shown without it if there is none.
		d, err := s.diagnoseSpan(r.Context(), selected)
		if err != nil && !errors.Is(err, profiles.ErrNone) {
			return err
		}
		page.Diagnosis = d.text
	}
	if v := q.Get("span"); v != "" {
		if v, err = parseID(v, spanDigits); err != nil {
			return err
		}
		if selected, ok = byID[v]; !ok {
			return refusal{http.StatusNotFound, fmt.Sprintf("The trace has no span %s.", v)}
		}
	} else if !ok {
		selected, ok = root, true
	}
	view, err := parseView(q)
	if err != nil {
		return err
	}
	have := s.have(r.Context(), spans)
	page.Unsampled = slices.ContainsFunc(spans, func(sp traces.Span) bool { return sp.Attributes[wallprofile.UnsampledAttribute] != "" })
	page.Rows, page.Errors, page.Services = rows(spans, byID, start, end, selected.ID, have, s.options.SlowSpan)
	whole, err := s.whole(r.Context(), id, spans)
	if err != nil && !errors.Is(err, profiles.ErrNone) {
		return err
	}
	if whole != nil {
		page.Critical = newCriticalPath(whole.Report())
	}
	if whole != nil && q.Has("whole") {
		page.Span = s.wholeView(r, id, whole, selected, view)
	} else if page.Span, err = s.span(r, selected, byID, q.Get("type"), q.Has("own"), view); err != nil {
		return err
	} else if whole != nil {
		page.Span.Switches = append(page.Span.Switches, link{"Show the whole trace, across services", wholePath(id)})
	}
	return s.render(w, http.StatusOK, "trace.html", page)
}

// spans returns the spans of a trace, or a refusal if there is no such trace.
func (s *server) spans(ctx context.Context, id string) ([]traces.Span, error) {
	spans, err := s.source.Trace(ctx, id)
	if err != nil {
		return nil, err
	}
	if len(spans) == 0 {
		return nil, refusal{
			http.StatusNotFound,
			fmt.Sprintf("There is no trace %s: it has not arrived yet, was not sampled, or was removed because of its age.", id),
		}
	}
	return spans, nil
}

// entry reports whether a span is where its service was entered: the root of the trace, or the child of another service's
// span. Parents are looked up in byID.
func entry(s traces.Span, byID map[string]traces.Span) bool {
	parent, known := byID[s.ParentID]
	return !known || parent.Service != s.Service
}

func index(spans []traces.Span) map[string]traces.Span {
	byID := make(map[string]traces.Span, len(spans))
	for _, s := range spans {
		byID[s.ID] = s
	}
	return byID
}

// rootOf returns the span that a trace began with.
func rootOf(spans []traces.Span, byID map[string]traces.Span) traces.Span {
	for _, s := range spans {
		if _, ok := byID[s.ParentID]; !ok {
			return s
		}
	}
	return spans[0] // the parents form a circle
}

func bounds(spans []traces.Span) (start, end time.Time) {
	start, end = spans[0].Start, spans[0].End
	for _, s := range spans {
		if s.Start.Before(start) {
			start = s.Start
		}
		if s.End.After(end) {
			end = s.End
		}
	}
	return start, end
}

// have returns which of the marked spans have a wall-clock profile, if samples have the IDs of their spans: of spans that are
// not in the map it is not known. It reads no more spans than are shown.
func (s *server) have(ctx context.Context, spans []traces.Span) map[string]bool {
	ids := make(map[string][]string) // by service
	start, end := bounds(spans)
	for _, sp := range spans {
		if source.Marked(sp) && len(ids[sp.Service]) < shownSpans {
			ids[sp.Service] = append(ids[sp.Service], sp.ID)
		}
	}
	have := make(map[string]bool)
	for service, of := range ids {
		if len(of) == 1 {
			continue // its flame graph, which is shown, says it
		}
		p, err := s.load(ctx, s.source, source.Selection{Service: service, Type: record.Wall, From: start, To: end, SpanIDs: of})
		if err != nil {
			continue
		}
		if there := profiles.SpanIDs(p); len(there) > 0 {
			for _, id := range of {
				have[id] = there[id]
			}
		}
	}
	return have
}

// rows lays out the waterfall: children below their parents, by start.
func rows(
	spans []traces.Span, byID map[string]traces.Span, start, end time.Time, selected string, have map[string]bool,
	slow time.Duration,
) (all []row, errs, services int) {
	children := make(map[string][]traces.Span)
	hues := make(map[string]int)
	var tops []traces.Span
	for _, s := range spans {
		if s.Error {
			errs++
		}
		if _, ok := hues[s.Service]; !ok {
			hues[s.Service] = len(hues) % 6
			services++
		}
		if _, ok := byID[s.ParentID]; ok && s.ParentID != s.ID {
			children[s.ParentID] = append(children[s.ParentID], s)
		} else {
			tops = append(tops, s)
		}
	}
	whole := max(float64(end.Sub(start)), 1)
	shown := make(map[string]bool)
	var walk func(s traces.Span, repeats []traces.Span, depth int)
	walk = func(s traces.Span, repeats []traces.Span, depth int) {
		if len(all) == shownSpans || shown[s.ID] {
			return
		}
		shown[s.ID] = true
		r := row{
			ID: s.ID, Service: s.Service, Name: s.Name, Kind: s.Kind, Target: target(s), Duration: format.Duration(s.Duration()),
			X: format.Percent(float64(s.Start.Sub(start)) / whole), W: format.Percent(float64(s.Duration()) / whole),
			Indent: min(depth, indents), Hue: hues[s.Service], Selected: s.ID == selected, Error: s.Error,
			StatusMessage: format.Clean(s.StatusMessage, shownText),
			Attributes:    pairs(s.Attributes), Resource: pairs(s.Resource),
		}
		if s.Start.After(start) {
			r.After = format.Duration(s.Start.Sub(start))
		}
		for _, e := range s.Events[:min(len(s.Events), shownEvents)] {
			r.Events = append(r.Events, event{format.Duration(e.Time.Sub(start)), format.Clean(e.Name, shownText), pairs(e.Attributes)})
		}
		there, known := have[s.ID]
		if source.Marked(s) && (there || !known) {
			r.Links = append(r.Links, link{"wall", spanQuery(s, typeWall)})
		} else {
			r.Why = whyNot(s, typeWall, byID, time.Now(), slow)
		}
		if source.Marked(s) && entry(s, byID) {
			r.Links = append(r.Links, link{"CPU", spanQuery(s, typeCPU)})
		}
		if len(repeats) > 0 {
			took := s.Duration()
			for _, other := range repeats {
				shown[other.ID] = true
				took += other.Duration()
			}
			r.Repeats, r.RepeatsTook = len(repeats)+1, format.Duration(took)
		}
		all = append(all, r)
		for _, some := range folded(children[s.ID], children, selected) {
			walk(some[0], some[1:], depth+1)
		}
	}
	for _, s := range tops {
		walk(s, nil, 0)
	}
	for _, s := range spans { // spans whose parents form a circle are below no other
		walk(s, nil, 0)
	}
	return all, errs, services
}

// foldedFrom is the number of equal spans from which they have one row: a loop of queries would push the rest off the page.
const foldedFrom = 4

// folded groups the spans below one that are the same but for their time and the values of their queries, and have nothing
// below them. Each group has the place of its first span, and begins with its longest. The selected span is not folded into
// another one.
func folded(spans []traces.Span, children map[string][]traces.Span, selected string) (groups [][]traces.Span) {
	type key struct{ service, name, kind, call, host string }
	at := make(map[key]int)
	for _, s := range spans {
		call := wallprofile.CallOf(func(name string) string { return s.Attributes[name] }).Frame()
		k := key{s.Service, s.Name, s.Kind, call, attribute(s, "server.address", "net.peer.name")}
		i, ok := at[k]
		if !ok || len(children[s.ID]) > 0 || s.Error || s.ID == selected {
			i = len(groups)
			groups = append(groups, nil)
			if !s.Error && len(children[s.ID]) == 0 && s.ID != selected {
				at[k] = i
			}
		}
		groups[i] = append(groups[i], s)
	}
	var all [][]traces.Span
	for _, group := range groups {
		if len(group) < foldedFrom {
			for _, s := range group {
				all = append(all, []traces.Span{s})
			}
			continue
		}
		slices.SortStableFunc(group, func(a, b traces.Span) int { return cmp.Compare(b.Duration(), a.Duration()) })
		all = append(all, group)
	}
	slices.SortStableFunc(all, func(a, b []traces.Span) int { return first(a).Compare(first(b)) })
	return all
}

// first returns when the first of some spans began.
func first(spans []traces.Span) time.Time {
	return slices.MinFunc(spans, func(a, b traces.Span) int { return a.Start.Compare(b.Start) }).Start
}

// target returns what a span calls or serves, by the attributes of OpenTelemetry's conventions, the older ones included: a
// method and an address, or a query. It is empty where the name says it.
func target(s traces.Span) string {
	text := attribute(s, "db.query.text", "db.statement")
	if text == "" {
		if text = attribute(s, "url.full", "http.url", "url.path", "http.target"); text != "" {
			if u, err := url.Parse(text); err == nil {
				u.RawQuery, u.Fragment = "", "" // which differ from call to call
				text = u.Redacted()
			}
			text = strings.TrimSpace(attribute(s, "http.request.method", "http.method") + " " + text)
		}
	}
	if text = format.Clean(text, shownTarget); strings.Contains(s.Name, text) {
		return ""
	}
	return text
}

// attribute returns the first of some attributes that a span has.
func attribute(s traces.Span, names ...string) string {
	for _, name := range names {
		if v := s.Attributes[name]; v != "" {
			return v
		}
	}
	return ""
}

// shownTarget limits the text of a target.
const shownTarget = 120

func pairs(m map[string]string) []pair {
	var all []pair
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if len(all) == shownAttributes {
			all = append(all, pair{"…", fmt.Sprintf("and %d more", len(m)-shownAttributes)})
			break
		}
		all = append(all, pair{format.Clean(name, 200), format.Clean(m[name], shownText)})
	}
	return all
}

func spanQuery(s traces.Span, typ string) string {
	return TracePath(s.TraceID) + "?" + url.Values{"span": {s.ID}, "type": {typ}}.Encode() + "#flame"
}

// whyNot returns why a span has no flame graph, as far as it is known. Requests are recorded that take at least as long as
// slow.
func whyNot(s traces.Span, typ string, byID map[string]traces.Span, now time.Time, slow time.Duration) string {
	recorded := fmt.Sprintf("recorded (%s, unless the service sets it).", format.Duration(slow))
	inside := around(s, byID)
	isEntry := entry(s, byID)
	switch {
	case typ == typeCPU && !isEntry:
		return "CPU samples carry the id of the span that entered the service." + inside
	case !source.Marked(s) && s.Duration() < defaultChildSpan:
		return "Shorter than 10 ms: such a short span has no flame graph of its own." + inside
	case !source.Marked(s):
		return "The agent did not mark this span: its service does not run the agent, or wall-clock profiles are off." + inside
	case now.Sub(s.End) < settleTime:
		return "Not there yet: profiles are saved at the end of their window. Load the page again in a moment." + inside
	case typ == typeCPU:
		return "There is no CPU sample of this span. The profiler samples 100 times a second: the span used little CPU, or its profile was removed."
	case isEntry && s.Duration() < slow:
		return "Faster than the least duration of a request that is " + recorded
	case !isEntry && request(s, byID).Duration() < slow:
		return "Its request was faster than the least duration of a request that is " + recorded
	}
	return "The reason is not known. Recording may have exceeded its budget, the trace may be lost, or the profile was removed because of its age; " +
		"the service counts these in spanflame_wall_slow_spans_total." + inside
}

// around returns the text that names the flame graph with the time of a span without one: that of the nearest span around
// it in its service. It is empty if there is none.
func around(s traces.Span, byID map[string]traces.Span) string {
	at := s
	for range len(byID) { // the parents of spans can form a circle
		up, ok := byID[at.ParentID]
		if !ok || up.Service != s.Service {
			return ""
		}
		if source.Marked(up) && up.ID != s.ID {
			return " Its time is in the flame graph of the span around it, " + format.Clean(up.Name, 100) + "."
		}
		at = up
	}
	return ""
}

// request returns the span by which the request of a span entered its service; in a circle it is any of them.
func request(s traces.Span, byID map[string]traces.Span) traces.Span {
	for range len(byID) {
		if entry(s, byID) {
			break
		}
		s = byID[s.ParentID]
	}
	return s
}

// span returns the selected span with its flame graph, which has what others did while it waited unless own is set.
func (s *server) span(r *http.Request, sp traces.Span, byID map[string]traces.Span, typ string, own bool, drawn view) (*spanView, error) {
	typ = cmp.Or(typ, typeWall)
	t, err := parseType(typ)
	if err != nil || typ != typeWall && typ != typeCPU {
		return nil, badRequest("type=%q: want wall or cpu.", typ)
	}
	v := &spanView{ID: sp.ID, Service: sp.Service, Name: sp.Name, Duration: format.Duration(sp.Duration()), Type: typ}
	for _, other := range []string{typeWall, typeCPU} {
		v.Types = append(v.Types, link{other, spanQuery(sp, other)})
	}
	sel := source.OfSpan(sp, t.Type)
	p, err := s.load(r.Context(), s.source, sel)
	if errors.Is(err, profiles.ErrNone) {
		v.Why = whyNot(sp, typ, byID, time.Now(), s.options.SlowSpan)
		return v, nil
	}
	if err != nil {
		return nil, err
	}
	at := url.Values{"span": {sp.ID}, "type": {typ}}
	shown := profiles.Own(p)
	if causes := !slices.EqualFunc(p.Sample, shown.Sample, func(a, b *profile.Sample) bool { return a == b }); causes && own {
		v.Switches = []link{{"Show who it waited for", TracePath(sp.TraceID) + "?" + at.Encode() + "#flame"}}
		at.Set("own", "1")
	} else if causes {
		v.Switches = []link{{"Hide who it waited for", TracePath(sp.TraceID) + "?" + at.Encode() + "&own=1#flame"}}
		shown = p
	}
	v.Flame, v.Others = newFlame(shown, profiles.DefaultSampleIndex(p), TracePath(sp.TraceID)+"?"+at.Encode(), drawn), newOthers(p)
	base := TracePath(sp.TraceID) + "/span/" + sp.ID + "/" + typ
	v.Pprof, v.Top, v.Download = base+"/flamegraph", base+"/top", base+".pb.gz"
	v.Compare = "/compare?" + url.Values{"a": {sp.TraceID + "/" + sp.ID}, "type": {typ}}.Encode()
	if pprofui.HasGraphviz() {
		v.Graph = base + "/graph"
	}
	v.Commands = []string{"go tool pprof -http=: " + quoteShell("http://"+r.Host+v.Download)}
	files, err := s.source.Files(r.Context(), sel)
	if err != nil {
		return nil, err
	}
	if of, ok := arguments(files); ok {
		v.Commands = append(v.Commands, "go tool pprof -http=: -tagfocus="+wallprofile.SpanID+"="+sp.ID+of)
	}
	if s.grafana != nil {
		v.Grafana = template.URL(s.explore(sp)) // its scheme was checked by New
	}
	return v, nil
}

// explore returns the address of the trace in Grafana's Explore, with the span open.
func (s *server) explore(sp traces.Span) string {
	panes, err := json.Marshal(map[string]any{"trace": map[string]any{
		"datasource": "tempo",
		"queries": []any{
			map[string]any{"refId": "A", "datasource": map[string]string{"type": "tempo", "uid": "tempo"}, "queryType": "traceql", "query": sp.TraceID},
		},
		"range": map[string]string{
			"from": strconv.FormatInt(sp.Start.Add(-time.Hour).UnixMilli(), 10),
			"to":   strconv.FormatInt(sp.End.Add(time.Hour).UnixMilli(), 10),
		},
		"panelsState": map[string]any{"trace": map[string]string{"spanId": sp.ID}},
	}})
	if err != nil {
		return "" // strings can always be encoded
	}
	u := s.grafana.JoinPath("explore")
	u.RawQuery = url.Values{"schemaVersion": {"1"}, "orgId": {"1"}, "panes": {string(panes)}}.Encode()
	return u.String()
}

// spanOf returns the span and the type of profile in a path.
func (s *server) spanOf(r *http.Request, typ string) (traces.Span, profileType, error) {
	id, err := parseID(r.PathValue("trace"), traceDigits)
	if err != nil {
		return traces.Span{}, profileType{}, err
	}
	spanID, err := parseID(r.PathValue("span"), spanDigits)
	if err != nil {
		return traces.Span{}, profileType{}, err
	}
	t, err := parseType(typ)
	if err != nil {
		return traces.Span{}, profileType{}, err
	}
	spans, err := s.spans(r.Context(), id)
	if err != nil {
		return traces.Span{}, profileType{}, err
	}
	sp, ok := index(spans)[spanID]
	if !ok {
		return traces.Span{}, profileType{}, refusal{http.StatusNotFound, fmt.Sprintf("The trace has no span %s.", spanID)}
	}
	return sp, t, nil
}
