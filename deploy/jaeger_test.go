package deploy_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"strings"
)

// checkJaeger checks that in the profile jaeger traces reach Jaeger as well as Tempo, and that its pages have a link from a
// span to its flame graph in Grafana.
func checkJaeger(fsys fs.FS) (errs []error) {
	project, err := loadProject(fsys, jaeger)
	if err != nil {
		return []error{err}
	}
	report := func(file, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", file, fmt.Errorf(format, args...)))
	}
	for _, file := range []string{collector, toJaeger} {
		if !slices.ContainsFunc(project.Services["collector-jaeger"].Command, func(arg string) bool {
			name, ok := cutConfig(arg)
			return ok && onHost(project, "collector-jaeger", name) == file
		}) {
			report(compose, "collector-jaeger does not read %s", file)
		}
	}
	var c collectorConfig
	if err := readYAML(fsys, toJaeger, &c); err != nil {
		return append(errs, err)
	}
	if got, want := c.Service.Pipelines["traces"].Exporters, []string{"otlp_grpc/tempo", "otlp_grpc/jaeger"}; !slices.Equal(got, want) {
		report(toJaeger, "the exporters of traces are %v, must be %v", got, want)
	}
	if got := c.Exporters["otlp_grpc/jaeger"].Endpoint; got != "jaeger:4317" {
		report(toJaeger, "exporter otlp_grpc/jaeger: endpoint is %q, must be jaeger:4317", got)
	}
	var j struct {
		Extensions struct {
			Query struct {
				HTTP struct {
					Endpoint string `yaml:"endpoint"`
				} `yaml:"http"`
				UI struct {
					File string `yaml:"config_file"`
				} `yaml:"ui"`
			} `yaml:"jaeger_query"`
		} `yaml:"extensions"`
		Receivers collectorReceivers `yaml:"receivers"`
	}
	if err := readYAML(fsys, jaegerFile, &j); err != nil {
		return append(errs, err)
	}
	if got := j.Receivers.OTLP.Protocols["grpc"].Endpoint; got != "0.0.0.0:4317" {
		report(jaegerFile, "the OTLP receiver for gRPC listens on %q, must be 0.0.0.0:4317", got)
	}
	if got := j.Extensions.Query.HTTP.Endpoint; got != "0.0.0.0:16686" {
		report(jaegerFile, "the pages listen on %q, must be 0.0.0.0:16686", got)
	}
	if got := onHost(project, "jaeger", j.Extensions.Query.UI.File); got != jaegerLink {
		report(compose, "jaeger: %s is %q, must be %s", j.Extensions.Query.UI.File, got, jaegerLink)
	}
	return append(errs, checkJaegerLink(fsys)...)
}

// checkJaegerLink checks that the link of Jaeger's pages opens Grafana's flame graph of the span.
func checkJaegerLink(fsys fs.FS) (errs []error) {
	report := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", jaegerLink, fmt.Errorf(format, args...)))
	}
	content, err := fs.ReadFile(fsys, jaegerLink)
	if err != nil {
		return []error{err}
	}
	var ui struct {
		LinkPatterns []struct{ Type, Key, URL string }
	}
	if err := json.Unmarshal(content, &ui); err != nil || len(ui.LinkPatterns) != 1 {
		return []error{fmt.Errorf("%s: must have one link: %+v, %w", jaegerLink, ui, err)}
	}
	link := ui.LinkPatterns[0]
	if link.Type != "tags" || link.Key != "pyroscope.profile.id" {
		report("the link is of %s %q, must be of the tag pyroscope.profile.id", link.Type, link.Key)
	}
	u, err := url.Parse(jaegerTemplate.Replace(link.URL))
	if err != nil {
		return append(errs, fmt.Errorf("%s: %w", jaegerLink, err))
	}
	var panes map[string]struct {
		Datasource string
		Queries    []struct {
			QueryType, ProfileTypeID string
			SpanSelector             []string
			Datasource               struct{ UID string }
		}
	}
	if err := json.Unmarshal([]byte(u.Query().Get("panes")), &panes); err != nil || len(panes) != 1 {
		return append(errs, fmt.Errorf("%s: panes are %v: %w", jaegerLink, panes, err))
	}
	for _, pane := range panes {
		if pane.Datasource != "pyroscope" || len(pane.Queries) != 1 || pane.Queries[0].Datasource.UID != pane.Datasource {
			report("the pane is %+v, must be one query of pyroscope", pane)
			continue
		}
		q := pane.Queries[0]
		if q.QueryType != "profile" || q.ProfileTypeID != "wall:wall:nanoseconds:wall:nanoseconds" {
			report("queryType %q and profileTypeId %q, must be a wall-clock profile", q.QueryType, q.ProfileTypeID)
		}
		if !slices.Equal(q.SpanSelector, []string{"ID"}) {
			report("spanSelector is %q, must be the span", q.SpanSelector)
		}
	}
	if u.Scheme+"://"+u.Host+u.Path != "http://127.0.0.1:3000/explore" {
		report("the link is to %s, must be to Grafana's Explore", u)
	}
	return errs
}

// jaegerTemplate fills in a link of Jaeger's pages.
var jaegerTemplate = strings.NewReplacer("#{pyroscope.profile.id}", "ID")
