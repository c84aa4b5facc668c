package why_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/why"
)

// shape is a trace of several services.
type shape struct {
	shop
	top   string   // the planted part: its request and its words
	never []string // functions that did not decide
	ms    int      // that the trace would have taken without the top; 0 for as much less as the top took

	missing string // what the report says is missing
}

var shapesBegan = time.Unix(1_700_000_000, 0)

// span adds a span from and to milliseconds, named "service kind name", with its profile if it has any.
func (s *shape) span(id, parent, what string, from, to int, stacks ...stack) {
	words := strings.SplitN(what, " ", 3)
	sp := traces.Span{TraceID: strings.Repeat("a", 32), ID: id, ParentID: parent, Service: words[0], Kind: words[1], Name: words[2],
		Start: shapesBegan.Add(time.Duration(from) * time.Millisecond), End: shapesBegan.Add(time.Duration(to) * time.Millisecond)}
	s.spans = append(s.spans, sp)
	if len(stacks) == 0 {
		return
	}
	s.spans[len(s.spans)-1].Attributes = map[string]string{wallprofile.ProfileIDAttribute: id}
	if s.stacks == nil {
		s.stacks = make(map[string][]stack)
	}
	for _, st := range stacks {
		of := "span: " + sp.Name
		if sp.Kind == "client" {
			of = "span: the request;" + of
		}
		s.stacks[id] = append(s.stacks[id], stack{of + ";" + st.functions, st.ms})
	}
}

// below is the stack of a goroutine of the request, for which another one of it waited.
func below(waiter, functions string) string {
	return waiter + ";sync.(*WaitGroup).Wait;[waiting: WaitGroup];[done by: the same request];" + functions
}

// on is the stack of a wait for the answer to a call.
func on(call, function string) string { return "span: " + call + ";" + function + ";" + answer }

