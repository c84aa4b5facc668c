// Package workload is a sample service to profile. It consists of two services: a storefront that sells products,
// and an inventory that the storefront calls over HTTP. Load endpoints do one measurable thing each: burn CPU, leak
// memory, wait for a lock, and so on. The demo and the end-to-end tests use it. It is instrumented with the
// OpenTelemetry API only, as any service would be, and never imports the agent. It is not a template for a real
// store: it has no authentication, so by default it listens on loopback only.
//
// Every answer is JSON. Every request makes one server span named "METHOD route", one log line "HTTP Request
// Processed" and one value in the histogram http.server.request.duration; the answer carries the trace's id in
// X-Trace-ID. The health endpoints make none of these, except a log line when they fail.
//
//	Method     Route             Role        Parameters (default, range)
//	GET, POST  /api/checkout     storefront  items (3, 1..500): prices, reserves and saves one order;
//	                                         about 10 ms of CPU an item; a body is not read
//	POST       /api/reserve      inventory   body {"lines":[{"sku":"…","quantity":1}]}: takes about 40 ms, the
//	                                         time of a warehouse far away
//	GET        /api/warehouse    inventory   ms (40, 1..5000): passes a question on to the warehouse, which takes ms
//	GET        /load/cpu         both        ms (100, 1..10000): computes on one core
//	GET        /load/leak        both        mb (10, 1..1024): retained until DELETE; 507 at the limit
//	DELETE     /load/leak        both        frees what was leaked
//	GET        /load/alloc       both        mb (64, 1..4096): allocated and dropped at once
//	GET        /load/lock        both        ms (100, 1..10000): waits for a mutex that is held for ms; requests
//	                                         at the same time queue for the same mutex
//	GET        /load/block       both        ms (100, 1..30000): waits for a channel
//	GET        /load/sleep       both        ms (100, 1..30000): sleeps
//	GET        /load/goroutines  both        n (100, 1..100000), ms (60000, 1..600000): parks n goroutines for ms;
//	                                         507 when more than 100000 would be parked
//	DELETE     /load/goroutines  both        ends the parked goroutines
//	GET        /faults           both        lists the faults with all that is known of them, and which are on
//	PUT        /faults/{name}    both        switches one on; its knobs are parameters
//	DELETE     /faults/{name}    both        switches it off, which is the repaired code
//	GET        /healthz          both        the process serves
//	GET        /readyz           both        the database answers (storefront)
//
// A parameter that is malformed, out of range, given twice or unknown is a 400 that names the parameter, the value
// and what is allowed; a missing parameter has its default.
//
// # Faults
//
// Faults are mistakes that real services make, each with its repair, in a file of its own: fault_*.go. Each is
// described where it is added, by a [spanflame/workload/faults.Fault]: what is wrong, the function that is to blame, the requests that it
// makes slow and those that cause it, and the knobs that say how much of it there is. The routes of the code that a
// fault is in are registered with it. All faults are off at the start.
package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// instrumentation is the name of the tracer and the meter of this package.
const instrumentation = "spanflame/workload"

// The service's limits. They are constants because nobody has a reason to change them. Their order matters: a
// request is cancelled before its connection is closed, so that the client still gets an answer.
const (
	requestTimeout = 60 * time.Second // after this a request's context ends
	writeTimeout   = 75 * time.Second // after this the connection is closed
	readTimeout    = 10 * time.Second // header and body
	idleTimeout    = 2 * time.Minute
	maxHeader      = 64 << 10 // bytes
	maxBody        = 64 << 10 // bytes

	// cancelGrace is how long Serve waits for handlers after it cancelled their contexts.
	cancelGrace = 2 * time.Second
)

// Role is one of the workload's two services.
type Role string

// The two services.
const (
	Storefront Role = "storefront" // public API; calls the inventory, saves orders
	Inventory  Role = "inventory"  // reserves stock
)

