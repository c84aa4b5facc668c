package wallprofile

import (
	"iter"
	"strings"
	"testing"
	"time"
)

func TestDiagnosis(t *testing.T) {
	for _, tt := range []struct {
		most  Place
		took  time.Duration
		cause Cause
		want  string
	}{
		{Place{Function: "example.com/shop.(*Stock).Reserve", Leaf: "[waiting: mutex]"}, 571 * time.Millisecond, Cause{},
			"612 ms POST /checkout: 571 ms (93 %) waiting for a mutex in shop.(*Stock).Reserve"},
		{Place{Function: "example.com/shop.(*Stock).Reserve", Leaf: "[waiting: mutex]"}, 571 * time.Millisecond,
			Cause{
				Who:  Caused(HeldBy, "", 47, true, ""),
				Most: Place{Function: "database/sql.(*Tx).Commit", Leaf: "[syscall]"}, Took: 490 * time.Millisecond,
			},
			"612 ms POST /checkout: 571 ms (93 %) waiting for a mutex in shop.(*Stock).Reserve, held in turn by 47 other requests: 490 ms of it in sql.(*Tx).Commit"},
		{Place{Function: "main.call", Leaf: "[waiting: channel receive]"}, 571 * time.Millisecond,
			Cause{Caused(SentBy, "", 2, false, "main.send"), Place{Function: "main.work", Leaf: "[waiting: sleep]"}, 490 * time.Millisecond, ""},
			"612 ms POST /checkout: 571 ms (93 %) waiting to receive from a channel in main.call, sent in turn by 2 others in main.send: " +
				"490 ms of it sleeping in main.work"},
		{Place{Function: "main.call", Leaf: "[waiting: select]", For: "a rate limiter"}, 571 * time.Millisecond, Cause{},
			"612 ms POST /checkout: 571 ms (93 %) waiting for a rate limiter in main.call"},
		{Place{Function: "main.call", Leaf: "[waiting: mutex]"}, 571 * time.Millisecond, Cause{Most: Place{Leaf: Forgotten.Leaf()}, Took: 490 * time.Millisecond},
			"612 ms POST /checkout: 571 ms (93 %) waiting for a mutex in main.call: 490 ms of it not followed (forgotten)"},
		{Place{Function: "example.com/shop.(*Stock).Reserve", Leaf: "[waiting: mutex]"}, 571 * time.Millisecond,
			Cause{Who: Caused(HeldBy, "shop.audit", 1, false, "")},
			"612 ms POST /checkout: 571 ms (93 %) waiting for a mutex in shop.(*Stock).Reserve, held by shop.audit"},
		{Place{Function: "main.price", Leaf: ""}, 306 * time.Millisecond, Cause{}, "612 ms POST /checkout: 306 ms (50 %) on the CPU in main.price"},
		{Place{Function: "", Leaf: "[not recorded]"}, 612 * time.Millisecond, Cause{}, "612 ms POST /checkout: 612 ms (100 %) not recorded"},
		{Place{Function: "main.price", Leaf: "[waiting: a thing of tomorrow]"}, 0, Cause{},
			"612 ms POST /checkout: 0 ms (0 %) waiting: a thing of tomorrow in main.price"},
	} {
		if got := Diagnosis("POST /checkout", 612*time.Millisecond, tt.most, tt.took, "", tt.cause); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.most, got, tt.want)
		}
	}
	if got := Diagnosis("empty", 0, Place{}, 0, "", Cause{}); got != "0 ms empty: 0 ms (0 %) on the CPU" {
		t.Errorf("of no time: %q", got)
	}
}

func TestCommentsReadBack(t *testing.T) {
	c := Comment("4466fc8554eaf499", "612 ms POST /checkout: 571 ms (93 %) waiting")
	if c != "span_id=4466fc8554eaf499 612 ms POST /checkout: 571 ms (93 %) waiting" {
		t.Errorf("%q", c)
	}
	if id, diagnosis, ok := ParseComment(c); !ok || id != "4466fc8554eaf499" || diagnosis != "612 ms POST /checkout: 571 ms (93 %) waiting" {
		t.Errorf("%q, %q, %v", id, diagnosis, ok)
	}
	for _, other := range []string{"", "made by hand", "span_id=4466fc8554eaf499", "a span_id=4466fc8554eaf499 b"} {
		if _, _, ok := ParseComment(other); ok {
			t.Errorf("%q is taken for a diagnosis", other)
		}
	}
}

