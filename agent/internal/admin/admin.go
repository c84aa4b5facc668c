// Package admin is the operator's listener of a profiled service: the runtime's profiles, a process-wide
// wall-clock profile, metrics and health. The agent is its only user. It is read-only: it is not for changing
// settings at run time.
//
// It does not use net/http/pprof, because importing that package registers the profiles on
// http.DefaultServeMux, which a service may expose to the public.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Options configures the contents of the pages.
type Options struct {
	Metrics http.Handler // serves /metrics; nil: there is none

	// CPUProfile takes a CPU profile of the given length and writes it, gzip-compressed.
	CPUProfile func(context.Context, io.Writer, time.Duration) error

	// Degraded returns one line for each thing that does not work as it should.
	Degraded func() []string
}

// Server listens until it is shut down. It owns its goroutines.
type Server struct {
	http *http.Server
	addr net.Addr
	host string // as it was asked for

	requests sync.WaitGroup
	cancel   context.CancelFunc // ends the contexts of the requests
	done     chan struct{}
}

// Listener is an open listener that is not served yet.
type Listener struct {
	net.Listener
	host string
}

// Listen listens on the address, host:port. Port 0 is any free port.
func Listen(address string) (*Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return &Listener{l, host}, nil
}

// Handler returns the pages without what belongs to a listener: it does not check the name of the host.
func Handler(o Options) http.Handler {
	mux := http.NewServeMux()
	p := profiles{cpu: o.CPUProfile, exclusive: make(chan struct{}, 1)}
	mux.HandleFunc("GET /debug/pprof/{$}", p.index)
	mux.HandleFunc("GET /debug/pprof/cmdline", p.cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", p.profile)
	mux.HandleFunc("GET /debug/pprof/trace", p.trace)
	mux.HandleFunc("GET /debug/pprof/{name}", p.named)
	mux.HandleFunc("GET /debug/fgprof", p.fgprof)
	if o.Metrics != nil {
		mux.Handle("GET /metrics", o.Metrics)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { ready(w, o.Degraded()) })
	return mux
}

// Serve serves the pages of [Handler], and owns the listener.
func Serve(l *Listener, pages http.Handler, log *slog.Logger) *Server {
	s := &Server{addr: l.Addr(), host: l.host, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.http = &http.Server{
		Handler:           s.counted(s.checkHost(pages)),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		// A request may profile for maxSeconds; the rest is for writing the profile.
		WriteTimeout:   (maxSeconds + 60) * time.Second,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("operator's listener ended", "address", s.Addr(), "error", err)
		}
	}()
	return s
}

// Addr returns the address of the listener, host:port.
func (s *Server) Addr() string { return s.addr.String() }

// Shutdown closes the listener and ends running profiles early: their requests get what was collected. It waits
// for the requests until ctx is done, then closes their connections, and returns when all handlers have returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("operator's listener: %w", err), s.http.Close())
	}
	<-s.done
	s.requests.Wait()
	return err
}

// counted counts the running handlers, for Shutdown.
func (s *Server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		defer s.requests.Done()
		next.ServeHTTP(w, r)
	})
}

// checkHost refuses requests for a host name that is not the listener's own. A web page could otherwise make a
// name of its own resolve to this listener (DNS rebinding), which is not possible with an IP address.
func (s *Server) checkHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		_, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if err != nil && host != "localhost" && host != s.host {
			http.Error(w, fmt.Sprintf("unknown host %q: use localhost or an IP address", host), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func ready(w http.ResponseWriter, degraded []string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if len(degraded) == 0 {
		_, _ = io.WriteString(w, "ready\n")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	for _, d := range degraded {
		_, _ = fmt.Fprintf(w, "degraded: %s\n", d)
	}
}
