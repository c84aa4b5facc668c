package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/pprof/profile"
	"github.com/spf13/cobra"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/profiles"
	"spanflame/profiles/input"
	"spanflame/profiles/why"
	"spanflame/viewer/source"
)

// tried is how many of the slowest traces are tried until one has a profile.
const tried = 20

type whyOptions struct {
	viewOptions
	service, name, format string
	tail                  string
	slowest               int
	last, since           time.Duration
}

func newWhyCommand() *cobra.Command {
	var o whyOptions
	cmd := withExitCodes(&cobra.Command{
		Use:   "why [TRACE_ID]",
		Short: "Say why a trace took so long, in a dozen lines",
		Long: `Explain a trace, by default the slowest one: the parts of the time that decided how long it took, each with the
service, the function and what it did or waited for, and below a wait, who caused it and what that one did meanwhile.
Where the request waited for the answer of another service, the parts are those of the span that answered. The parts
sum to the request's duration, largest first.

With --since, rank instead who made other requests wait in that time: the route, in which function, how many requests
waited and how long in sum.

With --tail, say instead what the slowest requests of one name have that fast ones have not: the functions and states in
which a request spends significantly more time, with the rate q of false discoveries. Fast ones are of the sample that
agents take. Without it, the slowest are compared with the faster half of the other recorded requests, which describes
them and tests nothing.

Traces and profiles are read from the directory that agents save to (--dir, SPANFLAME_DIR, or the default directory), or
from servers with --tempo or --jaeger and --pyroscope.

Exits with 0 if the trace is explained, and 2 if the command line cannot be used, or if the trace is not found or has no
wall-clock profile.`,
		Example: `  spanflame why
  spanflame why --service storefront --last 1h --format json
  spanflame why --since 6h
  spanflame why --tail 'POST /api/checkout' --last 1h
  spanflame why 9f0d3eb35ab64dea36f0400e3838309e --dir data/demo/saved`,
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) == 1 {
				id = args[0]
			}
			if o.since < 0 || o.since > 0 && id != "" {
				return unusable(fmt.Errorf("--since %v: want a duration above zero, such as 6h, and no TRACE_ID", o.since))
			}
			if o.last < 0 {
				return unusable(fmt.Errorf("--last %v: want a duration above zero, such as 1h", o.last))
			}
			if o.tail != "" && id != "" {
				return unusable(errors.New("--tail: want no TRACE_ID"))
			}
			return unusable(o.run(cmd.Context(), id, cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}, argCount("at most one TRACE_ID", 0, 1))
	flags := cmd.Flags()
	o.addSource(flags)
	flags.StringVar(&o.service, "service", "", "service whose slowest trace to explain")
	flags.StringVar(&o.name, "name", "", "part of the name of the request whose slowest trace to explain")
	flags.DurationVar(&o.last, "last", 0, "only traces that began within this time, such as 1h (default all of a directory, the last 7 days of servers)")
	flags.DurationVar(&o.since, "since", 0, "rank who made other requests wait within this time, such as 6h")
	flags.StringVar(&o.tail, "tail", "", "name of the requests whose slowest to compare with faster ones")
	flags.IntVar(&o.slowest, "slowest", 30, "number of the slowest requests for --tail, at most 64")
	flags.StringVar(&o.format, "format", "text", "format of the report: text or json")
	// The profiles of single requests, without their traces, are in directories only.
	for _, name := range []string{"since", "name", "tempo", "jaeger", "pyroscope"} {
		cmd.MarkFlagsMutuallyExclusive("tail", name)
	}
	return cmd
}

func (o whyOptions) run(ctx context.Context, id string, stdout, stderr io.Writer) error {
	write, err := byFormat(o.format, map[string]func(written, io.Writer) error{"text": written.WriteText, "json": written.WriteJSON})
	if err != nil {
		return err
	}
	if o.tail != "" {
		tail, err := o.compareTail(ctx, stderr)
		if err != nil {
			return err
		}
		return write(tail, stdout)
	}
	return withSource(ctx, o.viewOptions, func(from source.Source) (err error) {
		var report written
		if o.since > 0 {
			report, err = o.rank(ctx, from)
		} else {
			report, err = o.explain(ctx, from, id)
		}
		if err != nil {
			return err
		}
		return write(report, stdout)
	})
}

// written is a report.
type written interface {
	WriteText(io.Writer) error
	WriteJSON(io.Writer) error
}

// compareTail compares the slowest requests of a name with faster ones.
func (o whyOptions) compareTail(ctx context.Context, stderr io.Writer) (*why.Tail, error) {
	dir, err := savedDir(o.dir)
	if err != nil {
		return nil, err
	}
	q := profiles.Query{Service: o.service, Types: []record.Type{record.Wall}}
	if o.last > 0 {
		q.From = time.Now().Add(-o.last)
	}
	leftOut := func(d profiles.Damaged) { fmt.Fprintf(stderr, "left out: %v\n", d) }
	windows, err := input.Open(ctx, dir, input.Options{Query: q, Damaged: leftOut})
	if err != nil {
		return nil, err
	}
	requests := why.NewRequests(o.tail)
	for w, err := range windows {
		if err != nil {
			return nil, err
		}
		requests.Add(w)
	}
	return requests.Tail(ctx, o.slowest)
}

// rank ranks who made other requests wait.
func (o whyOptions) rank(ctx context.Context, from source.Source) (*why.Ranking, error) {
	to := time.Now()
	services := []string{o.service}
	if o.service == "" {
		var err error
		if services, err = from.Services(ctx, to.Add(-o.since), to); err != nil {
			return nil, err
		}
	}
	r := &why.Ranking{Blamed: []why.Blamed{}}
	for _, service := range services {
		p, err := from.Profile(ctx, source.Selection{Service: service, Type: record.Wall, From: to.Add(-o.since), To: to})
		if errors.Is(err, profiles.ErrNone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		r.Add(service, p)
	}
	return r, nil
}

// explain explains the trace, or the slowest one that has a profile.
func (o whyOptions) explain(ctx context.Context, from source.Source, id string) (*why.Report, error) {
	ids := []string{id}
	if id == "" {
		f := source.Filter{Service: o.service, Name: o.name, Limit: tried}
		if o.last > 0 {
			f.To = time.Now()
			f.From = f.To.Add(-o.last)
		}
		found, err := from.Search(ctx, f)
		if err != nil {
			return nil, err
		}
		if ids = nil; len(found.Traces) == 0 {
			return nil, errors.New("no trace is found: wait for a slow request, or change --service, --name or --last")
		}
		for _, t := range found.Traces {
			ids = append(ids, t.TraceID)
		}
	}
	for _, id := range ids {
		spans, err := from.Trace(ctx, id)
		if err != nil {
			return nil, err
		}
		if len(spans) == 0 {
			return nil, fmt.Errorf("trace %q is not found: want the 32 hexadecimal digits of a trace that was saved or sent", id)
		}
		of, ok := why.Main(spans, source.Marked)
		if !ok {
			continue
		}
		report, err := why.Explain(spans, of, func(s traces.Span) (*profile.Profile, error) {
			p, err := from.Profile(ctx, source.OfSpan(s, record.Wall))
			if err == nil && len(p.Sample) == 0 {
				err = profiles.ErrNone
			}
			return p, err
		})
		if !errors.Is(err, profiles.ErrNone) {
			return report, err
		}
	}
	return nil, fmt.Errorf("no span of trace %s has a wall-clock profile: it was faster than SPANFLAME_SLOW_SPAN, or it was not captured", ids[0])
}
