package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
)

var mergeStart = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// saveWindow saves a window of a minute in which main.burn ran for 1 s, a part of it for a span.
func saveWindow(t *testing.T, dir, service string, typ record.Type, minute int) string {
	t.Helper()
	return saveUnit(t, dir, service, typ, minute, "nanoseconds")
}

// saveUnit is saveWindow with another unit of its values.
func saveUnit(t *testing.T, dir, service string, typ record.Type, minute int, unit string) string {
	t.Helper()
	start := mergeStart.Add(time.Duration(minute) * time.Minute)
	fn := &profile.Function{ID: 1, Name: "main.burn", SystemName: "main.burn", Filename: "main.go", StartLine: 5}
	caller := &profile.Function{ID: 2, Name: "main.main", SystemName: "main.main", Filename: "main.go", StartLine: 1}
	at := []*profile.Location{
		{ID: 1, Line: []profile.Line{{Function: fn, Line: 7}}}, {ID: 2, Line: []profile.Line{{Function: caller, Line: 2}}},
	}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: unit}},
		PeriodType: &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}, Period: 1e7,
		TimeNanos: start.UnixNano(), DurationNanos: int64(time.Minute),
		Function: []*profile.Function{fn, caller}, Location: at,
		Sample: []*profile.Sample{
			{Location: at, Value: []int64{60, 6e8}},
			{Location: at, Value: []int64{40, 4e8}, Label: map[string][]string{"span_id": {"00000000000000aa"}}},
		},
	}
	if typ != record.CPU {
		p.SampleType[1] = &profile.ValueType{Type: string(typ), Unit: unit}
	}
	var zipped, file bytes.Buffer
	if err := p.Write(&zipped); err != nil {
		t.Fatal(err)
	}
	m := record.Meta{Service: service, Type: typ, Start: start, End: start.Add(time.Minute)}
	if err := record.Encode(&file, record.Record{Meta: m, Profile: zipped.Bytes()}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "profiles", filepath.FromSlash(m.SavedPath()))
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, file.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}

