package viewer

import (
	"archive/zip"
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spanflame/internal/incidentfile"
	"spanflame/viewer/internal/fixture"
)

// writeBundle writes a bundle into a directory of an agent, and returns its ID.
func writeBundle(t *testing.T, d fixture.Saved, folder, trigger string, at time.Time, files map[string]string) string {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range files {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	id := incidentfile.NewID(at, trigger)
	path := filepath.Join(d.Dir, incidentfile.Dir, folder, id.File())
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// TestIncidents: the bundles of all services are listed, the latest first, and opened; their own page has no scripts and is
// apart from the others.
func TestIncidents(t *testing.T) {
	d := fixture.Shop(t)
	h := pages(t, open(t, d.Dir), Options{})
	if shown := page(t, h, "/"); strings.Contains(shown, "/incidents") {
		t.Error("the slow traces link to incidents where there are none")
	}
	shows(t, page(t, h, "/incidents"), "There are none")

	now := time.Now()
	hostile := `<img src=x onerror=alert(1)>`
	old := writeBundle(t, d, "shop", incidentfile.Request, now.Add(-time.Hour), map[string]string{
		incidentfile.About: `{"service":"shop","detail":"older"}`, incidentfile.Index: "older",
	})
	id := writeBundle(t, d, "stock%2F1", incidentfile.CPU, now, map[string]string{
		incidentfile.About: `{"service":"stock/1","detail":"` + hostile + `","missing":["trace.out: not recording"]}`,
		incidentfile.Index: "<h1>what happened</h1>" + hostile, incidentfile.Trace: "trace", "profiles/a b#?%.pb.gz": "profile", hostile: "x",
	})
	writeBundle(t, d, "shop", incidentfile.Alert, now.Add(-2*time.Hour), nil)
	if err := os.Symlink("/etc", filepath.Join(d.Dir, incidentfile.Dir, "link")); err != nil {
		t.Fatal(err)
	}
	shows(t, page(t, h, "/"), `href="/incidents"`, "3 incident bundles")
	list := page(t, h, "/incidents")
	inOrder(t, list, "stock/1", "cpu", "<img", bundlePath("stock%2F1", id), "older", bundlePath("shop", old), "not an incident bundle")

	shown := page(t, h, bundlePath("stock%2F1", id))
	shows(t, shown, "not recording", "trace.out", d.Dir)
	for _, content := range []string{list, shown} {
		if strings.Contains(content, "<img src=x") {
			t.Errorf("a page has what a bundle says as it is:\n%s", content)
		}
	}
	follow(t, h, bundlePath("stock%2F1", id))

	own := get(h, bundlePath("stock%2F1", id)+"/"+incidentfile.Index)
	if policy := own.Header().Get("Content-Security-Policy"); !strings.HasPrefix(policy, "sandbox;") || strings.Contains(policy, "script") {
		t.Errorf("the bundle's own page has the policy %q", policy)
	}
	trace := get(h, bundlePath("stock%2F1", id)+"/"+incidentfile.Trace)
	if trace.Body.String() != "trace" || !strings.HasPrefix(trace.Header().Get("Content-Disposition"), "attachment") {
		t.Errorf("%q, %v", trace.Body, trace.Header())
	}
	for path, want := range map[string]int{
		bundlePath("shop", id):                  http.StatusNotFound,
		bundlePath("none", id):                  http.StatusNotFound,
		bundlePath("link", id):                  http.StatusBadRequest,
		bundlePath("../../shop", id):            http.StatusBadRequest,
		bundlePath("../incidents/shop", old):    http.StatusBadRequest,
		bundlePath("shop", "passwd"):            http.StatusBadRequest,
		bundlePath("shop", "..%2f"+id):          http.StatusBadRequest,
		bundlePath("stock%2F1", id) + "/none":   http.StatusNotFound,
		bundlePath("stock%2F1", id) + "?x=1":    http.StatusBadRequest,
		bundlePath("stock%2F1", id) + "/%2e%2e": http.StatusNotFound,
	} {
		if w := get(h, path); w.Code != want {
			t.Errorf("%s: status %d, want %d", path, w.Code, want)
		}
	}
}
