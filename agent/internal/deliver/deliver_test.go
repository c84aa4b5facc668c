package deliver

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/pprof/profile"
	"go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.uber.org/goleak"

	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/push"
	"spanflame/agent/internal/spool"
	"spanflame/internal/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), text)
}

const (
	logFailing   = "profile delivery failing; profiles are spooled"
	logRecovered = "profile delivery recovered"
)

// answers is a Pyroscope whose answers the test sets.
type answers struct {
	*httptest.Server
	answer atomic.Pointer[http.HandlerFunc]

	mu       sync.Mutex
	arrived  []time.Time
	now, top int // requests under way, and the most there were
}

func newAnswers(t *testing.T, h http.HandlerFunc) *answers {
	a := &answers{}
	a.set(h)
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return // broken off
		}
		a.mu.Lock()
		a.arrived = append(a.arrived, time.Now())
		a.now++
		a.top = max(a.top, a.now)
		a.mu.Unlock()
		(*a.answer.Load())(w, r)
		a.mu.Lock()
		a.now--
		a.mu.Unlock()
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *answers) set(h http.HandlerFunc) { a.answer.Store(&h) }

func (a *answers) requests() []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]time.Time(nil), a.arrived...)
}

func accept(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/proto")
}

func status(code int, text string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		http.Error(w, text, code)
	}
}

