//go:build stack || compose

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"spanflame/internal/query"
)

// grafana holds Grafana's provisioned configuration and the servers that its data sources call.
type grafana struct {
	sources    []dataSource
	dashboards []dashboard
	urls       map[string]string // URLs of the servers, by the uid of their data source
	tempo      *query.Tempo
	pyroscope  *query.Pyroscope
}

// dataSource is the part of a provisioned data source that the links need.
type dataSource struct {
	UID      string `yaml:"uid"`
	JSONData struct {
		TracesToProfiles struct {
			DatasourceUID string `yaml:"datasourceUid"`
			ProfileTypeID string `yaml:"profileTypeId"`
			CustomQuery   bool   `yaml:"customQuery"`
			Tags          []tag  `yaml:"tags"`
		} `yaml:"tracesToProfiles"`
		TracesToLogs struct {
			DatasourceUID   string        `yaml:"datasourceUid"`
			StartShift      time.Duration `yaml:"spanStartTimeShift"`
			EndShift        time.Duration `yaml:"spanEndTimeShift"`
			FilterByTraceID bool          `yaml:"filterByTraceID"`
			FilterBySpanID  bool          `yaml:"filterBySpanID"`
			CustomQuery     bool          `yaml:"customQuery"`
			Tags            []tag         `yaml:"tags"`
		} `yaml:"tracesToLogsV2"`
		TracesToMetrics struct {
			DatasourceUID string        `yaml:"datasourceUid"`
			StartShift    time.Duration `yaml:"spanStartTimeShift"`
			EndShift      time.Duration `yaml:"spanEndTimeShift"`
			Tags          []tag         `yaml:"tags"`
			Queries       []struct {
				Name  string `yaml:"name"`
				Query string `yaml:"query"`
			} `yaml:"queries"`
		} `yaml:"tracesToMetrics"`
		ServiceMap struct {
			DatasourceUID string `yaml:"datasourceUid"`
		} `yaml:"serviceMap"`
		ExemplarTraceIDDestinations []struct {
			Name          string `yaml:"name"`
			DatasourceUID string `yaml:"datasourceUid"`
		} `yaml:"exemplarTraceIdDestinations"`
		DerivedFields []struct {
			MatcherType   string `yaml:"matcherType"`
			MatcherRegex  string `yaml:"matcherRegex"`
			DatasourceUID string `yaml:"datasourceUid"`
			URL           string `yaml:"url"`
		} `yaml:"derivedFields"`
	} `yaml:"jsonData"`
}

// tag is an attribute of a span or its resource, and its label in other signals.
type tag struct {
	Key   string `yaml:"key"`
	Value string `yaml:"value"`
}

// dashboard is the part of a provisioned dashboard that a query needs.
type dashboard struct {
	UID        string `json:"uid"`
	Title      string `json:"title"`
	Templating struct {
		List []struct {
			Name    string          `json:"name"`
			Type    string          `json:"type"`
			Query   json.RawMessage `json:"query"`
			Current struct {
				Value string `json:"value"`
			} `json:"current"`
		} `json:"list"`
	} `json:"templating"`
	Panels []panel `json:"panels"`
}

type panel struct {
	Title     string   `json:"title"`
	TimeFrom  string   `json:"timeFrom"`
	TimeShift string   `json:"timeShift"`
	Targets   []target `json:"targets"`
}

type target struct {
	RefID      string `json:"refId"`
	DataSource struct {
		UID string `json:"uid"`
	} `json:"datasource"`
	QueryType     string `json:"queryType"`
	Expr          string `json:"expr"`
	Exemplar      bool   `json:"exemplar"`
	Query         string `json:"query"`
	Limit         int    `json:"limit"`
	ProfileTypeID string `json:"profileTypeId"`
	LabelSelector string `json:"labelSelector"`

	ServiceMapQuery []string `json:"serviceMapQuery"`
}

const (
	dataSourcesFile = "../deploy/grafana/provisioning/datasources/datasources.yaml"
	dashboardFiles  = "../deploy/grafana/dashboards/*.json"
)

