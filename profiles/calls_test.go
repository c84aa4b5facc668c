package profiles_test

import (
	"context"
	"database/sql"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/XSAM/otelsql"
	"github.com/google/pprof/profile"
	_ "github.com/jackc/pgx/v5/stdlib"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
	_ "modernc.org/sqlite"

	"spanflame/agent"
	"spanflame/internal/postgrestest"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

const answerTakes = 60 * time.Millisecond

func openDB(t *testing.T, driver, source string, options ...otelsql.Option) *sql.DB {
	t.Helper()
	db, err := otelsql.Open(driver, source, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

//go:noinline
func fetch(t *testing.T, ctx context.Context, by http.RoundTripper, url string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/?token=secret", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := by.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}

//go:noinline
func invoke(t *testing.T, ctx context.Context, client *grpc.ClientConn) {
	if err := client.Invoke(ctx, "/a.B/C", new(emptypb.Empty), new(emptypb.Empty)); err != nil {
		t.Fatal(err)
	}
}

//go:noinline
func query(t *testing.T, ctx context.Context, db *sql.DB, statement string) {
	if _, err := db.ExecContext(ctx, statement); err != nil {
		t.Fatal(err)
	}
}

// TestCalls: what a request asked of real servers is in its diagnosis and in its profile, without values.
func TestCalls(t *testing.T) {
	dir := t.TempDir()
	a, err := agent.Start(t.Context(), agent.Config{
		ServiceName: "shop", Dir: dir, SlowSpan: answerTakes / 2, WallCPUShare: 1, AdminAddress: "off", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	traces := a.TracerProvider(sdktrace.NewTracerProvider())
	tracer := traces.Tracer("test")

	web := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(answerTakes) }))
	t.Cleanup(web.Close)
	transport := otelhttp.NewTransport(http.DefaultTransport, otelhttp.WithTracerProvider(traces))

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if err := stream.RecvMsg(new(emptypb.Empty)); err != nil {
			return err
		}
		time.Sleep(answerTakes)
		return stream.SendMsg(new(emptypb.Empty))
	}))
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	client, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), grpc.WithNoProxy(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithTracerProvider(traces))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })

	spans := otelsql.WithTracerProvider(traces)
	sqlite := openDB(t, "sqlite", ":memory:", spans)
	sqlite.SetMaxOpenConns(1)

	type said struct{ says, frame string }
	want := make(map[string]said) // by span ID
	request := func(t *testing.T, says, frame string, do func(ctx context.Context)) {
		ctx, root := tracer.Start(t.Context(), "request")
		do(ctx)
		root.End()
		want[root.SpanContext().SpanID().String()] = said{says, frame}
	}
	address := strings.TrimPrefix(web.URL, "http://")
	request(t, "waiting for the answer of an HTTP call in profiles_test.fetch, called by profiles_test.TestCalls, in the HTTP call GET "+address,
		"HTTP call: GET "+address, func(ctx context.Context) { fetch(t, ctx, transport, web.URL) })
	request(t, ", in 3 HTTP calls one after the other: GET "+address, "HTTP call: GET "+address, func(ctx context.Context) {
		for range 3 {
			fetch(t, ctx, transport, web.URL)
		}
	})
	request(t, "waiting for the answer of a gRPC call in profiles_test.invoke, called by profiles_test.TestCalls, in the gRPC call a.B/C", "gRPC call: a.B/C",
		func(ctx context.Context) { invoke(t, ctx, client) })
	const counting = "WITH RECURSIVE c(x) AS (VALUES(?) UNION ALL SELECT x+? FROM c WHERE x < ?) SELECT max(x) FROM c"
	request(t, "in profiles_test.query, called by profiles_test.TestCalls, in 5 queries one after the other: "+counting, "query: "+counting,
		func(ctx context.Context) {
			for range 5 {
				query(t, ctx, sqlite, "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM c WHERE x < 100000) SELECT max(x) FROM c")
			}
		})
	t.Run("PostgreSQL", func(t *testing.T) {
		db := openDB(t, "pgx", postgrestest.Start(t), spans, otelsql.WithAttributes(attribute.String("db.system.name", "postgresql")))
		query(t, t.Context(), db, "SELECT 1") // connects
		const sleeping = `SELECT pg_sleep(?), ? AS "x"`
		request(t, "waiting for the database's answer in profiles_test.query, called by profiles_test.TestCalls, in 20 queries one after the other: "+sleeping,
			"query: "+sleeping, func(ctx context.Context) {
				for range 20 {
					query(t, ctx, db, `SELECT pg_sleep(0.005), 'secret' AS "x"`)
				}
			})
	})
	if err := a.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}

	roots := map[string]string{wallprofile.SpanScope: wallprofile.ScopeRoot}
	entries, damaged, err := profiles.Find(t.Context(), profiles.Query{Types: []record.Type{record.Wall}, Labels: roots}, dir)
	if err != nil || len(damaged) > 0 {
		t.Fatal(err, damaged)
	}
	for w, err := range profiles.Read(t.Context(), entries) {
		if err != nil {
			t.Fatal(err)
		}
		p := w.Profile
		for id, said := range want {
			own := profiles.ByLabel(p, wallprofile.SpanID, id)
			if len(own.Sample) == 0 {
				continue
			}
			delete(want, id)
			if got := profiles.SavedDiagnosis(p, id); !strings.HasSuffix(lines.ReplaceAllString(got, ""), said.says) {
				t.Errorf("the diagnosis is %q, want …%q", got, said.says)
			}
			if again := profiles.Diagnose(own, "request", time.Second); !strings.Contains(again, ", in the "+said.frame[:4]) {
				t.Errorf("of the profile, it is %q", again)
			}
			if !slices.ContainsFunc(own.Function, func(f *profile.Function) bool { return f.Name == said.frame }) {
				t.Errorf("no frame %q", said.frame)
			}
			for _, f := range own.Function {
				if strings.Contains(f.Name, "secret") {
					t.Errorf("the frame %q has a value", f.Name)
				}
			}
		}
	}
	for _, said := range want {
		t.Errorf("no profile of %q", said.says)
	}
}
