package viewer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// foreign writes a profile as another tool does, which says nothing of its service.
func foreign(t testing.TB, path string, start time.Time, valueType, unit string, samples ...sample) {
	t.Helper()
	foreignOf(t, path, pprofOf(start, 15*time.Second, valueType, unit, nil, samples...))
}

// foreignOf writes a profile as it is.
func foreignOf(t testing.TB, path string, p *profile.Profile) {
	t.Helper()
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// twoVersions is a directory of CPU profiles before and after, which another tool wrote.
func twoVersions(t testing.TB) string {
	dir := filepath.Join(t.TempDir(), "shop")
	for i := range 6 {
		at := began.Add(time.Duration(i) * 15 * time.Second)
		name := fmt.Sprintf("cpu-%d.pb.gz", i)
		foreign(
			t, filepath.Join(dir, "before", name), at, "cpu", "nanoseconds",
			sample{"main.main;main.slow", 9e8 + jitter(i), ""}, sample{"main.main;main.same", 1e8 + jitter(i+1), ""},
		)
		foreign(t, filepath.Join(dir, "after", "deep", name), at.Add(15*time.Minute), "cpu", "nanoseconds", sample{"main.main;main.same", 1e8 + jitter(i), ""})
	}
	return dir
}

func open(t testing.TB, path string) *Directory {
	t.Helper()
	d, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// Any directory with profiles has the pages that need no traces; its name is the service, and those below it are
// versions, one against the other.
func TestLooseDirectory(t *testing.T) {
	d := open(t, twoVersions(t))
	if got := d.Start(); got != "/profiles" {
		t.Errorf("the pages begin at %s", got)
	}
	h := pages(t, d, Options{})
	shows(t, page(t, h, "/"), "There are no traces yet, but profiles of 1 service", `href="/profiles"`)
	all := page(t, h, "/profiles")
	shows(t, all, `Profiles of <bdi class="service">shop`, "6.61 s of CPU", "12 windows", "main.slow: 5.4 s", "before</bdi></a>", "after/deep</bdi></a>")
	if strings.Contains(all, "running on the CPU") {
		t.Error("a CPU profile has states")
	}
	before := page(t, h, "/profiles?version=before&service=shop")
	shows(t, before, "6.01 s of CPU", "6 windows from <b>2026-01-02 15:04:05</b> to <b>2026-01-02 15:05:35</b>")
	if got := page(t, h, "/profiles?version=after/deep"); strings.Contains(got, "main.slow") {
		t.Error("the flame graph of one version has the other's functions")
	}

	// A window alone, all of it in pprof, and as a file.
	window := regexpOf(t, before, `<li><a href="(/profiles\?from=[^"]*)">`)
	shows(t, page(t, h, window), "1 window from", "1 s of CPU")
	shows(t, page(t, h, regexpOf(t, before, `href="(/flame/[\w-]+/flamegraph)"`)), "main.slow", "back to the profiles")
	w := get(h, regexpOf(t, before, `href="(/profiles\.pb\.gz[^"]*)"`))
	if p, err := profile.Parse(w.Body); err != nil || sum(p, 0) != sumOf(6, 9e8, 0)+sumOf(6, 1e8, 1) {
		t.Errorf("the download: %v, %v", p, err)
	}
	shows(t, before, "go tool pprof -http=: &#39;http://localhost/profiles.pb.gz?")

	// What can be compared is offered.
	compare := regexpOf(t, page(t, h, "/compare"), `href="(/compare\?[^"]*what=versions[^"]*)"><bdi>version after/deep against before`)
	got := page(t, h, compare)
	shows(t, got, "CPU of shop after/deep against before", "6 windows before, 6 after", "main.slow: before 900 ms, after 0 ns, −900 ms", "gone")
	shows(t, page(t, h, regexpOf(t, got, `href="(/flame/[\w-]+/flamegraph)"`)), "back to the comparison")
	zoomed := page(t, h, regexpOf(t, got, `href="(/compare[^"]*&amp;frame=\d+)#difference" aria-label="main.slow`))
	shows(t, zoomed, "Zoomed to <bdi><code>main.slow")
	half := regexpOf(t, all, `href="(/compare\?[^"]*what=times[^"]*)">the half from`)
	shows(t, page(t, h, half), "main.slow")
	shows(t, page(t, h, "/memory"), "fewer than two memory profiles")
	shows(t, page(t, h, "/names"), "No span with a profile")
}

// sumOf is the sum of n windows' values.
func sumOf(n int, value int64, shift int) (all int64) {
	for i := range n {
		all += value + jitter(i+shift)
	}
	return all
}

func TestLooseMemoryNamesTheLeak(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		foreign(t, filepath.Join(dir, fmt.Sprintf("heap-%02d.pb.gz", i)), began.Add(time.Duration(i)*time.Minute), "inuse_space", "bytes",
			sample{"main.main;main.leak", int64(i)<<20 + jitter(i), ""}, sample{"main.main;main.same", 9<<20 + jitter(i), ""})
	}
	h := pages(t, open(t, dir), Options{})
	_, suspects, _ := strings.Cut(page(t, h, "/memory"), "Suspected leaks")
	suspects, _, _ = strings.Cut(suspects, "</table>")
	shows(t, suspects, "main.leak", "1 MiB")
	shows(t, page(t, h, "/profiles"), "of memory", "the mean of them", "Memory over time, and leaks")
}

func TestSingleFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a day ago.pb.gz")
	foreign(t, path, began, "cpu", "nanoseconds", sample{"main.main;main.slow", 9e8, ""})
	foreign(t, filepath.Join(dir, "b.pb.gz"), began, "cpu", "nanoseconds", sample{"main.main;main.other", 9e8, ""})
	got := page(t, pages(t, open(t, path), Options{}), "/profiles")
	shows(t, got, "Profiles of", "a day ago", "main.slow: 900 ms, 100 %", "1 window from")
	if strings.Contains(got, "main.other") {
		t.Error("the page of one file has another's functions")
	}

	text := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(text, []byte("no profile"), 0o644); err != nil {
		t.Fatal(err)
	}
	var damaged profiles.Damaged
	if _, err := Open(t.Context(), text); !errors.As(err, &damaged) || damaged.Path != text {
		t.Errorf("a file that is no profile: %v, want what is wrong with %s", err, text)
	}
	if _, err := Open(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// The directory is an agent's where it looks like one, or has nothing yet.
func TestOpenTellsDirectoriesApart(t *testing.T) {
	empty, traces, saved := t.TempDir(), t.TempDir(), shop(t)
	if err := os.Mkdir(filepath.Join(traces, "traces"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"empty": empty, "traces alone": traces, "an agent's": saved.dir} {
		if got := open(t, dir).Start(); got != "/" {
			t.Errorf("%s: the pages begin at %s", name, got)
		}
	}
	// What an agent saved says of itself what it is, wherever it lies.
	hour := filepath.Dir(oneFile(t, saved.dir))
	if got := open(t, hour); got.Start() != "/profiles" {
		t.Errorf("an hour's directory begins at %s", got.Start())
	} else {
		shows(t, page(t, pages(t, got, Options{}), "/profiles"), `<bdi class="service">storefront`)
	}
}

// oneFile is one of the profiles of a directory.
func oneFile(t *testing.T, dir string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "profiles", "*", "*", "*", "*.pb.gz"))
	if err != nil || len(found) == 0 {
		t.Fatal("no profile", err)
	}
	return found[0]
}

// Files come, change, go, and cannot be read, while the pages are served.
func TestLooseFilesChange(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name+".pb.gz") }
	write := func(name, function string) {
		foreign(t, path(name), began, "cpu", "nanoseconds", sample{function, 5e8, ""})
	}
	synctest.Test(t, func(t *testing.T) {
		write("a", "main.a")
		d, err := Open(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		list := func() (names []string) {
			time.Sleep(looseEvery + time.Second)
			entries, damaged, err := d.profiles.List(t.Context(), profiles.Query{Types: []record.Type{record.CPU}})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				names = append(names, filepath.Base(e.Path))
			}
			for _, bad := range damaged {
				names = append(names, "damaged "+filepath.Base(bad.Path))
			}
			return names
		}
		write("b", "main.b")
		if got := list(); !slices.Equal(got, []string{"a.pb.gz", "b.pb.gz"}) {
			t.Errorf("after another file came: %q", got)
		}
		if err := os.WriteFile(path("b"), []byte("longer than before, and no profile at all"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := list(); !slices.Equal(got, []string{"a.pb.gz", "damaged b.pb.gz"}) {
			t.Errorf("after it was overwritten: %q", got)
		}
		if err := errors.Join(os.Remove(path("a")), os.Remove(path("b"))); err != nil {
			t.Fatal(err)
		}
		if got := list(); len(got) > 0 {
			t.Errorf("after they were removed: %q", got)
		}
	})
}

func TestForeignScope(t *testing.T) {
	m := record.Meta{Service: "s", Type: record.Wall, Start: began, End: began.Add(time.Minute), Labels: map[string]string{record.VersionLabel: "1"}}
	scoped := m
	scoped.Labels = map[string]string{record.VersionLabel: "1", wallprofile.SpanScope: "child"}
	for name, tt := range map[string]struct {
		q    profiles.Query
		m    record.Meta
		want bool
	}{
		"all":                 {profiles.Query{}, m, true},
		"its service":         {profiles.Query{Service: "s"}, m, true},
		"another service":     {profiles.Query{Service: "t"}, m, false},
		"another type":        {profiles.Query{Types: []record.Type{record.CPU}}, m, false},
		"its version":         {profiles.Query{Labels: map[string]string{record.VersionLabel: "1"}}, m, true},
		"another version":     {profiles.Query{Labels: map[string]string{record.VersionLabel: "2"}}, m, false},
		"no such label":       {profiles.Query{Labels: map[string]string{record.InstanceLabel: ""}}, m, false},
		"a scope that it has": {profiles.Query{Labels: map[string]string{wallprofile.SpanScope: "root"}}, scoped, false},
		"no scope":            {profiles.Query{Labels: map[string]string{wallprofile.SpanScope: "root"}}, m, true},
		"later":               {profiles.Query{From: began.Add(2 * time.Minute)}, m, false},
		"earlier":             {profiles.Query{To: began}, m, false},
		"its time":            {profiles.Query{From: began.Add(time.Second), To: began.Add(2 * time.Second)}, m, true},
	} {
		if got := withoutScope(tt.q, tt.m).Match(tt.m); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// The pages take hostile names of files, and any parameters.
func TestLooseHostileNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), `<script>alert(1)<`)
	foreign(t, filepath.Join(dir, `"><img src=x>`, "\u202ex.pb.gz"), began, "cpu", "nanoseconds", sample{"<script>alert(2)</script>", 5e8, ""})
	foreign(t, filepath.Join(dir, "b", "x.pb.gz"), began.Add(time.Minute), "cpu", "nanoseconds", sample{"main.main", 5e8, ""})
	h := pages(t, open(t, dir), Options{})
	for _, path := range []string{"/", "/profiles", "/compare", "/profiles?" + url.Values{"version": {`"><img src=x>`}}.Encode()} {
		for _, bad := range []string{"<script>alert", "<img src=x", "\u202e"} {
			if got := page(t, h, path); strings.Contains(got, bad) {
				t.Errorf("%s has %q", path, bad)
			}
		}
	}
	for _, path := range []string{
		"/profiles?type=none", "/profiles.pb.gz", "/profiles?frame=x", "/profiles?sugar=1",
		"/compare?what=versions&aversion=1&aversion=2",
	} {
		if w := get(h, path); w.Code != 400 {
			t.Errorf("%s: status %d, want 400", path, w.Code)
		}
	}
	shows(t, page(t, h, "/profiles?service=none"), "There are no profiles of a service")
	shows(t, page(t, h, "/profiles?"+url.Values{"service": {"<img src=x>"}}.Encode()), "There are no profiles of a service &#34;&lt;img src=x&gt;&#34;")
	shows(t, page(t, h, "/compare?what=versions&service=x&aversion=1"), "Say which two versions.")
	if w := get(h, "/compare?a="+traceID("none")+"/"+spanID("none")); w.Code != 404 {
		t.Errorf("a span that is not there: status %d, want 404", w.Code)
	}
}

