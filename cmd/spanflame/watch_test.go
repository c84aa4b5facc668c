package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spanflame/internal/record"
	"spanflame/profiles/watch"
	"spanflame/viewer"
	"spanflame/viewer/source"
)

// saveDeploy saves windows of two versions of a service, the newer one of now, and returns the directory. In the newer one,
// main.hold has three fifths of the CPU time instead of half.
func saveDeploy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	now := time.Now()
	for i := range 80 {
		m := record.Meta{Service: "shop", Type: record.CPU, Labels: map[string]string{"service_version": "1"}}
		held := int64(10 << 20)
		if i >= 40 {
			m.Labels["service_version"], held = "2", 15<<20
		}
		m.Start = now.Add(time.Duration(i-80) * 15 * time.Second)
		m.End = m.Start.Add(15 * time.Second)
		saveSides(t, dir, m, "cpu", "nanoseconds", held+int64(i*7%20)<<13, 10<<20+int64(i*3%20)<<13)
	}
	return dir
}

func TestWatch(t *testing.T) {
	dir := saveDeploy(t)
	stdout, _, err := execute(t, "watch", "--once", "--dir", dir, "--viewer", "http://127.0.0.1:1/pages")
	const want = "shop: main.hold has 59.9 % of the CPU time, it was 50.0 % in the version before (q <0.001)"
	if exitCode(err) != codeFound || err == nil || !strings.Contains(stdout, want) {
		t.Errorf("%v\n%s", err, stdout)
	}
	_, link, _ := strings.Cut(stdout, "  http://127.0.0.1:1/pages")
	link, _, _ = strings.Cut(link, "\n")
	from, err := source.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	pages, err := viewer.New(from, viewer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, strings.TrimSpace(link), nil)
	r.Host = "localhost"
	pages.ServeHTTP(w, r)
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "main.hold") || !strings.Contains(w.Body.String(), "main.steady") {
		t.Errorf("%s: status %d\n%s", link, w.Code, w.Body)
	}

	stdout, _, err = execute(t, "watch", "--once", "--dir", dir, "--least", "30")
	if err != nil || stdout != "Compared: shop: cpu with the version before\n" {
		t.Errorf("with more than it grew: %v\n%s", err, stdout)
	}
	for _, args := range [][]string{
		{"--every", "0s"}, {"--recent", "-1m"}, {"--least", "0"}, {"--viewer", "localhost"}, {"--listen", "7071"},
		{"--dir", filepath.Join(dir, "none")}, {"DIR"}, {"--pyroscope", "http://127.0.0.1:1"},
	} {
		if _, _, err := execute(t, append([]string{"watch", "--once", "--dir", dir}, args...)...); exitCode(err) != codeUse {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// TestWatchServes: what was found is a metric, a row, and an address that an alert can link to.
func TestWatchServes(t *testing.T) {
	from, err := source.Open(t.Context(), saveDeploy(t))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	regressions, err := watch.New(watched{from}, watch.Options{})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := &watcher{Watcher: regressions, viewer: &url.URL{Scheme: "http", Host: "viewer:7070"}, out: &out}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.serve(ctx, listener, []string{"watch.example.com"}, time.Hour) }()
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	get := func(path, host string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	metrics := ""
	for start := time.Now(); !strings.Contains(metrics, "spanflame_watch_rounds_total 1"); {
		if _, metrics = get("/metrics", "watch.example.com"); time.Since(start) > time.Minute {
			t.Fatalf("no round within a minute:\n%s", metrics)
		}
	}
	if !strings.Contains(metrics, `spanflame_regression{baseline="the version before",function="main.hold",metric="cpu",service_name="shop"} 0.0994`) ||
		!strings.Contains(metrics, "spanflame_watch_failed_rounds_total 0") {
		t.Errorf("metrics:\n%s", metrics)
	}
	var rows []struct{ Service, Function, Link string }
	if _, body := get("/regressions", "localhost"); json.Unmarshal([]byte(body), &rows) != nil || len(rows) != 1 || rows[0].Function != "main.hold" {
		t.Errorf("regressions: %s", body)
	}
	q := url.Values{"service_name": {"shop"}, "metric": {"cpu"}, "function": {"main.hold"}, "baseline": {watch.VersionBefore}}
	if resp, _ := get("/regression?"+q.Encode(), "localhost"); resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != rows[0].Link ||
		!strings.HasPrefix(rows[0].Link, "http://viewer:7070/compare?") {
		t.Errorf("status %d, to %s, want %s", resp.StatusCode, resp.Header.Get("Location"), rows[0].Link)
	}
	q.Set("function", "http://evil.example.com")
	if resp, _ := get("/regression?"+q.Encode(), "localhost"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("status %d for what there is not", resp.StatusCode)
	}
	if resp, _ := get("/metrics", "evil.example.com"); resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("status %d for another host", resp.StatusCode)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
