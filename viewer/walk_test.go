package viewer

import (
	"bytes"
	"errors"
	"html"
	"io/fs"
	"iter"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/profiles"
	"spanflame/profiles/compare"
	"spanflame/viewer/internal/fixture"
	"spanflame/viewer/source"
)

// profilesVariable names a directory with profiles, for TestEveryLink.
const profilesVariable = "SPANFLAME_TEST_PROFILES"

// unusual are profiles as other tools write them, by the names of their files.
func unusual() map[string]*profile.Profile {
	cpu := func() *profile.Profile {
		return fixture.Profile(fixture.Began, 10*time.Second, "cpu", "nanoseconds", nil,
			fixture.Sample("main.main;main.work", 900e6, ""), fixture.Sample("main.main", 100e6, ""))
	}
	of := func(sampleType, unit string) *profile.Profile {
		return fixture.Profile(fixture.Began, 10*time.Second, sampleType, unit, nil, fixture.Sample("main.main;main.work", 9, ""))
	}
	// with adds a sample type, whose values are the first ones multiplied.
	with := func(p *profile.Profile, sampleType, unit string, by int64) *profile.Profile {
		p.SampleType = append(p.SampleType, &profile.ValueType{Type: sampleType, Unit: unit})
		for _, s := range p.Sample {
			s.Value = append(s.Value, s.Value[0]*by)
		}
		return p
	}
	all := map[string]*profile.Profile{
		"cpu.pb.gz": cpu(), "fgprof.pb.gz": with(of("samples", "count"), "time", "nanoseconds", 1e7), "threadcreate.prof": of("threadcreate", "count"),
		"goroutineleak.pprof": of("goroutineleak", "count"), "milliseconds.pb.gz": of("cpu", "ms"), "cpu-then-wall.pgo": with(cpu(), "wall", "nanoseconds", 2),
		"wall-then-cpu.pb.gz": with(of("wall", "nanoseconds"), "cpu", "nanoseconds", 3), "objects.pb": with(of("objects", "count"), "space", "bytes", 64),
		"allocations.pb.gz": of("alloc_objects", "count"), "no-time.pb.gz": cpu(), "before-1970.pb.gz": cpu(), "last-time.pb.gz": cpu(),
		"endless.pb.gz": cpu(), "negative-duration.pb.gz": cpu(), "difference.pb.gz": cpu(), "bad-default.pb.gz": cpu(), "hostile.pb.gz": of(`<b>"`, "\u202e"),
		"idle.pb.gz": cpu(),
	}
	all["no-time.pb.gz"].TimeNanos = 0
	all["before-1970.pb.gz"].TimeNanos = -1e18
	all["last-time.pb.gz"].TimeNanos = 1<<63 - 1
	all["endless.pb.gz"].DurationNanos = 1<<63 - 1
	all["negative-duration.pb.gz"].DurationNanos = -5
	all["difference.pb.gz"].Sample[0].Value[0] = -5_850_000
	all["idle.pb.gz"].Sample = nil
	all["bad-default.pb.gz"].DefaultSampleType = "none"
	return all
}

// TestEveryLink follows every link from the pages of each profile, alone and together with the others: every page exists,
// and its total is that of the file. The profiles are unusual ones and those of the directory in
// SPANFLAME_TEST_PROFILES.
func TestEveryLink(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "shop")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, p := range unusual() {
		path := filepath.Join(dir, name)
		if name != "objects.pb" {
			fixture.WriteForeign(t, path, p)
			continue
		}
		var b bytes.Buffer
		if err := p.WriteUncompressed(&b); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{dir, os.Getenv(profilesVariable)} {
		if dir == "" {
			continue
		}
		var files []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				files = append(files, path)
			}
			return err
		})
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no profiles: %v", dir, err)
		}
		for _, file := range files {
			t.Run(strings.TrimPrefix(file, dir), func(t *testing.T) {
				if _, err := rawOfPprof(t, file); err == nil {
					walk(t, file)
				} else if _, err := source.Open(t.Context(), file); !errors.As(err, new(profiles.Damaged)) {
					t.Errorf("go tool pprof does not read it, and it is opened: %v", err)
				}
			})
		}
		t.Run("all", func(t *testing.T) { follow(t, pages(t, open(t, dir), Options{}), starts...) })
	}
}

// TestEveryLinkOfPprofsInputs does the same for the files that google/pprof's own tests read, some of which have formats
// older than pprof's.
func TestEveryLinkOfPprofsInputs(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/pprof").Output()
	if err != nil {
		t.Fatal(err)
	}
	module := strings.TrimSpace(string(out))
	seen := make(map[string]bool) // contents, as some files are there several times
	walked := 0
	for _, dir := range []string{"profile/testdata", "internal/driver/testdata", "internal/report/testdata", "fuzz/corpus", "fuzz/testdata"} {
		files, err := filepath.Glob(filepath.Join(module, filepath.FromSlash(dir), "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil || seen[string(b)] {
				continue // a directory, or one that was read
			}
			seen[string(b)] = true
			if _, err := profile.ParseData(b); err != nil {
				continue // such as the output that a test expects
			}
			walked++
			t.Run(filepath.Base(file), func(t *testing.T) { walk(t, file) })
		}
	}
	if walked < 19 {
		t.Errorf("google/pprof has %d profiles for its tests, want at least 19", walked)
	}
}

