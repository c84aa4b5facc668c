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

// Server is one server of a Stack. Its addresses stay the same over Restart.
type Server struct {
	Name     string // as in Options.Servers
	URL      string // http://host:port of its own interface
	OTLPGRPC string // host:port that takes OTLP over gRPC; empty where the server takes none
	OTLPHTTP string // host:port that takes OTLP over HTTP; empty where the server takes none
	LogFile  string // what it writes to standard output and standard error
	DataDir  string // its working directory, with its configuration and its data

	def    definition
	binary string
	deploy string               // directory of the configuration that the overlay changes
	want   map[string]int       // ports as the user asked for them
	ports  addresses            // as they were found
	peers  map[string]addresses // ports of the servers that this one sends to
	args   []string             // command line for the ports that were found

	mu     sync.Mutex
	proc   *child.Process // the current or last run
	closed bool           // no further run
}

// readyLimit bounds the wait for a server that neither ends nor gets ready, beside the caller's context.
// A start takes about 2 s; the reserve is for machines that are busy building.
const readyLimit = 2 * time.Minute

// configure writes the configuration for the given ports and fills in the addresses that follow from them.
func (s *Server) configure(a addresses) error {
	config, args, err := s.def.configure(overlayData{a, s.peers, s.deploy})
	if err != nil {
		return err
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

// start configures the server for the given ports and runs it. If another process was faster in taking a
// port that nobody asked for by number, it tries once more with other ports.
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

// run starts the process and waits until it is ready. If it does not get there, nothing is left of it.
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
		return nil, errors.New("it is running already")
	}
	log, err := os.OpenFile(s.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // The child has its own descriptor.
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

// waitReady asks the server until it says that it can work, it ends, or ctx does.
func (s *Server) waitReady(ctx context.Context, p *child.Process) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("not ready after %s", readyLimit))
	defer cancel()
	// No kept connection and no proxy: each question is one of its own, to loopback.
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
			err := fmt.Errorf("%s did not get ready: %w", s.Name, context.Cause(ctx))
			if ctx.Err() == context.Canceled {
				return err // The user's wish, not the server's fault: its log explains nothing.
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
	resp.Body.Close() // Only the status counts.
	return resp.StatusCode == http.StatusOK
}

// current is the current or last run.
func (s *Server) current() *child.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// PID is the process of the current or last run.
func (s *Server) PID() int { return s.current().PID() }

// Done is closed when the current run has ended, for whatever reason.
func (s *Server) Done() <-chan struct{} { return s.current().Done() }

// Err is nil while the server runs, and afterwards says how it ended, with its last log lines.
func (s *Server) Err() error {
	p := s.current()
	if !p.Ended() {
		return nil
	}
	return p.WithLog(fmt.Errorf("%s ended: %s", s.Name, p.Status()))
}

// errHangs is why a server that is known to hang is killed.
var errHangs = errors.New("it hangs")

// Stop asks the server to end in order and waits until it has; when ctx ends first, the server is killed
// and the error says so. A server that has ended already is no error.
func (s *Server) Stop(ctx context.Context) error {
	if s.def.endsWithin > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.def.endsWithin, errHangs)
		defer cancel()
	}
	if err := s.current().Stop(ctx); errors.Is(err, errHangs) {
		return s.Kill() // Which Stop did; this tells whether it could.
	} else if err != nil {
		return fmt.Errorf("stop %s: %w", s.Name, err)
	}
	return nil
}

// Kill ends the server at once, as a power failure would, and waits until it is gone.
func (s *Server) Kill() error {
	if err := s.current().Kill(); err != nil {
		return fmt.Errorf("kill %s: %w", s.Name, err)
	}
	return nil
}

// Pause freezes the server: it keeps its connections, and the kernel takes new ones for it, but nothing
// is answered until Resume.
func (s *Server) Pause() error {
	if err := s.current().Pause(); err != nil {
		return fmt.Errorf("pause %s: %w", s.Name, err)
	}
	return nil
}

// Resume lets a paused server go on.
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

// close is Stop for good: no Restart starts the server again.
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
