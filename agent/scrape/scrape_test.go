package scrape

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/klauspost/compress/gzip"
	"go.uber.org/goleak"

	"spanflame/agent"
	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience limits every wait. It is long because machines are slow at times; a passing test does not need it.
const patience = time.Minute

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// config saves what is scraped in a directory of the test.
func config(t *testing.T) Config {
	t.Helper()
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "OTEL_") || strings.HasPrefix(name, "PYROSCOPE_") || strings.HasPrefix(name, "SPANFLAME_") {
			t.Setenv(name, "")
		}
	}
	return Config{Agent: agent.Config{
		ServiceName: "scraper", Dir: t.TempDir(), Window: time.Second, AdminAddress: off, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
}

func start(t *testing.T, cfg Config) *Scraper {
	t.Helper()
	s, err := Start(cfg)
	must(t, err)
	return s
}

func shutdown(t *testing.T, s *Scraper) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not reached after %v", what, patience)
		}
	}
}

// savedRecords returns what is saved in a directory, by time.
func savedRecords(t *testing.T, dir string) (all []record.Record) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".pb.gz") {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		r, err := record.Decode(f, maxProfile)
		all = append(all, r)
		return err
	}))
	slices.SortFunc(all, func(a, b record.Record) int { return a.Start.Compare(b.Start) })
	return all
}

// stock is a real service with nothing but net/http/pprof. The scraper reads it through a proxy that keeps what it served.
type stock struct {
	t       *testing.T
	program string
	address string
	proxy   *httptest.Server

	mu      sync.Mutex
	process *exec.Cmd
	run     int
	served  map[string][][]*profile.Profile // by name and run
}

func newStock(t *testing.T) *stock {
	t.Helper()
	s := &stock{t: t, program: filepath.Join(t.TempDir(), "service"), served: map[string][][]*profile.Profile{}, run: -1}
	if out, err := exec.Command("go", "build", "-o", s.program, "./testdata/service").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s.address = l.Addr().String()
	must(t, l.Close())
	to := &url.URL{Scheme: "http", Host: s.address}
	proxy := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ModifyResponse: s.keep,
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, 0),
		Transport:      &http.Transport{DisableKeepAlives: true},
	}
	s.proxy = httptest.NewServer(proxy)
	t.Cleanup(s.proxy.Close)
	t.Cleanup(s.kill)
	return s
}

func (s *stock) keep(resp *http.Response) error {
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	resp.Body = io.NopCloser(bytes.NewReader(b))
	p, err := profile.ParseData(b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := filepath.Base(resp.Request.URL.Path)
	for len(s.served[name]) <= s.run {
		s.served[name] = append(s.served[name], nil)
	}
	s.served[name][s.run] = append(s.served[name][s.run], p)
	return nil
}

func (s *stock) start() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = exec.Command(s.program, s.address)
	must(s.t, s.process.Start())
	s.run++
}

// kill ends the service as a crash does.
func (s *stock) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		_ = s.process.Process.Kill()
		_ = s.process.Wait()
		s.process = nil
	}
}

// count returns how often a profile of the current run was read.
func (s *stock) count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.served[name]) <= s.run {
		return 0
	}
	return len(s.served[name][s.run])
}

// add adds the cumulative values of a profile, times a factor, by stack.
func add(sums map[string]int64, p *profile.Profile, factor int64) {
	for _, s := range p.Sample {
		key := fmt.Sprint(s.NumLabel["bytes"])
		for _, l := range s.Location {
			for _, x := range l.Line {
				key += fmt.Sprintf(" %s:%d", x.Function.Name, x.Line)
			}
		}
		for i, st := range p.SampleType {
			if !strings.HasPrefix(st.Type, "inuse") {
				sums[st.Type+key] += factor * s.Value[i]
			}
		}
	}
	maps.DeleteFunc(sums, func(_ string, v int64) bool { return v == 0 })
}