// starts are the pages from which all others are reached.
var starts = []string{"/profiles", "/", "/names", "/memory", "/compare"}

// walk follows the links of a file's pages, and holds all totals against those of go tool pprof.
func walk(t *testing.T, file string) {
	h := pages(t, open(t, file), Options{})
	follow(t, h, starts...)
	hasTotals(t, h, file)
}

var links = regexp.MustCompile(`(?:href|src|srcset)="(/[^"]*)"`)

// maxFollowed limits the pages that follow asks for. A test with more links fails.
const maxFollowed = 4000

// follow asks for pages and for those that they link to.
func follow(t *testing.T, h http.Handler, paths ...string) {
	t.Helper()
	seen := make(map[string]bool)
	for i := 0; i < len(paths); i++ {
		if i == maxFollowed {
			t.Fatalf("more than %d pages, such as %s", maxFollowed, paths[i])
		}
		w := get(h, paths[i])
		if w.Code != http.StatusOK && w.Code != http.StatusFound {
			t.Errorf("%s: status %d: %s", paths[i], w.Code, regexp.MustCompile(`<p><bdi>.*</bdi>`).FindString(w.Body.String()))
		}
		if strings.HasPrefix(paths[i], "/flame/") || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
			continue // pprof's links have parameters of their own
		}
		for _, m := range links.FindAllStringSubmatch(w.Body.String(), -1) {
			path, _, _ := strings.Cut(html.UnescapeString(m[1]), "#")
			if u, err := url.Parse(path); err != nil || u.Query().Has("frame") || seen[path] {
				continue // all frames are one page
			}
			seen[path] = true
			paths = append(paths, path)
		}
	}
}

// values matches the line of a sample in the output of go tool pprof -raw.
var values = regexp.MustCompile(`^ *(-?[0-9]+(?: +-?[0-9]+)*): `)

// rawOfPprof returns the output of go tool pprof -raw, and an error if it does not read the file.
func rawOfPprof(t *testing.T, file string) ([]byte, error) {
	cmd := exec.Command("go", "tool", "pprof", "-symbolize=none", "-raw", file)
	cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir())
	return cmd.Output()
}

// totalsOfPprof returns the totals of a file's sample types that go tool pprof reads.
func totalsOfPprof(t *testing.T, file string, types int) []int64 {
	t.Helper()
	out, err := rawOfPprof(t, file)
	if err != nil {
		t.Fatalf("go tool pprof: %v", err)
	}
	_, samples, _ := strings.Cut(string(out), "\nSamples:\n")
	samples, _, _ = strings.Cut(samples, "\nLocations\n")
	totals := make([]int64, types)
	for line := range strings.Lines(samples) {
		m := values.FindStringSubmatch(line)
		if m == nil {
			continue // labels
		}
		of := strings.Fields(m[1])
		if len(of) != types {
			t.Fatalf("go tool pprof has a sample with %d values, want %d: %s", len(of), types, line)
		}
		for i, text := range of {
			v, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			totals[i] += v
		}
	}
	return totals
}

