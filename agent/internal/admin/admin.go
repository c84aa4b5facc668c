// Package admin is the operator's listener of a profiled service: the runtime's profiles, a process-wide
// wall-clock profile, metrics and health. The agent is its only user. It reads; nothing can be changed
// through it.
//
// It does not use net/http/pprof, whose import alone puts the profiles on http.DefaultServeMux, where a
// service may well show them to the world.
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
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Options says where to listen and what to show.
type Options struct {
	Address string              // host:port; port 0 takes a free one
	Scrape  prometheus.Gatherer // for /metrics

	// CPUProfile takes a CPU profile of the given length and writes it, gzip-compressed.
	CPUProfile func(context.Context, io.Writer, time.Duration) error

	// Degraded returns a sentence for everything that does not work as it should; none: /readyz is 200.
	Degraded func() []string

	Logger *slog.Logger
}

// Server listens until it is shut down. It owns its goroutines.
type Server struct {
	http *http.Server
	addr net.Addr
	host string // of Options.Address
	done chan struct{}
}

// Start listens. The error names an address that cannot be listened on.
func Start(o Options) (*Server, error) {
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, err
	}
	s := &Server{addr: l.Addr(), host: host, done: make(chan struct{})}

	mux := http.NewServeMux()
	p := profiles{cpu: o.CPUProfile, exclusive: make(chan struct{}, 1)}
	mux.HandleFunc("GET /debug/pprof/{$}", p.index)
	mux.HandleFunc("GET /debug/pprof/cmdline", p.cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", p.profile)
	mux.HandleFunc("GET /debug/pprof/trace", p.trace)
	mux.HandleFunc("GET /debug/pprof/{name}", p.named)
	mux.HandleFunc("GET /debug/fgprof", p.fgprof)
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Scrape, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { ready(w, o.Degraded()) })

	s.http = &http.Server{
		Handler:           s.checkHost(mux),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		// A profile may be asked to last maxSeconds; the rest is for writing it.
		WriteTimeout:   (maxSeconds + 60) * time.Second,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			o.Logger.Error("the operator's listener ended", "address", s.Addr(), "error", err)
		}
	}()
	return s, nil
}

// Addr is the address listened on, host:port.
func (s *Server) Addr() string { return s.addr.String() }

// Shutdown ends the listener, waits for requests until ctx is done and then breaks them off.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("operator's listener: %w", err), s.http.Close())
	}
	<-s.done
	return err
}

// checkHost refuses requests for a host name that is not the listener's own. A page in a browser can make a
// name of its own point here (DNS rebinding); it cannot do that with an IP address.
func (s *Server) checkHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		_, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if err != nil && host != "localhost" && host != s.host {
			http.Error(w, fmt.Sprintf("host %q is not served here: ask for localhost or an IP address", host), http.StatusMisdirectedRequest)
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