// TestAStockService: the differences of a real service's profiles are, to the unit, what it served itself, before it is
// killed and after it is restarted. Their windows follow each other.
func TestAStockService(t *testing.T) {
	service := newStock(t)
	service.start()
	cfg := config(t)
	cfg.Targets = []Target{{URL: service.proxy.URL, Service: "stock", Labels: map[string]string{"region": "eu"}}}
	s := start(t, cfg)
	read := func() {
		t.Helper()
		for _, name := range []string{"heap", "mutex", "block", "goroutine", "profile"} {
			eventually(t, name, func() bool { return service.count(name) >= 3 })
		}
	}
	read()
	service.kill()
	eventually(t, "a failure", func() bool { return len(s.problems()) > 0 })
	service.start()
	read()
	eventually(t, "no failure", func() bool { return len(s.problems()) == 0 })
	shutdown(t, s)
	if s.counts.restarts != 1 {
		t.Errorf("%d restarts recognised, want 1", s.counts.restarts)
	}

	got, ends, counts := map[record.Type]map[string]int64{}, map[record.Type]time.Time{}, map[record.Type]int{}
	for _, r := range savedRecords(t, cfg.Agent.Dir) {
		p, err := profile.ParseData(r.Profile)
		must(t, err)
		if r.Service != "stock" || r.Labels["region"] != "eu" || r.Labels[record.InstanceLabel] == "" || p.TimeNanos != r.Start.UnixNano() {
			t.Errorf("%+v, time %d", r.Meta, p.TimeNanos)
		}
		counts[r.Type]++
		if got[r.Type] == nil {
			got[r.Type] = map[string]int64{}
		}
		add(got[r.Type], p, 1)
		cumulative := r.Type == record.Memory || r.Type == record.Mutex || r.Type == record.Block
		// A length is by the monotonic clock, and a start by the other one: they differ by nanoseconds.
		if end := ends[r.Type]; cumulative && !end.IsZero() && end.Sub(r.Start).Abs() > time.Microsecond {
			t.Errorf("a %s window begins at %v, and the one before it ended at %v", r.Type, r.Start, end)
		}
		ends[r.Type] = r.End
	}
	for typ, name := range map[record.Type]string{record.Memory: "heap", record.Mutex: "mutex", record.Block: "block"} {
		want := map[string]int64{}
		first, second := service.served[name][0], service.served[name][1]
		add(want, first[len(first)-1], 1)
		add(want, first[0], -1)
		add(want, second[len(second)-1], 1) // all of it: the process began within a window
		if len(want) == 0 || !maps.Equal(got[typ], want) {
			t.Errorf("%s: %d values, want %d", name, len(got[typ]), len(want))
			for k := range want {
				if got[typ][k] != want[k] {
					t.Errorf("%d, want %d: %s", got[typ][k], want[k], k)
				}
			}
		}
	}
	t.Logf("profiles saved: %v", counts)
	if counts[record.CPU] < 4 || counts[record.Goroutine] < 6 {
		t.Errorf("profiles saved: %v", counts)
	}
}

// own serves profiles of the test's process, and a CPU profile without samples.
func own(w http.ResponseWriter, r *http.Request) {
	if filepath.Base(r.URL.Path) == "profile" {
		select {
		case <-time.After(seconds(r)):
			_ = cpuProfile(seconds(r)).Write(w)
		case <-r.Context().Done():
		}
		return
	}
	p := pprof.Lookup(filepath.Base(r.URL.Path))
	if p == nil {
		http.NotFound(w, r)
		return
	}
	_ = p.WriteTo(w, 0)
}

func seconds(r *http.Request) time.Duration {
	d, _ := time.ParseDuration(r.FormValue("seconds") + "s")
	return d
}

func cpuProfile(of time.Duration) *profile.Profile {
	cpu := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	return &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, cpu}, PeriodType: cpu, Period: 1e7, DurationNanos: of.Nanoseconds(),
	}
}

