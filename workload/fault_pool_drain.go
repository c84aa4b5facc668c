package workload

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"golang.org/x/sync/errgroup"

	"spanflame/workload/faults"
)

// exportMS is how many milliseconds the warehouse takes for the export.
const exportMS = 420

// export sends orders to the warehouse. It is done in as many parts as the database has connections.
type export struct {
	fault  *fault
	orders *orderStore
	stock  *inventoryClient
}

// addPoolDrain adds the fault that the export keeps all connections to the database.
func (s *Service) addPoolDrain() {
	const perSecond = 2
	e := &export{orders: s.orders, stock: s.stock, fault: s.addFault(&fault{
		is: faults.Fault{
			Name:     "pool-drain",
			Kind:     faults.Inside,
			Does:     "each part of the export keeps its connection to the database while the warehouse answers: none is left for others",
			Repair:   "each part of the export gives its connection back before it asks the warehouse",
			Function: "spanflame/workload.(*export).sendKeepingConnection",
			Victim:   faults.Request{Method: "GET", Path: "/api/orders", PerSecond: perSecond},
			Offender: &faults.Request{Method: "POST", Path: "/api/export", PerSecond: perSecond},
			Knobs:    []faults.Knob{{Name: "export_ms", Unit: "ms", Default: exportMS, Min: 1, Max: maxWarehouseMS}},
		},
		delay: func(knobs []int) float64 { return turns(perSecond, knobs[0]) },
	})}
	s.handle("GET /api/orders", s.ordersHandler)
	s.handle("POST /api/export", e.handler)
}

// orderSummary is one order of the answer to GET /api/orders.
type orderSummary struct {
	ID         string `json:"order_id"`
	Items      int    `json:"items"`
	TotalCents int64  `json:"total_cents"`
}

// ordersHandler answers GET /api/orders with the last ones.
func (s *Service) ordersHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	return s.orders.last(r.Context())
}

const selectLast = `SELECT id, items, total_cents FROM orders ORDER BY created_unix_ms DESC LIMIT 10`

//go:noinline
func (s *orderStore) last(ctx context.Context) (list []orderSummary, err error) {
	rows, err := s.db.QueryContext(ctx, selectLast)
	if err != nil {
		return nil, fmt.Errorf("read the last orders: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	list = []orderSummary{}
	for rows.Next() {
		var o orderSummary
		if err := rows.Scan(&o.ID, &o.Items, &o.TotalCents); err != nil {
			return nil, fmt.Errorf("read the last orders: %w", err)
		}
		list = append(list, o)
	}
	return list, rows.Err()
}

// exported is the answer to an export.
type exported struct {
	Parts int `json:"parts"`
}

// handler answers POST /api/export.
func (e *export) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	knobs, on := e.fault.settings()
	parts := e.orders.db.Stats().MaxOpenConnections
	sending, ctx := errgroup.WithContext(r.Context())
	for range parts {
		sending.Go(func() error {
			if on {
				return e.sendKeepingConnection(ctx, knobs[0])
			}
			return e.send(ctx)
		})
	}
	return exported{Parts: parts}, sending.Wait()
}

// send is the repaired code.
func (e *export) send(ctx context.Context) error {
	if _, err := e.orders.last(ctx); err != nil {
		return err
	}
	return e.stock.warehouse(ctx, exportMS)
}

// sendKeepingConnection is send with the fault: the connection is not free before the rows are closed.
//
//go:noinline
func (e *export) sendKeepingConnection(ctx context.Context, ms int) (err error) {
	rows, err := e.orders.db.QueryContext(ctx, selectLast)
	if err != nil {
		return fmt.Errorf("read the orders to export: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	if err := e.stock.warehouse(ctx, ms); err != nil {
		return err
	}
	return rows.Err()
}
