package servers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"spanflame/internal/child"
)

// BuildOptions configure Build.
type BuildOptions struct {
	CacheDir string    // of finished binaries; empty means .cache/servers below the module's root
	Progress io.Writer // receives progress lines for people; nil means none
}

// Build returns the path of the binary of the named server or tool. It builds the binary unless the cache has one
// for the same files and Go version. Concurrent calls, also of other processes, build it once. A build with cold
// caches downloads several hundred megabytes and takes minutes.
func Build(ctx context.Context, name string, opts BuildOptions) (binary string, err error) {
	src, isTool := tools[name]
	if !isTool {
		defs, err := lookup([]string{name})
		if err != nil {
			return "", err
		}
		src = source{name: defs[0].module, dir: defs[0].module, main: defs[0].main, typical: defs[0].typical}
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	src.dir = filepath.Join(root, modulesDir, src.dir)
	return src.build(ctx, opts)
}

// Names of the tools: programs that Build can build and that are not servers of a Stack.
const (
	Compose  = "docker-compose" // Docker Compose, for Docker engines without it
	Promtool = "promtool"       // the health check of Prometheus, in its image
	Amtool   = "amtool"         // the health check of Alertmanager, in its image
)

// tools has the tools by name, with their directories below modulesDir.
var tools = map[string]source{
	Compose:  {name: Compose, dir: "compose", main: "github.com/docker/compose/v2/cmd", typical: 4 * time.Minute},
	Promtool: {name: Promtool, dir: "prometheus", main: "github.com/prometheus/prometheus/cmd/promtool", typical: 3 * time.Minute},
	Amtool:   {name: Amtool, dir: "alertmanager", main: "github.com/prometheus/alertmanager/cmd/amtool", typical: 2 * time.Minute},
}

// modulesDir holds one directory with a go.mod for each server or tool, relative to the module's root.
var modulesDir = filepath.Join("stack", "servers")

// moduleRoot returns the root of the checkout that contains the working directory: commands run at its root, tests
// in the directory of their package.
func moduleRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, modulesDir, "pyroscope", "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside a checkout of spanflame, which is needed to build the servers from %s", wd, modulesDir)
		}
	}
}

// source is a Go module that exists to build one server.
type source struct {
	name    string        // of the binary
	dir     string        // holds go.mod and go.sum
	main    string        // package to build
	typical time.Duration // of a build with cold caches
}

// buildFlags make builds faster and binaries smaller, for servers that only demos and tests use: without inlining
// a build takes a fifth less time, and without symbol table and debug information Pyroscope has 88 MB, not 138.
var buildFlags = []string{"-gcflags=all=-l", "-ldflags=-s -w"}

func (s source) build(ctx context.Context, opts BuildOptions) (binary string, err error) {
	if opts.CacheDir == "" {
		root, err := moduleRoot()
		if err != nil {
			return "", err
		}
		opts.CacheDir = filepath.Join(root, ".cache", "servers")
	}
	key, err := s.key(ctx)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", s.name, err)
	}
	binary = filepath.Join(opts.CacheDir, s.name+"-"+key)
	if built(binary) {
		return binary, nil
	}

	say := newProgress(opts.Progress, s.name)
	held, err := lock(ctx, filepath.Join(opts.CacheDir, s.name+".lock"), func() {
		say.line("waiting: another process is building it")
	})
	if err != nil {
		return "", fmt.Errorf("build %s: %w", s.name, advise(err, ""))
	}
	defer held.Close()
	if built(binary) {
		return binary, nil
	}

	// A fixed name: the holder of the lock may overwrite the remains of a killed build.
	partial := filepath.Join(opts.CacheDir, s.name+".partial")
	output, err := os.Create(filepath.Join(opts.CacheDir, s.name+".build.log"))
	if err != nil {
		return "", fmt.Errorf("build %s: %w", s.name, advise(err, ""))
	}
	defer output.Close() // only the compiler's output, which is read below

	stop := say.during(s.typical)
	start := time.Now()
	err = s.compile(ctx, partial, output)
	stop()
	if err == nil {
		err = os.Rename(partial, binary)
	}
	if err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("build %s: %w", s.name, context.Cause(ctx))
		}
		words, _ := child.Tail(output.Name(), 0) // the error says what failed even without them
		return "", fmt.Errorf("build %s in %s: %w", s.name, s.dir, advise(err, words))
	}
	say.line("built in %s", time.Since(start).Round(time.Second))
	return binary, nil
}