// The runtime gives no duration but to CPU profiles: the windows of others are moments, the last of which counts, too.
func TestLooseMoments(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		foreignOf(t, filepath.Join(dir, fmt.Sprintf("heap-%02d.pb.gz", i)), pprofOf(began.Add(time.Duration(i)*time.Minute), 0, "inuse_space", "bytes", nil,
			sample{"main.main;main.leak", int64(i) << 20, ""}, sample{"main.main;main.same", 9<<20 + jitter(i), ""}))
	}
	d := open(t, dir)
	h := pages(t, d, Options{})
	shows(t, page(t, h, "/memory"), "main.leak: before 0 B, after 19 MiB")

	half, err := url.Parse(regexpOf(t, page(t, h, "/profiles"), `href="(/compare\?[^"]*what=times[^"]*)">the half from`))
	if err != nil {
		t.Fatal(err)
	}
	to, err := time.Parse(time.RFC3339Nano, half.Query().Get("bto"))
	if last := began.Add(19 * time.Minute); err != nil || !to.After(last) {
		t.Errorf("the later half ends at %v, %v: the profile of %v is not in it", to, err, last)
	}
	if shown := page(t, h, "/profiles"); strings.Contains(shown, "-http=: &#39;"+dir) || strings.Contains(shown, "heap-00.pb.gz") {
		t.Error("a command adds up what was in use at several moments")
	}
}

