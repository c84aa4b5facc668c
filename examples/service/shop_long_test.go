//go:build long

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"spanflame/internal/docsection"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/input"
	"spanflame/profiles/leaks"
	"spanflame/viewer/source"
)

var update = flag.Bool("update", false, "write the tables of ../README.md")

// slowest is how long a request takes that this test looks at.
const slowest = 10 * time.Millisecond

// visitors is how many requests of a kind are sent.
const visitors = 10

// problem is a mistake of the shop, and who suffers from it.
type problem struct {
	name  string
	send  func(t *testing.T, base string) // nil for what the problem above sends
	span  string                          // of those who suffer
	blame string                          // the function with the mistake
	what  string                          // what else the diagnosis says, if that is not the machine's choice
}

// The problems, in the order in which they are made.
var problems = []problem{
	{"lock queue", func(t *testing.T, base string) {
		send(t, http.MethodPost, base+"/prices")
		together(func() { get(t, base+"/price") })
	}, "GET /price", "(*shop).refreshPrices", "waiting for an RWMutex"},
	{"worker pool", func(t *testing.T, base string) {
		together(func() { send(t, http.MethodPost, base+"/label") })
	}, "POST /label", "(*shop).print", "woken by service.(*shop).printer"},
	{"exhausted database pool", func(t *testing.T, base string) {
		get(t, base+"/quotes/tea") // the export has suppliers
		export := open(t, http.MethodGet, base+"/export")
		together(func() { get(t, base+"/count") })
		read(t, export)
	}, "GET /count", "(*shop).export", "waiting for a free connection of database/sql's pool"},
	{"slow header of an HTTP answer", each(http.MethodGet, "/tariff"), "GET /tariff", "(*shop).tariff", "waiting for the answer of an HTTP call"},
	{"slow body of an HTTP answer", each(http.MethodGet, "/pricelist"), "GET /pricelist", "(*shop).pricelist", "waiting for the body of an HTTP answer"},
	{"retries", each(http.MethodGet, "/stock"), "GET /stock", "(*shop).stockWithRetries", "waiting in a select"},
	{"straggler of an errgroup", each(http.MethodGet, "/page"), "GET /page", "(*shop).reviews", "done by the same request"},
	{"singleflight", func(t *testing.T, base string) {
		together(func() { get(t, base+"/rates") })
	}, "GET /rates", "(*shop).loadRates", "done by GET /rates"},
	{"JSON", each(http.MethodGet, "/catalog"), "GET /catalog", "copyByJSON", ""},
	{"garbage collection", each(http.MethodGet, "/report"), "GET /report", "allRows", ""},
	{"N+1 queries", each(http.MethodGet, "/basket"), "GET /basket", "(*shop).basket", fmt.Sprintf("in %d queries one after the other", basketItems)},
	{"unary gRPC call, its client", each(http.MethodPost, "/reserve"), "POST /reserve", "(*shop).reserve", "in the gRPC call shop.Warehouse/Reserve"},
	{"the same, its server", nil, "shop.Warehouse/Reserve", "(*warehouse).reserve", "sleeping"},
	{"gRPC stream, its client", each(http.MethodGet, "/shipment"), "GET /shipment", "(*shop).shipment", "waiting for a message of a gRPC stream"},
	{"the same, its server", nil, "shop.Warehouse/Track", "(*warehouse).pack", "waiting for the answer of an HTTP call"},
}

// streaming is the route that is meant to last.
const streaming = "GET /events"

// TestTheShopsProblems makes each mistake of the shop that makes requests slow. The diagnosis of the request with the median
// duration must name the function with the mistake. A stream that is meant to last comes after all of them.
func TestTheShopsProblems(t *testing.T) {
	saved := runShop(t, func(base string) {
		for _, p := range problems {
			if p.send != nil {
				p.send(t, base)
			}
		}
		together(func() { // events that last longer than all else
			stream := open(t, http.MethodGet, base+"/events")
			if _, err := io.CopyN(io.Discard, stream, 10*int64(len("data: nothing new\n\n"))); err != nil {
				t.Error(err)
			}
			stream.Close()
		})
	})
	dir, err := source.OpenDirectory(saved)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()

	var rows []string
	for _, p := range problems {
		t.Run(p.name, func(t *testing.T) {
			diagnosis := victim(t, dir, p.span)
			blame := "service." + p.blame
			words := strings.FieldsFunc(diagnosis, func(r rune) bool { return strings.ContainsRune(" ,:", r) })
			if !slices.Contains(words, blame) || !strings.Contains(diagnosis, p.what) {
				t.Errorf("the diagnosis is %q, want %s and %q in it", diagnosis, blame, p.what)
			}
			t.Log(diagnosis)
			rows = append(rows, fmt.Sprintf("| %s | `%s` | %s |\n", p.name, blame, address.ReplaceAllString(diagnosis, "127.0.0.1:8090")))
		})
	}
	t.Run("a stream", func(t *testing.T) { theStreamComesLast(t, dir) })
	if *update && !t.Failed() && len(rows) == len(problems) { // -run may have left some out
		docsection.Write(t, "../README.md", "the shop's problems, "+written, shopHead+strings.Join(rows, ""))
	}
}

