package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// output is what a command wrote so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func TestViewServesUntilItIsInterrupted(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SPANFLAME_DIR", dir)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var out output
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, &out, io.Discard, "view", "--listen", "127.0.0.1:0") }()
	var url string
	for deadline := time.Now().Add(30 * time.Second); url == ""; time.Sleep(10 * time.Millisecond) {
		url = regexp.MustCompile(`http://\S+`).FindString(out.String())
		if time.Now().After(deadline) {
			t.Fatalf("no address after 30 s: %s", &out)
		}
	}
	if !strings.Contains(out.String(), dir) {
		t.Errorf("%q does not name the directory %s", &out, dir)
	}
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte("There are no traces yet")) {
		t.Errorf("status %d, %v:\n%s", resp.StatusCode, err, body)
	}
	interrupt()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestViewSaysWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	none, file := filepath.Join(dir, "none"), filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SPANFLAME_DIR", "off") // which counts where nothing else is said
	for want, args := range map[string][]string{
		"the port is taken":              {dir, "--listen", taken.Addr().String()},
		`--listen "7070"`:                {dir, "--listen", "7070"},
		"start a service with the agent": {none},
		"is a file":                      {file},
		"are given together":             {"--tempo", "http://127.0.0.1:1"},
		"not both":                       {dir, "--tempo", "http://127.0.0.1:1", "--pyroscope", "http://127.0.0.1:2"},
		`Tempo's address "nowhere"`:      {"--tempo", "nowhere", "--pyroscope", "http://127.0.0.1:2"},
		`Grafana is "javascript:x"`:      {dir, "--grafana", "javascript:x"},
		"base directory":                 {dir, "--base", none},
		"accepts at most 1 arg(s)":       {dir, dir},
		"--slow-span -1s":                {dir, "--slow-span", "-1s"},
		"SPANFLAME_DIR is off":           {},
	} {
		if _, _, err := execute(t, append([]string{"view"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error that says %q", args, err, want)
		}
	}
}