// hang answers nothing until the client has gone.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// delivering is a delivery from a spool in dir to the server. stop is called at the test's end if it was not.
func delivering(t *testing.T, dir, url string) (*Delivery, *syncBuffer) {
	t.Helper()
	out := &syncBuffer{}
	log := slog.New(slog.NewTextHandler(out, nil))
	queue, err := spool.Open(spool.Options{Service: "svc", Dir: dir, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	client, err := push.New(push.Config{URL: url, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return deliveringTo(t, client, queue, log), out
}

func deliveringTo(t *testing.T, c Client, queue *spool.Spool, log *slog.Logger) *Delivery {
	t.Helper()
	return startGuarded(t, c, queue, log, nil)
}

func startGuarded(t *testing.T, c Client, queue *spool.Spool, log *slog.Logger, g *guard.Guard) *Delivery {
	t.Helper()
	d, err := Start(Options{Spool: queue, Client: c, Meter: noop.Meter{}, Logger: log, Guard: g})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.cancel()
		_ = d.Stop(context.Background()) // of a delivery that has stopped it says nothing new
	})
	return d
}

// asked is a client without a network, so that time can be that of a test.
type asked func(context.Context, record.Record) push.Result

func (f asked) Push(ctx context.Context, r record.Record) push.Result { return f(ctx, r) }
func (f asked) Close()                                                {}

// asking is a delivery from a spool in dir to f.
func asking(t *testing.T, dir string, f asked) (*Delivery, *syncBuffer) {
	t.Helper()
	out := &syncBuffer{}
	log := slog.New(slog.NewTextHandler(out, nil))
	queue, err := spool.Open(spool.Options{Service: "svc", Dir: dir, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	return deliveringTo(t, f, queue, log), out
}

var profileTime = time.Now().Truncate(time.Second)

// aRecord is the i-th of a test.
func aRecord(t *testing.T, i int) record.Record {
	t.Helper()
	start := profileTime.Add(time.Duration(i) * time.Millisecond)
	cpu := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	p := &profile.Profile{SampleType: []*profile.ValueType{cpu}, PeriodType: cpu, TimeNanos: start.UnixNano(), Sample: []*profile.Sample{{Value: []int64{1}}}}
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	if err := p.WriteUncompressed(zw); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return record.Record{Meta: record.Meta{Service: "svc", Type: record.CPU, Start: start, End: start.Add(time.Second)}, Profile: b.Bytes()}
}

func put(t *testing.T, d *Delivery, n int) {
	t.Helper()
	for i := range n {
		d.Put(aRecord(t, i))
	}
}

// until waits for something that must come, however slow the machine.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func events(d *Delivery, e spool.Event) int { return d.spool.Stats().Sum(e).Items }

func TestWhatBecomesOfARecord(t *testing.T) {
	for name, tt := range map[string]struct {
		answer    http.HandlerFunc
		delivered int
		aside     string // reason
	}{
		"accepted":  {accept, 1, ""},
		"permanent": {status(400, `{"code":"invalid_argument","message":"no such label"}`, "Content-Type", "application/json"), 0, "permanent"},
		"too old":   {status(400, "profile is outside of the ingestion window"), 0, "too_old"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d, _ := delivering(t, dir, newAnswers(t, tt.answer).URL)
			put(t, d, 1)
			until(t, "the end of it", func() bool { return events(d, spool.Delivered)+events(d, spool.SetAside) > 0 })
			if n := events(d, spool.Delivered); n != tt.delivered {
				t.Errorf("%d delivered, want %d", n, tt.delivered)
			}
			if n := d.spool.Stats().Counts[spool.Key{Event: spool.SetAside, Reason: tt.aside, Type: record.CPU}].Items; tt.aside != "" && n != 1 {
				t.Errorf("%d set aside as %s, want 1", n, tt.aside)
			}
			if err := d.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			if files, _ := filepath.Glob(filepath.Join(dir, "set-aside", "*.pb.gz")); (len(files) == 1) != (tt.aside != "") {
				t.Errorf("files set aside: %v", files)
			}
		})
	}
	for name, answer := range map[string]http.HandlerFunc{
		"throttled":                status(429, "slow down"),
		"throttled in other words": status(422, "push rate limit (4 MiB) exceeded"),
		"transient":                status(503, "no upstream"),
		"not Pyroscope":            func(http.ResponseWriter, *http.Request) {},
	} {
		t.Run(name, func(t *testing.T) {
			server := newAnswers(t, answer)
			d, _ := delivering(t, t.TempDir(), server.URL)
			put(t, d, 1)
			until(t, "a second attempt", func() bool { return len(server.requests()) > 1 })
			if s := d.spool.Stats(); s.Items != 1 || s.Sum(spool.Delivered).Items+s.Sum(spool.SetAside).Items+s.Sum(spool.Dropped).Items > 0 {
				t.Errorf("after a failure: %+v", s)
			}
			server.set(accept)
			until(t, "the delivery", func() bool { return events(d, spool.Delivered) == 1 })
		})
	}
}

func TestARecordIsSplitBelowTheServersLimits(t *testing.T) {
	server := newAnswers(t, accept)
	d, _ := delivering(t, t.TempDir(), server.URL)
	r := aRecord(t, 0)
	p, err := profile.ParseData(r.Profile)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 16_001 {
		p.Sample = append(p.Sample, &profile.Sample{Value: []int64{1}, NumLabel: map[string][]int64{"n": {int64(i)}}})
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	r.Profile = b.Bytes()
	d.Put(r)
	until(t, "the delivery", func() bool { return d.spool.Stats().Items == 0 })
	if n := events(d, spool.Delivered); n < 2 {
		t.Errorf("%d parts, want at least 2", n)
	}
}

func TestSendersWorkAtOnce(t *testing.T) {
	hold := make(chan struct{})
	server := newAnswers(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-hold:
			accept(w, r)
		case <-r.Context().Done(): // given up: it is not at work any more
		}
	})
	d, _ := delivering(t, t.TempDir(), server.URL)
	put(t, d, 2*senders)
	until(t, "every sender at work", func() bool { return len(server.requests()) == senders })
	close(hold)
	until(t, "the delivery", func() bool { return events(d, spool.Delivered) == 2*senders })
	if server.top != senders {
		t.Errorf("%d requests at once, want %d", server.top, senders)
	}
}

func TestOneFailureHoldsUpNoOtherSender(t *testing.T) {
	var n atomic.Int64
	var sending atomic.Pointer[Delivery]
	var heldUp atomic.Bool
	server := newAnswers(t, func(w http.ResponseWriter, r *http.Request) {
		if d := sending.Load(); d != nil && d.down() != nil {
			heldUp.Store(true)
		}
		if n.Add(1)%3 == 0 {
			status(503, "no upstream")(w, r)
			return
		}
		accept(w, r)
	})
	d, log := delivering(t, t.TempDir(), server.URL)
	sending.Store(d)
	put(t, d, 60)
	until(t, "the delivery", func() bool { return events(d, spool.Delivered) == 60 })
	if heldUp.Load() || log.count(logFailing)+log.count(logRecovered) > 0 {
		t.Errorf("failures now and then are taken for an outage: %s", log.b.String())
	}
}

func TestAnOutageIsSaidOnceAndSoIsItsEnd(t *testing.T) {
	server := newAnswers(t, status(503, "no upstream"))
	d, log := delivering(t, t.TempDir(), server.URL)
	put(t, d, 10)
	until(t, "the outage", func() bool { return log.count(logFailing) > 0 })
	if words := d.Degraded(); len(words) != 1 || !strings.Contains(words[0], "503: no upstream") {
		t.Errorf("degraded: %q", words)
	}
	server.set(accept)
	until(t, "the end of the outage", func() bool { return log.count(logRecovered) > 0 })
	if n := events(d, spool.Delivered); n != 10 {
		t.Errorf("the recovery was logged after %d deliveries, want all 10", n)
	}
	if down, up := log.count(logFailing), log.count(logRecovered); down != 1 || up != 1 {
		t.Errorf("logged the outage %d times and the recovery %d times, want once each", down, up)
	}
	if log.count("profiles=10") != 1 {
		t.Errorf("10 profiles were delivered since the outage began, the log says: %s", log.b.String())
	}
	if words := d.Degraded(); words != nil {
		t.Errorf("degraded after the outage: %q", words)
	}
}

func TestOneSenderTriesAServerThatIsDown(t *testing.T) {
	server := newAnswers(t, status(503, "no upstream"))
	d, log := delivering(t, t.TempDir(), server.URL)
	put(t, d, 10)
	until(t, "the outage", func() bool { return log.count(logFailing) == 1 })
	server.set(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(50 * time.Millisecond) // long enough to see another push at the same time
		status(503, "no upstream")(w, r)
	})
	// Those that were under way when the outage began have their answers: from here on it is one by one.
	until(t, "an idle server", func() bool { server.mu.Lock(); defer server.mu.Unlock(); return server.now == 0 })
	// Two may be on their way to it still.
	before := len(server.requests()) + 2
	until(t, "two attempts", func() bool { return len(server.requests()) >= before+2 })
	if all := server.requests()[before:]; all[1].Sub(all[0]) < 50*time.Millisecond {
		t.Errorf("attempts are %v apart: more than one sender tries", all[1].Sub(all[0]))
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	server := newAnswers(t, status(429, "slow down", "Retry-After", "2"))
	d, _ := delivering(t, t.TempDir(), server.URL)
	put(t, d, 10)
	until(t, "the first answer", func() bool { return len(server.requests()) > 0 })
	time.Sleep(time.Second)
	server.set(accept)
	until(t, "the delivery", func() bool { return events(d, spool.Delivered) == 10 })
	// Those that were under way at the first answer are the only ones until the time is over.
	first, early := server.requests()[0], 0
	for _, at := range server.requests() {
		if at.Sub(first) < 2*time.Second {
			early++
		}
	}
	if early > senders {
		t.Errorf("%d requests within two seconds of Retry-After: 2, want those %d that were under way", early, senders)
	}
}

func TestStopSendsWhatIsSpooled(t *testing.T) {
	dir := t.TempDir()
	server := newAnswers(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(5 * time.Millisecond)
		accept(w, r)
	})
	d, _ := delivering(t, dir, server.URL)
	put(t, d, 40)
	if err := d.Stop(t.Context()); err != nil {
		t.Errorf("stop: %v", err)
	}
	if n := events(d, spool.Delivered); n != 40 {
		t.Errorf("%d of 40 delivered", n)
	}
}

func TestStopGivesUpAServerThatIsDown(t *testing.T) {
	dir := t.TempDir()
	server := newAnswers(t, status(503, "no upstream"))
	d, _ := delivering(t, dir, server.URL)
	put(t, d, 5)
	err := d.Stop(t.Context()) // which has no deadline: it ends by itself
	want := fmt.Sprintf("5 profiles (%d bytes) are not delivered; they stay in %s", d.spool.Stats().Bytes, filepath.Join(dir, "0"))
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("stop: %v, want %q", err, want)
	}
	server.set(accept)
	again, _ := delivering(t, dir, server.URL)
	until(t, "the delivery by the next start", func() bool { return events(again, spool.Delivered) == 5 })
}