// TestEveryStateHasItsWords: a state without a phrase would stand in a diagnosis with the name of its frame.
func TestEveryStateHasItsWords(t *testing.T) {
	leaves := make(map[string]bool)
	for s := range NumStates {
		if s.String() == "" || phrase(s.Leaf()) == "" || strings.ContainsAny(phrase(s.Leaf()), ":[]") || leaves[s.Leaf()] {
			t.Errorf("state %d: name %q, phrase %q", s, s, phrase(s.Leaf()))
		}
		leaves[s.Leaf()] = true
	}
}

func TestKindOf(t *testing.T) {
	for leaf, want := range map[string]Kind{
		"":                                  KindRunning,
		"main.price":                        KindRunning,
		Runnable.Leaf():                     KindRunnable,
		Syscall.Leaf():                      KindSyscall,
		WaitMutex.Leaf():                    KindWaiting,
		"[waiting: a thing of tomorrow]":    KindWaiting,
		WaitAssist.Leaf():                   KindGC,
		Assisting.Leaf():                    KindGC,
		StoppedGC.Leaf():                    KindGC,
		StoppedOther.Leaf():                 KindOther,
		NotRecorded.Leaf():                  KindOther,
		"[stopped: by a thing of tomorrow]": KindOther,
		Others:                              KindOther,
	} {
		if got := KindOf(leaf); got != want {
			t.Errorf("%q: %d, want %d", leaf, got, want)
		}
	}
}

func TestLibrary(t *testing.T) {
	for _, tt := range []struct {
		function, file string
		want           bool
	}{
		{"net/http.(*conn).serve", "", true},
		{"time.Sleep", "", true},
		{"internal/runtime/syscall.Syscall6", "", true},
		{"vendor/golang.org/x/net/http2/hpack.(*Decoder).Write", "", true},
		{"slices.SortFunc[go.shape.[]example.com/list.Item]", "", true},
		{"aeshashbody", "runtime/asm_amd64.s", true},
		{"indexbytebody", "", true},
		{"compress_block", "lz.c", false},
		{"main.main", "", false},
		// Modules without a dot in their paths, as -trimpath writes their files.
		{"shop/cart.Total", "shop/cart/cart.go", false},
		{"spanflame/workload.(*Stock).Reserve", "spanflame/workload/stock.go", false},
		{"tool.Run", "tool@v1.2.3/tool.go", false},
		{"example.com/time.Now", "", false},
		{"gopkg.in/log%2ev1.Print", "", false},
		{"example.com/list.Map[net/http.Header]", "", false},
	} {
		if got := Library(tt.function, tt.file); got != tt.want {
			t.Errorf("%s in %q: %v, want %v", tt.function, tt.file, got, tt.want)
		}
	}
}

func TestInstrumentation(t *testing.T) {
	for function, want := range map[string]bool{
		"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*Transport).RoundTrip": true,
		"github.com/XSAM/otelsql.(*otConn).QueryContext":                                       true,
		"spanflame/agent/internal/telemetry.(*oneAtATime).Write":                               true,
		"spanflame/agent/internal/spanlink.(*span).End":                                        true,
		"spanflame/agent/internal/wall.(*Recorder).Begin":                                      true,
		"spanflame/agent.Start":                                                                true,
		"spanflame/agents.Start":                                                               false,
		"main.serve":                                                                           false,
		"example.com/list.Map[go.opentelemetry.io/otel/attribute.KeyValue]":                    false,
	} {
		if got := Instrumentation(function, "a.go"); got != want {
			t.Errorf("%s: %v, want %v", function, got, want)
		}
	}
	if Instrumentation("spanflame/agent/internal/wall.locker", "spanflame/agent/internal/wall/follow_test.go") {
		t.Error("the agent's tests are taken for the agent")
	}
}

