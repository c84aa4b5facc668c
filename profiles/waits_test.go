package profiles_test

import (
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"io"
	"iter"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"spanflame/internal/postgrestest"
	"spanflame/internal/wallprofile"
)

// found returns what the goroutines wait for that are blocked below waiter, and how many of them.
func found(leaf wallprofile.State) map[string]int {
	what := make(map[string]int)
	all := make([]byte, 1<<20)
	for _, g := range strings.Split(string(all[:runtime.Stack(all, true)]), "\n\n") {
		if head, stack, _ := strings.Cut(g, "\n"); !strings.Contains(head, "[runn") && strings.Contains(stack, "/profiles_test.waiter(") {
			what[wallprofile.WaitedFor(leaf.Leaf(), functionsOf(stack))]++
		}
	}
	return what
}

// functionsOf yields the functions of a goroutine's stack as a traceback prints it, each before a line with its file.
func functionsOf(stack string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		function := ""
		for line := range strings.Lines(stack) {
			file, ofFile := strings.CutPrefix(line, "\t")
			if !ofFile {
				function = strings.ReplaceAll(strings.TrimSpace(line), "spanflame/profiles_test.", "main.")
				if i := strings.LastIndexByte(function, '('); i > 0 {
					function = function[:i]
				}
				continue
			}
			file, _, _ = strings.Cut(file, ".go:")
			if !strings.HasPrefix(function, "created by ") && !yield(function, file+".go") {
				return
			}
		}
	}
}

// waiter and its like make what they call that of the service.
//
//go:noinline
func waiter(do func()) { do() }

// connector opens connections whose queries wait for an answer from the network.
type connector struct{ to net.Addr }

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	n, err := new(net.Dialer).DialContext(ctx, c.to.Network(), c.to.String())
	return conn{n}, err
}
func (c connector) Driver() driver.Driver { return nil }

type conn struct{ net.Conn }

func (conn) Prepare(string) (driver.Stmt, error) { return nil, driver.ErrSkip }
func (c conn) Begin() (driver.Tx, error)         { return c, nil }
func (c conn) Commit() error                     { return c.answer() }
func (conn) Rollback() error                     { return nil }
func (c conn) answer() error {
	_, err := c.Read(make([]byte, 1))
	return err
}

func (c conn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return nil, c.answer()
}

func acquire(ctx context.Context, pool *pgxpool.Pool) {
	if c, err := pool.Acquire(ctx); err == nil {
		c.Release()
	}
}

