//go:build !compose

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"spanflame/internal/wallprofile"
	"spanflame/viewer"
	"spanflame/viewer/source"
)

// picturesVariable names a directory: screenshots are kept there. Those of the README are made with
// SPANFLAME_PICTURES=docs/pictures.
const picturesVariable = "SPANFLAME_PICTURES"

// browser is a real Chromium. What its pages log as an error, ask of another host, or open as a dialogue fails
// the test.
type browser struct {
	context.Context
	t *testing.T
}

func newBrowser(t *testing.T, home string) *browser {
	t.Helper()
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		t.Skip("there is no Chromium in PATH: install it, on Debian with: apt-get install -y chromium")
	}
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(program), chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1280, 1000), chromedp.WSURLReadTimeout(patience),
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("hide-scrollbars", true), chromedp.Flag("disable-dev-shm-usage", true),
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{ctx, t}
	own, err := url.Parse(home)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // events come on another goroutine
	err = chromedp.Listen(ctx, func(ev any) {
		mu.Lock()
		defer mu.Unlock()
		switch ev := ev.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("a script failed: %v", ev.ExceptionDetails)
		case *runtime.EventConsoleAPICalled:
			if ev.Type == "error" || ev.Type == "assert" {
				t.Errorf("console: %v", ev.Args)
			}
		case *log.EventEntryAdded:
			if ev.Entry.Level == log.EntryLevelError || ev.Entry.Level == log.EntryLevelWarning {
				t.Errorf("console: %s %s (%s)", ev.Entry.Level, ev.Entry.Text, ev.Entry.URL)
			}
		case *network.EventRequestWillBeSent:
			if u, err := url.Parse(ev.Request.URL); err != nil || u.Scheme != "data" && u.Host != own.Host {
				t.Errorf("a page asked for %s", ev.Request.URL)
			}
		case *page.EventJavascriptDialogOpening:
			t.Errorf("a page opened a dialogue: %s", ev.Message)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	call(b, log.Enable, cdp.Empty{})
	call(b, network.Enable, network.EnableParams{})
	call(b, page.Enable, page.EnableParams{})
	call(b, runtime.Enable, cdp.Empty{})
	return b
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// call sends a command of the browser's protocol.
func call[P, R any](b *browser, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	r, err := chromedp.Call(b, command, params)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// scheme makes the pages light or dark.
func (b *browser) scheme(value string) {
	b.t.Helper()
	call(
		b, emulation.SetEmulatedMedia,
		emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: value}}},
	)
}

// open goes to an address and waits until the page is there.
func (b *browser) open(url string) {
	b.t.Helper()
	b.do(chromedp.Navigate(url), chromedp.WaitReady(chromedp.CSS("body")))
}

