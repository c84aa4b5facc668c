//go:build long && !compose

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"spanflame/internal/query"
)

// TestBrowserDrawsASlowSpanWithGrafana draws the flame graph of a slow span, from the real Pyroscope, with the component that
// Grafana draws it with: whose work the span waited for is there, too.
func TestBrowserDrawsASlowSpanWithGrafana(t *testing.T) {
	bundle := grafanaFlame(t)
	id := get(t, w.workload.Storefront.URL+"/load/lock?ms=900")
	span, _ := find(trace(t, id, "GET /load/lock"), "GET /load/lock")
	graph := flameGraph(t, span, query.Wall, "contendedLock")
	frames, err := json.Marshal(nestedSet(graph))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/bundle.js", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { http.ServeFile(rw, r, bundle) }))
	mux.HandleFunc("/public/", func(rw http.ResponseWriter, _ *http.Request) { // icons of buttons
		rw.Header().Set("Content-Type", "image/svg+xml")
		fmt.Fprint(rw, `<svg xmlns="http://www.w3.org/2000/svg"/>`)
	})
	mux.HandleFunc("/icon.svg", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/{$}", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(rw, `<!DOCTYPE html><meta charset="utf-8"><title>flame</title><link rel="icon" href="/icon.svg">
<body style="margin: 0; font-family: sans-serif"><div id="root" style="height: 780px"></div>
<script>window.flame = %s</script><script src="/bundle.js"></script>`, frames) // JSON by Go is safe in a script
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	b := newBrowser(t, server.URL)
	b.open(server.URL)
	b.until("document.querySelector('canvas') && document.body.innerText.includes('[waiting: mutex]')")
	b.says("[waiting: mutex]", "workload.(*contendedLock).wait", "workload.(*contendedLock).holdAndRelease", "[held by: the same request]")
	b.until(`(() => { const c = document.querySelector('canvas'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
		return c.width > 300 && new Set(new Uint32Array(d.buffer)).size > 20; })()`) // frames and their names are drawn
	b.picture("grafana", "#root", "#root")
}

// nestedSet is a flame graph as Grafana's data source for Pyroscope returns it: a row for each frame, parents before children.
func nestedSet(graph *query.Frame) map[string]any {
	var level, value, self []int64
	var label []string
	graph.Walk(func(stack []string, f *query.Frame) {
		level, value, self = append(level, int64(len(stack)-1)), append(value, f.Total), append(self, f.Self)
		label = append(label, f.Name)
	})
	return map[string]any{"level": level, "value": value, "self": self, "label": label}
}

// grafanaFlame returns the bundle with Grafana's component. It is built once for each state of the directory grafanaflame.
func grafanaFlame(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("npm"); err != nil {
		t.Fatal("there is no npm in PATH: install it, on Debian with: apt-get install -y npm")
	}
	files := []string{"package.json", "package-lock.json", "main.js", "assistant.js"}
	sum := sha256.New()
	for _, name := range files {
		f, err := os.Open(filepath.Join("grafanaflame", name))
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(sum, f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir, err := filepath.Abs(filepath.Join("..", ".cache", "grafanaflame", hex.EncodeToString(sum.Sum(nil)[:8])))
	if err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(dir, "bundle.js")
	if _, err := os.Stat(bundle); err == nil {
		return bundle
	}
	if err := os.CopyFS(dir, os.DirFS("grafanaflame")); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	t.Log("installing Grafana's component and building the bundle (minutes)")
	for _, args := range [][]string{
		{"ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--loglevel=error"}, {"run", "--silent", "bundle"},
	} {
		run := exec.CommandContext(t.Context(), "npm", args...)
		run.Dir = dir
		if out, err := run.CombinedOutput(); err != nil {
			t.Fatalf("npm %q: %v\n%s", args, err, out)
		}
	}
	return bundle
}
