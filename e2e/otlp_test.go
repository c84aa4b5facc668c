//go:build !compose

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"golang.org/x/sync/errgroup"

	"spanflame/internal/otlpwire"
	"spanflame/internal/pyroscopewire"
	"spanflame/internal/query"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/workload/processes"
)

// TestOTLPStoresWhatThePushStores: of a workload that sends its profiles by OTLP, Pyroscope has to the unit and to the frame
// what it has of the same profiles by its own protocol, and so the flame graphs of spans. A server of another release of the
// protocol would accept all and have nothing.
func TestOTLPStoresWhatThePushStores(t *testing.T) {
	pyroscope := w.stack.Pyroscope().URL
	for protocol, endpoint := range map[string]string{"http/protobuf": pyroscope + otlpwire.Path, "grpc": pyroscope} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			scenario := "otlp-" + strings.ReplaceAll(protocol, "/", "-")
			saved := t.TempDir()
			services, err := startWorkload(t.Context(), scenario, "OTEL_PROFILES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT="+endpoint,
				"OTEL_EXPORTER_OTLP_PROFILES_PROTOCOL="+protocol, "SPANFLAME_DIR="+saved, "PYROSCOPE_LABELS=scenario="+scenario)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := noRace(services); err != nil {
					t.Error(err)
				}
			})
			busy(t, services, 2*window)
			if err := services.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if problem := undelivered(t, services); problem != "" {
				t.Fatal(problem)
			}
			storedAsPushed(t, w.pyroscope, pyroscope, scenario, saved)
		})
	}
}

// busy has the services do everything that profiles show, for a time.
func busy(t *testing.T, services *processes.Workload, d time.Duration) {
	t.Helper()
	var wg sync.WaitGroup
	for _, url := range []string{
		services.Storefront.URL + "/api/checkout", services.Storefront.URL + "/load/sleep?ms=150", services.Storefront.URL + "/load/cpu?ms=300",
		services.Inventory.URL + "/load/lock?ms=120", services.Inventory.URL + "/load/lock?ms=120", services.Storefront.URL + "/load/alloc?mb=8",
		services.Inventory.URL + "/load/block?ms=120",
	} {
		wg.Go(func() {
			for end := time.Now().Add(d); time.Now().Before(end); {
				get(t, url)
			}
		})
	}
	wg.Wait()
}

