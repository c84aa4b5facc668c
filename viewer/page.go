package viewer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"spanflame/internal/format"
	"spanflame/viewer/internal/pprofui"
	"spanflame/viewer/source"
)

// refusal is an error that is answered with a status and a text.
type refusal struct {
	status int
	says   string
}

func (r refusal) Error() string { return r.says }

func badRequest(format string, args ...any) error {
	return refusal{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// page answers with the page that show makes, or with one that says why there is none. A few pages are made at a time, so
// that memory is limited however many are asked for. An answer is sent once it is whole, so slow clients delay nobody.
func (s *server) page(show func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer := pprofui.NewAnswer(w.Header())
		if s.makePage(answer, r, show); errors.Is(r.Context().Err(), context.Canceled) {
			return // the client is gone
		}
		w.WriteHeader(answer.Status)
		_, _ = w.Write(answer.Body.Bytes()) // a client that is gone need not have it
	}
}

// makePage makes a page once fewer than the limit are being made.
func (s *server) makePage(w *pprofui.Answer, r *http.Request, show func(http.ResponseWriter, *http.Request) error) {
	var err error
	select {
	case s.making <- struct{}{}:
		defer func() { <-s.making }()
		err = show(w, r)
	case <-r.Context().Done():
		err = context.Cause(r.Context())
	}
	if err == nil || errors.Is(r.Context().Err(), context.Canceled) {
		return
	}
	var refused refusal
	failed, isFailed := errors.AsType[source.ServerError](err)
	switch {
	case errors.As(err, &refused):
	case errors.Is(err, source.ErrTooLong):
		text := err.Error()
		refused = refusal{http.StatusBadRequest, strings.ToUpper(text[:1]) + text[1:] + "."}
	case isFailed:
		s.options.Log.Error("viewer: a page could not be made", "path", r.URL.Path, "error", err)
		refused = refusal{http.StatusBadGateway, failed.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		w.Header().Set("Retry-After", "5")
		refused = refusal{http.StatusServiceUnavailable, "This took too long. Choose a shorter time range or a single service, or try again in a moment."}
	default:
		s.options.Log.Error("viewer: a page could not be made", "path", r.URL.Path, "error", err)
		refused = refusal{http.StatusInternalServerError, err.Error()}
	}
	data := errorPage{head{Title: http.StatusText(refused.status)}, format.Clean(refused.says, 1000)}
	if err := s.render(w, refused.status, "error.html", data); err != nil {
		s.options.Log.Error("viewer: a page could not be made", "path", r.URL.Path, "error", err)
	}
}

// head is the data that every page has.
type head struct {
	Title   string
	Current string // entry of the navigation
}

type errorPage struct {
	head
	Says string
}

// render writes a page, or nothing if its template fails.
func (s *server) render(w http.ResponseWriter, status int, name string, data any) error {
	var b bytes.Buffer
	if err := s.pages.ExecuteTemplate(&b, name, data); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // a client that is gone need not have it
	return nil
}

func (s *server) asset(name, contentType string) http.HandlerFunc {
	content, err := assets.ReadFile(name)
	return func(w http.ResponseWriter, r *http.Request) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "max-age=60")
		_, _ = w.Write(content)
	}
}

type link struct{ Text, Path string }

// part is a tab of a page.
type part struct {
	link
	Current bool
}
