// Package processes runs the two services of the workload as a user does, each in its own process. The demo, the
// end-to-end tests and the recorder of the example profiles use it. It is not for running other programs: see
// internal/child.
package processes

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"spanflame/internal/child"
)

// Options configure Start.
type Options struct {
	Binary string   // path of the spanflame program
	Dir    string   // holds the logs, the database and the spools of the services
	Env    []string // NAME=value, for both services, in addition to PATH and HOME
}

// Build builds the spanflame program at path, for Options.Binary. It needs the source of this module. flags are further
// flags of go build, such as -race.
func Build(ctx context.Context, path string, flags ...string) error {
	args := slices.Concat([]string{"build"}, flags, []string{"-o", path, "spanflame/cmd/spanflame"})
	if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("build spanflame: %w\n%s", err, out)
	}
	return nil
}

// Service is a running service of the workload.
type Service struct {
	Name    string
	URL     string // of its HTTP API
	Admin   string // URL of its operator's listener
	LogFile string // standard output and standard error

	process *child.Process
}

// Workload is both services. Stop ends it.
type Workload struct {
	Storefront, Inventory *Service
}

// Start starts both services on free ports and waits until they listen. When it fails nothing is left
// running, and the error carries the last lines of the service that failed.
func Start(ctx context.Context, o Options) (*Workload, error) {
	s := &Workload{}
	var err error
	if s.Inventory, err = startService(ctx, o, "inventory"); err != nil {
		return nil, err
	}
	s.Storefront, err = startService(ctx, o, "storefront",
		"--inventory-url", s.Inventory.URL, "--database", filepath.Join(o.Dir, "orders.db"))
	if err != nil {
		return nil, errors.Join(err, s.Inventory.Stop(ctx))
	}
	return s, nil
}

// StartInventory starts the inventory alone, as a further process of that service.
func StartInventory(ctx context.Context, o Options) (*Service, error) {
	return startService(ctx, o, "inventory")
}

// Stop stops both services like an orchestrator, the caller first.
func (s *Workload) Stop(ctx context.Context) error {
	return errors.Join(s.Storefront.Stop(ctx), s.Inventory.Stop(ctx))
}

func startService(ctx context.Context, o Options, role string, args ...string) (*Service, error) {
	s := &Service{Name: role, LogFile: filepath.Join(o.Dir, role+".log")}
	out, err := os.Create(s.LogFile)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own file descriptor
	cmd := exec.Command(o.Binary, append([]string{"workload", "--role", role, "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"SPANFLAME_ADMIN_ADDRESS=127.0.0.1:0",
		"SPANFLAME_SPOOL_DIR=" + filepath.Join(o.Dir, "spool-"+role),
	}, o.Env...)
	if s.process, err = child.StartLogged(cmd, out); err != nil {
		return nil, fmt.Errorf("%s: %w", role, err)
	}
	if err := s.waitListening(ctx); err != nil {
		return nil, errors.Join(s.withLog(err), s.Kill())
	}
	return s, nil
}

// waitListening waits until the service listens, and reads its addresses from its log.
func (s *Service) waitListening(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		lines, err := s.Log()
		if err != nil {
			return err
		}
		for _, l := range lines {
			switch l["msg"] {
			case "agent started":
				s.Admin = fmt.Sprintf("http://%v", l["admin"])
			case "Service listening":
				s.URL = fmt.Sprintf("http://%v", l["address"])
			}
		}
		if s.URL != "" { // the agent starts before the service
			return nil
		}
		select {
		case <-s.process.Done():
			return errors.New("ended before it listened")
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// Log returns the JSON lines that the service has printed so far, decoded.
func (s *Service) Log() ([]map[string]any, error) {
	b, err := os.ReadFile(s.LogFile)
	if err != nil {
		return nil, err
	}
	var lines []map[string]any
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var l map[string]any
		if json.Unmarshal(sc.Bytes(), &l) == nil {
			lines = append(lines, l)
		}
	}
	return lines, sc.Err()
}

// Stop asks the service to end and waits until it has ended. If ctx ends first, Stop kills the service. If the
// service did not end normally, the error says how it ended and quotes its last lines.
func (s *Service) Stop(ctx context.Context) error {
	if err := errors.Join(s.process.Stop(ctx), s.process.Err()); err != nil {
		return s.withLog(err)
	}
	return nil
}

// Kill ends the service at once and waits until it has ended.
func (s *Service) Kill() error {
	if err := s.process.Kill(); err != nil {
		return fmt.Errorf("kill %s: %w", s.Name, err)
	}
	return nil
}

// Done is closed when the service has ended.
func (s *Service) Done() <-chan struct{} { return s.process.Done() }

func (s *Service) withLog(err error) error {
	return s.process.WithLog(fmt.Errorf("%s: %w", s.Name, err))
}
