// Package agent profiles a Go service continuously: CPU, memory, goroutine, mutex and block profiles in windows, and a
// wall-clock profile of every slow request, delivered to Grafana Pyroscope, or by OTLP to any server, or saved as files.
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
// Services use it that want profiles alone, or that have an OpenTelemetry set-up, whose spans [Agent.TracerProvider]
// links to their profiles. It needs OpenTelemetry's API and neither its SDK nor an exporter. A service without a set-up
// gets all of it from package otelsetup. Libraries should use the OpenTelemetry API alone.
//
// # Without a server
//
// Where no server for profiles is set, they are saved in the user's cache directory, up to a gigabyte for
// each service and for a week: "spanflame view" shows them. [Config.Dir] names another directory, also with a server, or
// turns that off.
//
// # Global state
//
// An agent sets no global of OpenTelemetry and of log/slog. It owns what the runtime has once in a process: the CPU
// profiler, and the mutex and block profile rates. So there is one agent in a process; Start returns [ErrRunning] while
// another one runs. It takes SIGUSR1 only if [Config.IncidentTriggers] has it, and the crash output of the process only if
// [Config.LastRun] is crashes.
//
// # Cost
//
// At the default settings: CPU profiling at 100 Hz; one mutex contention in 100 and one blocking event per
// 100 µs of blocked time recorded; memory at the runtime's own rate of one allocation per 512 KiB. Setting a
// rate higher costs more; the fields of [Config] give details. docs/sizes.md has what it adds to a program.
package agent