// eval returns what an expression says.
func eval[T any](b *browser, expression string) T {
	b.t.Helper()
	v, err := chromedp.Run(b, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// tab moves the focus by the Tab key until it is on what the selector means.
func (b *browser) tab(selector string) {
	b.t.Helper()
	for range 300 {
		b.do(chromedp.KeyEvent(kb.Tab))
		if eval[bool](b, fmt.Sprintf("document.activeElement.matches(%q)", selector)) {
			return
		}
	}
	b.t.Fatalf("the Tab key does not reach %s on %s", selector, eval[string](b, "location.href"))
}

// enter presses the Enter key and waits until another page is there that has the text.
func (b *browser) enter(text string) {
	b.t.Helper()
	before := eval[float64](b, "performance.timeOrigin")
	b.do(chromedp.KeyEvent(kb.Enter))
	b.until(
		fmt.Sprintf("performance.timeOrigin != %f && document.readyState == 'complete' && document.documentElement.textContent.includes(%q)", before, text),
	)
}

// until waits for a condition. Between two pages there is none to ask.
func (b *browser) until(condition string) {
	b.t.Helper()
	eventually(b.t, condition, func() error {
		ok, err := chromedp.Run(b, chromedp.Evaluate[bool](condition))
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("not so on a page that says %q", eval[string](b, "document.body?.innerText.slice(0, 2000) ?? ''"))
		}
		return nil
	})
}

// says fails unless the page has the text.
func (b *browser) says(text ...string) {
	b.t.Helper()
	all := eval[string](b, "document.documentElement.textContent")
	for _, want := range text {
		if !strings.Contains(all, want) {
			b.t.Errorf("%s does not say %q:\n%s", eval[string](b, "location.href"), want, all)
		}
	}
}

// picture keeps a screenshot of the page from its top to the end of what the selector means.
func (b *browser) picture(name, from, to string) {
	b.t.Helper()
	dir := os.Getenv(picturesVariable)
	if dir == "" {
		dir = b.t.TempDir()
	} else if !filepath.IsAbs(dir) {
		dir = filepath.Join("..", dir) // tests run in their package's directory
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	clip := eval[page.Viewport](b, fmt.Sprintf(`(() => {
		const a = document.querySelector(%q).getBoundingClientRect(), b = document.querySelector(%q).getBoundingClientRect();
		return {x: 0, y: Math.max(0, a.top + scrollY - 8), width: document.documentElement.clientWidth, height: b.bottom - a.top + 12, scale: 1}; })()`, from, to))
	beyond := true
	png := call(b, page.CaptureScreenshot, page.CaptureScreenshotParams{Clip: &clip, CaptureBeyondViewport: &beyond}).Data
	if len(png) < 1000 {
		b.t.Errorf("the picture %s has %d bytes", name, len(png))
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// TestBrowserOpensTheSlowestTrace is the user's way from the slowest trace to the function that made it wait,
// by keyboard alone.
func TestBrowserOpensTheSlowestTrace(t *testing.T) {
	v := view(t)
	b := newBrowser(t, v.directory)
	b.scheme("light")
	b.open(v.directory)
	b.open(v.directory + "/?name=load/lock") // other requests may be slower on a busy machine
	b.tab("ol.traces a")
	b.enter("Flame graph of GET /load/lock")
	b.says("waiting for a mutex in workload.(*contendedLock).wait")
	guilty := `[...document.querySelectorAll(".flame a")].filter(a => a.textContent.includes(%q)).length > 0`
	for _, frame := range []string{"workload.(*contendedLock).wait", "[waiting: mutex]"} {
		if !eval[bool](b, fmt.Sprintf(guilty, frame)) {
			t.Errorf("%s is not in the flame graph", frame)
		}
	}

	// A frame is a link that zooms to it.
	b.tab(`.flame a[aria-label*="contendedLock"]`)
	b.enter("Zoomed to")
	b.tab(".zoomed a")
	b.enter("Flame graph of GET /load/lock")

	// The same in pprof, and back, without a stop at each frame.
	b.tab(`a.skip.here`)
	b.do(chromedp.KeyEvent(kb.Enter), chromedp.KeyEvent(kb.Tab))
	if eval[bool](b, `document.activeElement.closest(".flame") != null`) {
		t.Error("the link to skip the frames leads into them")
	}
	b.tab(`a.button[href$="/flamegraph"]`)
	b.enter("back to the trace")
	b.until(`[...document.querySelectorAll("#stack-chart *")].some(e => e.textContent.includes("contendedLock"))`)
	if hidden := eval[bool](b, `getComputedStyle(document.querySelector("#config")).display == "none"`); !hidden {
		t.Error("pprof's menu that writes the user's settings is shown")
	}
	b.tab("#spanflame a")
	b.enter("Flame graph of GET /load/lock")

	// What pprof draws by Graphviz, and its table.
	for _, name := range []string{"graph", "top", "peek?f=contendedLock"} {
		if _, err := exec.LookPath("dot"); err != nil && name == "graph" {
			t.Log("Graphviz is missing: pprof's graph is not opened")
			continue
		}
		b.open(fmt.Sprintf("%s%s/span/%s/wall/%s", v.directory, viewer.TracePath(v.lock.TraceID), v.lock.ID, name))
		b.until(`document.body.textContent.includes("contendedLock")`)
	}

	// A request that waits for another one.
	b.open(v.directory + viewer.SpanPath(v.prices.TraceID, v.prices.ID))
	b.says("waiting for an RWMutex in workload.(*priceBook).read", "held by POST /api/report", "reportHoldingLock")
	b.picture("waiting-span", "header.site", "svg.flame")

	// A request across both services, which computes.
	b.open(v.directory + viewer.SpanPath(v.cart.TraceID, v.cart.ID))
	b.says("inventory", "workload.bestOffer", "database_save_transaction")
	b.picture("trace", "header.site", "ul.legend")

	// One that waits for the other service.
	b.open(v.directory + viewer.TracePath(v.report.TraceID))
	b.says("What decided how long it took", "in workload.askWarehouse")
	b.picture("critical-path", "#path", "#path ~ table")
	b.open(v.directory + viewer.TracePath(v.report.TraceID) + "?whole=1")
	b.says(" of inventory", "workload.askWarehouse")
	b.picture("whole-trace", "#flame", "svg.flame")

	// Two spans compared, typed into the form.
	b.open(v.directory + "/compare")
	b.tab(`input[name="a"]`)
	b.do(chromedp.KeyEvent(v.sleep.TraceID + "/" + v.sleep.ID))
	b.tab(`input[name="b"]`)
	b.do(chromedp.KeyEvent(v.lock.TraceID + "/" + v.lock.ID))
	b.tab(`button`)
	b.enter("Largest differences")
	b.says("workload.(*contendedLock).wait", "[waiting: sleep]")
	b.picture("difference", "header.site", "svg.flame")
	b.tab(`.flame a[aria-label*="contendedLock"]`)
	b.enter("Zoomed to")
	b.tab(`a.button`)
	b.enter("back to the comparison")

	// Two spans of a name compared, without typing anything.
	b.open(v.directory + "/compare")
	b.tab(`a[href^="/compare?a="]`)
	b.enter("Say which span is the one after")
	b.tab(`a[href*="&b="]`)
	b.enter("Largest differences")

	// A service's own profiles, and one of them alone.
	b.open(v.directory + "/profiles?service=storefront&type=cpu")
	b.tab(`.flame a[aria-label*="priceBasket"]`)
	b.enter("Zoomed to")
	b.tab(`section[aria-labelledby="windows"] a`)
	b.enter("1 window from")

	b.open(v.directory + "/names")
	b.says("GET /load/lock")
	b.open(v.directory + "/memory?service=storefront")
	b.says("per hour")
	b.until(`document.querySelector("img.plot").complete && document.querySelector("img.plot").naturalWidth > 0`)
}

func TestBrowserDarkAndNarrow(t *testing.T) {
	v := view(t)
	b := newBrowser(t, v.directory)
	const colour = `getComputedStyle(document.body).backgroundColor`
	scheme := func(value string) string {
		b.scheme(value)
		b.open(v.directory)
		return eval[string](b, colour)
	}
	if light, dark := scheme("light"), scheme("dark"); light == dark {
		t.Errorf("the page is %s, light and dark", light)
	}
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: 360, Height: 700, DeviceScaleFactor: 2, Mobile: true})
	for _, path := range []string{
		"/", viewer.SpanPath(v.cart.TraceID, v.cart.ID), "/names",
		"/compare?a=" + v.cart.TraceID + "/" + v.cart.ID + "&b=" + v.lock.TraceID + "/" + v.lock.ID,
		"/memory?service=storefront", "/profiles?service=storefront", "/compare",
		"/name?" + url.Values{"service": {"storefront"}, "name": {"GET /api/checkout"}}.Encode(),
	} {
		b.open(v.directory + path)
		if width := eval[int](b, "document.documentElement.scrollWidth"); width > 360 {
			t.Errorf("%s is %d pixels wide on a phone of 360", path, width)
		}
	}
}

// TestBrowserShowsEachProblem: forty traces of one problem do not push the others off the page, and each opens onto its traces by
// the keyboard.
func TestBrowserShowsEachProblem(t *testing.T) {
	dir := t.TempDir()
	for n := range 49 {
		saveHostile(t, dir, byte(n+1), fmt.Sprintf("problem %c", 'A'+max(0, n-39)))
	}
	b, home := browseDirectory(t, dir)
	b.open(home)
	if n := eval[int](b, `document.querySelectorAll("ol.problems > li").length`); n != 10 {
		t.Errorf("%d rows, want one for each of 10 problems", n)
	}
	if y := eval[float64](b, `document.querySelectorAll("ol.problems > li")[9].getBoundingClientRect().bottom`); y > 1500 {
		t.Errorf("the last of 10 problems ends at %.0f pixels of the page", y)
	}
	b.says("problem A", "problem J", "40 × · median 1 s")
	b.tab("ol.problems .also a")
	b.enter("40 traces, 40 s in all")
	b.tab("ol.traces a")
	b.enter("Flame graph of problem A")
}

func TestBrowserShowsHostileNamesAsText(t *testing.T) {
	dir := t.TempDir()
	names := []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `'-alert(1)-'`, "two\nlines\r\n",
		"\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd", strings.Repeat("long ", 2000),
	}
	var paths []string
	for i, name := range names {
		paths = append(paths, saveHostile(t, dir, byte(i+1), name)...)
	}
	b, home := browseDirectory(t, dir)
	for _, path := range append(paths, "/", "/names", "/profiles", "/compare", "/memory") {
		b.open(home + path)
		if strings.Contains(path, "/wall/") {
			b.until(`document.body.textContent.includes("back to the trace")`)
			continue
		}
		if n := eval[int](b, `document.querySelectorAll("script, [onerror], img[src=x]").length`); n > 0 {
			t.Errorf("%s: %d elements come from a name", path, n)
		}
	}
	b.open(home)
	b.says(names[0], names[1]) // as text
}

// browseDirectory serves the pages over a directory, and returns a browser and their address.
func browseDirectory(t *testing.T, dir string) (b *browser, home string) {
	t.Helper()
	from, err := source.OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Close() })
	home = servePages(t, from)
	return newBrowser(t, home), home
}

