//go:build long

package workload

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"spanflame/internal/docsection"
	"spanflame/workload/faults"
	"spanflame/workload/load"
)

// loadTime is how long each load of TestMedians lasts.
const loadTime = 5 * time.Second

// tolerance is how far a prediction may be from what is measured.
const tolerance = 0.15

// tries is how often a fault is measured if the machine disturbs the measurement.
const tries = 3

// TestMedians measures what each fault that is no leak adds to its victim's median, and how much less that is with half
// of its first knob. With -update, it writes the medians into docs/faults.md. Both need the machine for themselves.
func TestMedians(t *testing.T) {
	var table strings.Builder
	fmt.Fprint(&table, "\n| Fault | repaired | with the fault | ratio | half of the knob saves | predicted |\n|---|--:|--:|--:|--:|--:|\n")
	s := newServices(t, Config{})
	rows, all := 0, 0
	for _, service := range []*Service{s.storefront, s.inventory} {
		for _, f := range service.faults {
			if f.is.Kind == faults.Leak {
				continue
			}
			all++
			t.Run(f.is.Service+"/"+f.is.Name, func(t *testing.T) {
				var row string
				var err error
				for range tries {
					if row, err = s.measure(t, f); err == nil {
						break
					}
					t.Log(err)
				}
				if err != nil {
					t.Error(err)
				}
				t.Log(row)
				table.WriteString(row)
				rows++
			})
		}
	}
	if *update && rows == all { // -run may have left some out
		docsection.Write(t, "../docs/faults.md", "medians, written by go test -tags long ./workload -run Medians -update", table.String())
	}
}

// measure returns a row of the table, and an error if the fault does not hurt, or not as predicted.
func (s *services) measure(t *testing.T, f *fault) (row string, err error) {
	repaired := s.median(t, f)
	f.switchOn()
	faulty := s.median(t, f)
	saves, predicted := "", ""
	is := f.describe()
	if is.Predicted != nil {
		half := f.defaults()
		half[0] /= 2
		f.switchOn(half...)
		saved := faulty - s.median(t, f)
		saves, predicted = fmt.Sprintf("%.0f ms", saved), fmt.Sprintf("%.0f ms", is.Predicted.HalvedSavesMS)
		if math.Abs(saved-is.Predicted.HalvedSavesMS) > tolerance*is.Predicted.HalvedSavesMS {
			err = fmt.Errorf("half of %s saves %s of the median, predicted are %s", is.Knobs[0].Name, saves, predicted)
		}
	}
	f.repair()
	if faulty < 1.5*repaired {
		err = fmt.Errorf("the fault does not hurt: the median is %.1f ms with it and %.1f ms without", faulty, repaired)
	}
	return fmt.Sprintf("| %s, in the %s | %.1f ms | %.1f ms | %.1f | %s | %s |\n",
		is.Name, is.Service, repaired, faulty, faulty/repaired, saves, predicted), err
}

// median returns the victim's median under the load that shows the fault, in ms.
func (s *services) median(t *testing.T, f *fault) float64 {
	t.Helper()
	mix, rate := load.FaultMix(f.is)
	report, err := load.Run(t.Context(), load.Config{Target: s.storefrontURL, Rate: rate, Mix: mix, Duration: loadTime})
	if err != nil {
		t.Fatal(err)
	}
	if report.Failed > 0 {
		t.Errorf("%d requests failed: %+v", report.Failed, report.Endpoints)
	}
	return report.Endpoints[len(report.Endpoints)-1].P50
}
