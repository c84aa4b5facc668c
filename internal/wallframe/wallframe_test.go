package wallframe

import (
	"testing"
	"time"
)

func TestSentence(t *testing.T) {
	for _, tt := range []struct {
		most Place
		took time.Duration
		want string
	}{
		{Place{"example.com/shop.(*Stock).Reserve", "[waiting: mutex]"}, 571 * time.Millisecond,
			"612 ms POST /checkout: 571 ms (93 %) waiting for a mutex in shop.(*Stock).Reserve"},
		{Place{"main.price", ""}, 306 * time.Millisecond, "612 ms POST /checkout: 306 ms (50 %) on the CPU in main.price"},
		{Place{"", "[not recorded]"}, 612 * time.Millisecond, "612 ms POST /checkout: 612 ms (100 %) not recorded"},
		{Place{"main.price", "[waiting: a thing of tomorrow]"}, 0, "612 ms POST /checkout: 0 ms (0 %) waiting: a thing of tomorrow in main.price"},
	} {
		if got := Sentence("POST /checkout", 612*time.Millisecond, tt.most, tt.took); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.most, got, tt.want)
		}
	}
	if got := Sentence("empty", 0, Place{}, 0); got != "0 ms empty: 0 ms (0 %) on the CPU" {
		t.Errorf("of no time: %q", got)
	}
}

func TestInstrumentation(t *testing.T) {
	for function, want := range map[string]bool{
		"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*Transport).RoundTrip": true,
		"github.com/XSAM/otelsql.(*otConn).QueryContext":                                       true,
		"main.serve": false,
		"example.com/list.Map[go.opentelemetry.io/otel/attribute.KeyValue]": false,
	} {
		if got := Instrumentation(function); got != want {
			t.Errorf("%s: %v, want %v", function, got, want)
		}
	}
}