// hasTotals fails unless the profile that the page has for download, the pages of its sample types, the merged profile and
// the comparison of the file with itself have the totals of go tool pprof.
func hasTotals(t *testing.T, h http.Handler, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // it was only read
	want, err := profiles.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	totals := totalsOfPprof(t, file, len(want.SampleType))
	equal := func(what string, p *profile.Profile) {
		for i, st := range want.SampleType {
			if got := profiles.Total(p, i, nil); got != totals[i] {
				t.Errorf("%s: the total of %s is %d, want %d", what, st.Type, got, totals[i])
			}
		}
	}
	equal("the file", want)
	var merger profiles.Merger
	if err := merger.AddFile(file); err != nil {
		t.Fatal(err)
	}
	merged, err := merger.Profile()
	if err != nil {
		t.Fatal(err)
	}
	equal("merged", merged)
	report, err := compare.Compare(t.Context(), ofFile(t, file), ofFile(t, file), compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, metric := range report.Metrics {
		i := slices.IndexFunc(want.SampleType, func(st *profile.ValueType) bool { return strings.HasSuffix(metric.Name, st.Type) })
		if i < 0 {
			t.Errorf("compared: %s is none of the sample types", metric.Name)
			continue
		}
		if _, factor := format.Base(want.SampleType[i].Unit); metric.RawBefore != totals[i]*factor || metric.RawAfter != totals[i]*factor {
			t.Errorf("compared: the totals of %s are %d and %d, want %d times %d", metric.Name, metric.RawBefore, metric.RawAfter, factor, totals[i])
		}
	}

	shown := page(t, h, "/profiles")
	m := regexp.MustCompile(`href="(/profiles\.pb\.gz[^"]*)"`).FindStringSubmatch(shown)
	if m == nil {
		t.Fatalf("no download:\n%s", shown)
	}
	got, err := profile.Parse(get(h, html.UnescapeString(m[1])).Body)
	if err != nil {
		t.Fatal(err)
	}
	equal("the download", got)
	for i, st := range want.SampleType {
		of := page(t, h, strings.Replace(html.UnescapeString(m[1]), ".pb.gz?", "?", 1)+"&"+url.Values{"sample": {st.Type}}.Encode())
		shows(t, of, `<h2 id="flame-title">`+format.Value(totals[i], st.Unit)+" of ",
			`sample type <code>`+html.EscapeString(format.Clean(st.Type, 100))+`</code>`)
	}
	shows(t, shown, `sample type <code>`+html.EscapeString(format.Clean(want.SampleType[profiles.DefaultSampleIndex(want)].Type, 100))+`</code>`)
}

// ofFile returns the only window of a file.
func ofFile(t *testing.T, file string) iter.Seq2[profiles.Window, error] {
	t.Helper()
	entries, damaged, err := profiles.Find(t.Context(), profiles.Query{}, file)
	if err != nil || len(damaged) > 0 {
		t.Fatal(err, damaged)
	}
	return profiles.Read(t.Context(), entries)
}

// TestForeignDirectories: two directories of another tool are compared by the link that the page has, though each has the
// name of its directory as its service.
func TestForeignDirectories(t *testing.T) {
	dir := fixture.TwoVersions(t)
	base, after := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	h := pages(t, open(t, after), Options{Base: open(t, base)})
	link := regexpOf(t, page(t, h, "/profiles"), `href="(/compare\?[^"]*what=directories[^"]*)"`)
	shows(t, page(t, h, link), "CPU · before <b>66.7 ms/s</b> · after <b>6.69 ms/s</b>", "6 windows before, 6 after", "main.slow")
}

// TestDifferenceIsShownAsOne: a profile that is itself a difference has both signs on its page.
func TestDifferenceIsShownAsOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "heap.pb.gz")
	fixture.WriteForeign(t, path, fixture.Profile(fixture.Began, 0, "inuse_space", "bytes", nil,
		fixture.Sample("main.main;main.shrank", -6<<20, ""), fixture.Sample("main.main;main.grew", 1<<20, "")))
	shows(t, page(t, pages(t, open(t, path), Options{}), "/profiles"), "-5 MiB of memory", "the profile is a difference",
		"main.shrank: before 6 MiB, after 0 B, −6 MiB", "main.grew: before 0 B, after 1 MiB, &#43;1 MiB", "all: before 6 MiB, after 1 MiB")
}

// TestDifferencesAreCompared: of profiles that are differences themselves, what became less stands against what became more.
func TestDifferencesAreCompared(t *testing.T) {
	dir := t.TempDir()
	for i, grew := range []int64{1 << 20, 3 << 20} {
		p := fixture.Profile(fixture.Began.Add(time.Duration(i)*time.Minute), 10*time.Second, "alloc_space", "bytes", nil,
			fixture.Sample("main.main;main.shrank", -6<<20*int64(i+1), ""), fixture.Sample("main.main;main.grew", grew, ""))
		fixture.WriteForeign(t, filepath.Join(dir, []string{"before", "after"}[i], "heap.pb.gz"), p)
	}
	h := pages(t, open(t, dir), Options{})
	link := regexpOf(t, page(t, h, "/compare"), `href="(/compare\?[^"]*what=versions[^"]*)">`)
	shows(t, page(t, h, link), "before <b>-512 KiB/s</b> · after <b>-922 KiB/s</b>", "the profiles are differences",
		"main.shrank: before 6 MiB, after 0 B, −6 MiB", "main.grew: before 0 B, after 2 MiB, &#43;2 MiB")
}

// TestNoTimeIsShownAsNone: of a profile without a time, and of its comparison, no time is shown.
func TestNoTimeIsShownAsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cpu.pb.gz")
	fixture.WriteForeign(t, path, unusual()["no-time.pb.gz"])
	shown := page(t, pages(t, open(t, path), Options{}), "/profiles")
	shows(t, shown, "1 window · sample type", ">no time</a>")
	report, err := compare.Compare(t.Context(), ofFile(t, path), ofFile(t, path), compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var text, js bytes.Buffer
	if err := errors.Join(report.WriteHTML(&text, 10), report.WriteJSON(&js)); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{regexp.MustCompile(`href="[^"]*"|<pre>.*</pre>`).ReplaceAllString(shown, ""), text.String(), js.String()} {
		if strings.Contains(out, "1970") || strings.Contains(out, "0001-01-01") {
			t.Errorf("a time is shown:\n%s", out)
		}
	}
}