// TestTargetsThatFail: each failure is counted with its reason, and no target disturbs another.
func TestTargetsThatFail(t *testing.T) {
	ending := make(chan struct{})
	serve := func(h http.HandlerFunc) string {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		return s.URL
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	secure := httptest.NewUnstartedServer(http.HandlerFunc(own))
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	zipped := func(r io.Reader) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, err := io.Copy(z, r)
		must(t, errors.Join(err, z.Close()))
		return b.Bytes()
	}
	bomb := zipped(io.LimitReader(zeros{}, maxProfile+1))
	objects := zipped(bytes.NewReader(bytes.Repeat([]byte{byte(pprofwire.ProfileLocation)<<3 | 2, 0}, 4<<20))) // 8 MiB
	var cached atomic.Int64
	targets := map[string]struct{ url, reason string }{
		"cached": {serve(func(w http.ResponseWriter, r *http.Request) { // with the time that was asked for, at once
			if filepath.Base(r.URL.Path) != "profile" {
				own(w, r)
				return
			}
			cached.Add(1)
			_ = cpuProfile(seconds(r)).Write(w)
		}), tooShort},
		"interrupted": {serve(func(w http.ResponseWriter, r *http.Request) {
			if filepath.Base(r.URL.Path) != "profile" {
				own(w, r)
				return
			}
			time.Sleep(seconds(r))
			_ = cpuProfile(seconds(r) / 4).Write(w)
		}), tooShort},
		"hangs":         {serve(func(_ http.ResponseWriter, r *http.Request) { waitFor(r, ending) }), timedOut},
		"trickles":      {serve(func(w http.ResponseWriter, r *http.Request) { trickle(w, r, ending) }), timedOut},
		"refuses":       {closed.URL, unreachable},
		"unknown":       {secure.URL, wrongTLS},
		"no TLS":        {strings.Replace(serve(own), "http:", "https:", 1), wrongTLS},
		"credentials":   {serve(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who?", http.StatusUnauthorized) }), credentials},
		"nothing there": {serve(http.NotFound), notFound},
		"redirects": {serve(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}), otherStatus},
		"in use": {serve(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "Could not enable CPU profiling: cpu profiling already in use", http.StatusInternalServerError)
		}), busy},
		"garbage": {serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }), noProfile},
		"wrong":   {serve(func(w http.ResponseWriter, _ *http.Request) { _ = pprof.Lookup("threadcreate").WriteTo(w, 0) }), noProfile},
		"empty":   {serve(func(w http.ResponseWriter, _ *http.Request) {}), noProfile},
		"huge":    {serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.CopyN(w, zeros{}, maxAnswer+1) }), tooLarge},
		"bomb":    {serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bomb) }), tooLarge},
		"objects": {serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(objects) }), tooLarge},
		"breaks":  {serve(breakOff), broken},
	}
	cfg := config(t)
	cfg.Timeout = 3 * time.Second
	for name, target := range targets {
		cfg.Targets = append(cfg.Targets, Target{URL: target.url, Service: name})
	}
	cfg.Targets = append(cfg.Targets, Target{URL: serve(own), Service: "healthy"})
	begun := time.Now()
	s := start(t, cfg)
	want := map[string]bool{}
	for name, target := range targets {
		want[target.reason] = true
		u, err := url.Parse(target.url)
		must(t, err)
		eventually(t, name+": "+target.reason, func() bool {
			return slices.ContainsFunc(s.problems(), func(p agent.Problem) bool {
				return strings.Contains(p.Message, u.Host) && strings.Contains(p.Message, ": "+target.reason+": ")
			})
		})
	}
	s.counts.mu.Lock()
	counted := map[string]bool{}
	for k := range s.counts.failures {
		counted[k.reason] = true
	}
	s.counts.mu.Unlock()
	if !maps.Equal(counted, want) {
		t.Errorf("the reasons that are counted are %v, want %v", counted, want)
	}
	eventually(t, "three windows of the healthy target", func() bool {
		s.counts.mu.Lock()
		defer s.counts.mu.Unlock()
		return s.counts.profiles[record.Memory] >= 3 && s.counts.profiles[record.Goroutine] >= 3 && s.counts.profiles[record.CPU] >= 3
	})
	close(ending)
	shutdown(t, s)
	if n := cached.Load(); n > int64(time.Since(begun)/cfg.Agent.Window)+2 {
		t.Errorf("%d CPU profiles were fetched of one target in %v", n, time.Since(begun))
	}
	ends := map[string]time.Time{}
	for _, r := range savedRecords(t, cfg.Agent.Dir) {
		// An answer at once can take half a window where the machine is busy.
		if r.Service != "healthy" && r.Service != "cached" && (r.Service != "interrupted" || r.Type == record.CPU) {
			t.Errorf("a %s profile of %s is saved", r.Type, r.Service)
		}
		if r.Type == record.CPU {
			if end := ends[r.Service]; r.Start.Before(end) || r.End.After(time.Now()) {
				t.Errorf("a CPU profile of %s from %v to %v follows one until %v", r.Service, r.Start, r.End, end)
			}
			ends[r.Service] = r.End
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func waitFor(r *http.Request, ending chan struct{}) {
	select {
	case <-r.Context().Done():
	case <-ending:
	}
}

func trickle(w http.ResponseWriter, r *http.Request, ending chan struct{}) {
	for {
		if _, err := io.WriteString(w, "x"); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(50 * time.Millisecond):
		case <-r.Context().Done():
			return
		case <-ending:
			return
		}
	}
}

func breakOff(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "100")
	_, _ = io.WriteString(w, "x")
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// TestReplicas: another process in each window is a problem, and its profiles are not delivered again and again.
func TestReplicas(t *testing.T) {
	counter := func(name string) []byte { // that has only a stack of its own
		contentions, delay := &profile.ValueType{Type: "contentions", Unit: "count"}, &profile.ValueType{Type: "delay", Unit: "nanoseconds"}
		l := &profile.Location{ID: 1, Address: uint64(len(name))}
		p := &profile.Profile{
			SampleType: []*profile.ValueType{contentions, delay}, PeriodType: contentions, Period: 1, Location: []*profile.Location{l},
			Sample: []*profile.Sample{{Location: []*profile.Location{l}, Value: []int64{1, 1000}}},
		}
		var b bytes.Buffer
		must(t, p.Write(&b))
		return b.Bytes()
	}
	replicas := [][]byte{counter("a"), counter("bb")}
	var served atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(replicas[served.Add(1)%2])
	}))
	t.Cleanup(server.Close)
	cfg := config(t)
	cfg.Types, cfg.Targets = []string{"mutex"}, []Target{{URL: server.URL}}
	s := start(t, cfg)
	eventually(t, "a problem", func() bool { return strings.Contains(fmt.Sprint(s.problems()), severalProcesses) })
	n := served.Load()
	eventually(t, "three more windows", func() bool { return served.Load() >= n+3 })
	shutdown(t, s)
	if saved := savedRecords(t, cfg.Agent.Dir); len(saved) != maxRestarts || s.counts.restarts != maxRestarts {
		t.Errorf("%d profiles are saved, and %d restarts counted, want %d", len(saved), s.counts.restarts, maxRestarts)
	}
}

