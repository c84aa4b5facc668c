package deploy_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// The data source types by the plugin's id.
const (
	tempoType      = "tempo"
	pyroscopeType  = "grafana-pyroscope-datasource"
	prometheusType = "prometheus"
	lokiType       = "loki"
)

type dataSource struct {
	Name     string `yaml:"name"`
	Type     string `yaml:"type"`
	UID      string `yaml:"uid"`
	URL      string `yaml:"url"`
	Default  bool   `yaml:"isDefault"`
	Editable *bool  `yaml:"editable"`
	JSONData struct {
		TracesToProfiles *tracesToProfiles `yaml:"tracesToProfiles"`
		TracesToLogs     struct {
			link            `yaml:",inline"`
			FilterByTraceID bool `yaml:"filterByTraceID"`
		} `yaml:"tracesToLogsV2"`
		TracesToMetrics struct {
			link    `yaml:",inline"`
			Queries []struct {
				Name  string `yaml:"name"`
				Query string `yaml:"query"`
			} `yaml:"queries"`
		} `yaml:"tracesToMetrics"`
		ServiceMap    link   `yaml:"serviceMap"`
		Exemplars     []link `yaml:"exemplarTraceIdDestinations"`
		DerivedFields []struct {
			link    `yaml:",inline"`
			Matcher string `yaml:"matcherType"`
			URL     string `yaml:"url"`
		} `yaml:"derivedFields"`
	} `yaml:"jsonData"`
}

// link is the target of a link, and the labels it passes on.
type link struct {
	DatasourceUID string `yaml:"datasourceUid"`
	Name          string `yaml:"name"`
	Tags          []tag  `yaml:"tags"`
}

type tracesToProfiles struct {
	DatasourceUID string `yaml:"datasourceUid"`
	ProfileTypeID string `yaml:"profileTypeId"`
	CustomQuery   *bool  `yaml:"customQuery"`
	Tags          []tag  `yaml:"tags"`
}

type tag struct {
	Key   string `yaml:"key"`
	Value string `yaml:"value"`
}

// profileTypes lists the agent's profile types by their names in Pyroscope.
var profileTypes = []string{
	"process_cpu:cpu:nanoseconds:cpu:nanoseconds",
	"wall:wall:nanoseconds:wall:nanoseconds",
	"memory:alloc_objects:count:space:bytes",
	"memory:alloc_space:bytes:space:bytes",
	"memory:inuse_objects:count:space:bytes",
	"memory:inuse_space:bytes:space:bytes",
	"goroutines:goroutine:count:goroutine:count",
	"mutex:contentions:count:contentions:count",
	"mutex:delay:nanoseconds:contentions:count",
	"block:contentions:count:contentions:count",
	"block:delay:nanoseconds:contentions:count",
}

// endpoints has the address for data sources of each type. checkServers checks the servers' ports.
var endpoints = map[string]string{
	tempoType:      "http://tempo:3200",
	pyroscopeType:  "http://pyroscope:4040",
	prometheusType: "http://prometheus:9090",
	lokiType:       "http://loki:3100",
}

func readDataSources(fsys fs.FS) ([]dataSource, error) {
	var file struct {
		APIVersion  int          `yaml:"apiVersion"`
		DataSources []dataSource `yaml:"datasources"`
	}
	if err := readYAML(fsys, datasources, &file); err != nil {
		return nil, err
	}
	if file.APIVersion != 1 {
		return nil, fmt.Errorf("%s: apiVersion is %d, must be 1", datasources, file.APIVersion)
	}
	return file.DataSources, nil
}

