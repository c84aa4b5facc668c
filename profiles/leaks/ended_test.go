package leaks_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/leaks"
)

// TestEnded: what a run held that was killed is reported by what it grew since the first profile of its process, with few
// profiles or none, and its profile is no process of its own.
func TestEnded(t *testing.T) {
	const mib = 1 << 20
	labels := map[string]string{"service_instance_id": "one"}
	windows := func(n int, end func(w *profiles.Window)) func(func(profiles.Window, error) bool) {
		return func(yield func(profiles.Window, error) bool) {
			last := profiles.Window{}
			for w, err := range steps(n+1, func(i int) int64 { return int64(10+i) * mib }) {
				w.Labels = labels
				if last = w; len(last.Profile.Sample) > 0 && n > 0 && !yield(w, err) {
					return
				}
			}
			end(&last)
			last.Start = last.End.Add(time.Second)
			last.End = last.Start
			yield(last, nil)
		}
	}
	killed := func(w *profiles.Window) {
		w.Labels = map[string]string{"service_instance_id": "one", record.EndedLabel: "memory"}
		for _, s := range w.Profile.Sample {
			for i, st := range w.Profile.SampleType {
				if st.Type == "inuse_space" {
					s.Value[i] = 900 * mib
				}
			}
		}
	}
	for n, grown := range map[int]int64{3: 890, 0: 900} {
		r, err := leaks.Find(t.Context(), windows(n, killed), leaks.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Ended) != 1 || r.Ended[0].Why != "memory" || r.Ended[0].InUse != 900*mib || len(r.Ended[0].Grew) != 1 ||
			r.Ended[0].Grew[0].Site != "main.hold" || r.Ended[0].Grew[0].Grown != grown*mib || len(r.Processes) != min(n, 1) {
			t.Errorf("%d windows before: %+v", n, r)
		}
		var text bytes.Buffer
		if err := r.WriteText(&text); err != nil {
			t.Fatal(err)
		}
		want := `{service_instance_id="one"}: a run ended without a shutdown (killed for memory); its last memory profile`
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}

	// A window that ended for an incident bundle is one as any other.
	r, err := leaks.Find(t.Context(), windows(19, func(w *profiles.Window) {
		w.Labels = map[string]string{"service_instance_id": "one", record.IncidentLabel: "request"}
	}), leaks.Options{})
	if err != nil || len(r.Processes) != 1 || r.Processes[0].MemoryWindows != 21 {
		t.Errorf("%+v, %v", r, err)
	}
}
