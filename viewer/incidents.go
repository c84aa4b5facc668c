package viewer

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"slices"

	"spanflame/internal/format"
	"spanflame/internal/incidentfile"
	"spanflame/viewer/source"
)

// Limits of incident bundles: of a file in one, in bytes, and of those that are listed.
const (
	maxBundleEntry  = 64 << 20
	listedEntries   = 1000
	bundlePolicy    = "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
	noSuchIncident  = "There is no such incident bundle. It may have been removed to make room for others."
	incidentsLength = 100
)

// incidentsPage is the data of the list of bundles.
type incidentsPage struct {
	head
	Bundles []listedBundle
	More    bool
}

type listedBundle struct {
	Path, Page      string // Page is of the bundle itself
	At              string
	Service         string
	Trigger, Detail string
	Err             string // why it cannot be read
}

// incidentPage is the data of one bundle.
type incidentPage struct {
	head
	listedBundle
	Where    string
	Missing  []string
	Instance string
	Version  string
	Entries  []listedEntry
	More     int
}

type listedEntry struct{ Path, Name, Size string }

// bundles returns what has the bundles, or a refusal.
func (s *server) bundles() (source.Bundles, error) {
	from, ok := s.source.(source.Bundles)
	if !ok {
		return nil, refusal{http.StatusNotFound, "Incident bundles are in the directory of an agent: these pages show servers."}
	}
	return from, nil
}

func bundlePath(folder, id string) string { return "/incidents/" + url.PathEscape(folder) + "/" + id }

func (s *server) incidents(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	from, err := s.bundles()
	if err != nil {
		return err
	}
	all, err := from.Bundles(r.Context())
	if err != nil {
		return err
	}
	page := incidentsPage{head: head{Title: "Incidents", Current: "traces"}, More: len(all) > incidentsLength}
	for _, b := range all[:min(len(all), incidentsLength)] {
		page.Bundles = append(page.Bundles, s.listed(from, b))
	}
	return s.render(w, http.StatusOK, "incidents.html", page)
}

// listed describes a bundle, by its name alone if it cannot be read.
func (s *server) listed(from source.Bundles, b source.Bundle) listedBundle {
	path := bundlePath(b.Folder, b.ID.String())
	l := listedBundle{
		Path: path, Page: path + "/" + incidentfile.Index, At: s.zone.clock(b.ID.At), Service: b.Folder, Trigger: b.ID.Trigger,
	}
	about, err := described(from, b)
	if err != nil {
		l.Err = format.Clean(err.Error(), 200)
		return l
	}
	l.Service, l.Detail = format.Clean(about.Service, 100), format.Clean(about.Detail, 200)
	return l
}

func described(from source.Bundles, b source.Bundle) (incidentfile.Incident, error) {
	open, err := from.Bundle(b.Folder, b.ID.String())
	if err != nil {
		return incidentfile.Incident{}, err
	}
	defer open.Close()
	return incidentfile.Read(open.Reader)
}

// openBundle opens the bundle that a request names.
func (s *server) openBundle(r *http.Request) (source.Bundle, *source.OpenBundle, error) {
	from, err := s.bundles()
	if err != nil {
		return source.Bundle{}, nil, err
	}
	id, err := incidentfile.ParseID(r.PathValue("id"))
	if err != nil {
		return source.Bundle{}, nil, badRequest("The address has no incident: %v.", err)
	}
	b := source.Bundle{Folder: r.PathValue("folder"), ID: id}
	open, err := from.Bundle(b.Folder, id.String())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = refusal{http.StatusNotFound, noSuchIncident}
	case err != nil:
		err = badRequest("The incident bundle cannot be read: %v.", err)
	}
	return b, open, err
}

// incident shows what is in a bundle.
func (s *server) incident(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	b, open, err := s.openBundle(r)
	if err != nil {
		return err
	}
	defer open.Close()
	about, err := incidentfile.Read(open.Reader)
	if err != nil {
		return badRequest("The incident bundle cannot be read: %v.", err)
	}
	path := bundlePath(b.Folder, b.ID.String())
	page := incidentPage{
		head: head{Title: "Incident", Current: "traces"}, Where: open.Path, Instance: about.Instance, Version: about.Version,
		listedBundle: listedBundle{
			Page: path + "/" + incidentfile.Index, At: s.zone.clock(b.ID.At), Service: about.Service, Trigger: b.ID.Trigger, Detail: about.Detail,
		},
		More: max(0, len(open.File)-listedEntries), Missing: about.Missing[:min(len(about.Missing), 20)],
	}
	for _, f := range open.File[:len(open.File)-page.More] {
		page.Entries = append(page.Entries, listedEntry{
			path + "/" + (&url.URL{Path: f.Name}).EscapedPath(), f.Name, format.Bytes(int64(min(f.UncompressedSize64, 1<<62))),
		})
	}
	return s.render(w, http.StatusOK, "incident.html", page)
}

// incidentEntry sends a file of a bundle. Its page is shown, without scripts and apart from the other pages, since it is what
// the bundle has; all others are downloads.
func (s *server) incidentEntry(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	_, open, err := s.openBundle(r)
	if err != nil {
		return err
	}
	defer open.Close()
	name := r.PathValue("entry")
	at := slices.IndexFunc(open.File, func(f *zip.File) bool { return f.Name == name })
	if at < 0 || name == "" {
		return refusal{http.StatusNotFound, "The incident bundle has no such file."}
	}
	f, err := open.File[at].Open()
	if err != nil {
		return badRequest("The file cannot be read: %v.", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBundleEntry+1))
	switch {
	case err != nil:
		return badRequest("The file cannot be read: %v.", err)
	case len(b) > maxBundleEntry:
		return badRequest("The file is larger than %s: unpack %s instead.", format.Bytes(maxBundleEntry), open.Path)
	}
	if name == incidentfile.Index {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", bundlePolicy)
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", fileName(name)))
	}
	_, _ = w.Write(b) // a client that is gone need not have it
	return nil
}

// fileName returns the name under which a browser saves an entry: of plain characters alone.
func fileName(entry string) string {
	name := []byte(entry)
	for i, c := range name {
		plain := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_'
		if !plain {
			name[i] = '_'
		}
	}
	return string(name[max(0, len(name)-100):])
}
