package wallprofile

import (
	"testing"
	"time"
)

func TestCaller(t *testing.T) {
	for name, tt := range map[string]struct {
		function string
		stack    []string // from the innermost outwards
		want     string
	}{
		"the next function": {"main.putFirst", []string{"math.Sin", "main.putFirst", "main.packAll", "main.serve"}, "main.packAll"},
		"a closure of it":   {"main.a.func1", []string{"main.a.func1", "main.a", "main.b"}, "main.b"},
		"a closure":         {"main.ask", []string{"main.ask", "main.load.func2.1", "@ golang.org/x/sync/errgroup.(*Group).Go.func1"}, "main.load"},
		"a loop":            {"main.ask", []string{"main.ask", "main.load-range1", "slices.Values[...].func1", "main.load"}, "main.load"},
		"recursion":         {"main.walk", []string{"main.walk", "main.walk", "main.count"}, "main.count"},
		"a method of its type": {"shop/stock.(*Client).ask", []string{
			"shop/stock.(*Client).ask", "shop/stock.(*Client).warehouse", "shop.(*Buyer).offer",
		}, "shop.(*Buyer).offer"},
		"only methods of its type": {"main.(*Stock).get", []string{
			"main.(*Stock).get", "main.(*Stock).reserve", "main.(*Stock).handle", "net/http.HandlerFunc.ServeHTTP", "main.logged",
		}, "main.(*Stock).reserve"},
		"methods of a generic type": {"main.(*Pool[...]).get", []string{"main.(*Pool[...]).get", "main.(*Pool[...]).With.func1", "main.load"}, "main.load"},
		"a library":                 {"main.serve", []string{"main.serve", "net/http.HandlerFunc.ServeHTTP", "main.logged"}, ""},
		"a dependency":              {"main.serve", []string{"main.serve", "@ github.com/gin-gonic/gin.(*Context).Next", "main.logged"}, ""},
		"generated code": {"main.(*Stock).Get", []string{
			"main.(*Stock).Get", "shop/api._Stock_Get_Handler", "@ google.golang.org/grpc.(*Server).handleStream",
		}, ""},
		"the outermost":    {"main.main", []string{"main.main"}, ""},
		"not on the stack": {"main.a", []string{"main.b", "main.c"}, ""},
	} {
		if got := Caller(tt.function, frames(tt.stack...), false); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestEntry(t *testing.T) {
	for name, tt := range map[string]struct {
		stack []string // from the innermost outwards
		want  string
	}{
		"what a goroutine runs": {[]string{"main.xorshift", "main.forecast", "main.(*Shop).handler.func1", "sync.(*WaitGroup).Go.func1"}, "main.forecast"},
		"a handler": {[]string{
			"runtime.mallocgc", "main.read", "slices.SortFunc[...]", "main.(*Shop).report", "main.(*Shop).handle.func2", "net/http.HandlerFunc.ServeHTTP",
			"main.(*Shop).logged", "net/http.serverHandler.ServeHTTP", "net/http.(*conn).serve",
		}, "main.(*Shop).report"},
		"a closure":           {[]string{"main.serve.func2.1", "main.serve.func2", "net/http.HandlerFunc.ServeHTTP"}, "main.serve"},
		"a handler of a call": {[]string{"main.(*Stock).Get", "@ google.golang.org/grpc.(*Server).processUnaryRPC", "main.x"}, "main.(*Stock).Get"},
		"a library":           {[]string{"runtime.gopark", "net/http.(*conn).serve"}, ""},
	} {
		if got := Entry(frames(tt.stack...)); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// The name of a request that still runs says what it runs, if it has no route yet.
func TestRequestName(t *testing.T) {
	for _, tt := range [][3]string{
		{"POST", "example.com/shop.(*Store).report", "POST in shop.(*Store).report"},
		{"HTTP GET", "main.report", "HTTP GET in main.report"},
		{"POST", "", "POST"},
		{"POST /report", "main.report", "POST /report"},
		{"checkout", "main.report", "checkout"},
	} {
		if got := RequestName(tt[0], func() string { return tt[1] }); got != tt[2] {
			t.Errorf("%q in %q: %q, want %q", tt[0], tt[1], got, tt[2])
		}
	}
}

func TestEnclosing(t *testing.T) {
	for function, want := range map[string]string{
		"main.serve":                        "main.serve",
		"main.serve.func1":                  "main.serve",
		"main.serve.func1.2":                "main.serve",
		"main.serve.gowrap3":                "main.serve",
		"main.(*Stock).get.deferwrap1":      "main.(*Stock).get",
		"main.Map[...].func1":               "main.Map[...]",
		"main.serve-range2":                 "main.serve",
		"main.serve.func1-range2":           "main.serve",
		"example.com/v2.func1":              "example.com/v2.func1",
		"main.func1":                        "main.func1",
		"main.glob..func1":                  "main.glob..func1",
		"main.(*Stock).func1":               "main.(*Stock)",
		"main.page-range":                   "main.page-range",
		"main.init.0":                       "main.init",
		"example.com/shop.v3.Serve.funcall": "example.com/shop.v3.Serve.funcall",
	} {
		if got := enclosing(function); got != want {
			t.Errorf("%s: %q, want %q", function, got, want)
		}
	}
}

// The function that a diagnosis names last has its caller, if that one called it nearly all of the time.
func TestTheCallerIsNamed(t *testing.T) {
	most := Place{Function: "main.settle", Leaf: WaitMutex.Leaf()}
	cause := Cause{Who: Caused(HeldBy, "GET /a", 1, false, "main.audit"), Most: Place{Function: "main.ask.func1"}, Took: 90 * time.Millisecond}
	for _, tt := range []struct {
		caller, causeCaller, want string
		cause                     Cause
	}{
		{caller: "example.com/shop.sell", want: ", called by shop.sell"},
		{caller: "main.settle"},
		{caller: "main.sell", cause: cause, want: ", held by GET /a in main.audit: 90 ms of it on the CPU in main.ask.func1"},
		{causeCaller: "main.load", cause: cause, want: ", held by GET /a in main.audit: 90 ms of it on the CPU in main.ask.func1, called by main.load"},
		{causeCaller: "main.audit", cause: cause, want: ", held by GET /a in main.audit: 90 ms of it on the CPU in main.ask.func1"},
		{causeCaller: "main.ask", cause: cause, want: ", held by GET /a in main.audit: 90 ms of it on the CPU in main.ask.func1"},
		{caller: "main.sell", cause: Cause{Who: Caused(HeldBy, "main.audit", 1, false, "")}, want: ", held by main.audit"},
	} {
		tt.cause.Caller = tt.causeCaller
		want := "100 ms POST /a: 95 ms (95 %) waiting for a mutex in main.settle" + tt.want
		if got := Diagnosis("POST /a", 100*time.Millisecond, most, 95*time.Millisecond, tt.caller, tt.cause); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestSpent(t *testing.T) {
	a, b := Place{Function: "main.a"}, Place{Function: "shop.(*B).b"}
	s := make(Spent)
	if at, took := s.Most(); at != (Place{}) || took != 0 || s.Caller(at, false) != "" {
		t.Errorf("nothing is spent, but %v, %v, %q", at, took, s.Caller(at, false))
	}
	s.Add(b, "b.go:1", frames("shop.(*B).b", "shop.(*B).all", "main.x"), 90)
	s.Add(b, "b.go:2", frames("shop.(*B).b", "main.y"), 10)
	s.Add(a, "", frames("main.a"), 10)
	b.Line = "b.go:1"
	if at, took := s.Most(); at != b || took != 100 || s.Caller(at, false) != "main.x" || s.Caller(at, true) != "shop.(*B).all" {
		t.Errorf("%v, %v, %q, %q", at, took, s.Caller(at, false), s.Caller(at, true))
	}
	s.Add(a, "", frames("main.a", "main.x"), 80)
	s.Add(a, "", frames("main.a", "main.y"), 10)
	if at, took := s.Most(); at != a || took != 100 || s.Caller(at, false) != "" {
		t.Errorf("of two with as much: %v, %v, %q", at, took, s.Caller(at, false))
	}
}
