package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"spanflame/viewer/source"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"spanflame/internal/record"
	"spanflame/internal/redact"
	"spanflame/profiles"
	"spanflame/viewer"
)

// viewOptions are the argument and the flags of the command view. Other commands have those of the source.
type viewOptions struct {
	dir, listen, listener    string
	tempo, jaeger, pyroscope string
	grafana, base            string
	hosts                    []string
	slowSpan, cpu            time.Duration
	localTime                bool
}

// defaultSlowSpan is the agent's default of SPANFLAME_SLOW_SPAN.
const defaultSlowSpan = 100 * time.Millisecond

// addSlowSpan adds the flag --slow-span.
func (o *viewOptions) addSlowSpan(flags *pflag.FlagSet) {
	flags.DurationVar(&o.slowSpan, "slow-span", defaultSlowSpan, "the services' SPANFLAME_SLOW_SPAN")
}

func (o *viewOptions) checkSlowSpan() error {
	if o.slowSpan <= 0 {
		return fmt.Errorf("--slow-span %v: want a duration above zero, such as 50ms", o.slowSpan)
	}
	return nil
}

// addSource adds the flags that name a directory or servers.
func (o *viewOptions) addSource(flags *pflag.FlagSet) {
	flags.StringVar(&o.dir, "dir", "", "directory that agents save to (default SPANFLAME_DIR, or the directory to which agents save by default)")
	o.addServers(flags)
}

// addServers adds the flags that name servers.
func (o *viewOptions) addServers(flags *pflag.FlagSet) {
	flags.StringVar(&o.tempo, "tempo", "", "URL of a Tempo server to read traces from; requires --pyroscope")
	flags.StringVar(&o.jaeger, "jaeger", "", "URL of a Jaeger server to read traces from instead; requires --pyroscope")
	flags.StringVar(&o.pyroscope, "pyroscope", "", "URL of a Pyroscope server to read profiles from; requires --tempo or --jaeger")
}

func newViewCommand() *cobra.Command {
	var o viewOptions
	cmd := &cobra.Command{
		Use:   "view [DIR|FILE|URL]",
		Short: "Show slow traces and the flame graphs of their spans in a browser",
		Long: `Serve web pages for the profiles and traces that agents save to DIR, until SIGINT or SIGTERM: slow traces, the
flame graph of each span, all spans of a name, a service's profiles, comparisons, and memory over time. The default of
DIR is SPANFLAME_DIR, or else the directory to which agents save by default. With --tempo or --jaeger
and --pyroscope the pages read these servers instead.

DIR may also be any other directory with profiles in files, or a single such FILE, written by any tool. The
pages then show flame graphs, comparisons and memory. Traces are read from files in DIR and DIR/traces whose names
end in .json or .jsonl, compressed (.gz) or not: OTLP as any SDK or the Collector writes it, or saved answers of
Tempo or Jaeger. If a file does not name its service and version,
the names of its directories do.

With the URL of an agent's operator's listener, such as http://127.0.0.1:16060, or of any server with the pages of
net/http/pprof, its profiles are read once and shown. A listener has no traces. A token is the password in the URL.

The pages have no user accounts: listen on loopback, or behind a proxy that authenticates users (name it with --host).`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.dir = args[0]
			}
			return view(cmd.Context(), cmd.OutOrStdout(), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.listen, "listen", "127.0.0.1:7070", "address to listen on")
	o.addServers(flags)
	flags.StringVar(&o.grafana, "grafana", "", "URL of a Grafana server to link to")
	flags.StringVar(&o.base, "base", "", "directory of profiles to compare with")
	o.addSlowSpan(flags)
	flags.StringSliceVar(&o.hosts, "host", nil, "additional host names under which the pages are served")
	flags.BoolVar(&o.localTime, "local-time", false, "show times in this machine's time zone instead of UTC")
	flags.DurationVar(&o.cpu, "duration", 10*time.Second, "with a URL, how long to record the CPU profile")
	return cmd
}

// traces returns the URL of the server with the traces, if one is named.
func (o *viewOptions) traces() string { return cmp.Or(o.tempo, o.jaeger) }

