package agent_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"runtime/pprof"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/agent"
	"spanflame/internal/record"
)

// isProfile checks that b is a CPU profile.
func isProfile(t *testing.T, what string, b []byte) {
	t.Helper()
	p, err := profile.ParseData(b)
	if err != nil || len(p.SampleType) != 2 || p.SampleType[1].Type != "cpu" {
		t.Errorf("%s is no CPU profile: %v", what, err)
	}
}

// saved returns the number of saved profiles of the type.
func saved(t *testing.T, dir string, typ record.Type) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if m, parseErr := record.ParseFileName(filepath.Base(path)); parseErr == nil && m.Type == typ {
			n++
		}
		if errors.Is(err, fs.ErrNotExist) { // a file that has got its name meanwhile
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// waitSaved waits until there are at least n saved profiles of the type.
func waitSaved(t *testing.T, dir string, typ record.Type, n int) {
	t.Helper()
	for saved(t, dir, typ) < n {
		time.Sleep(20 * time.Millisecond)
	}
}

// TestServiceUsesTheCPUProfiler: the runtime has one CPU profiler, which a service may use before the agent starts,
// while it runs, and afterwards.
func TestServiceUsesTheCPUProfiler(t *testing.T) {
	var before bytes.Buffer
	if err := pprof.StartCPUProfile(&before); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a, err := agent.Start(t.Context(), agent.Config{
		ServiceName: "svc", Dir: dir, SpoolDir: t.TempDir(), Window: time.Second, AdminAddress: "127.0.0.1:0", SlowSpan: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	waitSaved(t, dir, record.Goroutine, 1) // the other types do not wait for the CPU profiler
	if n := saved(t, dir, record.CPU); n > 0 {
		t.Errorf("while the service's profile runs, the agent has saved %d CPU profiles", n)
	}
	pprof.StopCPUProfile()
	isProfile(t, "the profile that the service began before the agent", before.Bytes())

	waitSaved(t, dir, record.CPU, 2) // the agent has the profiler now
	if err := pprof.StartCPUProfile(io.Discard); err == nil {
		t.Error("the service can start a CPU profile next to the agent's: the documentation says otherwise")
		pprof.StopCPUProfile()
	}
	var during bytes.Buffer
	if err := a.CPUProfile(t.Context(), &during, 200*time.Millisecond); err != nil {
		t.Error(err)
	}
	isProfile(t, "the profile that the service took by the agent", during.Bytes())
	resp, err := http.Get("http://" + a.AdminAddr() + "/debug/pprof/profile?seconds=1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if resp.Body.Close(); err != nil {
		t.Error(err)
	}
	isProfile(t, "the profile of the listener", b)
	http.DefaultClient.CloseIdleConnections()
	waitSaved(t, dir, record.CPU, saved(t, dir, record.CPU)+2) // windows go on
	if err := a.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}

	var after bytes.Buffer
	if err := pprof.StartCPUProfile(&after); err != nil {
		t.Fatalf("after the agent's shutdown: %v", err)
	}
	pprof.StopCPUProfile()
	isProfile(t, "the profile that the service took after the agent", after.Bytes())
}
