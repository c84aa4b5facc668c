//go:build linux

// The tests look for processes in /proc, and only on Linux does a server die with its parent.

package servers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"go.uber.org/goleak"
)

// parentOf, when set, makes the test binary a parent that starts a server in the named directory, prints
// the server's process and then waits to be killed.
const parentOf = "STACK_TEST_PARENT_OF"

func TestMain(m *testing.M) {
	if dir := os.Getenv(parentOf); dir != "" {
		s, err := Start(context.Background(), Options{Servers: []string{Tempo}, DataDir: dir})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(s.Tempo().PID())
		select {}
	}
	goleak.VerifyTestMain(m)
}

// limit is a context that ends a hanging test with a message before the test binary's own limit.
func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// startStack starts the servers and stops them at the test's end.
func startStack(t *testing.T, opts Options) *Stack {
	t.Helper()
	if opts.DataDir == "" {
		opts.DataDir = t.TempDir()
	}
	opts.Progress = t.Output()
	s, err := Start(limit(t), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopStack(t, s) })
	return s
}

func stopStack(t *testing.T, s *Stack) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// client keeps no connection, so that a killed server leaves none behind.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}

// call sends body (or gets, if there is none) and returns the answer's body; any status but 200 is an error.
func call(ctx context.Context, url string, body any) (string, error) {
	method, payload := http.MethodGet, []byte(nil)
	if body != nil {
		var err error
		method = http.MethodPost
		if payload, err = json.Marshal(body); err != nil {
			return "", err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(payload))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, b)
	}
	return string(b), err
}

