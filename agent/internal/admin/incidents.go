package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
)

// Incidents makes and keeps incident bundles.
type Incidents interface {
	// Request makes one now, and returns its ID and its contents.
	Request(context.Context) (id string, bundle io.ReadCloser, err error)
	// Alert makes one because of what an Alertmanager sends. It returns what it does about it.
	Alert(body io.Reader) (string, error)
	// IDs returns those that are kept, newest first.
	IDs() ([]string, error)
	// Open returns the contents of one that is kept. The error wraps fs.ErrNotExist if it is not.
	Open(id string) (io.ReadCloser, error)
}

// incidents serves the pages of bundles.
type incidents struct{ Incidents }

func (i incidents) request(w http.ResponseWriter, r *http.Request) {
	id, bundle, err := i.Request(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	sendBundle(w, id, bundle)
}

func (i incidents) alert(w http.ResponseWriter, r *http.Request) {
	text, err := i.Alert(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, _ = fmt.Fprintln(newResponse(w, ""), text)
}

// list lists the bundles, as JSON if the request accepts it, else as lines of text.
func (i incidents) list(w http.ResponseWriter, r *http.Request) {
	ids, err := i.IDs()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(append([]string{}, ids...))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	for _, id := range ids {
		_, _ = fmt.Fprintln(w, id)
	}
}

func (i incidents) bundle(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	bundle, err := i.Open(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, fmt.Sprintf("incident %q: unknown; /incidents lists all", id), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		sendBundle(w, id, bundle)
	}
}

// sendBundle sends a bundle, and closes it. A response that cannot be completed is aborted, which tells the client.
func sendBundle(w http.ResponseWriter, id string, bundle io.ReadCloser) {
	defer bundle.Close()
	w.Header().Set("Content-Type", "application/zip")
	if _, err := io.Copy(newResponse(w, id+".zip"), bundle); err != nil {
		panic(http.ErrAbortHandler)
	}
}
