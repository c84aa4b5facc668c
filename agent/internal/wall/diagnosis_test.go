package wall

import "testing"

// The same functions are passed over by profiles.Diagnose.
func TestCulprit(t *testing.T) {
	const contrib = "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp."
	for name, tt := range map[string]struct {
		want   string
		frames []frame
	}{
		"below an instrumentation": {"shop/workload.(*inventory).Reserve", []frame{
			{function: "net/http.(*Transport).roundTrip", file: library + "net/http/transport.go"},
			{function: contrib + "(*Transport).RoundTrip", file: "go.opentelemetry.io/transport.go"},
			{function: "net/http.(*Client).Do", file: library + "net/http/client.go"},
			{function: "shop/workload.(*inventory).Reserve", file: "example.org/shop/inventory.go"},
			{function: contrib + "(*middleware).serveHTTP", file: "go.opentelemetry.io/handler.go"},
		}},
		"below instrumented SQL": {"shop/workload.save", []frame{
			{function: "github.com/XSAM/otelsql.(*otConn).QueryContext", file: "github.com/XSAM/otelsql/conn.go"},
			{function: "shop/workload.save", file: "example.org/shop/save.go"},
		}},
		"with an instrumentation's type": {"shop/workload.each[go.opentelemetry.io/otel/attribute.KeyValue]", []frame{
			{function: "shop/workload.each[go.opentelemetry.io/otel/attribute.KeyValue]", file: "example.org/shop/each.go"},
			{function: "shop/workload.save", file: "example.org/shop/save.go"},
		}},
		"in an instrumentation alone": {"internal/poll.runtime_pollWait", []frame{
			{function: "internal/poll.runtime_pollWait", file: library + "runtime/netpoll.go"},
			{function: contrib + "(*Transport).RoundTrip", file: "go.opentelemetry.io/transport.go"},
		}},
		"without a stack": {"", nil},
	} {
		if got := culprit(&stack{frames: tt.frames}); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
