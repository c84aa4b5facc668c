// Package mcp answers a language model's questions about slow requests: a Model Context Protocol server with tools that only
// read a source of package viewer/source. The command `spanflame mcp` runs it on standard input and output. Each answer is
// short, and says how sure it is and what is missing. It has no network of its own.
package mcp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/pprof/profile"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/compare"
	"spanflame/profiles/leaks"
	"spanflame/profiles/why"
	"spanflame/viewer/source"
)

// Limits of one request and its answer.
const (
	MaxAnswer   = 8_000            // bytes, about 2,000 tokens
	maxRequest  = 1 << 20          // bytes of a message
	maxArgument = 500              // bytes of a text
	longest     = 30 * time.Second // for an answer
	grouped     = 20_000           // traces
	diagnosed   = 20               // traces that have no saved diagnosis
	shownRows   = 15
	windows     = 240 // of a comparison or a series, evenly over its time range
)

// Options configures the tools.
type Options struct {
	Source   source.Source
	Version  string        // of the program
	SlowSpan time.Duration // the least duration of a request that is recorded
	// Explain explains a trace, or the slowest one that matches if the ID is empty.
	Explain func(ctx context.Context, traceID, service, name string, last time.Duration) (*why.Report, error)
}

// server has the tools.
type server struct{ Options }

// New returns the server.
func New(o Options) *sdk.Server {
	s := server{o}
	program := &sdk.Implementation{Name: "spanflame", Title: "spanflame: profiles of slow requests in Go", Version: o.Version}
	all := sdk.NewServer(program, &sdk.ServerOptions{
		Instructions: "Start with slow_traces, which groups slow requests by cause. Then ask why about one of its traces, and top_functions for the " +
			"functions of one span. leaks and compare read the profiles of a service. Durations are wall-clock time.",
	})
	add(all, "slow_traces", "Slow requests by problem: one line for each service, route and cause, with how many there are, how slow they are, and the ID of "+
		"the slowest trace. The first cost most time in all.", s.slowTraces)
	add(all, "why", "Why a trace took so long: the critical path across goroutines and services, with who made it wait. Without a trace ID it is the slowest "+
		"trace that matches.", s.why)
	add(all, "top_functions", "The functions in which a span of a trace spent its time, on the CPU or waiting, largest first.", s.topFunctions)
	add(all, "compare", "Compares the profiles of a service before and after, by version or by time, and says what changed significantly.", s.compare)
	add(all, "leaks", "Looks for stacks of a service whose memory grows without end.", s.leaks)
	return all
}

// Run serves until the input ends or ctx does.
func Run(ctx context.Context, o Options, in io.Reader, out io.Writer) error {
	messages := &lines{from: in}
	err := New(o).Run(ctx, &sdk.IOTransport{Reader: io.NopCloser(messages), Writer: unclosed{out}})
	if ctx.Err() != nil || messages.ended.Load() { // the SDK's error is that of an answer that nobody waits for
		return nil
	}
	return err
}

// unclosed is a writer that whoever opened it closes.
type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

// lines limits the length of the messages, each of which is a line.
type lines struct {
	from  io.Reader
	long  int // bytes of the line so far
	ended atomic.Bool
}

func (l *lines) Read(b []byte) (int, error) {
	n, err := l.from.Read(b)
	for _, c := range b[:n] {
		if l.long++; c == '\n' {
			l.long = 0
		}
		if l.long > maxRequest {
			return 0, fmt.Errorf("a message has more than %d bytes", maxRequest)
		}
	}
	if err == io.EOF {
		l.ended.Store(true)
	}
	return n, err
}

// argument is what a tool is asked for.
type argument interface{ check() error }

