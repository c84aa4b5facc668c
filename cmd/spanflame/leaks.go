package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/input"
	"spanflame/profiles/leaks"
)

// cgroupLimit is the file that holds the memory limit of this container on Linux.
const cgroupLimit = "/sys/fs/cgroup/memory.max"

type leaksOptions struct {
	inputFlags
	limit      string
	minGrowth  string
	work       string
	prometheus string
	format     string
	leaks      leaks.Options
}

func newLeaksCommand() *cobra.Command {
	var o leaksOptions
	cmd := withExitCodes(&cobra.Command{
		Use:   "leaks [DIR|FILES|ADDRESS]",
		Short: "Find stacks whose memory or goroutines grow and do not stop growing",
		Long: `Look for leaks in a series of memory and goroutine profiles of one service: a directory, a pattern of files, a
query of a Pyroscope server, or the address of a live service with --windows 12 or more. The default is the directory
that agents save to (SPANFLAME_DIR, or the default directory). Caches that fill up, warm-up, garbage that is not collected
yet, and memory that follows the load are not reported as leaks.

The limit of --limit is a number of bytes like 512MiB, GOMEMLIMIT for the value of that environment variable, or
cgroup for the limit of the container in which this command runs. The report predicts when it will be reached.

The load is estimated from allocations, which memory profiles contain. With --work it is the value of a PromQL
expression for each profile, such as the number of requests.

What grew until the load stopped and is still held is shown apart: it may be a leak, or a cache. So is what runs held that
ended without a shutdown, of which the agent has saved the last profile near the memory limit.

Exits with 0 if no leak is suspected, 1 if one is or may be held or a run was killed for memory, and 2 if the command line or the profiles cannot be used, or if
there are too few profiles.`,
		Example: `  spanflame leaks saved --service shop --from 6h --limit 512MiB
  spanflame leaks http://127.0.0.1:16060/debug/pprof/heap --windows 40 --length 15s`,
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := orSaved(args, 1)
			if err != nil {
				return unusable(err)
			}
			return o.run(cmd.Context(), args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}, argCount("the profiles of one service: DIR, FILES or ADDRESS", 0, 1))
	flags := cmd.Flags()
	o.register(flags)
	flags.Lookup("type").Usage = "types of profiles to read: memory, goroutines (default both)"
	flags.StringVar(&o.limit, "limit", "", "memory limit of the process: bytes like 512MiB, GOMEMLIMIT or cgroup (default GOMEMLIMIT if it is set)")
	flags.StringVar(&o.minGrowth, "min-growth", "256KiB", "smallest growth of a stack to be tested")
	flags.Float64Var(&o.leaks.Alpha, "alpha", 0.01, "false discovery rate among all stacks")
	workFlags(flags, &o.work, &o.prometheus)
	flags.StringVar(&o.format, "format", "text", "format of the report: text or json")
	return cmd
}

func (o leaksOptions) run(ctx context.Context, argument string, stdout, stderr io.Writer) error {
	options := o.leaks
	if options.Alpha == 0 { // which is the default of Options
		return unusable(errors.New("--alpha 0: want a number above 0 and below 1"))
	}
	write, err := byFormat(o.format, map[string]func(*leaks.Report, io.Writer) error{
		"text": (*leaks.Report).WriteText, "json": (*leaks.Report).WriteJSON,
	})
	if err != nil {
		return unusable(err)
	}
	if options.Limit, err = memoryLimit(o.limit, os.Getenv("GOMEMLIMIT"), cgroupLimit); err != nil {
		return unusable(err)
	}
	if options.MinGrowth, err = parseBytes(o.minGrowth); err != nil {
		return unusable(fmt.Errorf("--min-growth: %w", err))
	}
	if o.work != "" {
		if options.Work, err = input.Work(ctx, o.prometheus, o.work); err != nil {
			return unusable(err)
		}
	}
	if len(o.types) == 0 {
		o.types = []string{profiles.TypeName(record.Memory), profiles.TypeName(record.Goroutine)}
	}
	windows, err := o.open(ctx, argument, pairs{}, stderr)
	if err != nil {
		return unusable(err)
	}
	show := counter(stderr)
	options.Progress = func(n int) { show("profiles", n) }
	report, err := leaks.Find(ctx, windows, options)
	if err != nil {
		return unusable(err)
	}
	if err := write(report, stdout); err != nil {
		return unusable(fmt.Errorf("write the report: %w", err))
	}
	if n := len(report.Suspects); n > 0 {
		return exitError{codeFound, fmt.Errorf("suspected leaks: %d; the first is %s", n, report.Suspects[0].Site)}
	}
	if n := len(report.Held); n > 0 {
		return exitError{codeFound, fmt.Errorf("stacks that grew until the load stopped, and are still held: %d; the first is %s", n, report.Held[0].Site)}
	}
	for _, e := range report.Ended {
		if e.Why == "memory" && e.Kind == leaks.Memory && len(e.Grew) > 0 {
			return exitError{codeFound, fmt.Errorf("a run was killed for memory; what grew most is %s", e.Grew[0].Site)}
		}
	}
	return nil
}

// memoryLimit returns the limit that the flag names, 0 for none.
func memoryLimit(flag, goMemLimit, cgroup string) (int64, error) {
	switch flag {
	case "":
		if goMemLimit == "" || goMemLimit == "off" {
			return 0, nil
		}
		return limitBytes("GOMEMLIMIT", goMemLimit)
	case "GOMEMLIMIT":
		if goMemLimit == "" || goMemLimit == "off" {
			return 0, errors.New("--limit GOMEMLIMIT: the variable sets no limit")
		}
		return limitBytes("--limit GOMEMLIMIT", goMemLimit)
	case "cgroup":
		b, err := os.ReadFile(cgroup)
		if err != nil {
			return 0, fmt.Errorf("--limit cgroup: %w", err)
		}
		text := strings.TrimSpace(string(b))
		if text == "max" {
			return 0, fmt.Errorf("--limit cgroup: %s sets no limit", cgroup)
		}
		return limitBytes("--limit cgroup: "+cgroup, text)
	}
	return limitBytes("--limit", flag)
}

// limitBytes parses a limit; an error names where it is from.
func limitBytes(from, text string) (int64, error) {
	n, err := parseBytes(text)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", from, err)
	}
	return n, nil
}

// parseBytes parses a number of bytes as GOMEMLIMIT is written: with the unit B, KiB, MiB, GiB or TiB, or without.
func parseBytes(text string) (int64, error) {
	digits, unit := text, int64(1)
	for i, suffix := range []string{"KiB", "MiB", "GiB", "TiB", "B"} {
		if rest, ok := strings.CutSuffix(text, suffix); ok {
			digits = rest
			if suffix != "B" {
				unit = 1 << (10 * (i + 1))
			}
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, fmt.Errorf("%q: want bytes like 1048576, 512MiB or 4GiB", text)
	}
	return n * unit, nil
}
