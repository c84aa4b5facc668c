package viewer

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/viewer/internal/fixture"
)

// Without a service in its address a page is of the service with the slowest request, or of the first if there are no traces.
func TestTheServiceToLookAt(t *testing.T) {
	d := fixture.Shop(t)
	d.Profile(
		record.Meta{Service: "aviary", Type: record.CPU, Start: fixture.Began, End: fixture.Began.Add(15 * time.Second)},
		"cpu", "nanoseconds", fixture.Sample("main.sing", 1e7, ""),
	)
	h := pages(t, open(t, d.Dir), Options{})
	for _, path := range []string{"/profiles", "/memory"} {
		shows(t, page(t, h, path), `of <bdi class="service">storefront</bdi>`)
	}
	quiet := fixture.New(t)
	for _, service := range []string{"zoo", "aviary"} {
		quiet.Profile(
			record.Meta{Service: service, Type: record.CPU, Start: fixture.Began, End: fixture.Began.Add(15 * time.Second)}, "cpu",
			"nanoseconds", fixture.Sample("main.sing", 1e7, ""),
		)
	}
	shows(t, page(t, pages(t, open(t, quiet.Dir), Options{}), "/profiles"), `of <bdi class="service">aviary</bdi>`)
}

func TestDamagedProfileIsPassedOverAndSaid(t *testing.T) {
	d := fixture.Shop(t)
	m := record.Meta{Service: "storefront", Type: record.Memory, Start: fixture.Began.Add(20 * time.Second), End: fixture.Began.Add(35 * time.Second)}
	path := filepath.Join(d.Dir, "profiles", filepath.FromSlash(m.SavedPath()))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("\x1f\x8bno profile"), 0o644); err != nil {
		t.Fatal(err)
	}
	h := pages(t, open(t, d.Dir), Options{})
	shows(t, page(t, h, "/memory?service=storefront"), "13 MiB", "main.leak", "left out: 1, such as "+path)
	shows(t, page(t, h, "/profiles?service=storefront&type=memory"), "left out: 1, such as "+path)
	shows(t, page(t, h, "/"), "Profiles that cannot be used and are left out: 1, such as "+path)
}

// A single window belongs to one instance, even if other instances have one at the same time.
func TestWindowOfOneInstance(t *testing.T) {
	d := fixture.New(t)
	for _, instance := range []string{"left", "right"} {
		d.Profile(record.Meta{
			Service: "shop", Type: record.CPU, Start: fixture.Began, End: fixture.Began.Add(15 * time.Second),
			Labels: map[string]string{record.InstanceLabel: instance},
		}, "cpu", "nanoseconds", fixture.Sample("main."+instance, 5e8, ""))
	}
	h := pages(t, open(t, d.Dir), Options{})
	all := page(t, h, "/profiles")
	shows(t, all, "main.left", "main.right", "2 windows")
	window := regexpOf(t, all, `<li><a href="(/profiles\?[^"]*instance=left[^"]*)"`)
	one := page(t, h, window)
	shows(t, one, "main.left", "1 window from", "<bdi>left</bdi>")
	if strings.Contains(one, "main.right") {
		t.Error("the window of one instance has the other's functions")
	}
	if p, err := profile.Parse(get(h, regexpOf(t, one, `href="(/profiles\.pb\.gz[^"]*)"`)).Body); err != nil || sum(p, 0) != 5e8 {
		t.Errorf("the download of one instance: %v, %v", p, err)
	}
}

// A page of profiles does not mention a span's own goroutine, even if all of the time belongs to other goroutines.
func TestProfilesOfOthersAlone(t *testing.T) {
	d := fixture.New(t)
	d.Wall("shop", 0, time.Second, fixture.Sample(wallprofile.Others+";main.help", 9e8, "root"))
	got := page(t, pages(t, open(t, d.Dir), Options{}), "/profiles?type=wall")
	shows(t, got, "There are no samples.", "Other goroutines that it started, in addition to its own time: 900 ms running on the CPU")
	if strings.Contains(got, "own goroutine") {
		t.Error("the page mentions a span's own goroutine")
	}
}

// The time range that is shown by default is not in the form, as another service has another.
func TestProfilesFormHasNoTimeUnasked(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 {
		fixture.Foreign(
			t, filepath.Join(dir, fmt.Sprintf("cpu-%d.pb.gz", i)), fixture.Began.Add(time.Duration(i)*24*time.Hour), "cpu",
			"nanoseconds", fixture.Sample("main.main", 5e8, ""),
		)
	}
	h := pages(t, open(t, dir), Options{})
	got := page(t, h, "/profiles")
	shows(t, got, "1 window from")
	if strings.Contains(got, `type="hidden" name="from"`) {
		t.Error("the form has a time that is not in the query")
	}
	shows(t, page(t, h, "/profiles?last="), "2 windows from")
}

// The sample of fast requests is not offered as the profiles of slow ones, of which there may be none.
func TestFastRequestsHaveNoPage(t *testing.T) {
	d := fixture.New(t)
	d.Profile(record.Meta{
		Service: "shop", Type: record.Wall, Start: fixture.Began, End: fixture.Began.Add(time.Second),
		Labels: map[string]string{wallprofile.SpanScope: wallprofile.ScopeFast},
	}, "wall", "nanoseconds", fixture.Sample("main.main;main.fast", 1e6, fixture.SpanID("a")))
	h := pages(t, open(t, d.Dir), Options{})
	if got := page(t, h, "/profiles?service=shop"); strings.Contains(got, "wall clock") || !strings.Contains(got, "There is no such profile of this service") {
		t.Errorf("the page is\n%s", got)
	}
	d.Wall("shop", 0, time.Second, fixture.Sample("main.main;main.slow", 1e9, fixture.SpanID("b")))
	got := page(t, pages(t, open(t, d.Dir), Options{}), "/profiles?service=shop")
	if shows(t, got, "main.slow"); strings.Contains(got, "main.fast") {
		t.Errorf("the page is\n%s", got)
	}
}
