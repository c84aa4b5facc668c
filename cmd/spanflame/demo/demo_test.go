package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"spanflame/workload/load"
	"spanflame/workload/processes"
	"spanflame/workload/processes/processestest"
)

// binary is the spanflame program.
var binary string

func TestMain(m *testing.M) { processestest.Main(m, &binary, processes.Build) }

// screen collects the output for the user. It may be read while it is written.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// await waits until the screen has a match, and returns its groups.
func (s *screen) await(t *testing.T, pattern string, ended <-chan error) []string {
	t.Helper()
	for {
		if found := regexp.MustCompile(pattern).FindStringSubmatch(s.String()); found != nil {
			return found
		}
		select {
		case err := <-ended:
			t.Fatalf("the demo ended with %v and no %s:\n%s", err, pattern, s)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// options returns options for a short demo under a load that the lock-convoy cannot keep up with: it holds its lock
// for more than 40 ms, 30 times a second.
func options(t *testing.T, s *screen) Options {
	return Options{
		Binary: binary, Dir: t.TempDir(), Listen: "127.0.0.1:0", Rate: 40, Duration: 4 * window, Out: s, Progress: s,
	}
}

// start runs the demo in the background.
func start(ctx context.Context, o Options) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o) }()
	return ended
}

// page returns the page of a link that the demo printed.
func page(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s: status %d: %s", url, resp.StatusCode, b)
	}
	return string(b)
}

// gone checks that nothing listens on the addresses that the screen shows.
func gone(t *testing.T, s *screen) {
	t.Helper()
	found := regexp.MustCompile(`http://(127\.0\.0\.1:\d+)`).FindAllStringSubmatch(s.String(), -1)
	if len(found) < 3 {
		t.Errorf("%d addresses, want those of both services and of the pages:\n%s", len(found), s)
	}
	for _, address := range found {
		conn, err := net.Dial("tcp", address[1])
		if err == nil {
			conn.Close()
			t.Errorf("somebody listens at %s after the end", address[0])
		}
	}
}

// TestDemo checks a whole run: the summary, and the pages until the end.
func TestDemo(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var s screen
	ended := start(ctx, options(t, &s))

	s.await(t, `until Ctrl-C`, ended)
	// Where the time went depends on the machine: without a free CPU, other requests are slow.
	slowest := s.await(t, `The slowest trace\n  \d+ ms [A-Z]+ /\S+: \d+ ms \(\d+ %\) .+\n  (http://\S+)\n`, closed)
	page(t, slowest[1])
	leak := s.await(t, `The leak\n  (\S+) holds (\d+) MiB more after (\S+): (\d+) → .* → (\d+) MiB\n  (http://\S+)\n`, closed)
	if leak[1] != "workload.(*leak).grow" || leak[2] == "0" {
		t.Errorf("the leak is %q, want workload.(*leak).grow", leak[0])
	}
	page(t, leak[6])
	for _, row := range []string{
		`on the CPU in workload\.compileTariff +\d+\.\d+ s/s +none`,
		`waiting for the lock in workload\.\(\*Service\)\.settleHoldingTill +\d+\.\d+ s/s +none`,
		`POST /api/checkout\?items=1, median +\d+ ms +\d+ ms`,
	} {
		s.await(t, row, closed)
	}
	byName := s.await(t, `slow-pricing: all spans pricing of the storefront\n  (http://\S+)\n`, closed)
	if got := page(t, byName[1]); !strings.Contains(got, "workload.compileTariff") {
		t.Errorf("%s does not show who makes the spans slow", byName[1])
	}
	file := s.await(t, `go tool pprof -top -unit=ms -relative_percentages -tagfocus=(span_id=[0-9a-f]{16}) (\S+)`, closed)
	out, err := exec.Command("go", "tool", "pprof", "-top", "-relative_percentages", "-tagfocus="+file[1], file[2]).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("spanflame/workload.")) {
		t.Errorf("%s: %v\n%s", file[0], err, out)
	}

	interrupt()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	gone(t, &s)
}

// closed returns a channel for a demo that need not be waited for.
var closed = func() <-chan error {
	c := make(chan error)
	close(c)
	return c
}()

// TestExit checks that the demo ends after the summary.
func TestExit(t *testing.T) {
	var s screen
	o := options(t, &s)
	o.Exit = true
	if err := Run(t.Context(), o); err != nil {
		t.Fatalf("Run: %v\n%s", err, &s)
	}
	if !strings.Contains(s.String(), "Before and after the repair") {
		t.Errorf("no summary:\n%s", &s)
	}
	gone(t, &s)
}