// add adds a tool, which returns the text of its answer.
func add[A argument](all *sdk.Server, name, description string, answer func(context.Context, A) (string, error)) {
	closed := false
	sdk.AddTool(all, &sdk.Tool{
		Name: name, Description: description, Annotations: &sdk.ToolAnnotations{ReadOnlyHint: true, IdempotentHint: true, OpenWorldHint: &closed},
	}, func(ctx context.Context, _ *sdk.CallToolRequest, a A) (_ *sdk.CallToolResult, _ any, err error) {
		defer func() { // a profile that breaks one answer does not end the others
			if v := recover(); v != nil {
				debug.PrintStack()
				err = errors.New(format.Clean(fmt.Sprintf("a defect of spanflame, whose stack is on standard error: %v", v), 1000))
			}
		}()
		if err := a.check(); err != nil {
			return nil, nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, longest)
		defer cancel()
		text, err := answer(ctx, a)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v: ask for less, such as one service or a shorter time: %w", longest, err)
		}
		if err != nil {
			return nil, nil, errors.New(format.Clean(err.Error(), 1000))
		}
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: short(text)}}}, nil, nil
	})
}

// short cuts a text after a line, so that it is within MaxAnswer.
func short(text string) string {
	const more = "\n… and more lines: ask for less, such as one service or a shorter time.\n"
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= MaxAnswer {
		return text
	}
	text = text[:MaxAnswer-len(more)]
	if end := strings.LastIndexByte(text, '\n'); end > 0 {
		text = text[:end]
	}
	return strings.ToValidUTF8(text, "") + more
}

// Requests selects traces.
type Requests struct {
	Service string `json:"service,omitempty" jsonschema:"only traces through this service"`
	Name    string `json:"name,omitempty" jsonschema:"only traces with this part in the name of a route or span"`
	Last    string `json:"last,omitempty" jsonschema:"only traces that began within this time, such as 15m or 24h"`
}

func (r Requests) check() error {
	return checked(given{"service", r.Service}, given{"name", r.Name}, given{"last", r.Last})
}

// given is an argument that is text.
type given struct{ name, text string }

// checked returns an error if a text is too long.
func checked(all ...given) error {
	for _, g := range all {
		if len(g.text) > maxArgument {
			return fmt.Errorf("%s has %d bytes: want at most %d", g.name, len(g.text), maxArgument)
		}
	}
	return nil
}

// since returns a duration that is given as text, or 0.
func since(last string) (time.Duration, error) {
	if last == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(last)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("last %q: want a duration such as 15m or 24h", last)
	}
	return d, nil
}

// Slow selects slow traces.
type Slow struct {
	Requests
	Without string `json:"without,omitempty" jsonschema:"leave out traces with these parts in the name of their root, with commas between them"`
}

func (a Slow) check() error {
	return errors.Join(a.Requests.check(), checked(given{"without", a.Without}))
}

// SlowTraces lists slow requests by problem, as the tool slow_traces does.
func SlowTraces(ctx context.Context, o Options, a Slow) (string, error) {
	return server{o}.slowTraces(ctx, a)
}

