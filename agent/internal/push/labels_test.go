package push

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"spanflame/internal/pyroscopewire"
	"spanflame/internal/record"
)

func meta(labels map[string]string) record.Meta {
	return record.Meta{Service: "shop", Type: record.CPU, Labels: labels}
}

func asMap(ls []pyroscopewire.Label) map[string]string {
	m := map[string]string{}
	for _, l := range ls {
		m[l.Name] = l.Value
	}
	return m
}

func TestLabels(t *testing.T) {
	for name, tc := range map[string]struct {
		in   map[string]string
		want map[string]string // in addition to name and service
		ch   Changes
	}{
		"none":              {nil, nil, Changes{}},
		"right as they are": {map[string]string{"region": "eu", "_x1": `a,b{c}"d"`}, map[string]string{"region": "eu", "_x1": `a,b{c}"d"`}, Changes{}},
		"names become names": {map[string]string{"service.version": "1", "http-route": "/", "1st": "x", "ü": "y"},
			map[string]string{"service_version": "1", "http_route": "/", "_1st": "x"},
			Changes{Dropped: 1, Renamed: 3, Names: []string{"1st", "http-route", "service.version", "ü"}}},
		"spaces, dashes and other letters": {map[string]string{"http route": "/a b", "http-method": "GET", "größe": "groß"},
			map[string]string{"http_route": "/a b", "http_method": "GET", "gr____e": "groß"},
			Changes{Renamed: 3, Names: []string{"größe", "http route", "http-method"}}},
		"two names become one": {map[string]string{"a b": "1", "a-b": "2"}, map[string]string{"a_b": "1"},
			Changes{Dropped: 1, Renamed: 1, Names: []string{"a b", "a-b"}}},
		"the right name wins": {map[string]string{"a.b": "renamed", "a_b": "right"}, map[string]string{"a_b": "right"},
			Changes{Dropped: 1, Names: []string{"a.b"}}},
		"reserved": {map[string]string{"__name__": "x", "service_name": "y", "__session_id__": "z"}, nil,
			Changes{Dropped: 3, Names: []string{"__name__", "__session_id__", "service_name"}}},
		"empty is as good as not there": {map[string]string{"a": "", "": "b"}, map[string]string{"_": "b"},
			Changes{Dropped: 1, Renamed: 1, Names: []string{"a", ""}}},
		"values become UTF-8": {map[string]string{"a": "x\xffy"}, map[string]string{"a": "x\uFFFDy"}, Changes{Cut: 1, Names: []string{"a"}}},
		"values are cut between runes": {map[string]string{"a": "x" + strings.Repeat("ü", 1024)}, map[string]string{"a": "x" + strings.Repeat("ü", 1023)},
			Changes{Cut: 1, Names: []string{"a"}}},
	} {
		t.Run(name, func(t *testing.T) {
			ls, ch := seriesLabels(meta(tc.in), maxLabels)
			want := map[string]string{"__name__": "process_cpu", "service_name": "shop"}
			maps.Copy(want, tc.want)
			if got := asMap(ls); !maps.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			if !reflect.DeepEqual(ch, tc.ch) {
				t.Errorf("changes %+v, want %+v", ch, tc.ch)
			}
		})
	}
}

func TestServiceNamesArriveAsTheyAre(t *testing.T) {
	for _, name := range []string{"a,b", "a{b}", `a"b`, `a\b`, "größe-服务", "a b=c&d"} {
		m := meta(nil)
		m.Service = name
		ls, ch := seriesLabels(m, maxLabels)
		if asMap(ls)["service_name"] != name || ch.Any() {
			t.Errorf("%q became %q, %+v", name, asMap(ls)["service_name"], ch)
		}
	}
}

func TestAtMostThirtyLabels(t *testing.T) {
	in := map[string]string{}
	for i := range 40 {
		in[fmt.Sprintf("l%02d", i)] = "v"
	}
	ls, ch := seriesLabels(meta(in), maxLabels)
	if len(ls) != maxLabels || ch.Dropped != 12 || len(ch.Names) != maxChangedNames {
		t.Errorf("%d labels, %+v", len(ls), ch)
	}
}

func TestWindowsAreNotDifferencedAgain(t *testing.T) {
	for _, typ := range []record.Type{record.CPU, record.Memory, record.Mutex, record.Block, record.Goroutine, record.GoroutineLeak, record.Wall} {
		m := meta(nil)
		m.Type = typ
		ls, _ := seriesLabels(m, maxLabels)
		want := ""
		if typ == record.Memory || typ == record.Mutex || typ == record.Block {
			want = "false"
		}
		if got := asMap(ls)["__delta__"]; got != want {
			t.Errorf("%s: __delta__ is %q, want %q", typ, got, want)
		}
	}
}

func FuzzLabels(f *testing.F) {
	f.Add("shop", "a.b", "1", "a_b", "2")
	f.Add("\xff", "", "", "__x__", strings.Repeat("ü", 2000))
	f.Fuzz(func(t *testing.T, service, n1, v1, n2, v2 string) {
		m := meta(map[string]string{n1: v1, n2: v2})
		m.Service = service
		ls, ch := seriesLabels(m, maxLabels)
		if !slices.IsSortedFunc(ls, func(a, b pyroscopewire.Label) int { return strings.Compare(a.Name, b.Name) }) {
			t.Fatalf("not sorted: %q", ls)
		}
		for i, l := range ls {
			if i > 0 && ls[i-1].Name == l.Name {
				t.Fatalf("%q is there twice", l.Name)
			}
			if labelName(l.Name) != l.Name || len(l.Name) > maxNameBytes || len(l.Value) > maxValueBytes || !utf8.ValidString(l.Value) {
				t.Fatalf("label %q=%q", l.Name, l.Value)
			}
		}
		if len(ls)-2+ch.Dropped != len(m.Labels) {
			t.Fatalf("%d labels went in, %d out, %d dropped", len(m.Labels), len(ls)-2, ch.Dropped)
		}
	})
}