// checkDataSources checks that the data sources have fixed uids, the servers' addresses, and links between the
// signals in all directions. The test on the real servers follows the links.
func checkDataSources(fsys fs.FS) (errs []error) {
	sources, err := readDataSources(fsys)
	if err != nil {
		return []error{err}
	}
	byUID := map[string]dataSource{}
	for _, s := range sources {
		report := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s: %s: %w", datasources, s.Name, fmt.Errorf(format, args...)))
		}
		if s.UID == "" {
			report("no uid: dashboards and links could not refer to it")
		} else if _, twice := byUID[s.UID]; twice {
			report("uid %q is used twice", s.UID)
		}
		byUID[s.UID] = s
		if want, known := endpoints[s.Type]; !known || s.URL != want {
			report("type %q at %q, must be one of %v", s.Type, s.URL, endpoints)
		}
		if s.Editable == nil || *s.Editable {
			report("editable must be false: the file is the truth")
		}
	}

	errs = append(errs, checkLinks(byUID)...)
	link := byUID["tempo"].JSONData.TracesToProfiles
	if link == nil {
		return append(errs, fmt.Errorf("%s: the data source tempo has no tracesToProfiles", datasources))
	}
	if target := byUID[link.DatasourceUID].Type; target != pyroscopeType {
		errs = append(errs, fmt.Errorf("%s: tracesToProfiles.datasourceUid %q has the type %q, must be %q", datasources, link.DatasourceUID, target, pyroscopeType))
	}
	if want := "wall:wall:nanoseconds:wall:nanoseconds"; link.ProfileTypeID != want {
		errs = append(errs, fmt.Errorf("%s: tracesToProfiles.profileTypeId is %q, must be %q", datasources, link.ProfileTypeID, want))
	}
	if link.CustomQuery == nil || *link.CustomQuery {
		errs = append(errs, fmt.Errorf("%s: tracesToProfiles.customQuery must be false", datasources))
	}
	if want := []tag{{Key: "service.name", Value: "service_name"}}; !reflect.DeepEqual(link.Tags, want) {
		errs = append(errs, fmt.Errorf("%s: tracesToProfiles.tags are %v, must be %v", datasources, link.Tags, want))
	}
	return errs
}

// checkLinks checks that the links between traces, logs and metrics lead to data sources that exist.
func checkLinks(byUID map[string]dataSource) (errs []error) {
	report := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", datasources, fmt.Errorf(format, args...)))
	}
	serviceName := []tag{{Key: "service.name", Value: "service_name"}}
	from := byUID["tempo"].JSONData
	for name, l := range map[string]struct {
		link
		leadsTo string
	}{
		"tracesToLogsV2":  {from.TracesToLogs.link, lokiType},
		"tracesToMetrics": {from.TracesToMetrics.link, prometheusType},
	} {
		if target := byUID[l.DatasourceUID].Type; target != l.leadsTo {
			report("%s.datasourceUid %q has the type %q, must be %q", name, l.DatasourceUID, target, l.leadsTo)
		}
		if !reflect.DeepEqual(l.Tags, serviceName) {
			report("%s.tags are %v, must be %v", name, l.Tags, serviceName)
		}
	}
	if uid := from.ServiceMap.DatasourceUID; byUID[uid].Type != prometheusType {
		report("serviceMap.datasourceUid %q has the type %q, must be %q", uid, byUID[uid].Type, prometheusType)
	}
	if !from.TracesToLogs.FilterByTraceID {
		report("tracesToLogsV2.filterByTraceID must be true: the link must show the lines of the trace")
	}
	if len(from.TracesToMetrics.Queries) == 0 {
		report("tracesToMetrics has no query")
	}
	for _, q := range from.TracesToMetrics.Queries {
		if !strings.Contains(q.Query, "{$$__tags") {
			report("tracesToMetrics: %s: %s must have {$$__tags: otherwise it queries every service", q.Name, q.Query)
		}
	}
	if back := byUID["prometheus"].JSONData.Exemplars; len(back) != 1 || back[0].Name != "trace_id" || byUID[back[0].DatasourceUID].Type != tempoType {
		report("exemplarTraceIdDestinations are %+v, must be one of trace_id that leads to Tempo", back)
	}
	if back := byUID["loki"].JSONData.DerivedFields; len(back) != 1 || back[0].Matcher != "label" ||
		back[0].URL != "$${__value.raw}" || byUID[back[0].DatasourceUID].Type != tempoType {
		report("derivedFields are %+v, must be one label whose value leads to Tempo", back)
	}
	return errs
}

type dashboardFile struct {
	ID            *int   `json:"id"`
	UID           string `json:"uid"`
	Title         string `json:"title"`
	SchemaVersion int    `json:"schemaVersion"`
	Templating    struct {
		List []struct {
			Type       string    `json:"type"`
			Name       string    `json:"name"`
			DataSource reference `json:"datasource"`
		} `json:"list"`
	} `json:"templating"`
	Panels []panel `json:"panels"`
}

type panel struct {
	ID         int       `json:"id"`
	Type       string    `json:"type"`
	Title      string    `json:"title"`
	DataSource reference `json:"datasource"`
	GridPos    grid      `json:"gridPos"`
	TimeFrom   string    `json:"timeFrom"`
	TimeShift  string    `json:"timeShift"`
	Targets    []target  `json:"targets"`
}

type reference struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

