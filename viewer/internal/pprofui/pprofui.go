// Package pprofui serves the web interface of google/pprof for one profile or for the difference of two, without what
// reads files, runs programs or writes settings. The pages of the viewer link to it. It is not for profiles by name: it
// is given them.
package pprofui

import (
	"bytes"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"html"
	"html/template"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"

	"spanflame/internal/format"

	"github.com/google/pprof/driver"
	"github.com/google/pprof/profile"
)

// pages are the pages of pprof's web interface that are served. The others write the user's settings (saveconfig,
// deleteconfig), or open files that the profile names and run tools on them (source, disasm), which a profile from
// elsewhere must not cause.
var pages = map[string]bool{
	"/": true, "/flamegraph": true, "/top": true, "/graph": true, "/peek": true,
}

// ErrNoPage means that there is no such page.
var ErrNoPage = errors.New("there is no such page of pprof here")

// UI is pprof's web interface for one profile.
type UI struct{ handlers map[string]http.Handler }

// maxName limits the names of functions on pprof's pages, in runes.
const maxName = 1_000

// mounting serialises the calls of the driver, whose flags set a configuration that is global.
var mounting sync.Mutex

// New returns the web interface for p, as a difference from base unless base is nil. It changes both, which must not be
// used any more.
func New(p, base *profile.Profile) (*UI, error) {
	args := []string{"-http=localhost:0", "-no_browser", "-symbolize=none"}
	fetch := fetcher{"profile": harmless(p)}
	if base != nil {
		args = append(args, "-diff_base=base")
		fetch["base"] = harmless(base)
	}
	u := &UI{handlers: make(map[string]http.Handler)}
	said := &messages{}
	mounting.Lock()
	defer mounting.Unlock()
	err := driver.PProf(&driver.Options{
		Flagset: &flags{flag.NewFlagSet("pprof", flag.ContinueOnError), append(args, "profile")},
		Fetch:   fetch,
		Obj:     noObjects{},
		UI:      said,
		HTTPServer: func(args *driver.HTTPServerArgs) error {
			for path, h := range args.Handlers {
				if pages[path] {
					u.handlers[path] = h
				}
			}
			return nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("pprof's pages: %w", errors.Join(err, said.err()))
	}
	return u, nil
}

// harmless removes from a profile what pprof would act on rather than show (the files of its mappings, which it looks for,
// and the address of documentation), and from names what would deceive the eye.
func harmless(p *profile.Profile) *profile.Profile {
	for _, m := range p.Mapping {
		m.File, m.BuildID = "", ""
	}
	for _, f := range p.Function {
		f.Name, f.SystemName, f.Filename = format.Clean(f.Name, maxName), format.Clean(f.SystemName, maxName), format.Clean(f.Filename, maxName)
	}
	p.DocURL = ""
	return p
}

// fetcher hands out the profiles by name.
type fetcher map[string]*profile.Profile

func (f fetcher) Fetch(name string, _, _ time.Duration) (*profile.Profile, string, error) {
	p, ok := f[name]
	if !ok {
		return nil, "", fmt.Errorf("no profile %q", name)
	}
	return p, "", nil
}

// flags are pprof's flags, with arguments from here.
type flags struct {
	*flag.FlagSet
	args []string
}

func (f *flags) StringList(name, def, usage string) *[]*string {
	list := &[]*string{}
	f.Func(name, usage, func(v string) error {
		*list = append(*list, &v)
		return nil
	})
	return list
}

func (f *flags) ExtraUsage() string   { return "" }
func (f *flags) AddExtraUsage(string) {}

func (f *flags) Parse(func()) []string {
	f.SetOutput(io.Discard)
	if err := f.FlagSet.Parse(f.args); err != nil {
		return nil // pprof then reports that there is no profile
	}
	return f.Args()
}

// noObjects opens no file and disassembles nothing.
type noObjects struct{}

var errNoObjects = errors.New("program files are not opened")

func (noObjects) Open(string, uint64, uint64, uint64, string) (driver.ObjFile, error) {
	return nil, errNoObjects
}

func (noObjects) Disasm(string, uint64, uint64, bool) ([]driver.Inst, error) {
	return nil, errNoObjects
}

// messages keeps the errors that pprof prints in New; after that its pages show them.
type messages struct {
	mu   sync.Mutex
	said []string
}

func (*messages) ReadLine(string) (string, error) { return "", io.EOF }
func (*messages) Print(...any)                    {}
func (u *messages) PrintErr(args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.said) < 10 {
		u.said = append(u.said, strings.TrimSpace(fmt.Sprint(args...)))
	}
}
func (*messages) IsTerminal() bool                    { return false }
func (*messages) WantBrowser() bool                   { return false }
func (*messages) SetAutoComplete(func(string) string) {}

func (u *messages) err() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.said) == 0 {
		return nil
	}
	return errors.New(strings.Join(u.said, "; "))
}

