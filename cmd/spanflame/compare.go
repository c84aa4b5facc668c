package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"spanflame/profiles"
	"spanflame/profiles/compare"
	"spanflame/profiles/input"
)

// Codes with which commands that judge profiles end, for scripts.
const (
	codeFound = 1 // a gate failed, or a leak was found
	codeUse   = 2 // the command line or the profiles cannot be used
)

// unusable marks an error as one of use or input.
func unusable(err error) error {
	if err == nil {
		return nil
	}
	return exitError{codeUse, err}
}

// judges makes every error of a command's use end with codeUse.
func judges(cmd *cobra.Command, args cobra.PositionalArgs) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, given []string) error { return unusable(args(cmd, given)) }
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unusable(err) })
	return cmd
}

// inputFlags choose the windows that an argument names.
type inputFlags struct {
	kinds   []string
	service string
	labels  []string
	from    string
	until   string
	options input.Options
}

func (f *inputFlags) register(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.kinds, "type", nil, "types of profiles to read: cpu, heap, mutex, block, goroutine, wall (default all)")
	flags.StringVar(&f.service, "service", "", "service to read the profiles of, where there are several")
	flags.StringArrayVar(&f.labels, "label", nil, "name=value that windows must have, such as service_version=1.2; several allowed")
	flags.StringVar(&f.from, "from", "", "first time to read, like 2026-01-02T15:04:05Z, '2026-01-02 15:04:05' (UTC), or 15m for that long ago")
	flags.StringVar(&f.until, "until", "", "time to read up to")
	flags.IntVar(&f.options.Windows, "windows", 1, "how many profiles to take from a live address")
	flags.DurationVar(&f.options.Length, "length", 10*time.Second, "how long each of them takes")
	flags.DurationVar(&f.options.Step, "step", 0, "length of the windows that a Pyroscope query is divided into (default 1/20 of its range)")
}

// open finds the windows of an argument; more are name=value pairs that replace flags for it.
func (f inputFlags) open(ctx context.Context, argument string, more []string, stderr io.Writer) (iter.Seq2[profiles.Window, error], error) {
	o := f.options
	o.Query = profiles.Query{Service: f.service, Labels: map[string]string{}}
	o.Damaged = func(d profiles.Damaged) { fmt.Fprintf(stderr, "left out: %v\n", d) }
	for _, kind := range f.kinds {
		t, err := profiles.ParseType(kind)
		if err != nil {
			return nil, err
		}
		o.Query.Types = append(o.Query.Types, t)
	}
	from, until := f.from, f.until
	for _, pair := range slices.Concat(f.labels, more) {
		name, value, ok := strings.Cut(pair, "=")
		switch {
		case !ok || name == "":
			return nil, fmt.Errorf("%q: want name=value", pair)
		case name == "from":
			from = value
		case name == "until":
			until = value
		case name == "service":
			o.Query.Service = value
		default:
			o.Query.Labels[name] = value
		}
	}
	now := time.Now()
	for _, t := range []struct {
		text string
		at   *time.Time
	}{{from, &o.Query.From}, {until, &o.Query.To}} {
		if t.text == "" {
			continue
		}
		var err error
		if *t.at, err = profiles.ParseTime(t.text, now); err != nil {
			return nil, err
		}
	}
	if target, err := filepath.EvalSymlinks(argument); err == nil { // of an address or a pattern there is none
		argument = target
	}
	return input.Open(ctx, argument, o)
}

// showEvery is how often long reading says how far it is.
const showEvery = 2 * time.Second

// counter tells a user how many windows were read.
func counter(w io.Writer) func(what string, n int) {
	next := time.Now().Add(showEvery)
	return func(what string, n int) {
		if now := time.Now(); now.After(next) {
			fmt.Fprintf(w, "%s: %d windows read\n", what, n)
			next = now.Add(showEvery)
		}
	}
}

type compareOptions struct {
	inputFlags
	before, after []string
	format        string
	output        string
	rules         []string
	rows          int
	normalization string
	work          string
	prometheus    string
	compare       compare.Options
}

