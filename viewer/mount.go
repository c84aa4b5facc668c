package viewer

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

// pprofPages are those pages of pprof's web interface that are shown. The others write the user's
// configuration (saveconfig, deleteconfig) or open files that the profile names and run tools on them
// (source, disasm): a profile comes from elsewhere, so neither is for it to say.
var pprofPages = map[string]bool{
	"/": true, "/flamegraph": true, "/top": true, "/graph": true, "/peek": true,
}

// mount is pprof's web interface for one profile.
type mount struct{ pages map[string]http.Handler }

// maxName bounds the names of functions on pprof's pages, in runes.
const maxName = 1_000

// mounting serialises the calls of the driver: its flags set a configuration that all of them share.
var mounting sync.Mutex

// newMount makes the web interface for p, as a difference from base where base is not nil. It takes p and
// base over: they must not be used any more.
func newMount(p, base *profile.Profile) (*mount, error) {
	args := []string{"-http=localhost:0", "-no_browser", "-symbolize=none"}
	fetch := fetcher{"profile": harmless(p)}
	if base != nil {
		args = append(args, "-diff_base=base")
		fetch["base"] = harmless(base)
	}
	m := &mount{pages: make(map[string]http.Handler)}
	ui := &ui{}
	mounting.Lock()
	defer mounting.Unlock()
	err := driver.PProf(&driver.Options{
		Flagset: &flags{flag.NewFlagSet("pprof", flag.ContinueOnError), append(args, "profile")},
		Fetch:   fetch,
		Obj:     noObjects{},
		UI:      ui,
		HTTPServer: func(args *driver.HTTPServerArgs) error {
			for path, h := range args.Handlers {
				if pprofPages[path] {
					m.pages[path] = h
				}
			}
			return nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("pprof's pages: %w", errors.Join(err, ui.err()))
	}
	return m, nil
}

// harmless takes out of a profile what pprof would act on beside showing it (the files that its mappings name,
// which it looks for, and the address of a documentation), and from names what would deceive the eye.
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

// flags are pprof's flags with the arguments that are given here.
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
		return nil // pprof says that there is no profile
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

// ui keeps what pprof says while a profile is mounted; afterwards its pages say it themselves.
type ui struct {
	mu   sync.Mutex
	said []string
}

func (*ui) ReadLine(string) (string, error) { return "", io.EOF }
func (*ui) Print(...any)                    {}
func (u *ui) PrintErr(args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.said) < 10 {
		u.said = append(u.said, strings.TrimSpace(fmt.Sprint(args...)))
	}
}
func (*ui) IsTerminal() bool                    { return false }
func (*ui) WantBrowser() bool                   { return false }
func (*ui) SetAutoComplete(func(string) string) {}

func (u *ui) err() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.said) == 0 {
		return nil
	}
	return errors.New(strings.Join(u.said, "; "))
}

// hasGraphviz tells whether pprof can draw graphs here.
var hasGraphviz = sync.OnceValue(func() bool {
	_, err := exec.LookPath("dot")
	return err == nil
})

// bar is what stands above pprof's own page: the way back. It is the only part that is not pprof's.
var bar = template.Must(template.New("bar").Parse(`<nav id="spanflame" aria-label="spanflame">
<a href="{{.Back}}">← {{.BackText}}</a> <span>{{.Title}}</span></nav>
<style nonce="{{.Nonce}}">
#spanflame{position:fixed;z-index:9;left:0;right:0;bottom:0;display:flex;gap:1em;padding:.5em 1em;
font:14px/1.4 system-ui,sans-serif;background:#20242b;color:#f3f4f6}
#spanflame a{color:#9fd0ff}#spanflame span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;unicode-bidi:isolate}
#config,#save-dialog,#delete-dialog,#list,#disasm,#action-source,#action-source-tab,#download,#action-title+hr{display:none!important}
{{if not .Graph}}#graphbtn{display:none!important}{{end}}
</style>`))

// barData is what the bar says.
type barData struct {
	Back, BackText, Title string
	Nonce                 string
	Graph                 bool
}

// Tags of pprof's templates. Names from the profile are escaped there, so these cannot come from one.
var (
	tagWithCode = regexp.MustCompile(`<(script|style)( type="text/css")?>`)
	title       = regexp.MustCompile(`<title>[^<]*</title>`)
	body        = []byte("<body>")
)

// serve answers with one of pprof's pages. The page is pprof's: its scripts and styles are allowed to run by a
// nonce that this answer has, in a scope of its own, from which nothing can be sent anywhere.
func (m *mount) serve(w http.ResponseWriter, r *http.Request, page string, b barData) error {
	h := m.pages[page]
	if h == nil || page == "/graph" && !hasGraphviz() {
		return refusal{http.StatusNotFound, "There is no such page of pprof here."}
	}
	answer := &buffer{header: make(http.Header), status: http.StatusOK}
	h.ServeHTTP(answer, r)
	header := w.Header()
	if to := answer.header.Get("Location"); to != "" {
		header.Set("Location", to)
		w.WriteHeader(http.StatusFound) // not for ever: the browser would remember it
		return nil
	}
	if answer.status != http.StatusOK || !strings.HasPrefix(answer.header.Get("Content-Type"), "text/html") {
		header.Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(answer.status)
		_, _ = w.Write(answer.body.Bytes())
		return nil
	}
	b.Nonce, b.Graph = rand.Text(), hasGraphviz()
	var above bytes.Buffer
	if err := bar.Execute(&above, b); err != nil {
		return err
	}
	out := tagWithCode.ReplaceAll(answer.body.Bytes(), []byte(`<$1 nonce="`+b.Nonce+`">`))
	out = title.ReplaceAllLiteral(out, []byte("<title>"+html.EscapeString(b.Title)+"</title>"))
	out = bytes.Replace(out, body, append(body[:len(body):len(body)], above.Bytes()...), 1)
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", "sandbox allow-scripts allow-popups allow-top-navigation-by-user-activation; default-src 'none'; "+
		"script-src 'nonce-"+b.Nonce+"'; style-src 'nonce-"+b.Nonce+"'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	_, _ = w.Write(out) // who does not want it any more need not have it
	return nil
}

// buffer is a ResponseWriter that keeps the answer.
type buffer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (b *buffer) Header() http.Header         { return b.header }
func (b *buffer) WriteHeader(status int)      { b.status = status }
func (b *buffer) Write(p []byte) (int, error) { return b.body.Write(p) }
