package viewer

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"spanflame/internal/wallprofile"
	"spanflame/viewer/internal/fixture"
)

// BenchmarkSlowTraces is of the page of slow traces over 10,000 traces in which each has a file with its profile, of 20 problems.
func BenchmarkSlowTraces(b *testing.B) {
	d := fixture.New(b)
	file := d.TraceFile("shop", "traces")
	for i := range 10_000 {
		id, route := fmt.Sprint(i), fmt.Sprintf("GET /%d", i%20)
		start, took := time.Duration(i)*15*time.Second, 200*time.Millisecond
		d.Write(file, fixture.Line(b, fixture.Span{Trace: id, ID: id, Service: "shop", Name: route, Start: start, Took: took, Profiled: true}))
		d.Comments = []string{wallprofile.Comment(fixture.SpanID(id), fmt.Sprintf("200 ms %s: 190 ms (95 %%) on the CPU in shop.work%d", route, i%20))}
		d.Wall("shop", start, took, fixture.Sample("shop.handle;shop.work", 2e8, id))
	}
	asked := func(b *testing.B, h http.Handler) {
		if w := get(h, "/"); w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			asked(b, pages(b, open(b, d.Dir), Options{}))
		}
	})
	h := pages(b, open(b, d.Dir), Options{})
	for range 5 { // until all is read
		asked(b, h)
	}
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			asked(b, h)
		}
	})
}
