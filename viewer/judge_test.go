package viewer

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"spanflame/internal/record"
)

// jitter is a small deviation that is another for each window.
func jitter(i int) int64 { return int64(i*37%10) * 100_000 }

func TestCompareTellsAChangeFromChance(t *testing.T) {
	d := newSaved(t)
	for i := range 16 {
		start := began.Add(time.Duration(i) * 15 * time.Second)
		slow := int64(1e9)
		if i >= 8 {
			slow = 15e8
		}
		d.profile(record.Meta{Service: "storefront", Type: record.CPU, Start: start, End: start.Add(15 * time.Second)}, "cpu", "nanoseconds",
			sample{"main.main;main.slow", slow + jitter(i), ""}, sample{"main.main;main.same", 2e9 + jitter(i+3), ""})
	}
	h := pages(t, d.open(), Options{})
	middle := began.Add(120 * time.Second).Format(time.RFC3339)
	q := url.Values{"what": {"times"}, "type": {"cpu"}, "service": {"storefront"}, "ato": {middle}, "bfrom": {middle}}
	got := page(t, h, "/compare?"+q.Encode())
	shows(t, got, "per second: 8 windows before, 8 after", "not more than chance")
	for name, want := range map[string]string{"main.slow": "+50", "main.same": "~"} {
		if row := rowOf(got, name); !strings.Contains(strings.ReplaceAll(row, "&#43;", "+"), want) {
			t.Errorf("%s: %q, want %s", name, row, want)
		}
	}

	q.Set("ato", began.Add(15*time.Second).Format(time.RFC3339))
	shows(t, page(t, h, "/compare?"+q.Encode()), "1 window before, 8 after", "is unknown: that takes four windows a side", "main.slow")
}

// rowOf is the first line of a table that has a function.
func rowOf(page, function string) string {
	for _, row := range strings.Split(page, "<tr>") {
		if strings.Contains(row, "<code>"+function+"<") {
			return row
		}
	}
	return ""
}

func TestMemoryNamesTheLeak(t *testing.T) {
	d := newSaved(t)
	for i := range 40 {
		start := began.Add(time.Duration(i) * 15 * time.Second)
		d.profile(record.Meta{Service: "storefront", Type: record.Memory, Start: start, End: start.Add(15 * time.Second)}, "inuse_space", "bytes",
			sample{"main.main;main.same", 50<<20 + jitter(i), ""}, sample{"main.main;main.leak", int64(i)<<20 + jitter(i), ""})
	}
	h := pages(t, d.open(), Options{})
	got := page(t, h, "/memory?service=storefront")
	_, suspects, _ := strings.Cut(got, "Suspected leaks")
	suspects, _, _ = strings.Cut(suspects, "</table>")
	shows(t, suspects, "main.leak", "4 MiB")
	if strings.Contains(suspects, "main.same") {
		t.Errorf("what did not grow is suspected:\n%s", suspects)
	}

	shows(t, page(t, h, "/memory?service=storefront&to="+began.Add(time.Minute).Format(time.RFC3339)), "No stack grows as a leak does.")
}

// TestMemorySaysWhatMayBeChance has a stack that grew in 12 of 15 steps.
func TestMemorySaysWhatMayBeChance(t *testing.T) {
	d := newSaved(t)
	held := int64(10 << 20)
	for i := range 16 {
		if held += 1 << 20; i == 4 || i == 8 || i == 12 {
			held -= 3 << 19
		}
		start := began.Add(time.Duration(i) * 15 * time.Second)
		d.profile(record.Meta{Service: "storefront", Type: record.Memory, Start: start, End: start.Add(15 * time.Second)}, "inuse_space", "bytes",
			sample{"main.main;main.hold", held, ""})
	}
	memory := page(t, pages(t, d.open(), Options{}), "/memory?service=storefront")
	shows(t, memory, "No stack grows as a leak does.", "Perhaps by chance: more profiles will tell")
	if _, after, _ := strings.Cut(memory, "Perhaps by chance"); !strings.Contains(after, "main.hold") || strings.Contains(rowOf(after, "main.hold"), "num more") {
		t.Errorf("what may be chance is not where it is said:\n%s", memory)
	}
}