// view prints the address of the pages and serves them until ctx ends.
func view(ctx context.Context, out io.Writer, o viewOptions) (err error) {
	if err := o.checkSlowSpan(); err != nil {
		return err
	}
	if o.cpu <= 0 {
		return fmt.Errorf("--duration %v: want a duration above zero, such as 10s", o.cpu)
	}
	host, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return fmt.Errorf("--listen %q: want HOST:PORT, such as 127.0.0.1:7070: %w", o.listen, err)
	}
	options := viewer.Options{GrafanaURL: o.grafana, Hosts: append(o.hosts, host), SlowSpan: o.slowSpan, Log: slog.Default()}
	if o.localTime {
		options.Location = time.Local
	}
	if err := options.Validate(); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("--listen %s: the port is in use by another program, maybe another viewer: use --listen 127.0.0.1:0 for a free port", o.listen)
	}
	if err != nil {
		return fmt.Errorf("--listen %s: %w", o.listen, err)
	}
	defer listener.Close() // which Serve does, too
	if o.base != "" {
		dir, err := savedDir(o.base)
		if err != nil {
			return fmt.Errorf("base directory: %w", err)
		}
		base, err := source.Open(ctx, dir)
		if err != nil {
			return fmt.Errorf("base directory: %w", err)
		}
		defer base.Close() // it was only read
		options.Base = base
	}
	// A download takes a while: all else is checked before it. With servers, openSource returns an error.
	if source.IsAddress(o.dir) && o.traces() == "" && o.pyroscope == "" {
		temporary, failed := os.MkdirTemp("", "spanflame-view-*")
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, os.RemoveAll(temporary)) }()
		fmt.Fprintf(out, "Reading the profiles of %s for %v\n", redact.URL(o.dir), o.cpu)
		o.listener = o.dir
		if o.dir, err = source.Download(ctx, o.dir, temporary, o.cpu, func(err error) { fmt.Fprintln(out, err) }); err != nil {
			return err
		}
	}
	return withSource(ctx, o, func(from source.Source) error {
		handler, err := viewer.New(from, options)
		if err != nil {
			return err
		}
		start := strings.TrimSuffix(viewer.StartPath(from), "/")
		fmt.Fprintf(out, "%s is shown at %s%s\n", described(o), viewer.URL(listener.Addr()), start)
		return viewer.Serve(ctx, listener, handler, options.Log)
	})
}

// withSource opens the directory, or the servers if they are named, for a function, and closes it afterwards.
func withSource(ctx context.Context, o viewOptions, use func(source.Source) error) (err error) {
	from, err := openSource(ctx, o)
	if err != nil {
		return err
	}
	if closer, ok := from.(io.Closer); ok {
		defer func() { err = errors.Join(err, closer.Close()) }()
	}
	return use(from)
}

// openSource opens the directory, or the servers if they are named.
func openSource(ctx context.Context, o viewOptions) (source.Source, error) {
	switch {
	case o.tempo != "" && o.jaeger != "":
		return nil, errors.New("specify either --tempo or --jaeger, not both: each has the traces")
	case o.traces() != "" && o.pyroscope != "" && o.dir != "":
		return nil, fmt.Errorf("specify either a directory (%s) or servers (--tempo or --jaeger, and --pyroscope), not both", redact.Argument(o.dir))
	case o.tempo != "" && o.pyroscope != "":
		return source.NewServers(o.tempo, o.pyroscope)
	case o.jaeger != "" && o.pyroscope != "":
		return source.NewServersWithJaeger(o.jaeger, o.pyroscope)
	case o.jaeger != "":
		return nil, errors.New("--jaeger requires --pyroscope: one has the traces, the other the profiles")
	case o.tempo != "" || o.pyroscope != "":
		return nil, errors.New("--tempo (or --jaeger) and --pyroscope require each other: one has the traces, the other the profiles")
	}
	dir, err := savedDir(o.dir)
	if err != nil {
		return nil, err
	}
	d, err := source.Open(ctx, dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf(
			"%s: directory not found: start a service with the agent and SPANFLAME_DIR=%s, or name a directory, such as data/demo/saved of make demo",
			dir, dir,
		)
	}
	if _, damaged := errors.AsType[profiles.Damaged](err); damaged {
		return nil, fmt.Errorf("%w: want a directory that agents save to, or profiles in pprof's format", err)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// savedDir returns the directory that a command names, or that to which agents save.
func savedDir(named string) (string, error) {
	dir := cmp.Or(named, os.Getenv("SPANFLAME_DIR"))
	switch {
	case strings.Contains(dir, "://"):
		return "", fmt.Errorf("%s is an address: want a directory; spanflame view http://HOST:PORT shows the profiles of a listener", redact.URL(dir))
	case named == "" && dir == "off":
		return "", errors.New("SPANFLAME_DIR is off: specify a directory, such as spanflame view DIR, or servers, spanflame view --tempo URL --pyroscope URL")
	case dir != "":
		return dir, nil
	}
	return record.DefaultDir()
}

func described(o viewOptions) string {
	if server := o.traces(); server != "" {
		return redact.URL(server) + " with " + redact.URL(o.pyroscope)
	}
	if o.listener != "" {
		return redact.URL(o.listener)
	}
	dir, err := savedDir(o.dir)
	if err != nil {
		return "the directory"
	}
	return dir
}