func TestStopBreaksOffAServerThatNeverAnswers(t *testing.T) {
	dir := t.TempDir()
	server := newAnswers(t, hang)
	d, _ := delivering(t, dir, server.URL)
	const n = senders + 1
	put(t, d, n)
	until(t, "sends under way", func() bool { return len(server.requests()) == senders })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := d.Stop(ctx)
	// A send ends with ctx or after 10 s: the limit is generous and still distinguishes the two.
	if late := time.Since(deadline(t, ctx)); late > 5*time.Second {
		t.Errorf("stop returned %v after its deadline", late)
	}
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d profiles", n)) {
		t.Errorf("stop: %v, want what is left", err)
	}
	server.set(accept)
	again, _ := delivering(t, dir, server.URL)
	until(t, "the delivery by the next start", func() bool { return events(again, spool.Delivered) == n })
}

func deadline(t *testing.T, ctx context.Context) time.Time {
	t.Helper()
	at, ok := ctx.Deadline()
	if !ok {
		t.Fatal("no deadline")
	}
	return at
}

func TestStopKeepsTryingWhatIsInMemoryAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a directory that can never be made
		t.Fatal(err)
	}
	server := newAnswers(t, status(503, "no upstream"))
	d, _ := delivering(t, dir, server.URL)
	put(t, d, 3)
	if d.spool.Stats().MemoryItems != 3 {
		t.Fatalf("%+v, want the records in memory", d.spool.Stats())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	err := d.Stop(ctx)
	if ctx.Err() == nil {
		t.Error("stop returned before its deadline")
	}
	if err == nil || !strings.Contains(err.Error(), "3 profiles") || !strings.Contains(err.Error(), "are lost") {
		t.Errorf("stop: %v, want that 3 are lost", err)
	}
}