// TestChosenFaults checks that the demo shows the faults that were chosen, with the requests that they need: a wait for
// another request, and a leak, which takes the place of the demo's own.
func TestChosenFaults(t *testing.T) {
	var s screen
	o := options(t, &s)
	o.Exit = true
	o.Faults = []string{"report-lock?report_ms=400", "session-map?session_kb=1024", "inventory/slow-packing?articles=10"}
	if err := Run(t.Context(), o); err != nil {
		t.Fatalf("Run: %v\n%s", err, &s)
	}
	for _, want := range []string{
		`with faults \(report-lock in the storefront, session-map in the storefront, slow-packing in the inventory\); 65 requests/s`,
		`The leak\n  workload\.newSession holds \d+ MiB more`,
		`GET /api/prices, median +\d+ ms +\d+ ms`,
		`in slow requests, in workload\.\(\*priceBook\)\.reportHoldingLock +\d+\.\d+ s/s +none`,
		`on the CPU in workload\.packEveryWay +\d+\.\d+ s/s +none`,
		`slow-packing: all spans POST /api/pack of the inventory`,
	} {
		s.await(t, want, closed)
	}
	gone(t, &s)
}

// TestInterrupted checks the first link during the load, and Ctrl-C after it. While the demo runs, no other demo
// can use its directory.
func TestInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var s, other screen
	o := options(t, &s)
	o.Duration = time.Hour
	ended := start(ctx, o)
	link := s.await(t, `A slow trace.*\n  \d+ ms [A-Z]+ /\S+: \d+ ms \(\d+ %\) .+\n  (http://\S+/trace/([0-9a-f]{32})\S*)\n`, ended)
	if body := page(t, link[1]); !strings.Contains(body, link[2]) {
		t.Errorf("the page %s does not show its trace:\n%.2000s", link[1], body)
	}

	second := o
	second.Out, second.Progress = &other, &other
	if err := Run(t.Context(), second); err == nil || !strings.Contains(err.Error(), o.Dir+" is in use by another demo") {
		t.Errorf("a second demo in the directory: %v, want an error that names it", err)
	}

	interrupt()
	if err := <-ended; !errors.Is(err, ErrInterrupted) {
		t.Errorf("Run: %v, want ErrInterrupted", err)
	}
	gone(t, &s)
	if release, err := takeDirectory(o.Dir); err != nil {
		t.Errorf("the directory after the end: %v", err)
	} else if err := release(); err != nil {
		t.Error(err)
	}
}

// TestAServiceThatDies checks that the demo ends with the last lines of a service that died, and does not measure
// on.
func TestAServiceThatDies(t *testing.T) {
	var s screen
	o := options(t, &s)
	o.Duration = time.Hour
	ended := start(t.Context(), o)
	s.await(t, `A slow trace`, ended)
	pids, err := exec.Command("pgrep", "-f", "^"+regexp.QuoteMeta(o.Binary)+" workload --role inventory").Output()
	if err != nil {
		t.Fatalf("pgrep: %v", err)
	}
	if out, err := exec.Command("kill", "-KILL", strings.TrimSpace(string(pids))).CombinedOutput(); err != nil {
		t.Fatalf("kill: %v\n%s", err, out)
	}
	err = <-ended
	if err == nil || !strings.Contains(err.Error(), "the inventory ended unexpectedly") || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("Run: %v, want how the inventory ended", err)
	}
	gone(t, &s)
}

func TestWrongOptions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for want, change := range map[string]func(*Options){
		"duration 1s: must be 8s or more":           func(o *Options) { o.Duration = time.Second },
		"choose another with --dir":                 func(o *Options) { o.Dir = filepath.Join(file, "demo") },
		`backend "cloud": must be "local", "stack"`: func(o *Options) { o.Backend = "cloud" },
		busy.Addr().String() + ": ":                 func(o *Options) { o.Listen = busy.Addr().String() },
		"choose another with --listen":              func(o *Options) { o.Listen = "nowhere" },
		"PYROSCOPE_SERVER_ADDRESS is not set":       func(o *Options) { o.Backend = Remote },
		"SPANFLAME_TEMPO_ADDRESS is not set": func(o *Options) {
			o.Backend, o.Environ = Remote, []string{"PYROSCOPE_SERVER_ADDRESS=http://127.0.0.1:1"}
		},
		"OTEL_EXPORTER_OTLP_ENDPOINT is not set": func(o *Options) { o.Environ = remote("http://127.0.0.1:1") },
		`Tempo's address "ftp://nowhere"`: func(o *Options) {
			o.Environ = append(remote("ftp://nowhere"), "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1")
		},
		`fault "tea": must be one of inventory/`:       func(o *Options) { o.Faults = []string{"tea"} },
		"rate -1: must be above 0":                     func(o *Options) { o.Rate = -1 },
		filepath.Join("none", "spanflame") + ": no su": func(o *Options) { o.Binary = filepath.Join(o.Dir, "none", "spanflame") },
	} {
		var s screen
		o := options(t, &s)
		change(&o)
		if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run: %v, want an error with %q", err, want)
		}
	}
}

