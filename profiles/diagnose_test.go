package profiles_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
)

const others = "[other goroutines working for this span]"

var lines = regexp.MustCompile(` \(\w+\.go:\d+\)`) // of functions in a diagnosis

func TestDiagnose(t *testing.T) {
	ms := int64(time.Millisecond)
	wait := stack{
		[]string{"[waiting: mutex]", "sync.(*Mutex).Lock", "shop/workload.(*Stock).Reserve", "net/http.HandlerFunc.ServeHTTP", "span: POST /checkout"},
		"",
		571 * ms,
	}
	for name, tt := range map[string]struct {
		want   string
		stacks []stack
	}{
		"waiting": {"612 ms POST /checkout: 571 ms (93 %) waiting for a mutex in workload.(*Stock).Reserve",
			[]stack{wait, {[]string{"main.compute", "span: POST /checkout"}, "", 41 * ms}}},
		"running": {"612 ms POST /checkout: 600 ms (98 %) on the CPU in main.compute",
			[]stack{{[]string{"math.Sin", "main.compute", "span: POST /checkout"}, "", 600 * ms}}},
		"in several stacks": {"612 ms POST /checkout: 600 ms (98 %) on the CPU in main.compute",
			[]stack{{[]string{"main.compute", "main.a"}, "", 300 * ms}, wait, {[]string{"main.compute", "main.b"}, "", 300 * ms}}},
		"below a child span": {"612 ms POST /checkout: 600 ms (98 %) sleeping in main.pause, called by main.handle",
			[]stack{{[]string{"[waiting: sleep]", "time.Sleep", "main.pause", "span: pricing", "main.handle", "span: POST /checkout"}, "", 600 * ms}}},
		"in the library alone": {"612 ms POST /checkout: 600 ms (98 %) waiting for the network in poll.runtime_pollWait",
			[]stack{{[]string{"[waiting: network]", "internal/poll.runtime_pollWait", "net/http.(*conn).serve", "span: POST /checkout"}, "", 600 * ms}}},
		"a module called go.…": {"612 ms POST /checkout: 600 ms (98 %) in a system call in store.(*conn).Query, called by main.save",
			[]stack{{[]string{"[syscall]", "syscall.Syscall", "go.example.org/store.(*conn).Query", "main.save"}, "", 600 * ms}}},
		"below an instrumentation": {"612 ms POST /checkout: 600 ms (98 %) waiting in a select in workload.(*inventory).Reserve", []stack{{[]string{
			"[waiting: select]", "runtime.selectgo", "net/http.(*Transport).roundTrip",
			"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*Transport).RoundTrip",
			"net/http.(*Client).Do", "shop/workload.(*inventory).Reserve",
			"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*middleware).serveHTTP", "span: POST /checkout",
		}, "", 600 * ms}}},
		"below instrumented SQL": {"612 ms POST /checkout: 600 ms (98 %) in a system call in workload.save", []stack{{[]string{
			"[syscall]", "syscall.Syscall", "github.com/XSAM/otelsql.(*otConn).QueryContext", "database/sql.(*DB).queryDC", "shop/workload.save",
		}, "", 600 * ms}}},
		"in a dependency": {"612 ms POST /checkout: 600 ms (98 %) waiting for a WaitGroup in main.load, called by main.serve", []stack{{[]string{
			"[waiting: WaitGroup]", "sync.(*WaitGroup).Wait", "golang.org/x/sync/errgroup.(*Group).Wait", "main.load", "main.serve",
		}, "", 600 * ms}}},
		"below a dependency": {"612 ms POST /checkout: 600 ms (98 %) waiting for a mutex in main.lock, held by: GET /, another request: 600 ms of it in main.audit",
			[]stack{{[]string{
				"[syscall]", "golang.org/x/sys/unix.Flock", "main.audit", "[held by: GET /, another request]", "[waiting: mutex]", "main.lock",
			}, "", 600 * ms}}},
		"in an instrumentation alone": {"612 ms POST /checkout: 600 ms (98 %) waiting for the network in poll.runtime_pollWait", []stack{{[]string{
			"[waiting: network]", "internal/poll.runtime_pollWait", "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*Transport).RoundTrip",
		}, "", 600 * ms}}},
		"a generic function": {"612 ms POST /checkout: 600 ms (98 %) on the CPU in main.sort",
			[]stack{{[]string{"slices.SortFunc[go.shape.[]example.org/shop.Item]", "main.sort"}, "", 600 * ms}}},
		"without a stack": {"612 ms POST /checkout: 612 ms (100 %) not recorded",
			[]stack{{[]string{"[not recorded]", "span: POST /checkout"}, "", 612 * ms}}},
		"a state of a newer kind": {"612 ms POST /checkout: 612 ms (100 %) waiting: moon in main.a", []stack{{[]string{"[waiting: moon]", "main.a"}, "", 612 * ms}}},
		"others do not count": {"612 ms POST /checkout: 571 ms (93 %) waiting for a mutex in workload.(*Stock).Reserve",
			[]stack{wait, {[]string{"main.prefetch", others, "span: POST /checkout"}, "", 2000 * ms}}},
		"held by one": {"612 ms POST /checkout: 600 ms (98 %) waiting for a mutex in main.lock, held by: GET /, another request: 590 ms of it in sql.(*Tx).Commit",
			[]stack{
				{[]string{
					"[syscall]", "syscall.fsync", "database/sql.(*Tx).Commit", "main.lock", "[held by: GET /, another request]", "[waiting: mutex]", "main.lock",
				}, "", 590 * ms},
				{[]string{"main.lock", "[held by: GET /, another request]", "[waiting: mutex]", "main.lock"}, "", 10 * ms}, {[]string{"main.a"}, "", 12 * ms},
			}},
		"held by several": {"612 ms POST /checkout: 590 ms (96 %) waiting for a mutex in main.lock: 300 ms of it on the CPU in main.price",
			[]stack{
				{[]string{"main.price", "[held by: GET /, another request]", "[waiting: mutex]", "main.lock"}, "", 200 * ms},
				{[]string{"[waiting: sleep]", "main.b", "[held by: GET /, another request]", "[waiting: mutex]", "main.lock"}, "", 290 * ms},
				{[]string{
					"main.price", "[sent by: main.b, no request]", "[waiting: select]", "main.b", "[held by: PUT /, another request]", "[waiting: mutex]", "main.lock",
				}, "", 100 * ms},
			}},
		"not followed": {"612 ms POST /checkout: 600 ms (98 %) waiting for a mutex in main.lock: 600 ms of it not followed (forgotten)",
			[]stack{{[]string{"[not followed: forgotten]", "[waiting: mutex]", "main.lock"}, "", 600 * ms}}},
		"others alone": {"", []stack{{[]string{"main.prefetch", others, "span: POST /checkout"}, "", 2000 * ms}}},
		"nothing":      {"", nil},
		"as long in two places": {"612 ms POST /checkout: 300 ms (49 %) on the CPU in main.a",
			[]stack{{[]string{"main.b"}, "", 300 * ms}, {[]string{"main.a"}, "", 300 * ms}}},
	} {
		p := newProfile(record.Wall, noon, 612*time.Millisecond, tt.stacks...)
		if got := lines.ReplaceAllString(profiles.Diagnose(p, "POST /checkout", 612*time.Millisecond), ""); got != tt.want {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
	if got := profiles.Diagnose(newProfile(record.Wall, noon, 0, wait), "x", 0); !strings.HasPrefix(got, "0 ms x: 571 ms (0 %) ") {
		t.Errorf("without a duration: %q", got)
	}
}

func TestSavedDiagnosis(t *testing.T) {
	p := &profile.Profile{Comments: []string{"made by hand", "span_id=00aa 5 ms GET /: 4 ms, held by main.x", "span_id=00aab 6 ms"}}
	for id, want := range map[string]string{"00aa": "5 ms GET /: 4 ms, held by main.x", "00aab": "6 ms", "00": "", "": ""} {
		if got := profiles.SavedDiagnosis(p, id); got != want {
			t.Errorf("%q: got %q, want %q", id, got, want)
		}
	}
}