// leakSelection notes what the leaks are looked for in.
type leakSelection struct {
	*Directory
	got *Selection
}

func (l leakSelection) Series(ctx context.Context, s Selection) iter.Seq2[profiles.Window, error] {
	*l.got = s
	return l.Directory.Series(ctx, s)
}

func TestLooseLeaksHaveTheLastMoment(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		foreignOf(
			t, filepath.Join(dir, fmt.Sprintf("heap-%d.pb.gz", i)),
			pprofOf(began.Add(time.Duration(i)*time.Minute), 0, "inuse_space", "bytes", nil, sample{"main.main", 1 << 20, ""}),
		)
	}
	d := open(t, dir)
	var sel Selection
	page(t, pages(t, leakSelection{d, &sel}, Options{}), "/memory")
	if windows, err := d.Windows(t.Context(), sel); err != nil || len(windows) != 3 {
		t.Errorf("%d windows, %v, want all 3", len(windows), err)
	}
}

// Windows of other tools count from the start of the process, which no service says, and have their place's version.
func TestLooseSeries(t *testing.T) {
	d := open(t, twoVersions(t))
	n := 0
	for w, err := range d.Series(t.Context(), Selection{Service: "shop", Type: record.CPU, Version: "before"}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; w.Service != "" || w.Labels[record.VersionLabel] != "before" {
			t.Errorf("service %q, labels %v: want none, and the version", w.Service, w.Labels)
		}
	}
	if n != 6 {
		t.Errorf("%d windows, want 6", n)
	}
}

