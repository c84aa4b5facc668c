package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"spanflame/workload/faults"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// roundTripper is a server without a network, so that a test can control the clock.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func client(f roundTripper) *http.Client { return &http.Client{Transport: f} }

func status(code int) *http.Response {
	return &http.Response{StatusCode: code, Body: http.NoBody}
}

func onlyCheckout(t *testing.T) Mix {
	t.Helper()
	mix, err := ParseMix("checkout=1")
	if err != nil {
		t.Fatal(err)
	}
	return mix
}

func run1(t *testing.T, ctx context.Context, cfg Config) Report {
	t.Helper()
	if cfg.Target == "" {
		cfg.Target = "http://workload"
	}
	report, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// Against a real server: the schedule is sent to the request, in the mix's exact proportions.
func TestRunSendsTheWholeSchedule(t *testing.T) {
	var checkouts, sleeps, others atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.String() {
		case "POST /base/api/checkout":
			checkouts.Add(1)
		case "GET /base/load/sleep?ms=150":
			sleeps.Add(1)
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			others.Add(1)
		}
	}))
	defer server.Close()
	mix, err := ParseMix("checkout=3,sleep=1")
	if err != nil {
		t.Fatal(err)
	}
	report := run1(t, t.Context(), Config{Target: server.URL + "/base/", Rate: 400, Duration: 500 * time.Millisecond, Mix: mix, Concurrency: 1000})
	if report.Due != 200 || report.Sent != 200 || report.Failed != 50 || report.Shed != 0 {
		t.Errorf("%+v, want 200 due and sent, 50 failed", report)
	}
	if checkouts.Load() != 150 || sleeps.Load() != 50 || others.Load() != 0 {
		t.Errorf("the server saw %d checkouts, %d sleeps and %d others, want 150, 50 and 0", checkouts.Load(), sleeps.Load(), others.Load())
	}
	if e := report.Endpoints[1]; e.Name != "sleep" || e.Count != 50 || e.Errors["503"] != 50 {
		t.Errorf("sleep: %+v, want 50 with 503", e)
	}
	if report.Seconds < 0.49 {
		t.Errorf("the schedule of 0.5 s was over after %v s", report.Seconds)
	}
	if report.AllFailed() {
		t.Error("AllFailed, but only some did")
	}
}

// Victims and offenders of a fault are sent as often per second as it says, and take turns.
func TestFaultMix(t *testing.T) {
	var order []string
	fault := faults.Fault{
		Victim:   faults.Request{Method: "GET", Path: "/victim", PerSecond: 20},
		Offender: &faults.Request{Method: "POST", Path: "/offender?n=1", PerSecond: 20},
	}
	mix, rate := FaultMix(fault)
	if rate != 40 {
		t.Errorf("rate %v, want 40", rate)
	}
	run1(t, t.Context(), Config{Mix: mix, Rate: rate, Duration: 100 * time.Millisecond, Concurrency: 1,
		Client: client(func(r *http.Request) (*http.Response, error) {
			order = append(order, r.Method+" "+r.URL.RequestURI())
			return status(200), nil
		})})
	if got := strings.Join(order, ", "); got != "POST /offender?n=1, GET /victim, POST /offender?n=1, GET /victim" {
		t.Errorf("sent %s", got)
	}
	fault.Offender, fault.Victim.PerSecond = nil, 0.5
	if mix, rate := FaultMix(fault); rate != 0.5 || len(mix) != 1 || mix.validate() != nil {
		t.Errorf("without an offender: %v a second of %v", rate, mix)
	}
}

// The server stops answering for one second. Every request that was due in that second is late by what was left
// of it, although most of them were sent while others waited.
func TestLatencyCountsFromTheIntendedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		stallFrom, stallTo := start.Add(2*time.Second), start.Add(3*time.Second)
		report := run1(t, t.Context(), Config{Rate: 100, Duration: 10 * time.Second, Mix: onlyCheckout(t), Concurrency: 1000,
			Client: client(func(*http.Request) (*http.Response, error) {
				if now := time.Now(); now.After(stallFrom) && now.Before(stallTo) {
					time.Sleep(stallTo.Sub(now))
				}
				time.Sleep(time.Millisecond)
				return status(200), nil
			})})
		e := report.Endpoints[0]
		// 99 of 1000 requests were due in the stall: they do not change the median, and they are the slowest tenth.
		want := map[string][2]float64{"p50": {e.P50, 1}, "p99": {e.P99, 891}, "max": {e.Max, 991}}
		for name, v := range want {
			if math.Abs(v[0]-v[1]) > 12 {
				t.Errorf("%s is %.1f ms, want about %.0f", name, v[0], v[1])
			}
		}
		if e.Count != 1000 {
			t.Errorf("%d measured, want 1000", e.Count)
		}
	})
}

