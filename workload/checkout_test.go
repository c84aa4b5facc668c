package workload

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"spanflame/internal/postgrestest"
)

// A checkout is one trace through both processes: server span → pricing, client span → the inventory's server
// span, database_save_transaction → statements.
func TestCheckoutTrace(t *testing.T) {
	for _, method := range []string{"GET", "POST"} {
		t.Run(method, func(t *testing.T) {
			s := newServices(t, Config{})
			s.spans.Reset()
			got := s.do(t, method, s.storefrontURL+"/api/checkout", nil)
			if got.status != 200 {
				t.Fatalf("%d %s", got.status, got.body)
			}
			server := s.span(t, method+" /api/checkout", trace.SpanKindServer)
			pricing := s.span(t, "pricing", trace.SpanKindInternal)
			save := s.span(t, "database_save_transaction", trace.SpanKindInternal)
			client := s.span(t, "POST /api/reserve", trace.SpanKindClient)
			inventory := s.span(t, "POST /api/reserve", trace.SpanKindServer)
			begin := s.span(t, "sql.conn.begin_tx", trace.SpanKindClient)
			commit := s.span(t, "sql.tx.commit", trace.SpanKindClient)
			for child, parent := range map[*tracetest.SpanStub]*tracetest.SpanStub{
				&pricing: &server, &save: &server, &client: &server, &inventory: &client, &begin: &save, &commit: &save,
			} {
				if child.Parent.SpanID() != parent.SpanContext.SpanID() {
					t.Errorf("%s is not a child of %s", child.Name, parent.Name)
				}
			}
			if !inventory.Parent.IsRemote() {
				t.Error("the inventory's parent is not remote")
			}
			for _, span := range s.spans.GetSpans() {
				if span.SpanContext.TraceID() != server.SpanContext.TraceID() {
					t.Errorf("%s is in another trace", span.Name)
				}
				if !strings.HasPrefix(span.Name, "sql.") {
					continue
				}
				if system := value(span.Attributes, "db.system.name"); system != "sqlite" {
					t.Errorf("%s: db.system.name=%q", span.Name, system)
				}
			}
			if route := value(server.Attributes, "http.route"); route != "/api/checkout" {
				t.Errorf("http.route=%q", route)
			}
			var statements []string
			for _, span := range s.spans.GetSpans() {
				if span.Name == "sql.conn.exec" {
					statements = append(statements, value(span.Attributes, "db.query.text"))
				}
			}
			if len(statements) != 4 || statements[0] != insertOrder || statements[3] != insertLine {
				t.Errorf("statements %q, want the order and its three lines", statements)
			}
			id := server.SpanContext.TraceID().String()
			if got.fields["trace_id"] != id || got.header.Get("X-Trace-ID") != id {
				t.Errorf("the answer says trace %v and %v, want %s", got.fields["trace_id"], got.header.Get("X-Trace-ID"), id)
			}
			if lines := s.log.requests(t, "trace_id", id); len(lines) != 2 {
				t.Errorf("%d log lines of the trace, want one of each service", len(lines))
			}
		})
	}
}

func TestCheckoutJoinsTheCallersTrace(t *testing.T) {
	s := newServices(t, Config{})
	const id = "0af7651916cd43dd8448eb211c80319c"
	req := httptest.NewRequest(http.MethodGet, "/api/checkout?items=1", nil)
	req.Header.Set("traceparent", "00-"+id+"-b7ad6b7169203331-01")
	rec := httptest.NewRecorder()
	s.storefront.ServeHTTP(rec, req)
	if got := rec.Header().Get("X-Trace-ID"); got != id {
		t.Errorf("X-Trace-ID %q, want the caller's %q", got, id)
	}
}

