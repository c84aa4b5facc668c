package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// saveWindows saves n profiles of a service, a minute each, as an agent does. The value of the function
// main.hold in each is what value says; main.steady has always the same, but for noise.
func saveWindows(t *testing.T, dir string, m record.Meta, sampleType, unit string, n int, value func(i int) int64) {
	t.Helper()
	st := &profile.ValueType{Type: sampleType, Unit: unit}
	for i := range n {
		p := &profile.Profile{SampleType: []*profile.ValueType{st}, PeriodType: st, DurationNanos: int64(time.Minute)}
		for j, f := range []struct {
			name  string
			value int64
		}{{"main.hold", value(i)}, {"main.steady", 10<<20 + int64(i*7%20)<<10}} {
			fn := &profile.Function{ID: uint64(j + 1), Name: f.name}
			l := &profile.Location{ID: fn.ID, Line: []profile.Line{{Function: fn}}}
			p.Function, p.Location = append(p.Function, fn), append(p.Location, l)
			p.Sample = append(p.Sample, &profile.Sample{Location: []*profile.Location{l}, Value: []int64{f.value}})
		}
		var b bytes.Buffer
		if err := p.Write(&b); err != nil {
			t.Fatal(err)
		}
		m.Start = time.Date(2026, 1, 2, 15, i, 0, 0, time.UTC)
		m.End = m.Start.Add(time.Minute)
		path := filepath.Join(dir, "profiles", filepath.FromSlash(m.SavedPath()))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		var file bytes.Buffer
		if err := errors.Join(record.Encode(&file, record.Record{Meta: m, Profile: b.Bytes()}), os.WriteFile(path, file.Bytes(), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// saveVersions saves 20 CPU profiles of each of two versions, of which the second is slower by a half.
func saveVersions(t *testing.T) string {
	dir := t.TempDir()
	for version, cpu := range map[string]int64{"1": 10 << 20, "2": 15 << 20} {
		m := record.Meta{Service: "shop", Type: record.CPU, Labels: map[string]string{"service_version": version}}
		saveWindows(t, dir, m, "cpu", "nanoseconds", 20, func(i int) int64 { return cpu + int64(i*3%20)<<12 })
	}
	return dir
}

func TestCompareJudgesTwoVersions(t *testing.T) {
	dir := saveVersions(t)
	diff := filepath.Join(t.TempDir(), "diff.pb.gz")
	args := []string{"compare", dir, dir, "--before", "service_version=1", "--after", "service_version=2"}
	for _, tt := range []struct {
		more []string
		code int
		want string // in the report
	}{
		{nil, 0, "main.hold"},
		{[]string{"--fail-on", "cpu:+10%@p<0.01"}, codeFound, "main.hold"},
		{[]string{"--fail-on", "cpu(main.steady):+10%@p<0.01", "--fail-on", "cpu:-5%"}, 0, "main.hold"},
		{[]string{"--fail-on", "cpu:+1%@p<1e-20"}, codeUse, "main.hold"}, // not to be decided
		{[]string{"--format", "json"}, 0, `"significant": true`},
		{[]string{"--format", "markdown"}, 0, "| main.hold |"},
		{[]string{"--format", "html", "--output", diff}, 0, "<svg"},
		{[]string{"--work-before", "100", "--work-after", "150"}, 0, "per unit of work"},
	} {
		stdout, _, err := execute(t, append(args, tt.more...)...)
		code := 0
		if err != nil {
			code = exitCode(err)
		}
		if code != tt.code || !strings.Contains(stdout, tt.want) {
			t.Errorf("%v: exit code %d (%v), want %d and %q in\n%s", tt.more, code, err, tt.code, tt.want, stdout)
		}
	}
	if w, err := profiles.ReadFile(diff); err != nil || len(w.Profile.Sample) != 4 {
		t.Errorf("the difference: %+v, %v", w.Profile, err)
	}
}

func TestCompareFollowsALinkToADirectory(t *testing.T) {
	dir := t.TempDir()
	saveWindows(t, dir, record.Meta{Service: "shop", Type: record.CPU}, "cpu", "nanoseconds", 2, func(int) int64 { return 1 << 20 })
	link := filepath.Join(t.TempDir(), "latest")
	if err := os.Symlink(filepath.Join(dir, "profiles", "shop"), link); err != nil {
		t.Fatal(err)
	}
	if stdout, _, err := execute(t, "compare", link, link); err != nil || !strings.Contains(stdout, "2 windows before, 2 after") {
		t.Errorf("%v\n%s", err, stdout)
	}
}

func TestCompareTakesRootSpansUnlessAskedForOthers(t *testing.T) {
	dir := t.TempDir()
	for scope, n := range map[string]int{"root": 4, "child": 6} {
		m := record.Meta{Service: "shop", Type: record.Wall, Labels: map[string]string{"span_scope": scope}}
		saveWindows(t, dir, m, "wall", "nanoseconds", n, func(int) int64 { return 1 << 20 })
	}
	for want, args := range map[string][]string{
		"wall, per span: 4 windows before, 4 after": nil,
		"wall, per span: 6 windows before, 6 after": {"--label", "span_scope=child"},
		"wall, per span: 4 windows before, 6 after": {"--before", "span_scope=root", "--after", "span_scope=child"},
	} {
		if stdout, _, err := execute(t, append([]string{"compare", dir, dir}, args...)...); err != nil || !strings.Contains(stdout, want) {
			t.Errorf("%v: %v, want %q in\n%s", args, err, want, stdout)
		}
	}
}

func TestCompareReadsALiveService(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		st := &profile.ValueType{Type: "inuse_space", Unit: "bytes"}
		p := &profile.Profile{SampleType: []*profile.ValueType{st}, PeriodType: st, Sample: []*profile.Sample{{Value: []int64{7}}}}
		_ = p.Write(w)
	}))
	defer server.Close()
	heap := server.URL + "/debug/pprof/heap"
	stdout, _, err := execute(t, "compare", heap, heap, "--format", "json")
	var report struct {
		Metrics []struct {
			RawAfter int64 `json:"raw_after"`
		}
	}
	if jsonErr := json.Unmarshal([]byte(stdout), &report); err != nil || jsonErr != nil || report.Metrics[0].RawAfter != 7 {
		t.Errorf("%v, %v\n%s", err, jsonErr, stdout)
	}
}

func TestLeaksJudgesASeries(t *testing.T) {
	memory := record.Meta{Service: "shop", Type: record.Memory}
	growing, stable := t.TempDir(), t.TempDir()
	saveWindows(t, growing, memory, "inuse_space", "bytes", 30, func(i int) int64 { return int64(i) << 20 })
	saveWindows(t, stable, memory, "inuse_space", "bytes", 30, func(i int) int64 { return 30 << 20 })
	few := t.TempDir()
	saveWindows(t, few, memory, "inuse_space", "bytes", 5, func(i int) int64 { return int64(i) << 20 })
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{growing, "--limit", "100MiB"}, codeFound, "the limit of 100.0 MiB is reached by 2026-01-02 16:"},
		{[]string{growing, "--json"}, codeFound, `"site": "main.hold"`},
		{[]string{growing, "--min-growth", "1GiB"}, 0, "no leak found"},
		{[]string{stable}, 0, "no leak found"},
		{[]string{few}, codeUse, ""},
		{[]string{stable, "--limit", "much"}, codeUse, ""},
	} {
		stdout, _, err := execute(t, append([]string{"leaks"}, tt.args...)...)
		code := 0
		if err != nil {
			code = exitCode(err)
		}
		if code != tt.code || !strings.Contains(stdout, tt.want) {
			t.Errorf("%v: exit code %d (%v), want %d and %q in\n%s", tt.args, code, err, tt.code, tt.want, stdout)
		}
	}
}

