package deploy_test

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// checkOTLP checks that with the additional compose file profiles pass through the Collector to Pyroscope.
func checkOTLP(fsys fs.FS) (errs []error) {
	project, err := loadFiles(fsys, []string{full}, compose, composeOTLP)
	if err != nil {
		return []error{err}
	}
	report := func(file, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", file, fmt.Errorf(format, args...)))
	}
	errs = append(errs, checkProfile(fsys, project, full)...)
	for name := range profiled[full] {
		if got := environment(project, name)["OTEL_PROFILES_EXPORTER"]; got != "otlp" {
			report(composeOTLP, "%s: OTEL_PROFILES_EXPORTER is %q, must be otlp", name, got)
		}
	}
	command := project.Services["collector"].Command
	if !slices.Contains(command, "--feature-gates=service.profilesSupport") {
		report(composeOTLP, "collector: the command %q lacks --feature-gates=service.profilesSupport", command)
	}
	var read []string
	for _, arg := range command {
		if name, ok := cutConfig(arg); ok {
			file := onHost(project, "collector", name)
			if file == "" {
				report(composeOTLP, "collector: %s is not mounted", name)
			}
			read = append(read, file)
		}
	}
	if want := []string{collector, toPyroscope}; !slices.Equal(read, want) {
		report(composeOTLP, "collector: reads %q, must read %q", read, want)
	}
	if _, ok := project.Services["collector"].DependsOn["pyroscope"]; !ok {
		report(composeOTLP, "collector: does not wait for pyroscope")
	}
	var c collectorConfig
	if err := readYAML(fsys, toPyroscope, &c); err != nil {
		return append(errs, err)
	}
	p := c.Service.Pipelines["profiles"]
	if !slices.Equal(p.Receivers, []string{"otlp"}) || len(p.Processors) == 0 || p.Processors[0] != "memory_limiter" ||
		!slices.Equal(p.Exporters, []string{"otlp_http/pyroscope"}) {
		report(toPyroscope, "the pipeline is %+v, must be from otlp by way of memory_limiter to otlp_http/pyroscope", p)
	}
	if got := c.Exporters["otlp_http/pyroscope"].Endpoint; got != "http://pyroscope:4040" {
		report(toPyroscope, "exporter otlp_http/pyroscope: endpoint is %q, must be http://pyroscope:4040", got)
	}
	return errs
}

// cutConfig returns the file that an argument of the Collector names.
func cutConfig(arg string) (file string, ok bool) { return strings.CutPrefix(arg, "--config=") }