func newGrafana(t *testing.T, urls map[string]string) *grafana {
	t.Helper()
	g := &grafana{urls: urls, tempo: query.NewTempo(urls["tempo"]), pyroscope: query.NewPyroscope(urls["pyroscope"])}
	b, err := os.ReadFile(dataSourcesFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		DataSources []dataSource `yaml:"datasources"`
	}
	// In provisioned files, Grafana reads $$ as a literal $.
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(string(b), "$$", "$")), &file); err != nil {
		t.Fatalf("%s: %v", dataSourcesFile, err)
	}
	g.sources = file.DataSources
	paths, err := filepath.Glob(dashboardFiles)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %d dashboards, %v", dashboardFiles, len(paths), err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		g.dashboards = append(g.dashboards, d)
	}
	return g
}

func (g *grafana) source(t *testing.T, uid string) dataSource {
	t.Helper()
	i := slices.IndexFunc(g.sources, func(s dataSource) bool { return s.UID == uid })
	if i < 0 {
		t.Fatalf("%s has no data source %q", dataSourcesFile, uid)
	}
	return g.sources[i]
}

// selected returns the label matchers that Grafana writes for the tags of a span.
func selected(tags []tag, span query.Span) string {
	var labels []string
	for _, tag := range tags {
		for _, attributes := range []map[string]string{span.Resource, span.Attributes} {
			if value, ok := attributes[tag.Key]; ok {
				labels = append(labels, fmt.Sprintf(`%s="%s"`, tag.Value, value))
			}
		}
	}
	return strings.Join(labels, ", ")
}

// logsOf returns the query of "Logs for this span".
func (g *grafana) logsOf(t *testing.T, traceID string, span query.Span) (expr string, from, to time.Time) {
	t.Helper()
	link := g.source(t, "tempo").JSONData.TracesToLogs
	if link.DatasourceUID != "loki" || link.CustomQuery || !link.FilterByTraceID || link.FilterBySpanID {
		t.Fatalf("tracesToLogsV2 is %+v", link)
	}
	expr = fmt.Sprintf("{%s} | label_format log_line_contains_trace_id=`{{ contains \"%s\" __line__  }}` | log_line_contains_trace_id=\"true\" or trace_id=\"%s\"",
		selected(link.Tags, span), traceID, traceID)
	return expr, span.Start.Add(link.StartShift), span.End.Add(link.EndShift)
}

// metricsOf returns the queries below "Related metrics" of a span, by name.
func (g *grafana) metricsOf(t *testing.T, span query.Span) map[string]promQuery {
	t.Helper()
	link := g.source(t, "tempo").JSONData.TracesToMetrics
	if link.DatasourceUID != "prometheus" || len(link.Queries) == 0 {
		t.Fatalf("tracesToMetrics is %+v", link)
	}
	queries := map[string]promQuery{}
	for _, q := range link.Queries {
		queries[q.Name] = promQuery{
			expr: strings.ReplaceAll(q.Query, "$__tags", selected(link.Tags, span)),
			from: span.Start.Add(link.StartShift), to: span.End.Add(link.EndShift), step: 15 * time.Second,
		}
	}
	return queries
}

var (
	variable    = regexp.MustCompile(`\$(\w+)`)
	labelValues = regexp.MustCompile(`^label_values\((\w+(?:\{.*\})?), (\w+)\)$`)
)

// substitute fills in the variables of a dashboard with the values that Grafana chooses on opening it: the file's
// current value, or else the first value.
func (g *grafana) substitute(t *testing.T, d dashboard, text string) string {
	t.Helper()
	return variable.ReplaceAllStringFunc(text, func(use string) string {
		name := use[1:]
		if name == "__rate_interval" {
			return "1m" // four times the data source's interval
		}
		for _, v := range d.Templating.List {
			if v.Name != name {
				continue
			}
			if v.Type != "query" {
				return v.Current.Value
			}
			var q struct {
				Query string `json:"query"`
			}
			if err := json.Unmarshal(v.Query, &q); err != nil {
				t.Fatalf("%s: variable %s: %v", d.Title, name, err)
			}
			values := g.values(t, g.substitute(t, d, q.Query))
			if slices.Contains(values, v.Current.Value) {
				return v.Current.Value
			}
			if len(values) == 0 || v.Current.Value != "" {
				t.Fatalf("%s: variable %s has the values %v, and %q is to be current", d.Title, name, values, v.Current.Value)
			}
			return values[0]
		}
		t.Fatalf("%s: variable %s is not defined", d.Title, use)
		return ""
	})
}

