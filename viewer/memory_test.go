package viewer

import (
	"html"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/viewer/internal/fixture"
)

func TestMemory(t *testing.T) {
	h := pages(t, open(t, fixture.Shop(t).Dir), Options{})
	got := page(t, h, "/memory")
	shows(t, got, "Memory of", "10 MiB", "13 MiB", "240 MiB per hour", "&#43;3 MiB", "main.leak", "/memory/plot.svg?service=storefront")
	if _, table, _ := strings.Cut(got, "Largest differences"); strings.Contains(table, "main.steady") {
		t.Error("a stack that did not grow is in the table")
	}
	shows(t, got, `class="more" href="/memory?service=storefront&amp;frame=`, `aria-label="main.leak: before 0 B, after 3 MiB, &#43;3 MiB"`,
		`class="same" href="/memory?service=storefront&amp;frame=`)
	shows(t, page(t, h, regexpOf(t, got, `href="(/memory[^"]*&amp;frame=\d+)#difference" aria-label="main.leak`)), "Zoomed to <bdi><code>main.leak")
	drawn := make(map[string]bool)
	for _, address := range regexp.MustCompile(`/memory/plot\.svg[^" ]*`).FindAllString(got, -1) {
		w := get(h, html.UnescapeString(address))
		svg := w.Body.String()
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "image/svg+xml" || !strings.Contains(svg, "<svg") {
			t.Errorf("%s: status %d, %s", address, w.Code, w.Header().Get("Content-Type"))
		}
		drawn[svg] = true
	}
	if len(drawn) != 2 {
		t.Errorf("%d different plots, want one on a light and one on a dark background", len(drawn))
	}
	shows(t, page(t, h, regexp.MustCompile(`/flame/[\w-]+/flamegraph`).FindString(got)), "main.leak", "back to memory")
	shows(t, page(t, h, "/memory?service=inventory"), "There are no profiles of a service &#34;inventory&#34;. There are of: storefront.")
	shows(t, page(t, h, "/memory?service=storefront&last=15m"), "There are fewer than two memory profiles")
}

// Two instances have windows at the same times: the memory of one is not growth of the other.
func TestMemoryIsOfOneInstance(t *testing.T) {
	d := fixture.New(t)
	for i, held := range []struct{ steady, leaking int64 }{{5 << 20, 10 << 20}, {5 << 20, 12 << 20}, {5 << 20, 14 << 20}} {
		for instance, bytes := range map[string]int64{"pod-1": held.steady, "pod-2": held.leaking} {
			start := fixture.Began.Add(time.Duration(i) * 15 * time.Second)
			d.Profile(record.Meta{
				Service: "storefront", Type: record.Memory, Start: start, End: start.Add(15 * time.Second),
				Labels: map[string]string{"service_instance_id": instance},
			}, "inuse_space", "bytes", fixture.Sample("main.main;main.hold", bytes, ""))
		}
	}
	h := pages(t, open(t, d.Dir), Options{})
	got := page(t, h, "/memory")
	shows(t, got, "<b>10 MiB</b>", "<b>14 MiB</b>", "pod-2", "&#43;4 MiB", "main.hold")
	shows(t, page(t, h, "/memory?instance=pod-1"), "<b>5 MiB</b>", "pod-1", "No stack grows like a leak", "/memory/plot.svg?instance=pod-1&amp;")
	shows(t, page(t, h, regexp.MustCompile(`/flame/[\w-]+/flamegraph`).FindString(got)), "main.hold")

	// Of all windows it is the mean of one, not their sum.
	shows(t, page(t, h, "/compare?what=times&type=memory&service=storefront&ato=2026-01-02T15:04:20Z&bfrom=2026-01-02T15:04:20Z"),
		"before <b>7.50 MiB</b>", "after <b>9 MiB</b>")
}

