package workload

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/XSAM/otelsql"
	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver of PostgreSQL
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
	_ "modernc.org/sqlite" // the driver of SQLite
)

// The statements are the same for both databases: both support $1, TEXT and BIGINT.
const (
	createOrders = `CREATE TABLE IF NOT EXISTS orders (
		id TEXT PRIMARY KEY, created_unix_ms BIGINT NOT NULL, items BIGINT NOT NULL, total_cents BIGINT NOT NULL)`
	createLines = `CREATE TABLE IF NOT EXISTS order_lines (
		order_id TEXT NOT NULL REFERENCES orders (id), sku TEXT NOT NULL, quantity BIGINT NOT NULL,
		PRIMARY KEY (order_id, sku))`
	insertOrder = `INSERT INTO orders (id, created_unix_ms, items, total_cents) VALUES ($1, $2, $3, $4)`
	insertLine  = `INSERT INTO order_lines (order_id, sku, quantity) VALUES ($1, $2, $3)`
)

// sharedConns is how many connections orderStore.shared has.
const sharedConns = 8

// orderStore stores orders in an SQL database.
type orderStore struct {
	db     *sql.DB
	shared *sql.DB             // of the same database, with more than one connection for SQLite too
	stats  metric.Registration // of the connection pool
}

// database describes a database for orders: how to connect to it, and its particular settings.
type database struct {
	driver   string // as registered with database/sql
	source   string // for the driver, with secrets
	name     string // for errors, without secrets
	attrs    []attribute.KeyValue
	maxConns int
	patience time.Duration // how long to wait for it to come up
}

// openOrders connects to the configured database and creates the tables that are missing.
func openOrders(ctx context.Context, cfg Config) (*orderStore, error) {
	var d database
	var err error
	if cfg.DatabaseURL != "" {
		d, err = postgres(cfg.DatabaseURL)
	} else {
		d, err = sqliteFile(cfg.Database)
	}
	if err != nil {
		return nil, err
	}
	options := []otelsql.Option{
		otelsql.WithTracerProvider(cfg.TracerProvider),
		otelsql.WithMeterProvider(cfg.MeterProvider),
		otelsql.WithAttributes(d.attrs...),
		// Spans for statements and transactions; the pool's own housekeeping would only hide them.
		otelsql.WithSpanOptions(otelsql.SpanOptions{OmitConnResetSession: true, OmitConnectorConnect: true, DisableErrSkip: true}),
	}
	pool := func(conns int) (*sql.DB, error) {
		db, err := otelsql.Open(d.driver, d.source, options...)
		if err != nil {
			return nil, fmt.Errorf("open the order database %s: %w", d.name, err)
		}
		db.SetMaxOpenConns(conns)
		db.SetMaxIdleConns(conns)
		return db, nil
	}
	db, err := pool(d.maxConns)
	if err != nil {
		return nil, err
	}
	shared, err := pool(sharedConns) // connects when it is used
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := createSchema(ctx, db, d.patience); err != nil {
		return nil, errors.Join(fmt.Errorf("open the order database %s: %w", d.name, err), db.Close(), shared.Close())
	}
	stats, err := otelsql.RegisterDBStatsMetrics(db, options...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("register the metrics of the order database: %w", err), db.Close(), shared.Close())
	}
	return &orderStore{db: db, shared: shared, stats: stats}, nil
}

// sqliteFile returns the database for an SQLite file. It creates the directory if that is missing.
func sqliteFile(path string) (database, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return database{}, fmt.Errorf("order database %q: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(absolute), 0o755); err != nil {
		return database{}, fmt.Errorf("make the directory of the order database: %w", err)
	}
	// With WAL, readers do not wait for the writer, and NORMAL syncs at checkpoints only without risk of damage to
	// the file. An immediate transaction takes the write lock at its start, where busy_timeout applies, not in its
	// middle, where SQLite reports "database is locked" without waiting.
	dsn := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(absolute), RawQuery: url.Values{
		"_txlock": {"immediate"},
		"_pragma": {"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(NORMAL)", "foreign_keys(1)"},
	}.Encode()}
	return database{
		driver: "sqlite",
		source: dsn.String(),
		name:   path,
		attrs:  []attribute.KeyValue{semconv.DBSystemNameSQLite, semconv.DBNamespace(filepath.Base(path))},
		// SQLite has one writer. With one connection the others wait in database/sql, where a profile shows them,
		// and not in SQLite's polling.
		maxConns: 1,
	}, nil
}

// postgres returns the database for a PostgreSQL URL. Errors never repeat the URL, because it contains a password.
func postgres(databaseURL string) (database, error) {
	if !strings.HasPrefix(databaseURL, "postgres://") && !strings.HasPrefix(databaseURL, "postgresql://") {
		return database{}, errors.New("DATABASE_URL: must begin with postgres:// or postgresql://; without it orders go to an SQLite file")
	}
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return database{}, fmt.Errorf("DATABASE_URL: %w", err) // pgx omits the password
	}
	return database{
		driver: "pgx",
		source: databaseURL,
		name:   fmt.Sprintf("postgres://%s:%d/%s", cfg.Host, cfg.Port, cfg.Database),
		attrs: []attribute.KeyValue{semconv.DBSystemNamePostgreSQL, semconv.DBNamespace(cfg.Database),
			semconv.ServerAddress(cfg.Host), semconv.ServerPort(int(cfg.Port))},
		maxConns: 16,
		patience: 15 * time.Second, // the database may be starting at the same time
	}, nil
}

// createSchema creates the missing tables. It retries until patience has passed: the database may still be
// starting, and two storefronts that start at the same time can collide in PostgreSQL's CREATE TABLE IF NOT EXISTS.
func createSchema(ctx context.Context, db *sql.DB, patience time.Duration) error {
	create := func() (struct{}, error) {
		for _, statement := range []string{createOrders, createLines, createReviews, fillReviews(), createLikes, fillLikes} {
			if _, err := db.ExecContext(ctx, statement); err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	}
	if patience == 0 {
		_, err := create()
		return err
	}
	_, err := backoff.Retry(ctx, create, backoff.WithMaxElapsedTime(patience))
	return err
}

// save writes the order and its lines in one transaction.
func (s *orderStore) save(ctx context.Context, o order) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("save order: begin: %w", err)
	}
	if err := insert(ctx, tx, o); err != nil {
		err = fmt.Errorf("save order: %w", err)
		if undo := tx.Rollback(); !errors.Is(undo, sql.ErrTxDone) { // ErrTxDone: the end of ctx has rolled it back
			err = errors.Join(err, undo)
		}
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("save order: commit: %w", err)
	}
	return nil
}

func insert(ctx context.Context, tx *sql.Tx, o order) error {
	if _, err := tx.ExecContext(ctx, insertOrder, o.id, o.created.UnixMilli(), o.items, o.totalCents); err != nil {
		return fmt.Errorf("insert the order: %w", err)
	}
	for _, l := range o.lines {
		if _, err := tx.ExecContext(ctx, insertLine, o.id, l.SKU, l.Quantity); err != nil {
			return fmt.Errorf("insert the line of %q: %w", l.SKU, err)
		}
	}
	return nil
}

func (s *orderStore) close() error {
	return errors.Join(s.stats.Unregister(), s.shared.Close(), s.db.Close())
}