// values returns the values of a variable, by the query language of Prometheus's data source.
func (g *grafana) values(t *testing.T, q string) []string {
	t.Helper()
	m := labelValues.FindStringSubmatch(q)
	if m == nil {
		t.Fatalf("the query %q of a variable is not supported here", q)
	}
	var values []string
	if err := g.ask(t, "prometheus", "/api/v1/label/"+m[2]+"/values", url.Values{"match[]": {m[1]}}, &values); err != nil {
		t.Fatal(err)
	}
	return values
}

// promQuery is a query over a time range.
type promQuery struct {
	expr     string
	from, to time.Time
	step     time.Duration
}

// metricSeries is a series of an answer.
type metricSeries struct {
	Labels map[string]string
	Last   float64
	Finite bool // whether it has a point that a graph can show
}

func (g *grafana) metrics(t *testing.T, q promQuery) ([]metricSeries, error) {
	var data struct {
		Result []struct {
			Metric map[string]string `json:"metric"`
			Values [][2]any          `json:"values"`
		} `json:"result"`
	}
	if err := g.ask(t, "prometheus", "/api/v1/query_range", url.Values{
		"query": {q.expr}, "start": {unix(q.from)}, "end": {unix(q.to)}, "step": {unix(time.Unix(0, 0).Add(q.step))},
	}, &data); err != nil {
		return nil, err
	}
	var all []metricSeries
	for _, r := range data.Result {
		s := metricSeries{Labels: r.Metric}
		for _, v := range r.Values {
			text, _ := v[1].(string)
			n, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: value %v", q.expr, v)
			}
			s.Last = n
			s.Finite = s.Finite || !math.IsNaN(n) && !math.IsInf(n, 0)
		}
		all = append(all, s)
	}
	return all, nil
}

// exemplar is one of the requests that a series counts.
type exemplar struct {
	Labels map[string]string
	Value  float64
}

func (g *grafana) exemplars(t *testing.T, expr string, from, to time.Time) ([]exemplar, error) {
	var data []struct {
		Exemplars []struct {
			Labels map[string]string `json:"labels"`
			Value  string            `json:"value"`
		} `json:"exemplars"`
	}
	if err := g.ask(t, "prometheus", "/api/v1/query_exemplars", url.Values{"query": {expr}, "start": {unix(from)}, "end": {unix(to)}}, &data); err != nil {
		return nil, err
	}
	var all []exemplar
	for _, series := range data {
		for _, e := range series.Exemplars {
			n, err := strconv.ParseFloat(e.Value, 64)
			if err != nil {
				return nil, fmt.Errorf("exemplar %v: %w", e, err)
			}
			all = append(all, exemplar{e.Labels, n})
		}
	}
	return all, nil
}

// logLine is a log line with the labels of its stream and its own.
type logLine struct {
	Labels map[string]string
	Text   string
}

func (g *grafana) logs(t *testing.T, expr string, from, to time.Time) ([]logLine, error) {
	var data struct {
		Result []struct {
			Stream map[string]string `json:"stream"`
			Values [][2]string       `json:"values"`
		} `json:"result"`
	}
	if err := g.ask(t, "loki", "/loki/api/v1/query_range", url.Values{
		"query": {expr}, "start": {strconv.FormatInt(from.UnixNano(), 10)}, "end": {strconv.FormatInt(to.UnixNano(), 10)}, "limit": {"200"},
	}, &data); err != nil {
		return nil, err
	}
	var lines []logLine
	for _, r := range data.Result {
		for _, v := range r.Values {
			lines = append(lines, logLine{r.Stream, v[1]})
		}
	}
	return lines, nil
}

// ask calls Prometheus or Loki, whose answers have the same envelope, and decodes the data.
func (g *grafana) ask(t *testing.T, uid, path string, parameters url.Values, data any) error {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.urls[uid]+path+"?"+parameters.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %.300s", uid, parameters, resp.Status, b)
	}
	answer := struct {
		Data any `json:"data"`
	}{data}
	if err := json.Unmarshal(b, &answer); err != nil {
		return fmt.Errorf("%s%s: %w", uid, path, err)
	}
	return nil
}

// unix formats a time in seconds, for Prometheus.
func unix(t time.Time) string { return strconv.FormatFloat(float64(t.UnixNano())/1e9, 'f', 3, 64) }
