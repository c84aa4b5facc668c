package incident

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spanflame/agent/internal/guard"
	"spanflame/internal/incidentfile"
	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("INCIDENT_INTERRUPTED"); dir != "" {
		interrupted(dir)
	}
	goleak.VerifyTestMain(m)
}

// keeper is one with a directory of its own, whose trace is a few bytes.
func keeper(t *testing.T, change func(*Options)) (*Keeper, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	o := Options{
		Service: "svc", Dir: t.TempDir(), Max: 3, MaxBytes: 1 << 20, MaxAge: time.Hour, Every: time.Hour,
		Trace:      func(w io.Writer) error { _, err := io.WriteString(w, "trace"); return err },
		EndWindows: func(context.Context, string) error { return nil },
		Settle:     func(context.Context) error { return nil },
		Logger:     slog.New(slog.NewTextHandler(&log, nil)),
	}
	o.Guard = guard.New(o.Logger)
	if change != nil {
		change(&o)
	}
	k := New(o)
	t.Cleanup(func() {
		if err := k.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return k, &log
}

// request requests a bundle, and returns its entries.
func request(t *testing.T, k *Keeper) (string, map[string]string) {
	t.Helper()
	id, r, err := k.Request(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	about, err := incidentfile.Read(z)
	if err != nil || about.ID != id {
		t.Errorf("%+v, %v", about, err)
	}
	files := map[string]string{}
	for _, f := range z.File {
		c, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		files[f.Name] = string(b)
	}
	return id, files
}

// TestLimits: the number, the bytes and the age of bundles are limited, the newest stays, and others' files are not touched.
func TestLimits(t *testing.T) {
	k, _ := keeper(t, nil)
	var ids []string
	for range 5 {
		id, _ := request(t, k)
		ids = append(ids, id)
		time.Sleep(2 * time.Millisecond)
	}
	foreign := filepath.Join(k.store.path(), "mine.zip")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want := func(what string, n int) {
		t.Helper()
		got, err := k.IDs()
		if err != nil || len(got) != n || n > 0 && got[0] != ids[len(ids)-1] {
			t.Errorf("%s: %v are kept, %v: want %d of %v", what, got, err, n, ids)
		}
	}
	want("too many", 3)
	fi, err := os.Stat(filepath.Join(k.store.path(), ids[4]+incidentfile.Suffix))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	k.store.maxBytes = fi.Size() + fi.Size()/2
	if _, err := k.store.clean(time.Now()); err != nil {
		t.Error(err)
	}
	want("too many bytes", 1)
	if _, err := k.store.clean(time.Now().Add(2 * time.Hour)); err != nil {
		t.Error(err)
	}
	want("too old", 0)
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
}

// TestNothingIsLostByAFailure: a bundle that cannot be written leaves no part of it, and the others as they were.
func TestNothingIsLostByAFailure(t *testing.T) {
	k, log := keeper(t, func(o *Options) { o.Max = 1 })
	id, _ := request(t, k)
	k.store.maxBytes = 100
	if _, _, err := k.Request(t.Context()); err == nil || !strings.Contains(err.Error(), "SPANFLAME_INCIDENT_MAX_BYTES") {
		t.Errorf("one that is too large: %v", err)
	}
	entries, err := os.ReadDir(k.store.path())
	if err != nil || len(entries) != 1 || entries[0].Name() != id+incidentfile.Suffix {
		t.Errorf("%v, %v", entries, err)
	}
	s := k.Stats()
	if s.Failed == nil || s.Counts[Count{incidentfile.Request, Failed}] != 1 || s.Counts[Count{incidentfile.Request, Written}] != 1 {
		t.Errorf("%+v", s)
	}
	if !strings.Contains(log.String(), "cannot be written") {
		t.Errorf("the log is %s", log)
	}
	k.store.maxBytes = 1 << 20
	if request(t, k); k.Stats().Failed != nil {
		t.Errorf("after a success: %v", k.Stats().Failed)
	}
}

// TestAPanicIsAFailure: what a bundle is made of may panic.
func TestAPanicIsAFailure(t *testing.T) {
	k, _ := keeper(t, func(o *Options) { o.Trace = func(io.Writer) error { panic("planted") } })
	if _, _, err := k.Request(t.Context()); err == nil {
		t.Error("a bundle whose trace panics is written")
	}
	if entries, err := os.ReadDir(k.store.path()); err != nil || len(entries) != 0 {
		t.Errorf("%v are left, %v", entries, err)
	}
	k.o.Trace = func(io.Writer) error { return errors.New("not recording") }
	if _, files := request(t, k); !strings.Contains(files[incidentfile.About], "not recording") || !strings.Contains(files[incidentfile.Index], "not recording") {
		t.Errorf("the bundle does not say what is missing: %s", files[incidentfile.About])
	}
}

// TestWithoutADirectory: a bundle on request is sent and not kept.
func TestWithoutADirectory(t *testing.T) {
	k, _ := keeper(t, func(o *Options) { o.Dir, o.Triggers.Alert = "", true })
	if _, files := request(t, k); files[incidentfile.Trace] != "trace" {
		t.Errorf("%v", files)
	}
	k.trigger(incidentfile.Alert, "")
	if ids, err := k.IDs(); len(ids) > 0 || err != nil || k.Stats().Counts[Count{incidentfile.Alert, Suppressed}] != 1 {
		t.Errorf("%v, %v, %v", ids, err, k.Stats())
	}
}

// TestAtOnce: of bundles that are asked for at once one is made, and the others are counted; after one that nobody requested
// there is none for a time, also after a restart, except on request.
func TestAtOnce(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	k, _ := keeper(t, func(o *Options) {
		o.Trace = func(io.Writer) error {
			once.Do(func() { close(begun) })
			<-release
			return nil
		}
	})
	k.trigger(incidentfile.CPU, "first")
	<-begun
	k.trigger(incidentfile.Memory, "second")
	if _, _, err := k.Request(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("a request meanwhile: %v", err)
	}
	close(release)
	k.running.Wait()
	k.trigger(incidentfile.Memory, "too soon")
	request(t, k)
	restarted := New(k.o)
	restarted.clean(true)
	restarted.trigger(incidentfile.CPU, "too soon")
	for c, n := range map[Count]int64{
		{incidentfile.CPU, Written}: 1, {incidentfile.Memory, Suppressed}: 2, {incidentfile.Request, Suppressed}: 1, {incidentfile.Request, Written}: 1,
	} {
		if got := k.Stats().Counts[c]; got != n {
			t.Errorf("%v: %d, want %d", c, got, n)
		}
	}
	if n := restarted.Stats().Counts[Count{incidentfile.CPU, Suppressed}]; n != 1 {
		t.Errorf("after a restart %d are suppressed", n)
	}
	if err := restarted.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if ids, err := k.IDs(); err != nil || len(ids) != 2 {
		t.Errorf("%v, %v", ids, err)
	}
	_ = k.Close(t.Context())
	if _, _, err := k.Request(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// interrupted begins to write a bundle, says so, and does not finish.
func interrupted(dir string) {
	s := &store{base: dir, service: "svc", max: 3, maxBytes: 1 << 20, maxAge: time.Hour}
	_, err := s.write(incidentfile.NewID(time.Now(), incidentfile.Request), func(w io.Writer) error {
		if _, err := io.WriteString(w, "half"); err != nil {
			return err
		}
		fmt.Println("begun")
		time.Sleep(time.Hour)
		return nil
	})
	panic(err)
}

// TestKilledWhileItWrites: what a process leaves that SIGKILL ends is removed at the next start, and what another one is
// still writing is not.
func TestKilledWhileItWrites(t *testing.T) {
	k, log := keeper(t, nil)
	id, _ := request(t, k)
	var writers []*exec.Cmd
	for range 2 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "INCIDENT_INTERRUPTED="+k.o.Dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("begun"))); err != nil {
			t.Fatal(err)
		}
		writers = append(writers, cmd)
	}
	end := func(cmd *exec.Cmd) {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	end(writers[0])
	left := func() (names []string) {
		entries, err := os.ReadDir(k.store.path())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	if n := len(left()); n != 3 {
		t.Fatalf("%d files before the start", n)
	}
	k.clean(true)
	if n := len(left()); n != 2 || !strings.Contains(log.String(), "not finished") {
		t.Errorf("%v are left while one writes, and the log is %s", left(), log)
	}
	end(writers[1])
	k.clean(true)
	if got := left(); len(got) != 1 || got[0] != id+incidentfile.Suffix {
		t.Errorf("%v are left", got)
	}
}

// TestOpen: only a bundle of this service is opened, whatever the ID.
func TestOpen(t *testing.T) {
	k, _ := keeper(t, nil)
	id, _ := request(t, k)
	r, err := k.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	for _, bad := range []string{"", "..", "../svc/" + id, id + "/", id + incidentfile.Suffix, strings.ToUpper(id)} {
		if _, err := k.Open(bad); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := k.Open(incidentfile.NewID(time.Now(), incidentfile.CPU).String()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
	}
	link := incidentfile.NewID(time.Now(), incidentfile.CPU)
	if err := os.Symlink("/etc/passwd", filepath.Join(k.store.path(), link.File())); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Open(link.String()); err == nil {
		t.Error("a link is followed")
	}
}

// TestKept: the last windows of each type are kept, and slow spans up to their limits.
func TestKept(t *testing.T) {
	k, _ := keeper(t, func(o *Options) { o.MaxBytes = 64 << 20 })
	put := func(typ record.Type, size int) {
		now := time.Now()
		k.Put(record.Record{Meta: record.Meta{Service: "svc", Type: typ, Start: now, End: now}, Profile: append(pprofwire.Gzip(nil), make([]byte, size)...)})
	}
	for range 5 {
		put(record.CPU, 0)
		put(record.Wall, 1<<20)
	}
	put(record.Memory, maxProfile+1)
	if len(k.windows[record.CPU]) != keptWindows || k.wallBytes > keptWallBytes || len(k.wall) != 3 {
		t.Errorf("%d windows, %d slow spans of %d bytes", len(k.windows[record.CPU]), len(k.wall), k.wallBytes)
	}
	for i := range keptSlow + 5 {
		k.Diagnosed(Slow{Name: fmt.Sprint(i)})
	}
	if len(k.slow) != keptSlow || k.slow[0].Name != "5" {
		t.Errorf("%d slow requests from %v", len(k.slow), k.slow[0])
	}
	if _, files := request(t, k); !strings.Contains(files[incidentfile.About], "the last profile of type memory") {
		t.Errorf("%s", files[incidentfile.About])
	}
}

// TestWatch: a trigger fires once, and again only after its value has been low for a while.
func TestWatch(t *testing.T) {
	w := newWatch(Triggers{CPU: 0.5, Latency: 10 * time.Millisecond, Memory: 0.9, Goroutines: 100})
	at := func(cpu, latency, memory, goroutines float64) string {
		s := sample{}
		s.values[colCPU], s.values[colLatency], s.values[colMemory], s.values[colLimit], s.values[colGoroutines] = cpu, latency, memory, 1000, goroutines
		var names []string
		for _, f := range w.look(s) {
			names = append(names, f.trigger+" "+f.detail)
		}
		return strings.Join(names, ", ")
	}
	if got := at(0.4, 0.009, 899, 99); got != "" {
		t.Errorf("below all: %q", got)
	}
	want := "cpu 50 % of at most 50 %, latency 20ms of at most 10ms, goroutines 100 of at most 100, memory 90 % of at most 90 %"
	if got := at(0.5, 0.02, 900, 100); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for range 2 * calmAfter { // between the two thresholds
		if got := at(0.46, 0, 0, 0) + at(0.6, 0, 0, 0); got != "" {
			t.Errorf("while it goes up and down: %q", got)
		}
	}
	for range calmAfter - 1 {
		at(0.1, 0, 0, 0)
	}
	if got := at(0.46, 0, 0, 0) + at(0.6, 0, 0, 0); got != "" {
		t.Errorf("after too short a calm: %q", got)
	}
	for range calmAfter {
		at(0.1, 0, 0, 0)
	}
	if got := at(0.6, 0, 0, 0); !strings.HasPrefix(got, "cpu") {
		t.Errorf("after the calm: %q", got)
	}
	if w := newWatch(Triggers{Signal: true, Alert: true}); len(w) != 0 {
		t.Errorf("%d thresholds without any", len(w))
	}
}

func TestParseTriggers(t *testing.T) {
	all := map[string]string{"cpu": "90%", "latency": "50ms", "memory": "0.9", "goroutines": "20000", "signal": "SIGUSR1", "alert": "on"}
	want := Triggers{0.9, 50 * time.Millisecond, 0.9, 20000, true, true}
	if got, err := ParseTriggers(all); got != want || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	for name, value := range map[string]string{
		"cpu": "900%", "latency": "50", "memory": "x", "goroutines": "-1", "signal": "SIGKILL", "alert": "yes", "": "1", "disk": "1",
	} {
		if got, err := ParseTriggers(map[string]string{name: value}); err == nil {
			t.Errorf("%s=%s is %+v", name, value, got)
		}
	}
}

// TestAlert: what an Alertmanager sends, and what it does not.
func TestAlert(t *testing.T) {
	k, _ := keeper(t, func(o *Options) { o.Triggers.Alert = true })
	for body, want := range map[string]string{
		`{"alerts":[{"status":"resolved","labels":{"alertname":"x"}}]}`:                        "no alert fires",
		`{"alerts":[{"status":"firing","labels":{"alertname":"x","service_name":"another"}}]}`: "no alert fires",
		`{"alerts":[]}`: "no alert fires",
	} {
		if got, err := k.Alert(strings.NewReader(body)); err != nil || !strings.Contains(got, want) {
			t.Errorf("%s: %q, %v", body, got, err)
		}
	}
	for _, body := range []string{
		"", "null", "[]", "x", `{"alerts":{}}`, `{"alerts":[1]}`, `{"alerts":[{"labels":{"a":1}}]}`, strings.Repeat("[", 100_000), strings.Repeat(" ", maxAlert+1),
	} {
		if got, err := k.Alert(strings.NewReader(body)); err == nil {
			t.Errorf("%.40q is accepted: %s", body, got)
		}
	}
	if ids, err := k.IDs(); len(ids) > 0 || err != nil {
		t.Errorf("%v, %v", ids, err)
	}
	name := `../../<script>\u0000\n` + strings.Repeat("é", 200)
	hostile := `{"version":"4","alerts":[{"status":"firing","labels":{"alertname":"` + name + `","service_name":"svc"}}]}`
	if _, err := k.Alert(strings.NewReader(hostile)); err != nil {
		t.Fatal(err)
	}
	k.running.Wait()
	ids, err := k.IDs()
	if err != nil || len(ids) != 1 {
		t.Fatalf("%v, %v", ids, err)
	}
	z, err := zip.OpenReader(filepath.Join(k.store.path(), ids[0]+incidentfile.Suffix))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	page, err := fs.ReadFile(z, incidentfile.Index)
	if err != nil || bytes.Contains(page, []byte("<script")) || !bytes.Contains(page, []byte("&lt;script&gt;\ufffd\ufffd")) {
		t.Errorf("%v: %s", err, page)
	}
	k.o.Triggers.Alert = false
	if _, err := k.Alert(strings.NewReader(hostile)); err == nil {
		t.Error("an alert is accepted without the setting")
	}
}

func FuzzFiring(f *testing.F) {
	f.Add([]byte(`{"alerts":[{"status":"firing","labels":{"alertname":"x"}}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		names, err := firing(bytes.NewReader(body), "svc")
		if err != nil && names != "" || len(names) > 3*maxDetail || strings.ContainsAny(names, "\n\r\x00") {
			t.Errorf("%q, %v", names, err)
		}
	})
}

// panicking is a handler of the service's logger that panics.
type panicking struct{ slog.Handler }

func (panicking) Handle(context.Context, slog.Record) error { panic("the service's handler") }
func (p panicking) WithAttrs([]slog.Attr) slog.Handler      { return p }

// A panic of the service's logger does not end the process, and the bundle is there.
func TestALoggerThatPanics(t *testing.T) {
	k, _ := keeper(t, func(o *Options) { o.Logger = slog.New(panicking{slog.DiscardHandler}) })
	if !k.trigger(incidentfile.Signal, "SIGUSR1") {
		t.Fatal("no bundle is made")
	}
	k.running.Wait()
	if ids, err := k.IDs(); len(ids) != 1 || err != nil {
		t.Errorf("%v, %v", ids, err)
	}
	if err := k.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// Bundles from when the clock was ahead make room for a new one, and not the reverse.
func TestBundlesOfTheFuture(t *testing.T) {
	k, _ := keeper(t, nil)
	for i := range 3 {
		id := incidentfile.NewID(time.Now().Add(time.Duration(24+i)*time.Hour), incidentfile.Request)
		if _, err := k.store.write(id, func(io.Writer) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	id, _ := request(t, k)
	ids, err := k.IDs()
	if err != nil || len(ids) != 3 || !slices.Contains(ids, id) {
		t.Errorf("%v are kept, %v; the new one is %s", ids, err, id)
	}
}

// An alert is answered with what is done about it.
func TestAlertIsAnswered(t *testing.T) {
	const firing = `{"alerts":[{"status":"firing","labels":{"alertname":"x","service_name":"svc"}}]}`
	k, _ := keeper(t, func(o *Options) { o.Triggers.Alert = true })
	for _, want := range []string{"a bundle is being written", "no bundle is written"} {
		if got, err := k.Alert(strings.NewReader(firing)); err != nil || !strings.Contains(got, want) {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
}

// A bundle that is being written when the service ends is written without what it would have to wait for, and at once.
func TestCloseDoesNotWait(t *testing.T) {
	waiting := make(chan struct{})
	k, _ := keeper(t, func(o *Options) {
		o.EndWindows = func(ctx context.Context, _ string) error {
			close(waiting)
			<-ctx.Done()
			return ctx.Err()
		}
	})
	k.trigger(incidentfile.Signal, "SIGUSR1")
	<-waiting
	if err := k.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if s := k.Stats(); s.Counts[Count{incidentfile.Signal, Written}] != 1 {
		t.Errorf("counts %v", s.Counts)
	}
}