// remote returns an environment that names both servers.
func remote(tempo string) []string {
	return []string{"PYROSCOPE_SERVER_ADDRESS=http://127.0.0.1:1", "SPANFLAME_TEMPO_ADDRESS=" + tempo}
}

func TestTheDefaultAddressIsInUse(t *testing.T) {
	if other, err := net.Listen("tcp", defaultListen); err == nil {
		defer other.Close()
	} // otherwise it is already in use
	var s screen
	d := &demo{console: console{out: &s, progress: &s}}
	ln, err := d.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if ln.Addr().String() == defaultListen || !strings.Contains(s.String(), defaultListen+" is in use") {
		t.Errorf("the pages are at %s, and the user is told %q", ln.Addr(), &s)
	}
}

func TestConsole(t *testing.T) {
	var s screen
	c := &console{out: &s, progress: &s, terminal: true}
	fmt.Fprint(c, "\r\x1b[K 1 s of 2 s")
	c.findf("found")
	fmt.Fprint(c, "\r\x1b[K 2 s of 2 s")
	fmt.Fprint(c, "logged\n")
	c.findf("found")
	fmt.Fprint(c, "\r\x1b[K 2 s of 2 s")
	c.endLine()
	c.endLine()
	if got, want := s.String(), "\r\x1b[K 1 s of 2 s\r\x1b[Kfound\n"+
		"\r\x1b[K 2 s of 2 s\r\x1b[Klogged\nfound\n\r\x1b[K 2 s of 2 s\n"; got != want {
		t.Errorf("on a terminal: %q, want %q", got, want)
	}
}

// TestAForeignDirectory checks that the demo removes no files other than a demo's, whatever their names, and
// removes nothing before it listens on the address of the pages.
func TestAForeignDirectory(t *testing.T) {
	var s screen
	o := options(t, &s)
	o.Dir = t.TempDir()
	mine := filepath.Join(o.Dir, "saved", "mine.txt")
	if err := errors.Join(os.Mkdir(filepath.Dir(mine), 0o755), os.WriteFile(mine, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, listen := range []string{o.Listen, "nowhere"} {
		o.Listen = listen
		if err := Run(t.Context(), o); err == nil {
			t.Errorf("listening on %q: no error", listen)
		}
		if _, err := os.Stat(mine); err != nil {
			t.Errorf("listening on %q: %v", listen, err)
		}
	}
	own := filepath.Join(t.TempDir(), "own")
	release, err := takeDirectory(own)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(release(), os.WriteFile(filepath.Join(own, "workload"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if release, err = takeDirectory(own); err != nil {
		t.Errorf("a directory that a demo has made: %v", err)
	} else if err := release(); err != nil {
		t.Error(err)
	}
}

// The progress of the load needs no explanation, and never exceeds its duration.
func TestProgressOfTheLoad(t *testing.T) {
	for want, s := range map[string]load.Snapshot{
		"  5 s of 14 s: 130 of 420 requests sent, 7 in flight, 1 failed\n": {
			Elapsed: 5 * time.Second, Due: 420, Sent: 130, InFlight: 7, Failed: 1},
		" 10 s of 14 s: 200 of 420 requests sent, 64 in flight, 0 failed, 20 shed because 64 were in flight\n": {
			Elapsed: 10 * time.Second, Due: 420, Sent: 200, InFlight: 64, Shed: 20},
		"14 s are over: waiting for the answers to 42 requests; 0 failed, 20 shed because 64 were in flight\n": {
			Elapsed: 15 * time.Second, Due: 420, Sent: 400, InFlight: 42, Shed: 20},
	} {
		s.Duration = 14 * time.Second
		var lines, terminal bytes.Buffer
		(&console{progress: &lines}).load(s)
		(&console{progress: &terminal, terminal: true}).load(s)
		if got := lines.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if got := terminal.String(); got != clearLine+strings.TrimSuffix(want, "\n") {
			t.Errorf("on a terminal: %q", got)
		}
	}
}
