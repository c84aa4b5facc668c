package viewer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"spanflame/viewer/source"

	"golang.org/x/sync/errgroup"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/profiles"
	"spanflame/profiles/why"
)

// Limits of the page of slow traces.
const (
	listedTraces    = 50
	listedProblems  = 50
	groupedTraces   = 20_000
	diagnoseTime    = 2 * time.Second // for the diagnoses that a page makes itself; the others are shown the next time
	diagnosedAtOnce = 2               // at the same time
	settleTime      = 30 * time.Second
)

// slowTracesPage is the data of the page of slow traces: of its problems, of the traces of one problem, or of all traces.
type slowTracesPage struct {
	head
	Service, Name, Min, Without string
	Show                        string // "traces" for the list of all
	Period                      period
	Services                    []string
	Slow                        string // the least duration of a trace that is grouped
	Time                        string // of the small bars
	Problems, Lasting           []listedProblem
	MoreProblems                int  // that are not shown
	Faster                      bool // there are traces, but no problems
	Problem                     *listedProblem
	ProblemsPath, TracesPath    string
	WaitsPath                   string
	Bundles                     int // incident bundles
	Traces                      []listedTrace
	MoreTraces                  int // of the problem that are not shown
	Notes                       []string
	Filtered                    bool
}

// listedProblem is the traces of a service and route that have one cause.
type listedProblem struct {
	Service, Name, Cause  string
	Why                   string // why there is no cause
	Cost, Median, Slowest string
	Count, Errors         int
	Requests, Usual, P99  string // how many requests of the name there are in all, their median and their 99 %; empty if they are not known
	Share                 string // of the cost of all problems, or of all that last
	When                  []timelineRect
	WhenText              string
	Width                 string // of the bar, in percent
	Path                  string // of the slowest
	All, LeaveOut         string // paths of the page; LeaveOut is empty if the name cannot be given
}

type listedTrace struct {
	Path          string
	Service, Name string
	Started       time.Time
	Duration      string
	Width         string // of the bar, in percent
	Spans         string // their number, in words
	Errors        int
	Diagnosis     string
	Why           string // why there is none
}

