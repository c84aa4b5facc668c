package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"spanflame/agent/otelsetup"
	"spanflame/workload"
)

// agentDeadline limits how long the agent may deliver its remaining data after the service has stopped.
const agentDeadline = 10 * time.Second

func newWorkloadCommand() *cobra.Command {
	var cfg workload.Config
	var role string
	cmd := &cobra.Command{
		Use:   "workload",
		Short: "Run one service of the workload under the agent",
		Long: `Run one service of the workload under the agent, until SIGINT or SIGTERM.

The storefront listens on 127.0.0.1:8080 and the inventory on 127.0.0.1:8081 unless --listen says otherwise.
Orders go to an SQLite file, or to PostgreSQL when DATABASE_URL is set. The agent takes its settings from the
environment: OTEL_*, PYROSCOPE_* and SPANFLAME_*; by default, its operator's listener has the first free port of
127.0.0.1 from 16060 on, which is logged at the start. Faults in the service can be switched on and off while it
runs, through /faults.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Role = workload.Role(role)
			cfg.DatabaseURL = os.Getenv("DATABASE_URL")
			return runWorkload(cmd.Context(), cfg)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&role, "role", string(workload.Storefront), "service to run: storefront or inventory")
	flags.StringVar(&cfg.Listen, "listen", "", "address to listen on (default 127.0.0.1:8080 or :8081 by role)")
	flags.StringVar(&cfg.InventoryURL, "inventory-url", "http://127.0.0.1:8081", "base URL of the inventory, for the storefront")
	flags.StringVar(&cfg.Database, "database", "data/orders.db", "the storefront's SQLite file, unless DATABASE_URL is set")
	flags.IntVar(&cfg.LeakLimitMB, "leak-limit-mb", 512, "most that /load/leak retains, in MiB")
	flags.DurationVar(&cfg.DrainTimeout, "drain-timeout", 10*time.Second, "how long a stopping service waits for requests in flight")
	return cmd
}

// runWorkload runs the service with the agent. The agent starts first, because it installs the providers that the
// service uses, and stops last, because the last requests make profiles and spans too.
func runWorkload(ctx context.Context, cfg workload.Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	agentCfg, _ := otelsetup.ConfigFromEnv() // Start reports what is wrong
	if agentCfg.Agent.ServiceName == "" && agentCfg.Agent.ResourceAttributes["service.name"] == "" {
		agentCfg.Agent.ServiceName = string(cfg.Role)
	}
	a, err := otelsetup.Start(ctx, agentCfg)
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	err = workload.Run(ctx, cfg)
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), agentDeadline)
	defer cancel()
	if stopErr := a.Shutdown(stopping); stopErr != nil {
		// Undelivered data is not a failure of the service, so it does not change the exit status.
		slog.Warn("the agent did not shut down completely", "error", stopErr)
	}
	return err
}