// A restart and another version are no growth, and no line connects what was before with what came after.
func TestMemoryAcrossARestart(t *testing.T) {
	for name, after := range map[string]struct {
		version string
		bytes   int64
	}{"a restart": {"1", 20 << 20}, "another version": {"2", 90 << 20}, "neither": {"1", 90 << 20}} {
		d := fixture.New(t)
		for i, bytes := range []int64{80 << 20, 100 << 20, after.bytes, after.bytes + 10<<20} {
			start := fixture.Began.Add(time.Duration(i) * time.Minute)
			m := record.Meta{Service: "shop", Type: record.Memory, Start: start, End: start.Add(time.Minute), Labels: map[string]string{record.VersionLabel: "1"}}
			if i > 1 {
				m.Labels[record.VersionLabel] = after.version
			}
			d.Profile(m, "inuse_space", "bytes", fixture.Sample("main.main;main.hold", bytes, ""))
		}
		h := pages(t, open(t, d.Dir), Options{})
		got := page(t, h, "/memory")
		svg := get(h, html.UnescapeString(regexpOf(t, got, `src="(/memory/plot\.svg[^"]*)"`))).Body.String()
		lines := strings.Count(svg, `stroke-width:2`)
		if name == "neither" {
			if shows(t, got, "from <b>80 MiB</b>"); strings.Contains(got, "growth is shown since then") || lines != 1 {
				t.Errorf("%s: the page has a restart, or %d lines", name, lines)
			}
			continue
		}
		shows(t, got, " by 2026-01-02 15:06:05", "growth is shown since then", "from <b>"+format.Bytes(after.bytes)+"</b>")
		if lines != 2 {
			t.Errorf("%s: %d lines, want one before and one after", name, lines)
		}
	}
}

func TestMemoryNamesTheLeak(t *testing.T) {
	d := fixture.New(t)
	for i := range 40 {
		start := fixture.Began.Add(time.Duration(i) * 15 * time.Second)
		m := record.Meta{
			Service: "storefront", Type: record.Memory, Start: start, End: start.Add(15 * time.Second),
			Labels: map[string]string{record.InstanceLabel: "pod-1&instance=2"},
		}
		d.Profile(m, "inuse_space", "bytes",
			fixture.Sample("main.main;main.same", 50<<20+fixture.Jitter(i), ""), fixture.Sample("main.main;main.leak", int64(i)<<20+fixture.Jitter(i), ""))
	}
	h := pages(t, open(t, d.Dir), Options{})
	got := page(t, h, "/memory?service=storefront")
	_, suspects, _ := strings.Cut(got, "Suspected leaks")
	suspects, _, _ = strings.Cut(suspects, "</table>")
	shows(t, suspects, "main.leak", "4 MiB")
	if strings.Contains(suspects, "main.same") {
		t.Errorf("a stack that did not grow is suspected:\n%s", suspects)
	}
	of := regexpOf(t, suspects, `href="([^"]*instance=[^"]*)"`)
	one := page(t, h, of)
	shows(t, one, "instance <bdi>pod-1&amp;instance=2</bdi>", "main.leak", `<input type="hidden" name="instance" value="pod-1&amp;instance=2">`)
	growth := page(t, h, regexp.MustCompile(`/flame/[\w-]+/flamegraph`).FindString(one))
	shows(t, page(t, h, regexpOf(t, growth, `href="(/memory[^"]*)"`)), "instance <bdi>pod-1&amp;instance=2</bdi>")
	shows(t, page(t, h, "/memory?service=storefront&instance=none"), "fewer than two memory profiles of the instance &#34;none&#34; of this service")

	shows(t, page(t, h, "/memory?service=storefront&to="+fixture.Began.Add(time.Minute).Format(time.RFC3339)), "No stack grows like a leak.")
}

// TestMemorySaysWhatMayBeChance has a stack that grew in 12 of 15 steps.
func TestMemorySaysWhatMayBeChance(t *testing.T) {
	d := fixture.New(t)
	held := int64(10 << 20)
	for i := range 16 {
		if held += 1 << 20; i == 4 || i == 8 || i == 12 {
			held -= 3 << 19
		}
		start := fixture.Began.Add(time.Duration(i) * 15 * time.Second)
		d.Profile(record.Meta{Service: "storefront", Type: record.Memory, Start: start, End: start.Add(15 * time.Second)}, "inuse_space", "bytes",
			fixture.Sample("main.main;main.hold", held, ""))
	}
	memory := page(t, pages(t, open(t, d.Dir), Options{}), "/memory?service=storefront")
	shows(t, memory, "No leak is certain yet.", "Inconclusive: needs more profiles")
	if _, after, _ := strings.Cut(memory, "Inconclusive"); !strings.Contains(after, "main.hold") || strings.Contains(rowOf(after, "main.hold"), "num more") {
		t.Errorf("the inconclusive stack is not in its section:\n%s", memory)
	}
}
