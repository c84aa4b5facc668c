package input_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"go.uber.org/goleak"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/input"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)

// encoded returns a compressed profile with one sample of a value.
func encoded(t testing.TB, sampleType string, value int64) []byte {
	t.Helper()
	st := &profile.ValueType{Type: sampleType, Unit: "bytes"}
	f := &profile.Function{ID: 1, Name: "main.f"}
	l := &profile.Location{ID: 1, Line: []profile.Line{{Function: f}}}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{st}, PeriodType: st, TimeNanos: epoch.Add(time.Duration(value)).UnixNano(),
		Function: []*profile.Function{f}, Location: []*profile.Location{l},
		Sample: []*profile.Sample{{Location: []*profile.Location{l}, Value: []int64{value}}},
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// save writes a record as an agent does.
func save(t testing.TB, dir, service string, value int64) {
	t.Helper()
	start := epoch.Add(time.Duration(value) * time.Minute)
	r := record.Record{
		Meta:    record.Meta{Service: service, Type: record.Memory, Start: start, End: start.Add(time.Minute)},
		Profile: encoded(t, "inuse_space", value),
	}
	var b bytes.Buffer
	if err := record.Encode(&b, r); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "profiles", filepath.FromSlash(r.SavedPath())), b.Bytes())
}

// TestWhatIsThereInstead: the errors of queries without results describe what exists.
func TestWhatIsThereInstead(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, "cart", 1)
	save(t, dir, "shop", 2)
	for want, q := range map[string]profiles.Query{
		`service "nobody": found 2 profiles of cart, shop, of the types memory, from 2026-01-02 15:01:00 to 2026-01-02 15:03:00 UTC`: {Service: "nobody"},
		`type wall, label zone="a", to 2026-01-02 15:00:00: found 2 profiles of`: {
			Types: []record.Type{record.Wall}, Labels: map[string]string{"zone": "a"}, To: epoch,
		},
	} {
		if _, err := read(t, dir, input.Options{Query: q}); !errors.Is(err, profiles.ErrNone) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", q, err, want)
		}
	}
	if _, err := read(t, t.TempDir(), input.Options{}); !errors.Is(err, profiles.ErrNone) || !strings.Contains(err.Error(), "no file there is named *.pb.gz, ") {
		t.Errorf("of an empty directory: %v", err)
	}
}

// TestPipe: to open a pipe would wait for its writer.
func TestPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, pipe, input.Options{}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("%v, want that it is not a regular file", err)
	}
}

// values returns the values of all windows, in their order.
func values(windows iter.Seq2[profiles.Window, error]) (values []int64, err error) {
	for w, err := range windows {
		if err != nil {
			return values, err
		}
		values = append(values, w.Profile.Sample[0].Value[0])
	}
	return values, nil
}

// read opens an argument and reads all windows.
func read(t testing.TB, argument string, o input.Options) ([]int64, error) {
	t.Helper()
	windows, err := input.Open(t.Context(), argument, o)
	if err != nil {
		return nil, err
	}
	return values(windows)
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for i := range int64(3) { // the order of the names is opposite to that of time
		write(t, filepath.Join(dir, "foreign", fmt.Sprintf("%d.pb.gz", 9-i)), encoded(t, "inuse_space", i+1))
		save(t, filepath.Join(dir, "saved"), "shop", i+1)
		save(t, filepath.Join(dir, "two"), "shop", i+1)
	}
	save(t, filepath.Join(dir, "two"), "cart", 7)
	write(t, filepath.Join(dir, "one[1].pprof"), encoded(t, "inuse_space", 5))
	write(t, filepath.Join(dir, "one1.pprof"), encoded(t, "inuse_space", 6)) // the pattern one[1].pprof would match it
	for _, tt := range []struct {
		argument string
		query    profiles.Query
		want     string
	}{
		{"foreign", profiles.Query{}, "[1 2 3]"},
		{"foreign/*.pb.gz", profiles.Query{}, "[1 2 3]"},
		{"foreign/[89].pb.gz", profiles.Query{}, "[1 2]"},
		{"foreign/8.pb.gz", profiles.Query{}, "[2]"},
		{"one[1].pprof", profiles.Query{}, "[5]"},
		{"saved", profiles.Query{}, "[1 2 3]"},
		{"saved", profiles.Query{From: epoch.Add(2 * time.Minute), To: epoch.Add(3 * time.Minute)}, "[2]"},
		{"two", profiles.Query{Service: "cart"}, "[7]"},
	} {
		got, err := read(t, filepath.Join(dir, tt.argument), input.Options{Query: tt.query})
		if fmt.Sprint(got) != tt.want || err != nil {
			t.Errorf("%s: %v, %v; want %s", tt.argument, got, err, tt.want)
		}
	}
	for argument, want := range map[string]string{
		"two":         "select one with --service: cart, shop",
		"nowhere":     "no such file",
		"[":           "pattern",
		"none/*.pb":   "no file matches " + filepath.Join(dir, "none/*.pb"),
		"saved/[x]":   "no file matches",
		"saved/../[]": "pattern",
	} {
		if got, err := read(t, filepath.Join(dir, argument), input.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want an error with %q", argument, got, err, want)
		}
	}
	if _, err := read(t, filepath.Join(dir, "saved"), input.Options{Query: profiles.Query{Types: []record.Type{record.Wall}}}); !errors.Is(err, profiles.ErrNone) {
		t.Errorf("no window of that type: %v", err)
	}
}