// The clocks of the services differ: what answers can seem to begin before the call.
var shapes = map[string]func(s *shape){
	"one service": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{"main.planted", 700}, stack{"main.small", 300})
		s.top = "GET /: on the CPU in main.planted"
	},
	"sequential calls": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("B", "main.askB"), 300}, stack{on("C", "main.askC"), 600}, stack{"main.small", 100})
		s.span("2", "1", "a client B", 0, 300)
		s.span("3", "2", "b server GET /b", 9000, 9290, stack{"main.b", 290})
		s.span("4", "1", "a client C", 300, 900)
		s.span("5", "4", "c server GET /c", -7000, -6450, stack{"main.planted", 550})
		s.top = "GET /c: on the CPU in main.planted"
	},
	"a chain of four services": func(s *shape) {
		names := []string{"a", "b", "c", "d"}
		for i, name := range names {
			id, parent, ms := fmt.Sprint(2*i), "", int64(1000-100*i)
			if i > 0 {
				parent = fmt.Sprint(2*i - 1)
			}
			at := i * 5000
			if i == len(names)-1 {
				s.span(id, parent, name+" server GET /"+name, at, at+int(ms), stack{"main.planted", 600}, stack{"main.small", ms - 600})
				break
			}
			s.span(id, parent, name+" server GET /"+name, at, at+int(ms), stack{"main.work" + name, 50}, stack{on("ask", "main.ask"), ms - 50})
			s.span(fmt.Sprint(2*i+1), id, name+" client ask", at+50, at+int(ms))
		}
		s.top = "GET /d: on the CPU in main.planted"
	},
	"fan-out": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{below("main.all", "main.ask;"+answer), 900}, stack{"main.small", 100})
		for i, ms := range []int{700, 900, 500} {
			s.span(fmt.Sprint("c", i), "1", "a client ask", 0, ms)
			function := []string{"main.second", "main.planted", "main.third"}[i]
			s.span(fmt.Sprint("s", i), fmt.Sprint("c", i), "b server GET /b", 0, ms-20, stack{function, int64(ms - 20)})
		}
		s.top, s.never, s.ms = "GET /b: on the CPU in main.planted", []string{"main.second", "main.third"}, 800
	},
	"fan-out to several services": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{below("main.all", "main.askB;"+answer), 950}, stack{"main.small", 50})
		for i, ms := range []int{950, 900, 940} {
			service := string(rune('b' + i))
			s.span("c"+service, "1", "a client ask "+service, i, ms)
			s.span("s"+service, "c"+service, service+" server GET /"+service, 0, ms-40, stack{"main.work" + service, int64(ms - 40)})
		}
		s.top, s.never, s.ms = "GET /b: on the CPU in main.workb", []string{"main.workc", "main.workd"}, 990
	},
	"fan-out in a service that was called": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("B", "main.ask"), 1000})
		s.span("2", "1", "a client B", 0, 1000)
		s.span("3", "2", "b server GET /b", 0, 960, stack{below("main.all", "main.ask;"+answer), 800}, stack{"main.small", 160})
		for i, ms := range []int{300, 800} {
			s.span(fmt.Sprint("c", i), "3", "b client C", 10, 10+ms)
			s.span(fmt.Sprint("s", i), fmt.Sprint("c", i), "c server GET /c", 0, ms-5, stack{[]string{"main.other", "main.planted"}[i], int64(ms - 5)})
		}
		s.top, s.never, s.ms = "GET /c: on the CPU in main.planted", []string{"main.other"}, 500
	},
	"a fan-out in a fan-out": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{below("main.all", "main.ask;"+answer), 1000})
		for i, ms := range []int{900, 1000} {
			s.span(fmt.Sprint("c", i), "1", "a client B", 0, ms)
		}
		s.span("s1", "c1", "b server GET /b", 0, 900, stack{below("main.all", "main.ask;"+answer), 800}, stack{"main.small", 100})
		for i, ms := range []int{750, 800} {
			s.span(fmt.Sprint("d", i), "s1", "b client C", 0, ms)
			s.span(fmt.Sprint("t", i), fmt.Sprint("d", i), "c server GET /c", 0, ms, stack{[]string{"main.other", "main.planted"}[i], int64(ms)})
		}
		s.top, s.never, s.ms = "GET /c: on the CPU in main.planted", []string{"main.other"}, 950
	},
	"a fan-out behind a timeout": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("B", "main.ask"), 1000})
		s.span("2", "1", "a client B", 0, 1000)
		s.span("3", "2", "b server GET /b", 0, 2000, stack{below("main.all", "main.ask;"+answer), 1200}, stack{"main.small", 800})
		for i, ms := range []int{800, 1200} {
			s.span(fmt.Sprint("d", i), "3", "b client C", 0, ms)
			s.span(fmt.Sprint("t", i), fmt.Sprint("d", i), "c server GET /c", 0, ms, stack{[]string{"main.other", "main.planted"}[i], int64(ms)})
		}
		s.top, s.never, s.ms = "GET /c: on the CPU in main.planted", []string{"main.other"}, 800
	},
	"branches with spans of their own": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{below("main.all", "main.ask;"+answer), 880}, stack{"main.small", 120})
		s.span("2", "1", "a internal first", 0, 900)
		s.span("3", "1", "a internal second", 0, 850)
		for i, ms := range []int{300, 880} {
			s.span(fmt.Sprint("d", i), "2", "a client B", 0, ms)
			s.span(fmt.Sprint("t", i), fmt.Sprint("d", i), "b server GET /b", 0, ms, stack{[]string{"main.other", "main.planted"}[i], int64(ms)})
		}
		s.top, s.never, s.ms = "GET /b: on the CPU in main.planted", []string{"main.other"}, 950
	},
	"a call, then a fan-out, with the same name": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("GET", "main.askUser"), 400}, stack{below("main.all", "main.askItem;"+answer), 600})
		s.span("c0", "1", "a client GET", 0, 400, stack{"main.askUser;" + answer, 400})
		s.span("s0", "c0", "b server GET /user", 0, 390, stack{"main.user", 390})
		for i, ms := range []int{500, 600} {
			s.span(fmt.Sprint("d", i), "1", "a client GET", 400, 400+ms, stack{"main.askItem;" + answer, int64(ms)})
			s.span(fmt.Sprint("t", i), fmt.Sprint("d", i), "c server GET /item", 0, ms, stack{[]string{"main.other", "main.planted"}[i], int64(ms)})
		}
		s.top, s.never, s.ms = "GET /item: on the CPU in main.planted", []string{"main.other"}, 900
	},
	"a goroutine that computes": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{below("main.all", "main.planted"), 800}, stack{on("B", "main.ask"), 200},
			stack{wallprofile.Others + ";main.other", 4000})
		s.span("2", "1", "a client B", 800, 1000)
		s.span("3", "2", "b server GET /b", 0, 190, stack{"main.b", 190})
		s.top, s.never = "GET /: on the CPU in main.planted, for which main.all waited", []string{"main.other"}
	},
	"retries": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("B", "main.ask"), 900}, stack{"main.pause;time.Sleep;[waiting: sleep]", 100})
		for i, ms := range []int{100, 100, 700} {
			from := []int{0, 150, 300}[i]
			s.span(fmt.Sprint("c", i), "1", "a client B", from, from+ms)
			s.span(fmt.Sprint("s", i), fmt.Sprint("c", i), "b server GET /b", 0, ms-10, stack{[]string{"main.fail", "main.fail", "main.planted"}[i], int64(ms - 10)})
		}
		s.top = "GET /b: on the CPU in main.planted"
	},
	"a server slower than its client's timeout": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("B", "main.ask"), 600}, stack{on("C", "main.askC"), 390}, stack{"main.small", 10})
		s.span("2", "1", "a client B", 0, 600)
		s.span("3", "2", "b server GET /b", 0, 6000, stack{"main.planted", 5000}, stack{"main.rest", 1000})
		s.span("4", "1", "a client C", 600, 990)
		s.span("5", "4", "c server GET /c", 0, 380, stack{"main.c", 380})
		s.top, s.missing = "GET /b: on the CPU in main.planted", "GET /b of b (6 s): longer than a waited for it, so its parts are in proportion."
	},
	"retries after timeouts": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("B", "main.ask"), 1000})
		for i, ms := range []int{200, 200, 600} {
			from := []int{0, 200, 400}[i]
			s.span(fmt.Sprint("c", i), "1", "a client B", from, from+ms)
			took := []int{900, 900, 590}[i]
			s.span(fmt.Sprint("s", i), fmt.Sprint("c", i), "b server GET /b", 0, took, stack{[]string{"main.cut", "main.cut", "main.planted"}[i], int64(took)})
		}
		s.top = "GET /b: on the CPU in main.planted"
	},
	"asynchronous continuation": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 500, stack{"main.planted", 400}, stack{on("send", "main.send"), 100})
		s.span("2", "1", "a producer send", 400, 500)
		s.span("3", "2", "worker consumer process", 0, 450, stack{"main.later", 450})
		s.top, s.never = "GET /: on the CPU in main.planted", []string{"main.later"}
	},
	"a call that nobody waits for": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 500, stack{"main.small", 200}, stack{on("GET", "main.ask"), 300})
		s.span("2", "1", "a client GET", 200, 500)
		s.span("3", "2", "b server GET /b", 0, 290, stack{"main.planted", 290})
		s.span("4", "1", "a client GET", 300, 600)
		s.span("5", "4", "c server GET /c", 0, 280, stack{"main.later", 280})
		s.top, s.never = "GET /b: on the CPU in main.planted", []string{"main.later"}
	},
	"a call that ends earlier on another goroutine": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 500, stack{on("B", "main.ask"), 400}, stack{"main.small", 100},
			stack{wallprofile.Others + ";span: C;main.prefetch;" + answer, 410})
		s.span("2", "1", "a client B", 0, 400)
		s.span("3", "2", "b server GET /b", 0, 390, stack{"main.planted", 390})
		s.span("4", "1", "a client C", 0, 410)
		s.span("5", "4", "c server GET /c", 0, 405, stack{"main.prefetched", 405})
		s.top, s.never = "GET /b: on the CPU in main.planted", []string{"main.prefetched"}
	},
	"a call that another goroutine made meanwhile": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 500, stack{on("B", "main.ask"), 400}, stack{"main.small", 100})
		s.span("2", "1", "a client B", 0, 400)
		s.span("3", "2", "b server GET /b", 0, 390, stack{"main.planted", 390})
		s.span("4", "1", "a client C", 0, 390)
		s.span("5", "4", "c server GET /c", 0, 380, stack{"main.other", 380})
		s.top, s.never = "GET /b: on the CPU in main.planted", []string{"main.other"}
	},
	"a wait for who has no spans": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 500, stack{below("main.all", "main.ask;"+answer), 400}, stack{"main.small", 100})
		s.span("2", "1", "a client C", 300, 600)
		s.span("3", "2", "c server GET /c", 0, 250, stack{"main.later", 250})
		s.top, s.never = "GET /: waiting for the answer of an HTTP call in main.ask, for which main.all waited", []string{"main.later"}
	},
	"a missing profile in the middle": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("B", "main.ask"), 1000})
		s.span("2", "1", "a client B", 0, 1000)
		s.span("3", "2", "b server GET /b", 0, 900)
		s.span("4", "3", "b internal inside", 100, 890)
		s.span("5", "4", "b client C", 150, 850)
		s.span("6", "4", "b client D", 150, 600)
		s.span("7", "5", "c server GET /c", 0, 690, stack{"main.planted", 600}, stack{"main.c", 90})
		s.span("8", "6", "d server GET /d", 0, 440, stack{"main.other", 440})
		s.top, s.never, s.ms = "GET /c: on the CPU in main.planted", []string{"main.other"}, 0
	},
	"another language": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("B", "main.ask"), 900}, stack{"main.small", 100})
		s.span("2", "1", "a client B", 100, 1000)
		s.span("3", "2", "python server POST /score", 0, 850)
		s.top = "POST /score: no profile: another tracer or language, or no agent"
		s.missing = "POST /score of python (850 ms): no wall-clock profile: another tracer or language, or no agent."
	},
	"another tracer at the beginning": func(s *shape) {
		s.span("1", "", "gateway server ingress", 0, 1000)
		s.span("2", "1", "a server GET /", 0, 950, stack{"main.planted", 900}, stack{"main.small", 50})
		s.top = "GET /: on the CPU in main.planted"
	},
	"a gateway that did not wait to the end": func(s *shape) {
		s.span("1", "", "gateway server ingress", 0, 1000)
		s.span("2", "1", "a server GET /", 0, 3000, stack{"main.planted", 2000}, stack{"main.small", 1000})
		s.top = "GET /: on the CPU in main.planted"
	},
	"the network": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("B", "main.ask"), 900}, stack{"main.small", 100})
		s.span("2", "1", "a client B", 100, 1000)
		s.span("3", "2", "b server GET /b", 0, 200, stack{"main.b", 200})
		s.top = "GET /b: network, or the queue before GET /b"
	},
	"a lock that another request held": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("B", "main.ask"), 900}, stack{"main.small", 100})
		s.span("2", "1", "a client B", 100, 1000)
		s.span("3", "2", "b server GET /b", 0, 880,
			stack{"main.planted;sync.(*Mutex).Lock;[waiting: mutex];[held by: POST /audit, another request];main.audit;" + answer, 800}, stack{"main.b", 80})
		s.top = "GET /b: waiting for a mutex in main.planted"
	},
	"many calls of one name": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("GET", "main.ask"), 1000})
		for i := range 50 {
			s.span(fmt.Sprint("c", i), "1", "a client GET", 20*i, 20*i+20)
			s.span(fmt.Sprint("s", i), fmt.Sprint("c", i), "b server GET /b", 0, 18, stack{"main.planted", 15}, stack{"main.b", 3})
		}
		s.top = "GET /b: on the CPU in main.planted"
	},
	"a service that calls itself": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("self", "main.ask"), 900}, stack{"main.small", 100})
		s.span("2", "1", "a client self", 0, 900)
		s.span("3", "2", "a server GET /inner", 0, 890, stack{"main.planted", 890})
		s.top = "GET /inner: on the CPU in main.planted"
	},
	"a call without a span": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{"main.ask;" + answer, 900}, stack{"main.small", 100})
		s.span("3", "1", "b server GET /b", 0, 890, stack{"main.planted", 890})
		s.top = "GET /b: on the CPU in main.planted"
	},
	"spans inside the span of a call": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{"span: GET;span: http.receive;main.ask;" + answer, 900}, stack{"main.small", 100})
		s.span("2", "1", "a client GET", 0, 900)
		s.span("3", "2", "a internal http.receive", 10, 900)
		s.span("4", "2", "b server GET /b", 0, 890, stack{"main.planted", 890})
		s.top = "GET /b: on the CPU in main.planted"
	},
	"two answers to one call": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("GET", "main.ask"), 1000})
		s.span("2", "1", "a client GET", 0, 1000)
		s.span("3", "2", "b server GET /b", 0, 900, stack{"main.planted", 900})
		s.span("4", "2", "c server GET /c", 0, 600, stack{"main.c", 600})
		s.top = "GET /b: on the CPU in main.planted"
	},
	"an answer and its body": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000,
			stack{"span: GET;main.read;net/http.(*bodyEOFSignal).Read;[waiting: select];[for: the body of an HTTP answer]", 700},
			stack{on("GET", "main.ask"), 300})
		s.span("2", "1", "a client GET", 0, 1000)
		s.span("3", "2", "b server GET /b", 0, 990, stack{"main.planted", 990})
		s.top = "GET /b: on the CPU in main.planted"
	},
	"a profile with a part that is not recorded": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{on("GET", "main.ask"), 900})
		s.span("2", "1", "a client GET", 0, 900)
		s.span("3", "2", "b server GET /b", 0, 890, stack{"main.planted", 600})
		s.top, s.ms = "GET /b: on the CPU in main.planted", 400
	},
	"a profile of more than its span": func(s *shape) {
		s.span("1", "", "a server GET /", 0, 1000, stack{"main.planted", 900}, stack{"main.small", 300})
		s.top, s.ms = "GET /: on the CPU in main.planted", 250
	},
}

