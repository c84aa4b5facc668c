package viewer

import (
	"errors"
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

func TestProfileOfAFlameGraph(t *testing.T) {
	graph := &query.Frame{Name: "total", Total: 100, Children: []*query.Frame{
		{Name: "main", Total: 100, Self: 10, Children: []*query.Frame{{Name: "a", Total: 60, Self: 60}, {Name: "main", Total: 30, Self: 30}}},
	}}
	p, err := fromGraph(graph, string(record.CPU))
	if err != nil {
		t.Fatal(err)
	}
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
	if want := []string{"main", "main;a", "main;main"}; !slices.Equal(got, want) || sum(p, 0) != 100 || len(p.Function) != 2 || p.SampleType[0].Type != "cpu" {
		t.Errorf("stacks %q of %d ns in %d functions of type %s, want %q of 100 ns", got, sum(p, 0), len(p.Function), p.SampleType[0].Type, want)
	}
	if _, err := fromGraph(&query.Frame{Name: "total"}, "wall"); !errors.Is(err, profiles.ErrNone) {
		t.Errorf("an empty graph: %v, want %v", err, profiles.ErrNone)
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
