// Command outages runs spanflame and plain pyroscope-go through the same outages at the same time and prints a table
// of how many profiles each captured and how many of them the server has. docs/delivery.md shows its results. It
// starts a real Pyroscope and needs nothing else:
//
//	go run ./e2e/outages
//	go run ./e2e/outages -outage 2m -only killed
//
// It measures; the tests in package e2e fail when a profile is lost.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"spanflame/e2e/faultproxy"
	"spanflame/stack/servers"
	"spanflame/workload/processes"
)

func main() {
	outage := flag.Duration("outage", 10*time.Second, "how long each fault lasts")
	only := flag.String("only", "", "run only the faults whose name contains this")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if flag.Arg(0) == "plain" {
		err = plain(ctx, flag.Arg(1))
	} else {
		err = measure(ctx, *outage, *only)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "outages:", err)
		os.Exit(1)
	}
}

// row is one row of the table.
type row struct {
	name    string
	harm    faultproxy.Fault
	server  bool // the server is killed during the outage
	process bool // the profiled process is killed during the outage and restarted
}

var rows = []row{
	{name: "none"},
	{name: "server killed and restarted", server: true},
	{name: "process killed (SIGKILL) and restarted", process: true},
	{name: "both killed and restarted", server: true, process: true},
	{name: "answers " + faultproxy.SlowBy.String() + " late", harm: faultproxy.Slow},
	{name: "half-open: never answered", harm: faultproxy.HalfOpen},
	{name: "connection reset in the request", harm: faultproxy.ResetRequest},
	{name: "connection reset before the answer", harm: faultproxy.ResetAnswer},
	{name: "answer cut off", harm: faultproxy.Truncated},
	{name: "429", harm: faultproxy.Throttled},
	{name: "429 with Retry-After", harm: faultproxy.ThrottledForASec},
	{name: "503", harm: faultproxy.Unavailable},
	{name: "422 for the rate", harm: faultproxy.RateLimited},
}

// calm is the time without faults before and after an outage.
const calm = 5 * time.Second

