package workload

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"sync"

	"spanflame/workload/faults"
)

// movements is how many movements of goods the ledger has.
const movements = 60_000

// The statements of the ledger. The last balance of each product is with its last movement.
const (
	fillLedger = `CREATE TABLE movements (id INTEGER PRIMARY KEY, product TEXT, pieces INTEGER, balance INTEGER);
		WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO movements SELECT i, 'product-' || (i %% 8), 1, i / 8 FROM n`
	sumLedger     = `SELECT count(*) FROM movements WHERE lower(product) = $1 AND id <= $2`
	balanceLedger = `SELECT balance FROM movements WHERE id = $1`
)

// ledger is the inventory's database of what came and went. It is in memory, and opened when it is first asked.
type ledger struct {
	fault *fault
	open  func() (*sql.DB, error)
}

// addLedgerScan adds the fault that the inventory's database reads all there is.
func (s *Service) addLedgerScan() {
	l := &ledger{fault: s.addFault(&fault{is: faults.Fault{
		Name:     "ledger-scan",
		Kind:     faults.Outside,
		Does:     "the inventory counts a product's movements by its name in small letters, for which there is no index: the database reads the whole ledger",
		Repair:   "the balance is read from the last movement",
		Function: "spanflame/workload.(*ledger).sumOfMovements",
		Victim:   faults.Request{Method: "GET", Path: "/api/stock", PerSecond: 5},
		Span:     "GET /api/balance",
		Knobs:    []faults.Knob{{Name: "movements", Unit: "rows", Default: movements, Min: 1000, Max: movements}},
		Cap:      "60000 rows of memory",
	}})}
	l.open = sync.OnceValues(func() (*sql.DB, error) {
		db, err := sql.Open("sqlite", ":memory:")
		if err != nil {
			return nil, err
		}
		s.atEnd(func() { db.Close() }) // there is nothing in it that could be lost
		db.SetMaxOpenConns(1)          // each connection would have a database of its own
		_, err = db.Exec(fmt.Sprintf(fillLedger, movements))
		return db, err
	})
	s.handle("GET /api/balance", l.handler)
}

// balance is the answer to GET /api/balance.
type balance struct {
	Pieces int `json:"pieces"`
}

// handler answers the inventory's GET /api/balance.
func (l *ledger) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	db, err := l.open()
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	var b balance
	if knobs, on := l.fault.settings(); on {
		b.Pieces, err = l.sumOfMovements(r.Context(), db, knobs[0])
	} else {
		b.Pieces, err = l.lastBalance(r.Context(), db)
	}
	return b, err
}

// lastBalance is the repaired code.
func (l *ledger) lastBalance(ctx context.Context, db *sql.DB) (pieces int, err error) {
	err = db.QueryRowContext(context.WithoutCancel(ctx), balanceLedger, movements).Scan(&pieces)
	return pieces, err
}

// sumOfMovements is lastBalance with the fault.
//
//go:noinline
func (l *ledger) sumOfMovements(ctx context.Context, db *sql.DB, rows int) (pieces int, err error) {
	err = db.QueryRowContext(context.WithoutCancel(ctx), sumLedger, "product-0", rows).Scan(&pieces)
	return pieces, err
}

// stockHandler answers the storefront's GET /api/stock: it asks the inventory for the balance.
func (s *Service) stockHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	return answered{}, s.stock.ask(r.Context(), http.MethodGet, "/api/balance", http.NoBody)
}
