package agent

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"golang.org/x/exp/trace"

	"spanflame/internal/incidentfile"
	"spanflame/internal/record"
)

// contents returns the entries of a bundle by name.
func contents(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if files[f.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

//go:noinline
func plantedWait() { time.Sleep(30 * time.Millisecond) }

// TestIncidentBundle: one request has the moment before it, in files that ordinary tools read, and no secrets.
func TestIncidentBundle(t *testing.T) {
	cfg := quiet(t)
	cfg.Dir, cfg.SlowSpan, cfg.WallMode, cfg.WallCPUShare = t.TempDir(), 10*time.Millisecond, "always", 1
	cfg.AdminToken, cfg.PyroscopeHeaders = "hidden-token", map[string]string{"X-Key": "hidden-key"}
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer shutdown(t, a)
	tracer := a.TracerProvider(sdktrace.NewTracerProvider()).Tracer("test")
	_, span := tracer.Start(context.Background(), `GET /<script>alert("x")</script>`)
	plantedWait()
	span.End()

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://any:hidden-token@"+a.AdminAddr()+"/incidents", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v: %.200q", resp.Status, err, b)
	}
	files := contents(t, b)

	events, err := trace.NewReader(bytes.NewReader(files[incidentfile.Trace]))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for {
		e, err := events.ReadEvent()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind() == trace.EventStateTransition {
			for f := range e.StateTransition().Stack.Frames() {
				found = found || strings.HasSuffix(f.Func, "plantedWait")
			}
		}
	}
	if !found {
		t.Error("the trace does not have what happened just before")
	}

	types := map[record.Type]int{}
	for name, content := range files {
		base, ok := strings.CutPrefix(name, incidentfile.Profiles)
		if !ok {
			continue
		}
		n, err := record.ParseFileName(base)
		if err != nil {
			t.Error(err)
		}
		types[n.Type]++
		if _, err := profile.ParseData(content); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		r, err := record.Decode(bytes.NewReader(content), 1<<30)
		if err != nil || n.Type != record.Wall && r.Labels[record.IncidentLabel] != incidentfile.Request {
			t.Errorf("%s has the labels %v: %v", name, r.Labels, err)
		}
	}
	for _, typ := range []record.Type{record.CPU, record.Memory, record.Mutex, record.Block, record.Goroutine, record.Wall} {
		if types[typ] != 1 {
			t.Errorf("the bundle has %d profiles of type %s", types[typ], typ)
		}
	}
	for name, want := range map[string]string{
		incidentfile.Slow: "plantedWait", incidentfile.Index: "plantedWait", incidentfile.Metrics: "goroutines", incidentfile.Build: "GOMAXPROCS",
		incidentfile.Settings: "SPANFLAME_ADMIN_TOKEN=(set)", incidentfile.About: `"trigger": "request"`,
	} {
		if !bytes.Contains(files[name], []byte(want)) {
			t.Errorf("%s does not have %q:\n%s", name, want, files[name])
		}
	}
	for name, content := range files {
		if bytes.Contains(content, []byte("hidden-")) {
			t.Errorf("%s has a secret", name)
		}
	}
	if bytes.Contains(files[incidentfile.Index], []byte("<script")) {
		t.Errorf("the page has a script:\n%s", files[incidentfile.Index])
	}
	kept, err := filepath.Glob(filepath.Join(cfg.Dir, incidentfile.Dir, "svc", "*"+incidentfile.Suffix))
	if err != nil || len(kept) != 1 {
		t.Errorf("%v are kept: %v", kept, err)
	}
}