// TestShapes: in traces of every shape the parts sum to the duration of the trace, and the first one is what was planted.
func TestShapes(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		t.Run(name, func(t *testing.T) {
			var s shape
			shapes[name](&s)
			main, ok := why.Main(s.spans, func(of traces.Span) bool { return s.stacks[of.ID] != nil })
			if !ok {
				t.Fatal("no span has a profile")
			}
			whole, err := why.Stitch(s.spans, main, s.read)
			if err != nil {
				t.Fatal(err)
			}
			s.check(t, whole.Report())
			checkWhole(t, whole.Profile(), s)
		})
	}
}

// TestTheSpanToExplain: what took longest is explained from its beginning.
func TestTheSpanToExplain(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(s *shape)
		want   string
	}{
		"a server slower than its client's timeout": {func(*shape) {}, "1"},
		"asynchronous continuation":                 {func(s *shape) { s.spans[2].End = s.spans[2].Start.Add(time.Minute) }, "3"},
		"a call that nobody waits for": {func(s *shape) {
			s.spans[3].End, s.spans[4].End = s.spans[3].Start.Add(time.Minute), s.spans[4].Start.Add(time.Minute)
		}, "5"},
	} {
		var s shape
		shapes[name](&s)
		tt.change(&s)
		if got, _ := why.Main(s.spans, func(of traces.Span) bool { return s.stacks[of.ID] != nil }); got.ID != tt.want {
			t.Errorf("%s: span %s is explained, want %s", name, got.ID, tt.want)
		}
	}
}