func TestDependency(t *testing.T) {
	for _, tt := range []struct {
		function, file string
		want           bool
	}{
		{"golang.org/x/sync/errgroup.(*Group).Wait", "/root/go/pkg/mod/golang.org/x/sync@v0.24.0/errgroup/errgroup.go", true},
		{"golang.org/x/sync/errgroup.(*Group).Wait", "golang.org/x/sync@v0.24.0/errgroup/errgroup.go", true},
		{"github.com/BurntSushi/toml.Decode", "/root/go/pkg/mod/github.com/!burnt!sushi/toml@v1.2.1-0.20221011160550-abcdefabcdef/decode.go", true},
		{"tool.Run", "tool@v1.2.3/tool.go", true},
		{"golang.org/x/sync/errgroup.(*Group).Wait", "/src/shop/vendor/golang.org/x/sync/errgroup/errgroup.go", true},
		{"github.com/jackc/pgx/v5.(*Conn).Query", "", false},
		{"shop/cart.Total", "/home/me@version.org/shop/cart/cart.go", false},
		{"shop/cart.Total", "/src/shop@v2/cart/cart.go", false},
		{"shop/cart.Total", "@v1.2.3/cart.go", false},
		{"main.main", "/src/vendor/shop/main.go", false},
		{"example.com/shop/cart.Total", "/src/vendor/shop/cart/cart.go", false},
	} {
		if got := Dependency(tt.function, tt.file); got != tt.want {
			t.Errorf("%s in %q: %v, want %v", tt.function, tt.file, got, tt.want)
		}
	}
}

// frames yields the functions of a stack with their files, which are those of this module, or of a dependency for a
// function that is marked with one.
func frames(functions ...string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, f := range functions {
			file := "spanflame/a.go"
			if dependency, ok := strings.CutPrefix(f, "@ "); ok {
				f, file = dependency, "example.com/a@v1.2.3/a.go"
			}
			if !yield(f, file) {
				return
			}
		}
	}
}

func TestBlamed(t *testing.T) {
	for _, tt := range []struct {
		stack []string
		want  string
	}{
		{[]string{"runtime.gopark", "sync.(*Mutex).Lock", "shop/cart.Total", "main.main"}, "shop/cart.Total"},
		{[]string{"runtime.gopark", "github.com/XSAM/otelsql.(*otConn).QueryContext", "database/sql.(*DB).Query", "main.load"}, "main.load"},
		{[]string{"runtime.gopark", "net/http.(*persistConn).readLoop"}, "net/http.(*persistConn).readLoop"},
		{[]string{"runtime.gopark", "internal/runtime/maps.wait", "runtime.main"}, "runtime.gopark"},
		{[]string{"runtime.gopark", "sync.(*WaitGroup).Wait", "@ golang.org/x/sync/errgroup.(*Group).Wait", "shop/cart.Total", "main.main"}, "shop/cart.Total"},
		{[]string{"runtime.gopark", "@ example.com/pool.(*Pool).get", "@ example.com/pool.(*Pool).loop"}, "example.com/pool.(*Pool).get"},
		{[]string{"runtime.gopark", "@ go.opentelemetry.io/otel/sdk/trace.(*provider).loop"}, "go.opentelemetry.io/otel/sdk/trace.(*provider).loop"},
		{[]string{"list.Map[go.opentelemetry.io/otel/attribute.KeyValue]", "main.load"}, "list.Map[go.opentelemetry.io/otel/attribute.KeyValue]"},
		{nil, ""},
	} {
		if got := Blamed(frames(tt.stack...)); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.stack, got, tt.want)
		}
	}
}

