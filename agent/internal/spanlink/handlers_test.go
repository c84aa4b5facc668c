package spanlink

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// TestHandlers: however a handler ends, its span is marked at both ends, exported, and leaves the server's goroutine
// without labels: the next request of the connection finds none.
func TestHandlers(t *testing.T) {
	tracer, recorder, m := setup(t, sdktrace.AlwaysSample())
	release := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) { panic("the handler's own") })
	mux.HandleFunc("/abort", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = buffered.WriteString("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhijacked")
		_ = buffered.Flush()
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) { // server-sent, with a child span each
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, child := tracer.Start(r.Context(), "event")
			fmt.Fprintf(w, "data: %d\n\n", i)
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			child.End()
		}
		<-release
	})
	mux.HandleFunc("/quick", func(http.ResponseWriter, *http.Request) {})
	var mu sync.Mutex
	var labelled []string // requests whose goroutine had labels already
	var handling sync.WaitGroup
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handling.Add(1)
		defer handling.Done()
		if goroutineLabels() != nil {
			mu.Lock()
			labelled = append(labelled, r.URL.Path)
			mu.Unlock()
		}
		ctx, s := tracer.Start(r.Context(), r.URL.Path, trace.WithSpanKind(trace.SpanKindServer))
		defer s.End()
		mux.ServeHTTP(w, r.WithContext(ctx))
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	setGoroutineLabels(nil) // which the server's goroutines inherit
	server.Start()
	get := func(path string) (body string, err error) {
		resp, err := server.Client().Post(server.URL+path, "", nil) // a client repeats a GET that fails
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		if path == "/events" {
			lines := bufio.NewScanner(resp.Body)
			for range 5 { // the third event
				lines.Scan()
			}
			close(release)
		}
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	for _, path := range []string{"/quick", "/quick", "/panic", "/quick", "/abort", "/hijack", "/events", "/quick"} {
		body, err := get(path)
		if failed := path == "/panic" || path == "/abort"; (err != nil) != failed || path == "/hijack" && body != "hijacked" {
			t.Errorf("%s: %q, %v", path, body, err)
		}
	}
	server.Close()  // waits for the handlers but the hijacked one
	handling.Wait() // whose span can end after its client has read everything

	if len(labelled) > 0 {
		t.Errorf("goroutines had labels of an earlier request: %q", labelled)
	}
	var names []string
	for _, s := range recorder.Ended() {
		names = append(names, s.Name())
		panicked := len(s.Events()) == 1 && s.Events()[0].Name == "exception"
		if want := s.Name() == "/panic" || s.Name() == "/abort"; panicked != want {
			t.Errorf("%s has the events %v", s.Name(), s.Events())
		}
	}
	want := []string{"/quick", "/quick", "/panic", "/quick", "/abort", "/hijack", "event", "event", "event", "/events", "/quick"}
	slices.Sort(names)
	slices.Sort(want)
	m.mu.Lock()
	defer m.mu.Unlock()
	ended := slices.Sorted(slices.Values(m.ended))
	if !slices.Equal(names, want) || !slices.Equal(ended, want) {
		t.Errorf("exported %q, marked %q, want %q", names, ended, want)
	}
}
