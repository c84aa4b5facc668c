package servers

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tiny is a module that builds in a moment, with the given body of main.
func tiny(t *testing.T, body string) source {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":  "module tiny\n\ngo 1.26\n",
		"go.sum":  "",
		"main.go": "package main\n\nfunc main() { " + body + " }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return source{name: "tiny", dir: dir, main: "tiny", typical: time.Minute}
}

// safeBuffer is written to by several builds at once.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestBuildOnceForManyAtOnce(t *testing.T) {
	src := tiny(t, `println("hello")`)
	cache := t.TempDir()
	var said safeBuffer
	binaries := make([]string, 4)
	errs := make([]error, len(binaries))
	var wg sync.WaitGroup
	for i := range binaries {
		wg.Go(func() {
			binaries[i], errs[i] = src.build(t.Context(), BuildOptions{CacheDir: cache, Progress: &said})
		})
	}
	wg.Wait()
	for i := range binaries {
		if errs[i] != nil || binaries[i] != binaries[0] {
			t.Fatalf("build %d: %q, %v; build 0: %q", i, binaries[i], errs[i], binaries[0])
		}
	}
	if n := strings.Count(said.String(), "built in"); n != 1 {
		t.Errorf("built %d times, want once:\n%s", n, said.String())
	}
	out, err := exec.Command(binaries[0]).CombinedOutput()
	if err != nil || string(out) != "hello\n" {
		t.Errorf("the binary says %q, %v", out, err)
	}
}

func TestBuildAgainWhenTheModuleChanges(t *testing.T) {
	src := tiny(t, "")
	opts := BuildOptions{CacheDir: t.TempDir()}
	build := func() string {
		t.Helper()
		binary, err := src.build(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		return binary
	}
	first := build()
	if second := build(); second != first {
		t.Errorf("nothing changed, but the binary is %s instead of %s", second, first)
	}
	for _, name := range []string{"go.mod", "go.sum", "main.go"} {
		path := filepath.Join(src.dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		if changed := build(); changed == first {
			t.Errorf("%s changed, but the binary is still %s", name, first)
		}
	}
}

func TestBuildFails(t *testing.T) {
	src := tiny(t, "undefined()")
	cache := t.TempDir()
	_, err := src.build(t.Context(), BuildOptions{CacheDir: cache})
	if err == nil {
		t.Fatal("a module that does not compile was built")
	}
	for _, want := range []string{"build tiny", src.dir, "main.go:3:15: undefined: undefined"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
	if found, _ := filepath.Glob(filepath.Join(cache, "tiny-*")); len(found) > 0 {
		t.Errorf("a failed build left %v in the cache", found)
	}
}

func TestBuildIsCancelled(t *testing.T) {
	src := tiny(t, "")
	cache := t.TempDir()
	held, err := tryLock(filepath.Join(cache, "tiny.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	// The build waits for the lock and says so, which is the moment to give up.
	_, err = src.build(ctx, BuildOptions{CacheDir: cache, Progress: writerFunc(func() { cancel(why) })})
	if !errors.Is(err, why) {
		t.Errorf("got %v, want the reason %q", err, why)
	}
}

// writerFunc is called whenever something is written.
type writerFunc func()

func (f writerFunc) Write(p []byte) (int, error) {
	f()
	return len(p), nil
}

func TestBuildCancelledWhileCompiling(t *testing.T) {
	src := tiny(t, "")
	cache := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	// The first line comes when the compiler is about to start.
	_, err := src.build(ctx, BuildOptions{CacheDir: cache, Progress: writerFunc(cancel)})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if found, _ := filepath.Glob(filepath.Join(cache, "tiny-*")); len(found) > 0 {
		t.Errorf("a cancelled build left %v in the cache", found)
	}
	// What it left behind is not in the way.
	if _, err := src.build(t.Context(), BuildOptions{CacheDir: cache}); err != nil {
		t.Error(err)
	}
}

func TestBuildWithoutGo(t *testing.T) {
	src := tiny(t, "")
	t.Setenv("PATH", t.TempDir())
	_, err := src.build(t.Context(), BuildOptions{CacheDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "install Go") {
		t.Errorf("without a go command: %v", err)
	}
}

func TestAdvise(t *testing.T) {
	failed := errors.New("exit status 1")
	for _, test := range []struct{ words, want string }{
		{"write /x/_pkg_.a: no space left on device", "disk full"},
		{"compile: signal: killed", "GOFLAGS=-p=1"},
		{"Get \"https://x/y.zip\": dial tcp: lookup x: no such host", "go env GOPROXY"},
		{"verifying a@v1: checksum mismatch", "go clean -modcache"},
		{"missing go.sum entry for module providing package a", "go mod tidy"},
	} {
		err := advise(failed, test.words)
		if !errors.Is(err, failed) || !strings.Contains(err.Error(), test.words) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: the error lacks its own text or the advice %q:\n%v", test.words, test.want, err)
		}
	}
	if err := advise(failed, ""); err.Error() != failed.Error() {
		t.Errorf("advice on an unknown failure: %v", err)
	}
}

func TestProgressInPlainLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		p := newProgress(&said, "tempo")
		stop := p.during(3 * time.Minute)
		time.Sleep(40 * time.Second)
		stop()
		want := "tempo: building; about 3 min the first time, seconds with a warm Go cache\n" +
			"tempo: building for 15s of about 3 min\n" +
			"tempo: building for 30s of about 3 min\n"
		if said.String() != want {
			t.Errorf("got:\n%swant:\n%s", said.String(), want)
		}
	})
}

func TestProgressOnATerminalIsOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		p := progress{w: &said, name: "tempo", tty: true}
		stop := p.during(3 * time.Minute)
		time.Sleep(2500 * time.Millisecond)
		stop()
		if n := strings.Count(said.String(), "\n"); n != 1 {
			t.Errorf("%d lines stay, want the first one only: %q", n, said.String())
		}
		if !strings.Contains(said.String(), "\r\x1b[Ktempo: building for 2s of about 3 min") {
			t.Errorf("the line is not redrawn: %q", said.String())
		}
	})
}

func TestBuildRealServersAreCached(t *testing.T) {
	for _, name := range Default() {
		first, err := Build(t.Context(), name, BuildOptions{Progress: t.Output()})
		if err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		second, err := Build(t.Context(), name, BuildOptions{Progress: &said})
		if err != nil || second != first || said.Len() > 0 {
			t.Errorf("%s again: %q, %v, %q; want %q and no output", name, second, err, said.String(), first)
		}
	}
	if _, err := Build(t.Context(), "zipkin", BuildOptions{Progress: io.Discard}); err == nil ||
		!strings.Contains(err.Error(), "known are pyroscope, pyroscope-v1, jaeger, alertmanager, prometheus, tempo, loki, collector") {
		t.Errorf("an unknown server: %v", err)
	}
}