// saveHostile saves a trace whose service, span, attribute, functions and diagnosis have the name, and returns its pages.
func saveHostile(t *testing.T, dir string, n byte, name string) []string {
	t.Helper()
	start := time.Now().Add(-time.Minute)
	traceID, spanID := bytes.Repeat([]byte{n}, 16), bytes.Repeat([]byte{n}, 8)
	id, trace := fmt.Sprintf("%x", spanID), fmt.Sprintf("%x", traceID)
	saveSpans(t, dir, name, &tracepb.Span{
		TraceId: traceID, SpanId: spanID, Name: name, StartTimeUnixNano: uint64(start.UnixNano()),
		EndTimeUnixNano: uint64(start.Add(time.Second).UnixNano()),
		Attributes:      []*commonpb.KeyValue{{Key: wallprofile.ProfileIDAttribute, Value: text(id)}, {Key: name, Value: text(name)}},
		Status:          &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: name},
		Events:          []*tracepb.Span_Event{{Name: name, TimeUnixNano: uint64(start.UnixNano())}},
	})
	saveWall(t, dir, name, start, n, map[string]time.Duration{"span: " + name + ";" + name + ";[waiting: " + name + "]": time.Second},
		fmt.Sprintf("span_id=%s 1000 ms %s: 1000 ms (100 %%) waiting: %s in %s", id, name, name, name))
	wall := viewer.TracePath(trace) + "/span/" + id + "/wall/"
	return []string{
		viewer.SpanPath(trace, id), wall + "flamegraph", wall + "top", wall + "peek?f=.",
		"/memory?" + url.Values{"service": {name[:min(len(name), 2000)]}}.Encode(),
		"/?" + url.Values{"name": {name[:min(len(name), 2000)]}}.Encode(),
	}
}
