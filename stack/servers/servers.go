// Package servers builds the real Pyroscope, Tempo, Jaeger, Alertmanager, Prometheus, Loki and Collector from their Go
// modules and runs them on loopback, without a container engine. It uses the configuration in deploy, which docker-compose.yml
// mounts, with an overlay for what must differ here: addresses, paths, and names that differ between releases. The
// stack command and the end-to-end tests use it. Tests can pause, kill and restart each server. It works inside a
// checkout, on Unix, and needs the go command. It is not for production, which uses the servers' images.
package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Options configure Start. The zero value means Pyroscope and Tempo on free ports, with their data in data/stack
// below the module's root.
type Options struct {
	Servers  []string       // names; empty means Pyroscope and Tempo
	DataDir  string         // of the servers' data, configuration and logs; empty means data/stack
	CacheDir string         // of built binaries; empty means .cache/servers
	Ports    map[string]int // numbers by port name; missing or 0 means any free port
	Progress io.Writer      // receives progress lines of builds, for people; nil means none

	// Overlays has more changes to the configuration of servers, by their names: YAML that is merged into it, as
	// [MergeYAML] does.
	Overlays map[string]string
}

// Stack is a set of running servers. Stop ends it.
type Stack struct {
	servers []*Server

	release sync.Once
	lock    *os.File // on the data directory
}

// Start builds servers that are not cached, starts all and waits until each is ready. If it fails, no server
// is left running, and the error has the last log lines of the server that failed.
func Start(ctx context.Context, opts Options) (*Stack, error) {
	defs, err := lookup(opts.Servers)
	if err != nil {
		return nil, err
	}
	if err := checkPeers(defs); err != nil {
		return nil, err
	}
	return start(ctx, defs, opts)
}

func start(ctx context.Context, defs []definition, opts Options) (*Stack, error) {
	if err := validatePorts(opts.Ports); err != nil {
		return nil, err
	}
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	if opts.DataDir == "" {
		opts.DataDir = filepath.Join(root, "data", "stack")
	}
	dataDir, err := filepath.Abs(opts.DataDir) // each server runs in its own working directory
	if err != nil {
		return nil, err
	}
	held, err := tryLock(filepath.Join(dataDir, "lock"))
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("another stack is running in %s: stop it, or choose another data directory", dataDir)
	}
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	s := &Stack{lock: held}
	if err := s.start(ctx, defs, opts, dataDir, filepath.Join(root, "deploy")); err != nil {
		// The data of an incomplete stack need no graceful shutdown.
		canceled, cancel := context.WithCancel(context.Background())
		cancel()
		s.Stop(canceled) // the only possible error is that servers were killed
		return nil, err
	}
	return s, nil
}

func (s *Stack) start(ctx context.Context, defs []definition, opts Options, dataDir, deployDir string) error {
	// Check the ports before the builds, which take minutes.
	if _, err := reserve(defs, opts.Ports); err != nil {
		return err
	}
	// Build one after the other: a single build uses all cores.
	for _, d := range defs {
		binary, err := Build(ctx, d.name, BuildOptions{CacheDir: opts.CacheDir, Progress: opts.Progress})
		if err != nil {
			return err
		}
		dir := filepath.Join(dataDir, d.name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("data directory of %s: %w", d.name, err)
		}
		s.servers = append(s.servers, &Server{
			Name:    d.name,
			LogFile: filepath.Join(dir, "server.log"),
			DataDir: dir,
			def:     d,
			binary:  binary,
			deploy:  deployDir,
			want:    opts.Ports,
			overlay: opts.Overlays[d.name],
		})
	}
	found, err := reserve(defs, opts.Ports)
	if err != nil {
		return err
	}
	peers := make(map[string]addresses) // of the servers that run: their ports are final
	for _, level := range s.levels() {
		for _, server := range level {
			server.peers = maps.Clone(peers)
		}
		if err := startAll(ctx, level, found); err != nil {
			return err
		}
		for _, server := range level {
			peers[server.Name] = server.ports
		}
	}
	return nil
}

// levels divides the servers so that each sends only to servers of earlier levels.
func (s *Stack) levels() [][]*Server {
	var levels [][]*Server
	at := make(map[string]int)
	for _, server := range s.servers { // which come after those that they send to
		level := 0
		for _, peer := range slices.Concat(server.def.sendsTo, server.def.maySendTo) {
			if l, runs := at[peer]; runs {
				level = max(level, l+1)
			}
		}
		at[server.Name] = level
		for level >= len(levels) {
			levels = append(levels, nil)
		}
		levels[level] = append(levels[level], server)
	}
	return levels
}

// startAll starts the servers concurrently and waits until each is ready. The first failure cancels the others.
func startAll(ctx context.Context, servers []*Server, found map[string]addresses) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, server := range servers {
		g.Go(func() error {
			if err := os.Truncate(server.LogFile, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return server.start(ctx, found[server.Name])
		})
	}
	return g.Wait()
}

// Servers returns the stack's servers. Servers that send to others come after them.
func (s *Stack) Servers() []*Server { return append([]*Server(nil), s.servers...) }

// Pyroscope returns the stack's Pyroscope on either storage, or nil.
func (s *Stack) Pyroscope() *Server { return s.ofModule("pyroscope") }

// Tempo returns the stack's Tempo, or nil.
func (s *Stack) Tempo() *Server { return s.ofModule("tempo") }

// Jaeger returns the stack's Jaeger, or nil.
func (s *Stack) Jaeger() *Server { return s.ofModule("jaeger") }

// Alertmanager returns the stack's Alertmanager, or nil.
func (s *Stack) Alertmanager() *Server { return s.ofModule("alertmanager") }

// Prometheus returns the stack's Prometheus, or nil.
func (s *Stack) Prometheus() *Server { return s.ofModule("prometheus") }

// Loki returns the stack's Loki, or nil.
func (s *Stack) Loki() *Server { return s.ofModule("loki") }

// Collector returns the stack's Collector, or nil.
func (s *Stack) Collector() *Server { return s.ofModule("collector") }

func (s *Stack) ofModule(module string) *Server {
	for _, server := range s.servers {
		if server.def.module == module {
			return server
		}
	}
	return nil
}

// Wait returns nil when ctx is done, or an error with the last log lines of a server that ended before.
// It does not follow servers that are restarted after the call.
func (s *Stack) Wait(ctx context.Context) error {
	ended := make(chan *Server, len(s.servers))
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, server := range s.servers {
		done := server.Done()
		wg.Go(func() {
			select {
			case <-done:
				ended <- server
			case <-ctx.Done():
			}
		})
	}
	select {
	case server := <-ended:
		return server.Err()
	case <-ctx.Done():
		return nil
	}
}

// Stop shuts all servers down gracefully and waits until they have ended. Servers that send to others are stopped
// first, so that their queued data is delivered. Servers that still run when ctx is done are killed, which is an
// error. After Stop no server runs and the data directory is free. Stop may be called several times and concurrently.
func (s *Stack) Stop(ctx context.Context) error {
	var err error
	for _, level := range slices.Backward(s.levels()) {
		err = errors.Join(err, closeAll(ctx, level))
	}
	s.release.Do(func() { err = errors.Join(err, s.lock.Close()) })
	return err
}

// closeAll stops the servers concurrently.
func closeAll(ctx context.Context, servers []*Server) error {
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, server := range servers {
		wg.Go(func() { errs[i] = server.close(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