func TestCheckoutMetrics(t *testing.T) {
	s := newServices(t, Config{})
	made := s.get(t, "/api/checkout?items=1").header.Get("X-Trace-ID") + " " + s.get(t, "/api/checkout?items=1").header.Get("X-Trace-ID")
	s.inventory.mux = http.NewServeMux() // the inventory forgets its routes
	s.get(t, "/api/checkout?items=1")

	orders := s.metric(t, "api_orders_processed").(metricdata.Sum[int64])
	counts := map[string]int64{}
	for _, p := range orders.DataPoints {
		status, _ := p.Attributes.Value("status")
		counts[status.AsString()] = p.Value
	}
	if counts["success"] != 2 || counts["error"] != 1 || !orders.IsMonotonic {
		t.Errorf("orders by status: %v, want 2 success, 1 error", counts)
	}

	found := false
	for _, p := range s.metric(t, "http.server.request.duration").(metricdata.Histogram[float64]).DataPoints {
		attrs := p.Attributes.ToSlice()
		if value(attrs, "http.route") != "/api/checkout" || value(attrs, "http.response.status_code") != "200" {
			continue
		}
		found = true
		if value(attrs, "http.request.method") != "GET" || p.Count != 2 {
			t.Errorf("%d requests with %v, want 2 of GET", p.Count, attrs)
		}
		if len(p.Exemplars) == 0 {
			t.Error("no exemplar")
		}
		for _, e := range p.Exemplars {
			if id := hex.EncodeToString(e.TraceID); !strings.Contains(made, id) {
				t.Errorf("an exemplar of trace %s, the requests were %s", id, made)
			}
		}
	}
	if !found {
		t.Error("no duration for GET /api/checkout with 200")
	}
}

// Clients choose the Host header: it must not create series.
func TestMetricsDoNotTakeTheHostHeader(t *testing.T) {
	s := newServices(t, Config{})
	for _, host := range []string{"a.example:1", "b.example:2"} {
		req := httptest.NewRequest(http.MethodGet, "/load/sleep?ms=1", nil)
		req.Host = host
		s.storefront.ServeHTTP(httptest.NewRecorder(), req)
	}
	points := s.metric(t, "http.server.request.duration").(metricdata.Histogram[float64]).DataPoints
	if len(points) != 1 {
		t.Errorf("%d series for one route, want 1", len(points))
	}
}

func TestCounterNameInPrometheus(t *testing.T) {
	registry := prometheus.NewRegistry()
	reader, err := promexporter.New(promexporter.WithRegisterer(registry))
	if err != nil {
		t.Fatal(err)
	}
	s := newServices(t, Config{})
	cfg := s.storefront.cfg
	cfg.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	cfg.Database = filepath.Join(t.TempDir(), "orders.db")
	storefront, _ := serve(t, cfg)
	storefront.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/api/checkout?items=1", nil))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	for _, want := range []string{"api_orders_processed_total", "http_server_request_duration_seconds"} {
		if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+want+" ") {
			t.Errorf("no %s in %v", want, names)
		}
	}
}

func TestCheckoutParameters(t *testing.T) {
	s := newServices(t, Config{})
	for _, query := range []string{"items=", "items=0", "items=-1", "items=501", "items=many", "items=1&items=2", "item=1"} {
		if got := s.get(t, "/api/checkout?"+query); got.status != 400 {
			t.Errorf("%s: %d %s, want 400", query, got.status, got.body)
		}
	}
	if got := s.do(t, "POST", s.storefrontURL+"/api/checkout?items=2", strings.NewReader(`{"anything":true}`)); got.status != 200 || got.fields["items"] != 2.0 {
		t.Errorf("POST with a body: %d %s", got.status, got.body)
	}
	if got := s.do(t, "DELETE", s.storefrontURL+"/api/checkout", nil); got.status != 405 || got.header.Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("DELETE: %d, Allow %q", got.status, got.header.Get("Allow"))
	}
	if n := count(t, s.storefront.orders.db, `SELECT count(*) FROM orders`); n != 1 {
		t.Errorf("%d orders, want only the good one", n)
	}
}

func TestCheckoutWithoutInventory(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	s := newServices(t, Config{InventoryURL: "http://" + nobody.Addr().String()})
	got := s.get(t, "/api/checkout?items=1")
	if got.status != 502 || !strings.Contains(got.body, "inventory") {
		t.Errorf("%d %s, want a 502 that names the inventory", got.status, got.body)
	}
	if span := s.span(t, "GET /api/checkout", trace.SpanKindServer); span.Status.Code != codes.Error {
		t.Errorf("span status %v, want an error", span.Status)
	}
	if lines := s.log.requests(t, "http_status", 502.0); len(lines) != 1 || !strings.Contains(fmt.Sprint(lines[0]["error"]), "refused") {
		t.Errorf("logged %v, want the reason", lines)
	}
	if n := count(t, s.storefront.orders.db, `SELECT count(*) FROM orders`); n != 0 {
		t.Errorf("%d orders were saved", n)
	}
}