func (s *server) slowTraces(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, "service", "name", "min", "last", "from", "to", "without", "show", "problem")
	if err != nil {
		return err
	}
	page := slowTracesPage{
		head:    head{Title: "Slow traces", Current: "traces"},
		Service: q.Get("service"), Name: q.Get("name"), Min: q.Get("min"), Without: q.Get("without"), Show: q.Get("show"),
		Slow:         format.Duration(s.options.SlowSpan),
		WaitsPath:    pathWith("/waits", q, "service", "last", "from", "to"),
		ProblemsPath: slowTracesPath(q, "", ""), TracesPath: slowTracesPath(q, "show", "traces"),
	}
	if from, ok := s.source.(source.Bundles); ok {
		bundles, err := from.Bundles(r.Context())
		page.Bundles = len(bundles) // the page of the bundles says what is wrong with them
		if err != nil {
			page.Bundles = max(1, page.Bundles)
		}
	}
	page.Filtered = len(q) > 0 && !(len(q) == 1 && q.Has("show"))
	if page.Period, err = parsePeriod(q, "", time.Now()); err != nil {
		return err
	}
	id := q.Get("problem")
	if id != "" {
		if id, err = parseID(id, problemDigits); err != nil {
			return err
		}
	}
	f := source.Filter{
		Service: page.Service, Name: page.Name, From: page.Period.from, To: page.Period.to, Without: page.Without, Diagnose: true, Limit: groupedTraces,
	}
	switch page.Show {
	case "traces":
		f.Limit = listedTraces
	case "":
	default:
		return badRequest("show=%q: want traces, or nothing for the problems.", page.Show)
	}
	if f.Min, err = parseMin(page.Min); err != nil {
		return err
	}
	var requests distributions
	if page.Show == "" {
		// Before the search, whose notes then say what is not read yet.
		if requests, err = s.distributions(r.Context(), f); err != nil {
			return err
		}
	}
	found, err := s.source.Search(r.Context(), f)
	if err != nil {
		return err
	}
	page.Notes = found.Notes
	if page.Services, err = s.source.Services(r.Context(), f.From, f.To); err != nil {
		return err
	}
	if page.Show == "traces" {
		page.Traces = listed(found.Traces, s.diagnoseSome(r.Context(), found.Traces, 0))
		return s.render(w, http.StatusOK, "traces.html", page)
	}
	if len(found.Traces) == groupedTraces {
		page.Notes = append(page.Notes,
			fmt.Sprintf("These are the problems of the slowest %d traces. Choose a shorter time range to see those of all.", groupedTraces))
	}
	why := s.diagnoseSome(r.Context(), found.Traces, s.options.SlowSpan)
	problems := source.Problems(found.Traces, s.options.SlowSpan)
	axis := newTimeline(page.Period, found.Traces)
	page.Time = axis.words(s.zone)
	cost := make(map[bool]time.Duration) // of those that last, and of the others
	for _, p := range problems {
		cost[p.Lasts] += p.Cost()
	}
	newListed := func(p source.Problem) listedProblem {
		l := newListedProblem(p, why, q, requests)
		l.Share = format.Share(int64(p.Cost()), int64(cost[p.Lasts]))
		l.When, l.WhenText = axis.of(p.Traces)
		return l
	}
	if id != "" {
		i := slices.IndexFunc(problems, func(p source.Problem) bool { return p.ID() == id })
		if i < 0 {
			return refusal{
				http.StatusNotFound,
				"There is no such problem in this time range any more: its traces were removed, or are of another cause now that they are diagnosed.",
			}
		}
		all := problems[i].Traces
		problem := newListed(problems[i])
		page.Problem, page.MoreTraces = &problem, max(0, len(all)-listedTraces)
		page.Traces = listed(all[:min(len(all), listedTraces)], why)
		return s.render(w, http.StatusOK, "traces.html", page)
	}
	for _, p := range problems[:min(len(problems), listedProblems)] {
		l := newListed(p)
		l.Width = format.Percent(min(1, float64(p.Cost())/float64(max(1, problems[0].Cost()))))
		if p.Lasts {
			page.Lasting = append(page.Lasting, l)
		} else {
			page.Problems = append(page.Problems, l)
		}
	}
	page.MoreProblems, page.Faster = max(0, len(problems)-listedProblems), len(found.Traces) > 0
	return s.render(w, http.StatusOK, "traces.html", page)
}

// problemDigits is the length of the ID of a problem in hexadecimal digits.
const problemDigits = 16

// slowTracesPath returns the path of the page with what restricts the traces in q, and one more parameter unless its value is
// empty.
func slowTracesPath(q url.Values, name, value string) string {
	with := url.Values{name: {value}}
	for _, keep := range []string{"service", "name", "min", "last", "from", "to", "without"} {
		if !with.Has(keep) {
			with.Set(keep, q.Get(keep))
		}
	}
	return pathWith("/", with, slices.Collect(maps.Keys(with))...)
}

// pathWith returns a path with those of the parameters in q that are not empty.
func pathWith(path string, q url.Values, names ...string) string {
	with := make(url.Values)
	for _, name := range names {
		if v := q.Get(name); v != "" {
			with.Set(name, v)
		}
	}
	if len(with) == 0 {
		return path
	}
	return path + "?" + with.Encode()
}

// newListedProblem returns a problem as the page shows it, with links that keep what restricts the traces in q.
func newListedProblem(p source.Problem, why map[string]string, q url.Values, requests distributions) listedProblem {
	worst := p.Traces[0]
	l := listedProblem{
		Service: p.Service, Name: p.Name, Cause: p.Cause, Why: why[worst.TraceID],
		Cost: format.Duration(p.Cost()), Median: format.Duration(p.Median()), Slowest: format.Duration(worst.Duration), Count: len(p.Traces),
		Path: TracePath(worst.TraceID), All: slowTracesPath(q, "problem", p.ID()),
	}
	l.Requests, l.Usual, l.P99 = requests.of(p.Service, p.Name)
	for _, t := range p.Traces {
		if t.Errors > 0 {
			l.Errors++
		}
	}
	if strings.TrimSpace(p.Name) != "" && !strings.Contains(p.Name, ",") && len(p.Name) <= maxName {
		l.LeaveOut = slowTracesPath(q, "without", strings.TrimPrefix(q.Get("without")+","+p.Name, ","))
	}
	return l
}

// maxName limits the name in a link that leaves it out, in bytes.
const maxName = 200

