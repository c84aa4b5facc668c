package workload

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"spanflame/workload/faults"
)

// storefrontFaults and inventoryFaults add the faults of a service, in the order in which /faults lists them. Each is
// in a file of its own, with the code that it makes slow and its repair.
var (
	storefrontFaults = []func(*Service){
		(*Service).addSlowPricing,
		(*Service).addTillConvoy,
		(*Service).addReportLock,
		(*Service).addPoolDrain,
		(*Service).addBusyWorkers,
		(*Service).addStraggler,
		(*Service).addCacheStampede,
		(*Service).addSlowLog,
		(*Service).addFewSlots,
		(*Service).addBlockingRefresh,
		(*Service).addRateLimit,
		(*Service).addNPlusOne,
		(*Service).addRowLock,
		(*Service).addHiddenRetries,
		(*Service).addNewConnections,
		(*Service).addFsyncEach,
		(*Service).addSlowEncoding,
		(*Service).addBadHash,
		(*Service).addAllCPUs,
		(*Service).addMuchGarbage,
		(*Service).addManyGoroutines,
		(*Service).addSessionMap,
		(*Service).addBlockedSenders,
		(*Service).addForgottenTimers,
		(*Service).addSmallSlices,
		(*Service).addOpenBodies,
		(*Service).addKeptClosures,
	}
	inventoryFaults = []func(*Service){
		(*Service).addShelvesConvoy,
		(*Service).addSlowPacking,
		(*Service).addLedgerScan,
	}
)

// fault is a mistake in the service's code that can be switched on and off while it runs; off is the repaired code.
// A switch takes effect from the next request on.
type fault struct {
	is    faults.Fault              // without what depends on the settings
	delay func(knobs []int) float64 // what it adds to the victim's median, in ms; nil if nobody can know
	free  func()                    // frees what the fault retained; nil if it retains nothing
	knobs atomic.Pointer[[]int]     // nil while the fault is off
	mu    sync.Mutex                // held while it is switched
}

// settings returns the values of the fault's knobs in their order, and whether the fault is on.
func (f *fault) settings() ([]int, bool) {
	if knobs := f.knobs.Load(); knobs != nil {
		return *knobs, true
	}
	return nil, false
}

func (f *fault) on() bool { return f.knobs.Load() != nil }

// switchOn makes the mistake with these values of the knobs, or with their defaults.
func (f *fault) switchOn(knobs ...int) {
	if len(knobs) == 0 {
		knobs = f.defaults()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.knobs.Store(&knobs)
}

// repair switches the fault off and frees what it retained.
func (f *fault) repair() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.knobs.Store(nil)
	if f.free != nil {
		f.free()
	}
}

func (f *fault) defaults() []int {
	knobs := make([]int, len(f.is.Knobs))
	for i, k := range f.is.Knobs {
		knobs[i] = k.Default
	}
	return knobs
}

// params returns the knobs as parameters of a request.
func (f *fault) params() []param {
	params := make([]param, len(f.is.Knobs))
	for i, k := range f.is.Knobs {
		params[i] = param{name: k.Name, fallback: k.Default, min: k.Min, max: k.Max}
	}
	return params
}

// describe returns the fault with its settings and what they predict.
func (f *fault) describe() faults.Fault {
	is := f.is
	knobs, on := f.settings()
	if is.On = on; !on {
		knobs = f.defaults()
	}
	if on && len(knobs) > 0 {
		is.Settings = make(map[string]int, len(knobs))
		for i, k := range is.Knobs {
			is.Settings[k.Name] = knobs[i]
		}
	}
	if f.delay != nil {
		half := append([]int{knobs[0] / 2}, knobs[1:]...)
		is.Predicted = &faults.Prediction{AddsMS: f.delay(knobs), HalvedSavesMS: f.delay(knobs) - f.delay(half)}
	}
	return is
}

// addFaults adds the faults and the routes of the code that they are in.
func (s *Service) addFaults(add []func(*Service)) {
	for _, add := range add {
		add(s)
	}
}

// addFault adds a fault to those that the service lists and switches.
func (s *Service) addFault(f *fault) *fault {
	f.is.Service = string(s.cfg.Role)
	if f.is.Span == "" {
		f.is.Span = f.is.Victim.Method + " " + f.is.Victim.Route()
	}
	s.faults = append(s.faults, f)
	return f
}

// handleFaults registers the routes that list and switch the service's faults.
func (s *Service) handleFaults() {
	s.handle("GET /faults", func(r *http.Request) (any, error) {
		if _, err := queryInts(r); err != nil {
			return nil, err
		}
		list := make([]faults.Fault, len(s.faults))
		for i, f := range s.faults {
			list[i] = f.describe()
		}
		return list, nil
	})
	s.handle("PUT /faults/{name}", func(r *http.Request) (any, error) {
		f, err := s.findFault(r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		knobs, err := queryInts(r, f.params()...)
		if err != nil {
			return nil, err
		}
		f.switchOn(knobs...)
		return f.describe(), nil
	})
	s.handle("DELETE /faults/{name}", func(r *http.Request) (any, error) {
		f, err := s.findFault(r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		if _, err := queryInts(r); err != nil {
			return nil, err
		}
		f.repair()
		return f.describe(), nil
	})
}

func (s *Service) findFault(name string) (*fault, error) {
	var names []string
	for _, f := range s.faults {
		if f.is.Name == name {
			return f, nil
		}
		names = append(names, f.is.Name)
	}
	allowed := strings.Join(names, ", ")
	return nil, &apiError{
		status:  http.StatusNotFound,
		Message: fmt.Sprintf("unknown fault %q: the faults are %s", truncate(name, maxEchoed), allowed),
		Value:   truncate(name, maxEchoed),
		Allowed: allowed,
	}
}

// turns returns what a fault adds to the victim's median, in ms, if victims and offenders take turns, so many of each
// per second, and the victim waits until the offender, which began half a turn before it, is done.
func turns(perSecond float64, offenderMS int) float64 {
	return max(0, float64(offenderMS)-1000/perSecond/2)
}
