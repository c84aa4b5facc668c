package workload

import (
	"context"
	"io"
	"net/http"
	"sync"

	"spanflame/workload/faults"
)

// maxOpenBodies is how many answers the fault leaves open at most, each with a connection and two goroutines.
const maxOpenBodies = 400

// news asks the inventory whether there is anything new.
type news struct {
	fault     *fault
	url       string
	transport *http.Transport

	mu   sync.Mutex
	open []io.Closer // that nobody closes
}

// addOpenBodies adds the fault that the body of an answer is not closed.
func (s *Service) addOpenBodies() {
	n := &news{url: s.stock.url + "/api/warehouse?ms=1", transport: &http.Transport{IdleConnTimeout: idleTimeout}}
	n.fault = s.addFault(&fault{free: n.free, is: faults.Fault{
		Name:     "open-bodies",
		Kind:     faults.Leak,
		Does:     "the body of the inventory's answer is neither read nor closed, because its status says enough: the connection stays open",
		Repair:   "the body is read and closed",
		Function: "spanflame/workload.(*news).ask",
		Victim:   faults.Request{Method: "GET", Path: "/api/news", PerSecond: 10},
		Cap:      "400 connections; after that, bodies are closed",
	}})
	s.atEnd(n.transport.CloseIdleConnections)
	s.handle("GET /api/news", n.handler)
}

// newsStatus is the answer to GET /api/news.
type newsStatus struct {
	Status int `json:"status"`
}

// handler answers GET /api/news.
func (n *news) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	resp, err := n.ask(context.WithoutCancel(r.Context())) // its end would close the body
	if err != nil {
		return nil, &apiError{status: http.StatusBadGateway, Message: "the inventory cannot be reached", cause: err}
	}
	n.done(resp.Body)
	return newsStatus{resp.StatusCode}, nil
}

//go:noinline
func (n *news) ask(ctx context.Context) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url, nil)
	if err != nil {
		return nil, err
	}
	return n.transport.RoundTrip(req)
}

// done has read as much of an answer as is needed.
func (n *news) done(body io.ReadCloser) {
	n.mu.Lock()
	if n.fault.on() && len(n.open) < maxOpenBodies {
		n.open = append(n.open, body) // so that a repair finds it
		n.mu.Unlock()
		return // the fault
	}
	n.mu.Unlock()
	_, _ = io.Copy(io.Discard, body) // to its end, or the connection cannot be kept
	body.Close()
}

func (n *news) free() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, body := range n.open {
		body.Close()
	}
	n.open = nil
}