var (
	taken     = push.Result{Outcome: push.Accepted}
	throttled = push.Result{Outcome: push.Throttled, Reason: "throttled (429): too much at a time"}
	stumbles  = push.Result{Outcome: push.Transient, Reason: "answered 500: a nil pointer"}
	away      = push.Result{Outcome: push.Transient, Reason: "connection refused"}
)

func TestAServerThatComesAndGoesIsOneOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Int64 // number of profiles that the server accepts before it is unreachable again
		d, log := asking(t, t.TempDir(), func(context.Context, record.Record) push.Result {
			if up.Add(-1) < 0 {
				return away
			}
			time.Sleep(time.Millisecond)
			return taken
		})
		put(t, d, 50)
		for range 5 {
			time.Sleep(10 * time.Minute)
			up.Store(5)
		}
		time.Sleep(10 * time.Minute)
		if down, back := log.count(logFailing), log.count(logRecovered); down != 1 || back != 0 {
			t.Errorf("logged the outage %d times and the recovery %d times, want once and not yet", down, back)
		}
		up.Store(1000)
		time.Sleep(10 * time.Minute)
		if down, back := log.count(logFailing), log.count(logRecovered); down != 1 || back != 1 {
			t.Errorf("logged the outage %d times and the recovery %d times, want once each", down, back)
		}
		if log.count("outage=1h") != 1 || log.count("profiles=50") != 1 || log.count("dropped=0") != 1 {
			t.Errorf("an outage of an hour with 50 profiles is logged as: %s", log.b.String())
		}
	})
}

// named gives a record a name of its own.
func named(r record.Record, name string) record.Record {
	r.Labels = map[string]string{"name": name}
	return r
}

func TestARecordThatIsNeverTakenHoldsUpNoOther(t *testing.T) {
	for _, answer := range []push.Result{throttled, stumbles} {
		t.Run(answer.Outcome.String(), func(t *testing.T) { holdsUpNoOther(t, answer) })
	}
}

