//go:build long

package demo

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/workload/faults"
)

// buildPair builds the program that has the usual pair in place of the agent.
func buildPair(t *testing.T) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "pair")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./testdata/pair").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// received are the CPU profiles that the pair has pushed.
type received struct {
	mu       sync.Mutex
	profiles []*profile.Profile
	err      error // the first
}

// ServeHTTP keeps the profile of a push, as Pyroscope does.
func (r *received) ServeHTTP(_ http.ResponseWriter, req *http.Request) {
	p, err := pushed(req)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.err = cmp.Or(r.err, err)
	} else if profiles.SampleIndex(p, "cpu") >= 0 {
		r.profiles = append(r.profiles, p)
	}
}

func pushed(req *http.Request) (*profile.Profile, error) {
	file, _, err := req.FormFile("profile")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	return profile.Parse(bytes.NewReader(b))
}

// shownByPair makes a fault with the usual pair in place of the agent, and returns what the profile of a victim has, the
// one with the median duration.
func shownByPair(t *testing.T, f faults.Fault, program string) string {
	var got received
	server := httptest.NewServer(&got)
	defer server.Close()
	w, _ := startPair(t, program, "PYROSCOPE_SERVER_ADDRESS="+server.URL)
	faulty, _ := drive(t, w, f, truthTime, truthTime)
	stopPair(t, w) // pushes the last profiles
	service := w.Storefront
	if f.Service != storefront {
		service = w.Inventory
	}
	lines, err := service.Log()
	if err != nil || got.err != nil {
		t.Fatal(err, got.err)
	}
	type span struct {
		id       string
		duration time.Duration
	}
	var victims []span
	sampled := 0
	for _, l := range lines {
		if l["Name"] != spanName(f) {
			continue
		}
		begun, err := time.Parse(time.RFC3339Nano, l["StartTime"].(string))
		if err != nil {
			t.Fatal(err)
		}
		ended, err := time.Parse(time.RFC3339Nano, l["EndTime"].(string))
		if err != nil {
			t.Fatal(err)
		}
		if begun.Before(faulty.ended) {
			s := span{l["SpanContext"].(map[string]any)["SpanID"].(string), ended.Sub(begun)}
			victims = append(victims, s)
			sampled += len(got.of(s.id))
		}
	}
	if len(victims) == 0 {
		t.Fatal("no span of a victim is exported")
	}
	if f.Kind == faults.CPU && sampled == 0 {
		t.Errorf("no CPU profile has a sample of %d victims that compute", len(victims))
	}
	slices.SortFunc(victims, func(a, b span) int { return cmp.Compare(a.duration, b.duration) })
	median := victims[len(victims)/2]
	return shown(got.of(median.id), median.duration, f.Function)
}

// of returns the samples of a span.
func (r *received) of(spanID string) (samples []*profile.Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.profiles {
		samples = append(samples, profiles.ByLabel(p, wallprofile.SpanID, spanID).Sample...)
	}
	return samples
}

// shown describes the samples of a span: their CPU time, the function that has most of it, and how much of it is of the
// function to blame and what it calls.
func shown(samples []*profile.Sample, duration time.Duration, blamed string) string {
	if len(samples) == 0 {
		return fmt.Sprintf("nothing of %d ms", duration.Milliseconds())
	}
	var total, of time.Duration
	times := map[string]time.Duration{}
	most := ""
	for _, s := range samples {
		cpu := time.Duration(s.Value[len(s.Value)-1])
		total += cpu
		if profiles.Calls(s, blamed) {
			of += cpu
		}
		leaf := s.Location[0].Line[0].Function.Name
		if times[leaf] += cpu; times[leaf] > times[most] {
			most = leaf
		}
	}
	text := fmt.Sprintf("%d ms of %d ms, most in %s", total.Milliseconds(), duration.Milliseconds(), wallprofile.Short(most))
	if of > 0 {
		text += fmt.Sprintf("; %d ms in what is to blame", of.Milliseconds())
	}
	return text
}
