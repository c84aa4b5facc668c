package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// The default address: the first of these ports that is free, or any free port. They are outside the ranges of X11
// and of ephemeral ports, and not 6060, which services use for their own profiles by convention.
const (
	defaultHost  = "127.0.0.1"
	defaultPort  = 16060
	defaultPorts = 10
)

// DefaultAddress is the default address if no other process has it.
var DefaultAddress = net.JoinHostPort(defaultHost, strconv.Itoa(defaultPort))

// responseGrace limits how long Shutdown waits for clients to read their response.
const responseGrace = 2 * time.Second

// ServerOptions configures the listener.
type ServerOptions struct {
	Address string   // host:port; empty means the default address
	Hosts   []string // names that requests may be for, in addition to localhost and the host in Address
	Pages   http.Handler
	Logger  *slog.Logger
}

// Server serves the pages until it is shut down. It owns its goroutines.
type Server struct {
	options ServerOptions
	http    *http.Server
	closing context.Context

	requests sync.WaitGroup
	cancel   context.CancelFunc // ends closing and the contexts of the requests
	done     chan struct{}

	mu   sync.Mutex
	addr net.Addr // nil while there is no listener
	err  error    // why there is none
}

// Serve serves the pages. A service must not fail because of its operator's listener: if the address is not available,
// Serve logs that and tries again until it is.
func Serve(o ServerOptions) *Server {
	s := &Server{options: o, done: make(chan struct{})}
	s.closing, s.cancel = context.WithCancel(context.Background())
	host, _, _ := net.SplitHostPort(o.Address)
	s.http = &http.Server{
		Handler:           s.counted(knownHost(append(o.Hosts[:len(o.Hosts):len(o.Hosts)], host), o.Pages)),
		BaseContext:       func(net.Listener) context.Context { return s.closing },
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		// A request may profile for maxSeconds; the rest is for writing the profile.
		WriteTimeout:   (maxSeconds + 60) * time.Second,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
	}
	l := s.listen()
	go s.run(l)
	return s
}

// run serves the listener, and opens it again when there is none.
func (s *Server) run(l net.Listener) {
	defer close(s.done)
	wait := &backoff.ExponentialBackOff{InitialInterval: time.Second, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 30 * time.Second}
	for {
		for l == nil {
			select {
			case <-s.closing.Done():
				return
			case <-time.After(wait.NextBackOff()):
				l = s.listen()
			}
		}
		wait.Reset()
		err := s.http.Serve(l)
		if errors.Is(err, http.ErrServerClosed) {
			return
		}
		s.opened(nil, err)
		l = nil
	}
}

// listen opens the listener, or returns nil.
func (s *Server) listen() net.Listener {
	var l net.Listener
	var err error
	if s.options.Address != "" {
		l, err = net.Listen("tcp", s.options.Address)
	} else {
		for port := defaultPort; l == nil && port < defaultPort+defaultPorts; port++ {
			l, _ = net.Listen("tcp", net.JoinHostPort(defaultHost, strconv.Itoa(port)))
		}
		if l == nil {
			l, err = net.Listen("tcp", net.JoinHostPort(defaultHost, "0"))
		}
	}
	s.opened(l, err)
	return l
}

// opened records that there is a listener, or why there is none, and logs the first failure and the recovery.
func (s *Server) opened(l net.Listener, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && s.err == nil:
		s.options.Logger.Warn("operator's listener failing; will be retried (logged once per outage)", "address", s.options.Address, "error", err)
	case err == nil && s.err != nil:
		s.options.Logger.Info("operator's listener recovered", "address", l.Addr().String())
	}
	s.err, s.addr = err, nil
	if err == nil {
		s.addr = l.Addr()
	}
}

// Addr returns the address of the listener, host:port; empty while there is none.
func (s *Server) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.addr == nil {
		return ""
	}
	return s.addr.String()
}

// Err returns why there is no listener, or nil.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		return nil
	}
	return fmt.Errorf("operator's listener: %w; it is retried: choose a free address, port 0 for any, or off", s.err)
}

// Shutdown closes the listener and ends running profiles early: their requests get what was collected. It waits for
// the requests until ctx is done, but not long for clients that do not read their response. Then it closes their
// connections, and returns when all handlers have returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.cancel()
	grace, cancel := context.WithTimeout(ctx, responseGrace)
	defer cancel()
	err := s.http.Shutdown(grace)
	if err != nil {
		err = s.http.Close()
		if ctx.Err() != nil {
			err = errors.Join(fmt.Errorf("operator's listener: %w", context.Cause(ctx)), err)
		} else {
			s.options.Logger.Warn("operator's listener: closed the connections of clients that did not read their response", "waited", responseGrace.String())
		}
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
