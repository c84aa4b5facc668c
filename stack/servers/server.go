package servers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"spanflame/internal/child"
)

// Server is one server of a Stack. Restart does not change its addresses.
type Server struct {
	Name     string // as in Options.Servers
	URL      string // http://host:port of its own interface
	OTLPGRPC string // host:port for OTLP over gRPC; empty if the server does not accept it
	OTLPHTTP string // host:port for OTLP over HTTP; empty if the server does not accept it
	LogFile  string // its standard output and standard error
	DataDir  string // its working directory, with its configuration and its data

	def     definition
	binary  string
	deploy  string               // directory of the configuration that the overlay changes
	overlay string               // of the user, applied last
	want    map[string]int       // ports that the user asked for
	ports   addresses            // ports in use
	peers   map[string]addresses // ports of the servers that run already
	args    []string             // command line for the ports in use

	mu     sync.Mutex
	proc   *child.Process // the current or last run
	closed bool           // must not be started again
}

// readyLimit limits the wait for a server that neither ends nor becomes ready, in addition to the caller's context.
// A start takes about 2 s, or much longer on a machine that is busy building.
const readyLimit = 2 * time.Minute

// configure writes the configuration for the given ports and sets the addresses.
func (s *Server) configure(a addresses) error {
	config, args, err := s.def.configure(overlayData{a, s.peers, s.deploy})
	if err != nil {
		return err
	}
	if config, err = MergeYAML(config, []byte(s.overlay)); err != nil {
		return fmt.Errorf("configuration of %s: %w", s.Name, err)
	}
	s.ports, s.args = a, args
	if err := os.WriteFile(filepath.Join(s.DataDir, configFile), config, 0o644); err != nil {
		return fmt.Errorf("configuration of %s: %w", s.Name, err)
	}
	for _, p := range s.def.ports {
		addr, err := a.Addr(p.Name)
		if err != nil {
			return err
		}
		switch p.Name {
		case s.def.ports[0].Name:
			s.URL = "http://" + addr
		case PortOTLPGRPC:
			s.OTLPGRPC = addr
		case PortOTLPHTTP:
			s.OTLPHTTP = addr
		}
	}
	return nil
}

// start configures the server for the given ports and runs it. If another process has taken one of the ports
// meanwhile, it tries once more with other numbers for the ports that the user did not choose.
func (s *Server) start(ctx context.Context, a addresses) error {
	if err := s.configure(a); err != nil {
		return err
	}
	err := s.run(ctx)
	if err == nil || !strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) {
		return err
	}
	found, taken := reserve([]definition{s.def}, s.want)
	if taken != nil {
		return taken
	}
	if err := s.configure(found[s.Name]); err != nil {
		return err
	}
	return s.run(ctx)
}

// run starts the process and waits until it is ready. If it does not become ready, run kills it.
func (s *Server) run(ctx context.Context) error {
	p, err := s.launch()
	if err != nil {
		return fmt.Errorf("start %s: %w", s.Name, err)
	}
	if err := s.waitReady(ctx, p); err != nil {
		return errors.Join(err, s.Kill())
	}
	return nil
}

// launch starts the process unless the stack is closed.
func (s *Server) launch() (*child.Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the stack was stopped")
	}
	if s.proc != nil && !s.proc.Ended() {
		return nil, errors.New("already running")
	}
	log, err := os.OpenFile(s.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own descriptor
	cmd := exec.Command(s.binary, s.args...)
	cmd.Dir = s.DataDir
	cmd.Env = append(os.Environ(), s.def.env...)
	p, err := child.StartLogged(cmd, log)
	if err != nil {
		return nil, err
	}
	s.proc = p
	return p, nil
}

// waitReady polls the server until it is ready, it ends, or ctx is done.
func (s *Server) waitReady(ctx context.Context, p *child.Process) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("not ready after %s", readyLimit))
	defer cancel()
	// No keep-alive and no proxy: each request uses a new connection to loopback.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		if answersOK(ctx, client, s.URL+s.def.ready) && !p.Ended() {
			return nil
		}
		select {
		case <-p.Done():
			return s.Err()
		case <-ctx.Done():
			err := fmt.Errorf("%s did not become ready: %w", s.Name, context.Cause(ctx))
			if ctx.Err() == context.Canceled {
				return err // cancelled by the user: the server's log does not matter
			}
			return p.WithLog(err)
		case <-ticker.C:
		}
	}
}

func answersOK(ctx context.Context, client *http.Client, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close() // only the status matters
	return resp.StatusCode == http.StatusOK
}

// current returns the current or last run.
func (s *Server) current() *child.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// PID returns the process id of the current or last run.
func (s *Server) PID() int { return s.current().PID() }

// Done returns a channel that is closed when the current run has ended.
func (s *Server) Done() <-chan struct{} { return s.current().Done() }

// Err returns nil while the server runs, and afterwards an error that says how it ended, with its last log lines.
func (s *Server) Err() error {
	p := s.current()
	if !p.Ended() {
		return nil
	}
	return p.WithLog(fmt.Errorf("%s ended: %s", s.Name, p.Status()))
}

// errHangs is the reason for killing a server that is known to hang.
var errHangs = errors.New("it hangs")

// Stop shuts the server down gracefully and waits until it has ended. If ctx is done first, it kills the server and
// returns an error. Stopping a server that has ended is not an error.
func (s *Server) Stop(ctx context.Context) error {
	if s.def.endsWithin > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.def.endsWithin, errHangs)
		defer cancel()
	}
	if err := s.current().Stop(ctx); errors.Is(err, errHangs) {
		return s.Kill() // Stop has killed it; Kill reports whether that worked
	} else if err != nil {
		return fmt.Errorf("stop %s: %w", s.Name, err)
	}
	return nil
}

// Kill kills the server, like a power failure, and waits until it has ended.
func (s *Server) Kill() error {
	if err := s.current().Kill(); err != nil {
		return fmt.Errorf("kill %s: %w", s.Name, err)
	}
	return nil
}

// Pause freezes the server: it keeps its connections, and the kernel accepts new ones, but it answers nothing
// until Resume.
func (s *Server) Pause() error {
	if err := s.current().Pause(); err != nil {
		return fmt.Errorf("pause %s: %w", s.Name, err)
	}
	return nil
}

// Resume lets a paused server continue.
func (s *Server) Resume() error {
	if err := s.current().Resume(); err != nil {
		return fmt.Errorf("resume %s: %w", s.Name, err)
	}
	return nil
}

// Restart stops the server if it runs and starts it again on the same ports and data. It returns once the
// server is ready.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	return s.run(ctx)
}

// close stops the server permanently: Restart fails afterwards.
func (s *Server) close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	running := s.proc != nil
	s.mu.Unlock()
	if !running {
		return nil
	}
	return s.Stop(ctx)
}