func TestWrongUseOfWhatJudgesIsCode2(t *testing.T) {
	dir := saveVersions(t)
	for want, args := range map[string][]string{
		"accepts 2 arg":                        {"compare", dir},
		"unknown flag":                         {"compare", dir, dir, "--sugar"},
		`format "pdf"`:                         {"compare", dir, dir, "--format", "pdf"},
		"top 0":                                {"compare", dir, dir, "--top", "0"},
		`rule "cpu"`:                           {"compare", dir, dir, "--fail-on", "cpu"},
		`type "cake"`:                          {"compare", dir, dir, "--type", "cake"},
		"want name=value":                      {"compare", dir, dir, "--before", "x"},
		`time "teatime"`:                       {"compare", dir, dir, "--from", "teatime"},
		`label service_version="3": there are`: {"compare", dir, dir, "--label", "service_version=3"},
		`normalization "miles"`:                {"compare", dir, dir, "--normalize", "miles"},
		"no such file":                         {"compare", dir, filepath.Join(dir, "nowhere")},
		"want one with [$window]":              {"compare", dir, dir, "--work", "requests"},
		"say both":                             {"compare", dir, dir, "--work-before", "1"},
		"accepts 1 arg":                        {"leaks"},
		"save heap or goroutine":               {"leaks", dir, "--type", "cpu"},
		"nowhere: no such file":                {"leaks", filepath.Join(dir, "nowhere")},
		"--min-growth: \"-1\"":                 {"leaks", dir, "--min-growth=-1"},
		"--limit GOMEMLIMIT: the":              {"leaks", dir, "--limit", "GOMEMLIMIT"},
	} {
		t.Setenv("GOMEMLIMIT", "")
		if _, _, err := execute(t, args...); err == nil || exitCode(err) != codeUse || !strings.Contains(err.Error(), want) {
			t.Errorf("spanflame %s: %v, want exit code 2 and an error with %q", strings.Join(args, " "), err, want)
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"some": "1048576\n", "max": "max\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		flag, env, file, want string
	}{
		{"", "", "", "0 <nil>"},
		{"", "off", "", "0 <nil>"},
		{"", "2GiB", "", "2147483648 <nil>"},
		{"5KiB", "2GiB", "", "5120 <nil>"},
		{"7", "", "", "7 <nil>"},
		{"GOMEMLIMIT", "3B", "", "3 <nil>"},
		{"GOMEMLIMIT", "", "", "no limit"},
		{"cgroup", "", "some", "1048576 <nil>"},
		{"cgroup", "", "max", "no limit"},
		{"cgroup", "", "none", "no such file"},
		{"9999999TiB", "", "", "want bytes"},
	} {
		n, err := memoryLimit(tt.flag, tt.env, filepath.Join(dir, tt.file))
		if got := fmt.Sprint(n, " ", err); !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}