// A trace whose parents form a circle has an end, whether its spans have profiles or not.
func TestEndlessTrace(t *testing.T) {
	for _, profiled := range []bool{true, false} {
		var s shape
		for i := range 3 {
			id := fmt.Sprint("s", i)
			var stacks []stack
			if profiled {
				stacks = []stack{{on("ask", "main.ask"), 1000}}
			}
			s.span(id, fmt.Sprint("c", (i+2)%3), fmt.Sprintf("a%d server GET", i), 0, 1000, stacks...)
			s.span(fmt.Sprint("c", i), id, fmt.Sprintf("a%d client ask", i), 0, 1000)
		}
		s.span("main", "c0", "b server GET", 0, 1000, stack{"main.planted", 1000})
		r, err := why.Explain(s.spans, s.spans[len(s.spans)-1], s.read)
		if err != nil {
			t.Fatal(err)
		}
		var sum why.Millis
		for _, p := range r.Parts {
			sum += p.Took
		}
		if sum != why.Millis(time.Second) {
			t.Errorf("%+v", r)
		}
	}
}

// TestWholeTrace has the stacks of a trace across services.
func TestWholeTrace(t *testing.T) {
	var s shape
	shapes["an answer and its body"](&s)
	s.span("4", "3", "b client HTTP GET", 0, 100)
	s.span("5", "4", "c server GET /c", 0, 80)
	s.stacks["3"] = []stack{{"span: GET /b;main.planted", 890}, {"span: GET /b;" + below("main.all", "main.ask;"+answer), 100}}
	whole, err := why.Stitch(s.spans, s.spans[0], s.read)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, sample := range whole.Profile().Sample {
		line := fmt.Sprint(sample.Value[0]/1e6, " ", sample.Label[wallprofile.SpanID])
		for _, l := range slices.Backward(sample.Location) {
			line += ";" + l.Line[0].Function.Name
		}
		got = append(got, line)
	}
	const at = "span: GET / of a;span: GET;main.read;net/http.(*bodyEOFSignal).Read;span: GET /b of b;"
	const in = at + "main.all;sync.(*WaitGroup).Wait;[waiting: WaitGroup];[done by: the same request];main.ask;net/http.(*persistConn).roundTrip;"
	want := []string{
		"890 [3];" + at + "main.planted",
		"80 [5];" + in + "span: GET /c of c;[no profile: another tracer or language, or no agent]",
		"20 [5];" + in + "[network, or the queue before GET /c]",
		"10 [3];span: GET / of a;span: GET;main.read;net/http.(*bodyEOFSignal).Read;[network, or the queue before GET /b]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := profiles.SavedDiagnosis(whole.Profile(), "1"); !strings.HasPrefix(got, "1000 ms GET /: 700 ms (70 %) waiting for the body") {
		t.Errorf("the diagnosis is %q", got)
	}
}