func newCompareCommand() *cobra.Command {
	var o compareOptions
	cmd := judges(&cobra.Command{
		Use:   "compare BEFORE AFTER",
		Short: "Compare two sets of profiles, and say which differences are more than chance",
		Long: `Compare two sets of profiles by function and by stack. Each side is a file, a directory, a pattern such as
'saved/*.pb.gz', the address of a live service such as http://127.0.0.1:6060/debug/pprof/profile, or a query
such as 'pyroscope://127.0.0.1:4040/?query=process_cpu:cpu:nanoseconds:cpu:nanoseconds{service_name="shop"}&from=now-1h'.

With at least four windows a side, each difference has a confidence interval and a test. A rule of --fail-on is
metric[(function)]:+N%[@p<P]: cpu:+10%@p<0.01 fails if the total of cpu rose by more than 10 %, and by chance
only with a probability below 0.01. The function is with what it calls, and * is every function.

Exits with 0 if all is well, 1 if a rule failed, and 2 if the command line or the profiles cannot be used.`,
		Example: `  spanflame compare before/ after/ --fail-on 'cpu:+10%@p<0.01'
  spanflame compare saved saved --service shop --type cpu --before service_version=1.2 --after service_version=1.3
  spanflame compare before.pb.gz after.pb.gz --output diff.pb.gz && go tool pprof -top diff.pb.gz`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), args[0], args[1], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}, cobra.ExactArgs(2))
	flags := cmd.Flags()
	o.register(flags)
	flags.StringArrayVar(&o.before, "before", nil, "name=value for the side before alone: from, until, service or a label; several allowed")
	flags.StringArrayVar(&o.after, "after", nil, "the same for the side after")
	flags.StringVar(&o.format, "format", "text", "of the report: text, json, markdown or html")
	flags.StringVar(&o.output, "output", "", "file for the difference as a profile that go tool pprof opens")
	flags.StringArrayVar(&o.rules, "fail-on", nil, "rule by which the exit code is 1, like cpu:+10%@p<0.01; several allowed")
	flags.IntVar(&o.rows, "top", 20, "how many functions to show for each metric")
	flags.StringSliceVar(&o.compare.Metrics, "metric", nil, "metrics to compare, such as cpu or alloc_space (default all but counts)")
	flags.StringVar(&o.normalization, "normalize", "", "what windows are divided by: duration, work or none (default work if it is given, else duration)")
	flags.Float64Var(&o.compare.WorkBefore, "work-before", 0, "work done before, such as the number of requests")
	flags.Float64Var(&o.compare.WorkAfter, "work-after", 0, "work done after")
	flags.StringVar(&o.work, "work", "", "expression for the work done in each window, such as 'sum(increase(requests_total[$window]))'")
	flags.StringVar(&o.prometheus, "prometheus", "http://127.0.0.1:9090", "address of the server that knows --work")
	flags.Float64Var(&o.compare.Alpha, "alpha", 0.05, "how often two equal sides may be reported to differ")
	flags.Float64Var(&o.compare.MinShare, "min-share", 0.001, "share of the total from which functions are looked at")
	return cmd
}

// asksForSpans tells whether a label chooses which spans wall-clock profiles are of, so that they are as chosen.
func (o compareOptions) asksForSpans() bool {
	return slices.ContainsFunc(slices.Concat(o.labels, o.before, o.after), func(pair string) bool {
		return strings.HasPrefix(pair, "span_scope=")
	})
}

func (o compareOptions) run(ctx context.Context, before, after string, stdout, stderr io.Writer) error {
	write, ok := map[string]func(*compare.Report) error{
		"text":     func(r *compare.Report) error { return r.WriteText(stdout, o.rows) },
		"json":     func(r *compare.Report) error { return r.WriteJSON(stdout) },
		"markdown": func(r *compare.Report) error { return r.WriteMarkdown(stdout, o.rows) },
		"html":     func(r *compare.Report) error { return r.WriteHTML(stdout, o.rows) },
	}[o.format]
	if !ok {
		return unusable(fmt.Errorf("format %q: want text, json, markdown or html", o.format))
	}
	if o.rows < 1 {
		return unusable(fmt.Errorf("top %d: want 1 or more", o.rows))
	}
	var rules []compare.Rule
	for _, text := range o.rules {
		rule, err := compare.ParseRule(text)
		if err != nil {
			return unusable(err)
		}
		rules = append(rules, rule)
	}
	var sides [2]iter.Seq2[profiles.Window, error]
	for i, side := range []struct {
		argument string
		more     []string
	}{{before, o.before}, {after, o.after}} {
		var err error
		if sides[i], err = o.open(ctx, side.argument, side.more, stderr); err != nil {
			return unusable(err)
		}
	}
	options := o.compare
	options.Normalization = compare.Normalization(o.normalization)
	options.Diff = o.output != ""
	if o.work != "" {
		work, err := input.Work(ctx, o.prometheus, o.work)
		if err != nil {
			return unusable(err)
		}
		options.Work = work
	}
	options.ChildSpans = o.asksForSpans()
	options.Progress = counter(stderr)
	report, err := compare.Compare(ctx, sides[0], sides[1], options)
	if err != nil {
		return unusable(err)
	}
	if err := write(report); err != nil {
		return unusable(fmt.Errorf("write the report: %w", err))
	}
	if o.output != "" {
		if err := replaceFile(o.output, report.WriteDiff); err != nil {
			return unusable(err)
		}
	}
	violations, err := report.Check(rules)
	if err != nil {
		return unusable(err)
	}
	if len(violations) > 0 {
		var errs []error
		for _, v := range violations {
			errs = append(errs, errors.New(v.String()))
		}
		return exitError{codeFound, fmt.Errorf("the gate failed: %w", errors.Join(errs...))}
	}
	return nil
}