func TestDamagedFiles(t *testing.T) {
	dir := t.TempDir()
	whole := encoded(t, "inuse_space", 1)
	bad := map[string][]byte{"truncated": whole[:len(whole)/2], "empty": nil, "text": []byte("hello")}
	for name, data := range bad {
		path := filepath.Join(dir, name+".pb.gz")
		write(t, path, data)
		if got, err := read(t, path, input.Options{Damaged: func(profiles.Damaged) {}}); err == nil || !strings.Contains(err.Error(), name) ||
			!strings.Contains(err.Error(), "want a profile in pprof's format") {
			t.Errorf("%s: %v, %v; want an error that names the file, and what one is wanted", name, got, err)
		}
	}
	write(t, filepath.Join(dir, "whole.pb.gz"), whole)
	left := 0
	got, err := read(t, dir, input.Options{Damaged: func(profiles.Damaged) { left++ }})
	if err != nil || len(got) != 1 || left != len(bad) {
		t.Errorf("a directory with them: %v, %d left out, %v", got, left, err)
	}
	if _, err := read(t, dir, input.Options{}); err == nil {
		t.Error("damaged files are passed over in silence")
	}
}

func TestLive(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.String())
		switch r.URL.Path {
		case "/debug/pprof/heap", "/debug/pprof/profile", "/debug/pprof/mutex", "/debug/pprof/threadcreate", "/debug/fgprof":
			_, _ = w.Write(encoded(t, "inuse_space", int64(len(asked))))
		case "/debug/pprof/goroutine":
			_, _ = io.WriteString(w, "<html>")
		default:
			http.Error(w, "no such thing", http.StatusNotFound)
		}
	}))
	defer server.Close()
	for _, tt := range []struct {
		path string
		o    input.Options
		want string
	}{
		{"/debug/pprof/", input.Options{Length: time.Second}, "/debug/pprof/profile?seconds=1"},
		{"/debug/pprof", input.Options{}, "/debug/pprof/profile?seconds=10"},
		{"/debug/pprof/", input.Options{Query: profiles.Query{Types: []record.Type{record.Memory}}}, "/debug/pprof/heap"},
		{"/debug/pprof/mutex?seconds=3&debug=1", input.Options{}, "/debug/pprof/mutex?seconds=3"},
		{"/debug/fgprof", input.Options{Length: time.Second}, "/debug/fgprof?seconds=1"},
		{"/debug/pprof/threadcreate", input.Options{}, "/debug/pprof/threadcreate"},
		{"/debug/pprof/profile?seconds=2", input.Options{Windows: 2}, "/debug/pprof/profile?seconds=2 /debug/pprof/profile?seconds=2"},
	} {
		asked = nil
		got, err := read(t, server.URL+tt.path, tt.o)
		if strings.Join(asked, " ") != tt.want || err != nil || len(got) != len(asked) {
			t.Errorf("%s: asked for %v, got %v, %v; want %s", tt.path, asked, got, err, tt.want)
		}
	}
	for path, want := range map[string]string{
		"/debug/pprof/goroutine":         "not a valid profile",
		"/debug/pprof/trace":             "trace is not a profile",
		"/x/debug/pprof/heap":            `status 404: "no such thing`,
		"/debug/pprof/profile?seconds=x": "seconds=x",
		"/metrics":                       "want http://HOST/debug/pprof/",
	} {
		if got, err := read(t, server.URL+path, input.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want an error with %q", path, got, err, want)
		}
	}
	server.Close()
	if _, err := read(t, server.URL+"/debug/pprof/heap", input.Options{}); err == nil {
		t.Error("nobody listens: no error")
	}
}