func (s *shape) check(t *testing.T, r *why.Report) {
	t.Helper()
	var sum why.Millis
	for _, p := range r.Parts {
		sum += p.Took
		if slices.Contains(s.never, p.Function) {
			t.Errorf("%s did not decide, and has %v", p.Function, time.Duration(p.Took))
		}
	}
	first := r.Parts[0]
	if got := first.Request + ": " + first.Words(); got != s.top {
		t.Errorf("the first is %q, want %q", got, s.top)
	}
	if root := s.spans[0].Duration(); sum != why.Millis(root) || r.Took != sum {
		t.Errorf("the parts sum to %v of %v, want %v", time.Duration(sum), time.Duration(r.Took), root)
	}
	want := r.Took - first.Took
	if s.ms != 0 {
		want = why.Millis(s.ms) * why.Millis(time.Millisecond)
	}
	if first.Without != want {
		t.Errorf("without the first it would have taken %v, want %v", time.Duration(first.Without), time.Duration(want))
	}
	if s.missing != "" && !slices.Contains(r.Missing, s.missing) {
		t.Errorf("missing: %q, want %q", r.Missing, s.missing)
	}
	if t.Failed() {
		var b strings.Builder
		_ = r.WriteText(&b) // to memory
		t.Log(b.String())
	}
}

// checkWhole checks the profile of a whole trace.
func checkWhole(t *testing.T, p *profile.Profile, s shape) {
	t.Helper()
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	back, err := profile.Parse(&b)
	if err != nil {
		t.Fatal(err)
	}
	if got := profiles.Total(back, 0, nil); got != int64(s.spans[0].Duration()) {
		t.Errorf("the profile sums to %v", time.Duration(got))
	}
	function := s.top[strings.LastIndexByte(s.top, ' ')+1:]
	if !strings.HasPrefix(function, "main.") {
		return
	}
	for _, sample := range back.Sample {
		for _, never := range s.never {
			if profiles.Calls(sample, never) {
				t.Errorf("%s is in the profile", never)
			}
		}
	}
}
