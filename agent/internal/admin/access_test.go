package admin

import (
	"net/http"
	"strings"
	"testing"
)

func TestHostNames(t *testing.T) {
	url := start(t, nil, func(o *ServerOptions) { o.Hosts = []string{"storefront", "Metrics.Example."} })
	for host, want := range map[string]int{
		"localhost": 200, "LOCALHOST:16060": 200, "localhost.": 200, "127.0.0.1": 200, "[::1]:16060": 200,
		"storefront": 200, "Storefront:16060": 200, "metrics.example": 200, "METRICS.example.": 200,
		"attacker.example": 421, "storefront.attacker.example": 421, "xstorefront": 421, "": 421,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		if req.Host = host; host == "" {
			req.Host = "."
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("host %q: %d, want %d", host, resp.StatusCode, want)
		}
	}
}

// TestPagesOfOtherSites checks that they cannot start what slows the process down.
func TestPagesOfOtherSites(t *testing.T) {
	url := start(t, nil)
	for _, test := range []struct {
		name    string
		headers []string
		refused bool
	}{
		{"another site", []string{"Sec-Fetch-Site", "cross-site"}, true},
		{"another port of this host", []string{"Sec-Fetch-Site", "same-site"}, true},
		{"a browser without Sec-Fetch-Site", []string{"Origin", "http://attacker.example"}, true},
		{"the index page", []string{"Sec-Fetch-Site", "same-origin"}, false},
		{"the address bar", []string{"Sec-Fetch-Site", "none"}, false},
		{"no browser", nil, false},
	} {
		for _, path := range []string{
			"/debug/pprof/trace?seconds=x", "/debug/pprof/profile?seconds=1", "/debug/pprof/heap?gc=1&debug=9", "/debug/pprof/goroutine?debug=1",
			"/debug/fgprof?seconds=x", "/debug/pprof/cmdline",
		} {
			status, _, body := get(t, url+path, test.headers...)
			if (status == http.StatusForbidden) != test.refused {
				t.Errorf("%s: %s: %d %q", test.name, path, status, body)
			}
		}
		for _, path := range []string{"/debug/pprof/", "/status", "/healthz"} { // they cost nothing, and links lead there
			if status, _, _ := get(t, url+path, test.headers...); status != 200 {
				t.Errorf("%s: %s: %d, want 200", test.name, path, status)
			}
		}
	}
}

func TestToken(t *testing.T) {
	url := start(t, func(o *Options) {
		o.Token = "secret"
		o.Metrics = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	})
	basic := func(password string) string {
		r, _ := http.NewRequest(http.MethodGet, url, nil)
		r.SetBasicAuth("any", password)
		return r.Header.Get("Authorization")
	}
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/metrics", "/status", "/nowhere"} {
		for header, allowed := range map[string]bool{
			"": false, "Bearer ": false, "Bearer wrong": false, "secret": false, "bearer": false, basic("wrong"): false, basic(""): false,
			"Bearer secret": true, basic("secret"): true,
		} {
			status, h, body := get(t, url+path, "Authorization", header)
			if (status != http.StatusUnauthorized) != allowed {
				t.Errorf("%s with %q: %d", path, header, status)
			}
			if !allowed && (len(h["Www-Authenticate"]) != 2 || strings.Contains(string(body), "secret")) {
				t.Errorf("%s with %q: %v %q", path, header, h, body)
			}
		}
	}
	for _, probe := range []string{"/healthz", "/readyz"} {
		if status, _, _ := get(t, url+probe); status != 200 {
			t.Errorf("%s without token: %d, want 200: probes have none", probe, status)
		}
	}
}

func TestNoProfiles(t *testing.T) {
	url := start(t, func(o *Options) {
		o.CPUProfile = nil
		o.Metrics = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	})
	for path, want := range map[string]int{
		"/debug/pprof/": 404, "/debug/pprof/heap": 404, "/debug/pprof/profile": 404, "/debug/fgprof": 404,
		"/metrics": 200, "/status": 200, "/healthz": 200, "/readyz": 200,
	} {
		if status, _, _ := get(t, url+path); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
}
