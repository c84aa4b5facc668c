package viewer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/profiles"
	"spanflame/viewer/internal/fixture"
	"spanflame/viewer/source"
)

// Any directory with profiles has the pages that need no traces. Its name is the service, and the names of its
// subdirectories are versions, which can be compared.
func TestForeignDirectory(t *testing.T) {
	d := open(t, fixture.TwoVersions(t))
	if got := StartPath(d); got != "/profiles" {
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

	// The possible comparisons are options.
	compare := regexpOf(t, page(t, h, "/compare"), `href="(/compare\?[^"]*what=versions[^"]*)"><bdi>version after/deep against before`)
	got := page(t, h, compare)
	shows(t, got, "CPU of shop after/deep against before", "6 windows before, 6 after", "main.slow: before 60 ms, after 0 ns, −60 ms", "gone")
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
		all += value + fixture.Jitter(i+shift)
	}
	return all
}

func TestForeignMemoryNamesTheLeak(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		fixture.Foreign(t, filepath.Join(dir, fmt.Sprintf("heap-%02d.pb.gz", i)), fixture.Began.Add(time.Duration(i)*time.Minute), "inuse_space", "bytes",
			fixture.Sample("main.main;main.leak", int64(i)<<20+fixture.Jitter(i), ""), fixture.Sample("main.main;main.same", 9<<20+fixture.Jitter(i), ""))
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
	fixture.Foreign(t, path, fixture.Began, "cpu", "nanoseconds", fixture.Sample("main.main;main.slow", 9e8, ""))
	fixture.Foreign(t, filepath.Join(dir, "b.pb.gz"), fixture.Began, "cpu", "nanoseconds", fixture.Sample("main.main;main.other", 9e8, ""))
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
	if _, err := source.Open(t.Context(), text); !errors.As(err, &damaged) || damaged.Path != text {
		t.Errorf("a file that is not a profile: %v, want an error for %s", err, text)
	}
	if _, err := source.Open(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// The pages accept hostile names of files, and any parameters.
func TestForeignHostileNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), `<script>alert(1)<`)
	fixture.Foreign(
		t, filepath.Join(dir, `"><img src=x>`, "\u202ex.pb.gz"), fixture.Began, "cpu", "nanoseconds",
		fixture.Sample("<script>alert(2)</script>", 5e8, ""),
	)
	fixture.Foreign(t, filepath.Join(dir, "b", "x.pb.gz"), fixture.Began.Add(time.Minute), "cpu", "nanoseconds", fixture.Sample("main.main", 5e8, ""))
	h := pages(t, open(t, dir), Options{})
	for _, path := range []string{"/", "/profiles", "/compare", "/profiles?" + url.Values{"version": {`"><img src=x>`}}.Encode()} {
		for _, bad := range []string{"<script>alert", "<img src=x", "\u202e"} {
			if got := page(t, h, path); strings.Contains(got, bad) {
				t.Errorf("%s has %q", path, bad)
			}
		}
	}
	for _, path := range []string{
		"/profiles?type=%00", "/profiles.pb.gz", "/profiles?frame=x", "/profiles?sugar=1",
		"/compare?what=versions&aversion=1&aversion=2",
	} {
		if w := get(h, path); w.Code != 400 {
			t.Errorf("%s: status %d, want 400", path, w.Code)
		}
	}
	shows(t, page(t, h, "/profiles?service=none"), "There are no profiles of a service")
	shows(t, page(t, h, "/profiles?"+url.Values{"service": {"<img src=x>"}}.Encode()), "There are no profiles of a service &#34;&lt;img src=x&gt;&#34;")
	shows(t, page(t, h, "/compare?what=versions&service=x&aversion=1"), "Say which two versions.")
	if w := get(h, "/compare?a="+fixture.TraceID("none")+"/"+fixture.SpanID("none")); w.Code != 404 {
		t.Errorf("a missing span: status %d, want 404", w.Code)
	}
}