// TestServicesWithoutTargets: nothing is kept for them, and there are not too many services.
func TestServicesWithoutTargets(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(own))
	t.Cleanup(server.Close)
	cfg := config(t)
	file := filepath.Join(t.TempDir(), "targets.yaml")
	cfg.Types, cfg.Files, cfg.Agent.Window = []string{"goroutine"}, []string{file}, 10*time.Minute // its end is not waited for
	write := func(services ...string) {
		t.Helper()
		var text strings.Builder
		for _, service := range services {
			fmt.Fprintf(&text, "- targets: [%q]\n  labels: {job: %s}\n", strings.TrimPrefix(server.URL, "http://"), service)
		}
		must(t, os.WriteFile(file, []byte(text.String()), 0o600))
	}
	write("first", "second")
	s := start(t, cfg)
	write("second")
	s.look()
	eventually(t, "the first service is closed", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.using) == 1 && s.saved["first"] == nil
	})
	last := func(service string) {
		t.Helper()
		if !slices.ContainsFunc(savedRecords(t, cfg.Agent.Dir), func(r record.Record) bool { return r.Service == service }) {
			t.Errorf("the last profile of the %s service is not saved", service)
		}
	}
	last("first")
	shutdown(t, s)
	last("second")

	for i := range maxServices + 2 {
		cfg.Targets = append(cfg.Targets, Target{URL: "http://127.0.0.1:1", Service: fmt.Sprint(i)})
	}
	cfg.Files = nil
	s = start(t, cfg)
	if len(s.targets) != maxServices || !strings.Contains(fmt.Sprint(s.problems()), "2 targets are not scraped") {
		t.Errorf("%d targets, %v", len(s.targets), s.problems())
	}
	shutdown(t, s)
}

