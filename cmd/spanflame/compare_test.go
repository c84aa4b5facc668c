package main

import (
	"bytes"
	"encoding/hex"
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
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/compare"
)

// saveWindows saves n profiles of a service, of one minute each, like an agent. Value gives that of the function main.hold
// in each; main.steady is constant except for noise.
func saveWindows(t *testing.T, dir string, m record.Meta, sampleType, unit string, n int, value func(i int) int64) {
	t.Helper()
	for i := range n {
		m.Start = time.Date(2026, 1, 2, 15, i, 0, 0, time.UTC)
		m.End = m.Start.Add(time.Minute)
		saveSides(t, dir, m, sampleType, unit, value(i), 10<<20+int64(i*7%20)<<10)
	}
}

// saveSides saves a window in which main.hold and main.steady have these values.
func saveSides(t *testing.T, dir string, m record.Meta, sampleType, unit string, hold, steady int64) {
	t.Helper()
	st := &profile.ValueType{Type: sampleType, Unit: unit}
	p := &profile.Profile{SampleType: []*profile.ValueType{st}, PeriodType: st, DurationNanos: int64(m.End.Sub(m.Start))}
	for j, f := range []struct {
		name  string
		value int64
	}{{"main.hold", hold}, {"main.steady", steady}} {
		fn := &profile.Function{ID: uint64(j + 1), Name: f.name}
		l := &profile.Location{ID: fn.ID, Line: []profile.Line{{Function: fn}}}
		p.Function, p.Location = append(p.Function, fn), append(p.Location, l)
		p.Sample = append(p.Sample, &profile.Sample{Location: []*profile.Location{l}, Value: []int64{f.value}})
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "profiles", filepath.FromSlash(m.SavedPath()))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := errors.Join(record.Encode(&file, record.Record{Meta: m, Profile: b.Bytes()}), os.WriteFile(path, file.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
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

// Without a directory, the commands read the one that agents save to.
func TestCommandsReadTheSavedProfiles(t *testing.T) {
	t.Setenv("SPANFLAME_DIR", saveVersions(t))
	stdout, _, err := execute(t, "compare", "--before", "service_version=1", "--after", "service_version=2")
	if err != nil || !strings.Contains(stdout, "changed: cpu") {
		t.Errorf("compare: %v\n%s", err, stdout)
	}
	output := filepath.Join(t.TempDir(), "merged.pb.gz")
	if _, stderr, err := merge(t, "--output", output); err != nil || !strings.Contains(stderr, "40 profiles merged") ||
		!strings.Contains(stderr, "of several versions, select one with --label service_version=VERSION: 1, 2") {
		t.Errorf("merge: %v\n%s", err, stderr)
	}
	if _, stderr, err := merge(t, "--output", output, "--label", "service_version=2"); err != nil || !strings.Contains(stderr, "20 profiles merged") ||
		strings.Contains(stderr, "several versions") {
		t.Errorf("merge of one version: %v\n%s", err, stderr)
	}
	dir := t.TempDir()
	t.Setenv("SPANFLAME_DIR", dir)
	saveWindows(t, dir, record.Meta{Service: "shop", Type: record.Memory}, "inuse_space", "bytes", 30, func(i int) int64 { return int64(i+1) << 20 })
	if stdout, _, err := execute(t, "leaks"); err == nil || exitCode(err) != codeFound || !strings.Contains(stdout, "main.hold") {
		t.Errorf("leaks: %v\n%s", err, stdout)
	}
}

// The traces next to the profiles count all requests.
func TestCompareDividesByAllRequests(t *testing.T) {
	dir, half := saveRequests(t)
	args := []string{"compare", dir, dir, "--before", "to=" + half, "--after", "from=" + half}
	for _, tt := range []struct {
		more []string
		code int
		want string // in the report, or the error
	}{
		{[]string{"--fail-on", "wall:+10%@p<0.01"}, 0, "wall, per request"},
		{[]string{"--fail-on", "wall:-50%@p<0.01"}, codeFound, "wall, per request"},
		{[]string{"--fail-on", "wall:-50%@p<0.01", "--span", "GET /item"}, codeFound, "wall, per request"},
		{[]string{"--span", "GET /other"}, codeUse, "before: no profile matches"},
		{[]string{"--label", "colour=red"}, 0, "wall, per span"}, // traces do not have the label
		{[]string{"--span", "GET /item", "--label", "colour=red"}, codeUse, `span "GET /item": the requests of both sides must be known`},
	} {
		stdout, _, err := execute(t, append(args, tt.more...)...)
		code, text := 0, stdout
		if err != nil {
			code = exitCode(err)
		}
		if code == codeUse {
			text = err.Error()
		}
		if code != tt.code || !strings.Contains(text, tt.want) {
			t.Errorf("%v: exit code %d (%v), want %d and %q in\n%s", tt.more, code, err, tt.code, tt.want, text)
		}
	}
}

// saveRequests saves 200 requests. Before half, every second one is slow, and after it, few are.
func saveRequests(t *testing.T) (dir, half string) {
	dir = t.TempDir()
	began := time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
	for i := range 200 {
		at, took := began.Add(time.Duration(i)*time.Second+time.Millisecond), 20*time.Millisecond
		if i < 100 && i%2 == 0 || i%50 == 49 {
			took = time.Duration(300+i%7) * time.Millisecond
		}
		r := savedRequest{traceID: fmt.Sprintf("%032x", i+1), spanID: fmt.Sprintf("%016x", i+1), name: "GET /item", at: at, took: took}
		if took > 100*time.Millisecond {
			r.marked, r.stack = true, []string{"main.handle"}
		}
		r.save(t, dir)
	}
	return dir, began.Add(100 * time.Second).Format(time.RFC3339)
}

// savedRequest is a request of the service shop.
type savedRequest struct {
	traceID, spanID string // in hexadecimal digits
	name            string
	at              time.Time
	took            time.Duration
	marked          bool     // its span says that it has a profile
	stack           []string // of its wall-clock profile, the leaf first; none without a profile
}

// save saves the request like an agent: its span, and its profile with the label colour=red.
func (r savedRequest) save(t *testing.T, dir string) {
	t.Helper()
	write := func(path string, b []byte) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	attribute := func(key, value string) []*commonpb.KeyValue {
		return []*commonpb.KeyValue{{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}}
	}
	traceID, err := hex.DecodeString(r.traceID)
	spanID, errSpan := hex.DecodeString(r.spanID)
	if err := errors.Join(err, errSpan); err != nil {
		t.Fatal(err)
	}
	span := &tracepb.Span{
		TraceId: traceID, SpanId: spanID, Name: r.name, Kind: tracepb.Span_SPAN_KIND_SERVER,
		StartTimeUnixNano: uint64(r.at.UnixNano()), EndTimeUnixNano: uint64(r.at.Add(r.took).UnixNano()),
	}
	if r.marked {
		span.Attributes = attribute(wallprofile.ProfileIDAttribute, r.spanID)
	}
	var line, raw, file bytes.Buffer
	if err := traces.Marshal(&line, []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: attribute("service.name", "shop")},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span}}},
	}}); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, "traces", "shop", r.spanID+".jsonl"), line.Bytes())
	if r.stack == nil {
		return
	}
	wall := &profile.ValueType{Type: "wall", Unit: "nanoseconds"}
	p := &profile.Profile{SampleType: []*profile.ValueType{wall}, PeriodType: wall, TimeNanos: r.at.UnixNano(), DurationNanos: int64(r.took)}
	sample := &profile.Sample{Value: []int64{int64(r.took)}, Label: map[string][]string{wallprofile.SpanID: {r.spanID}}}
	for i, name := range r.stack {
		f := &profile.Function{ID: uint64(i + 1), Name: name}
		l := &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f}}}
		p.Function, p.Location, sample.Location = append(p.Function, f), append(p.Location, l), append(sample.Location, l)
	}
	p.Sample = []*profile.Sample{sample}
	m := record.Meta{
		Service: "shop", Type: record.Wall, Start: r.at, End: r.at.Add(r.took),
		Labels: map[string]string{wallprofile.SpanScope: wallprofile.ScopeRoot, "colour": "red"},
	}
	if err := p.Write(&raw); err != nil {
		t.Fatal(err)
	}
	if err := record.Encode(&file, record.Record{Meta: m, Profile: raw.Bytes()}); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, "profiles", filepath.FromSlash(m.SavedPath())), file.Bytes())
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
		{[]string{growing, "--limit", "100MiB"}, codeFound, "the limit of 100 MiB is reached by 2026-01-02 16:"},
		{[]string{growing, "--format", "json"}, codeFound, `"site": "main.hold"`},
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
		"compare: want two sides, BEFORE and AFTER, got 1; see spanflame compare --help": {"compare", dir},
		"got 3":                            {"compare", dir, dir, dir},
		"unknown flag":                     {"compare", dir, dir, "--sugar"},
		`--format "pdf"`:                   {"compare", dir, dir, "--format", "pdf"},
		"--top 0":                          {"compare", dir, dir, "--top", "0"},
		`rule "cpu"`:                       {"compare", dir, dir, "--fail-on", "cpu"},
		`type "heap": want one of`:         {"compare", dir, dir, "--type", "heap"},
		"matches type cake: found 40":      {"compare", dir, dir, "--type", "cake"},
		`--from: time "teatime"`:           {"compare", dir, dir, "--from", "teatime"},
		`label service_version="3": found`: {"compare", dir, dir, "--label", "service_version=3"},
		`normalization "miles"`:            {"compare", dir, dir, "--normalize", "miles"},
		"no such file":                     {"compare", dir, filepath.Join(dir, "nowhere")},
		"want one with [$window]":          {"compare", dir, dir, "--work", "requests"},
		"say both":                         {"compare", dir, dir, "--work-before", "1"},
		"leaks: want the profiles of one service: DIR, FILES or ADDRESS, got 2; see spanflame leaks --help": {"leaks", dir, dir},
		"SPANFLAME_DIR is off":               {"leaks"},
		"two sides, BEFORE and AFTER, got 0": {"compare"},
		`--before "x": want name=value`:      {"compare", dir, dir, "--before", "x"},
		`--after "=x": want name=value`:      {"compare", dir, dir, "--after", "=x"},
		`--label "x": want name=value`:       {"leaks", dir, "--label", "x"},
		`--after from: time "teatime"`:       {"compare", dir, dir, "--after", "from=teatime"},
		`--to: time "teatime"`:               {"leaks", dir, "--to", "teatime"},
		`--format "html": want one of json`:  {"leaks", dir, "--format", "html"},
		`--limit: "512QB": want bytes`:       {"leaks", dir, "--limit", "512QB"},
		"--alpha 0":                          {"compare", dir, dir, "--alpha", "0"},
		"--alpha 0: want a number above 0":   {"leaks", dir, "--alpha", "0"},
		"before has cpu, after has cpu":      {"compare", dir, dir, "--metric", "alloc_space"},
		"record memory or goroutine":         {"leaks", dir, "--type", "cpu"},
		"nowhere: no such file":              {"leaks", filepath.Join(dir, "nowhere")},
		"--min-growth: \"-1\"":               {"leaks", dir, "--min-growth=-1"},
		"--limit GOMEMLIMIT: the":            {"leaks", dir, "--limit", "GOMEMLIMIT"},
	} {
		t.Setenv("GOMEMLIMIT", "")
		t.Setenv("SPANFLAME_DIR", "off")
		if _, _, err := execute(t, args...); err == nil || exitCode(err) != codeUse || !strings.Contains(err.Error(), want) {
			t.Errorf("spanflame %s: %v, want exit code 2 and an error with %q", strings.Join(args, " "), err, want)
		}
	}
}

