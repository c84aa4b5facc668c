//go:build stack

package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"spanflame/internal/query"
)

var matchers = regexp.MustCompile(`(\w+)="([^"]*)"`)

// run sends the query of a panel, and fails if the answer is empty.
func (g *grafana) run(t *testing.T, d dashboard, p panel, q target) error {
	t.Helper()
	from, to := time.Now().Add(-15*time.Minute), time.Now()
	duration := func(text string) time.Duration {
		if text == "" {
			return 0
		}
		d, err := time.ParseDuration(g.substitute(t, d, text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := duration(p.TimeFrom); d > 0 {
		from = to.Add(-d)
	}
	shift := duration(p.TimeShift)
	from, to = from.Add(-shift), to.Add(-shift)

	switch q.DataSource.UID {
	case "prometheus":
		expr := g.substitute(t, d, q.Expr)
		series, err := g.metrics(t, promQuery{expr, from, to, 15 * time.Second})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(series, func(s metricSeries) bool { return s.Finite }) {
			return fmt.Errorf("%s: no data", expr)
		}
		if q.Exemplar {
			found, err := g.exemplars(t, expr, from, to)
			if err == nil && len(found) == 0 {
				err = fmt.Errorf("%s: no exemplar", expr)
			}
			return err
		}
	case "tempo":
		if q.QueryType == "serviceMap" {
			return g.serviceMap(t, d, q.ServiceMapQuery, from, to)
		}
		found, err := g.tempo.Search(t.Context(), g.substitute(t, d, q.Query), from, to, q.Limit)
		if err == nil && len(found) == 0 {
			err = errors.New("no trace")
		}
		return err
	case "loki":
		lines, err := g.logs(t, g.substitute(t, d, q.Expr), from, to)
		if err == nil && len(lines) == 0 {
			err = errors.New("no line")
		}
		return err
	case "pyroscope":
		selector := query.Selector{}
		for _, m := range matchers.FindAllStringSubmatch(g.substitute(t, d, q.LabelSelector), -1) {
			selector[m[1]] = m[2]
		}
		if q.QueryType == "profile" {
			graph, err := g.pyroscope.FlameGraph(t.Context(), q.ProfileTypeID, selector, from, to)
			if err == nil && graph.Total == 0 {
				err = fmt.Errorf("the flame graph of %s is empty", selector)
			}
			return err
		}
		points, err := g.pyroscope.Totals(t.Context(), q.ProfileTypeID, selector, from, to, 15*time.Second)
		if err == nil && len(points) == 0 {
			err = fmt.Errorf("no points of %s", selector)
		}
		return err
	default:
		t.Fatalf("%s: no data source %q", p.Title, q.DataSource.UID)
	}
	return nil
}

// serviceMap asks for the edges of a service map as Grafana does: the union of its selectors. Both calls of the workload must be there.
func (g *grafana) serviceMap(t *testing.T, d dashboard, selectors []string, from, to time.Time) error {
	t.Helper()
	if uid := g.source(t, "tempo").JSONData.ServiceMap.DatasourceUID; uid != "prometheus" {
		t.Fatalf("the service map is of the data source %q", uid)
	}
	for _, metric := range []string{"traces_service_graph_request_total", "traces_service_graph_request_server_seconds_sum"} {
		var queries []string
		for _, s := range selectors {
			queries = append(queries, fmt.Sprintf("sum by (client, server) (rate(%s%s[5m]))", metric, g.substitute(t, d, s)))
		}
		expr := strings.Join(queries, " or ")
		series, err := g.metrics(t, promQuery{expr, from, to, 15 * time.Second})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(series, func(s metricSeries) bool {
			return s.Finite && s.Labels["client"] == "storefront" && s.Labels["server"] == "inventory"
		}) {
			return fmt.Errorf("%s: no call of the inventory by the storefront among %v", expr, series)
		}
	}
	return nil
}

// rule is an alert rule, evaluated by Prometheus.
type rule struct {
	Query     string `json:"query"`
	Health    string `json:"health"`
	LastError string `json:"lastError"`
	State     string `json:"state"`
	Alerts    []struct {
		Labels map[string]string `json:"labels"`
	} `json:"alerts"`
}

func (g *grafana) rules(t *testing.T) (map[string]rule, error) {
	var data struct {
		Groups []struct {
			Rules []struct {
				rule
				Name string `json:"name"`
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := g.ask(t, "prometheus", "/api/v1/rules", nil, &data); err != nil {
		return nil, err
	}
	rules := map[string]rule{}
	for _, group := range data.Groups {
		for _, r := range group.Rules {
			rules[r.Name] = r.rule
		}
	}
	return rules, nil
}
