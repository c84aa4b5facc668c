package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"strconv"
	"strings"
	"time"

	"github.com/felixge/fgprof"
	"github.com/google/pprof/profile"
)

// maxSeconds limits how long one request may profile.
const maxSeconds = 300

// profiles serves the same profiles as net/http/pprof, and fgprof.
type profiles struct {
	cpu       func(context.Context, io.Writer, time.Duration) error
	exclusive chan struct{} // full while a trace or fgprof profile runs: each slows down the whole process
}

func (p profiles) index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, "<!doctype html><title>profiles</title><ul>\n")
	for _, name := range []string{"profile", "trace", "cmdline"} {
		_, _ = fmt.Fprintf(w, "<li><a href=%q>%s</a>\n", name, name)
	}
	for _, prof := range pprof.Profiles() {
		name := html.EscapeString(prof.Name())
		_, _ = fmt.Fprintf(w, "<li><a href=\"%s?debug=1\">%s</a> (%d)\n", name, name, prof.Count())
	}
	_, _ = io.WriteString(w, "<li><a href=\"../fgprof\">fgprof</a></ul>\n")
}

func (p profiles) cmdline(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = io.WriteString(w, strings.Join(os.Args, "\x00"))
}

// profile serves a CPU profile.
func (p profiles) profile(w http.ResponseWriter, r *http.Request) {
	d, err := seconds(r, 30)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var buf bytes.Buffer
	if err := p.cpu(r.Context(), &buf, d); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	send(w, "profile", buf.Bytes())
}

// trace serves an execution trace.
func (p profiles) trace(w http.ResponseWriter, r *http.Request) {
	p.timed(w, r, "trace", 1, func(out *response) (func() error, error) {
		client := newRelay(out)
		if err := trace.Start(client); err != nil {
			return nil, errors.Join(err, client.close())
		}
		return func() error { trace.Stop(); return client.close() }, nil
	})
}

// fgprof serves a wall-clock profile of all goroutines of the process. It stops the world 99 times a second,
// longer with more goroutines, so it runs only on request.
func (p profiles) fgprof(w http.ResponseWriter, r *http.Request) {
	p.timed(w, r, "fgprof", 30, func(out *response) (func() error, error) {
		return fgprof.Start(out, fgprof.FormatPprof), nil
	})
}

// timed runs what start begins for as long as the request asks, one request at a time.
func (p profiles) timed(w http.ResponseWriter, r *http.Request, name string, standard int, start func(*response) (func() error, error)) {
	d, err := seconds(r, standard)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case p.exclusive <- struct{}{}:
		defer func() { <-p.exclusive }()
	default:
		http.Error(w, name+": another trace or fgprof profile is running: try again when it has ended", http.StatusConflict)
		return
	}
	stop, err := start(newResponse(w, name))
	if err != nil {
		http.Error(w, fmt.Sprintf("%s: %v", name, err), http.StatusConflict)
		return
	}
	// A client that disconnects ends the profile, but not before the first tick of fgprof, which divides by
	// the number of ticks.
	if gone := sleep(r.Context(), d); gone {
		time.Sleep(20 * time.Millisecond)
	}
	if err := stop(); err != nil {
		// The response has begun: aborting it tells the client that it is incomplete.
		panic(http.ErrAbortHandler)
	}
}

// named serves any other profile of the runtime or of the service: the current one, or with the parameter
// seconds the difference over that time.
func (p profiles) named(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	prof := pprof.Lookup(name)
	if prof == nil {
		http.Error(w, fmt.Sprintf("profile %q: unknown; /debug/pprof/ lists all profiles", name), http.StatusNotFound)
		return
	}
	debug := 0
	if s := r.FormValue("debug"); s != "" {
		var err error
		if debug, err = strconv.Atoi(s); err != nil || debug < 0 || debug > 2 {
			http.Error(w, fmt.Sprintf("debug=%q: want 0, 1 or 2", s), http.StatusBadRequest)
			return
		}
	}
	if name == "heap" && r.FormValue("gc") == "1" {
		runtime.GC()
	}
	if r.FormValue("seconds") != "" {
		delta(w, r, prof)
		return
	}
	var buf bytes.Buffer
	if err := prof.WriteTo(&buf, debug); err != nil {
		http.Error(w, fmt.Sprintf("profile %q: %v", name, err), http.StatusInternalServerError)
		return
	}
	if debug > 0 {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = newResponse(w, "").Write(buf.Bytes())
		return
	}
	send(w, name, buf.Bytes())
}

// delta sends the difference of prof over the requested time.
func delta(w http.ResponseWriter, r *http.Request, prof *pprof.Profile) {
	d, err := seconds(r, 1)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	out, err := func() ([]byte, error) {
		before, err := read(prof)
		if err != nil {
			return nil, err
		}
		if gone := sleep(r.Context(), d); gone {
			return nil, r.Context().Err()
		}
		after, err := read(prof)
		if err != nil {
			return nil, err
		}
		before.Scale(-1)
		diff, err := profile.Merge([]*profile.Profile{after, before})
		if err != nil {
			return nil, err
		}
		diff.TimeNanos, diff.DurationNanos = before.TimeNanos, after.TimeNanos-before.TimeNanos
		var buf bytes.Buffer
		err = diff.Write(&buf)
		return buf.Bytes(), err
	}()
	if err != nil {
		http.Error(w, fmt.Sprintf("profile %q: %v", prof.Name(), err), http.StatusInternalServerError)
		return
	}
	send(w, prof.Name()+"-delta", out)
}

func read(prof *pprof.Profile) (*profile.Profile, error) {
	var buf bytes.Buffer
	if err := prof.WriteTo(&buf, 0); err != nil {
		return nil, err
	}
	return profile.ParseData(buf.Bytes())
}

// seconds returns how long the request asks to profile.
func seconds(r *http.Request, standard int) (time.Duration, error) {
	s := r.FormValue("seconds")
	if s == "" {
		return time.Duration(standard) * time.Second, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxSeconds {
		return 0, fmt.Errorf("seconds=%q: want a whole number from 1 to %d", s, maxSeconds)
	}
	return time.Duration(n) * time.Second, nil
}

// sleep waits for d and reports whether ctx ended first.
func sleep(ctx context.Context, d time.Duration) (gone bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return false
	case <-ctx.Done():
		return true
	}
}

func send(w http.ResponseWriter, name string, b []byte) {
	_, _ = newResponse(w, name).Write(b) // a failed write to the client needs no action
}