// listed returns traces as the page lists them, with the reasons why there is no diagnosis, by their IDs.
func listed(all []source.Summary, why map[string]string) []listedTrace {
	rows := make([]listedTrace, len(all))
	for i, t := range all {
		rows[i] = listedTrace{
			Path: TracePath(t.TraceID), Service: t.Service, Name: t.Name, Started: t.Start.UTC(), Duration: format.Duration(t.Duration),
			Width: format.Percent(float64(t.Duration) / float64(max(1, all[0].Duration))), Errors: t.Errors, Diagnosis: t.Line(), Why: why[t.TraceID],
		}
		if t.Spans > 0 {
			rows[i].Spans = format.Count(t.Spans, "span")
		}
	}
	return rows
}

// diagnoseSome diagnoses traces that took as long as slow and whose agent saved no diagnosis that the source has found: as many
// as it can in its time, of each problem the slowest first. It returns why the others have none, by their IDs.
func (s *server) diagnoseSome(ctx context.Context, all []source.Summary, slow time.Duration) map[string]string {
	why := make(map[string]string)
	at := make(map[string]int, len(all))
	var open []source.Summary
	for i := range all {
		t := &all[i]
		if t.Diagnosis != "" {
			continue
		}
		at[t.TraceID], why[t.TraceID] = i, notRead
		if d, ok := s.diagnoses.get(t.TraceID); !ok {
			open = append(open, *t)
		} else if d.text == "" {
			why[t.TraceID] = d.why
		} else {
			t.SetDiagnosis(d.span, d.text, d.lasts)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, diagnoseTime)
	defer cancel()
	ids := source.Undiagnosed(open, slow, listedTraces)
	made := make([]diagnosis, len(ids))
	var some errgroup.Group
	some.SetLimit(diagnosedAtOnce)
	for i, id := range ids {
		some.Go(func() error {
			made[i] = s.diagnose(ctx, id)
			return nil
		})
	}
	_ = some.Wait() // none of them fails
	for i, id := range ids {
		if d := made[i]; d.text != "" {
			all[at[id]].SetDiagnosis(d.span, d.text, d.lasts)
		} else {
			why[id] = d.why
		}
	}
	return why
}

// diagnosis is one line that says where the time of a span went.
type diagnosis struct {
	span  traces.Span // without its attributes
	text  string      // empty if there is none
	why   string      // there is none
	lasts bool        // see [profiles.Lasts]
}

const notRead = "not read yet: load the page again, or open the trace"

// diagnose returns the diagnosis of a trace's slowest request, or why there is none.
func (s *server) diagnose(ctx context.Context, traceID string) (d diagnosis) {
	if ctx.Err() != nil {
		return diagnosis{why: notRead}
	}
	spans, err := s.source.Trace(ctx, traceID)
	if err != nil {
		return diagnosis{why: notRead}
	}
	span, ok := why.Main(spans, source.Marked)
	if !ok {
		d = diagnosis{why: "no span of it has a flame graph"}
		s.diagnoses.putFor(traceID, d, keptFor)
		return d
	}
	d, err = s.diagnoseSpan(ctx, span)
	switch {
	case errors.Is(err, profiles.ErrNone):
		d = diagnosis{why: whyNot(span, typeWall, index(spans), time.Now(), s.options.SlowSpan)}
		s.diagnoses.putFor(traceID, d, keptFor)
	case err != nil:
		d.why = notRead
	default:
		s.diagnoses.put(traceID, d)
	}
	return d
}

// diagnoseSpan returns the diagnosis of a span: the one that its agent, which knows more, saved with the wall-clock profile,
// or one that is made from the profile.
func (s *server) diagnoseSpan(ctx context.Context, span traces.Span) (diagnosis, error) {
	p, err := s.load(ctx, s.source, source.OfSpan(span, record.Wall))
	if err != nil {
		return diagnosis{}, err
	}
	text := profiles.DiagnosisOf(p, span.ID, span.Name, span.Duration())
	if text == "" {
		return diagnosis{}, profiles.ErrNone
	}
	return diagnosis{
		span: traces.Span{TraceID: span.TraceID, ID: span.ID, Service: span.Service, Name: span.Name, Start: span.Start, End: span.End},
		text: format.Clean(text, 400), lasts: profiles.Lasts(p),
	}, nil
}
