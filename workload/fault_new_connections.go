package workload

import (
	"context"
	"io"
	"net"
	"net/http"
	"time"

	"spanflame/workload/faults"
)

// lookupMS is how many milliseconds it takes to look an address up.
const lookupMS = 160

// availability asks the inventory whether products are available, through connections of its own. Before it opens one,
// it looks the inventory's address up, in a directory that the warehouse keeps.
type availability struct {
	fault  *fault
	stock  *inventoryClient
	client *http.Client
}

// addNewConnections adds the fault that each request opens a connection.
func (s *Service) addNewConnections() {
	a := &availability{stock: s.stock, fault: s.addFault(&fault{
		is: faults.Fault{
			Name:     "new-connections",
			Kind:     faults.Outside,
			Does:     "connections to the inventory are not kept: each request looks its address up and opens one",
			Repair:   "connections are kept for the next requests",
			Function: "spanflame/workload.(*availability).dial",
			Victim:   faults.Request{Method: "GET", Path: "/api/availability", PerSecond: 5},
			Knobs:    []faults.Knob{{Name: "lookup_ms", Unit: "ms", Default: lookupMS, Min: 1, Max: maxWarehouseMS}},
		},
		delay: func(knobs []int) float64 { return float64(knobs[0]) },
	})}
	transport := &http.Transport{DialContext: a.dial, MaxIdleConnsPerHost: 100, IdleConnTimeout: idleTimeout}
	a.client = &http.Client{Transport: transport, Timeout: 10 * time.Second}
	s.atEnd(transport.CloseIdleConnections)
	s.handle("GET /api/availability", a.handler)
}

// available is the answer to GET /api/availability.
type available struct {
	Products int `json:"products"`
}

// handler answers GET /api/availability.
func (a *availability) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, a.stock.url+"/api/warehouse?ms=1", nil)
	if err != nil {
		return nil, err
	}
	req.Close = a.fault.on()
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, &apiError{status: http.StatusBadGateway, Message: "the inventory cannot be reached", cause: err}
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body) // to its end, or the connection cannot be kept
	return available{Products: len(catalogue)}, err
}

// dial opens a connection.
//
//go:noinline
func (a *availability) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ms := lookupMS
	if knobs, on := a.fault.settings(); on {
		ms = knobs[0]
	}
	if err := a.stock.warehouse(ctx, ms); err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}