// HasGraphviz reports whether pprof can draw graphs on this machine.
var HasGraphviz = sync.OnceValue(func() bool {
	_, err := exec.LookPath("dot")
	return err == nil
})

// bar is added to pprof's page: the way back. It is the only part that is not pprof's.
var bar = template.Must(template.New("bar").Parse(`<nav id="spanflame" aria-label="spanflame">
<a href="{{.Back}}">← {{.BackText}}</a> <span>{{.Title}}</span></nav>
<style nonce="{{.Nonce}}">
#spanflame{position:fixed;z-index:9;left:0;right:0;bottom:0;display:flex;gap:1em;padding:.5em 1em;
font:14px/1.4 system-ui,sans-serif;background:#20242b;color:#f3f4f6}
#spanflame a{color:#9fd0ff}#spanflame span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;unicode-bidi:isolate}
#config,#save-dialog,#delete-dialog,#list,#disasm,#action-source,#action-source-tab,#download,#action-title+hr{display:none!important}
{{if not .Graph}}#graphbtn{display:none!important}{{end}}
</style>`))

// Bar is the line that is added to pprof's page.
type Bar struct {
	Back, BackText string // where the page was opened from
	Title          string
}

// Tags of pprof's templates. Names of the profile are escaped in them, so these tags are not part of a name.
var (
	tagWithCode = regexp.MustCompile(`<(script|style)( type="text/css")?>`)
	title       = regexp.MustCompile(`<title>[^<]*</title>`)
	body        = []byte("<body>")
)

// Serve answers with one of pprof's pages. The scripts and styles of the page are allowed by a nonce, which this answer
// alone has, in an origin of its own, from which nothing can be sent anywhere. The error is ErrNoPage for a page that is
// not served.
func (u *UI) Serve(w http.ResponseWriter, r *http.Request, page string, b Bar) error {
	h := u.handlers[page]
	if h == nil || page == "/graph" && !HasGraphviz() {
		return ErrNoPage
	}
	answer := NewAnswer(make(http.Header))
	h.ServeHTTP(answer, r)
	header := w.Header()
	if to := answer.Header().Get("Location"); to != "" {
		header.Set("Location", to)
		w.WriteHeader(http.StatusFound) // a permanent redirect would be remembered by the browser
		return nil
	}
	if answer.Status != http.StatusOK || !strings.HasPrefix(answer.Header().Get("Content-Type"), "text/html") {
		header.Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(answer.Status)
		_, _ = w.Write(answer.Body.Bytes()) // a client that is gone need not have it
		return nil
	}
	nonce := rand.Text()
	var added bytes.Buffer
	if err := bar.Execute(&added, struct {
		Bar
		Nonce string
		Graph bool
	}{b, nonce, HasGraphviz()}); err != nil {
		return err
	}
	out := tagWithCode.ReplaceAll(answer.Body.Bytes(), []byte(`<$1 nonce="`+nonce+`">`))
	out = title.ReplaceAllLiteral(out, []byte("<title>"+html.EscapeString(b.Title)+"</title>"))
	out = bytes.Replace(out, body, append(body[:len(body):len(body)], added.Bytes()...), 1)
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", "sandbox allow-scripts allow-popups allow-top-navigation-by-user-activation; default-src 'none'; "+
		"script-src 'nonce-"+nonce+"'; style-src 'nonce-"+nonce+"'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	_, _ = w.Write(out) // a client that is gone need not have it
	return nil
}

// Answer is an [http.ResponseWriter] that keeps the answer.
type Answer struct {
	Status int
	Body   bytes.Buffer
	header http.Header
}

// NewAnswer returns an empty answer with status 200, whose header is this one.
func NewAnswer(header http.Header) *Answer { return &Answer{Status: http.StatusOK, header: header} }

// Header implements [http.ResponseWriter].
func (a *Answer) Header() http.Header { return a.header }

// WriteHeader implements [http.ResponseWriter].
func (a *Answer) WriteHeader(status int) { a.Status = status }

// Write implements [http.ResponseWriter].
func (a *Answer) Write(p []byte) (int, error) { return a.Body.Write(p) }