func TestNotAPyroscope(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>Hello") }))
	defer server.Close()
	address := strings.Replace(server.URL, "http:", "pyroscope:", 1)
	query := `/?query=process_cpu:cpu:nanoseconds:cpu:nanoseconds{service_name="shop"}`
	for argument, want := range map[string]string{
		address + query:                                      "query of Pyroscope at " + server.URL,
		address + "/?query=cpu":                              "five parts",
		address + `/?query=a:b:c:d:e{x=~"y"}`:                "a label is not like",
		address + `/?query=a:b:c:d:e{x="y",x="z"}`:           "twice",
		address + query + "&from=yesterday":                  "from=yesterday",
		address + query + "&from=now&until=now-1h":           "is empty",
		address + query + "&step=0":                          "step=0",
		address + query + "&from=now-24h&until=now&step=1us": "step=1us",
		"ftp://x/":              "want http://HOST",
		"pyroscope:///?query=x": "no host",
		"http://%zz":            "address",
		"":                      "no profile is named",
	} {
		if got, err := read(t, argument, input.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want an error with %q", argument, got, err, want)
		}
	}
	for want, o := range map[string]input.Options{"-1 windows": {Windows: -1}, "length 1ms": {Length: time.Millisecond}, "step 1ms": {Step: time.Millisecond}} {
		if _, err := read(t, "x", o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
}

func FuzzParseQuery(f *testing.F) {
	for _, q := range []string{`process_cpu:cpu:nanoseconds:cpu:nanoseconds{service_name="shop", region="e\"u"}`, `a:b:c:d:e`, `a:b:c:d:e{}`,
		`a:b:c:d:e{x="y",}`, `a:b:c:d:e{x="`} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, err := input.ParseQuery(text)
		if err != nil {
			return
		}
		again, err := input.ParseQuery(q.Type + q.Selector.String())
		if err != nil || again.Type != q.Type || fmt.Sprint(again.Selector) != fmt.Sprint(q.Selector) {
			t.Fatalf("%q is %+v, which becomes %+v, %v", text, q, again, err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	for _, a := range []string{"nowhere", "[", "http://127.0.0.1:1/debug/pprof/", "pyroscope://127.0.0.1:1/?query=a:b:c:d:e{}&from=now-1h&step=1m",
		"://", "http://[::1"} {
		f.Add(a)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, argument string) {
		if !strings.Contains(argument, "://") {
			argument = filepath.Join(dir, strings.ReplaceAll(argument, "..", "")) // no files but those here: there are none
		}
		// No request is made before the first window is read.
		if windows, err := input.Open(t.Context(), argument, input.Options{}); (windows == nil) == (err == nil) {
			t.Fatalf("windows %v and error %v", windows != nil, err)
		}
	})
}

func TestWork(t *testing.T) {
	status, body := http.StatusOK, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"120.5"]}]}}`
	var asked string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.Path + " " + r.URL.Query().Get("query") + " " + r.URL.Query().Get("time")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	defer server.Close()
	work, err := input.Work(t.Context(), server.URL, "sum(increase(requests_total[$window]))")
	if err != nil {
		t.Fatal(err)
	}
	m := record.Meta{Start: epoch, End: epoch.Add(15 * time.Second)}
	if n, err := work(m); n != 120.5 || err != nil || asked != "/api/v1/query sum(increase(requests_total[15000ms])) 1767366015.000" {
		t.Errorf("%v, %v; asked %s", n, err, asked)
	}
	for _, tt := range []struct {
		status     int
		body, want string
	}{
		{400, `{"status":"error","error":"parse error"}`, `status 400: "parse error"`},
		{200, `<html>`, "no answer of Prometheus"},
		{200, `{"data":{"result":[]}}`, "0 values"},
		{200, `{"data":{"result":[{"value":[1,2]}]}}`, "the value is 2"},
		{200, `{"data":{"result":[{"value":[1,"x"]}]}}`, `the value is "x"`},
	} {
		status, body = tt.status, tt.body
		if n, err := work(m); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v; want an error with %q", tt.body, n, err, tt.want)
		}
	}
	if _, err := work(record.Meta{Start: epoch, End: epoch}); err == nil {
		t.Error("a window without a length has work")
	}
	for want, args := range map[string][2]string{"address of Prometheus": {"nowhere", "x[$window]"}, "want one with [$window]": {server.URL, "x"}} {
		if _, err := input.Work(t.Context(), args[0], args[1]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
}

// TestNoTimeIsNotNamed: of profiles without a time, none is named.
func TestNoTimeIsNotNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cpu.pb")
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "cpu", Unit: "nanoseconds"}}, DurationNanos: 1e9}
	var b bytes.Buffer
	if err := errors.Join(p.WriteUncompressed(&b), os.WriteFile(path, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	_, err := read(t, path, input.Options{Query: profiles.Query{Types: []record.Type{record.Wall}}})
	if err == nil || strings.Contains(err.Error(), "1970") || !strings.HasSuffix(err.Error(), "found 1 profile, of the types cpu") {
		t.Error(err)
	}
}