func TestCheckoutWhenTheInventoryMisbehaves(t *testing.T) {
	for name, inventory := range map[string]http.HandlerFunc{
		"500":     func(w http.ResponseWriter, _ *http.Request) { http.Error(w, strings.Repeat("x", 1<<20), 500) },
		"cut off": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"half way": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			w.Write([]byte("x"))
		},
	} {
		server := httptest.NewServer(inventory)
		s := newServices(t, Config{InventoryURL: server.URL})
		if got := s.get(t, "/api/checkout?items=1"); got.status != 502 || len(got.body) > 1000 {
			t.Errorf("%s: %d with %d bytes, want a short 502", name, got.status, len(got.body))
		}
		server.Close()
	}
}

func TestOrdersAreInSQLite(t *testing.T) {
	// A path that would name another file if it were not escaped in the data source name.
	file := filepath.Join(t.TempDir(), "made on demand", "50% off?mode=memory#1.db")
	s := newServices(t, Config{Database: file})
	checkOrdersAreSaved(t, s)
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: file}).String())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if n := count(t, db, `SELECT count(*) FROM orders`); n != 21 {
		t.Errorf("%d orders in the file, want 21", n)
	}
	var mode string
	if err := db.QueryRow(`PRAGMA journal_mode`).Scan(&mode); err != nil || mode != "wal" {
		t.Errorf("journal_mode %q (%v), want wal", mode, err)
	}
}

func TestOrdersAreInPostgreSQL(t *testing.T) {
	s := newServices(t, Config{DatabaseURL: postgrestest.Start(t)})
	s.spans.Reset()
	checkOrdersAreSaved(t, s)
	for _, span := range s.spans.GetSpans() {
		if span.Name != "sql.conn.exec" {
			continue
		}
		for key, want := range map[string]string{"db.system.name": "postgresql", "db.namespace": "postgres"} {
			if got := value(span.Attributes, attribute.Key(key)); got != want {
				t.Errorf("%s=%q, want %q", key, got, want)
			}
		}
	}
}

// checkOrdersAreSaved makes one checkout and looks it up, then twenty at the same time.
func checkOrdersAreSaved(t *testing.T, s *services) {
	t.Helper()
	got := s.do(t, "POST", s.storefrontURL+"/api/checkout?items=10", nil)
	if got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	db := s.storefront.orders.db
	var items, total, lines, pieces int64
	row := db.QueryRowContext(t.Context(), `SELECT o.items, o.total_cents, count(*), sum(l.quantity) FROM orders o
		JOIN order_lines l ON l.order_id = o.id WHERE o.id = $1 GROUP BY o.id, o.items, o.total_cents`, got.fields["order_id"])
	if err := row.Scan(&items, &total, &lines, &pieces); err != nil {
		t.Fatal(err)
	}
	if items != 10 || float64(total) != got.fields["total_cents"] || lines != 8 || pieces != 10 {
		t.Errorf("saved %d items, %d cents, %d lines, %d pieces; answered %s", items, total, lines, pieces, got.body)
	}
	var checkouts sync.WaitGroup
	for range 20 {
		checkouts.Go(func() {
			if got := s.get(t, "/api/checkout?items=1"); got.status != 200 {
				t.Errorf("%d %s", got.status, got.body)
			}
		})
	}
	checkouts.Wait()
	if n := count(t, db, `SELECT count(*) FROM orders`); n != 21 {
		t.Errorf("%d orders, want 21", n)
	}
}

func TestFailedOrderLeavesNothing(t *testing.T) {
	s := newServices(t, Config{})
	o := order{id: "twice", items: 2, lines: []line{{SKU: "a", Quantity: 1}, {SKU: "a", Quantity: 1}}}
	if err := s.storefront.orders.save(t.Context(), o); err == nil || !strings.Contains(err.Error(), `line of "a"`) {
		t.Errorf("save: %v, want an error that names the line", err)
	}
	if n := count(t, s.storefront.orders.db, `SELECT count(*) FROM orders`); n != 0 {
		t.Errorf("%d orders are left of a transaction that failed", n)
	}
}

