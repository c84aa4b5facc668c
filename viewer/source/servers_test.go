package source

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"spanflame/internal/query"
	"spanflame/internal/record"
	"spanflame/profiles"
)

func TestTraceQL(t *testing.T) {
	for _, tt := range []struct {
		f     Filter
		whole bool
		want  string
	}{
		{Filter{}, false, "{  }"},
		{Filter{Service: `a" || true || "`}, false, `{ resource.service.name = "a\" || true || \"" }`},
		{Filter{Name: "GET /a.b", Min: 250 * time.Millisecond}, false, `{ name =~ "(?i).*GET /a\\.b.*" && traceDuration >= 250000000ns }`},
		{Filter{Service: "s", Name: "GET /a.b"}, true, `{ resource.service.name = "s" && name = "GET /a.b" }`},
	} {
		if got := traceQL(tt.f, tt.whole); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.f, got, tt.want)
		}
	}
}

func TestRecorded(t *testing.T) {
	for slow, want := range map[time.Duration]string{
		100 * time.Millisecond: `span.pyroscope.profile.id != "" && (duration >= 100000000ns || kind != server && kind != consumer && duration >= 10000000ns)`,
		5 * time.Millisecond:   `span.pyroscope.profile.id != "" && (duration >= 5000000ns || kind != server && kind != consumer && duration >= 5000000ns)`,
	} {
		if got := recorded(Filter{Slow: slow, Child: 10 * time.Millisecond}); got != want {
			t.Errorf("%v: %s, want %s", slow, got, want)
		}
	}
	want := `span.pyroscope.profile.id != "" && (kind = server || kind = consumer) && duration >= 100000000ns`
	if got := recorded(Filter{Slow: 100 * time.Millisecond, Requests: true}); got != want {
		t.Errorf("requests: %s, want %s", got, want)
	}
}

func TestProfileOfAFlameGraph(t *testing.T) {
	graph := &query.Frame{Name: "total", Total: 100, Children: []*query.Frame{
		{Name: "main", Total: 100, Self: 10, Children: []*query.Frame{{Name: "a", Total: 60, Self: 60}, {Name: "main", Total: 30, Self: 30}}},
	}}
	p := fromGraph(graph, string(record.CPU))
	if err := p.CheckValid(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range p.Sample {
		var names []string
		for _, l := range slices.Backward(s.Location) {
			names = append(names, l.Line[0].Function.Name)
		}
		got = append(got, strings.Join(names, ";"))
	}
	want := []string{"main", "main;a", "main;main"}
	if !slices.Equal(got, want) || profiles.Total(p, 0, nil) != 100 || len(p.Function) != 2 || p.SampleType[0].Type != "cpu" {
		t.Errorf(
			"stacks %q of %d ns in %d functions of type %s, want %q of 100 ns", got, profiles.Total(p, 0, nil),
			len(p.Function), p.SampleType[0].Type, want,
		)
	}
	if p := fromGraph(&query.Frame{Name: "total"}, "wall"); len(p.Sample) != 0 {
		t.Errorf("an empty graph: %v, want no samples", p)
	}
}

// adding is a Pyroscope with the second storage and memory profiles every ten seconds: it adds up the values in a step even
// if an average is requested, and refuses more than a day.
func adding(t *testing.T, start time.Time, windows []int64) *Servers {
	t.Helper()
	pyroscope := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Start, End int64
			Step       float64
			GroupBy    []string
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || path.Base(r.URL.Path) != "SelectSeries" {
			t.Errorf("%s: %v", r.URL, err)
		}
		if q.End-q.Start > (24 * time.Hour).Milliseconds() {
			http.Error(w, "more than a day", http.StatusBadRequest)
			return
		}
		if !slices.Equal(q.GroupBy, []string{"service_instance_id"}) {
			t.Errorf("grouped by %q: windows of several instances would be added up", q.GroupBy)
		}
		step := int64(q.Step * 1000)
		sums := make(map[int64]int64)
		for i, v := range windows {
			if at := start.Add(time.Duration(i) * 10 * time.Second).UnixMilli(); at >= q.Start && at <= q.End {
				sums[q.Start+(at-q.Start+step-1)/step*step] += v
			}
		}
		var points []string
		for _, at := range slices.Sorted(maps.Keys(sums)) {
			points = append(points, fmt.Sprintf(`{"value":%d,"timestamp":"%d"}`, sums[at], at))
		}
		fmt.Fprintf(w, `{"series":[{"labels":[{"name":"service_instance_id","value":"pod-1"}],"points":[%s]}]}`, strings.Join(points, ","))
	}))
	t.Cleanup(pyroscope.Close)
	s, err := NewServers("http://127.0.0.1:9", pyroscope.URL)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMemoryOfServersIsOfOneWindow(t *testing.T) {
	start := time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
	s := adding(t, start, []int64{10, 20, 30, 40, 50, 60})
	for _, tt := range []struct {
		most int
		want []int64
	}{
		{100, []int64{10, 20, 30, 40, 50, 60}}, {6, []int64{10, 20, 30, 40, 50, 60}}, {3, []int64{15, 35, 55}},
		{4, []int64{15, 35, 55}}, {1, []int64{35}},
	} {
		points, err := s.Memory(t.Context(), Selection{Service: "shop", From: start.Add(-time.Minute), To: start.Add(time.Hour)}, tt.most)
		var got []int64
		for _, p := range points {
			got = append(got, p.Bytes)
		}
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("at most %d points: %d, %v, want %d", tt.most, got, err, tt.want)
		}
	}
	points, err := s.Memory(t.Context(), Selection{Service: "shop", From: start, To: start.Add(time.Hour)}, 3)
	if err != nil || len(points) != 3 {
		t.Fatal(points, err)
	}
	if points[0].Instance != "pod-1" {
		t.Errorf("instance %q, want pod-1", points[0].Instance)
	}
	// Each selects its own windows, and no others.
	for i, p := range points {
		windows, err := s.Windows(t.Context(), Selection{Service: "shop", Type: record.Memory, From: p.From, To: p.To})
		if err != nil || len(windows) != 2 {
			t.Errorf("point %d, %+v: windows %v, %v, want 2", i, p, windows, err)
		}
	}
}

