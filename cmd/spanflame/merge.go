package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/input"
)

// mergeProgress is the interval at which a long merge reports its progress.
const mergeProgress = time.Second

type mergeOptions struct {
	kind, service, from, to, output string
	labels                          []string
	pgo                             bool
	paths                           []string
}

func newMergeCommand() *cobra.Command {
	var o mergeOptions
	cmd := &cobra.Command{
		Use:   "merge [FILE|DIR…]",
		Short: "Merge saved profiles into one file",
		Long: `Merge saved profiles of one service and one type into one compressed pprof file. DIR is a directory that an
agent saves to, or any other with profiles in files; a pattern such as 'saved/*.pb.gz' works too. The default is the
directory that agents save to (SPANFLAME_DIR, or the default directory). Files that cannot be used are reported and left
out.

With --pgo the result is a profile for profile-guided optimization: CPU samples only, without labels. "go build" uses
the file default.pgo in the directory of the main package automatically, and any other with -pgo=FILE.`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.paths, err = orSaved(args, 1); err != nil {
				return err
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.kind, "type", "", "type of profiles to merge: "+typeChoices+"; required if there are several")
	flags.StringVar(&o.service, "service", "", "service whose profiles to merge; required if there are several")
	flags.StringArrayVar(&o.labels, "label", nil, "name=value that profiles must have, such as service_version=1.2; repeatable")
	timeRange(flags, &o.from, &o.to)
	flags.StringVar(&o.output, "output", "", "file to write, or - for standard output (default merged.pb.gz, with --pgo default.pgo)")
	flags.BoolVar(&o.pgo, "pgo", false, "write a CPU profile for profile-guided optimization")
	return cmd
}

func (o mergeOptions) run(ctx context.Context, stdout, stderr io.Writer) error {
	query, err := o.query(time.Now())
	if err != nil {
		return err
	}
	left := 0
	entries, err := input.List(ctx, query, func(d profiles.Damaged, _ bool) {
		fmt.Fprintf(stderr, "left out: %v\n", d)
		left++
	}, o.paths...)
	if err != nil {
		return fmt.Errorf("merge: %w", err)
	}
	if err := errors.Join(oneService(entries), oneType(entries)); err != nil {
		return err
	}
	for _, of := range []struct{ label, value, what string }{
		{record.VersionLabel, "VERSION", "versions"}, {wallprofile.SpanScope, "SCOPE", "kinds of spans"},
	} {
		if values := valuesOf(entries, of.label); len(values) > 1 {
			fmt.Fprintf(stderr, "note: the profiles are of several %s, select one with --label %s=%s: %s\n",
				of.what, of.label, of.value, strings.Join(values, ", "))
		}
	}
	merger := profiles.Merger{DropLabels: o.pgo}
	merged := 0
	for next, i := time.Now().Add(mergeProgress), 0; i < len(entries); i++ {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("merge: %w", context.Cause(ctx))
		}
		switch err := merger.AddFile(entries[i].Path); {
		case errors.Is(err, record.ErrDamaged), errors.Is(err, os.ErrNotExist):
			fmt.Fprintf(stderr, "left out: %v\n", err)
			left++
		case err != nil:
			return fmt.Errorf("merge: %w", err)
		default:
			merged++
		}
		if now := time.Now(); now.After(next) {
			fmt.Fprintf(stderr, "%d of %d files\n", i+1, len(entries))
			next = now.Add(mergeProgress)
		}
	}
	if merged == 0 {
		return fmt.Errorf("merge: %s: %w (%d files cannot be used)", strings.Join(o.paths, ", "), profiles.ErrNone, left)
	}
	output := cmp.Or(o.output, "merged.pb.gz")
	if o.pgo {
		output = cmp.Or(o.output, "default.pgo")
		if err := checkPGO(&merger); err != nil {
			return fmt.Errorf("merge: %s: %w", strings.Join(o.paths, ", "), err)
		}
	}
	if output == "-" {
		return merger.Write(stdout)
	}
	if err := replaceFile(output, merger.Write); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "%s: %s merged, %d left out\n", output, format.Count(merged, "profile"), left)
	return nil
}

// checkPGO checks what a merger has before it replaces a profile that the compiler accepts.
func checkPGO(merger *profiles.Merger) error {
	var b bytes.Buffer
	if err := merger.Write(&b); err != nil {
		return err
	}
	p, err := profiles.Parse(&b)
	if err != nil {
		return err
	}
	return profiles.CheckPGO(p)
}

// query returns the query that the flags describe.
func (o mergeOptions) query(now time.Time) (q profiles.Query, err error) {
	q.Service = o.service
	if o.pgo {
		o.kind = cmp.Or(o.kind, "cpu")
	}
	if o.kind != "" {
		t, err := profiles.ParseType(o.kind)
		if err != nil {
			return q, fmt.Errorf("--type: %w", err)
		}
		if o.pgo && t != record.CPU {
			return q, fmt.Errorf("--type %s: --pgo accepts only CPU profiles", o.kind)
		}
		q.Types = []record.Type{t}
	}
	q.Labels = make(map[string]string)
	for _, pair := range o.labels {
		name, value, err := nameValue("--label", pair)
		if err != nil {
			return q, err
		}
		q.Labels[name] = value
	}
	if o.from != "" {
		if q.From, err = profiles.ParseTime(o.from, now); err != nil {
			return q, fmt.Errorf("--from: %w", err)
		}
	}
	if o.to != "" {
		if q.To, err = profiles.ParseTime(o.to, now); err != nil {
			return q, fmt.Errorf("--to: %w", err)
		}
	}
	if !q.From.IsZero() && !q.To.IsZero() && !q.From.Before(q.To) {
		return q, fmt.Errorf("--from %s is not before --to %s", o.from, o.to)
	}
	return q, nil
}

// valuesOf returns the values of a label, sorted. Code of another version has other lines, and the time of a child span is
// also in the profile of its request.
func valuesOf(entries []profiles.Entry, label string) []string {
	var values []string
	for _, e := range entries {
		if v := e.Labels[label]; v != "" {
			values = append(values, v)
		}
	}
	slices.Sort(values)
	return slices.Compact(values)
}

// oneService returns an error if entries are of several services: their sum would describe no program.
func oneService(entries []profiles.Entry) error {
	services := profiles.ServiceNames(entries)
	if len(services) < 2 {
		return nil
	}
	return fmt.Errorf("found profiles of several services, select one with --service: %s", strings.Join(services, ", "))
}

// oneType returns an error if entries are of several types, which cannot be added up.
func oneType(entries []profiles.Entry) error {
	counts := make(map[record.Type]int)
	for _, e := range entries {
		counts[e.Type]++
	}
	if len(counts) < 2 {
		return nil
	}
	var found []string
	for _, t := range slices.Sorted(maps.Keys(counts)) {
		found = append(found, fmt.Sprintf("%s (%d)", profiles.TypeName(t), counts[t]))
	}
	return fmt.Errorf("found profiles of several types, select one with --type: %s", strings.Join(found, ", "))
}

// replaceFile writes a file as a whole or not at all. It replaces only regular files, not a device, for example.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("write %s: it is not a regular file and is not replaced; use - for standard output", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name()) // after a failure that is reported
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Chmod(f.Name(), 0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