// TestShutdownEndsWithItsContext though something does not end.
func TestShutdownEndsWithItsContext(t *testing.T) {
	s := start(t, config(t))
	ending := make(chan struct{})
	s.running.Go(func() { <-ending })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err == nil || !strings.Contains(err.Error(), "not complete") {
		t.Error(err)
	}
	close(ending)
}

// TestFiles: targets of files are scraped while they are there. A file that is broken for a moment changes nothing.
func TestFiles(t *testing.T) {
	healthy := httptest.NewServer(http.HandlerFunc(own))
	t.Cleanup(healthy.Close)
	address := strings.TrimPrefix(healthy.URL, "http://")
	cfg := config(t)
	dir := t.TempDir()
	cfg.Files = []string{filepath.Join(dir, "*.yaml"), filepath.Join(dir, "more.json")}
	cfg.Types = []string{"goroutine"}
	write := func(name, text string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("a.yaml", "- targets: ['"+address+"', 'localhost:1']\n  labels: {job: shop, region: eu, __scheme__: http}\n")
	write("more.json", `[{"targets": ["`+address+`"], "labels": {"service_name": "stock", "__profile_path__": "/internal/pprof/"}}]`)
	s := start(t, cfg)
	defer shutdown(t, s)
	names := func() (all []string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, target := range s.targets {
			all = append(all, target.Service+" "+target.URL+" "+target.Labels["region"]+target.Labels["job"])
		}
		slices.Sort(all)
		return all
	}
	want := []string{
		"shop http://" + address + "/debug/pprof eushop", "shop http://localhost:1/debug/pprof eushop", "stock http://" + address + "/internal/pprof ",
	}
	if got := names(); !slices.Equal(got, want) {
		t.Errorf("targets are %q, want %q", got, want)
	}
	eventually(t, "a profile of each", func() bool {
		s.counts.mu.Lock()
		defer s.counts.mu.Unlock()
		return s.counts.profiles[record.Goroutine] >= 4
	})
	write("a.yaml", "- targets: [")
	s.look()
	if got := names(); !slices.Equal(got, want) || !strings.Contains(fmt.Sprint(s.problems()), "a.yaml") {
		t.Errorf("with a broken file targets are %q, and problems %v", got, s.problems())
	}
	must(t, os.Mkdir(filepath.Join(dir, "directory.yaml"), 0o700))
	s.look()
	if got := names(); !slices.Equal(got, want) || !strings.Contains(fmt.Sprint(s.problems()), "directory.yaml: it is not a regular file") {
		t.Errorf("with a directory targets are %q, and problems %v", got, s.problems())
	}
	write("a.yaml", "- targets: ['"+address+"']\n  labels: {job: shop}\n")
	must(t, os.Remove(filepath.Join(dir, "more.json")))
	s.look()
	if got, want := names(), []string{"shop http://" + address + "/debug/pprof shop", want[2]}; !slices.Equal(got, want) {
		t.Errorf("targets are %q, want %q: those of a file that is missing stay", got, want)
	}
	must(t, os.Remove(filepath.Join(dir, "a.yaml")))
	s.look()
	if got := names(); !slices.Equal(got, want[2:]) {
		t.Errorf("targets are %q, want %q: a pattern has no files now", got, want[2:])
	}
}

func TestTargetsAreChecked(t *testing.T) {
	for _, text := range []string{
		"- targets: ['a b']", "- targets: ['h:1/?x=1']", "- targets: [h]\n  labels: {__scheme__: ftp}", "- targets: {}", "targets: []", "- labels: 3",
	} {
		if targets, err := parseTargets([]byte(text), nil); err == nil {
			t.Errorf("%q: %v", text, targets)
		}
	}
	cfg := config(t)
	for _, spoil := range []func(*Config){
		func(c *Config) { c.Targets = []Target{{URL: "localhost:6060"}} },
		func(c *Config) { c.Types = []string{"trace"} },
		func(c *Config) { c.User, c.Token = "u", "t" },
		func(c *Config) { c.CAFile = "/does/not/exist" },
		func(c *Config) { c.Agent.Window = time.Millisecond },
		func(c *Config) { c.Files = []string{"[.yaml"} },
		func(c *Config) { c.Timeout = -time.Second },
		func(c *Config) { c.Password = "p" },
		func(c *Config) { c.Agent.ProfileLabels = map[string]string{"region": strings.Repeat("x", 1<<16)} },
	} {
		c := cfg
		c.Targets = []Target{{URL: "http://localhost:1"}}
		spoil(&c)
		if s, err := Start(c); err == nil {
			shutdown(t, s)
			t.Errorf("%+v is accepted", c)
		}
	}
}

// TestNoPasswordIsShown: not in errors, not in the log and not among the problems.
func TestNoPasswordIsShown(t *testing.T) {
	cfg := config(t)
	cfg.Targets = []Target{{URL: "http://user:hunter2@localhost:1/?x=1"}}
	if s, err := Start(cfg); err == nil {
		shutdown(t, s)
		t.Error("the target is accepted")
	} else if strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "localhost:1") {
		t.Error(err)
	}
	var log bytes.Buffer
	cfg.Agent.Logger = slog.New(slog.NewTextHandler(&log, nil))
	cfg.Targets = []Target{{URL: "http://user:hunter2@127.0.0.1:1"}}
	dir := t.TempDir()
	cfg.Files = []string{filepath.Join(dir, "*")}
	for name, text := range map[string]string{"address": "- targets: ['user:hunter2@127.0.0.1:1/?x=1']", "value": "- targets: hunter2"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	s := start(t, cfg)
	eventually(t, "three problems", func() bool { return len(s.problems()) == 3 })
	problems := fmt.Sprint(s.problems())
	shutdown(t, s)
	for _, text := range []string{problems, log.String()} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "127.0.0.1:1") || !strings.Contains(text, "address") {
			t.Error(text)
		}
	}
}

func TestCredentials(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]bool{}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.Header.Get("Authorization")] = true
		mu.Unlock()
		own(w, r)
	}))
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	for want, set := range map[string]func(*Config){
		"Basic dTpw": func(c *Config) { c.User, c.Password = "u", "p" },
		"Bearer t":   func(c *Config) { c.Token = "t" },
		"Basic eDp5": func(c *Config) { c.Targets[0].URL = strings.Replace(server.URL, "https://", "https://x:y@", 1) },
	} {
		cfg := config(t)
		cfg.CAFile, cfg.Types, cfg.Targets = ca, []string{"goroutine"}, []Target{{URL: server.URL}}
		set(&cfg)
		s := start(t, cfg)
		eventually(t, want, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return seen[want]
		})
		shutdown(t, s)
	}
}