type grid struct{ X, Y, W, H int }

// gridWidth is the number of columns of a dashboard.
const gridWidth = 24

func (g grid) inside() bool {
	return g.X >= 0 && g.Y >= 0 && g.W > 0 && g.H > 0 && g.X+g.W <= gridWidth
}

func (g grid) overlaps(o grid) bool {
	return g.X < o.X+o.W && o.X < g.X+g.W && g.Y < o.Y+o.H && o.Y < g.Y+g.H
}

type target struct {
	DataSource    reference `json:"datasource"`
	QueryType     string    `json:"queryType"`
	Query         string    `json:"query"`
	Expr          string    `json:"expr"`
	ProfileTypeID string    `json:"profileTypeId"`
	LabelSelector string    `json:"labelSelector"`
	ServiceMap    []string  `json:"serviceMapQuery"`
}

// queryTypes has the type of query that each kind of panel can show, by data source. Prometheus's queries have no type.
var queryTypes = map[string]map[string]string{
	"flamegraph": {pyroscopeType: "profile"},
	"timeseries": {pyroscopeType: "metrics", prometheusType: ""},
	"table":      {tempoType: "traceql"},
	"nodeGraph":  {tempoType: "serviceMap"},
	"logs":       {lokiType: "range"},
}

// dashboards lists the titles of the required dashboards, with the kinds of panels that each must have.
var dashboards = map[string][]string{
	"Service":      {"timeseries", "table", "nodeGraph", "flamegraph", "logs"},
	"Memory leak":  {"timeseries", "flamegraph"},
	"Agent":        {"timeseries"},
	"Before/after": {"timeseries", "flamegraph"},
}

var variable = regexp.MustCompile(`\$\{?([A-Za-z_]\w*)`)

// checkDashboards checks that every provisioned dashboard uses data sources, variables and profile types that
// exist, and that its panels do not overlap.
func checkDashboards(fsys fs.FS) (errs []error) {
	project, err := loadProject(fsys)
	if err != nil {
		return []error{err}
	}
	sources, err := readDataSources(fsys)
	if err != nil {
		return []error{err}
	}
	var file struct {
		Providers []struct {
			Type    string `yaml:"type"`
			Options struct {
				Path string `yaml:"path"`
			} `yaml:"options"`
		} `yaml:"providers"`
	}
	if err := readYAML(fsys, providers, &file); err != nil {
		return []error{err}
	}
	found := map[string][]panel{}
	uids := map[string]string{}
	for _, provider := range file.Providers {
		dir := onHost(project, "grafana", provider.Options.Path)
		if dir == "" {
			errs = append(errs, fmt.Errorf("%s: nothing is mounted at %q", providers, provider.Options.Path))
			continue
		}
		names, err := fs.Glob(fsys, path.Join(dir, "*.json"))
		if err != nil {
			return append(errs, err)
		}
		for _, name := range names {
			content, err := fs.ReadFile(fsys, name)
			if err != nil {
				return append(errs, err)
			}
			var d dashboardFile
			if err := json.Unmarshal(content, &d); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
				continue
			}
			found[d.Title] = d.Panels
			if other, twice := uids[d.UID]; twice {
				errs = append(errs, fmt.Errorf("%s: uid %q is that of %s too", name, d.UID, other))
			}
			uids[d.UID] = name
			errs = append(errs, checkDashboard(name, d, sources)...)
		}
	}
	for title, kinds := range dashboards {
		panels, ok := found[title]
		if !ok {
			errs = append(errs, fmt.Errorf("%s: no dashboard %s is provisioned", providers, title))
		}
		for _, kind := range kinds {
			if ok && !slices.ContainsFunc(panels, func(p panel) bool { return p.Type == kind }) {
				errs = append(errs, fmt.Errorf("%s: the dashboard %s has no panel of type %s", providers, title, kind))
			}
		}
	}
	return errs
}