// TestWaitedFor has the libraries wait, and reads their stacks. It is not next to [wallprofile.WaitedFor] since the agent
// imports that package: a service's go.mod follows the tests of what it imports.
func TestWaitedFor(t *testing.T) {
	// A server that accepts, and answers when the test is over.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		var open []net.Conn
		for {
			c, err := silent.Accept()
			if err != nil {
				break
			}
			open = append(open, c)
		}
		for _, c := range open {
			_ = c.Close()
		}
	})
	over := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/body":
			w.(http.Flusher).Flush()
		case "/upload":
			waiter(func() { _, _ = io.Copy(io.Discard, r.Body) })
			return
		case "/slow":
			waiter(func() {
				for err := error(nil); err == nil; {
					_, err = w.Write(make([]byte, 1<<20))
				}
			})
			return
		}
		<-over
	}))
	db := sql.OpenDB(connector{silent.Addr()})
	db.SetMaxOpenConns(1)
	ctx, cancel := context.WithCancel(t.Context())
	get := func(path string) func() {
		return func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+path, nil)
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		}
	}
	committing := sql.OpenDB(connector{silent.Addr()})
	stuck := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	limiter := rate.NewLimiter(rate.Every(time.Hour), 1)
	limiter.Allow()
	synced, err := os.Create(filepath.Join(t.TempDir(), "synced"))
	if err != nil {
		t.Fatal(err)
	}
	body, write := io.Pipe()
	config, err := pgxpool.ParseConfig("postgres://" + silent.Addr().String() + "/x?sslmode=disable&pool_max_conns=1")
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	client, err := grpc.NewClient("passthrough:///"+silent.Addr().String(), grpc.WithNoProxy(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	logs, full, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}

	for _, tt := range []struct {
		want string
		leaf wallprofile.State
		do   func()
	}{
		{"the answer of an HTTP call", wallprofile.WaitSelect, get("/")},
		{"the body of an HTTP answer", wallprofile.WaitSelect, get("/body")},
		{"the body of the request", wallprofile.WaitNetwork, func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+"/upload", body)
			if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
				_ = resp.Body.Close()
			}
		}},
		{"a slow client to take the answer", wallprofile.WaitNetwork, func() { _, _ = io.WriteString(raw, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n") }},
		{"a TLS handshake", wallprofile.WaitNetwork, func() {
			c, err := net.Dial("tcp", silent.Addr().String())
			if err == nil {
				_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
				_ = c.Close()
			}
		}},
		{"a host's address (DNS)", wallprofile.WaitNetwork, func() {
			r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", silent.Addr().String())
			}}
			_, _ = r.LookupHost(ctx, "host.example.")
		}},
		{"the database's answer", wallprofile.WaitNetwork, func() { _, _ = db.Query("select") }},
		{"a free connection of database/sql's pool", wallprofile.WaitSelect, func() { _, _ = db.QueryContext(ctx, "select") }},
		{"a free connection of pgxpool", wallprofile.WaitSelect, func() { acquire(ctx, pool) }},
		{"a free connection of pgxpool", wallprofile.WaitSelect, func() { acquire(ctx, pool) }},
		{"the database to commit", wallprofile.WaitNetwork, func() {
			if tx, err := committing.Begin(); err == nil {
				_ = tx.Commit()
			}
		}},
		{"a connection for an HTTP call", wallprofile.WaitSelect, func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
			if resp, err := stuck.RoundTrip(req); err == nil {
				_ = resp.Body.Close()
			}
		}},
		{"a rate limiter", wallprofile.WaitSelect, func() { _ = limiter.Wait(ctx) }},
		{"a file to reach the disk (fsync)", wallprofile.Syscall, func() {
			for ctx.Err() == nil {
				_, _ = synced.WriteString("x")
				_ = synced.Sync()
			}
		}},
		{"the answer of a gRPC call", wallprofile.WaitSelect, func() { _ = client.Invoke(ctx, "/a.B/C", nil, nil) }},
		{"a message of a gRPC stream", wallprofile.WaitSelect, func() { _, _ = client.NewStream(ctx, &grpc.StreamDesc{}, "/a.B/C") }},
		{"a line of the log to be written", wallprofile.WaitNetwork, func() { log.New(full, "", 0).Print(strings.Repeat("x", 1<<20)) }},
		{"a child process", wallprofile.Syscall, func() { _ = exec.CommandContext(ctx, "sleep", "60").Run() }},
	} {
		all.Go(func() { waiter(tt.do) })
		for deadline := time.Now().Add(20 * time.Second); found(tt.leaf)[tt.want] == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("nothing waits for %s, but %v", tt.want, found(tt.leaf))
				break
			}
		}
	}
	cancel()
	close(over)
	_ = logs.Close()
	_ = full.Close()
	_ = write.Close()
	_ = raw.Close()
	_ = silent.Close()
	all.Wait()
	server.Close()
	_ = db.Close()
	_ = committing.Close()
	_ = synced.Close()
	_ = client.Close()
	pool.Close()
	http.DefaultClient.CloseIdleConnections()
}

// TestWaitedForPostgreSQL is TestWaitedFor with a real database, by both of pgx's interfaces.
func TestWaitedForPostgreSQL(t *testing.T) {
	url := postgrestest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(ctx, url+"&pool_max_conns=1")
	if err != nil {
		t.Fatal(err)
	}
	const sleep, answer = "SELECT pg_sleep(60)", "the database's answer"
	var all sync.WaitGroup
	for _, tt := range []struct {
		want string
		leaf wallprofile.State
		do   func()
	}{
		{answer, wallprofile.WaitNetwork, func() { _, _ = db.ExecContext(ctx, sleep) }},
		{answer, wallprofile.WaitNetwork, func() { _, _ = pool.Exec(ctx, sleep) }},
		{"a free connection of pgxpool", wallprofile.WaitSelect, func() { _, _ = pool.Exec(ctx, sleep) }},
	} {
		before := found(tt.leaf)[tt.want]
		all.Go(func() { waiter(tt.do) })
		for deadline := time.Now().Add(20 * time.Second); found(tt.leaf)[tt.want] == before; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("nothing waits for %s, but %v", tt.want, found(tt.leaf))
				break
			}
		}
	}
	cancel()
	all.Wait()
	pool.Close()
	_ = db.Close()
}