// A broken rule is reported even if another rule cannot be decided.
func TestCompareReportsBrokenAndUndecidedRules(t *testing.T) {
	dir := saveVersions(t)
	_, _, err := execute(t, "compare", dir, dir, "--before", "service_version=1", "--after", "service_version=2",
		"--fail-on", "cpu:+10%@p<0.01", "--fail-on", "cpu(nosuch):+1%", "--fail-on", "cake:+1%")
	if err == nil || exitCode(err) != codeUse {
		t.Fatalf("%v, want exit code %d", err, codeUse)
	}
	for _, want := range []string{
		"gate failed: cpu:+10%@p<0.01: total changed by +", "rule cpu(nosuch):+1% cannot be decided", "rule cake:+1% cannot be decided",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
}

func TestCompareSaysThatSidesAreTheSame(t *testing.T) {
	dir := saveVersions(t)
	stdout, stderr, err := execute(t, "compare", dir, dir)
	same := "on both sides: 40 windows (of 40 before, 40 after): use --before"
	if err != nil || !strings.Contains(stdout, "40 windows before, 40 after") || !strings.Contains(stderr, same) {
		t.Errorf("without a rule: %v\n%s\n%s", err, stderr, stdout)
	}
	_, _, err = execute(t, "compare", dir, dir, "--fail-on", "cpu:+10%")
	if err == nil || exitCode(err) != codeUse || !strings.Contains(err.Error(), "both sides are the same windows (40)") {
		t.Errorf("with a rule: %v", err)
	}
	_, stderr, err = execute(t, "compare", dir, dir, "--after", "service_version=2", "--fail-on", "cpu:+50%")
	if err != nil || !strings.Contains(stderr, "on both sides: 20 windows (of 40 before, 20 after)") {
		t.Errorf("sides of which one is a part of the other: %v\n%s", err, stderr)
	}
	_, stderr, err = execute(t, "compare", dir, dir, "--before", "service_version=1", "--after", "service_version=2")
	if err != nil || strings.Contains(stderr, "the same") {
		t.Errorf("sides with different versions: %v\n%s", err, stderr)
	}
}

// main.rare has half of the smallest share that is tested.
func TestCompareTestsAllFunctionsIfAsked(t *testing.T) {
	before, after := t.TempDir(), t.TempDir()
	for dir, rare := range map[string]int64{before: 1 << 10, after: 8 << 10} {
		saveWindows(t, dir, record.Meta{Service: "shop", Type: record.CPU}, "cpu", "nanoseconds", 4, func(int) int64 { return rare })
	}
	args := []string{"compare", before, after, "--fail-on", "cpu(main.hold):+100%"}
	small := "not tested: rule cpu(main.hold):+100%: the function's share of cpu is too small"
	if _, stderr, err := execute(t, args...); err != nil || !strings.Contains(stderr, small) {
		t.Errorf("%v\n%s", err, stderr)
	}
	if _, stderr, err := execute(t, append(args, "--min-share", "0")...); err == nil || exitCode(err) != codeFound || strings.Contains(stderr, "not tested") {
		t.Errorf("of all functions: %v\n%s", err, stderr)
	}
}

func TestCompareWritesTheDifferenceOfOneType(t *testing.T) {
	dir, diff := t.TempDir(), filepath.Join(t.TempDir(), "diff.pb.gz")
	for _, typ := range []record.Type{record.CPU, record.Wall} {
		saveWindows(t, dir, record.Meta{Service: "shop", Type: typ}, string(typ), "nanoseconds", 2, func(int) int64 { return 1 << 20 })
	}
	want := "--output " + diff + " requires profiles of a single type, select one with --type: found cpu, wall"
	if _, _, err := execute(t, "compare", dir, dir, "--output", diff); err == nil || exitCode(err) != codeUse || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
	if _, _, err := execute(t, "compare", dir, dir, "--output", diff, "--type", "wall"); err != nil {
		t.Error(err)
	}
}

func TestVerdictErrorNamesTheFirstOfMany(t *testing.T) {
	many := make([]compare.Violation, 34)
	for i := range many {
		many[i] = compare.Violation{Rule: "cpu(*):+10%", Name: fmt.Sprintf("f%d", i+1)}
	}
	var stderr bytes.Buffer
	err := verdictError(compare.Verdict{Broken: many}, &stderr)
	if err == nil || exitCode(err) != codeFound {
		t.Fatalf("%v, want exit code %d", err, codeFound)
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 12 || lines[0] != "gate failed: 34 changes break its rules" || !strings.Contains(lines[10], ": f10 ") || lines[11] != "  and 24 more" {
		t.Errorf("%v", err)
	}
	if err := verdictError(compare.Verdict{}, &stderr); err != nil || stderr.Len() > 0 {
		t.Errorf("of nothing: %v, %s", err, &stderr)
	}
}

// A name or a pattern without files, and a file that is not a profile.
func TestCommandsSayWhichFilesTheyWant(t *testing.T) {
	dir := t.TempDir()
	text, none := filepath.Join(dir, "notes.txt"), filepath.Join(dir, "none")
	if err := os.WriteFile(text, []byte("not a profile\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{"compare", text}, {"leaks"}, {"merge"}} {
		for argument, want := range map[string]string{
			none:                         none + ": no such file or directory: want a profile, a directory",
			filepath.Join(dir, "*.none"): "no file matches " + filepath.Join(dir, "*.none"),
			text:                         "want a profile in pprof's format",
		} {
			args := append([]string{command[0], argument}, command[1:]...)
			if _, _, err := execute(t, args...); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want an error with %q", args, err, want)
			}
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