// Config configures a service. The zero value of every field but Role is its documented default.
type Config struct {
	Role Role

	// Listen is the address of Run's listener. The default is 127.0.0.1:8080 for the storefront and
	// 127.0.0.1:8081 for the inventory.
	Listen string

	// InventoryURL is the base URL of the inventory, for the storefront. The default is http://127.0.0.1:8081.
	InventoryURL string

	// Database is the SQLite file for the storefront's orders; it and its directory are created if they are
	// missing. The default is data/orders.db.
	Database string

	// DatabaseURL, when set, names a PostgreSQL database (postgres://…) to use in place of the SQLite file.
	DatabaseURL string

	// LeakLimitMB is the most that /load/leak retains, in MiB. The default is 512.
	LeakLimitMB int

	// DrainTimeout is how long a stopping service lets requests in flight finish before it cancels them.
	// The default is 10 s.
	DrainTimeout time.Duration

	// Logger receives one line per request. Its handler is expected to add the trace's id from the context.
	// The default is slog.Default().
	Logger *slog.Logger

	// The OpenTelemetry providers; the defaults are the globals at the time of New.
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
	Propagator     propagation.TextMapPropagator
}

// Validate reports the first setting that cannot work, with its value and what is allowed.
func (c Config) Validate() error {
	if c.Role != Storefront && c.Role != Inventory {
		return fmt.Errorf("role %q: must be %q or %q", c.Role, Storefront, Inventory)
	}
	if c.LeakLimitMB < 0 {
		return fmt.Errorf("leak limit %d MiB: must be 0 (for the default) or more", c.LeakLimitMB)
	}
	if c.DrainTimeout < 0 {
		return fmt.Errorf("drain timeout %v: must be 0 (for the default) or more", c.DrainTimeout)
	}
	if c.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			return fmt.Errorf("listen address %q: must be host:port: %w", c.Listen, err)
		}
	}
	if c.InventoryURL != "" {
		u, err := url.Parse(c.InventoryURL)
		if err != nil {
			return fmt.Errorf("inventory URL %q: %w", c.InventoryURL, err)
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("inventory URL %q: must be http://host:port or https://host:port", c.InventoryURL)
		}
	}
	return nil
}

// withDefaults returns the configuration with its defaults filled in.
func (c Config) withDefaults() Config {
	if c.Listen == "" {
		c.Listen = "127.0.0.1:8080"
		if c.Role == Inventory {
			c.Listen = "127.0.0.1:8081"
		}
	}
	if c.InventoryURL == "" {
		c.InventoryURL = "http://127.0.0.1:8081"
	}
	if c.Database == "" {
		c.Database = "data/orders.db"
	}
	if c.LeakLimitMB == 0 {
		c.LeakLimitMB = 512
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.TracerProvider == nil {
		c.TracerProvider = otel.GetTracerProvider()
	}
	if c.MeterProvider == nil {
		c.MeterProvider = otel.GetMeterProvider()
	}
	if c.Propagator == nil {
		c.Propagator = otel.GetTextMapPropagator()
	}
	return c
}

// Service is one of the workload's services. It is an http.Handler, for Serve or for any other server.
type Service struct {
	cfg     Config
	log     *slog.Logger
	tracer  trace.Tracer
	mux     *http.ServeMux
	traced  http.Handler        // mux behind the middleware
	orders  *orderStore         // storefront only
	stock   *inventoryClient    // storefront only
	counted metric.Int64Counter // storefront only: orders by outcome

	tariff tariff // storefront only
	till   till   // storefront only

	faults      []*fault
	slowPricing *fault // storefront only
	lockConvoy  *fault

	leak    *leak
	lock    contendedLock
	parking *parking

	life    context.Context // ends when the service is closed
	end     context.CancelFunc
	running sync.WaitGroup // what background started
	ending  sync.Mutex
	ends    []func() // guarded by ending
}

var _ http.Handler = (*Service)(nil)

// New opens the service's database and registers its routes. The caller must call Close.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	s := &Service{
		cfg:     cfg,
		log:     cfg.Logger,
		tracer:  cfg.TracerProvider.Tracer(instrumentation),
		mux:     http.NewServeMux(),
		leak:    newLeak(cfg.LeakLimitMB),
		parking: newParking(maxParked),
	}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	s.traced = otelhttp.NewHandler(http.HandlerFunc(s.observe), "",
		otelhttp.WithTracerProvider(cfg.TracerProvider),
		otelhttp.WithMeterProvider(cfg.MeterProvider),
		otelhttp.WithPropagators(cfg.Propagator),
		otelhttp.WithFilter(func(r *http.Request) bool { return !s.isProbe(r) }),
		otelhttp.WithServerName(serverName(cfg)))

	s.handle(healthPattern, s.healthz)
	s.handle(readyPattern, s.readyz)
	s.handleLoads()
	switch cfg.Role {
	case Inventory:
		s.addFaults(inventoryFaults)
		s.handle("POST /api/reserve", newStock(s.lockConvoy).reserveHandler)
		s.handle("GET /api/warehouse", warehouseHandler)
		s.handle("GET /api/ratings", ratingsHandler)
	case Storefront:
		if err := s.openStorefront(ctx); err != nil {
			s.end()
			return nil, err
		}
		s.addFaults(storefrontFaults)
		s.handle("GET /api/checkout", s.checkout)
		s.handle("POST /api/checkout", s.checkout)
		s.handle("GET /api/boxes", s.boxesHandler)
		s.handle("GET /api/stock", s.stockHandler)
	}
	s.handleFaults()
	return s, nil
}