func count(t testing.TB, db *sql.DB, query string) (n int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBestOffer(t *testing.T) {
	for _, p := range catalogue {
		got := bestOffer(p.cents)
		if got >= p.cents || got < p.cents*minPermille/1000 {
			t.Errorf("%s: %d is sold for %d", p.sku, p.cents, got)
		}
	}
	if got := bestOffer(0); got != 0 {
		t.Errorf("a gift costs %d", got)
	}
}

func TestReserve(t *testing.T) {
	s := newServices(t, Config{})
	sku := catalogue[0].sku
	one := fmt.Sprintf(`{"sku":%q,"quantity":1}`, sku)
	for name, tc := range map[string]struct {
		body   string
		status int
		says   string
	}{
		"good":            {`{"lines":[` + one + `]}`, 200, `"reserved":1`},
		"two lines":       {`{"lines":[` + one + `,` + one + `]} `, 200, `"reserved":2`},
		"empty":           {``, 400, "not a reservation"},
		"not JSON":        {`<xml/>`, 400, "not a reservation"},
		"another type":    {`[]`, 400, "not a reservation"},
		"unknown field":   {`{"line":[]}`, 400, "line"},
		"two values":      {`{"lines":[` + one + `]}{}`, 400, "more than one"},
		"trailing rubble": {`{"lines":[` + one + `]}]`, 400, "not a reservation"},
		"no lines":        {`{"lines":[]}`, 400, "0 lines"},
		"too many lines":  {`{"lines":[` + strings.Repeat(one+",", maxLines) + one + `]}`, 400, "101 lines"},
		"unknown sku":     {`{"lines":[{"sku":"tin-whistle","quantity":1}]}`, 400, "tin-whistle"},
		"zero":            {`{"lines":[{"sku":"` + sku + `"}]}`, 400, "quantity 0"},
		"negative":        {`{"lines":[{"sku":"` + sku + `","quantity":-1}]}`, 400, "quantity -1"},
		"huge":            {`{"lines":[{"sku":"` + sku + `","quantity":1001}]}`, 400, "quantity 1001"},
		"overflow":        {`{"lines":[{"sku":"` + sku + `","quantity":1e400}]}`, 400, "1e400"},
		"too large":       {`{"lines":[` + strings.Repeat(" ", maxBody) + `]}`, 413, "65536 bytes"},
	} {
		got := s.do(t, "POST", s.inventoryURL+"/api/reserve", strings.NewReader(tc.body))
		if got.status != tc.status || !strings.Contains(got.body, tc.says) {
			t.Errorf("%s: %d %s, want %d with %q", name, got.status, got.body, tc.status, tc.says)
		}
	}
	if got := s.do(t, "GET", s.inventoryURL+"/api/reserve", nil); got.status != 405 || got.header.Get("Allow") != "POST" {
		t.Errorf("GET: %d, Allow %q", got.status, got.header.Get("Allow"))
	}
}

func TestStockIsRefilledAndTakenWhole(t *testing.T) {
	s := newConfirmedStock()
	sku := catalogue[0].sku
	for range 2 * fullShelf / maxQuantity {
		if _, err := s.reserve(t.Context(), []line{{sku, maxQuantity}}); err != nil {
			t.Fatal(err)
		}
	}
	if left := s.shelves[sku]; left < 0 || left > fullShelf {
		t.Errorf("%d pieces on the shelf", left)
	}
	before := s.shelves[sku]
	if _, err := s.reserve(t.Context(), []line{{sku, 1}, {"tin-whistle", 1}}); err == nil {
		t.Error("an unknown line was reserved")
	}
	if s.shelves[sku] != before {
		t.Error("a refused reservation took something")
	}
}

// newConfirmedStock returns a stock whose warehouse answers at once.
func newConfirmedStock() *stock {
	s := newStock(&fault{})
	s.confirm = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	return s
}

func FuzzReserve(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"lines":[{"sku":"scale-0.1g","quantity":2}]}`, `{"lines":null}`, "[[[[", `{"lines":[{}]}`} {
		f.Add(seed)
	}
	s := newConfirmedStock()
	f.Fuzz(func(t *testing.T, body string) {
		_, err := s.reserveHandler(httptest.NewRequest(http.MethodPost, "/api/reserve", strings.NewReader(body)))
		var refused *apiError
		if err != nil && (!errors.As(err, &refused) || refused.status != http.StatusBadRequest || len(refused.Message) > 1000) {
			t.Errorf("%q: %v, want a short 400", body, err)
		}
	})
}
