package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	pyroscope "github.com/grafana/pyroscope-go"
	"github.com/grafana/pyroscope-go/upstream"
	"github.com/grafana/pyroscope-go/upstream/remote"

	"spanflame/e2e/faultproxy"
)

// plainClient is a process profiled by pyroscope-go.
type plainClient struct {
	cmd   *exec.Cmd
	read  chan struct{} // closed when the process's output has ended
	last  int           // profiles captured by the current process, by its last output; read it after read is closed
	taken int           // captured by the processes that ended
	proxy *faultproxy.Proxy
}

func (c *plainClient) behind(p *faultproxy.Proxy) { c.proxy = p }

func (c *plainClient) start(ctx context.Context, url string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c.cmd = exec.CommandContext(ctx, self, "plain", url)
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.cmd.Start(); err != nil {
		return err
	}
	c.read = make(chan struct{})
	go func() {
		defer close(c.read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if n, err := strconv.Atoi(lines.Text()); err == nil {
				c.last = n
			}
		}
	}()
	return nil
}

func (c *plainClient) load() {} // it creates its own

func (c *plainClient) end(s os.Signal) error {
	if err := c.cmd.Process.Signal(s); err != nil {
		return err
	}
	<-c.read
	c.taken += c.last
	c.last = 0
	var exit *exec.ExitError
	if err := c.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

func (c *plainClient) kill() error { return c.end(syscall.SIGKILL) }

func (c *plainClient) stop(context.Context) error { return c.end(syscall.SIGTERM) }

func (c *plainClient) count() (taken, delivered int) {
	for _, e := range c.proxy.Seen() {
		if e.Accepted() {
			delivered++
		}
	}
	return c.taken, delivered
}

// counting counts the profiles that pyroscope-go captures, and prints the count after each.
type counting struct {
	upstream.Upstream
	n atomic.Int64
}

func (c *counting) Upload(j *upstream.UploadJob) {
	fmt.Println(c.n.Add(1))
	c.Upstream.Upload(j)
}

// plain is the profiled process. It starts and stops pyroscope-go like that package's own Start and Stop, with a
// counter in between.
func plain(ctx context.Context, url string) error {
	runtime.SetMutexProfileFraction(100)
	runtime.SetBlockProfileRate(100_000)
	r, err := remote.NewRemote(remote.Config{Address: url, Threads: 5, Timeout: 30 * time.Second, Logger: silent{}})
	if err != nil {
		return err
	}
	s, err := pyroscope.NewSession(pyroscope.SessionConfig{
		Upstream: &counting{Upstream: r}, Logger: silent{}, AppName: "plain", UploadRate: time.Second, DisableGCRuns: true,
		ProfilingTypes: []pyroscope.ProfileType{
			pyroscope.ProfileCPU, pyroscope.ProfileAllocObjects, pyroscope.ProfileAllocSpace, pyroscope.ProfileInuseObjects,
			pyroscope.ProfileInuseSpace, pyroscope.ProfileGoroutines, pyroscope.ProfileMutexCount, pyroscope.ProfileMutexDuration,
			pyroscope.ProfileBlockCount, pyroscope.ProfileBlockDuration,
		},
	})
	if err != nil {
		return err
	}
	r.Start()
	if err := s.Start(); err != nil {
		return err
	}
	for ctx.Err() == nil {
		for begun := time.Now(); time.Since(begun) < 10*time.Millisecond; {
			_ = make([]byte, 1<<10)
		}
		time.Sleep(200 * time.Millisecond)
	}
	s.Stop()
	r.Stop()
	return nil
}

// silent is a logger for pyroscope-go that discards everything.
type silent struct{}

func (silent) Infof(string, ...any)  {}
func (silent) Debugf(string, ...any) {}
func (silent) Errorf(string, ...any) {}
