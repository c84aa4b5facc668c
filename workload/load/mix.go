package load

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"spanflame/internal/redact"
	"spanflame/workload/faults"
)

// maxWeight limits a weight, so that the sum of all weights cannot overflow.
const maxWeight = 1_000_000

// Endpoint is one kind of request.
type Endpoint struct {
	Name   string `json:"name"`
	Method string `json:"method"`
	Path   string `json:"path"` // with its query

	Header http.Header `json:"-"` // added to the usual one; may be nil
	Body   []byte      `json:"-"` // may be nil
}

// request returns a request to a target.
func (e Endpoint) request(ctx context.Context, target string) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, e.Method, strings.TrimSuffix(target, "/")+e.Path, bytes.NewReader(e.Body))
	if err != nil {
		return nil, err
	}
	maps.Copy(r.Header, e.Header)
	if host := e.Header.Get("Host"); host != "" {
		r.Host = host
	}
	return r, nil
}

// Share is an endpoint's share of a mix: its weight divided by the sum of all weights.
type Share struct {
	Endpoint
	Weight int
}

// Mix lists the requests that a run sends and their proportions.
type Mix []Share

// Endpoints returns the endpoints that a mix can name. Their parameters are chosen so that each one shows in a
// profile without hiding the others.
func Endpoints() []Endpoint {
	return []Endpoint{
		{Name: "checkout", Method: http.MethodPost, Path: "/api/checkout"},
		{Name: "single", Method: http.MethodPost, Path: "/api/checkout?items=1"},
		{Name: "heavy", Method: http.MethodPost, Path: "/api/checkout?items=50"},
		{Name: "cpu", Method: http.MethodGet, Path: "/load/cpu?ms=100"},
		{Name: "alloc", Method: http.MethodGet, Path: "/load/alloc?mb=16"},
		{Name: "leak", Method: http.MethodGet, Path: "/load/leak?mb=1"},
		{Name: "lock", Method: http.MethodGet, Path: "/load/lock?ms=100"},
		{Name: "block", Method: http.MethodGet, Path: "/load/block?ms=150"},
		{Name: "sleep", Method: http.MethodGet, Path: "/load/sleep?ms=150"},
		{Name: "goroutines", Method: http.MethodGet, Path: "/load/goroutines?n=10&ms=5000"},
	}
}

// DefaultMix returns a mix of mostly checkouts with some of each load that retains nothing.
func DefaultMix() Mix {
	weights := map[string]int{"checkout": 70, "cpu": 10, "alloc": 5, "lock": 5, "block": 5, "sleep": 5}
	var mix Mix
	for _, e := range Endpoints() {
		if w := weights[e.Name]; w > 0 {
			mix = append(mix, Share{Endpoint: e, Weight: w})
		}
	}
	return mix
}

// FaultMix returns the requests that show a fault: its victims and its offenders, and how many of them a second are sent.
func FaultMix(f faults.Fault) (mix Mix, rate float64) {
	add := func(name string, r faults.Request) {
		rate += r.PerSecond
		mix = append(mix, Share{Endpoint{Name: name, Method: r.Method, Path: r.Path}, int(math.Round(r.PerSecond * 1000))})
	}
	if f.Offender != nil { // first, so that the victims of its first request meet the fault
		add("offender", *f.Offender)
	}
	add("victim", f.Victim)
	return mix, rate
}

// ParseURL returns the target and the endpoint for the address of any service.
func ParseURL(address string) (target string, e Endpoint, err error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Fragment != "" {
		return "", e, fmt.Errorf("url %q: must be http://host:port/path or https://host:port/path, and may have a query", redact.URL(address))
	}
	e = Endpoint{Name: cmp.Or(u.Path, "/"), Method: http.MethodGet, Path: u.RequestURI()}
	return (&url.URL{Scheme: u.Scheme, User: u.User, Host: u.Host}).String(), e, nil
}

// ParseMix parses "name=weight,…", for example "checkout=70,cpu=30".
func ParseMix(text string) (Mix, error) {
	var mix Mix
	for entry := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(entry), "=")
		if !ok {
			return nil, fmt.Errorf("mix entry %q: must be name=weight", entry)
		}
		i := slices.IndexFunc(Endpoints(), func(e Endpoint) bool { return e.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("mix entry %q: unknown endpoint %q: must be one of %s", entry, name, endpointNames())
		}
		weight, err := strconv.Atoi(value)
		if err != nil || weight < 0 || weight > maxWeight {
			return nil, fmt.Errorf("mix entry %q: weight %q: must be an integer from 0 to %d", entry, value, maxWeight)
		}
		if slices.ContainsFunc(mix, func(s Share) bool { return s.Name == name }) {
			return nil, fmt.Errorf("mix entry %q: %s is given twice", entry, name)
		}
		mix = append(mix, Share{Endpoint: Endpoints()[i], Weight: weight})
	}
	return mix, mix.validate()
}

// String returns the text that ParseMix parses.
func (m Mix) String() string {
	entries := make([]string, len(m))
	for i, s := range m {
		entries[i] = fmt.Sprintf("%s=%d", s.Name, s.Weight)
	}
	return strings.Join(entries, ",")
}

func endpointNames() string {
	var names []string
	for _, e := range Endpoints() {
		names = append(names, e.Name)
	}
	return strings.Join(names, ", ")
}

func (m Mix) validate() error {
	total := 0
	for _, s := range m {
		if s.Weight < 0 || s.Weight > maxWeight {
			return fmt.Errorf("mix: weight %d of %s: must be from 0 to %d", s.Weight, s.Name, maxWeight)
		}
		total += s.Weight
		if _, err := s.request(context.Background(), "http://host"); err != nil {
			return fmt.Errorf("request %s: %w", s.Name, err)
		}
	}
	if total == 0 {
		return fmt.Errorf("mix: every weight is 0; at least one must be above 0")
	}
	return nil
}

// picker returns a function that gives the index of the next share. It is smooth weighted round-robin: after
// any multiple of the total weight the proportions are exact, the order repeats, and equal requests are spread
// out as far as they can be.
func (m Mix) picker() func() int {
	total := 0
	for _, s := range m {
		total += s.Weight
	}
	credit := make([]int, len(m))
	return func() int {
		best := 0
		for i, s := range m {
			credit[i] += s.Weight
			if credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= total
		return best
	}
}