func holdsUpNoOther(t *testing.T, answer push.Result) {
	synctest.Test(t, func(t *testing.T) {
		var refused atomic.Int64
		d, log := asking(t, t.TempDir(), func(_ context.Context, r record.Record) push.Result {
			if r.Labels["name"] == "big" {
				refused.Add(1)
				return answer
			}
			return taken
		})
		d.Put(named(aRecord(t, 0), "big"))
		const window = 15 * time.Second
		sent := 0
		for begun := time.Now(); time.Since(begun) < 30*time.Minute; time.Sleep(window) {
			for range 5 {
				sent++
				d.Put(aRecord(t, sent))
			}
			// The first refusals may be taken for a server that takes nothing; even then it is asked again.
			time.Sleep(time.Second)
			if n := events(d, spool.Delivered); n != sent {
				t.Fatalf("after %v %d of %d others are delivered", time.Since(begun), n, sent)
			}
		}
		if n := d.spool.Stats().Counts[spool.Key{Event: spool.SetAside, Reason: answer.Outcome.String(), Type: record.CPU}].Items; n != 1 ||
			refused.Load() > 2*maxRefused {
			t.Errorf("%d set aside after %d refusals, want one after %d or a few more", n, refused.Load(), maxRefused)
		}
		if n := log.count("20 times while others were accepted, the last time with: " + answer.Reason); n != 1 || log.count(logFailing) > 1 {
			t.Errorf("the server's reason is logged %d times, want once: %s", n, log.b.String())
		}
	})
}

func TestAServerThatRefusesEverythingIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Bool
		d, log := asking(t, t.TempDir(), func(context.Context, record.Record) push.Result {
			if !open.Load() {
				return throttled
			}
			return taken
		})
		for i := range 100 {
			d.Put(aRecord(t, i))
			time.Sleep(time.Minute)
		}
		open.Store(true)
		time.Sleep(3 * time.Minute)
		if n := events(d, spool.Delivered); n != 100 {
			t.Errorf("%d of 100 delivered, %+v", n, d.spool.Stats())
		}
		if log.count(logFailing) != 1 || log.count(logRecovered) != 1 {
			t.Errorf("want the outage and its end once: %s", log.b.String())
		}
	})
}

func TestChangedLabelsAreSaidOnceAndCounted(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	changes := map[string]push.Changes{
		"nothing": {TraceIDs: 3},
		"dropped": {Dropped: 1, Names: []string{"a"}},
		"other":   {Other: 1, Names: []string{"span_name"}},
		"both":    {Renamed: 1, Cut: 2, Names: []string{"b.c", "d"}},
	}
	d, log := asking(t, t.TempDir(), func(_ context.Context, r record.Record) push.Result {
		return push.Result{Outcome: push.Accepted, Changes: changes[r.Labels["name"]]}
	})
	if _, err := d.changes.observe(provider.Meter("test")); err != nil { // its other meter keeps nothing
		t.Fatal(err)
	}
	n := 0
	for name := range changes {
		for range 3 {
			d.Put(named(aRecord(t, n), name))
			n++
		}
	}
	until(t, "the delivery", func() bool { return events(d, spool.Delivered) == n })
	counts := map[string]int64{}
	want := map[string]int64{"dropped": 3, "renamed": 3, "cut": 3, "other": 3}
	until(t, fmt.Sprintf("counts %v", want), func() bool {
		var got metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &got); err != nil {
			t.Fatal(err)
		}
		clear(counts)
		for _, scope := range got.ScopeMetrics {
			for _, p := range scope.Metrics[0].Data.(metricdata.Sum[int64]).DataPoints {
				change, _ := p.Attributes.Value("change")
				counts[change.AsString()] = p.Value
			}
		}
		return maps.Equal(counts, want)
	})
	if all := log.count("(logged once, counted in"); all != len(labelChangeKinds) || log.count("span_name") != 1 {
		t.Errorf("logged %d times, want %d: %s", all, len(labelChangeKinds), log.b.String())
	}
}

// TestStopDoesNotWaitForRetryAfter has a server that asks for an hour's pause, before the shutdown or in it.
func TestStopDoesNotWaitForRetryAfter(t *testing.T) {
	later := push.Result{Outcome: push.Throttled, RetryAfter: time.Hour, Reason: "throttled (429): slow down"}
	for name, before := range map[string]bool{"asked for before": true, "asked for in it": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int64
				d, _ := asking(t, t.TempDir(), func(ctx context.Context, _ record.Record) push.Result {
					if !before { // until the shutdown has begun
						time.Sleep(time.Minute)
					}
					asked.Add(1)
					return later
				})
				put(t, d, 3)
				time.Sleep(30 * time.Second)
				begun := asked.Load()
				start := time.Now()
				err := d.Stop(t.Context())
				if took := time.Since(start); took > 32*time.Second {
					t.Errorf("Stop took %v, want it to leave what is on disk", took)
				}
				if err == nil || !strings.Contains(err.Error(), "3 profiles") {
					t.Errorf("Stop: %v, want what is left", err)
				}
				if before && asked.Load() > begun {
					t.Errorf("%d requests in the pause that the server asked for", asked.Load()-begun)
				}
			})
		})
	}
	t.Run("with records in memory alone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d, _ := asking(t, "", func(context.Context, record.Record) push.Result { return later })
			put(t, d, 3)
			time.Sleep(30 * time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := d.Stop(ctx); err == nil || ctx.Err() == nil || !strings.Contains(err.Error(), "3 profiles") {
				t.Errorf("Stop: %v, at its deadline: %v; want it to try until then, and what is lost", err, ctx.Err())
			}
		})
	})
}

