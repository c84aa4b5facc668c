// Package viewer serves web pages of traces and profiles: the slow traces, a trace with its spans, the flame graph of
// exactly one span, all spans of a name, the profiles of a service, comparisons, and memory over time with suspected leaks.
// The command `spanflame view` and the demo serve it.
//
// It shows a source of package viewer/source. It writes nothing, answers only GET and HEAD, accepts no file path from a
// request, and has no accounts: it is for one team, on loopback or behind a proxy that authenticates. It is not a general
// viewer of traces, and it stores nothing.
package viewer

import (
	"cmp"
	"context"
	"embed"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"spanflame/internal/redact"
	"spanflame/profiles"
	"spanflame/viewer/internal/pprofui"
	"spanflame/viewer/source"

	"github.com/google/pprof/profile"
	"golang.org/x/sync/singleflight"

	"spanflame/internal/format"
	"spanflame/profiles/why"
)

//go:embed assets
var assets embed.FS

// functions returns the functions of the templates.
func functions(z zone) template.FuncMap {
	return template.FuncMap{
		"clean": func(s string) string { return format.Clean(s, 160) },
		"count": format.Count,
		"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"clock": z.clock,
		"zone":  z.name,
	}
}

// zone is how the pages show times: in UTC, or in the zone of a location with its offset.
type zone struct{ location *time.Location }

// clock formats a time.
func (z zone) clock(t time.Time) string {
	switch {
	case !profiles.HasTime(t):
		return "no time"
	case z.location == nil:
		return format.Clock(t)
	}
	return z.in(t).Format(time.DateTime + " -07:00")
}

func (z zone) in(t time.Time) time.Time { return t.In(cmp.Or(z.location, time.UTC)) }

// name follows a formatted time where a page says that it is in UTC.
func (z zone) name() string {
	if z.location == nil {
		return " UTC"
	}
	return ""
}

// Limits of one request and of all.
const (
	maxURL        = 8 << 10          // bytes
	requestTime   = 20 * time.Second // of one request
	heavyAtOnce   = 4                // profiles being read or drawn
	pagesAtOnce   = 8                // pages being made
	keptProfiles  = 16
	keptSamples   = 200_000 // of a profile: a larger one is not kept
	keptMounts    = 8
	keptFor       = 30 * time.Second // as directories are written to
	keptDiagnoses = 10_000
)

// Options configures the pages. The zero value is for loopback.
type Options struct {
	// Hosts are the names and addresses, in addition to those of loopback, under which the pages are served. Requests for
	// others are refused, as a foreign site could otherwise read the pages through a name that resolves to this machine.
	Hosts []string
	// GrafanaURL is the address of a Grafana to link to, which has data sources with the UIDs tempo and pyroscope.
	GrafanaURL string
	// Base is another source that the page Compare can compare with; nil for none.
	Base source.Source
	// SlowSpan is the least duration of a request that is recorded, as set for the agents by SPANFLAME_SLOW_SPAN. Zero is
	// their default, 100 ms.
	SlowSpan time.Duration
	// Location is where the times of the pages are. Nil is UTC.
	Location *time.Location
	// Log receives the errors that are answered with status 500 or 502. Nil is slog.Default().
	Log *slog.Logger
}

// Validate returns the error for an option that [New] would not take.
func (o Options) Validate() error {
	_, err := o.grafana()
	return err
}

func (o Options) grafana() (*url.URL, error) {
	if o.GrafanaURL == "" {
		return nil, nil
	}
	u, err := url.Parse(o.GrafanaURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("the address of Grafana is %q: want http://HOST or https://HOST", redact.URL(o.GrafanaURL))
	}
	return u, nil
}

// server makes the pages.
type server struct {
	source  source.Source
	options Options
	zone    zone
	grafana *url.URL // nil for none
	pages   *template.Template

	making    chan struct{} // has a token for each page that is being made
	heavy     chan struct{} // has a token for each profile that is being read or drawn; a page that waits for one keeps its other token
	loading   singleflight.Group
	profiles  *cache[*profile.Profile]
	mounts    *cache[*pprofui.UI]
	diagnoses *cache[diagnosis]
	memories  *cache[[]source.MemoryPoint]
	compared  *cache[*comparisonResult]
	verdicts  *cache[*verdict] // also of comparisons that are too large to be kept
	wholes    *cache[*why.Trace]
}

