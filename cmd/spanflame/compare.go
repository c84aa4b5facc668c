package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/compare"
	"spanflame/profiles/input"
	"spanflame/viewer/source"
)

// Exit codes of the commands compare and leaks, for scripts.
const (
	codeFound = 1 // a gate failed, or a leak was found
	codeUse   = 2 // the command line or the profiles cannot be used
)

// unusable makes an error end the process with codeUse.
func unusable(err error) error {
	if err == nil {
		return nil
	}
	return exitError{codeUse, err}
}

// withExitCodes makes every error in a command line end the process with codeUse.
func withExitCodes(cmd *cobra.Command, args cobra.PositionalArgs) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if err := args(cmd, given); err != nil {
			return unusable(err)
		}
		return unusable(cmd.ValidateFlagGroups()) // whose error cobra would return as it is
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unusable(err) })
	return cmd
}

// inputFlags select the windows of an argument.
type inputFlags struct {
	types    []string
	service  string
	labels   []string
	from, to string
	options  input.Options
}

// pairs are the name=value pairs of a flag.
type pairs struct {
	flag   string
	values []string
}

func (f *inputFlags) register(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.types, "type", nil, "types of profiles to read: "+typeChoices+" (default all)")
	flags.StringVar(&f.service, "service", "", "service whose profiles to read; required if there are several")
	flags.StringArrayVar(&f.labels, "label", nil, "name=value that profiles must have, such as service_version=1.2; repeatable")
	timeRange(flags, &f.from, &f.to)
	flags.IntVar(&f.options.Windows, "windows", 1, "number of profiles to take from a live address")
	flags.DurationVar(&f.options.Length, "length", 10*time.Second, "length of each profile from a live address")
	flags.DurationVar(&f.options.Step, "step", 0, "length of the windows into which a Pyroscope query is divided (default 1/20 of its time range)")
}

// typeChoices are the values of --type that a user needs; a file of another tool may have a type of its own.
const typeChoices = "cpu, wall, memory, mutex, block, goroutines"

// timeRange registers the flags --from and --to.
func timeRange(flags *pflag.FlagSet, from, to *string) {
	flags.StringVar(from, "from", "", "start of the time range: 2026-01-02T15:04:05Z, '2026-01-02 15:04:05' (UTC), or 15m for 15 minutes ago")
	flags.StringVar(to, "to", "", "end of the time range, in the same forms")
}

// open returns the windows of an argument. The pairs in more override the flags.
func (f inputFlags) open(ctx context.Context, argument string, more pairs, stderr io.Writer) (iter.Seq2[profiles.Window, error], error) {
	o, err := f.selected(more, stderr)
	if err != nil {
		return nil, err
	}
	return input.Open(ctx, target(argument), o)
}

// target follows a link; the argument may also be an address or a pattern.
func target(argument string) string {
	if path, err := filepath.EvalSymlinks(argument); err == nil {
		return path
	}
	return argument
}

