// Package faultproxy is a reverse proxy that harms what passes it, as a bad network and a troubled server
// do, and keeps a record of every profile that was sent through it and of what the server behind it said.
// The end-to-end tests of delivery put it before the real Pyroscope. It is no proxy for anything else: it
// holds whole requests in memory and trusts its clients.
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

// Fault is what becomes of one request.
type Fault int

// The faults. Where the server behind is asked, its answer is harmed, not the request: it may have the
// profile while the client cannot know.
const (
	None             Fault = iota
	Slow                   // the server is asked SlowBy later than it could be
	HalfOpen               // the request is taken, and nothing is ever answered
	ResetRequest           // the connection is reset in the middle of the request
	ResetAnswer            // the server is asked, and the connection is reset instead of an answer
	Truncated              // the server is asked, and its answer breaks off in the middle
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

// asks says whether the server behind is asked.
func (f Fault) asks() bool { return f == None || f == Slow || f == ResetAnswer || f == Truncated }

// SlowBy is how long a slow request is held back.
const SlowBy = 800 * time.Millisecond

// maxRequest bounds what is taken of a request, in bytes.
const maxRequest = 32 << 20

// Exchange is one profile that was sent, once.
type Exchange struct {
	Profile Profile
	Fault   Fault
	Server  int  // the server's status; 0 where it was not asked or did not answer
	Cut     bool // the server was reached and did not answer to the end: nobody knows whether it has the profile
}

// Accepted says whether the server has the profile.
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

// Start starts a proxy on loopback, before the server at the base URL target. It does no harm yet.
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

// URL is the proxy's base URL.
func (p *Proxy) URL() string { return p.server.URL }

// Close ends the proxy and every connection through it.
func (p *Proxy) Close() {
	close(p.closed)
	p.server.CloseClientConnections()
	p.server.Close()
	p.client.CloseIdleConnections()
}

// Harm has every request from now on meet the fault.
func (p *Proxy) Harm(f Fault) { p.Plan(func(int) Fault { return f }) }

// Plan chooses the fault of each profile that is sent from now on; n counts them from 0.
func (p *Proxy) Plan(plan func(n int) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plan, p.tries = plan, 0
}

// Seen returns what was sent so far and has come to its end.
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
		_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2) // it is broken off either way
		reset(w)
		return
	}
	sent, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		reset(w) // the client broke it off itself
		return
	}
	p.exchange(w, r, sent, Exchange{Profile: readProfile(r, sent), Fault: fault})
}

// note records an exchange. It is called before the client has an answer, so that whoever knows of the
// answer finds the record.
func (p *Proxy) note(e Exchange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, e)
}

// exchange is one request that has arrived whole.
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
	// The server is asked to the end even if the client has gone: what it said is what counts.
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
		panic(http.ErrAbortHandler) // the way to break an answer off
	default:
		answer(w, resp, body)
	}
}

// ask sends the request to the server and reads its whole answer.
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
	_, _ = w.Write(body) // the client may have gone
}

// reset ends the connection as a crashed peer does, with RST.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(errors.Join(http.ErrAbortHandler, err))
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // else it would end in order
	}
	conn.Close()
}
