//go:build long

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"spanflame/e2e/faultproxy"
	"spanflame/internal/otlpwire"
	"spanflame/internal/query"
	"spanflame/stack/servers"
	"spanflame/workload/processes"
)

// outageFor is the length of an outage of the server, unless the variable SPANFLAME_OUTAGE is set.
const outageFor = 10 * time.Second

// TestNoWindowIsLost kills the server, the services, and both, and then finds every window that was spooled
// in Pyroscope, once and at its time.
func TestNoWindowIsLost(t *testing.T) {
	outage := durationFromEnv(t, "SPANFLAME_OUTAGE", outageFor)
	t.Parallel()
	stack, err := servers.Start(t.Context(), servers.Options{Servers: []string{servers.Pyroscope}, DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	server := stack.Pyroscope()
	serverKilled, agentKilled, bothKilled := startHarmed(t, "server-killed", server.URL), startHarmed(t, "agent-killed", server.URL),
		startHarmed(t, "both-killed", server.URL)
	byOTLP := startHarmed(t, "server-killed-otlp", server.URL, otlp)
	all := []*harmed{serverKilled, agentKilled, bothKilled, byOTLP}

	loadAll(t, all, 4*time.Second)
	spooled := agentKilled.crash(t)
	loadAll(t, all, 2*time.Second)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	loadAll(t, all, outage/2)
	spooled = append(spooled, bothKilled.crash(t)...)
	loadAll(t, all, outage/2)
	status, _, body := request(t, http.MethodGet, serverKilled.Storefront.Admin+"/status")
	if status != http.StatusOK || !strings.Contains(string(body), "delivery: profile delivery failing since") {
		t.Errorf("/status in the outage: %d %s", status, body)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		h.drain(t)
	}
	for _, s := range serverKilled.services() {
		eventually(t, s.Name+"'s word of the end of the outage", func() error {
			if logged(t, s, saidUp) == nil {
				return errors.New("none")
			}
			return nil
		})
		for _, said := range []string{saidDown, saidUp} {
			if n := len(logged(t, s, said)); n != 1 {
				t.Errorf("%s said %q %d times, want once", s.Name, said, n)
			}
		}
		recovery := logged(t, s, saidUp)[0]
		t.Logf("%s: outage %v, caught up after %v, %v profiles of %v bytes", s.Name, recovery["outage"], recovery["caught_up_after"], recovery["profiles"],
			recovery["bytes"])
	}
	for _, h := range all {
		h.settle(t)
		h.stop(t)
		h.verify(t, query.NewPyroscope(server.URL), spooled)
	}
}

// TestFaults has the network and the server misbehave in every way there is.
func TestFaults(t *testing.T) {
	t.Parallel()
	injectFaults(t, startHarmed(t, "faults", w.stack.Pyroscope().URL))
}

// TestFaultsOfOTLP: the same with profiles by OTLP.
func TestFaultsOfOTLP(t *testing.T) {
	t.Parallel()
	injectFaults(t, startHarmed(t, "faults-otlp", w.stack.Pyroscope().URL, otlp))
}

// otlp has a workload send its profiles by OTLP.
const otlp = "OTEL_PROFILES_EXPORTER=otlp"

func injectFaults(t *testing.T, h *harmed) {
	t.Helper()
	loadAll(t, []*harmed{h}, 2*time.Second)
	for _, fault := range []faultproxy.Fault{
		faultproxy.Slow, faultproxy.ResetRequest, faultproxy.ResetAnswer, faultproxy.Truncated, faultproxy.Throttled,
		faultproxy.ThrottledForASec, faultproxy.Unavailable, faultproxy.RateLimited, faultproxy.HalfOpen,
	} {
		before := len(h.proxy.Seen())
		h.proxy.Harm(fault)
		loadAll(t, []*harmed{h}, 2*time.Second)
		if fault == faultproxy.HalfOpen {
			// The agent waits 10 s for an answer before it gives one request up.
			eventually(t, "a request given up", func() error {
				if len(h.proxy.Seen()) == before {
					return fmt.Errorf("none")
				}
				return nil
			})
		}
		h.proxy.Harm(faultproxy.None)
		h.drain(t)
		if fault != faultproxy.ResetRequest && !slices.ContainsFunc(h.proxy.Seen()[before:], func(e faultproxy.Exchange) bool { return e.Fault == fault }) {
			t.Errorf("no profile met the fault %q", fault)
		}
	}
	h.settle(t)
	h.stop(t)
	h.verify(t, w.pyroscope, nil)
}

// TestLastWindowsArrive stops services right after a burst, with a server that answers and with one that
// never does.
func TestLastWindowsArrive(t *testing.T) {
	t.Parallel()
	h := startHarmed(t, "stopped", w.stack.Pyroscope().URL)
	loadAll(t, []*harmed{h}, 2*time.Second)
	stopped := time.Now()
	h.stop(t)
	h.hasWindowsTo(t, stopped)

	h.start(t)
	h.proxy.Harm(faultproxy.HalfOpen)
	loadAll(t, []*harmed{h}, 2*time.Second)
	stopped = time.Now()
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Both services, one after the other, have so long at most for requests in flight and for the agent.
	const patience = 2 * (10*time.Second + 10*time.Second)
	took := time.Since(stopped)
	t.Logf("the stop of both services took %v against a server that never answers", took.Round(time.Millisecond))
	if took > patience {
		t.Errorf("the stop took %v, want at most %v", took, patience)
	}
	for _, s := range h.services() {
		left := h.onDisk(t, s.Name)
		for _, typ := range windowTypes {
			if !slices.ContainsFunc(left, func(k sentWindow) bool { return k.typ == typ }) {
				t.Errorf("%s: no %s window is left on disk by a stop that could send none", s.Name, typ)
			}
		}
	}
	h.proxy.Harm(faultproxy.None)
	h.start(t)
	h.settle(t)
	h.hasWindowsTo(t, stopped)
	h.stop(t)
	h.verify(t, w.pyroscope, nil)
}

func durationFromEnv(t *testing.T, name string, otherwise time.Duration) time.Duration {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("%s=%q: want a duration like 2m", name, s)
	}
	return d
}

// metrics are the lines of a service's /metrics.
type metrics []string

// scrape reads a service's metrics.
func scrape(t *testing.T, s *processes.Service) metrics {
	t.Helper()
	status, _, body := request(t, http.MethodGet, s.Admin+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("%s/metrics: status %d: %s", s.Admin, status, body)
	}
	return strings.Split(string(body), "\n")
}

// sum adds up the series of a metric that have all of the labels, each written name="value".
func (m metrics) sum(t *testing.T, name string, labels ...string) int {
	t.Helper()
	var sum float64
line:
	for _, l := range m {
		if !strings.HasPrefix(l, name+"{") && !strings.HasPrefix(l, name+" ") {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(l, label) {
				continue line
			}
		}
		v, err := strconv.ParseFloat(l[strings.LastIndexByte(l, ' ')+1:], 64)
		if err != nil {
			t.Fatalf("metric %q: %v", l, err)
		}
		sum += v
	}
	return int(sum)
}

// spooled returns the number of profiles that the spool counted for an event.
func (m metrics) spooled(t *testing.T, event string, labels ...string) int {
	t.Helper()
	return m.sum(t, "spanflame_spool_profiles_total", append(labels, `event="`+event+`"`)...)
}

// What the log says of an outage, and of its end.
const (
	saidDown = "profile delivery failing; profiles are spooled"
	saidUp   = "profile delivery recovered"
)

// logged are the lines of a service's log whose message begins so.
func logged(t *testing.T, s *processes.Service, message string) (found []map[string]any) {
	t.Helper()
	lines, err := s.Log()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		if said, ok := l["msg"].(string); ok && strings.HasPrefix(said, message) {
			found = append(found, l)
		}
	}
	return found
}

