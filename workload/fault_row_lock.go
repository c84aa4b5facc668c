package workload

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"

	"spanflame/workload/faults"
)

// recountMS is how many milliseconds the warehouse takes for a recount.
const recountMS = 420

const (
	createLikes = `CREATE TABLE IF NOT EXISTS likes (sku TEXT PRIMARY KEY, likes BIGINT NOT NULL)`
	fillLikes   = `INSERT INTO likes (sku, likes) VALUES ('coffee-beans-1kg', 0) ON CONFLICT DO NOTHING`
	addLike     = `UPDATE likes SET likes = likes + 1 WHERE sku = 'coffee-beans-1kg'`
	recountLike = `UPDATE likes SET likes = likes - likes % 10 WHERE sku = 'coffee-beans-1kg'`
)

// likes counts who likes a product, in the database.
type likes struct {
	fault *fault
	db    *sql.DB // with more than one connection
	stock *inventoryClient
}

// addRowLock adds the fault that a transaction locks a row while the warehouse answers.
func (s *Service) addRowLock() {
	const perSecond = 2
	l := &likes{db: s.orders.shared, stock: s.stock, fault: s.addFault(&fault{
		is: faults.Fault{
			Name: "row-lock",
			Kind: faults.Outside,
			Does: "a transaction changes a row, and asks the warehouse before it commits: the database makes everybody wait " +
				"who changes the row, or with SQLite the file",
			Repair:   "the warehouse is asked before the transaction begins",
			Function: "spanflame/workload.(*likes).recountInTransaction",
			Victim:   faults.Request{Method: "POST", Path: "/api/likes", PerSecond: perSecond},
			Offender: &faults.Request{Method: "POST", Path: "/api/recount", PerSecond: perSecond},
			Knobs:    []faults.Knob{{Name: "recount_ms", Unit: "ms", Default: recountMS, Min: 1, Max: 2000}},
			Cap:      "less than the 5 s after which SQLite gives up",
		},
		delay: func(knobs []int) float64 { return turns(perSecond, knobs[0]) },
	})}
	s.handle("POST /api/likes", l.addHandler)
	s.handle("POST /api/recount", l.recountHandler)
}

// liked is the answer about likes.
type liked struct {
	SKU string `json:"sku"`
}

// addHandler answers POST /api/likes.
func (l *likes) addHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	return liked{catalogue[0].sku}, l.add(r.Context())
}

//go:noinline
func (l *likes) add(ctx context.Context) error {
	if _, err := l.db.ExecContext(ctx, addLike); err != nil {
		return fmt.Errorf("add a like: %w", err)
	}
	return nil
}

// recountHandler answers POST /api/recount.
func (l *likes) recountHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	if knobs, on := l.fault.settings(); on {
		return liked{catalogue[0].sku}, l.recountInTransaction(r.Context(), knobs[0])
	}
	return liked{catalogue[0].sku}, l.recount(r.Context())
}

// recount is the repaired code.
func (l *likes) recount(ctx context.Context) error {
	if err := l.stock.warehouse(ctx, recountMS); err != nil {
		return err
	}
	if _, err := l.db.ExecContext(ctx, recountLike); err != nil {
		return fmt.Errorf("recount likes: %w", err)
	}
	return nil
}

// recountInTransaction is recount with the fault.
//
//go:noinline
func (l *likes) recountInTransaction(ctx context.Context, ms int) error {
	tx, err := l.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("recount likes: begin: %w", err)
	}
	_, err = tx.ExecContext(ctx, recountLike)
	if err == nil {
		err = l.stock.warehouse(ctx, ms)
	}
	if err != nil {
		if undo := tx.Rollback(); !errors.Is(undo, sql.ErrTxDone) { // ErrTxDone: the end of ctx has rolled it back
			err = errors.Join(err, undo)
		}
		return err
	}
	return tx.Commit()
}