// built reports whether the cache has the binary. It is complete, because it is put there by a rename.
func built(binary string) bool {
	info, err := os.Stat(binary)
	return err == nil && info.Mode().IsRegular()
}

// key returns a hash of the binary's inputs: the module's files, the package, the flags and the toolchain.
func (s source) key(ctx context.Context) (string, error) {
	h := sha256.New()
	program, err := filepath.Glob(filepath.Join(s.dir, "*.go")) // of the Collector, which lists its components there
	if err != nil {
		return "", err
	}
	for _, file := range append([]string{filepath.Join(s.dir, "go.mod"), filepath.Join(s.dir, "go.sum")}, program...) {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		name := filepath.Base(file)
		fmt.Fprintf(h, "%s %d\n%s", name, len(b), b)
	}
	var problem bytes.Buffer
	cmd := s.command(ctx, "env", "GOVERSION", "GOOS", "GOARCH", "CGO_ENABLED")
	cmd.Stderr = &problem
	toolchain, err := cmd.Output()
	if err != nil {
		return "", advise(err, problem.String())
	}
	fmt.Fprintf(h, "%s\n%s\n%q", toolchain, s.main, buildFlags)
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}

// compile writes the binary to target and the compiler's output to output.
func (s source) compile(ctx context.Context, target string, output *os.File) error {
	args := append([]string{"build", "-mod=readonly"}, buildFlags...)
	cmd := s.command(ctx, append(args, "-o", target, s.main)...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // with its compilers
	p, err := child.Start(cmd)
	if err != nil {
		return err
	}
	<-p.Done()
	return p.Err()
}

// command returns a go command in the module, independent of any workspace that contains the checkout.
func (s source) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	return cmd
}

// remedies has advice for failures that the module does not cause, by a text in the error or in the compiler's
// output.
var remedies = []struct{ sign, remedy string }{
	{exec.ErrNotFound.Error(), "install Go 1.26 or newer (https://go.dev/dl) and put it on PATH"},
	{syscall.ENOSPC.Error(), "disk full: free about 6 GB for the module cache (go env GOMODCACHE), the build cache (go env GOCACHE) and the binaries"},
	{"signal: killed", "out of memory: close other programs, or build one package at a time with GOFLAGS=-p=1"},
	{"dial tcp", "cannot download modules: check the network and go env GOPROXY"},
	{"checksum mismatch", "a module differs from go.sum: check go env GOPROXY, then run go clean -modcache"},
	{"updates to go.mod needed", "run go mod tidy in the directory named above"},
	{"missing go.sum entry", "run go mod tidy in the directory named above"},
}

// advise adds the end of the compiler's output and advice to err.
func advise(err error, words string) error {
	if words != "" {
		err = fmt.Errorf("%w; the last lines of its output:\n%s", err, words)
	}
	for _, r := range remedies {
		if strings.Contains(err.Error(), r.sign) {
			return fmt.Errorf("%w\n%s", err, r.remedy)
		}
	}
	return err
}

// progress shows people the progress of a build: on a terminal one line that is redrawn every second, elsewhere a
// line every 15 s.
type progress struct {
	w    io.Writer
	name string
	tty  bool
}

func newProgress(w io.Writer, name string) progress {
	if w == nil {
		w = io.Discard
	}
	f, ok := w.(*os.File)
	return progress{w: w, name: name, tty: ok && term.IsTerminal(int(f.Fd()))}
}

// line writes a permanent line. A build does not fail because of a write error.
func (p progress) line(format string, args ...any) {
	p.print("\n", format, args...)
}

func (p progress) print(end, format string, args ...any) {
	begin := ""
	if p.tty {
		begin = "\r\x1b[K" // go to the first column and clear the line
	}
	fmt.Fprintf(p.w, "%s%s: %s%s", begin, p.name, fmt.Sprintf(format, args...), end)
}

// during reports the elapsed time until the returned function is called.
func (p progress) during(typical time.Duration) (stop func()) {
	every, end := 15*time.Second, "\n"
	if p.tty {
		every, end = time.Second, ""
	}
	p.line("building; about %.0f min the first time, seconds with a warm Go cache", typical.Minutes())
	start := time.Now()
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-quit:
				return
			case <-ticker.C:
				p.print(end, "building for %s of about %.0f min", time.Since(start).Round(time.Second), typical.Minutes())
			}
		}
	})
	return func() {
		close(quit)
		wg.Wait()
		if p.tty {
			fmt.Fprint(p.w, "\r\x1b[K")
		}
	}
}