// windowTypes are the types that each window has a profile of.
var windowTypes = []string{"block", "goroutines", "memory", "mutex", "process_cpu"}

// harmed is a workload whose agents send through a fault proxy of their own, with windows of one second.
type harmed struct {
	*processes.Workload
	proxy    *faultproxy.Proxy
	scenario string // value of the label that tells its series from the others'
	dir      string
	env      []string
	later    bool // the services have predecessors
}

// startHarmed starts a workload that sends to the server at the base URL, with env added to its environment.
func startHarmed(t *testing.T, scenario, server string, env ...string) *harmed {
	t.Helper()
	h := &harmed{proxy: faultproxy.Start(server), scenario: scenario, dir: t.TempDir()}
	t.Cleanup(h.proxy.Close)
	h.env = append([]string{
		"PYROSCOPE_SERVER_ADDRESS=" + h.proxy.URL(), "OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT=" + h.proxy.URL() + otlpwire.Path,
		"PYROSCOPE_UPLOAD_INTERVAL=1s", "PYROSCOPE_LABELS=scenario=" + scenario,
	}, env...)
	h.start(t)
	t.Cleanup(func() { h.kill(t) })
	return h
}

// start starts the workload, on the spools that an earlier one has left.
func (h *harmed) start(t *testing.T) {
	t.Helper()
	h.later = h.Workload != nil
	var err error
	if h.Workload, err = processes.Start(t.Context(), processes.Options{Binary: w.binary, Dir: h.dir, Env: h.env}); err != nil {
		t.Fatal(err)
	}
}