// eventually asks until the answer contains want.
func eventually(t *testing.T, want string, ask func() (string, error)) {
	t.Helper()
	ctx := limit(t)
	for {
		got, err := ask()
		if err == nil && strings.Contains(got, want) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the answer never contained %q; the last one: %q, %v", want, got, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

type object = map[string]any
type list = []any

// pushProfile sends a CPU profile of one sample, in function leaf of the given span.
func pushProfile(t *testing.T, s *Server, leaf, span string) {
	t.Helper()
	function := &profile.Function{ID: 1, Name: leaf, SystemName: leaf}
	location := &profile.Location{ID: 1, Line: []profile.Line{{Function: function}}}
	unit := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{unit},
		PeriodType: unit,
		Period:     1e7,
		TimeNanos:  time.Now().UnixNano(),
		Function:   []*profile.Function{function},
		Location:   []*profile.Location{location},
		Sample: []*profile.Sample{{
			Location: []*profile.Location{location},
			Value:    []int64{1e9},
			Label:    map[string][]string{"span_id": {span}},
		}},
	}
	var raw bytes.Buffer
	if err := p.Write(&raw); err != nil {
		t.Fatal(err)
	}
	_, err := call(limit(t), s.URL+"/push.v1.PusherService/Push", object{"series": list{object{
		"labels":  list{object{"name": "__name__", "value": "process_cpu"}, object{"name": "service_name", "value": "stack-test"}},
		"samples": list{object{"rawProfile": raw.Bytes()}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
}

// spanProfile asks for the flame graph of one span.
func spanProfile(t *testing.T, s *Server, span string) func() (string, error) {
	return func() (string, error) {
		now := time.Now()
		return call(limit(t), s.URL+"/querier.v1.QuerierService/SelectMergeSpanProfile", object{
			"profileTypeID": "process_cpu:cpu:nanoseconds:cpu:nanoseconds",
			"labelSelector": `{service_name="stack-test"}`,
			"spanSelector":  list{span},
			"start":         now.Add(-10 * time.Minute).UnixMilli(),
			"end":           now.Add(time.Minute).UnixMilli(),
		})
	}
}

// pushTrace sends a trace of one span.
func pushTrace(t *testing.T, s *Server, name string) {
	t.Helper()
	end := time.Now()
	_, err := call(limit(t), "http://"+s.OTLPHTTP+"/v1/traces", object{"resourceSpans": list{object{
		"resource": object{"attributes": list{object{"key": "service.name", "value": object{"stringValue": "stack-test"}}}},
		"scopeSpans": list{object{"spans": list{object{
			"traceId":           fmt.Sprintf("%032x", end.UnixNano()),
			"spanId":            fmt.Sprintf("%016x", end.UnixNano()),
			"name":              name,
			"startTimeUnixNano": strconv.FormatInt(end.Add(-time.Second).UnixNano(), 10),
			"endTimeUnixNano":   strconv.FormatInt(end.UnixNano(), 10),
		}}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
}

// findTrace searches by the root span's name.
func findTrace(t *testing.T, s *Server, name string) func() (string, error) {
	return func() (string, error) {
		now := time.Now()
		return call(limit(t), fmt.Sprintf("%s/api/search?q=%s&start=%d&end=%d", s.URL,
			url.QueryEscape(`{name="`+name+`"}`), now.Add(-10*time.Minute).Unix(), now.Add(time.Minute).Unix()), nil)
	}
}

// running lists the processes that work in dir or below.
func running(t *testing.T, dir string) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil || len(links) == 0 {
		t.Fatalf("cannot list processes: %v", err)
	}
	var found []string
	for _, link := range links {
		// A process that has just ended has no directory any more.
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd, dir+"/") {
			found = append(found, link+" is "+cwd)
		}
	}
	return found
}

func wantNoneRunning(t *testing.T, dir string) {
	t.Helper()
	if found := running(t, dir); len(found) > 0 {
		t.Errorf("left running: %q", found)
	}
}

// Two stacks run at the same time, and what a server has accepted survives every way of ending it.
func TestTwoStacksAtOnce(t *testing.T) {
	for _, name := range []string{"one", "two"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := startStack(t, Options{DataDir: dir})
			p, tempo := s.Pyroscope(), s.Tempo()
			span := fmt.Sprintf("%016x", 0xabc)
			pushProfile(t, p, "main."+name, span)
			pushTrace(t, tempo, name)
			eventually(t, "main."+name, spanProfile(t, p, span))
			eventually(t, `"rootTraceName":"`+name+`"`, findTrace(t, tempo, name))
			if got, err := spanProfile(t, p, "00000000000000ff")(); err != nil || strings.Contains(got, "main.") {
				t.Errorf("another span has a flame graph: %s, %v", got, err)
			}

			for _, server := range s.Servers() {
				wantPauses(t, server)
				if err := server.Kill(); err != nil {
					t.Fatal(err)
				}
				if err := server.Err(); err == nil || !strings.Contains(err.Error(), server.Name+" ended: signal: killed") {
					t.Errorf("after a kill: %v", err)
				}
				if err := server.Pause(); err == nil {
					t.Errorf("%s could be paused although it was killed", server.Name)
				}
				url, otlp := server.URL, server.OTLPHTTP
				if err := server.Restart(limit(t)); err != nil {
					t.Fatal(err)
				}
				if url != server.URL || otlp != server.OTLPHTTP {
					t.Errorf("%s moved from %s to %s", server.Name, url, server.URL)
				}
			}
			eventually(t, "main."+name, spanProfile(t, p, span))
			eventually(t, `"rootTraceName":"`+name+`"`, findTrace(t, tempo, name))

			stopStack(t, s)
			stopStack(t, s)
			wantNoneRunning(t, dir)
			if err := tempo.Restart(limit(t)); err == nil {
				t.Error("a server of a stopped stack could be started")
			}

			// Other ports than before do not hurt: the data are not tied to them.
			again := startStack(t, Options{DataDir: dir})
			eventually(t, "main."+name, spanProfile(t, again.Pyroscope(), span))
			eventually(t, `"rootTraceName":"`+name+`"`, findTrace(t, again.Tempo(), name))
		})
	}
}

// wantPauses checks that a paused server accepts a connection but answers only after it is resumed.
func wantPauses(t *testing.T, s *Server) {
	t.Helper()
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := call(context.Background(), s.URL+"/ready", nil)
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("paused %s answered: %v", s.Name, err)
	case <-time.After(300 * time.Millisecond): // Longer only makes the check stricter.
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Errorf("resumed %s: %v", s.Name, err)
	}
}

func TestFirstStorageKeepsDataOverAnOrderlyRestart(t *testing.T) {
	s := startStack(t, Options{Servers: []string{PyroscopeV1}})
	p := s.Pyroscope()
	pushProfile(t, p, "main.old", "0000000000000abc")
	eventually(t, "main.old", spanProfile(t, p, "0000000000000abc"))
	if err := p.Restart(limit(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "main.old", spanProfile(t, p, "0000000000000abc"))
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().(*net.TCPAddr).Port
	dir := t.TempDir()
	_, err = Start(limit(t), Options{DataDir: dir, Ports: map[string]int{PortOTLPHTTP: taken}})
	for _, want := range []string{"tempo cannot listen on port " + strconv.Itoa(taken), "--otlp-http-port", "address already in use"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	wantNoneRunning(t, dir)
}

func TestWrongOptions(t *testing.T) {
	for want, opts := range map[string]Options{
		`unknown server "zipkin"`:         {Servers: []string{"zipkin"}},
		`server "tempo" is given twice`:   {Servers: []string{Tempo, Tempo}},
		`"collector" sends to "loki"`:     {Servers: []string{Pyroscope, Collector, Tempo, Jaeger, Alertmanager, Prometheus}},
		`unknown port "grafana"`:          {Ports: map[string]int{"grafana": 3000}},
		"port tempo is 65536: allowed is": {Ports: map[string]int{PortTempo: 65536}},
		"port tempo is -1: allowed is":    {Ports: map[string]int{PortTempo: -1}},
		"choose another port with":        {Ports: map[string]int{PortTempo: 43210, PortOTLPGRPC: 43210}},
	} {
		opts.DataDir = t.TempDir()
		if _, err := Start(t.Context(), opts); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestFailingServerShowsItsLog(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, Tempo), 0o755); err != nil {
		t.Fatal(err)
	}
	// A file in the place of a directory is a fault that only the server itself finds.
	if err := os.WriteFile(filepath.Join(dir, Tempo, "wal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Start(limit(t), Options{DataDir: dir})
	for _, want := range []string{"tempo ended: exit status 1", "server.log:\n", "mkdir wal: not a directory"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
	wantNoneRunning(t, dir)
}

// neverReady is Tempo with a path that it does not know.
func neverReady(t *testing.T) []definition {
	defs, err := lookup([]string{Tempo})
	if err != nil {
		t.Fatal(err)
	}
	defs[0].ready = "/never"
	return defs
}

func TestStartIsCancelled(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(limit(t))
	go func() {
		defer cancel()
		for ctx.Err() == nil && len(running(t, dir)) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}()
	_, err := start(ctx, neverReady(t), Options{DataDir: dir})
	if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "last lines") {
		t.Errorf("got %v, want only that it was cancelled", err)
	}
	wantNoneRunning(t, dir)
	startStack(t, Options{DataDir: dir, Servers: []string{Tempo}}) // The directory is free again.
}

func TestStartPastItsDeadlineShowsTheLog(t *testing.T) {
	dir := t.TempDir()
	if _, err := Build(limit(t), Tempo, BuildOptions{}); err != nil { // so that the time is the server's
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := start(ctx, neverReady(t), Options{DataDir: dir})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "last lines") {
		t.Errorf("got %v, want the deadline and the log", err)
	}
	wantNoneRunning(t, dir)
}

func TestLostRaceForAFreePort(t *testing.T) {
	defs, err := lookup([]string{Tempo})
	if err != nil {
		t.Fatal(err)
	}
	found, err := reserve(defs, nil)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := Build(limit(t), Tempo, BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Someone takes the port between the choice and the start.
	l, err := net.Listen("tcp4", net.JoinHostPort(loopback, strconv.Itoa(found[Tempo][PortTempo])))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &Server{Name: Tempo, DataDir: dir, deploy: filepath.Join(root, "deploy"), LogFile: filepath.Join(dir, "server.log"), def: defs[0], binary: binary}
	if err := s.start(limit(t), maps.Clone(found[Tempo])); err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	if s.URL == "http://"+l.Addr().String() {
		t.Errorf("the server claims the port %s that another listener has", s.URL)
	}
}

func TestDataDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	s := startStack(t, Options{DataDir: dir, Servers: []string{Tempo}})
	if _, err := Start(limit(t), Options{DataDir: dir}); err == nil || !strings.Contains(err.Error(), "another stack is running in "+dir) {
		t.Errorf("a second stack in one directory: %v", err)
	}

	// The same stack serves for what happens when a server ends by itself.
	waited := make(chan error, 1)
	go func() { waited <- s.Wait(limit(t)) }()
	if err := s.Tempo().Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err == nil || !strings.Contains(err.Error(), "tempo ended: signal: killed") {
		t.Errorf("Wait did not report the end of a server: %v", err)
	}
	if s.Pyroscope() != nil {
		t.Error("the stack claims to have a Pyroscope")
	}
}

func TestStopPastItsDeadlineKills(t *testing.T) {
	dir := t.TempDir()
	s, err := Start(limit(t), Options{DataDir: dir, Servers: []string{Tempo}})
	if err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Stop(over); err == nil || !strings.Contains(err.Error(), "stop tempo: it did not end normally, so it was killed") {
		t.Errorf("stopped without time: %v", err)
	}
	wantNoneRunning(t, dir)
}

func TestServersDieWithAKilledParent(t *testing.T) {
	dir := t.TempDir()
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentOf+"="+dir)
	parent.Stderr = t.Output()
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	if n := len(running(t, dir)); n != 1 {
		t.Errorf("%d servers run, want one (the parent said %q, %v)", n, line, readErr)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	parent.Wait() // Its error is the kill.
	eventually(t, "none", func() (string, error) {
		if found := running(t, dir); len(found) > 0 {
			return strings.Join(found, "\n"), nil
		}
		return "none", nil
	})
}
