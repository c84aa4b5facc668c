// Package agent makes a Go service profiled and observed with one call:
//
//	a, err := agent.Start(ctx, agent.Config{ServiceName: "checkout"})
//	if err != nil {
//		return err
//	}
//	defer func() {
//		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
//		defer cancel()
//		a.Shutdown(ctx)
//	}()
//
// It captures profiles continuously and delivers them to Grafana Pyroscope, sets up OpenTelemetry traces,
// metrics and logs, links each trace's spans to their profiles, and opens a listener for the operator.
// Whoever writes a service uses it; libraries should use the OpenTelemetry API alone.
//
// # Without a server
//
// Where no address of a Pyroscope server is set, profiles and traces are saved in the user's cache directory,
// up to a gigabyte for each service and for a week: "spanflame view" shows them. [Config.Dir] names another
// directory, also beside a server, or turns that off.
//
// # Global state
//
// An agent owns what exists once in a process: the CPU profiler, the mutex and block profile rates, and the
// OpenTelemetry globals (tracer and meter provider, propagator, error handler) together with slog's default
// logger. So there is one agent in a process; Start returns [ErrRunning] while another one runs.
//
// # Cost
//
// At the default settings: CPU profiling at 100 Hz; one mutex contention in 100 and one blocking event per
// 100 µs of blocked time recorded; memory at the runtime's own rate of one allocation per 512 KiB. Setting a
// rate higher costs more; the fields of [Config] say how.
package agent