// The generator itself is delayed for a second: the requests that were due meanwhile are late too.
func TestLateGeneratorIsMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &run{cfg: Config{Rate: 10, Mix: onlyCheckout(t), Timeout: time.Second}, due: 5, slots: make(chan struct{}, 10),
			client:    client(func(*http.Request) (*http.Response, error) { return status(200), nil }),
			endpoints: []*measured{newMeasured(Endpoints()[0])},
			start:     time.Now()}
		time.Sleep(time.Second) // everything is due by now
		r.drive(t.Context())
		if e := r.report().Endpoints[0]; math.Abs(e.P50-800) > 2 || math.Abs(e.Max-1000) > 2 {
			t.Errorf("p50 %.0f ms, max %.0f ms, want 800 and 1000", e.P50, e.Max)
		}
	})
}

func TestRequestsAboveTheLimitAreShedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var flying, over atomic.Int64
		report := run1(t, t.Context(), Config{Rate: 10, Duration: 10 * time.Second, Mix: onlyCheckout(t), Concurrency: 3,
			Client: client(func(*http.Request) (*http.Response, error) {
				if flying.Add(1) > 3 {
					over.Add(1)
				}
				time.Sleep(950 * time.Millisecond)
				flying.Add(-1)
				return status(200), nil
			})})
		// Each second three are sent, and seven find no slot.
		if report.Sent != 30 || report.Shed != 70 || report.Endpoints[0].Shed != 70 || over.Load() != 0 {
			t.Errorf("%d sent, %d shed, %d above the limit, want 30, 70, 0", report.Sent, report.Shed, over.Load())
		}
	})
}

func TestFailuresAreClassified(t *testing.T) {
	refused := httptest.NewServer(nil)
	refused.Close()
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hanging.Close()
	cut := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer cut.Close()
	short := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		fmt.Fprint(w, "x")
	}))
	defer short.Close()
	for want, target := range map[string]string{"connect": refused.URL, "timeout": hanging.URL, "broken": cut.URL, "broken ": short.URL} {
		timeout := 10 * time.Second
		if want == "timeout" {
			timeout = 100 * time.Millisecond
		}
		report := run1(t, t.Context(), Config{Target: target, Rate: 100, Duration: 50 * time.Millisecond, Mix: onlyCheckout(t), Timeout: timeout})
		if e := report.Endpoints[0]; e.Errors[strings.TrimSpace(want)] != 5 || !report.AllFailed() {
			t.Errorf("%s: %+v, want 5 of it and AllFailed", want, e)
		}
	}
}

func TestInterruptedRunReportsWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(1050*time.Millisecond, cancel)
		var calls atomic.Int64
		report := run1(t, ctx, Config{Rate: 10, Duration: time.Hour, Mix: onlyCheckout(t), Timeout: time.Hour,
			Client: client(func(r *http.Request) (*http.Response, error) {
				if calls.Add(1) <= 8 {
					return status(200), nil
				}
				<-r.Context().Done()
				return nil, r.Context().Err()
			})})
		if report.Sent != 11 || report.Abandoned != 3 || report.Failed != 0 || report.Endpoints[0].Count != 8 {
			t.Errorf("%+v, want 11 sent, 8 measured, 3 abandoned, none failed", report)
		}
		if report.AllFailed() {
			t.Error("AllFailed, but 8 succeeded")
		}
	})
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines, screen bytes.Buffer
		line, rewrite := ProgressPrinter(&lines, false), ProgressPrinter(&screen, true)
		run1(t, t.Context(), Config{Rate: 10, Duration: 3 * time.Second, Mix: onlyCheckout(t),
			Progress: func(s Snapshot) { line(s); rewrite(s) },
			Client: client(func(*http.Request) (*http.Response, error) {
				time.Sleep(250 * time.Millisecond)
				return status(500), nil
			})})
		got := strings.Split(lines.String(), "\n")
		if len(got) != 4 || !strings.HasPrefix(got[1], "  2 s of 3 s: 2") || !strings.Contains(got[1], "of 30 sent, ") || strings.Contains(got[1], " 0 failed") {
			t.Errorf("plain progress: %q", lines.String())
		}
		if text := screen.String(); strings.Contains(text, "\n") || strings.Count(text, "\r") != 3 {
			t.Errorf("terminal progress: %q", text)
		}
	})
}