// The runtime sets a duration for CPU profiles alone: the windows of others are moments, the last of which counts, too.
func TestForeignMoments(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		at := fixture.Began.Add(time.Duration(i) * time.Minute)
		fixture.WriteForeign(t, filepath.Join(dir, fmt.Sprintf("heap-%02d.pb.gz", i)), fixture.Profile(at, 0, "inuse_space", "bytes", nil,
			fixture.Sample("main.main;main.leak", int64(i)<<20, ""), fixture.Sample("main.main;main.same", 9<<20+fixture.Jitter(i), "")))
	}
	d := open(t, dir)
	h := pages(t, d, Options{})
	shows(t, page(t, h, "/memory"), "main.leak: before 0 B, after 19 MiB")

	half, err := url.Parse(regexpOf(t, page(t, h, "/profiles"), `href="(/compare\?[^"]*what=times[^"]*)">the half from`))
	if err != nil {
		t.Fatal(err)
	}
	to, err := time.Parse(time.RFC3339Nano, half.Query().Get("bto"))
	if last := fixture.Began.Add(19 * time.Minute); err != nil || !to.After(last) {
		t.Errorf("the later half ends at %v, %v: the profile of %v is not in it", to, err, last)
	}
	if shown := page(t, h, "/profiles"); strings.Contains(shown, "-http=: &#39;"+dir) || strings.Contains(shown, "heap-00.pb.gz") {
		t.Error("a command adds up what was in use at several moments")
	}
}

// leakSelection records the selection in which leaks are searched.
type leakSelection struct {
	*source.Directory
	got *source.Selection
}

func (l leakSelection) Series(ctx context.Context, s source.Selection, most int) iter.Seq2[profiles.Window, error] {
	*l.got = s
	return l.Directory.Series(ctx, s, most)
}

func TestForeignLeaksHaveTheLastMoment(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		fixture.WriteForeign(
			t, filepath.Join(dir, fmt.Sprintf("heap-%d.pb.gz", i)),
			fixture.Profile(fixture.Began.Add(time.Duration(i)*time.Minute), 0, "inuse_space", "bytes", nil, fixture.Sample("main.main", 1<<20, "")),
		)
	}
	d := open(t, dir)
	var sel source.Selection
	page(t, pages(t, leakSelection{d, &sel}, Options{}), "/memory")
	if windows, err := d.Windows(t.Context(), sel); err != nil || len(windows) != 3 {
		t.Errorf("%d windows, %v, want all 3", len(windows), err)
	}
}

// A link is shown under its own name.
func TestOpenLinks(t *testing.T) {
	dir := fixture.TwoVersions(t)
	for name, target := range map[string]string{"shelf": dir, "one.pb.gz": filepath.Join(dir, "before", "cpu-0.pb.gz")} {
		link := filepath.Join(t.TempDir(), name)
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		shows(t, page(t, pages(t, open(t, link), Options{}), "/profiles"), `<bdi class="service">`+strings.TrimSuffix(name, ".pb.gz"), "main.slow")
	}
}

// A directory is an agent's if it looks like one or is empty.
func TestOpenTellsDirectoriesApart(t *testing.T) {
	empty, traces, saved := t.TempDir(), t.TempDir(), fixture.Shop(t)
	if err := os.Mkdir(filepath.Join(traces, "traces"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"empty": empty, "traces alone": traces, "an agent's": saved.Dir} {
		if got := StartPath(open(t, dir)); got != "/" {
			t.Errorf("%s: the pages begin at %s", name, got)
		}
	}
	// Directories with the names of an agent's hide no files, and files are found by what is in them, too.
	fixture.Foreign(t, filepath.Join(traces, "cpu.out"), fixture.Began, "cpu", "nanoseconds", fixture.Sample("main.main;main.next", 1e9, ""))
	fixture.Foreign(t, filepath.Join(traces, "traces", "a", "b.prof"), fixture.Began, "cpu", "nanoseconds", fixture.Sample("main.main;main.below", 1e9, ""))
	shows(t, page(t, pages(t, open(t, traces), Options{}), "/profiles"), "main.next", "main.below", "2 s of CPU")
	// A file that an agent saved is recognised in every directory.
	hour := filepath.Dir(fixture.OneFile(t, saved.Dir))
	if got := open(t, hour); StartPath(got) != "/profiles" {
		t.Errorf("an hour's directory begins at %s", StartPath(got))
	} else {
		shows(t, page(t, pages(t, got, Options{}), "/profiles"), `<bdi class="service">storefront`)
	}
}