// kill ends the services as a crash does; those that have ended stay so.
func (h *harmed) kill(t *testing.T) {
	t.Helper()
	for _, s := range h.services() {
		if err := s.Kill(); err != nil {
			t.Error(err)
		}
	}
	if err := noRace(h.Workload); err != nil {
		t.Error(err)
	}
}

// stop ends the services in order, and checks that they have left nothing.
func (h *harmed) stop(t *testing.T) {
	t.Helper()
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range h.services() {
		if left := h.onDisk(t, s.Name); len(left) > 0 {
			t.Errorf("%s: %d profiles are left after the stop: %v", s.Name, len(left), left)
		}
	}
}

func (h *harmed) services() []*processes.Service {
	return []*processes.Service{h.Storefront, h.Inventory}
}

// spool is the directory of a service's slot.
func (h *harmed) spool(service string) string { return filepath.Join(h.dir, "spool-"+service, "0") }

// loadAll puts a light load on the workloads for the given time.
func loadAll(t *testing.T, workloads []*harmed, d time.Duration) {
	t.Helper()
	end := time.Now().Add(d)
	client := &http.Client{Timeout: time.Minute} // a machine that is busy with other tests is slow
	defer client.CloseIdleConnections()
	var wg sync.WaitGroup
	for _, h := range workloads {
		urls := []string{
			h.Storefront.URL + "/api/checkout", h.Storefront.URL + "/load/sleep?ms=150", h.Storefront.URL + "/load/cpu?ms=20",
			h.Inventory.URL + "/load/lock?ms=20", h.Storefront.URL + "/load/alloc?mb=1", h.Inventory.URL + "/load/block?ms=20",
		}
		wg.Go(func() {
			for i := 0; time.Now().Before(end); i++ {
				resp, err := client.Get(urls[i%len(urls)])
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Error(err)
				}
				resp.Body.Close()
				time.Sleep(150 * time.Millisecond)
			}
		})
	}
	wg.Wait()
}

// sentWindow is one profile of a service.
type sentWindow struct {
	service, typ string
	start        int64 // TimeNanos
}

// sent is the proxy's data about a window.
type sent struct {
	faultproxy.Profile
	accepted int // how often the server took it
	cut      int // how often it perhaps did, before it was killed
}

// seen are the windows that were sent whole at least once.
func (h *harmed) seen(t *testing.T) map[sentWindow]*sent {
	t.Helper()
	all := map[sentWindow]*sent{}
	for _, e := range h.proxy.Seen() {
		if e.Profile.Err != nil {
			t.Fatalf("a %s profile cannot be read: %v", e.Profile.Name, e.Profile.Err)
		}
		k := sentWindow{e.Profile.Labels["service_name"], e.Profile.Name, e.Profile.Start.UnixNano()}
		if all[k] == nil {
			all[k] = &sent{Profile: e.Profile}
		}
		if e.Accepted() {
			all[k].accepted++
		}
		if e.Cut {
			all[k].cut++
		}
	}
	return all
}

