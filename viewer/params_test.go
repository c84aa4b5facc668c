package viewer

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"spanflame/internal/format"
	"spanflame/viewer/internal/fixture"
)

func TestParseTime(t *testing.T) {
	now := fixture.Began
	for v, want := range map[string]time.Time{
		"":                          {},
		"2026-01-02T15:04:05Z":      fixture.Began,
		"2026-01-02T16:04:05+01:00": fixture.Began,
		"2026-01-02 15:04:05":       fixture.Began,
		"2026-01-02 15:04:05 UTC":   fixture.Began,
		" 2026-01-02T15:04:05 ":     fixture.Began,
		"15m":                       fixture.Began.Add(-15 * time.Minute),
		"0s":                        fixture.Began,
	} {
		if got, err := parseTime(v, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", v, got, err, want)
		}
	}
	for _, v := range []string{"now", "15", "-15m", "200000h", "1969-12-31T23:59:59Z", "2262-01-01T00:00:00Z", "15:04"} {
		if got, err := parseTime(v, now); err == nil {
			t.Errorf("%q: %v, want an error", v, got)
		}
	}
	if got, err := parseTime("15m", time.Time{}); err == nil {
		t.Errorf("how long ago, where there is no now: %v", got)
	}
}

// On request the pages have local times, with their offset, which are understood where a time is entered.
func TestLocalTime(t *testing.T) {
	d := fixture.Shop(t)
	h := pages(t, open(t, d.Dir), Options{Location: time.FixedZone("", 3600)})
	tr := page(t, h, rootPath())
	shows(t, tr, `<time datetime="2026-01-02T15:04:05Z">2026-01-02 16:04:05 &#43;01:00</time>`)
	const local = "2026-01-02 16:04:05 +01:00"
	shows(t, page(t, h, "/profiles?service=storefront&type=wall"), "from <b>2026-01-02 16:04:05 &#43;01:00</b> to <b>2026-01-02 16:")
	shows(t, page(t, h, "/"), "when the traces of a row began, from 2026-01-02 16:04:05 &#43;01:00 to 2026-01-02 16:")
	shows(t, page(t, pages(t, open(t, d.Dir), Options{}), "/"), "began, from 2026-01-02 15:04:05 to 2026-01-02 15:04:05 UTC.")
	if got, err := parseTime(local, time.Time{}); err != nil || !got.Equal(fixture.Began) {
		t.Errorf("%s is %v, %v", local, got, err)
	}
	if got := (period{from: fixture.Began}).words(zone{time.FixedZone("", 3600)}); got != "since "+local {
		t.Errorf("in words %s", got)
	}
}

func TestPeriodInWords(t *testing.T) {
	for want, p := range map[string]period{
		"at any time": {}, "since 2026-01-02 15:04:05": {from: fixture.Began}, "until 2026-01-02 15:04:05": {to: fixture.Began},
		"from 2026-01-02 15:04:05 to 2026-01-02 15:05:05": {from: fixture.Began, to: fixture.Began.Add(time.Minute)},
	} {
		if got := p.words(zone{}); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain text": "plain text", "שלום": "שלום", "a\nb\x00": `a\x0ab\x00`, "\u202eabc": `\u202eabc`, "\u2028": `\u2028`,
		"123456789012": "1234567890…", "\xff": "\ufffd",
	} {
		if got := format.Clean(in, 10); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{"/a/b.pb.gz": "/a/b.pb.gz", "a b": "'a b'", "it's": `'it'\''s'`, "": "''", "$(x)": "'$(x)'"} {
		if got := quoteShell(in); got != want {
			t.Errorf("quoteShell(%q) = %s, want %s", in, got, want)
		}
	}
}

// FuzzAddress asks for every page with any parameters: an address never makes the pages fail.
func FuzzAddress(f *testing.F) {
	d := fixture.Shop(f)
	h := pages(f, open(f, d.Dir), Options{Base: open(f, d.Dir)})
	for _, seed := range []string{
		"/?service=storefront&name=pricing&min=10ms&last=15m", "/?from=2026-01-02T15:04&to=2026-01-02T15:04:05Z",
		"/?show=traces&without=a,b", "/?problem=0123456789abcdef", "/waits?service=storefront&last=1h",
		rootPath() + "?span=" + fixture.SpanID("root") + "&type=cpu&frame=3",
		wallPath() + "/flamegraph?f=main&si=wall", wallPath() + "/top?n=1", wallPath() + "/peek?f=(",
		wallPath() + ".pb.gz", "/names?last=1h", "/name?service=storefront&name=pricing&part=slow&frame=9",
		"/compare?what=times&service=storefront&type=cpu&afrom=2026-01-02T15:04:05Z&blast=1h",
		"/compare?a=" + fixture.TraceID("t") + "/" + fixture.SpanID("root"), "/memory?service=storefront&last=1h",
		"/memory/plot.svg?service=storefront",
		"/flame/" + encodeSpec(
			url.Values{"kind": {"memory"}, "service": {"storefront"}, "afrom": {"2026-01-02T15:04:05Z"}},
		) + "/top", "/flame/" + encodeSpec(url.Values{"kind": {"name"}}) + "/flamegraph", "/trace/%2e%2e/x",
		"/profiles?service=storefront&type=memory&version=1&last=24h&frame=2",
		"/profiles.pb.gz?service=storefront&from=2026-01-02T15:04:05Z",
		"/compare?what=versions&service=storefront&aversion=1&bversion=2&frame=1",
		"/flame/" + encodeSpec(
			url.Values{"kind": {"profiles"}, "service": {"storefront"}, "type": {"cpu"}},
		) + "/top", "/name?service=storefront&name=pricing&dframe=2", "/memory?service=storefront&frame=1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, address string) {
		u, err := url.ParseRequestURI(address)
		if err != nil || !strings.HasPrefix(address, "/") || u.Host != "" || strings.Contains(u.Path, "/graph") { // which runs another program
			return
		}
		r := httptest.NewRequest(http.MethodGet, "http://localhost/", nil)
		r.URL, r.RequestURI = u, address
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Errorf("%q: status %d: %s", address, w.Code, w.Body)
		}
	})
}
