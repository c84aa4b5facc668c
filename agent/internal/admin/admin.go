// Package admin has the operator's pages of a profiled service: the runtime's profiles, a process-wide wall-clock
// profile, metrics, health and the agent's status, and the listener that serves them. The agent is its only user. The
// pages change nothing but what they are asked to keep, incident bundles: they are not for changing settings at run time.
//
// It does not use net/http/pprof, because importing that package registers the profiles on
// http.DefaultServeMux, which a service may expose to the public.
package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"spanflame/agent/internal/guard"
)

// Options configures the pages.
type Options struct {
	Metrics http.Handler // serves /metrics; nil if there are no metrics

	// CPUProfile takes a CPU profile of the given length and writes it, gzip-compressed. If it is nil, the pages have
	// no profiles.
	CPUProfile func(context.Context, io.Writer, time.Duration) error

	// Incidents has the incident bundles; nil if the pages have none.
	Incidents Incidents

	// Problems returns what does not work as it should.
	Problems func() []Problem

	// Recording describes when slow spans are recorded, empty if they are not; nil if they never are.
	Recording func() string

	// Token, if not empty, is required by all pages except /healthz and /readyz: as a bearer token, or as the password
	// of basic authentication, which "go tool pprof" can send.
	Token string

	Guard *guard.Guard // recovers panics of the pages
}

// Problem is one thing that does not work as it should.
type Problem struct {
	Reason  string `json:"reason"` // one of a fixed set
	Message string `json:"message"`
}

// Handler returns the pages. It does not check the name of the host, because it may be mounted in a server of the
// service, which has names of its own.
func Handler(o Options) http.Handler {
	if o.Recording == nil {
		o.Recording = func() string { return "" }
	}
	pages := http.NewServeMux()
	if o.CPUProfile != nil {
		p := profiles{cpu: o.CPUProfile, exclusive: make(chan struct{}, 1)}
		pages.HandleFunc("GET /debug/pprof/{$}", p.index)
		for pattern, page := range map[string]http.HandlerFunc{
			"GET /debug/pprof/cmdline": p.cmdline,
			"GET /debug/pprof/profile": p.profile,
			"GET /debug/pprof/trace":   p.trace,
			"GET /debug/pprof/{name}":  p.named,
			"GET /debug/fgprof":        p.fgprof,
		} {
			pages.Handle(pattern, sameOrigin(page))
		}
	}
	if o.Incidents != nil {
		i := incidents{o.Incidents}
		for pattern, page := range map[string]http.HandlerFunc{
			"POST /incidents": i.request, "POST /incidents/alert": i.alert, "GET /incidents": i.list, "GET /incidents/{id}": i.bundle,
		} {
			pages.Handle(pattern, sameOrigin(page))
		}
	}
	if o.Metrics != nil {
		pages.Handle("GET /metrics", o.Metrics)
	}
	pages.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) { status(w, r, o.Problems(), o.Recording()) })

	all := http.NewServeMux()
	all.Handle("/", authorized(o.Token, pages))
	// Probes have no token, and restart or isolate the service if these fail: they do not depend on the agent's state.
	all.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	all.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ready\n"+recordingLine(o.Recording()))
	})
	return guarded(o.Guard.Stage("operator's pages"), all)
}

// guarded recovers panics, which end the response, so that a service's own server does not have to.
func guarded(stage *guard.Stage, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		aborted := false
		worked := stage.Try(func() {
			defer func() {
				if p := recover(); p == http.ErrAbortHandler {
					aborted = true
				} else if p != nil {
					panic(p)
				}
			}()
			next.ServeHTTP(w, r)
		})
		if aborted || !worked {
			panic(http.ErrAbortHandler) // the way to end a response: a server closes the connection and does not log it
		}
	})
}

// recordingLine is the line of text about the recording.
func recordingLine(recording string) string {
	if recording == "" {
		return ""
	}
	return "recording of slow spans: " + recording + "\n"
}

// status writes the problems and when slow spans are recorded, as JSON if the request accepts it, else as lines of text.
// The status code is always 200.
func status(w http.ResponseWriter, r *http.Request, problems []Problem, recording string) {
	word := "ok"
	if len(problems) > 0 {
		word = "degraded"
	}
	if strings.Contains(r.Header.Get("Accept"), "application/json") || r.FormValue("format") == "json" {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(struct {
			Status    string    `json:"status"`
			Problems  []Problem `json:"problems"`
			Recording string    `json:"recording,omitempty"`
		}{word, append([]Problem{}, problems...), recording})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprintln(w, word)
	for _, p := range problems {
		_, _ = fmt.Fprintf(w, "%s: %s\n", p.Reason, p.Message)
	}
	_, _ = io.WriteString(w, recordingLine(recording))
}