// accepted are the windows that the server has taken.
func (h *harmed) accepted(t *testing.T, service string) map[sentWindow]*sent {
	t.Helper()
	all := h.seen(t)
	for k, s := range all {
		if s.accepted == 0 || k.service != service {
			delete(all, k)
		}
	}
	return all
}

// onDisk are the windows in a service's spool.
func (h *harmed) onDisk(t *testing.T, service string) []sentWindow {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(h.spool(service), "*.pb.gz"))
	if err != nil {
		t.Fatal(err)
	}
	var all []sentWindow
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		p := faultproxy.Profile{Name: strings.Split(filepath.Base(f), "-")[2]}
		if err := p.ReadPprof(b); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		all = append(all, sentWindow{service, p.Name, p.Start.UnixNano()})
	}
	return all
}

// scenarioWindow is a window of one workload.
type scenarioWindow struct {
	scenario string
	sentWindow
}

// crash kills the services and starts them again with the same directories. It returns the windows that were in their
// spools, and checks that no more than the open window is missing.
func (h *harmed) crash(t *testing.T) []scenarioWindow {
	t.Helper()
	before := map[string]metrics{}
	for _, s := range h.services() {
		before[s.Name] = scrape(t, s)
	}
	h.kill(t)
	var spooled []scenarioWindow
	kept := map[string]int{}
	for _, s := range h.services() {
		all := h.seen(t)
		disk := h.onDisk(t, s.Name)
		kept[s.Name] = len(disk)
		for _, k := range disk {
			spooled = append(spooled, scenarioWindow{h.scenario, k})
			all[k] = &sent{}
		}
		for _, typ := range windowTypes {
			have := 0
			for k := range all {
				if k.service == s.Name && k.typ == typ {
					have++
				}
			}
			captured := before[s.Name].sum(t, "spanflame_profiles_captured_total", `type="`+typ+`"`)
			if captured == 0 || have < captured-1 {
				t.Errorf("%s %s: %d of the %d windows captured before SIGKILL were spooled, want all or all but one", s.Name, typ, have, captured)
			}
		}
	}
	h.start(t)
	for _, s := range h.services() {
		m := scrape(t, s)
		if got := m.spooled(t, "recovered") + m.spooled(t, "adopted"); got != kept[s.Name] {
			t.Errorf("%s took over %d profiles, %d were on disk", s.Name, got, kept[s.Name])
		}
	}
	return spooled
}

// drain waits until little more than the last window is to be delivered.
func (h *harmed) drain(t *testing.T) {
	t.Helper()
	for _, s := range h.services() {
		for before := math.MaxInt; before > 2*len(windowTypes); {
			eventually(t, h.scenario+": fewer profiles in "+s.Name+"'s spool", func() error {
				waiting := scrape(t, s).sum(t, "spanflame_spool_waiting")
				if waiting >= before {
					return fmt.Errorf("%d wait", waiting)
				}
				before = waiting
				return nil
			})
		}
	}
}

// settle waits until the spools are all but empty, and checks the agents' own counters against the proxy's, to
// the item. The server accepts nothing more meanwhile, so its contents stay the same.
func (h *harmed) settle(t *testing.T) {
	t.Helper()
	h.drain(t)
	h.proxy.Harm(faultproxy.Unavailable)
	for _, s := range h.services() {
		even := map[string]bool{} // types of which no profile was on its way to the disk, in one of the scrapes
		eventually(t, h.scenario+": "+s.Name+"'s counters", func() error {
			m := scrape(t, s)
			older := m.spooled(t, "recovered") + m.spooled(t, "adopted")
			in, delivered, waiting := m.spooled(t, "put")+older, m.spooled(t, "delivered"), m.sum(t, "spanflame_spool_waiting")
			if lost := m.spooled(t, "dropped") + m.spooled(t, "set_aside"); lost > 0 || in != delivered+waiting {
				t.Fatalf("%s: %s: %d profiles spooled, %d delivered, %d wait, %d dropped or set aside", h.scenario, s.Name, in, delivered, waiting, lost)
			}
			var uneven error
			for _, typ := range windowTypes {
				label := `type="` + typ + `"`
				if captured, put := m.sum(t, "spanflame_profiles_captured_total", label), m.spooled(t, "put", label); captured == put {
					even[typ] = true
				} else if !even[typ] {
					uneven = fmt.Errorf("%d %s profiles captured, %d put", captured, typ, put)
				}
			}
			if uneven != nil {
				return uneven
			}
			if h.later {
				return nil // the server has what their predecessors delivered, too
			}
			if n := len(h.accepted(t, s.Name)); n != delivered {
				return fmt.Errorf("the server took %d profiles, %d are counted as delivered", n, delivered)
			}
			return nil
		})
	}
	h.proxy.Harm(faultproxy.None)
}

