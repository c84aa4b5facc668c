package lastrun

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"go.uber.org/goleak"

	"spanflame/agent/internal/guard"
	"spanflame/internal/record"
)

// childVariable has this test binary be a service in a directory: its mode and the directory.
const childVariable = "LASTRUN_CHILD"

func TestMain(m *testing.M) {
	if mode, dir, ok := strings.Cut(os.Getenv(childVariable), ","); ok {
		child(mode, dir)
	}
	runtime.MemProfileRate = 1 // profiles are exact
	goleak.VerifyTestMain(m)
}

var grown [][]byte

// mostGrown ends a service that a limit should have ended.
const mostGrown = int64(2 << 30)

//go:noinline
func growForever(bytesPerSecond int) {
	const piece = 64 << 10
	pause := time.Second * piece / time.Duration(bytesPerSecond)
	for begun, n := time.Now(), 0; int64(n)*piece < mostGrown; n++ {
		b := make([]byte, piece)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		grown = append(grown, b)
		if ahead := time.Duration(n)*pause - time.Since(begun); ahead > 10*time.Millisecond {
			time.Sleep(ahead)
		}
	}
}

//go:noinline
func crashHere() {
	panic("planted")
}

// child is a service that starts, says so, and ends as the mode says.
func child(mode, dir string) {
	r, err := Start(Options{
		Dir: dir, Service: "svc", Labels: map[string]string{"region": "here"}, Emit: func(record.Record) {}, Crashes: mode == "crash",
		Guard: guard.New(slog.Default()), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("started")
	rate := 0
	switch _, err := fmt.Sscanf(mode, "grow %d", &rate); {
	case err == nil:
		growForever(rate)
		os.Exit(1)
	case mode == "crash":
		crashHere()
	case mode == "end":
		_ = r.Close(context.Background())
		os.Exit(0)
	}
	time.Sleep(time.Hour)
}

// start starts a child, through a wrapper if there is one, and returns when it says that it has started.
func start(t *testing.T, mode, dir string, wrapper ...string) *exec.Cmd {
	t.Helper()
	args := append(wrapper, os.Args[0])
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), childVariable+"="+mode+","+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "started\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return cmd
}

// result is what a start says of the runs before.
type result struct {
	lines   []map[string]any
	records []record.Record
	stats   Stats
}

// next starts a run after others, and ends it.
func next(t *testing.T, dir string) result {
	t.Helper()
	var log bytes.Buffer
	var got result
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	r, err := Start(Options{
		Dir: dir, Service: "svc", Labels: map[string]string{"region": "here"}, Guard: guard.New(logger), Logger: logger,
		Emit: func(rec record.Record) { got.records = append(got.records, rec) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(context.Background()); err != nil {
		t.Error(err)
	}
	got.stats = r.Stats()
	for line := range strings.Lines(log.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		got.lines = append(got.lines, fields)
	}
	return got
}

func left(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, record.RunsDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestKilled: a run that SIGKILL ended is reported once, and one that runs, that ended in order, or of another service is not.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	if got := next(t, dir); len(got.lines)+len(got.records) > 0 {
		t.Errorf("without a run before: %v", got.lines)
	}
	if err := start(t, "end", dir).Wait(); err != nil {
		t.Error(err)
	}
	other := filepath.Join(dir, record.RunsDir, "svc-b-0123abcd")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	running, killed := start(t, "wait", dir), start(t, "wait", dir)
	_ = killed.Process.Kill()
	_ = killed.Wait()
	got := next(t, dir)
	if len(got.lines) != 1 || got.stats.Ended[Unknown] != 1 || got.lines[0]["level"] != "INFO" || got.lines[0]["pid"] != float64(killed.Process.Pid) ||
		!strings.Contains(got.lines[0]["msg"].(string), "without a shutdown; it is not known why") {
		t.Errorf("%v, %v", got.lines, got.stats)
	}
	if got := next(t, dir); len(got.lines) > 0 {
		t.Errorf("it is reported again: %v", got.lines)
	}
	if n := len(left(t, dir)); n != 2 { // of the one that runs, and the other service's
		t.Errorf("%v", left(t, dir))
	}
	_ = running
}

// TestCrash: the stack of the goroutine that crashed is in the report.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	_ = start(t, "crash", dir).Wait()
	got := next(t, dir)
	if len(got.lines) != 1 || got.stats.Ended[ByCrash] != 1 || got.lines[0]["level"] != "WARN" {
		t.Fatalf("%v", got.lines)
	}
	crash := got.lines[0]["crash"].(string)
	for _, want := range []string{"panic: planted", "goroutine 1 [running]", "lastrun.crashHere("} {
		if !strings.Contains(crash, want) {
			t.Errorf("the report does not have %q: %s", want, crash)
		}
	}
	if strings.Contains(crash, "growForever") || strings.Count(crash, "goroutine ") > 2 {
		t.Errorf("the report has other goroutines: %s", crash)
	}
}

// holds returns the bytes in use below a function in a profile that was delivered.
func holds(t *testing.T, r record.Record, function string) (bytes int64) {
	t.Helper()
	p, err := profile.ParseData(r.Profile)
	if err != nil || len(p.SampleType) != 2 || p.SampleType[1].Type != "inuse_space" {
		t.Fatalf("%v, %v", p, err)
	}
	for _, s := range p.Sample {
		for _, l := range s.Location {
			if strings.HasSuffix(l.Line[0].Function.Name, function) {
				bytes += s.Value[1]
				break
			}
		}
	}
	return bytes
}

// TestTakeAndDeliver: what is taken is delivered as it was, in use and without allocations, with its label.
func TestTakeAndDeliver(t *testing.T) {
	dir := t.TempDir()
	logger := slog.New(slog.DiscardHandler)
	o := Options{Dir: dir, Service: "svc", Labels: map[string]string{"region": "here"}, Guard: guard.New(logger), Logger: logger}
	r, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	kept := hold()
	if _, err := r.take(memory{time.Now(), 90, 100}); err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(kept)
	close(r.stop) // as if the process had ended
	<-r.done
	r.lock.Close()
	got := next(t, dir)
	if len(got.records) != 2 || got.stats.Ended[ForMemory] != 1 || got.lines[0]["limit"] != float64(100) || got.lines[0]["profiles"] != float64(2) {
		t.Fatalf("%d records, %v", len(got.records), got.lines)
	}
	if n := holds(t, got.records[0], ".hold"); n < 64<<20 || n > 65<<20 {
		t.Errorf("the profile has %d bytes", n)
	}
	for _, rec := range got.records {
		if rec.Labels[record.EndedLabel] != ForMemory || rec.Labels["region"] != "here" || rec.Validate() != nil || time.Since(rec.End) > time.Minute {
			t.Errorf("%+v", rec.Meta)
		}
	}
	r.root.Close()
	r.base.Close()
}

//go:noinline
func hold() [][]byte {
	var all [][]byte
	for range 64 {
		all = append(all, make([]byte, 1<<20))
	}
	return all
}

// TestForget: profiles of a time when memory was short are of no use when it is not any more.
func TestForget(t *testing.T) {
	var p pace
	now := time.Now()
	_, take, _ := p.look(now, 80, 100)
	p.took(now, 80, time.Millisecond)
	_, again, kept := p.look(now.Add(time.Second), 70, 100)
	_, _, forget := p.look(now.Add(2*time.Second), 50, 100)
	_, once, more := p.look(now.Add(3*time.Second), 50, 100)
	if !take || again || kept || !forget || once || more {
		t.Errorf("take %v, %v; forget %v, %v, %v", take, again, kept, forget, more)
	}
	if _, take, _ := p.look(now.Add(4*time.Second), 1<<40, 0); take {
		t.Error("profiles are taken without a limit")
	}
}

// TestQuicker: the next profiles are due when an eighth is used up of what was left, or after a while.
func TestQuicker(t *testing.T) {
	var p pace
	now := time.Now()
	due := func(after time.Duration, used uint64) bool {
		_, take, _ := p.look(now.Add(after), used, 1000)
		return take
	}
	if !due(0, 800) {
		t.Error("near the limit no profile is taken")
	}
	p.took(now, 800, burst+15*time.Millisecond) // all that there is, and half a second's more
	for _, test := range []struct {
		after time.Duration
		used  uint64
		want  bool
	}{{time.Second, 824, false}, {time.Second, 825, true}, {499 * time.Millisecond, 825, false}, {29 * time.Second, 800, false}, {30 * time.Second, 800, true}} {
		if got := due(test.after, test.used); got != test.want {
			t.Errorf("after %v at %d: %v", test.after, test.used, got)
		}
	}
}

// TestFarFromTheLimit: what grows fast is profiled far from the limit, too; however long nothing was, the time for profiles is
// limited; and memory is looked at often enough, and no more often.
func TestFarFromTheLimit(t *testing.T) {
	var p pace
	now := time.Now()
	const limit = 64 << 30
	if next, take, _ := p.look(now, limit/10, limit); take || next != slowest {
		t.Errorf("take %v, look again after %v", take, next)
	}
	if _, take, _ := p.look(now.Add(time.Second), limit/10+limit/5, limit); !take { // three and a half seconds are left
		t.Error("what grows fast is not profiled")
	}
	if p.look(now.Add(time.Hour), limit/10, limit); p.credit != burst {
		t.Errorf("profiles may take %v, want %v", p.credit, burst)
	}
	if next, _, _ := p.look(now, limit-1, limit); next != fastest {
		t.Errorf("near the limit it looks again after %v", next)
	}
}

// TestPace: at any growth, the profile that is there when the limit is reached is at most two seconds old or has nine tenths of
// the growth, and near the limit profiles take at most the share of the time.
func TestPace(t *testing.T) {
	for _, limit := range []float64{256 << 20, 1 << 30, 16 << 30} {
		for _, rate := range []float64{1e6, 1e7, 1e8, 1e9} {
			for _, cost := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond} {
				t.Run(fmt.Sprintf("%.0f MiB, %.0f MB/s, %v", limit/(1<<20), rate/1e6, cost), func(t *testing.T) {
					var p pace
					began := time.Now()
					now, spent := began, time.Duration(0)
					base := limit / 10
					used := func() float64 { return base + rate*now.Sub(began).Seconds() }
					for used() < limit {
						next, take, _ := p.look(now, uint64(used()), uint64(limit))
						if take {
							p.took(now, uint64(used()), cost)
							now, spent, next = now.Add(cost), spent+cost, fastest
						}
						now = now.Add(next)
					}
					old := now.Sub(p.taken)
					part := (float64(p.takenUsed) - base) / (limit - base)
					if p.taken.IsZero() || old > 2*time.Second && part < 0.9 {
						t.Errorf("the last profile is %v old and has %.0f %% of the growth", old, 100*part)
					}
					if most := burst + cost + time.Duration(share*float64(now.Sub(began))); spent > most {
						t.Errorf("profiles took %v of %v", spent, now.Sub(began))
					}
				})
			}
		}
	}
}

// TestNoDirectory: a directory that cannot be used is an error of the start, and nothing else.
func TestNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(Options{Dir: file, Service: "svc", Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a file is accepted as the directory")
	}
}

// TestDamaged: what a run left may be anything.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	cmd := start(t, "wait", dir)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	run := left(t, dir)[0]
	for name, content := range map[string]string{profileNames[record.Memory]: "no profile", memoryName: "{", crashName: ""} {
		if err := os.WriteFile(filepath.Join(run, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(run, profileNames[record.Goroutine])); err != nil {
		t.Fatal(err)
	}
	got := next(t, dir)
	if len(got.records) > 0 || len(got.lines) != 3 || got.stats.Ended[Unknown] != 1 {
		t.Errorf("%d records, %v", len(got.records), got.lines)
	}
	if len(left(t, dir)) > 0 {
		t.Errorf("%v", left(t, dir))
	}
}

// TestAtOnce: of several that start at once, one reports a run.
func TestAtOnce(t *testing.T) {
	dir := t.TempDir()
	cmd := start(t, "wait", dir)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	var mu sync.Mutex
	reports := 0
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			n := len(next(t, dir).lines)
			mu.Lock()
			defer mu.Unlock()
			reports += n
		})
	}
	all.Wait()
	// What is left can be a lock that one start made to look whether another's run had ended, just when that removed it.
	described, err := filepath.Glob(filepath.Join(dir, record.RunsDir, "*", aboutName))
	if reports != 1 || len(described) > 0 || err != nil {
		t.Errorf("%d reports, %v, %v", reports, described, err)
	}
}