// storedAsPushed compares the profiles of a scenario that Pyroscope has by OTLP with the same ones by its own protocol: it
// pushes those that were saved, as another scenario.
func storedAsPushed(t *testing.T, p *query.Pyroscope, base, scenario, saved string) {
	t.Helper()
	entries, damaged, err := profiles.Find(t.Context(), profiles.Query{}, saved)
	if err != nil || len(damaged) > 0 {
		t.Fatal(err, damaged)
	}
	const pushed = "-pushed"
	for _, e := range entries { // before any is read: several can be of the same millisecond
		r, err := readRecord(e.Path)
		if err != nil {
			t.Fatal(err)
		}
		if err := pushTo(t.Context(), base, r, scenario+pushed); err != nil {
			t.Fatal(err)
		}
	}
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(4)
	var mu sync.Mutex
	samples, types, spans := 0, map[string]int{}, 0
	compare := func(what string, byOTLP, byPush func(scenario string) (*query.Frame, error)) error {
		b, err := byPush(scenario + pushed)
		if err != nil {
			return err
		}
		want := byStack(b)
		for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) { // a Collector sends when it can
			a, err := byOTLP(scenario)
			if err != nil {
				return err
			}
			got := byStack(a)
			if maps.Equal(got, want) {
				mu.Lock()
				defer mu.Unlock()
				samples += len(got)
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s: by OTLP Pyroscope has %d in %d stacks, and by its own protocol %d in %d", what, a.Total, len(got), b.Total, len(want))
			}
		}
	}
	for _, e := range entries {
		g.Go(func() error {
			r, err := readRecord(e.Path)
			if err != nil {
				return err
			}
			prof, err := profile.ParseData(r.Profile)
			if err != nil {
				return err
			}
			for i, st := range prof.SampleType {
				pushedType := strings.Join([]string{string(r.Type), st.Type, st.Unit, prof.PeriodType.Type, prof.PeriodType.Unit}, ":")
				otlpType := strings.Join([]string{string(r.Type), st.Type, st.Unit, string(r.Type), prof.PeriodType.Unit}, ":")
				if r.Type == record.CPU {
					otlpType = pushedType
					if st.Unit == "count" {
						continue // of which OTLP sends the CPU time
					}
				}
				if !slices.ContainsFunc(prof.Sample, func(s *profile.Sample) bool { return s.Value[i] != 0 && len(s.Location) > 0 }) {
					continue
				}
				mu.Lock()
				types[otlpType]++
				mu.Unlock()
				at := r.Start.Truncate(time.Millisecond)
				selector := func(scenario string) query.Selector {
					return query.Selector{"service_name": r.Service, "scenario": scenario, "service_instance_id": r.Labels["service_instance_id"]}
				}
				ask := func(id string) func(string) (*query.Frame, error) {
					return func(scenario string) (*query.Frame, error) {
						return p.FlameGraph(ctx, id, selector(scenario), at, at.Add(time.Millisecond))
					}
				}
				if err := compare(fmt.Sprintf("%s of %s at %s", otlpType, r.Service, at), ask(otlpType), ask(pushedType)); err != nil {
					return err
				}
				if r.Type != record.Wall || i > 0 {
					continue
				}
				span := func(scenario string) (*query.Frame, error) {
					id := prof.Sample[0].Label[wallprofile.SpanID]
					return p.SpanFlameGraph(ctx, query.Wall, selector(scenario), id, at.Add(-time.Minute), at.Add(time.Minute))
				}
				if err := compare(fmt.Sprintf("span %v", prof.Sample[0].Label), span, span); err != nil {
					return err
				}
				mu.Lock()
				spans++
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d profiles compared, with %d stacks; %d flame graphs of spans; of types %v", scenario, len(entries), samples, spans, types)
	for _, typ := range []string{
		query.CPU, query.Wall, "memory:alloc_space:bytes:memory:bytes", "memory:inuse_space:bytes:memory:bytes",
		"mutex:delay:nanoseconds:mutex:count", "block:contentions:count:block:count", "goroutines:goroutine:count:goroutines:count",
	} {
		if types[typ] == 0 {
			t.Errorf("no profile of type %s", typ)
		}
	}
}

// byStack returns the values of a flame graph by stack.
func byStack(f *query.Frame) map[string]int64 {
	all := map[string]int64{}
	f.Walk(func(stack []string, f *query.Frame) {
		if f.Self != 0 {
			all[strings.Join(stack, "\n")] += f.Self
		}
	})
	return all
}

func readRecord(path string) (record.Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return record.Record{}, err
	}
	defer f.Close()
	return record.Decode(f, 64<<20)
}

// pushTo sends a profile to Pyroscope by its own protocol, once it is there.
func pushTo(ctx context.Context, base string, r record.Record, scenario string) error {
	labels := []pyroscopewire.Label{{Name: "__delta__", Value: "false"}, {Name: "__name__", Value: string(r.Type)}}
	series := maps.Clone(r.Labels)
	series[record.ServiceLabel], series["scenario"] = r.Service, scenario
	for _, name := range slices.Sorted(maps.Keys(series)) {
		labels = append(labels, pyroscopewire.Label{Name: name, Value: series[name]})
	}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/push.v1.PusherService/Push", bytes.NewReader(pyroscopewire.Push(labels, r.Profile)))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/proto")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		switch {
		case resp.StatusCode == http.StatusOK:
			return nil
		case resp.StatusCode != http.StatusTooManyRequests:
			return fmt.Errorf("push of a %s profile: %s", r.Type, resp.Status)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
