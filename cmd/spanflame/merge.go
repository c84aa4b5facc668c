package main

import (
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

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/input"
)

// mergeProgress is how often a long merge says how far it is.
const mergeProgress = time.Second

type mergeOptions struct {
	kind, service, from, until, output string
	pgo                                bool
	paths                              []string
}

func newMergeCommand() *cobra.Command {
	var o mergeOptions
	cmd := &cobra.Command{
		Use:   "merge FILE|DIR…",
		Short: "Merge saved profiles into one file",
		Long: `Merge saved profiles of one service and one type into one compressed pprof file. A directory is one that an
agent saves to, or any other that has .pb.gz files; a pattern such as 'saved/*.pb.gz' may name them. Times are like
2026-01-02T15:04:05Z, or like 15m for that long ago. A file that cannot be used is reported and left out.

With --pgo the result is a CPU profile for "go build -pgo=FILE", which takes default.pgo beside the main package
by itself: CPU samples alone, without labels.`,
		Args: argCount("the profiles to merge: FILE or DIR, one or more", 1, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.paths = args
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.kind, "type", "", "type of the profiles: cpu, heap, mutex, block, goroutine, wall, or as in Pyroscope's names; needed where there are several")
	flags.StringVar(&o.service, "service", "", "service that they are of; needed where there are several")
	flags.StringVar(&o.from, "from", "", "leave out windows that end before this time")
	flags.StringVar(&o.until, "until", "", "leave out windows that begin at this time or later")
	flags.StringVar(&o.output, "output", "", "file to write, - for standard output (default merged.pb.gz, with --pgo default.pgo)")
	flags.BoolVar(&o.pgo, "pgo", false, "write a CPU profile for profile-guided optimisation")
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
	}
	if output == "-" {
		return merger.Write(stdout)
	}
	if err := replaceFile(output, merger.Write); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "%s: %d profiles merged, %d left out\n", output, merged, left)
	return nil
}

// query is what the flags choose.
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
			return q, fmt.Errorf("type %s: --pgo takes CPU profiles alone", o.kind)
		}
		q.Types = []record.Type{t}
	}
	if o.from != "" {
		if q.From, err = profiles.ParseTime(o.from, now); err != nil {
			return q, fmt.Errorf("--from: %w", err)
		}
	}
	if o.until != "" {
		if q.To, err = profiles.ParseTime(o.until, now); err != nil {
			return q, fmt.Errorf("--until: %w", err)
		}
	}
	if !q.From.IsZero() && !q.To.IsZero() && !q.From.Before(q.To) {
		return q, fmt.Errorf("--from %s is not before --until %s", o.from, o.until)
	}
	return q, nil
}

// oneService tells apart profiles of which the sum would be of nothing that runs.
func oneService(entries []profiles.Entry) error {
	services := profiles.ServiceNames(entries)
	if len(services) < 2 {
		return nil
	}
	return fmt.Errorf("there are profiles of several services, choose one with --service: %s", strings.Join(services, ", "))
}

// oneType tells apart profiles that cannot be added up, so that the user can choose.
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
		found = append(found, fmt.Sprintf("%s (%d)", t, counts[t]))
	}
	return fmt.Errorf("there are profiles of several types, choose one with --type: %s", strings.Join(found, ", "))
}

// replaceFile writes a file as a whole or not at all. It replaces nothing else, such as a device.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("write %s: there is something else than a file, which is not replaced; - is standard output", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name()) // what is left of a failure that is reported
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
