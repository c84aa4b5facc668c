package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"spanflame/internal/wallprofile"
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

// pairs are name=value pairs that a flag gave.
type pairs struct {
	flag   string
	values []string
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

// open finds the windows of an argument; more are pairs that replace flags for it.
func (f inputFlags) open(ctx context.Context, argument string, more pairs, stderr io.Writer) (iter.Seq2[profiles.Window, error], error) {
	o := f.options
	o.Query = profiles.Query{Service: f.service, Labels: map[string]string{}}
	o.Damaged = func(d profiles.Damaged) { fmt.Fprintf(stderr, "left out: %v\n", d) }
	for _, kind := range f.kinds {
		t, err := profiles.ParseType(kind)
		if err != nil {
			return nil, fmt.Errorf("--type: %w", err)
		}
		o.Query.Types = append(o.Query.Types, t)
	}
	type moment struct{ flag, text string }
	from, until := moment{"--from", f.from}, moment{"--until", f.until}
	for _, given := range []pairs{{"--label", f.labels}, more} {
		for _, pair := range given.values {
			name, value, ok := strings.Cut(pair, "=")
			switch {
			case !ok || name == "":
				return nil, fmt.Errorf("%s %q: want name=value", given.flag, pair)
			case name == "from":
				from = moment{given.flag + " from", value}
			case name == "until":
				until = moment{given.flag + " until", value}
			case name == "service":
				o.Query.Service = value
			default:
				o.Query.Labels[name] = value
			}
		}
	}
	now := time.Now()
	for _, t := range []struct {
		moment
		at *time.Time
	}{{from, &o.Query.From}, {until, &o.Query.To}} {
		if t.text == "" {
			continue
		}
		var err error
		if *t.at, err = profiles.ParseTime(t.text, now); err != nil {
			return nil, fmt.Errorf("%s: %w", t.flag, err)
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
'saved/*.pb.gz', the address of a live service such as http://127.0.0.1:16060/debug/pprof/profile, or a query
such as 'pyroscope://127.0.0.1:4040/?query=process_cpu:cpu:nanoseconds:cpu:nanoseconds{service_name="shop"}&from=now-1h'.

With at least four windows a side, each difference has a confidence interval and a test. A rule of --fail-on is
metric[(function)]:+N%[@p<P], or with -N% for a fall: cpu:+10%@p<0.01 fails if the total of cpu rose by more than
10 %, and by chance only with a probability below 0.01; cpu:-10%@p<0.01 fails if it fell so. The function is with
what it calls, and * is every function.

Exits with 0 if all is well, 1 if a rule failed, and 2 if the command line or the profiles cannot be used, which
includes a rule that cannot be decided, and rules for two sides that are the same windows.`,
		Example: `  spanflame compare before/ after/ --fail-on 'cpu:+10%@p<0.01'
  spanflame compare saved saved --service shop --type cpu --before service_version=1.2 --after service_version=1.3
  spanflame compare before.pb.gz after.pb.gz --output diff.pb.gz && go tool pprof -top diff.pb.gz`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), args[0], args[1], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}, argCount("two sides, BEFORE and AFTER", 2, 2))
	flags := cmd.Flags()
	o.register(flags)
	flags.StringArrayVar(&o.before, "before", nil, "name=value for the side before alone: from, until, service or a label; several allowed")
	flags.StringArrayVar(&o.after, "after", nil, "the same for the side after")
	flags.StringVar(&o.format, "format", "text", "of the report: text, json, markdown or html")
	flags.StringVar(&o.output, "output", "", "file for the difference as a profile that go tool pprof opens; of one type of profiles")
	flags.StringArrayVar(&o.rules, "fail-on", nil, "rule by which the exit code is 1, like cpu:+10%@p<0.01, or cpu:-10% for a fall; several allowed")
	flags.IntVar(&o.rows, "top", 20, "how many functions to show for each metric")
	flags.StringSliceVar(&o.compare.Metrics, "metric", nil, "metrics to compare, such as cpu or alloc_space (default all but counts)")
	flags.StringVar(&o.normalization, "normalize", "", "what windows are divided by: duration, work or none (default work if it is given, else duration)")
	flags.Float64Var(&o.compare.WorkBefore, "work-before", 0, "work done before, such as the number of requests")
	flags.Float64Var(&o.compare.WorkAfter, "work-after", 0, "work done after")
	flags.StringVar(&o.work, "work", "", "expression for the work done in each window, such as 'sum(increase(requests_total[$window]))'")
	flags.StringVar(&o.prometheus, "prometheus", "http://127.0.0.1:9090", "address of the server that knows --work")
	flags.Float64Var(&o.compare.Alpha, "alpha", 0.05, "how often two equal sides may be reported to differ")
	flags.Float64Var(&o.compare.MinShare, "min-share", 0.001, "share of the total from which functions are looked at; 0 for all")
	return cmd
}

// asksForSpans tells whether a label chooses which spans wall-clock profiles are of, so that they are as chosen.
func (o compareOptions) asksForSpans() bool {
	return slices.ContainsFunc(slices.Concat(o.labels, o.before, o.after), func(pair string) bool {
		return strings.HasPrefix(pair, wallprofile.SpanScope+"=")
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
		return unusable(fmt.Errorf("--format %q: want text, json, markdown or html", o.format))
	}
	if o.rows < 1 {
		return unusable(fmt.Errorf("--top %d: want 1 or more", o.rows))
	}
	var rules []compare.Rule
	for _, text := range o.rules {
		rule, err := compare.ParseRule(text)
		if err != nil {
			return unusable(fmt.Errorf("--fail-on: %w", err))
		}
		rules = append(rules, rule)
	}
	options := o.compare
	switch {
	case options.Alpha == 0:
		return unusable(errors.New("--alpha 0: want a number above 0 and below 1"))
	case options.MinShare == 0: // which is the default of Options
		options.MinShare = math.SmallestNonzeroFloat64
	}
	var types []string
	o.options.Listed = func(entries []profiles.Entry) {
		for _, e := range entries {
			types = append(types, string(e.Type))
		}
	}
	var sides [2]iter.Seq2[profiles.Window, error]
	for i, side := range []struct {
		argument string
		more     pairs
	}{{before, pairs{"--before", o.before}}, {after, pairs{"--after", o.after}}} {
		var err error
		if sides[i], err = o.open(ctx, side.argument, side.more, stderr); err != nil {
			return unusable(err)
		}
	}
	slices.Sort(types)
	if types = slices.Compact(types); o.output != "" && len(types) > 1 {
		return unusable(fmt.Errorf("--output %s holds profiles of one type, choose it with --type: there are %s", o.output, strings.Join(types, ", ")))
	}
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
	shared, all := report.Shared, report.Before.Windows == report.Shared && report.After.Windows == report.Shared
	switch {
	case all && len(rules) > 0:
		return unusable(fmt.Errorf("--fail-on: both sides are the same windows (%d), which no rule can tell apart: %s", shared, tellApart))
	case shared > 0:
		fmt.Fprintf(stderr, "note: windows that are the same on both sides: %d of %d before and %d after; %s\n", shared, report.Before.Windows, report.After.Windows, tellApart)
	}
	return judge(report.Check(rules), stderr)
}

// tellApart says how the sides come to be different.
const tellApart = "--before and --after tell the sides apart, such as --before until=2h --after from=1h"

// maxBroken is how many of the changes that break rules an error names.
const maxBroken = 10

// judge makes an error of what rules say.
func judge(v compare.Verdict, stderr io.Writer) error {
	for _, text := range v.Small {
		fmt.Fprintf(stderr, "not judged: %s; --min-share says which is enough\n", text)
	}
	var failed error
	switch n := len(v.Broken); {
	case n == 1:
		failed = fmt.Errorf("the gate failed: %s", v.Broken[0])
	case n > 1:
		text := fmt.Sprintf("the gate failed: %d changes break its rules", n)
		for _, broken := range v.Broken[:min(n, maxBroken)] {
			text += "\n  " + broken.String()
		}
		if n > maxBroken {
			text += fmt.Sprintf("\n  and %d more", n-maxBroken)
		}
		failed = errors.New(text)
	}
	if len(v.Undecided) > 0 {
		return unusable(errors.Join(append([]error{failed}, v.Undecided...)...))
	}
	if failed != nil {
		return exitError{codeFound, failed}
	}
	return nil
}