// selected returns the options of package input that the flags say. The pairs in more override them.
func (f inputFlags) selected(more pairs, stderr io.Writer) (input.Options, error) {
	o := f.options
	o.Query = profiles.Query{Service: f.service, Labels: map[string]string{}}
	o.Damaged = func(d profiles.Damaged) { fmt.Fprintf(stderr, "left out: %v\n", d) }
	for _, name := range f.types {
		t, err := profiles.ParseType(name)
		if err != nil {
			return o, fmt.Errorf("--type: %w", err)
		}
		o.Query.Types = append(o.Query.Types, t)
	}
	type moment struct{ flag, text string }
	from, to := moment{"--from", f.from}, moment{"--to", f.to}
	for _, given := range []pairs{{"--label", f.labels}, more} {
		for _, pair := range given.values {
			name, value, err := nameValue(given.flag, pair)
			if err != nil {
				return o, err
			}
			switch name {
			case "from":
				from = moment{given.flag + " from", value}
			case "to":
				to = moment{given.flag + " to", value}
			case "service":
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
	}{{from, &o.Query.From}, {to, &o.Query.To}} {
		if t.text == "" {
			continue
		}
		var err error
		if *t.at, err = profiles.ParseTime(t.text, now); err != nil {
			return o, fmt.Errorf("%s: %w", t.flag, err)
		}
	}
	return o, nil
}

// nameValue parses a value of a flag.
func nameValue(flag, pair string) (name, value string, err error) {
	name, value, ok := strings.Cut(pair, "=")
	if !ok || name == "" {
		return "", "", fmt.Errorf("%s %q: want name=value", flag, pair)
	}
	return name, value, nil
}

// showEvery is the interval at which progress is reported.
const showEvery = 2 * time.Second

// counter returns a function that reports how many windows were read.
func counter(w io.Writer) func(what string, n int) {
	next := time.Now().Add(showEvery)
	return func(what string, n int) {
		if now := time.Now(); now.After(next) {
			fmt.Fprintf(w, "%s: %s read\n", what, format.Count(n, "window"))
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
	cmd := withExitCodes(&cobra.Command{
		Use:   "compare [BEFORE AFTER]",
		Short: "Compare two sets of profiles, and show which differences are significant",
		Long: `Compare two sets of profiles by function and by stack. Each side is a file, a directory, a pattern such as
'saved/*.pb.gz', the address of a live service such as http://127.0.0.1:16060/debug/pprof/profile, or a query
such as 'pyroscope://127.0.0.1:4040/?query=process_cpu:cpu:nanoseconds:cpu:nanoseconds{service_name="shop"}&from=now-1h'.

Without sides, --before and --after select them from the directory that agents save to (SPANFLAME_DIR, or the default
directory).

With at least four windows on each side, every difference has a confidence interval and a significance test. A rule
of --fail-on is metric[(function)]:+N%[@p<P] for an increase, or -N% for a decrease: cpu:+10%@p<0.01 fails if the
total of cpu increased by more than 10 % and the test gives a p below 0.01. A function includes what it calls, and
* means every function.

Exits with 0 if no rule failed, 1 if a rule failed, and 2 if the command line or the profiles cannot be used, a rule
cannot be decided, or both sides are the same windows although there are rules.`,
		Example: `  spanflame compare before/ after/ --fail-on 'cpu:+10%@p<0.01'
  spanflame compare saved saved --service shop --type cpu --before service_version=1.2 --after service_version=1.3
  spanflame compare before.pb.gz after.pb.gz --output diff.pb.gz && go tool pprof -top diff.pb.gz`,
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := orSaved(args, 2)
			if err != nil {
				return unusable(err)
			}
			return o.run(cmd.Context(), args[0], args[1], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}, func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 && len(o.before)+len(o.after) > 0 {
			return nil // two parts of the directory to which agents save
		}
		return argCount("two sides, BEFORE and AFTER", 2, 2)(cmd, args)
	})
	flags := cmd.Flags()
	o.register(flags)
	flags.StringArrayVar(&o.before, "before", nil, "name=value for BEFORE only: from, to, service or a label; repeatable")
	flags.StringArrayVar(&o.after, "after", nil, "name=value for AFTER only: from, to, service or a label; repeatable")
	flags.StringVar(&o.format, "format", "text", "format of the report: text, json, markdown or html")
	flags.StringVar(&o.output, "output", "", "file for the difference as a profile for go tool pprof; requires profiles of a single type")
	flags.StringArrayVar(&o.rules, "fail-on", nil, "exit with 1 if this rule is broken, like cpu:+10%@p<0.01, or cpu:-10% for a decrease; repeatable")
	flags.IntVar(&o.rows, "top", 20, "number of functions to show for each metric")
	flags.StringSliceVar(&o.compare.Metrics, "metric", nil, "metrics to compare, such as cpu or alloc_space (default all but counts)")
	flags.StringVar(&o.normalization, "normalize", "",
		"divide values by duration, work or none (default work if it is given, else duration, but wall-clock profiles by all requests)")
	flags.StringVar(&o.compare.Span, "span", "", "compare only the requests of this name, by their CPU and wall-clock profiles; needs saved traces")
	flags.Float64Var(&o.compare.WorkBefore, "work-before", 0, "work done in all of BEFORE, such as the number of requests")
	flags.Float64Var(&o.compare.WorkAfter, "work-after", 0, "work done in all of AFTER")
	workFlags(flags, &o.work, &o.prometheus)
	flags.Float64Var(&o.compare.Alpha, "alpha", 0.05, "false discovery rate: how often two equal sides may be reported to differ")
	flags.Float64Var(&o.compare.MinShare, "min-share", 0.001, "smallest share of the total for a function to be tested; 0 for all functions")
	return cmd
}

// workFlags registers the flags --work and --prometheus.
func workFlags(flags *pflag.FlagSet, work, prometheus *string) {
	flags.StringVar(work, "work", "", "PromQL expression for the work done in each window, such as 'sum(increase(requests_total[$window]))'")
	flags.StringVar(prometheus, "prometheus", "http://127.0.0.1:9090", "address of the Prometheus server that evaluates --work")
}

// asksForSpans reports whether a label selects root or child spans, so that wall-clock profiles are used as selected.
func (o compareOptions) asksForSpans() bool {
	return slices.ContainsFunc(slices.Concat(o.labels, o.before, o.after), func(pair string) bool {
		return strings.HasPrefix(pair, wallprofile.SpanScope+"=")
	})
}

// requestsOf returns the requests of the time of saved wall-clock profiles, from the traces in an agent's directory. There
// are none without such profiles or traces, and for labels that traces do not have.
func (o compareOptions) requestsOf(ctx context.Context, dir string, labels map[string]string, saved []profiles.Entry) ([]traces.Span, error) {
	wanted := len(saved) > 0 && o.compare.Span != "" || slices.ContainsFunc(saved, func(e profiles.Entry) bool { return e.Type == record.Wall })
	for name := range labels {
		if name != record.VersionLabel {
			return nil, nil
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "traces")); !wanted || err != nil || !info.IsDir() {
		return nil, nil
	}
	d, err := source.OpenDirectory(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close() // it was only read
	of := source.Filter{Service: saved[0].Service, Version: labels[record.VersionLabel], From: saved[0].Start}
	for _, e := range saved {
		if e.End.After(of.To) {
			of.To = e.End
		}
	}
	if err := d.ReadTraces(ctx); err != nil {
		return nil, err
	}
	return d.Requests(ctx, of)
}

func (o compareOptions) run(ctx context.Context, before, after string, stdout, stderr io.Writer) error {
	write, err := byFormat(o.format, map[string]func(*compare.Report) error{
		"text":     func(r *compare.Report) error { return r.WriteText(stdout, o.rows) },
		"json":     func(r *compare.Report) error { return r.WriteJSON(stdout) },
		"markdown": func(r *compare.Report) error { return r.WriteMarkdown(stdout, o.rows) },
		"html":     func(r *compare.Report) error { return r.WriteHTML(stdout, o.rows) },
	})
	if err != nil {
		return unusable(err)
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
	var sides [2]iter.Seq2[profiles.Window, error]
	requests := [2]*[]traces.Span{&options.RequestsBefore, &options.RequestsAfter}
	for i, side := range []struct {
		argument string
		more     pairs
	}{{before, pairs{"--before", o.before}}, {after, pairs{"--after", o.after}}} {
		selected, err := o.selected(side.more, stderr)
		if err != nil {
			return unusable(err)
		}
		var saved []profiles.Entry
		selected.Listed = func(entries []profiles.Entry) { saved = entries }
		path := target(side.argument)
		if sides[i], err = input.Open(ctx, path, selected); err != nil {
			return unusable(err)
		}
		for _, e := range saved {
			types = append(types, profiles.TypeName(e.Type))
		}
		if *requests[i], err = o.requestsOf(ctx, path, selected.Query.Labels, saved); err != nil {
			return unusable(err)
		}
	}
	slices.Sort(types)
	if types = slices.Compact(types); o.output != "" && len(types) > 1 {
		return unusable(fmt.Errorf("--output %s requires profiles of a single type, select one with --type: found %s", o.output, strings.Join(types, ", ")))
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
		return unusable(fmt.Errorf("--fail-on: both sides are the same windows (%d), so no rule can be decided: %s", shared, tellApart))
	case shared > 0:
		fmt.Fprintf(stderr, "note: on both sides: %s (of %d before, %d after): %s\n",
			format.Count(shared, "window"), report.Before.Windows, report.After.Windows, tellApart)
	}
	return verdictError(report.Check(rules), stderr)
}

// tellApart is advice on how to make the sides different.
const tellApart = "use --before and --after to select different windows, such as --before to=2h --after from=1h"

// maxBroken limits the changes that an error lists.
const maxBroken = 10

// verdictError returns an error for broken and undecided rules, with the exit code that they mean.
func verdictError(v compare.Verdict, stderr io.Writer) error {
	for _, text := range v.Small {
		fmt.Fprintf(stderr, "not tested: %s; lower --min-share to test it\n", text)
	}
	for _, text := range v.Noisy {
		fmt.Fprintf(stderr, "not judged: %s; record more windows\n", text)
	}
	var failed error
	switch n := len(v.Broken); {
	case n == 1:
		failed = fmt.Errorf("gate failed: %s", v.Broken[0])
	case n > 1:
		text := fmt.Sprintf("gate failed: %d changes break its rules", n)
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
