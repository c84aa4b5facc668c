// Command stack runs the real servers without Docker: it builds Pyroscope, Tempo, Jaeger, Alertmanager, Prometheus, Loki and the
// Collector from their Go modules unless they are cached, and runs all or some of them on loopback until Ctrl-C.
// It is for demos and for development of this project. It is not for production, which uses the servers' images.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"spanflame/stack/servers"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "stack:", err)
		os.Exit(1)
	}
}

// run executes the command line. Results go to stdout, progress to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills this process and with it the servers

	root := &cobra.Command{
		Use:           "stack",
		Short:         "Run the real servers of the pipeline on loopback, without Docker",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(upCommand(stdout, stderr), buildCommand(stdout, stderr))
	return root.ExecuteContext(ctx)
}

func upCommand(stdout, stderr io.Writer) *cobra.Command {
	opts := servers.Options{Progress: stderr, Ports: make(map[string]int)}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build missing servers, start them and run until Ctrl-C",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return up(cmd.Context(), opts, stdout)
		},
	}
	addSharedFlags(cmd, &opts.Servers, &opts.CacheDir)
	cmd.Flags().StringVar(&opts.DataDir, "data", "", "directory of the servers' data and logs (default data/stack)")
	ports := make(map[string]*int)
	for _, p := range servers.Ports() {
		ports[p.Name] = cmd.Flags().Int(p.Name+"-port", p.Default, "port on 127.0.0.1, 0 for any free port")
	}
	cmd.PreRun = func(*cobra.Command, []string) {
		for name, n := range ports {
			opts.Ports[name] = *n
		}
	}
	return cmd
}

// stopLimit limits the graceful shutdown of all servers, which takes about 5 s.
const stopLimit = 30 * time.Second

// up runs the servers until ctx is done or one of them ends.
func up(ctx context.Context, opts servers.Options, stdout io.Writer) (err error) {
	stack, err := servers.Start(ctx, opts)
	if err != nil {
		return err
	}
	defer func() {
		fmt.Fprintln(stdout, "stopping")
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		err = errors.Join(err, stack.Stop(ctx))
	}()
	for _, s := range stack.Servers() {
		fmt.Fprintf(stdout, "%-12s %s\n", s.Name, s.URL)
		if s.OTLPGRPC != "" {
			fmt.Fprintf(stdout, "%-12s %s (gRPC), http://%s (HTTP)\n", "  OTLP", s.OTLPGRPC, s.OTLPHTTP)
		}
		fmt.Fprintf(stdout, "%-12s %s\n", "  log", s.LogFile)
	}
	fmt.Fprintln(stdout, "ready; Ctrl-C stops")
	return stack.Wait(ctx)
}

func buildCommand(stdout, stderr io.Writer) *cobra.Command {
	var names []string
	opts := servers.BuildOptions{Progress: stderr}
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build the servers into the cache and print their paths",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range names {
				binary, err := servers.Build(cmd.Context(), name, opts)
				if err != nil {
					return err
				}
				fmt.Fprintln(stdout, binary)
			}
			return nil
		},
	}
	addSharedFlags(cmd, &names, &opts.CacheDir)
	return cmd
}

func addSharedFlags(cmd *cobra.Command, names *[]string, cacheDir *string) {
	cmd.Flags().StringSliceVar(names, "servers", servers.All(), "servers to use: "+strings.Join(servers.Names(), ", "))
	cmd.Flags().StringVar(cacheDir, "cache", "", "directory of built servers (default .cache/servers)")
}