// background runs f until the service is closed: then ctx ends, and Close waits for f.
func (s *Service) background(f func(ctx context.Context)) {
	s.running.Go(func() { f(s.life) })
}

// atEnd calls f when the service is closed.
func (s *Service) atEnd(f func()) {
	s.ending.Lock()
	defer s.ending.Unlock()
	s.ends = append(s.ends, f)
}

// serverName is the server's address in metrics. Without it, they would use the request's Host header, and any
// client could create any number of series.
func serverName(cfg Config) string {
	_, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return string(cfg.Role)
	}
	return net.JoinHostPort(string(cfg.Role), port)
}

// openStorefront opens the storefront's tariff, database, inventory client and counter.
func (s *Service) openStorefront(ctx context.Context) (err error) {
	if s.tariff, err = compileTariff(tariffText); err != nil {
		return err
	}
	counted, err := s.cfg.MeterProvider.Meter(instrumentation).Int64Counter("api_orders_processed",
		metric.WithDescription("Checkouts by outcome: success, or error when no order was saved."),
		metric.WithUnit("{order}"))
	if err != nil {
		return fmt.Errorf("create the order counter: %w", err)
	}
	if s.orders, err = openOrders(ctx, s.cfg); err != nil {
		return err
	}
	s.counted = counted
	s.stock = newInventoryClient(s.cfg)
	return nil
}

// Run opens, serves and closes the service. It returns after ctx has ended and the requests in flight are done.
func Run(ctx context.Context, cfg Config) error {
	s, err := New(ctx, cfg)
	if err != nil {
		return err
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return errors.Join(fmt.Errorf("listen on %s: %w", s.cfg.Listen, err), s.Close())
	}
	return errors.Join(s.Serve(ctx, ln), s.Close())
}

// Serve answers requests on ln until ctx ends. Requests in flight then have Config.DrainTimeout to finish;
// those that do not are cancelled. Serve closes ln and returns when no request runs any more.
func (s *Service) Serve(ctx context.Context, ln net.Listener) error {
	// Requests must outlive ctx: a stop lets them finish.
	base, cancelRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelRequests()
	srv := &http.Server{
		Handler:           s,
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		// "OPTIONS *" is answered like every other request, with a trace and a log line.
		DisableGeneralOptionsHandler: true,
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	s.log.InfoContext(ctx, "Service listening", "role", s.cfg.Role, "address", ln.Addr().String())

	var serveErr error
	select {
	case err := <-failed:
		serveErr = fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	return errors.Join(serveErr, s.drain(srv, cancelRequests))
}

// drain stops srv: it waits for the requests, then cancels them, then closes their connections.
func (s *Service) drain(srv *http.Server, cancelRequests context.CancelFunc) error {
	polite, done := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer done()
	if srv.Shutdown(polite) == nil {
		return nil
	}
	s.log.Warn("Requests still running are cancelled", "drain_timeout", s.cfg.DrainTimeout.String())
	cancelRequests()
	grace, done := context.WithTimeout(context.Background(), cancelGrace)
	defer done()
	if err := srv.Shutdown(grace); err != nil {
		return errors.Join(fmt.Errorf("requests still running %v after they were cancelled: %w", cancelGrace, err), srv.Close())
	}
	return nil
}

// Close frees everything that requests retained and closes the database. No request must be running.
func (s *Service) Close() error {
	for _, f := range s.faults {
		f.repair()
	}
	s.end()
	s.running.Wait()
	for _, end := range s.ends {
		end()
	}
	s.parking.drain()
	s.leak.release()
	if s.orders == nil {
		return nil
	}
	s.stock.close()
	return s.orders.close()
}