func measure(ctx context.Context, outage time.Duration, only string) (err error) {
	dir, err := os.MkdirTemp("", "spanflame-outages-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "spanflame")
	if err := processes.Build(ctx, binary); err != nil {
		return err
	}
	stack, err := servers.Start(ctx, servers.Options{Servers: []string{servers.Pyroscope}, DataDir: filepath.Join(dir, "servers"), Progress: os.Stderr})
	if err != nil {
		return err
	}
	defer stack.Stop(context.WithoutCancel(ctx)) // its data is removed with dir
	fmt.Printf("| For %s | pyroscope-go captured | delivered | spanflame captured | delivered |\n|---|--:|--:|--:|--:|\n", outage)
	for i, r := range rows {
		if !strings.Contains(r.name, only) {
			continue
		}
		clients := []client{&plainClient{}, &spanflameClient{binary: binary, dir: filepath.Join(dir, strconv.Itoa(i))}}
		if err := os.Mkdir(filepath.Join(dir, strconv.Itoa(i)), 0o755); err != nil {
			return err
		}
		if err := r.run(ctx, stack.Pyroscope(), outage, clients); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		fmt.Printf("| %s |", r.name)
		for _, c := range clients {
			taken, delivered := c.count()
			fmt.Printf(" %d | %d |", taken, delivered)
		}
		fmt.Println()
	}
	return nil
}

// client is a profiled process with its own proxy.
type client interface {
	start(ctx context.Context, url string) error
	load()
	kill() error
	stop(ctx context.Context) error
	behind(*faultproxy.Proxy)
	count() (taken, delivered int)
}

// run runs one row for all clients at the same time.
func (r row) run(ctx context.Context, server *servers.Server, outage time.Duration, clients []client) error {
	proxies := make([]*faultproxy.Proxy, len(clients))
	for i, c := range clients {
		proxies[i] = faultproxy.Start(server.URL)
		defer proxies[i].Close()
		c.behind(proxies[i])
		if err := c.start(ctx, proxies[i].URL()); err != nil {
			return err
		}
	}
	load(clients, calm)
	for _, p := range proxies {
		p.Harm(r.harm)
	}
	if r.server {
		if err := server.Kill(); err != nil {
			return err
		}
	}
	load(clients, outage/2)
	if r.process {
		for i, c := range clients {
			if err := c.kill(); err != nil {
				return err
			}
			if err := c.start(ctx, proxies[i].URL()); err != nil {
				return err
			}
		}
	}
	load(clients, outage/2)
	if r.server {
		if err := server.Restart(ctx); err != nil {
			return err
		}
	}
	for _, p := range proxies {
		p.Harm(faultproxy.None)
	}
	load(clients, calm)
	for _, c := range clients {
		if err := c.stop(ctx); err != nil {
			return err
		}
	}
	return nil
}

func load(clients []client, d time.Duration) {
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			for time.Now().Before(end) {
				c.load()
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
	wg.Wait()
}

// spanflameClient is the workload with its agents.
type spanflameClient struct {
	binary, dir string
	workload    *processes.Workload
	proxy       *faultproxy.Proxy
	taken       int
}

func (c *spanflameClient) behind(p *faultproxy.Proxy) { c.proxy = p }

func (c *spanflameClient) start(ctx context.Context, url string) (err error) {
	c.workload, err = processes.Start(ctx, processes.Options{Binary: c.binary, Dir: c.dir, Env: []string{
		"PYROSCOPE_SERVER_ADDRESS=" + url, "PYROSCOPE_UPLOAD_INTERVAL=1s", "SPANFLAME_SLOW_SPAN=off",
	}})
	return err
}

func (c *spanflameClient) load() {
	for _, path := range []string{"/api/checkout", "/load/cpu?ms=10"} {
		if resp, err := http.Get(c.workload.Storefront.URL + path); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}
}

// each ends one service after the other, and adds up the profiles captured by their counters.
func (c *spanflameClient) each(end func(*processes.Service) error) error {
	for _, s := range []*processes.Service{c.workload.Storefront, c.workload.Inventory} {
		// Windows end on the second: half a second later, the counters do not change.
		time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(1500 * time.Millisecond)))
		n, err := captured(s)
		if err != nil {
			return err
		}
		c.taken += n
		if err := end(s); err != nil {
			return err
		}
	}
	return nil
}

// captured returns how many profiles a service has captured.
func captured(s *processes.Service) (sum int, err error) {
	resp, err := http.Get(s.Admin + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, "spanflame_profiles_captured_total{") {
			n, err := strconv.ParseFloat(strings.TrimSpace(l[strings.LastIndexByte(l, ' ')+1:]), 64)
			if err != nil {
				return 0, err
			}
			sum += int(n)
		}
	}
	return sum, nil
}

func (c *spanflameClient) kill() error { return c.each((*processes.Service).Kill) }

// stop ends the services, and restarts them as long as they have undelivered profiles.
func (c *spanflameClient) stop(ctx context.Context) error {
	const types = 5 // stopping captures one more profile of each type
	for {
		err := c.each(func(s *processes.Service) error {
			c.taken += types
			return s.Stop(ctx)
		})
		if err != nil {
			return err
		}
		left, err := filepath.Glob(filepath.Join(c.dir, "spool-*", "*", "*.pb.gz"))
		if err != nil || len(left) == 0 {
			return err
		}
		// The deadline was too short for the backlog: the next start continues with it.
		if err := c.start(ctx, c.proxy.URL()); err != nil {
			return err
		}
		load([]client{c}, calm)
	}
}

func (c *spanflameClient) count() (taken, delivered int) {
	type window struct {
		service, typ string
		start        time.Time
	}
	seen := map[window]bool{}
	for _, e := range c.proxy.Seen() {
		if e.Accepted() {
			seen[window{e.Profile.Labels["service_name"], e.Profile.Name, e.Profile.Start}] = true
		}
	}
	return c.taken, len(seen)
}