// The time that is shown unasked is not that of the form: another service has another, and any time can be chosen.
func TestProfilesFormHasNoTimeUnasked(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 {
		foreign(t, filepath.Join(dir, fmt.Sprintf("cpu-%d.pb.gz", i)), began.Add(time.Duration(i)*24*time.Hour), "cpu", "nanoseconds", sample{"main.main", 5e8, ""})
	}
	h := pages(t, open(t, dir), Options{})
	got := page(t, h, "/profiles")
	shows(t, got, "1 window from")
	if strings.Contains(got, `type="hidden" name="from"`) {
		t.Error("the form has a time that nobody asked for")
	}
	shows(t, page(t, h, "/profiles?last="), "2 windows from")
}

// A link is what it leads to, under its own name.
func TestOpenLinks(t *testing.T) {
	dir := twoVersions(t)
	for name, target := range map[string]string{"shelf": dir, "one.pb.gz": filepath.Join(dir, "before", "cpu-0.pb.gz")} {
		link := filepath.Join(t.TempDir(), name)
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		shows(t, page(t, pages(t, open(t, link), Options{}), "/profiles"), `<bdi class="service">`+strings.TrimSuffix(name, ".pb.gz"), "main.slow")
	}
}

// A directory that cannot be read is left out, and said; here it is one whose path is too long.
func TestLooseUnreadableDirectory(t *testing.T) {
	dir := twoVersions(t)
	at, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		name := strings.Repeat("d", 250)
		if err := at.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
		below, err := at.OpenRoot(name)
		if err := errors.Join(err, at.Close()); err != nil {
			t.Fatal(err)
		}
		at = below
	}
	if err := at.Close(); err != nil {
		t.Fatal(err)
	}
	entries, damaged, err := open(t, dir).profiles.List(t.Context(), profiles.Query{})
	if err != nil || len(entries) != 12 || len(damaged) != 1 || !strings.HasPrefix(damaged[0].Path, dir) {
		t.Errorf("%d profiles, damaged %v, %v: want 12 and the directory", len(entries), damaged, err)
	}
}

// What is wrong with a file's bytes stays so; what was wrong with the machine may be over.
func TestLooseTriesAgain(t *testing.T) {
	dir := twoVersions(t)
	for kept, err := range map[bool]error{false: errors.New("too many open files"), true: fmt.Errorf("its end: %w", record.ErrDamaged)} {
		l, openErr := openLoose(t.Context(), dir, "shop")
		if openErr != nil {
			t.Fatal(openErr)
		}
		path := filepath.Join(dir, "before", "cpu-0.pb.gz")
		f := l.files[path]
		f.err = err
		l.files[path] = f
		if lookErr := l.look(t.Context()); lookErr != nil || (l.files[path].err != nil) != kept {
			t.Errorf("after %v: %v, %v", err, l.files[path].err, lookErr)
		}
	}
}

// A sum is divided by the windows that are in it, not by those that turned out to be damaged.
func TestMeanLeavesOutDamaged(t *testing.T) {
	s := newSaved(t)
	for i := range 3 {
		start := began.Add(time.Duration(i) * time.Minute)
		s.profile(record.Meta{Service: "shop", Type: record.CPU, Start: start, End: start.Add(15 * time.Second)}, "cpu", "nanoseconds", sample{"main.main", 6e8, ""})
	}
	path := oneFile(t, s.dir)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := s.open()
	write := func(b []byte) {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range [][]byte{whole[:len(whole)-12], whole} {
		write(b)
		p, err := mean(t.Context(), d, Selection{Service: "shop", Type: record.CPU})
		if err != nil || sum(p, 0) != 6e8 {
			t.Errorf("%d of %d bytes: the mean is %v, %v, want 6e8", len(b), len(whole), p, err)
		}
	}
}
