// Package faultproxy is a reverse proxy that injects the faults of bad networks and failing servers. It records
// every profile that was sent through it, with the server's answer. The end-to-end tests of delivery put it in
// front of the real Pyroscope. It is not a general proxy: it holds whole requests in memory and trusts its clients.
package faultproxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Fault is the treatment of one request.
type Fault int

// The faults. If the request is passed to the server, its answer is harmed, not the request: the server may have
// the profile although the client cannot know.
const (
	None             Fault = iota
	Slow                   // the request is passed on after SlowBy
	HalfOpen               // the request is read, and never answered
	ResetRequest           // the connection is reset in the middle of the request
	ResetAnswer            // the request is passed on, and the connection is reset instead of an answer
	Truncated              // the request is passed on, and the answer is cut off in the middle
	Throttled              // 429
	ThrottledForASec       // 429 with Retry-After: 1
	Unavailable            // 503
	RateLimited            // 422 with Pyroscope's words for its rate limit
)

func (f Fault) String() string {
	names := [...]string{"none", "slow", "half-open", "reset in the request", "reset in the answer", "truncated answer",
		"429", "429 with Retry-After", "503", "422 for the rate"}
	if f < 0 || int(f) >= len(names) {
		return "fault " + strconv.Itoa(int(f))
	}
	return names[f]
}

// asks reports whether the request is passed to the server.
func (f Fault) asks() bool { return f == None || f == Slow || f == ResetAnswer || f == Truncated }

// SlowBy is the delay of a slow request.
const SlowBy = 800 * time.Millisecond

// maxRequest limits the size of a request, in bytes.
const maxRequest = 32 << 20

// Exchange is one attempt to send one profile.
type Exchange struct {
	Profile Profile
	Fault   Fault
	Server  int  // the server's status; 0 if it was not asked or did not answer
	Cut     bool // the server was reached and did not answer completely: it may have the profile or not
}

// Accepted reports whether the server has the profile.
func (e Exchange) Accepted() bool { return e.Server/100 == 2 }

// Proxy is a running proxy. Close ends it.
type Proxy struct {
	server *httptest.Server
	target string
	client *http.Client
	closed chan struct{}

	mu    sync.Mutex
	plan  func(n int) Fault
	seen  []Exchange
	tries int // profiles that were sent, whole or not
}

// Start starts a proxy on loopback, in front of the server at the base URL target. It injects no fault yet.
func Start(target string) *Proxy {
	p := &Proxy{
		target: target,
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}},
		closed: make(chan struct{}),
		plan:   func(int) Fault { return None },
	}
	p.server = httptest.NewServer(p)
	return p
}

// URL returns the proxy's base URL.
func (p *Proxy) URL() string { return p.server.URL }

// Close ends the proxy and every connection through it.
func (p *Proxy) Close() {
	close(p.closed)
	p.server.CloseClientConnections()
	p.server.Close()
	p.client.CloseIdleConnections()
}

// Harm applies the fault to every request from now on.
func (p *Proxy) Harm(f Fault) { p.Plan(func(int) Fault { return f }) }

// Plan sets a function that chooses the fault of each profile sent from now on; n counts them from 0.
func (p *Proxy) Plan(plan func(n int) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plan, p.tries = plan, 0
}

// Seen returns the completed exchanges so far.
func (p *Proxy) Seen() []Exchange {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.seen)
}

// ServeHTTP passes a request on. Only requests that carry a profile are harmed and recorded.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !carriesProfile(r.URL.Path) {
		resp, body, err := p.ask(r, nil)
		if err != nil {
			reset(w)
			return
		}
		answer(w, resp, body)
		return
	}
	p.mu.Lock()
	fault := p.plan(p.tries)
	p.tries++
	p.mu.Unlock()
	if fault == ResetRequest {
		_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2) // it is cut off either way
		reset(w)
		return
	}
	sent, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		reset(w) // the client cancelled it
		return
	}
	p.exchange(w, r, sent, Exchange{Profile: readProfile(r, sent), Fault: fault})
}

// note records an exchange. It is called before the client has an answer, so that callers who have the answer find
// the record.
func (p *Proxy) note(e Exchange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, e)
}

// exchange handles a request that has arrived completely.
func (p *Proxy) exchange(w http.ResponseWriter, r *http.Request, sent []byte, e Exchange) {
	if !e.Fault.asks() {
		p.note(e)
	}
	switch e.Fault {
	case HalfOpen:
		select {
		case <-r.Context().Done():
		case <-p.closed:
		}
		return
	case Throttled:
		http.Error(w, "too many", http.StatusTooManyRequests)
		return
	case ThrottledForASec:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many", http.StatusTooManyRequests)
		return
	case Unavailable:
		http.Error(w, "no upstream", http.StatusServiceUnavailable)
		return
	case RateLimited:
		http.Error(w, "push rate limit (4 MiB) exceeded while adding 1.2 MiB", http.StatusUnprocessableEntity)
		return
	case Slow:
		select {
		case <-time.After(SlowBy):
		case <-p.closed:
		}
	}
	// The exchange with the server is completed even if the client has disconnected: the server's answer is
	// recorded.
	resp, body, err := p.ask(r, sent)
	if err != nil {
		e.Cut = !errors.Is(err, syscall.ECONNREFUSED)
		p.note(e)
		reset(w)
		return
	}
	e.Server = resp.StatusCode
	p.note(e)
	switch e.Fault {
	case ResetAnswer:
		reset(w)
	case Truncated:
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.Header().Set("Content-Length", strconv.Itoa(len(body)+2))
		w.WriteHeader(resp.StatusCode)
		_, _ = w.Write(append(body, 0))
		panic(http.ErrAbortHandler) // this cuts an answer off
	default:
		answer(w, resp, body)
	}
}

// ask sends the request to the server and reads the whole answer.
func (p *Proxy) ask(r *http.Request, body []byte) (*http.Response, []byte, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.Method, p.target+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header = r.Header.Clone()
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	return resp, said, err
}

func answer(w http.ResponseWriter, resp *http.Response, body []byte) {
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(body) // the client may have disconnected
}

// reset ends the connection with RST, like a crashed peer.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(errors.Join(http.ErrAbortHandler, err))
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // otherwise it would end normally
	}
	conn.Close()
}
