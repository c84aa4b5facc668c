package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
)

const (
	maxLines    = 100
	maxQuantity = 1000 // of one line
	fullShelf   = 10_000
)

// reservation is the body of POST /api/reserve.
type reservation struct {
	Lines []line `json:"lines"`
}

// reserved is the answer to a reservation.
type reserved struct {
	Reserved int `json:"reserved"` // pieces
}

// stock counts the pieces on the inventory's shelves. It is kept in memory; only orders are durable.
type stock struct {
	lockConvoy *fault
	confirm    func(context.Context, time.Duration) error // asks the warehouse

	mu      sync.Mutex
	shelves map[string]int // pieces by SKU
}

func newStock(lockConvoy *fault) *stock {
	s := &stock{lockConvoy: lockConvoy, confirm: askWarehouse, shelves: make(map[string]int, len(catalogue))}
	for _, p := range catalogue {
		s.shelves[p.sku] = fullShelf
	}
	return s
}

// reserveHandler answers POST /api/reserve.
func (s *stock) reserveHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	var wanted reservation
	body := json.NewDecoder(r.Body)
	body.DisallowUnknownFields()
	err := body.Decode(&wanted)
	if err == nil {
		if _, err = body.Token(); err == nil {
			err = errors.New("more than one JSON value")
		} else if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &apiError{status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
	case err != nil:
		return nil, badReservation("the body is not a reservation: %v", err)
	case len(wanted.Lines) == 0 || len(wanted.Lines) > maxLines:
		return nil, badReservation("%d lines: allowed are 1 to %d", len(wanted.Lines), maxLines)
	}
	return s.reserve(r.Context(), wanted.Lines)
}

func badReservation(format string, args ...any) error {
	return &apiError{
		status:  http.StatusBadRequest,
		Message: truncate(fmt.Sprintf(format, args...), 4*maxEchoed),
		Allowed: `{"lines":[{"sku":"…","quantity":1}]}`,
	}
}

// warehouseTime is the time that the warehouse takes to confirm a reservation.
const warehouseTime = 40 * time.Millisecond

// answered is the answer of a route that has nothing else to say.
type answered struct {
	MS int `json:"ms"` // that the warehouse took
}

// warehouseHandler answers GET /api/warehouse, which passes a question on to the warehouse.
func warehouseHandler(r *http.Request) (any, error) {
	values, err := queryInts(r, param{name: "ms", fallback: 40, min: 1, max: maxWarehouseMS})
	if err != nil {
		return nil, err
	}
	return answered{MS: values[0]}, askWarehouse(r.Context(), milliseconds(values[0]))
}

// maxWarehouseMS is below the time limit of the storefront's requests.
const maxWarehouseMS = 5000

// askWarehouse stands in for a call to a remote warehouse system that takes d. It waits without a helper, so that its
// own name is the innermost one of a flame graph.
//
//go:noinline
func askWarehouse(ctx context.Context, d time.Duration) error {
	answer := time.NewTimer(d)
	defer answer.Stop()
	select {
	case <-answer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// take takes either all lines from the shelves or none. A shelf that runs short is filled up again, so that the
// workload never sells out. The caller holds s.mu.
func (s *stock) take(lines []line) (reserved, error) {
	for _, l := range lines {
		if _, ok := s.shelves[l.SKU]; !ok {
			return reserved{}, badReservation("unknown sku %q", truncate(l.SKU, maxEchoed))
		}
		if l.Quantity < 1 || l.Quantity > maxQuantity {
			return reserved{}, badReservation("sku %q: quantity %d: allowed is 1 to %d", l.SKU, l.Quantity, maxQuantity)
		}
	}
	var answer reserved
	for _, l := range lines {
		if s.shelves[l.SKU] < l.Quantity {
			s.shelves[l.SKU] = fullShelf
		}
		s.shelves[l.SKU] -= l.Quantity
		answer.Reserved += l.Quantity
	}
	return answer, nil
}

// putBack undoes take. The caller holds s.mu.
func (s *stock) putBack(lines []line) {
	for _, l := range lines {
		s.shelves[l.SKU] += l.Quantity
	}
}

// inventoryClient calls the inventory for the storefront.
type inventoryClient struct {
	url       string // of the inventory, without a slash at its end
	client    *http.Client
	transport *http.Transport
}

func newInventoryClient(cfg Config) *inventoryClient {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	// Every request goes to one host; the default of 2 idle connections would open a new one for most requests
	// under load.
	transport.MaxIdleConnsPerHost = transport.MaxIdleConns
	return &inventoryClient{
		url:       strings.TrimSuffix(cfg.InventoryURL, "/"),
		transport: transport,
		client: &http.Client{
			Timeout: 10 * time.Second,
			Transport: otelhttp.NewTransport(transport,
				otelhttp.WithTracerProvider(cfg.TracerProvider),
				otelhttp.WithMeterProvider(cfg.MeterProvider),
				otelhttp.WithPropagators(cfg.Propagator),
				otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string {
					return r.Method + " " + r.URL.Path[strings.LastIndex(r.URL.Path, "/api/"):]
				})),
		},
	}
}

func (c *inventoryClient) close() { c.transport.CloseIdleConnections() }

// reserve asks the inventory to put the lines aside.
func (c *inventoryClient) reserve(ctx context.Context, lines []line) error {
	body, err := json.Marshal(reservation{Lines: lines})
	if err != nil {
		return fmt.Errorf("encode the reservation: %w", err)
	}
	return c.ask(ctx, http.MethodPost, "/api/reserve", bytes.NewReader(body))
}

// warehouse asks the inventory for something that it has to ask the warehouse for, which takes so many milliseconds.
func (c *inventoryClient) warehouse(ctx context.Context, ms int) error {
	return c.ask(ctx, http.MethodGet, "/api/warehouse?ms="+strconv.Itoa(ms), http.NoBody)
}

// ask sends a request to the inventory and reads its answer.
func (c *inventoryClient) ask(ctx context.Context, method, path string, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, body)
	if err != nil {
		return fmt.Errorf("make the request to the inventory: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.client.Do(req)
	if err != nil {
		return &apiError{status: http.StatusBadGateway, Message: "the inventory cannot be reached", cause: err}
	}
	defer resp.Body.Close()
	// Read to the end, so that the connection can be reused; at most 64 KiB of a broken inventory's answer are
	// read.
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return &apiError{status: http.StatusBadGateway, Message: "the inventory's answer was cut off", cause: err}
	}
	if resp.StatusCode != http.StatusOK {
		return &apiError{
			status:  http.StatusBadGateway,
			Message: "the inventory refused the request",
			cause:   fmt.Errorf("%s: %s", resp.Status, truncate(string(bytes.TrimSpace(answer)), maxLoggedPath)),
		}
	}
	return nil
}