func checkDashboard(name string, d dashboardFile, sources []dataSource) (errs []error) {
	report := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", name, fmt.Errorf(format, args...)))
	}
	if d.ID != nil {
		report("id %d belongs to one Grafana: leave it out", *d.ID)
	}
	if d.UID == "" || d.Title == "" {
		report("uid %q and title %q must be set", d.UID, d.Title)
	}
	if d.SchemaVersion < 36 {
		report("schemaVersion is %d, must be at least 36: older ones name data sources, not uids", d.SchemaVersion)
	}

	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
		if v.Type == "query" && !provisioned(sources, v.DataSource) {
			report("variable %s: no data source %v is provisioned", v.Name, v.DataSource)
		}
	}

	for i, p := range d.Panels {
		for _, o := range d.Panels[:i] {
			if p.ID == o.ID {
				report("%s and %s both have panel id %d", o.Title, p.Title, p.ID)
			}
			if p.GridPos.overlaps(o.GridPos) {
				report("%s and %s overlap", o.Title, p.Title)
			}
		}
		if !p.GridPos.inside() {
			report("%s: %+v is not inside the grid of %d columns", p.Title, p.GridPos, gridWidth)
		}
		queryType, known := queryTypes[p.Type]
		if !known {
			report("%s: panel type %q is not known", p.Title, p.Type)
		}
		if len(p.Targets) == 0 {
			report("%s: no query", p.Title)
		}
		for _, t := range p.Targets {
			if t.DataSource != p.DataSource {
				report("%s: the query asks %v, the panel %v", p.Title, t.DataSource, p.DataSource)
			}
			if !provisioned(sources, t.DataSource) {
				report("%s: no data source %v is provisioned", p.Title, t.DataSource)
			}
			if want, shows := queryType[t.DataSource.Type]; known && !shows {
				report("%s: a panel of type %s does not show what %s answers", p.Title, p.Type, t.DataSource.Type)
			} else if known && t.QueryType != want {
				report("%s: queryType is %q, must be %q for this panel", p.Title, t.QueryType, want)
			}
			// Pyroscope adds up the values in use of all windows of a time range, so the range must be one window.
			if p.Type == "flamegraph" && slices.Contains(instant, t.ProfileTypeID) && p.TimeFrom != agentWindow {
				report("%s: timeFrom is %q, must be %q, one window of the agent", p.Title, p.TimeFrom, agentWindow)
			}
			texts := append(slices.Clone(t.ServiceMap), t.Query, t.Expr, t.LabelSelector, p.TimeFrom, p.TimeShift)
			for _, match := range variable.FindAllStringSubmatch(strings.Join(texts, " "), -1) {
				if !slices.Contains(variables, match[1]) && match[1] != "__rate_interval" {
					report("%s: variable %s is not defined", p.Title, match[0])
				}
			}
			for _, err := range checkTarget(t) {
				report("%s: %w", p.Title, err)
			}
		}
	}
	return errs
}

func provisioned(sources []dataSource, r reference) bool {
	return slices.ContainsFunc(sources, func(s dataSource) bool { return s.UID == r.UID && s.Type == r.Type })
}

// agentWindow is the agent's default window.
const agentWindow = "15s"

// instant lists the profile types that describe one moment, not the whole window.
var instant = []string{
	"memory:inuse_space:bytes:space:bytes", "memory:inuse_objects:count:space:bytes", "goroutines:goroutine:count:goroutine:count",
}

// checkTarget checks that a query is one that its server can answer.
func checkTarget(t target) (errs []error) {
	switch t.DataSource.Type {
	case tempoType:
		if t.QueryType == "serviceMap" {
			if want := []string{`{client="$service"}`, `{server="$service"}`}; !slices.Equal(t.ServiceMap, want) {
				errs = append(errs, fmt.Errorf("the query is %q, must be %q: the service with those that it calls and that call it", t.ServiceMap, want))
			}
			break
		}
		if !strings.HasPrefix(t.Query, "{ ") {
			errs = append(errs, fmt.Errorf("query %q is not TraceQL", t.Query))
		}
	case prometheusType, lokiType:
		if !strings.Contains(t.Expr, `{service_name="$service"`) {
			errs = append(errs, fmt.Errorf("query %q must name the service", t.Expr))
		}
	case pyroscopeType:
		if !slices.Contains(profileTypes, t.ProfileTypeID) {
			errs = append(errs, fmt.Errorf("the agent does not send profile type %q", t.ProfileTypeID))
		}
		// Without it, Pyroscope's second storage does not search its newest data.
		if !strings.Contains(t.LabelSelector, `service_name="`) {
			errs = append(errs, fmt.Errorf("label selector %s must name a service_name", t.LabelSelector))
		}
		if strings.HasPrefix(t.ProfileTypeID, "wall:") && !strings.Contains(t.LabelSelector, `span_scope="root"`) {
			errs = append(errs, fmt.Errorf(
				"label selector %s must have span_scope=\"root\": the time of child spans is included in that of their root", t.LabelSelector))
		}
	}
	return errs
}
