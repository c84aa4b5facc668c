//go:build stack

package e2e

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spanflame/internal/wallprofile"
	"spanflame/viewer"
	"spanflame/viewer/source"
)

// jaeger finds a slow request among those that Jaeger has, and follows the link that Jaeger's pages show at its span to the
// flame graph. The pages over Jaeger and over Tempo show the same trace.
func (p native) jaeger(t *testing.T) {
	root := p.profiled(t)
	id := root.TraceID
	pyroscope := p.stack.Pyroscope().URL
	withJaeger, err := source.NewServersWithJaeger(p.stack.Jaeger().URL, pyroscope)
	if err != nil {
		t.Fatal(err)
	}
	withTempo, err := source.NewServers(p.stack.Tempo().URL, pyroscope)
	if err != nil {
		t.Fatal(err)
	}
	pages, overTempo := servePages(t, withJaeger), servePages(t, withTempo)

	for _, list := range []string{"/?show=traces&min=300ms&name=load/sleep", "/?show=traces&min=300ms&service=storefront&name=load/sleep"} {
		eventually(t, list, func() error {
			if page := content(t, pages+list); !strings.Contains(page, "/trace/"+id) {
				return fmt.Errorf("the trace %s is not on %s:\n%s", id, list, page)
			}
			return nil
		})
	}
	names := "/name?" + url.Values{"service": {"storefront"}, "name": {root.Name}, "last": {"1h"}}.Encode()
	if page := content(t, pages+names); !strings.Contains(page, "sleepFor") {
		t.Errorf("%s has no function:\n%s", names, page)
	}

	text, err := os.ReadFile(filepath.Join("..", "deploy", "jaeger", "ui.json"))
	if err != nil {
		t.Fatal(err)
	}
	var ui struct {
		LinkPatterns []struct{ Type, Key, URL string }
	}
	if err := json.Unmarshal(text, &ui); err != nil || len(ui.LinkPatterns) != 1 {
		t.Fatalf("%v: %v", ui, err)
	}
	link := ui.LinkPatterns[0]
	profileID := root.Attributes[link.Key]
	if link.Type != "tags" || link.Key != wallprofile.ProfileIDAttribute || profileID == "" {
		t.Fatalf("the link %+v is of no attribute of the span %v", link, root.Attributes)
	}
	target := strings.NewReplacer("#{trace.traceID}", id, "#{"+link.Key+"}", profileID).Replace(link.URL)
	if want := "http://127.0.0.1:7070" + viewer.SpanPath(id, root.ID); target != want {
		t.Fatalf("the link is %s, want %s", target, want)
	}
	if err := sameFlame(t, pages, overTempo, root, "wall"); err != nil {
		t.Error(err)
	}
}