func TestCauses(t *testing.T) {
	for frame, want := range map[string]bool{
		CauseFrame(HeldBy, OtherRequest, "POST /audit"): true,
		CauseFrame(SentBy, OtherRequest, ""):            true,
		CauseFrame(StartedBy, Timer, ""):                true,
		Forgotten.Leaf():                                true,
		"[held by: main.x: y], no request]":             true,
		NotRecorded.Leaf():                              false,
		Runnable.Leaf():                                 false,
		WaitMutex.Leaf():                                false,
		Others:                                          false,
		"[held by]":                                     false,
		"main.held by: x":                               false,
		"":                                              false,
	} {
		if got := IsCause(frame); got != want {
			t.Errorf("%q: %v", frame, got)
		}
	}
	for l := NoLink + 1; l < numLinks; l++ {
		if !IsCause(CauseFrame(l, SameRequest, "")) {
			t.Errorf("link %d is no cause", l)
		}
	}
	stack := []string{"[waiting: sleep]", "time.Sleep", "[held by: x, no request]", "[waiting: mutex]", "[sent by: y, no request]", "[waiting: select]", "main.x"}
	if n := Causes(len(stack), func(i int) string { return stack[i] }); n != 5 {
		t.Errorf("%d causes, want all but the last two frames", n)
	}
	stack = append([]string{"main.y", ServiceFrame("GET /y", "inventory")}, stack...)
	if n := Causes(len(stack), func(i int) string { return stack[i] }); n != 0 {
		t.Errorf("%d causes in another service, want none", n)
	}
}

func TestCausePlace(t *testing.T) {
	for _, tt := range []struct {
		leaf  string
		stack []string
		want  string
	}{
		{"[syscall]", []string{"syscall.fsync", "@ example.com/sqlite.sync", "otelsql.Commit", "database/sql.(*Tx).Commit", "main.settle", "main.serve"},
			"database/sql.(*Tx).Commit"},
		{"[syscall]", []string{"syscall.fsync", "@ example.com/sqlite.sync", "main.other"}, "main.other"},
		{"[waiting: sleep]", []string{"time.Sleep", "main.settle"}, "main.settle"},
		{"", []string{"strings.Index", "main.price", "main.settle"}, "main.price"},
		{"[waiting: network]", []string{"main.settle"}, "main.settle"},
		{"[waiting: network]", []string{"internal/poll.(*FD).Read", "net/http.(*persistConn).readLoop"}, ""},
	} {
		at := CausePlace(tt.leaf, frames(tt.stack...), "main.settle")
		if at.Function != tt.want || at.Leaf != tt.leaf && tt.want != "" {
			t.Errorf("%q: %+v, want %s", tt.stack, at, tt.want)
		}
	}
}

func TestCulprit(t *testing.T) {
	for name, whose := range map[string]Whose{
		"POST /audit": OtherRequest, "a: b, another request": OtherRequest, "": OtherRequest, "main.report": NoRequest, "main.serve": NoSpan,
	} {
		if got, gotWhose, ok := Culprit(CauseFrame(SentBy, whose, name)); got != name || gotWhose != whose || !ok {
			t.Errorf("%q: %q, %d, %v", name, got, gotWhose, ok)
		}
	}
	for _, frame := range []string{CauseFrame(HeldBy, SameRequest, ""), CauseFrame(WokenBy, Timer, ""), Forgotten.Leaf(), "main.x, another request", ""} {
		if name, _, ok := Culprit(frame); ok {
			t.Errorf("%q is a culprit, %q", frame, name)
		}
	}
}

func TestShort(t *testing.T) {
	for function, want := range map[string]string{
		"main.main": "main.main",
		"github.com/go-chi/chi/v5.(*Mux).ServeHTTP":     "chi.(*Mux).ServeHTTP",
		"github.com/jackc/pgx/v5/pgxpool.(*Pool).Query": "pgxpool.(*Pool).Query",
		"github.com/jackc/pgx/v5.Connect":               "pgx.Connect",
		"gopkg.in/yaml%2ev3.Unmarshal":                  "yaml.Unmarshal",
		"example.com/shop/v2.Map[example.com/a/v3.T]":   "shop.Map[example.com/a/v3.T]",
		"example.com/v2ray.Run":                         "v2ray.Run",
		"v2.Run":                                        "v2.Run",
		"example.com/shop.(*Cart).Price":                "shop.(*Cart).Price",
	} {
		if got := Short(function); got != want {
			t.Errorf("%s is %s, want %s", function, got, want)
		}
	}
}
