package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/signal.loop")) // one goroutine of the standard library per process
}

func TestWrongArguments(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"down", `unknown command "down"`},
		{"up now", `unknown command "now"`},
		{"up --servers zipkin", "known are pyroscope, pyroscope-v1, jaeger, alertmanager, prometheus, tempo, loki, collector"},
		{"up --servers collector,tempo", `"collector" sends to "pyroscope"`},
		{"up --tempo-port x", "invalid argument"},
		{"up --tempo-port 70000", "allowed is 1 to 65535"},
		{"build --servers zipkin", "known are"},
	} {
		args := strings.Fields(test.args)
		if args[0] == "up" {
			args = append(args, "--data="+t.TempDir())
		}
		var out bytes.Buffer
		if err := run(t.Context(), args, &out, &out); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.args, err, test.want)
		}
	}
}

func TestPortInUseErrorNamesItsFlag(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	var out bytes.Buffer
	err = run(t.Context(), []string{"up", "--data=" + t.TempDir(), "--servers=tempo", "--tempo-port=" + port}, &out, &out)
	if err == nil || !strings.Contains(err.Error(), port) || !strings.Contains(err.Error(), "--tempo-port") {
		t.Errorf("got %v, want the port and its flag", err)
	}
}

func TestUpRunsUntilItsContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready := &watcher{want: "ready; Ctrl-C stops", seen: cancel}
	err := run(ctx, []string{"up", "--data=" + t.TempDir(), "--servers=tempo",
		"--tempo-port=0", "--otlp-grpc-port=0", "--otlp-http-port=0"}, ready, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"http://127.0.0.1:", "OTLP", "server.log", ready.want, "stopping"} {
		if !strings.Contains(ready.String(), want) {
			t.Errorf("the output lacks %q:\n%s", want, ready.String())
		}
	}
}

// watcher calls seen once want has been written.
type watcher struct {
	want string
	seen func()

	mu sync.Mutex
	b  bytes.Buffer
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.b.Write(p)
	if strings.Contains(w.b.String(), w.want) {
		w.seen()
	}
	return n, err
}

func (w *watcher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}
