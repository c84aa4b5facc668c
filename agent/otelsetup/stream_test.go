package otelsetup

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// TestStreamsAndHijackedConnections: instrumented handlers that send events, or take over their connection, work under
// the agent, and their spans have profiles.
func TestStreamsAndHijackedConnections(t *testing.T) {
	cfg := quiet(t)
	cfg.Agent.Dir, cfg.Agent.SlowSpan, cfg.Agent.WallCPUShare = t.TempDir(), time.Millisecond, 1
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 5 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			select { // the client has the event before the next one is sent
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("GET /raw", func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		rw.Flush()
		time.Sleep(20 * time.Millisecond)
		line, err := rw.ReadString('\n')
		if err != nil {
			t.Error(err)
		}
		fmt.Fprint(rw, strings.ToUpper(line))
		rw.Flush()
	})
	traced := otelhttp.NewHandler(mux, "", otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.URL.Path }))
	ended := make(chan struct{}, 2) // a server does not wait for hijacked connections
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		traced.ServeHTTP(w, r)
		ended <- struct{}{}
	}))
	defer server.Close()

	resp, err := http.Get(server.URL + "/events")
	if err != nil {
		t.Fatal(err)
	}
	events := bufio.NewReader(resp.Body)
	for i := range 5 {
		if line, err := events.ReadString('\n'); err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("event %d is %q, %v", i, line, err)
		}
		if _, err := events.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
		next <- struct{}{}
	}
	if rest, err := io.ReadAll(events); err != nil || len(rest) > 0 {
		t.Errorf("after the last event: %q, %v", rest, err)
	}
	resp.Body.Close()

	c, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "GET /raw HTTP/1.1\r\nHost: x\r\n\r\nhello\n")
	if b, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(b), "\r\n\r\nHELLO\n") {
		t.Errorf("the connection has %q, %v", b, err)
	}
	c.Close()
	<-ended
	<-ended
	server.Close()
	http.DefaultClient.CloseIdleConnections()
	if err := a.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}

	wantProfiles(t, cfg.Agent.Dir, "/events", "/raw")
}

// wantProfiles checks that the saved spans of these names took some time, and that each has a profile of its duration.
func wantProfiles(t *testing.T, dir string, names ...string) {
	t.Helper()
	profiled := map[string]int64{} // nanoseconds by span, without those of other goroutines beside it
	for _, r := range savedProfiles(t, dir, "svc") {
		if r.Type != record.Wall {
			continue
		}
		p, err := profile.ParseData(r.Profile)
		if err != nil {
			t.Fatal(err)
		}
		for _, sample := range p.Sample {
			if slices.ContainsFunc(sample.Location, func(l *profile.Location) bool { return l.Line[0].Function.Name == wallprofile.Others }) {
				continue
			}
			for _, id := range sample.Label[wallprofile.SpanID] {
				profiled[id] += sample.Value[0]
			}
		}
	}
	spans := savedSpans(t, dir, "svc")
	for _, name := range names {
		if s := spans[name]; s.Duration() < 20*time.Millisecond || profiled[s.ID] != s.Duration().Nanoseconds() {
			t.Errorf("%s: a span of %v, and a profile of %v", name, s.Duration(), time.Duration(profiled[s.ID]))
		}
	}
}

// chat is a bidirectional stream of messages, one answer to each.
var chat = grpc.ServiceDesc{
	ServiceName: "Chat",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{StreamName: "Talk", ServerStreams: true, ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
		for {
			var m wrapperspb.Int32Value
			if err := stream.RecvMsg(&m); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			time.Sleep(5 * time.Millisecond)
			m.Value++
			if err := stream.SendMsg(&m); err != nil {
				return err
			}
		}
	}}},
}

// TestBidirectionalStreams: the spans that otelgrpc has for a stream can end on another goroutine than they start on.
// Both sides have profiles.
func TestBidirectionalStreams(t *testing.T) {
	cfg := quiet(t)
	cfg.Agent.Dir, cfg.Agent.SlowSpan, cfg.Agent.WallCPUShare = t.TempDir(), time.Millisecond, 1
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.StatsHandler(otelgrpc.NewServerHandler()))
	server.RegisterService(&chat, nil)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler()))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		ctx, call := otel.Tracer("test").Start(t.Context(), "call")
		stream, err := conn.NewStream(ctx, &chat.Streams[0], "/Chat/Talk")
		if err != nil {
			t.Fatal(err)
		}
		for i := range int32(5) {
			if err := stream.SendMsg(wrapperspb.Int32(i)); err != nil {
				t.Fatal(err)
			}
			var m wrapperspb.Int32Value
			if err := stream.RecvMsg(&m); err != nil || m.Value != i+1 {
				t.Fatalf("the answer to %d is %d, %v", i, m.Value, err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&wrapperspb.Int32Value{}); err != io.EOF {
			t.Fatalf("the stream ends with %v", err)
		}
		call.End()
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	server.GracefulStop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := a.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	wantProfiles(t, cfg.Agent.Dir, "call", "Chat/Talk")
}