// hasWindowsTo checks that every type has a window that reaches to the given time.
func (h *harmed) hasWindowsTo(t *testing.T, end time.Time) {
	t.Helper()
	for _, s := range h.services() {
		last := map[string]time.Time{}
		for k, p := range h.accepted(t, s.Name) {
			if reach := p.Start.Add(p.Length); reach.After(last[k.typ]) {
				last[k.typ] = reach
			}
		}
		for _, typ := range windowTypes {
			if last[typ].Before(end) {
				t.Errorf("%s: the last %s window is of %s, the service was stopped at %s", s.Name, typ, last[typ], end)
			}
		}
	}
}

// verify asks Pyroscope for every window that was sent or spooled: it is there, at its time, and once,
// unless the agent could not know that the server had it already.
func (h *harmed) verify(t *testing.T, p *query.Pyroscope, spooled []scenarioWindow) {
	t.Helper()
	all := h.seen(t)
	for _, k := range spooled {
		if s := all[k.sentWindow]; k.scenario == h.scenario && (s == nil || s.accepted == 0) {
			t.Errorf("%s: a %s window of %s that was on disk was not delivered", h.scenario, k.typ, k.service)
		}
	}
	// What began in the same millisecond cannot be told apart: Pyroscope counts in these.
	type moment struct {
		service, instance, typ string
		ms                     int64
	}
	type total struct {
		totals    map[string]int64 // by profile type
		ambiguous bool             // the server took one of these more than once, or perhaps did
	}
	moments := map[moment]total{}
	var empty, twice int
	for k, s := range all {
		if s.accepted == 0 {
			t.Errorf("%s: a %s window of %s was never accepted", h.scenario, k.typ, k.service)
		}
		again := s.accepted+s.cut > 1
		if again {
			twice++
		}
		if _, want := heaviest(s.Totals); want == 0 {
			empty++ // nothing happened in it, so there is nothing that could be found
			continue
		}
		key := moment{k.service, s.Labels["service_instance_id"], k.typ, k.start / int64(time.Millisecond)}
		sum := moments[key]
		if sum.totals == nil {
			sum.totals = map[string]int64{}
		}
		for id, n := range s.Totals {
			sum.totals[id] += n
		}
		moments[key] = total{sum.totals, sum.ambiguous || again}
	}
	var wrong, doubled atomic.Int64
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(4)
	for k, m := range moments {
		g.Go(func() error {
			at := time.UnixMilli(k.ms)
			id, want := heaviest(m.totals)
			series := query.Selector{"service_name": k.service, "scenario": h.scenario, "service_instance_id": k.instance}
			graph, err := p.FlameGraph(ctx, id, series, at, at.Add(time.Millisecond))
			if err != nil {
				return err
			}
			switch {
			case graph.Total == want:
			case m.ambiguous && graph.Total > want:
				doubled.Add(1)
			case wrong.Add(1) <= 10:
				t.Errorf("%s: %s of %s at %s: Pyroscope has %d, want %d", h.scenario, id, k.service, at, graph.Total, want)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := wrong.Load(); n > 0 {
		t.Errorf("%s: %d of %d moments are not in Pyroscope as they were sent", h.scenario, n, len(moments))
	}
	t.Logf("%s: %d profiles sent, %d of them empty; %d were or may have been taken by the server before the agent could know, of which %d are in Pyroscope twice",
		h.scenario, len(all), empty, twice, doubled.Load())
}

// heaviest returns the profile type with the largest total.
func heaviest(totals map[string]int64) (id string, total int64) {
	for i, n := range totals {
		if cmp.Or(cmp.Compare(n, total), cmp.Compare(i, id)) > 0 {
			id, total = i, n
		}
	}
	return id, total
}
