package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// lines collects the lines of a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// TestAddressInUse checks that the listener waits for its address, as in a rolling restart on a host's network.
func TestAddressInUse(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	var log lines
	s := serve(Options{}, func(o *ServerOptions) {
		o.Address, o.Logger = other.Addr().String(), slog.New(slog.NewTextHandler(&log, nil))
	})
	defer s.Shutdown(context.Background())
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "address already in use") || s.Addr() != "" {
		t.Errorf("error %v, address %q", err, s.Addr())
	}
	time.Sleep(2 * time.Second) // at least one retry, which is not logged
	if n := log.count("operator's listener failing"); n != 1 {
		t.Errorf("the failure is logged %d times, want once", n)
	}
	other.Close()
	for s.Addr() == "" {
		time.Sleep(10 * time.Millisecond)
	}
	if status, _, _ := get(t, "http://"+s.Addr()+"/healthz"); status != 200 || s.Err() != nil || log.count("operator's listener recovered") != 1 {
		t.Errorf("after the recovery: %d, %v", status, s.Err())
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestShutdownWithoutListener(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s := serve(Options{}, func(o *ServerOptions) { o.Address = other.Addr().String() })
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestDefaultAddress checks that the default leaves port 6060 to the service, and that several processes have one each.
func TestDefaultAddress(t *testing.T) {
	seen := map[string]bool{}
	for range defaultPorts + 2 {
		s := serve(Options{}, func(o *ServerOptions) { o.Address = "" })
		defer s.Shutdown(context.Background())
		host, port, err := net.SplitHostPort(s.Addr())
		if err != nil || host != "127.0.0.1" || port == "6060" || seen[port] {
			t.Errorf("the address is %q, %v; those before are %v", s.Addr(), err, seen)
		}
		seen[port] = true
	}
}

// TestClientThatStopsReading must not hold a shutdown that has no deadline.
func TestClientThatStopsReading(t *testing.T) {
	begun := make(chan struct{})
	s := serve(Options{CPUProfile: func(_ context.Context, w io.Writer, _ time.Duration) error {
		_, err := w.Write(make([]byte, 64<<20)) // more than the kernel buffers
		close(begun)
		return err
	}})
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /debug/pprof/profile HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-begun
	limit, cancel := context.WithTimeout(context.Background(), time.Minute) // a failing test ends, too
	defer cancel()
	if err := s.Shutdown(limit); err != nil {
		t.Errorf("Shutdown: %v, want the client's connection closed before the deadline", err)
	}
}

// blocking is a client that does not read until it is released.
type blocking struct {
	http.ResponseWriter
	begun, release chan struct{} // begun is closed by the first write
}

func (b blocking) Header() http.Header { return http.Header{} }
func (b blocking) Write(p []byte) (int, error) {
	select {
	case <-b.release:
	default:
		close(b.begun)
		<-b.release
	}
	return len(p), nil
}

// TestRelay checks that the runtime's trace reader never waits for a client, and keeps a limited amount for it.
func TestRelay(t *testing.T) {
	b := blocking{begun: make(chan struct{}), release: make(chan struct{})}
	r := newRelay(newResponse(b, "trace"))
	part := make([]byte, 1<<20)
	if _, err := r.Write(part); err != nil { // which the relay takes out of the queue
		t.Fatal(err)
	}
	<-b.begun
	n := 0
	for n < 10*relayBytes {
		if _, err := r.Write(part); errors.Is(err, errSlowClient) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		n += len(part)
	}
	if n != relayBytes {
		t.Errorf("%d bytes are kept for a client that does not read, want %d", n, relayBytes)
	}
	close(b.release)
	if err := r.close(); !errors.Is(err, errSlowClient) {
		t.Errorf("close: %v, want %v", err, errSlowClient)
	}
	if _, err := r.Write(part); err == nil {
		t.Error("a write after the end succeeds")
	}
}

func TestRelayPassesEverythingOn(t *testing.T) {
	url := start(t, nil, func(o *ServerOptions) {
		o.Pages = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			r := newRelay(newResponse(w, "trace"))
			for i := range 1000 {
				if _, err := r.Write(bytes.Repeat([]byte{byte(i)}, 5000)); err != nil {
					t.Error(err)
				}
			}
			if err := r.close(); err != nil {
				t.Error(err)
			}
			if _, err := r.Write([]byte("x")); !errors.Is(err, errEnded) {
				t.Errorf("a write after the end: %v", err)
			}
		})
	})
	_, _, body := get(t, url+"/")
	if len(body) != 5_000_000 {
		t.Fatalf("%d bytes, want 5000000", len(body))
	}
	for i := range body {
		if body[i] != byte(i/5000) {
			t.Fatalf("byte %d is %d", i, body[i])
		}
	}
}

type panicking struct{ http.ResponseWriter }

func (panicking) Header() http.Header       { return http.Header{} }
func (panicking) Write([]byte) (int, error) { panic("a service's own writer") }

func TestRelaySurvivesAPanic(t *testing.T) {
	r := newRelay(newResponse(panicking{}, "trace"))
	if _, err := r.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if err := r.close(); err == nil || !strings.Contains(err.Error(), "a service's own writer") {
		t.Errorf("close: %v, want the panic", err)
	}
}
