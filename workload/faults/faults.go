// Package faults describes the faults of the workload, and switches them through a service's HTTP API. The services
// answer with these descriptions; the load generator, the demo and tests read them. The faults themselves are in
// package workload.
package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"spanflame/internal/redact"
)

// Kind is what the requests that a fault makes slow spend their time on, or that it makes no request slow.
type Kind string

// The kinds of faults.
const (
	CPU     Kind = "cpu"     // they compute
	Inside  Kind = "inside"  // they wait for another goroutine of the process
	Outside Kind = "outside" // they wait for another process, the disk or the network
	Machine Kind = "machine" // they wait for a CPU, or help the garbage collector
	Leak    Kind = "leak"    // what they leave behind is never freed
)

// Request is a kind of request to the storefront.
type Request struct {
	Method    string  `json:"method"`
	Path      string  `json:"path"`       // with its query
	PerSecond float64 `json:"per_second"` // how many of them show the fault
}

// Route returns the path without its query.
func (r Request) Route() string {
	route, _, _ := strings.Cut(r.Path, "?")
	return route
}

// Knob is how much of a fault there is, as a parameter of the request that switches it on.
type Knob struct {
	Name    string `json:"name"`
	Unit    string `json:"unit"`
	Default int    `json:"default"`
	Min     int    `json:"min"`
	Max     int    `json:"max"`
}

// Fault is a mistake in a service's code, and its repair.
type Fault struct {
	Name     string   `json:"name"`
	Service  string   `json:"service"` // storefront or inventory
	Kind     Kind     `json:"kind"`
	Does     string   `json:"does"`
	Repair   string   `json:"repair"`
	Function string   `json:"function"`           // that is to blame, as profiles name it
	Victim   Request  `json:"victim"`             // is slow or leaks
	Span     string   `json:"span"`               // the name of the service's spans that the fault makes slow
	Offender *Request `json:"offender,omitempty"` // makes the victim slow, if another request than the victim does
	Knobs    []Knob   `json:"knobs,omitempty"`
	Cap      string   `json:"cap,omitempty"` // what keeps the machine safe

	On       bool           `json:"on"`
	Settings map[string]int `json:"settings,omitempty"` // of the knobs, while the fault is on

	// Predicted is nil if it depends on the speed of the machine.
	Predicted *Prediction `json:"predicted,omitempty"`
}

// Prediction is what the fault's own arithmetic says about the victim's median, for the settings or the defaults of
// the knobs, while victims and offenders alternate as often per second as they say, and nothing else runs.
type Prediction struct {
	AddsMS        float64 `json:"adds_ms"`         // what the fault adds
	HalvedSavesMS float64 `json:"halved_saves_ms"` // how much less it adds with half of the first knob
}

// requestTime limits the time of a request to a service.
const requestTime = 10 * time.Second

// Switch is a fault of a running service.
type Switch struct {
	Fault Fault // as it was found
	url   string
	knobs string // query
}

// List returns the faults of the services.
func List(ctx context.Context, services ...string) ([]*Switch, error) {
	var all []*Switch
	for _, service := range services {
		base := strings.TrimSuffix(service, "/") + "/faults"
		var list []Fault
		if err := request(ctx, http.MethodGet, base, &list); err != nil {
			return nil, err
		}
		for _, f := range list {
			all = append(all, &Switch{Fault: f, url: base + "/" + url.PathEscape(f.Name)})
		}
	}
	return all, nil
}

// Find finds a fault of one of the services, of which the first that has it counts. The name may be preceded by that
// of the service, as in inventory/lock-convoy, and followed by settings, as in report-lock?report_ms=100.
func Find(ctx context.Context, name string, services ...string) (*Switch, error) {
	wanted, knobs, _ := strings.Cut(name, "?")
	all, err := List(ctx, services...)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range all {
		full := s.Fault.Service + "/" + s.Fault.Name
		if wanted == s.Fault.Name || wanted == full {
			s.knobs = knobs
			return s, nil
		}
		names = append(names, full)
	}
	slices.Sort(names)
	return nil, fmt.Errorf("fault %q: must be one of %s", wanted, strings.Join(names, ", "))
}

// On switches the fault on with its settings, even if ctx ends meanwhile: it would not be known whether it is on.
func (s *Switch) On(ctx context.Context) error {
	address := s.url
	if s.knobs != "" {
		address += "?" + s.knobs
	}
	return request(context.WithoutCancel(ctx), http.MethodPut, address, nil)
}

// Off repairs the fault, even if ctx has ended.
func (s *Switch) Off(ctx context.Context) error {
	return request(context.WithoutCancel(ctx), http.MethodDelete, s.url, nil)
}

// request decodes the answer into a value, unless that is nil. Its connection is not kept.
func request(ctx context.Context, method, address string, answer any) (err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil { // which quotes the address
		return fmt.Errorf("address %q: want http://HOST:PORT of a service", redact.URL(address))
	}
	shown := req.URL.Redacted()
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("is there a service? %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, shown, err)
	}
	if resp.StatusCode != http.StatusOK {
		var refusal struct{ Error string }
		if json.Unmarshal(body, &refusal) == nil && refusal.Error != "" {
			return errors.New(refusal.Error)
		}
		return fmt.Errorf("%s %s: status %d: %.500q", method, shown, resp.StatusCode, body)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return fmt.Errorf("%s %s: %w: %.500q", method, shown, err, body)
	}
	return nil
}