// TestAPanicInAPush: the record that makes the agent panic steps aside for the others, and is set aside in the end.
func TestAPanicInAPush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &syncBuffer{}
		log := slog.New(slog.NewTextHandler(out, nil))
		g := guard.New(log)
		queue, err := spool.Open(spool.Options{Service: "svc", Dir: t.TempDir(), Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		d := startGuarded(t, asked(func(_ context.Context, r record.Record) push.Result {
			if r.Labels["name"] == "bad" {
				panic("planted")
			}
			return taken
		}), queue, log, g)
		d.Put(named(aRecord(t, 0), "bad"))
		for i := range 10 {
			d.Put(aRecord(t, i+1))
			time.Sleep(time.Second)
		}
		if n := events(d, spool.Delivered); n != 10 {
			t.Errorf("%d of the 10 others are delivered", n)
		}
		if g.Panics()["push"] < 2 || out.count("planted") != 1 || len(g.Degraded()) > 1 {
			t.Errorf("%v panics, degraded %q, log: %s", g.Panics(), g.Degraded(), out.b.String())
		}
		for i := range 30 { // as long as others are accepted, its own failures count
			d.Put(aRecord(t, i+100))
			time.Sleep(time.Minute)
		}
		if n := events(d, spool.SetAside); n != 1 {
			t.Errorf("%d set aside, want the bad one: %+v", n, d.Stats())
		}
	})
}

// TestAPanicInASender: a panic outside a push, here in the host's log, ends neither the process nor the delivery.
func TestAPanicInASender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Bool
		log := slog.New(panicking{slog.DiscardHandler})
		g := guard.New(slog.New(slog.DiscardHandler))
		queue, err := spool.Open(spool.Options{Service: "svc", Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		d := startGuarded(t, asked(func(context.Context, record.Record) push.Result {
			if up.Load() {
				return taken
			}
			return away
		}), queue, log, g)
		put(t, d, 20)
		time.Sleep(10 * time.Minute) // an outage is logged
		if g.Panics()["delivery"] == 0 {
			t.Error("no panic is counted")
		}
		up.Store(true)
		time.Sleep(3 * time.Hour) // its end, too
		if n := events(d, spool.Delivered); n != 20 {
			t.Errorf("%d of 20 delivered: %v", n, g.Panics())
		}
		if err := d.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestAPanicInTheSpool has the host's log panic when the spool refuses a profile: capturing and the next one are not
// affected.
func TestAPanicInTheSpool(t *testing.T) {
	g := guard.New(slog.New(slog.DiscardHandler))
	queue, err := spool.Open(spool.Options{Service: "svc", Dir: t.TempDir(), Logger: slog.New(panicking{slog.DiscardHandler})})
	if err != nil {
		t.Fatal(err)
	}
	d := startGuarded(t, asked(func(context.Context, record.Record) push.Result { return taken }), queue, slog.New(slog.DiscardHandler), g)
	bad := aRecord(t, 0)
	bad.Service = ""
	d.Put(bad)
	if n := g.Panics()["spool"]; n != 1 || len(g.Degraded()) != 1 {
		t.Errorf("%d panics, degraded %q: want one", n, g.Degraded())
	}
	d.Put(aRecord(t, 1))
	until(t, "the delivery", func() bool { return events(d, spool.Delivered) == 1 })
	if words := g.Degraded(); len(words) > 0 {
		t.Errorf("degraded %q after a profile that was spooled", words)
	}
}

// panicking is the handler of a host that panics.
type panicking struct{ slog.Handler }

func (panicking) Enabled(context.Context, slog.Level) bool  { return true }
func (panicking) Handle(context.Context, slog.Record) error { panic("planted") }
