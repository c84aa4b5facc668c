package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"

	"spanflame/agent/scrape"
)

// scrapeStop limits how long the end waits for deliveries.
const scrapeStop = 20 * time.Second

func newScrapeCommand() *cobra.Command {
	var cfg scrape.Config
	var passwordFile, tokenFile string
	cmd := &cobra.Command{
		Use:   "scrape",
		Short: "Profile services that cannot be changed, from what they serve at /debug/pprof",
		Long: `Fetch the profiles of services that import net/http/pprof, in windows, and deliver and save them as an agent does: through a spool
on disk to Pyroscope or by OTLP, and to a local directory. The settings for that are the agent's environment variables, such as
PYROSCOPE_SERVER_ADDRESS, PYROSCOPE_UPLOAD_INTERVAL, SPANFLAME_DIR and SPANFLAME_ADMIN_ADDRESS, where /metrics and /status are.

Targets are arguments, as [SERVICE=]URL, and those of files in the format of Prometheus' file_sd_configs, which are read again when
they change. The service's name is the label service_name, service or job there; __scheme__ and __profile_path__ say where
the profiles are.

Profiles of memory, mutexes and blocking are what has changed since the window before, to the unit. A restart of a target is
recognised. What a target has done while nothing could be fetched is in the next window, unless it was restarted. There are no
wall-clock profiles of spans: those need the agent in the service.`,
		Example: `  spanflame scrape checkout=http://10.0.0.7:6060 stock=https://10.0.0.8:6060/internal/debug/pprof
  spanflame scrape --file 'targets/*.yaml' --token-file /run/secrets/token`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && len(cfg.Files) == 0 {
				return errors.New("no targets: name some as [SERVICE=]URL, or a file with --file")
			}
			for _, arg := range args {
				service, url, ok := strings.Cut(arg, "=")
				if !ok || strings.Contains(service, "/") {
					service, url = "", arg
				}
				cfg.Targets = append(cfg.Targets, scrape.Target{Service: service, URL: url})
			}
			var err error
			if cfg.Password, err = secret(passwordFile); err != nil {
				return err
			}
			if cfg.Token, err = secret(tokenFile); err != nil {
				return err
			}
			return runScrape(cmd.Context(), cfg, slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil)))
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&cfg.Files, "file", nil, "file with targets, in JSON or YAML; its name may be a pattern; can be repeated")
	flags.StringSliceVar(&cfg.Types, "types", nil, "profiles to fetch: profile, heap, goroutine, mutex, block (default all)")
	flags.StringVar(&cfg.User, "user", "", "user for basic authentication at all targets")
	flags.StringVar(&passwordFile, "password-file", "", "file with that user's password")
	flags.StringVar(&tokenFile, "token-file", "", "file with a bearer token for all targets")
	flags.StringVar(&cfg.CAFile, "ca-file", "", "PEM file with the authorities to trust at targets (default those of the system)")
	flags.DurationVar(&cfg.Timeout, "timeout", 10*time.Second, "limit of a request, in addition to the length of a CPU profile")
	return cmd
}

// secret returns what a file holds, without the line break at its end. A file that holds nothing is an error.
func secret(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := os.ReadFile(file)
	text := strings.TrimRight(string(b), "\r\n")
	if err == nil && text == "" {
		err = fmt.Errorf("%s is empty", file)
	}
	return text, err
}

// runScrape scrapes until ctx is done.
func runScrape(ctx context.Context, cfg scrape.Config, log *slog.Logger) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo())
	if err != nil {
		return err
	}
	cfg.Agent.Logger, cfg.Agent.MeterProvider = log, metric.NewMeterProvider(metric.WithReader(exporter))
	cfg.Agent.MetricsHandler = promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	if os.Getenv("OTEL_SERVICE_NAME") == "" {
		cfg.Agent.ServiceName = "spanflame-scrape"
	}
	s, err := scrape.Start(cfg)
	if err != nil {
		return err
	}
	log.Info("scraping", "targets", len(cfg.Targets), "files", cfg.Files, "admin", s.Addr())
	<-ctx.Done()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), scrapeStop)
	defer cancel()
	if err := s.Shutdown(last); err != nil {
		return fmt.Errorf("incomplete: %w", err)
	}
	return nil
}