// New returns the pages that show a source.
func New(from source.Source, o Options) (http.Handler, error) {
	s := &server{
		source: from, options: o, zone: zone{o.Location},
		making:    make(chan struct{}, pagesAtOnce),
		heavy:     make(chan struct{}, heavyAtOnce),
		profiles:  newCache[*profile.Profile](keptProfiles, keptFor),
		mounts:    newCache[*pprofui.UI](keptMounts, keptFor),
		diagnoses: newCache[diagnosis](keptDiagnoses, time.Hour),
		memories:  newCache[[]source.MemoryPoint](keptProfiles, keptFor),
		compared:  newCache[*comparisonResult](keptMounts, keptFor),
		verdicts:  newCache[*verdict](keptMounts, keptFor),
		wholes:    newCache[*why.Trace](keptMounts, keptFor),
	}
	if s.options.Log == nil {
		s.options.Log = slog.Default()
	}
	s.options.SlowSpan = cmp.Or(o.SlowSpan, defaultSlowSpan)
	var err error
	if s.grafana, err = o.grafana(); err != nil {
		return nil, err
	}
	if s.pages, err = template.New("").Funcs(functions(s.zone)).ParseFS(assets, "assets/*.html"); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page(s.slowTraces))
	mux.HandleFunc("GET /trace/{trace}", s.page(s.trace))
	mux.HandleFunc("GET /trace/{trace}/whole.pb.gz", s.page(s.wholeFile))
	mux.HandleFunc("GET /trace/{trace}/whole/{page...}", s.page(s.wholePprof))
	mux.HandleFunc("GET /trace/{trace}/span/{span}/{file}", s.page(s.download))
	mux.HandleFunc("GET /trace/{trace}/span/{span}/{type}/{page...}", s.page(s.spanPprof))
	mux.HandleFunc("GET /waits", s.page(s.waits))
	mux.HandleFunc("GET /incidents", s.page(s.incidents))
	mux.HandleFunc("GET /incidents/{folder}/{id}", s.page(s.incident))
	mux.HandleFunc("GET /incidents/{folder}/{id}/{entry...}", s.page(s.incidentEntry))
	mux.HandleFunc("GET /names", s.page(s.names))
	mux.HandleFunc("GET /name", s.page(s.name))
	mux.HandleFunc("GET /profiles", s.page(s.profilesPage))
	mux.HandleFunc("GET /profiles.pb.gz", s.page(s.profilesFile))
	mux.HandleFunc("GET /compare", s.page(s.compare))
	mux.HandleFunc("GET /memory", s.page(s.memory))
	mux.HandleFunc("GET /memory/plot.svg", s.page(s.memoryPlot))
	mux.HandleFunc("GET /flame/{spec}/{page...}", s.page(s.pprof))
	mux.HandleFunc("GET /style.css", s.asset("assets/style.css", "text/css; charset=utf-8"))
	mux.HandleFunc("GET /icon.svg", s.asset("assets/icon.svg", "image/svg+xml"))
	mux.HandleFunc("/", s.page(func(http.ResponseWriter, *http.Request) error {
		return refusal{http.StatusNotFound, "There is no such page."}
	}))
	return Guard(mux, o.Hosts), nil
}

// URL returns the address at which a browser on this machine finds the pages of a listener. An address that stands for all
// addresses of the machine becomes localhost.
func URL(listening net.Addr) string {
	if tcp, ok := listening.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return fmt.Sprintf("http://localhost:%d", tcp.Port)
	}
	return "http://" + listening.String()
}

// StartPath returns the path of the page to start with: the slow traces, or the profiles if the source has only these.
func StartPath(from source.Source) string {
	if d, ok := from.(*source.Directory); ok && d.Foreign() {
		return "/profiles"
	}
	return "/"
}

// TracePath returns the path of the page of a trace.
func TracePath(traceID string) string { return "/trace/" + url.PathEscape(traceID) }

// SpanPath returns the path of the page of a trace with the flame graph of one of its spans.
func SpanPath(traceID, spanID string) string {
	return TracePath(traceID) + "?span=" + url.QueryEscape(spanID) + "#flame"
}

// NamePath returns the path of the page of all spans of a service that have a name.
func NamePath(service, name string) string {
	return "/name?" + url.Values{"service": {service}, "name": {name}}.Encode()
}

// policy is the Content-Security-Policy of the pages: no scripts, and nothing from other sites.
const policy = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// Guard refuses requests that no page is for, and limits the time of the others. The pages are served under the names and
// addresses of loopback, and those of hosts.
func Guard(next http.Handler, hosts []string) http.Handler {
	named := make(map[string]bool)
	for _, h := range hosts {
		named[strings.ToLower(strings.Trim(h, "[]"))] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-cache")
		switch {
		case !known(r.Host, named):
			http.Error(
				w, "These pages are not served under this host name. Use the address that was printed, or allow the name with --host.",
				http.StatusMisdirectedRequest,
			)
			return
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "These pages can only be read.", http.StatusMethodNotAllowed)
			return
		case len(r.URL.RequestURI()) > maxURL:
			http.Error(w, fmt.Sprintf("The address is longer than %d bytes.", maxURL), http.StatusRequestURITooLong)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), requestTime)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// known reports whether a Host header names this server.
func known(host string, named map[string]bool) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	name = strings.ToLower(strings.Trim(name, "[]"))
	if name == "localhost" || named[name] {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}