func TestLargest(t *testing.T) {
	type window struct {
		instance string
		value    float64
	}
	for name, tt := range map[string]struct {
		all  []window
		want string
	}{
		"none":                    {nil, ""},
		"one":                     {[]window{{"a", 1}}, "a"},
		"two":                     {[]window{{"a", 1}, {"b", 90}, {"a", 20}, {"b", 91}}, "b"},
		"the last of a short one": {[]window{{"a", 20}, {"b", 90}, {"a", 1}}, "a"},
		"all are short":           {[]window{{"b", 90}, {"a", 1}}, "a"},
	} {
		got := largest(tt.all, func(w window) string { return w.instance }, func(w window) float64 { return w.value })
		for _, w := range got {
			if w.instance != tt.want {
				t.Errorf("%s: %v, want those of %q", name, got, tt.want)
			}
		}
		if len(got) == 0 && tt.want != "" {
			t.Errorf("%s: nothing", name)
		}
	}
}

func TestServersAreAskedForADayAtATime(t *testing.T) {
	start := time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
	windows := make([]int64, 7*24*360)
	for i := range windows {
		windows[i] = 5
	}
	s := adding(t, start, windows)
	sel := Selection{Service: "shop", Type: record.CPU, From: start, To: start.Add(week)}
	if got, err := s.Windows(t.Context(), sel); err != nil || len(got) != len(windows) {
		t.Errorf("a week has %d windows, %v, want %d", len(got), err, len(windows))
	}
	sel.To = start.Add(2 * week)
	if _, err := s.Windows(t.Context(), sel); !errors.Is(err, ErrTooLong) {
		t.Errorf("two weeks: %v, want %v", err, ErrTooLong)
	}
	if _, err := s.Profile(t.Context(), sel); !errors.Is(err, ErrTooLong) {
		t.Errorf("the profile of two weeks: %v, want %v", err, ErrTooLong)
	}
	if _, err := s.Captured(t.Context(), Filter{From: sel.From, To: sel.To, Limit: 1}); !errors.Is(err, ErrTooLong) {
		t.Errorf("the spans of two weeks: %v, want %v", err, ErrTooLong)
	}
}

func TestServersAddresses(t *testing.T) {
	for _, bad := range []string{"", "tempo", "ftp://tempo", "http://"} {
		if _, err := NewServers(bad, "http://127.0.0.1:4040"); err == nil {
			t.Errorf("Tempo's address %q was taken", bad)
		}
		if _, err := NewServers("http://127.0.0.1:3200", bad); err == nil {
			t.Errorf("Pyroscope's address %q was taken", bad)
		}
	}
}
