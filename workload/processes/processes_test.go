package processes

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spanflame/workload/processes/processestest"
)

// binary is the spanflame program.
var binary string

func TestMain(m *testing.M) { processestest.Main(m, &binary, Build) }

// options returns options for a workload that keeps everything below one directory.
func options(dir string, env ...string) Options {
	return Options{Binary: binary, Dir: dir, Env: append(env, "SPANFLAME_DIR="+filepath.Join(dir, "saved"))}
}

// health returns the status of a service's health endpoint.
func health(t *testing.T, url string) int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestStartAndStop(t *testing.T) {
	s, err := Start(t.Context(), options(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, service := range []*Service{s.Storefront, s.Inventory} {
			if err := service.Kill(); err != nil {
				t.Error(err)
			}
		}
	})
	for _, url := range []string{s.Storefront.URL, s.Storefront.Admin, s.Inventory.URL, s.Inventory.Admin} {
		if status := health(t, url); status != http.StatusOK {
			t.Errorf("%s: status %d", url, status)
		}
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("Stop: %v", err)
	}
	for _, service := range []*Service{s.Storefront, s.Inventory} {
		select {
		case <-service.Done():
		default:
			t.Errorf("%s runs after Stop", service.Name)
		}
		if lines, err := service.Log(); err != nil || len(lines) == 0 {
			t.Errorf("%s: %d log lines (%v)", service.Name, len(lines), err)
		}
	}
}

func TestAServiceThatFailsSaysWhyAndLeavesNothingRunning(t *testing.T) {
	dir := t.TempDir()
	_, err := Start(t.Context(), options(dir, "DATABASE_URL=mysql://nowhere"))
	if err == nil || !strings.Contains(err.Error(), "storefront: ") || !strings.Contains(err.Error(), "must begin with postgres://") {
		t.Fatalf("Start: %v, want an error of the storefront with its own words", err)
	}
	inventory := &Service{LogFile: filepath.Join(dir, "inventory.log")}
	lines, err := inventory.Log()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		if l["msg"] != "Service listening" {
			continue
		}
		conn, err := net.Dial("tcp", fmt.Sprint(l["address"]))
		if err == nil {
			conn.Close()
			t.Error("the inventory still listens")
		}
		return
	}
	t.Errorf("the inventory never listened: %v", lines)
}

func TestStopNamesTheServiceThatHangs(t *testing.T) {
	s, err := Start(t.Context(), options(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	// A request in flight delays the stop, and the deadline has already passed.
	go func() {
		resp, err := http.Get(s.Storefront.URL + "/load/sleep?ms=5000")
		if err == nil {
			resp.Body.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	err = s.Stop(ctx)
	if err == nil || !strings.Contains(err.Error(), "storefront: it did not end normally, so it was killed: context deadline exceeded") {
		t.Errorf("Stop: %v, want that the storefront was killed", err)
	}
	for _, service := range []*Service{s.Storefront, s.Inventory} {
		select {
		case <-service.Done():
		default:
			t.Errorf("%s runs after Stop", service.Name)
		}
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("changed my mind"))
	if _, err := Start(ctx, options(t.TempDir())); err == nil || !strings.Contains(err.Error(), "changed my mind") {
		t.Errorf("Start: %v", err)
	}
}

func TestStartWithoutADirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	if _, err := Start(t.Context(), options(dir)); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("Start: %v, want an error that names %s", err, dir)
	}
}
