package viewer

import (
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"spanflame/viewer/internal/fixture"
	"spanflame/viewer/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open opens a directory or a file.
func open(t testing.TB, path string) *source.Directory {
	t.Helper()
	d, err := source.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// pages are the pages over a source. Whatever they log fails the test.
func pages(t testing.TB, from source.Source, o Options) http.Handler {
	t.Helper()
	o.Log = slog.New(slog.NewTextHandler(failing{t}, nil))
	h, err := New(from, o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

type failing struct{ t testing.TB }

func (f failing) Write(b []byte) (int, error) {
	f.t.Errorf("logged: %s", b)
	return len(b), nil
}

var _ io.Writer = failing{}

// get asks for a page.
func get(h http.Handler, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// page asks for a page that there is.
func page(t testing.TB, h http.Handler, path string) string {
	t.Helper()
	w := get(h, path)
	if w.Code != http.StatusOK {
		t.Fatalf("%s: status %d: %s", path, w.Code, w.Body)
	}
	return w.Body.String()
}

// shows fails unless the page has all of the parts.
func shows(t testing.TB, page string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(page, part) {
			t.Errorf("%q is not in the page:\n%s", part, page)
		}
	}
}

// regexpOf is the first group of an expression in a page, as an address.
func regexpOf(t testing.TB, page, expression string) string {
	t.Helper()
	m := regexp.MustCompile(expression).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no %s in the page:\n%s", expression, page)
	}
	address, _, _ := strings.Cut(html.UnescapeString(m[1]), "#")
	return address
}

func rootPath() string { return TracePath(fixture.TraceID("t")) }

func wallPath() string { return fmt.Sprintf("%s/span/%s/wall", rootPath(), fixture.SpanID("root")) }