func TestReportFormats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := run1(t, t.Context(), Config{Rate: 10, Duration: time.Second, Mix: onlyCheckout(t),
			Client: client(func(*http.Request) (*http.Response, error) {
				time.Sleep(20 * time.Millisecond)
				return status(503), nil
			})})
		var text strings.Builder
		if err := report.WriteText(&text); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"checkout", "503×10", "20.0", "10 of 10 requests sent in 0.9 s, 10 failed, 0 shed, 0 abandoned"} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("no %q in\n%s", want, &text)
			}
		}
		encoded, err := json.Marshal(report)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"due":10`, `"p99_ms":20.`, `"errors":{"503":10}`, `"path":"/api/checkout"`} {
			if !bytes.Contains(encoded, []byte(want)) {
				t.Errorf("no %s in %s", want, encoded)
			}
		}
	})
}

func TestValidate(t *testing.T) {
	const ok = "http://127.0.0.1:8080"
	for want, cfg := range map[string]Config{
		`target ""`:                     {},
		`target "ftp://x": must be`:     {Target: "ftp://x"},
		`target "file:///etc/passwd"`:   {Target: "file:///etc/passwd"},
		`target "http://"`:              {Target: "http://"},
		`target "127.0.0.1:8080": must`: {Target: "127.0.0.1:8080"},
		`no query`:                      {Target: ok + "/?a=b"},
		`rate -1`:                       {Target: ok, Rate: -1},
		`rate NaN`:                      {Target: ok, Rate: math.NaN()},
		`rate +Inf`:                     {Target: ok, Rate: math.Inf(1)},
		`duration -1s`:                  {Target: ok, Duration: -time.Second},
		`concurrency -1`:                {Target: ok, Concurrency: -1},
		`at most 1000000000 are`:        {Target: ok, Rate: 100_000, Duration: 100 * time.Hour},
		`every weight is 0`:             {Target: ok, Mix: Mix{{Endpoint: Endpoints()[0]}}},
		`mix: weight -1 of checkout: m`: {Target: ok, Mix: Mix{{Endpoint: Endpoints()[0], Weight: -1}}},
	} {
		if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run(%+v): %v, want an error with %q", cfg, err, want)
		}
	}
}

func TestParseMix(t *testing.T) {
	if mix, err := ParseMix("checkout=70, cpu=0"); err != nil || mix.String() != "checkout=70,cpu=0" {
		t.Errorf("got %v, %v", mix, err)
	}
	if mix, err := ParseMix(DefaultMix().String()); err != nil || mix.String() != DefaultMix().String() {
		t.Errorf("the default does not survive its own text: %v, %v", mix, err)
	}
	for text, want := range map[string]string{
		"":                              `mix entry ""`,
		"checkout":                      "name=weight",
		"checkout=":                     "weight",
		"checkout=-1":                   "weight",
		"checkout=1.5":                  "weight",
		"checkout=1e3":                  "weight",
		"checkout=1000001":              "weight",
		"checkout=99999999999999999999": "weight",
		"checkout=0":                    "every weight is 0",
		"tea=1":                         "one of checkout, single, heavy",
		"cpu=1,cpu=2":                   "twice",
		"cpu=1,":                        `mix entry ""`,
	} {
		if _, err := ParseMix(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseMix(%q): %v, want an error with %q", text, err, want)
		}
	}
}

func TestPickerSpreadsTheMix(t *testing.T) {
	mix, err := ParseMix("checkout=3,cpu=1,sleep=0")
	if err != nil {
		t.Fatal(err)
	}
	next := mix.picker()
	var order strings.Builder
	for range 8 {
		fmt.Fprint(&order, next())
	}
	if order.String() != "00100010" {
		t.Errorf("order %s, want 00100010", &order)
	}
}

func FuzzParseMix(f *testing.F) {
	for _, seed := range []string{"checkout=70,cpu=10", "", "=", "cpu=1,,", "cpu=-0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		mix, err := ParseMix(text)
		if err != nil {
			return
		}
		again, err := ParseMix(mix.String())
		if err != nil || again.String() != mix.String() {
			t.Errorf("%q: %v became %v (%v)", text, mix, again, err)
		}
		mix.picker()()
	})
}
