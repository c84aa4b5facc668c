package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/XSAM/otelsql"
	"github.com/go-chi/chi/v5"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	_ "modernc.org/sqlite" // the database's driver
)

// instruments is the service's observability: handed in, never global.
type instruments struct {
	tracers trace.TracerProvider
	meters  metric.MeterProvider
	log     *slog.Logger
}

// suppliers are the suppliers by name, with the time that each takes to answer. The last one makes every quote slow.
var suppliers = map[string]time.Duration{"near": 5 * time.Millisecond, "far": 30 * time.Millisecond, "slow": 180 * time.Millisecond}

// tables has the tables of the quotes, and of the shop's items, which has no index.
const tables = `CREATE TABLE IF NOT EXISTS quotes (product TEXT, supplier TEXT, cents INTEGER);
	CREATE TABLE IF NOT EXISTS items AS
	WITH RECURSIVE numbers(n) AS (VALUES(0) UNION ALL SELECT n+1 FROM numbers WHERE n < 9999) SELECT n AS item, 7*n AS cents FROM numbers`

// service answers requests for quotes and forecasts.
type service struct {
	instruments
	db     *sql.DB
	client *http.Client
	base   string // URL of the suppliers
	shop   *shop

	mu        sync.Mutex         // held while a forecast is computed: concurrent requests wait for it
	forecasts map[string]float64 // guarded by mu
}

// newService opens the database in dir. base is the URL of the suppliers. Streams end when ctx does.
func newService(ctx context.Context, i instruments, base, dir string) (*service, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	db, err := otelsql.Open("sqlite", "file:"+filepath.Join(dir, "quotes.db")+"?_pragma=busy_timeout(5000)",
		otelsql.WithTracerProvider(i.tracers), otelsql.WithMeterProvider(i.meters),
		otelsql.WithSpanOptions(otelsql.SpanOptions{OmitConnResetSession: true, OmitConnectorConnect: true, OmitRows: true}))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1) // SQLite has one writer
	if _, err := db.ExecContext(ctx, tables); err != nil {
		return nil, errors.Join(fmt.Errorf("create the tables: %w", err), db.Close())
	}
	transport := otelhttp.NewTransport(&http.Transport{},
		otelhttp.WithTracerProvider(i.tracers), otelhttp.WithMeterProvider(i.meters), otelhttp.WithPropagators(propagation.TraceContext{}))
	s := &service{
		instruments: i, db: db, base: base, forecasts: map[string]float64{},
		client: &http.Client{Transport: transport, Timeout: 10 * time.Second},
	}
	if s.shop, err = newShop(ctx, s); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func (s *service) close() error {
	err := s.shop.close()
	s.client.CloseIdleConnections()
	return errors.Join(err, s.db.Close())
}

// routes returns the service's routes, each request with a span.
func (s *service) routes() http.Handler {
	r := chi.NewRouter()
	r.Use(otelhttp.NewMiddleware("request",
		otelhttp.WithTracerProvider(s.tracers), otelhttp.WithMeterProvider(s.meters), otelhttp.WithPropagators(propagation.TraceContext{})), named)
	r.Get("/quotes/{product}", s.answer(s.quote))
	r.Get("/forecast/{product}", s.answer(s.forecast))
	r.Get("/suppliers/{supplier}/{product}", s.answer(s.supply))
	s.shop.addTo(r)
	return r
}

// named names the request's span after its route, which the router knows only afterwards.
func named(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r)
		trace.SpanFromContext(r.Context()).SetName(r.Method + " " + chi.RouteContext(r.Context()).RoutePattern())
	})
}

// answer sends what f returns as JSON, and its error as a 500.
func (s *service) answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			s.log.ErrorContext(r.Context(), "request failed", "path", r.URL.Path, "error", err)
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(v); err != nil {
			s.log.WarnContext(r.Context(), "answer not sent", "path", r.URL.Path, "error", err)
		}
	}
}

// offer is one supplier's price.
type offer struct {
	Supplier string `json:"supplier"`
	Cents    int    `json:"cents"`
}

// quote asks all suppliers at the same time, saves their offers and returns the best one.
func (s *service) quote(r *http.Request) (any, error) {
	product := chi.URLParam(r, "product")
	offers := make(chan offer, len(suppliers))
	group, ctx := errgroup.WithContext(r.Context())
	for name := range suppliers {
		group.Go(func() error {
			o, err := s.ask(ctx, name, product)
			offers <- o
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	best := offer{Cents: math.MaxInt}
	for range suppliers {
		o := <-offers
		if _, err := s.db.ExecContext(r.Context(), `INSERT INTO quotes VALUES ($1, $2, $3)`, product, o.Supplier, o.Cents); err != nil {
			return nil, fmt.Errorf("save the offer of %s: %w", o.Supplier, err)
		}
		if o.Cents < best.Cents {
			best = o
		}
	}
	return best, nil
}

// ask asks one supplier.
func (s *service) ask(ctx context.Context, supplier, product string) (o offer, err error) {
	err = s.fetch(ctx, "/suppliers/"+supplier+"/"+product, &o)
	return o, err
}

// fetch asks another service over HTTP.
func (s *service) fetch(ctx context.Context, path string, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+path, nil)
	if err != nil {
		return err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %s", path, resp.Status)
	}
	return json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 1<<10)).Decode(answer)
}

// supply is the answer of a supplier, which takes its time.
func (s *service) supply(r *http.Request) (any, error) {
	name := chi.URLParam(r, "supplier")
	time.Sleep(suppliers[name])
	return offer{Supplier: name, Cents: 100 * len(chi.URLParam(r, "product")+name)}, nil
}

// forecast computes a forecast. The lock is held meanwhile, which makes concurrent requests slow too.
func (s *service) forecast(r *http.Request) (any, error) {
	product := chi.URLParam(r, "product")
	s.mu.Lock()
	defer s.mu.Unlock()
	var mean sql.NullFloat64
	if err := s.db.QueryRowContext(r.Context(), `SELECT avg(cents) FROM quotes WHERE product = $1`, product).Scan(&mean); err != nil {
		return nil, err
	}
	s.forecasts[product] = simulate(mean.Float64, 120*time.Millisecond)
	return s.forecasts[product], nil
}

// simulate computes for d.
//
//go:noinline
func simulate(price float64, d time.Duration) float64 {
	for end := time.Now().Add(d); time.Now().Before(end); {
		for range 10_000 {
			price += math.Sin(price)
		}
	}
	return price
}