func (s server) slowTraces(ctx context.Context, a Slow) (string, error) {
	f := source.Filter{Service: a.Service, Name: a.Name, Without: a.Without, Diagnose: true, Limit: grouped}
	last, err := since(a.Last)
	if err != nil {
		return "", err
	}
	if last > 0 {
		f.To = time.Now()
		f.From = f.To.Add(-last)
	}
	found, err := s.Source.Search(ctx, f)
	if err != nil {
		return "", err
	}
	s.diagnose(ctx, found.Traces)
	problems := source.Problems(found.Traces, s.SlowSpan)
	all, known := 0, 0
	for _, p := range problems {
		if all += len(p.Traces); p.Cause != "" {
			known += len(p.Traces)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s of %s; the cause is known of %d of them. Ranked by the sum of their durations.\n",
		format.Count(len(problems), "problem"), format.Count(all, "slow trace"), known)
	for _, note := range found.Notes { // before the problems, which may be cut
		fmt.Fprintf(&b, "Missing: %s\n", format.Clean(note, 300))
	}
	for i, p := range problems {
		if i == shownRows {
			fmt.Fprintf(&b, "and %s, each of which cost less\n", format.Count(len(problems)-i, "more problem"))
			break
		}
		lasts := ""
		if p.Lasts {
			lasts = " (a stream, meant to last)"
		}
		fmt.Fprintf(&b, "\n%d. %s, %s%s: %s in all, %s, median %s, slowest %s\n   %s\n   slowest trace %s\n", i+1,
			format.Clean(p.Service, 100), format.Clean(p.Name, 100), lasts, format.Duration(p.Cost()), format.Count(len(p.Traces), "trace"),
			format.Duration(p.Median()), format.Duration(p.Traces[0].Duration),
			cmp.Or(format.Clean(p.Cause, 300), "the cause is not known: why explains the trace"), p.Traces[0].TraceID)
	}
	return b.String(), nil
}

// diagnose diagnoses some of the traces whose agent saved no diagnosis that the source has found, for half of the time of an
// answer. The cause of a trace that cannot be read stays unknown: the others are answered.
func (s server) diagnose(ctx context.Context, all []source.Summary) {
	ctx, cancel := context.WithTimeout(ctx, longest/2)
	defer cancel()
	at := make(map[string]int, len(all))
	for i, t := range all {
		at[t.TraceID] = i
	}
	for _, id := range source.Undiagnosed(all, s.SlowSpan, diagnosed) {
		spans, err := s.Source.Trace(ctx, id)
		if err != nil {
			continue
		}
		span, ok := why.Main(spans, source.Marked)
		if !ok {
			continue
		}
		p, err := s.wall(ctx, span)
		if err != nil {
			continue
		}
		text := profiles.DiagnosisOf(p, span.ID, span.Name, span.Duration())
		all[at[id]].SetDiagnosis(span, text, profiles.Lasts(p))
	}
}

// wall reads the wall-clock profile of a span. The error wraps [profiles.ErrNone] if there is none.
func (s server) wall(ctx context.Context, span traces.Span) (*profile.Profile, error) {
	p, err := s.Source.Profile(ctx, source.OfSpan(span, record.Wall))
	if err == nil && len(p.Sample) == 0 {
		err = profiles.ErrNone
	}
	return p, err
}

// Trace selects a trace.
type Trace struct {
	Requests
	TraceID string `json:"trace,omitempty" jsonschema:"the ID of a trace, 32 hexadecimal digits; without it, the slowest trace that matches"`
}

func (a Trace) check() error { return errors.Join(a.Requests.check(), checkID(a.TraceID, 32)) }

// checkID returns an error if an ID, which may be empty, is not of n hexadecimal digits.
func checkID(id string, n int) error {
	if id != "" && (len(id) != n || strings.Trim(id, "0123456789abcdef") != "") {
		return fmt.Errorf("%.100q is no ID: want %d hexadecimal digits in lower case", id, n)
	}
	return nil
}

func (s server) why(ctx context.Context, a Trace) (string, error) {
	last, err := since(a.Last)
	if err != nil {
		return "", err
	}
	report, err := s.Explain(ctx, a.TraceID, a.Service, a.Name, last)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = report.WriteText(&b)
	return b.String(), err
}

// Span selects a span.
type Span struct {
	TraceID string `json:"trace" jsonschema:"the ID of a trace, 32 hexadecimal digits"`
	SpanID  string `json:"span,omitempty" jsonschema:"the ID of a span, 16 hexadecimal digits; without it, the longest span by which a request entered a service"`
}

func (a Span) check() error {
	if a.TraceID == "" {
		return errors.New("trace is missing: want the ID of a trace, such as one from slow_traces")
	}
	return errors.Join(checkID(a.TraceID, 32), checkID(a.SpanID, 16))
}

func (s server) topFunctions(ctx context.Context, a Span) (string, error) {
	spans, err := s.Source.Trace(ctx, a.TraceID)
	if err != nil {
		return "", err
	}
	span, ok := why.Main(spans, func(sp traces.Span) bool { return sp.ID == a.SpanID || a.SpanID == "" && source.Marked(sp) })
	if !ok {
		return "", fmt.Errorf("trace %s has no such span with a profile: it is not known, was not captured, or was removed because of its age: "+
			"ask slow_traces for others", a.TraceID)
	}
	p, err := s.wall(ctx, span)
	if errors.Is(err, profiles.ErrNone) {
		return "", fmt.Errorf("span %s, %s, has no wall-clock profile: its request was faster than %v, or it was not captured",
			span.ID, format.Clean(span.Name, 100), s.SlowSpan)
	}
	if err != nil {
		return "", err
	}
	took := make(map[wallprofile.Place]int64)
	var own, others, idle int64
	index := profiles.OthersIndex(p)
	for _, sample := range p.Sample {
		if len(sample.Value) == 0 {
			continue
		}
		at, isOwn := profiles.WhereOf(sample)
		if !isOwn {
			if others += sample.Value[index]; profiles.Waits(sample) {
				idle += sample.Value[index]
			}
			continue
		}
		own += sample.Value[0]
		took[at.At] += sample.Value[0]
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s of %s took %s; its profile has %s of its own time.\n", format.Clean(span.Name, 100), format.Clean(span.Service, 100),
		format.Duration(span.Duration()), format.Share(own, int64(span.Duration())))
	byTime := slices.SortedFunc(maps.Keys(took), func(p, q wallprofile.Place) int {
		return cmp.Or(cmp.Compare(took[q], took[p]), p.Compare(q))
	})
	for i, at := range byTime {
		if i == shownRows {
			fmt.Fprintf(&b, "and %s\n", format.Count(len(took)-i, "smaller one"))
			break
		}
		fmt.Fprintf(&b, "%9s %6s  %s", format.Duration(time.Duration(took[at])), format.Share(took[at], own), format.Clean(at.Phrase(), 200))
		if at.Function != "" {
			fmt.Fprintf(&b, " in %s", format.Clean(at.Function, 200))
		}
		b.WriteByte('\n')
	}
	if others > 0 {
		fmt.Fprintf(&b, "Other goroutines that it started: %s in addition, of which they waited %s.\n",
			format.Duration(time.Duration(others)), format.Duration(time.Duration(idle)))
	}
	b.WriteString("Each function is the innermost of a stack that belongs to the service itself. Running time is exact; where it is far from " +
		"a CPU sample it says so.\n")
	return b.String(), nil
}

// Sides selects two sets of profiles of a service.
type Sides struct {
	Service       string `json:"service,omitempty" jsonschema:"may be left out if there is only one"`
	Type          string `json:"type" jsonschema:"cpu, memory, mutex, block, goroutines or wall"`
	BeforeVersion string `json:"before_version,omitempty"`
	AfterVersion  string `json:"after_version,omitempty"`
	BeforeFrom    string `json:"before_from,omitempty" jsonschema:"a time such as 2026-01-02T15:04:05Z, or how long ago, such as 24h"`
	BeforeTo      string `json:"before_to,omitempty"`
	AfterFrom     string `json:"after_from,omitempty"`
	AfterTo       string `json:"after_to,omitempty"`
}

func (a Sides) check() error {
	if a.BeforeVersion == a.AfterVersion && a.BeforeFrom == a.AfterFrom && a.BeforeTo == a.AfterTo {
		return errors.New("both sides are the same: give before_version and after_version, or the times of both sides")
	}
	return checked(given{"service", a.Service}, given{"type", a.Type}, given{"before_version", a.BeforeVersion}, given{"after_version", a.AfterVersion},
		given{"before_from", a.BeforeFrom}, given{"before_to", a.BeforeTo}, given{"after_from", a.AfterFrom}, given{"after_to", a.AfterTo})
}

func (s server) compare(ctx context.Context, a Sides) (string, error) {
	service, err := s.service(ctx, a.Service)
	if err != nil {
		return "", err
	}
	typ, err := profiles.ParseType(a.Type)
	if err != nil {
		return "", err
	}
	before, err := side(service, typ, a.BeforeVersion, given{"before_from", a.BeforeFrom}, given{"before_to", a.BeforeTo})
	if err != nil {
		return "", err
	}
	after, err := side(service, typ, a.AfterVersion, given{"after_from", a.AfterFrom}, given{"after_to", a.AfterTo})
	if err != nil {
		return "", err
	}
	before.Slow, after.Slow = s.SlowSpan, s.SlowSpan
	var o compare.Options
	var readingBefore, readingAfter bool
	if o.RequestsBefore, readingBefore, err = source.RequestsOf(ctx, s.Source, before); err != nil {
		return "", err
	}
	if o.RequestsAfter, readingAfter, err = source.RequestsOf(ctx, s.Source, after); err != nil {
		return "", err
	}
	report, err := compare.Compare(ctx, s.Source.Series(ctx, before, windows), s.Source.Series(ctx, after, windows), o)
	if errors.Is(err, profiles.ErrNone) {
		return "", fmt.Errorf("%w; %s", err, s.contents(ctx, service))
	}
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if readingBefore || readingAfter {
		b.WriteString("Missing: older traces, which have the number of all requests, are still being read: ask again.\n")
	}
	err = report.WriteText(&b, shownRows)
	return b.String(), err
}

// contents says of which types and versions there are profiles of a service.
func (s server) contents(ctx context.Context, service string) string {
	all, err := s.Source.Contents(ctx, service, time.Time{}, time.Time{})
	if err != nil || len(all) == 0 {
		return "there are no profiles of the service"
	}
	var known []string
	for _, c := range all {
		known = append(known, fmt.Sprintf("%s of version %q", profiles.TypeName(c.Type), c.Version))
	}
	return "there are: " + format.Clean(strings.Join(known, ", "), 700)
}

// side selects one side of a comparison.
func side(service string, typ record.Type, version string, from, to given) (sel source.Selection, err error) {
	sel = source.Selection{Service: service, Type: typ, Version: version}
	if sel.From, err = from.time(); err == nil {
		sel.To, err = to.time()
	}
	return sel, err
}

// time returns a time that is given as text, or the zero time.
func (g given) time() (t time.Time, err error) {
	if g.text == "" {
		return t, nil
	}
	if t, err = profiles.ParseTime(g.text, time.Now()); err != nil {
		return t, fmt.Errorf("%s: %w", g.name, err)
	}
	return t, nil
}

// Service selects a service.
type Service struct {
	Service string `json:"service,omitempty" jsonschema:"may be left out if there is only one"`
	Last    string `json:"last,omitempty" jsonschema:"only profiles of this time, such as 6h"`
}

func (a Service) check() error { return checked(given{"service", a.Service}, given{"last", a.Last}) }

func (s server) leaks(ctx context.Context, a Service) (string, error) {
	service, err := s.service(ctx, a.Service)
	if err != nil {
		return "", err
	}
	last, err := since(a.Last)
	if err != nil {
		return "", err
	}
	sel := source.Selection{Service: service, Type: record.Memory}
	if last > 0 {
		sel.To = time.Now()
		sel.From = sel.To.Add(-last)
	}
	report, err := leaks.Find(ctx, s.Source.Series(ctx, sel, windows), leaks.Options{})
	if errors.Is(err, profiles.ErrNone) {
		return "", fmt.Errorf("%w; %s", err, s.contents(ctx, service))
	}
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = report.WriteText(&b)
	return b.String(), err
}

// service returns a service that has profiles: the one with the name, or the only one.
func (s server) service(ctx context.Context, name string) (string, error) {
	all, err := s.Source.Services(ctx, time.Time{}, time.Time{})
	if err != nil {
		return "", err
	}
	switch {
	case name != "" && slices.Contains(all, name):
		return name, nil
	case name == "" && len(all) == 1:
		return all[0], nil
	case len(all) == 0:
		return "", errors.New("there are no profiles: start a service with the agent, or wait for the end of its first window")
	}
	return "", fmt.Errorf("service %q: want one of %s", name, format.Clean(strings.Join(all, ", "), 500))
}