// theStreamComesLast checks that the list of problems, which the start page shows, ends with the stream.
func theStreamComesLast(t *testing.T, dir *source.Directory) {
	found, err := dir.Search(t.Context(), source.Filter{Service: serviceName, Min: slowest, Diagnose: true, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	listed, streams := source.Problems(found.Traces, slowest), 0
	for i, p := range listed {
		if p.Lasts {
			streams++
		} else if streams > 0 {
			t.Errorf("%s, number %d of the problems, comes after a stream", p.Name, i)
		}
		if p.Lasts != (p.Name == streaming) {
			t.Errorf("%s: is it meant to last? %t: %s", p.Name, p.Lasts, p.Cause)
		}
	}
	if streams == 0 {
		t.Errorf("no stream is among the %d problems", len(listed))
	}
	for _, p := range problems {
		if p.send != nil && !slices.ContainsFunc(listed, func(l source.Problem) bool { return l.Name == p.span }) {
			t.Errorf("%s is not among the problems", p.span)
		}
	}
}

// victim returns the diagnosis of the span with the median duration of a name.
func victim(t *testing.T, dir *source.Directory, name string) string {
	t.Helper()
	found, err := dir.Search(t.Context(), source.Filter{Service: serviceName, Name: name, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	type diagnosed struct {
		traces.Span
		text string
	}
	var victims []diagnosed
	for _, summary := range found.Traces {
		spans, err := dir.Trace(t.Context(), summary.TraceID)
		if err != nil {
			t.Fatal(err)
		}
		for _, span := range spans {
			if span.Name != name || span.Kind != "server" {
				continue
			}
			p, err := dir.Profile(t.Context(), source.OfSpan(span, record.Wall))
			if errors.Is(err, profiles.ErrNone) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if text := profiles.DiagnosisOf(p, span.ID, span.Name, span.Duration()); text != "" {
				victims = append(victims, diagnosed{span, text})
			}
		}
	}
	if len(victims) == 0 {
		t.Fatalf("no request %s of %d traces has a wall-clock profile", name, len(found.Traces))
	}
	slices.SortFunc(victims, func(a, b diagnosed) int { return cmp.Compare(a.Duration(), b.Duration()) })
	return victims[len(victims)/2].text
}

// The leaks: what is sent, and who is to blame.
var shopLeaks = []struct {
	name, method, path string
	kind               leaks.Kind
	blame              string
}{
	{"leak of memory", http.MethodPost, "/session", leaks.Memory, "newSession"},
	{"leak of goroutines", http.MethodGet, "/watch", leaks.Goroutines, "(*shop).watchPrice"},
}

// leakWindows is how many profiles of a second a leak has.
const leakWindows = 30

// TestTheShopsLeaks makes each leak of the shop. What leaks must be what grows most in the report.
func TestTheShopsLeaks(t *testing.T) {
	t.Setenv("PYROSCOPE_UPLOAD_INTERVAL", "1s")
	var rows []string
	for _, l := range shopLeaks {
		t.Run(l.name, func(t *testing.T) {
			var end time.Time // when what leaks is not freed yet
			saved := runShop(t, func(base string) {
				tick := time.NewTicker(50 * time.Millisecond)
				defer tick.Stop()
				end = time.Now().Add(leakWindows * time.Second)
				for i := 0; time.Now().Before(end); i++ {
					send(t, l.method, base+l.path)
					if i%10 == 0 {
						get(t, base+"/report") // makes garbage: memory profiles are of the last garbage collection
					}
					<-tick.C
				}
			})
			windows, err := input.Open(t.Context(), saved, input.Options{
				Query: profiles.Query{Service: serviceName, Types: []record.Type{record.Memory, record.Goroutine}, To: end.Add(-time.Second)},
			})
			if err != nil {
				t.Fatal(err)
			}
			grown, err := leaks.Find(t.Context(), windows, leaks.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if len(grown.Suspects) == 0 {
				t.Fatal("the report has nothing that grows")
			}
			first, blame := grown.Suspects[0], "service."+l.blame
			if first.Kind != l.kind || wallprofile.Short(first.Site) != blame {
				t.Errorf("%s of %s grows most in the report, want %s of %s", first.Kind, first.Site, l.kind, blame)
			}
			rows = append(rows, fmt.Sprintf("| %s | `%s` | %s of %s |\n", l.name, blame, first.Kind, wallprofile.Short(first.Site)))
		})
	}
	if *update && !t.Failed() && len(rows) == len(shopLeaks) {
		docsection.Write(t, "../README.md", "the shop's leaks, "+written, leaksHead+strings.Join(rows, ""))
	}
}

// address is that of a service, which differs from run to run.
var address = regexp.MustCompile(`127\.0\.0\.1:\d+`)

const (
	written = "written by go test -tags long ./examples/service -run Shop -update"

	shopHead = `
| Mistake | To blame | Diagnosis of the request with the median duration |
|---|---|---|
`
	leaksHead = `
| Mistake | To blame | What grows most |
|---|---|---|
`
)

// runShop runs the service while requests are sent, and returns the directory of what it saved.
func runShop(t *testing.T, during func(base string)) (saved string) {
	t.Helper()
	t.Setenv("SPANFLAME_WALL_CPU_SHARE", "1") // the budget must not leave out a slow request
	t.Setenv("SPANFLAME_SLOW_SPAN", slowest.String())
	dir, lines := t.TempDir(), &log{}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() {
		ran <- run(ctx, ln, setup{dir, tracetest.NewNoopExporter(), sdkmetric.NewManualReader(), slog.NewTextHandler(lines, nil)})
	}()
	during("http://" + ln.Addr().String())
	cancel()
	if err := <-ran; err != nil {
		t.Fatalf("the service ended with %v; its log:\n%s", err, lines)
	}
	return filepath.Join(dir, "saved")
}

// each returns a function that sends requests one after the other.
func each(method, path string) func(t *testing.T, base string) {
	return func(t *testing.T, base string) {
		for range visitors {
			send(t, method, base+path)
		}
	}
}

// together sends requests at the same time.
func together(send func()) {
	var all sync.WaitGroup
	for range visitors {
		all.Go(send)
	}
	all.Wait()
}