// merge runs the command and returns what it wrote.
func merge(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := newMergeCommand()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

func TestMergeCommand(t *testing.T) {
	dir, output := t.TempDir(), filepath.Join(t.TempDir(), "out.pb.gz")
	first := saveWindow(t, dir, "shop", record.CPU, 0)
	saveWindow(t, dir, "shop", record.CPU, 1)
	saveWindow(t, dir, "shop", record.CPU, 2)
	saveWindow(t, dir, "shop", record.Wall, 2)
	saveWindow(t, dir, "till", record.CPU, 2)
	for name, tt := range map[string]struct {
		args    []string
		windows int64
	}{
		"a type":             {[]string{"--type", "cpu", "--service", "shop", dir}, 3},
		"a service":          {[]string{"--type", "cpu", "--service", "till", dir}, 1},
		"a time":             {[]string{"--type", "cpu", "--service", "shop", "--from", "2026-01-02T12:01:00Z", "--to", "2026-01-02T12:02:00Z", dir}, 1},
		"a file":             {[]string{first}, 1},
		"any directory":      {[]string{filepath.Dir(first), "--type=cpu"}, 3},
		"a pattern":          {[]string{filepath.Join(filepath.Dir(first), "*.pb.gz"), "--type=cpu"}, 3},
		"a type and service": {[]string{"--type", "wall", dir}, 1},
	} {
		_, stderr, err := merge(t, append(tt.args, "--output", output)...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		w, err := profiles.ReadFile(output)
		if err != nil {
			t.Fatal(err)
		}
		if n := w.Profile.Sample[0].Value[0] / 60; n != tt.windows || len(w.Profile.Sample) != 2 {
			t.Errorf("%s: %d windows are merged, want %d: %s", name, n, tt.windows, stderr)
		}
	}
	// Of several services each is merged, and then the results, which say no service any more.
	var parts []string
	for _, service := range []string{"shop", "till"} {
		parts = append(parts, filepath.Join(t.TempDir(), service+".pb.gz"))
		if _, _, err := merge(t, "--type", "cpu", "--service", service, "--output", parts[len(parts)-1], dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := merge(t, append(parts, "--output", output)...); err != nil {
		t.Errorf("what was merged: %v", err)
	}
	if w, err := profiles.ReadFile(output); err != nil || w.Profile.Sample[0].Value[0] != 4*60 {
		t.Errorf("what was merged: %v, %v", w.Profile, err)
	}
	stdout, _, err := merge(t, "--output", "-", first)
	if p, parseErr := profiles.Parse(strings.NewReader(stdout)); err != nil || parseErr != nil || len(p.Sample) != 2 {
		t.Errorf("to standard output: %v, %v", err, parseErr)
	}
}

func TestMergeCommandLeavesOutWhatIsDamaged(t *testing.T) {
	dir, output := t.TempDir(), filepath.Join(t.TempDir(), "out.pb.gz")
	broken := saveWindow(t, dir, "shop", record.CPU, 0)
	head, tail := saveWindow(t, dir, "shop", record.CPU, 1), saveWindow(t, dir, "shop", record.CPU, 2)
	saveWindow(t, dir, "shop", record.CPU, 3)
	for path, n := range map[string]int64{broken: 0, head: 50, tail: 400} {
		if err := os.Truncate(path, n); err != nil {
			t.Fatal(err)
		}
	}
	_, stderr, err := merge(t, "--output", output, dir)
	if err != nil || !strings.Contains(stderr, "1 profile merged, 3 left out") ||
		!strings.Contains(stderr, broken) || !strings.Contains(stderr, head) || !strings.Contains(stderr, tail) {
		t.Errorf("%v\n%s", err, stderr)
	}
}

func TestMergeCommandSaysWhatIsWrong(t *testing.T) {
	dir, empty := t.TempDir(), t.TempDir()
	saveWindow(t, dir, "shop", record.CPU, 0)
	saveWindow(t, dir, "shop", record.Wall, 0)
	two := t.TempDir()
	saveWindow(t, two, "till", record.CPU, 0)
	saveWindow(t, two, "shop", record.CPU, 0)
	kinds := t.TempDir() // of one type by their metadata, and yet of two
	saveWindow(t, kinds, "shop", record.CPU, 0)
	second := saveUnit(t, kinds, "shop", record.CPU, 1, "microseconds")
	for want, args := range map[string][]string{
		"select one with --type: cpu (1), wall (1)":                                                         {dir},
		"profiles of several services, select one with --service: shop, till":                               {two},
		second + ": profiles of different kinds do not add up: it measures samples/count, cpu/microseconds": {kinds},
		`profile type "heap"`:                {"--type", "heap", dir},
		"no profile matches type tea: found": {"--type", "tea", dir},
		"--pgo accepts only CPU profiles":    {"--pgo", "--type", "wall", dir},
		`--from: time "noon"`:                {"--from", "noon", dir},
		`--to: time "noon"`:                  {"--to", "noon", dir},
		"--from 1h is not before --to 2h":    {"--from", "1h", "--to", "2h", dir},
		"no profile matches":                 {"--type", "cpu", "--service", "nobody", dir},
		empty + ": no profile matches":       {empty},
		`--label "x": want name=value`:       {"--label", "x", dir},
		"no profile matches type memory, from 2026-01-02 12:00:00: found 2 profiles of shop, of the types cpu, wall, " +
			"from 2026-01-02 12:00:00 to 2026-01-02 12:01:00 UTC": {"--type", "memory", "--from", "2026-01-02T12:00:00Z", dir},
		"no such file": {filepath.Join(empty, "none")},
		"write " + filepath.Join(empty, "none", "x") + ": open": {"--type", "cpu", "--output", filepath.Join(empty, "none", "x"), dir},
	} {
		if _, _, err := merge(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", args, err, want)
		}
	}
	if left, err := os.ReadDir(empty); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A failure while writing leaves the old file, and no other files.
func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "default.pgo")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := replaceFile(path, func(w io.Writer) error { return fs.ErrClosed })
	b, readErr := os.ReadFile(path)
	if !errors.Is(err, fs.ErrClosed) || readErr != nil || string(b) != "old" {
		t.Errorf("%v; now %q, %v", err, b, readErr)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
	if err := replaceFile(dir, func(io.Writer) error { return nil }); err == nil || !strings.Contains(err.Error(), "is not replaced") {
		t.Errorf("what is no file was written: %v", err)
	}
}

// The compiler's own reader takes the result.
func TestMergeCommandForPGO(t *testing.T) {
	dir := t.TempDir()
	saveWindow(t, dir, "shop", record.CPU, 0)
	saveWindow(t, dir, "shop", record.Wall, 0)
	output := filepath.Join(dir, "default.pgo")
	if _, _, err := merge(t, "--pgo", "--output", output, dir); err != nil {
		t.Fatal(err)
	}
	w, err := profiles.ReadFile(output)
	if err != nil || len(w.Profile.Sample) != 1 || w.Profile.Sample[0].Label != nil {
		t.Errorf("want one sample without labels: %v, %v", w.Profile, err)
	}
	read := filepath.Join(dir, "read")
	if out, err := exec.Command("go", "tool", "preprofile", "-i", output, "-o", read).CombinedOutput(); err != nil {
		t.Fatalf("go tool preprofile: %v\n%s", err, out)
	}
	edges, err := os.ReadFile(read)
	if want := "main.main\nmain.burn\n1 100\n"; err != nil || !strings.Contains(string(edges), want) {
		t.Errorf("got %q, %v; want %q", edges, err, want)
	}
}

// What the compiler rejects is not written: each case is also refused by its own reader.
func TestMergeCommandRefusesWhatTheCompilerDoes(t *testing.T) {
	for want, spoil := range map[string]func(*profile.Profile){
		"no function has a start line": func(p *profile.Profile) {
			for _, f := range p.Function {
				f.StartLine = 0
			}
		},
		"it has events/count, cpu/seconds": func(p *profile.Profile) {
			p.SampleType[0].Type, p.SampleType[1].Unit = "events", "seconds"
		},
	} {
		dir := t.TempDir()
		w, err := profiles.ReadFile(saveWindow(t, dir, "shop", record.CPU, 0))
		if err != nil {
			t.Fatal(err)
		}
		spoil(w.Profile)
		var b bytes.Buffer
		input, output := filepath.Join(dir, "in.pb.gz"), filepath.Join(dir, "default.pgo")
		if err := errors.Join(w.Profile.Write(&b), os.WriteFile(input, b.Bytes(), 0o600)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("go", "tool", "preprofile", "-i", input, "-o", output).CombinedOutput(); err == nil {
			t.Errorf("%s: the compiler's reader accepts it: %s", want, out)
		}
		if _, _, err := merge(t, "--pgo", "--output", output, input); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
		if _, err := os.Stat(output); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a profile was written: %v", want, err)
		}
	}
}
