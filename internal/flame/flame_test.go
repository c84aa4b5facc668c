package flame

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/pprof/profile"
)

// stack is the functions of a sample, outermost first and joined by semicolons, and its value. Those of golang.org have
// the files of a dependency.
type stack struct {
	functions string
	value     int64
}

func sideOf(unit string, stacks ...stack) Side {
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "any", Unit: unit}}}
	locations := make(map[string]*profile.Location)
	for _, s := range stacks {
		sample := &profile.Sample{Value: []int64{s.value}}
		for _, name := range slices.Backward(strings.Split(s.functions, ";")) {
			if locations[name] == nil {
				function := &profile.Function{Name: name}
				if strings.HasPrefix(name, "golang.org/") {
					function.Filename = "golang.org/x/sync@v0.24.0/a.go"
				}
				locations[name] = &profile.Location{Line: []profile.Line{{Function: function}}}
			}
			sample.Location = append(sample.Location, locations[name])
		}
		p.Sample = append(p.Sample, sample)
	}
	return Side{Profile: p}
}

// deep is a single stack.
func deep(depth int) Side {
	var b strings.Builder
	for i := range depth {
		fmt.Fprintf(&b, ";main.f%d", i)
	}
	return sideOf("nanoseconds", stack{b.String()[1:], 9e8})
}

// TestDeepStacks: a graph says that it was cut, also as one side of a difference; zoomed, each frame above links to itself.
func TestDeepStacks(t *testing.T) {
	whole, cut := deep(maxDepth), deep(maxDepth+1)
	if New(whole, false, "", 0).Cut || !New(cut, false, "", 0).Cut {
		t.Error("want the deeper graph alone to be cut")
	}
	for name, tt := range map[string]struct {
		after, before Side
		want          bool
	}{"neither": {whole, whole, false}, "after": {cut, whole, true}, "before": {whole, cut, true}} {
		if got := NewDifference(Compare(tt.before, tt.after), "nanoseconds", "", 0).Cut; got != tt.want {
			t.Errorf("%s is cut: %v, want %v", name, got, tt.want)
		}
	}
	for i, f := range New(whole, false, "/at?frame=", maxDepth/2).Frames {
		if want := fmt.Sprintf("/at?frame=%d#flame", i); f.Path != want {
			t.Errorf("frame %d of a single stack links to %s, want %s", i, f.Path, want)
		}
	}
}

// titles are the frames of a graph in words, in the order in which they are drawn.
func titles(frames []Frame) []string {
	var all []string
	for _, f := range frames {
		all = append(all, fmt.Sprintf("%s %s+%s %d %s", f.Name, f.X, f.W, f.Y/rowHeight, f.Class))
	}
	return all
}

func TestGraph(t *testing.T) {
	side := sideOf("nanoseconds",
		stack{"span: GET /a/b;example.com/shop.(*Cart).Price;sync.(*Mutex).Lock;[waiting: mutex]", 600}, stack{"span: GET /a/b;main.run", 400},
		stack{"main.dropped", -5}, stack{"main.other", 7})
	side.Keep = func(s *profile.Sample) bool { return s.Value[0] != 7 }
	g := New(side, true, "/at?frame=", 0)
	want := []string{
		"all 0%+100% 0 waiting", "span: GET /a/b 0%+100% 1 waiting", "shop.(*Cart).Price 0%+60% 2 waiting", "sync.(*Mutex).Lock 0%+60% 3 waiting",
		"[waiting: mutex] 0%+60% 4 waiting", "main.run 60%+40% 2 running",
	}
	if got := titles(g.Frames); !slices.Equal(got, want) {
		t.Errorf("frames %q, want %q", got, want)
	}
	if g.Total != "1 µs" || g.Cut || g.Height != 5*rowHeight {
		t.Errorf("total %s, cut %v, height %d", g.Total, g.Cut, g.Height)
	}
	if want := "span: GET /a/b: 1 µs, 100 % (running on the CPU 40 %, waiting 60 %)"; g.Frames[1].Title != want {
		t.Errorf("title %q, want %q", g.Frames[1].Title, want)
	}
	first := Function{
		Name: "sync.(*Mutex).Lock", In: "example.com/shop.(*Cart).Price", State: "waiting: mutex", Value: "600 ns", Percent: "60 %", Class: "waiting",
	}
	if len(g.Top) != 2 || g.Top[0] != first || g.Top[1].State != "running" {
		t.Errorf("top %+v, want %+v first", g.Top, first)
	}
	if len(g.Shares) != 2 || g.Shares[0].Words != "running on the CPU" || g.Shares[1].X != "40%" {
		t.Errorf("shares %+v", g.Shares)
	}
	zoomed := New(side, true, "/at?frame=", 3)
	if got := titles(zoomed.Frames); zoomed.Zoomed != "sync.(*Mutex).Lock" || got[2] != "shop.(*Cart).Price 0%+100% 2 waiting" || len(got) != 5 {
		t.Errorf("zoomed to %q: %q", zoomed.Zoomed, got)
	}
	if none := New(side, true, "/at?frame=", 99); none.Zoomed != "" || len(none.Frames) != len(want) {
		t.Errorf("zoomed to no frame: %+v", none)
	}
	if unstated := New(side, false, "", 0); unstated.Shares != nil || strings.Contains(unstated.Frames[1].Title, "(") {
		t.Errorf("a profile without states has %+v", unstated.Frames[1])
	}
}

func TestDifference(t *testing.T) {
	before := sideOf("count", stack{"main.a", 30}, stack{"main.a;main.gone", 10}, stack{"main.same", 60})
	after := sideOf("count", stack{"main.a", 60}, stack{"main.same", 120}, stack{"main.new", 20})
	after.Scale = 0.5
	g := NewDifference(Compare(before, after), after.Unit(), "/at?frame=", 0)
	var got []string
	for _, f := range g.Frames {
		got = append(got, f.Title+" "+f.Class)
	}
	want := []string{
		"all: before 100, after 100, +0 same", "main.same: before 60, after 60, +0 same",
		"main.a: before 40, after 30, −10 less", "main.gone: before 10, after 0, −10 less",
		"main.new: before 0, after 10, +10 more",
	}
	if !slices.Equal(got, want) {
		t.Errorf("frames %q, want %q", got, want)
	}
	got = nil
	for _, c := range Changes(before, after) {
		got = append(got, fmt.Sprintf("%s %s %s %s %v", c.Name, c.Before, c.After, c.By, c.More))
	}
	if want := []string{"main.gone 10 0 −10 false", "main.new 0 10 +10 true"}; !slices.Equal(got, want) {
		t.Errorf("changes %q, want %q", got, want)
	}
	if Compare(sideOf("count"), sideOf("count")) != nil || NewDifference(nil, "count", "", 0) != nil {
		t.Error("two empty sides have a difference")
	}
}

// TestNegative: the values below zero are a side of their own.
func TestNegative(t *testing.T) {
	after := sideOf("bytes", stack{"main.grew", 3 << 20}, stack{"main.shrank", -5 << 20})
	before := after
	before.Negative = true
	d := Compare(before, after)
	if d.Before != 5<<20 || d.After != 3<<20 || d.Width != 8<<20 {
		t.Errorf("before %v, after %v, width %v: want 5, 3 and 8 MiB", d.Before, d.After, d.Width)
	}
}

// A wait has one kind, and one row in the table, whoever it was for; below it, each frame has the kind of what was done there.
func TestCausesOfWaits(t *testing.T) {
	side := sideOf("nanoseconds",
		stack{"main.lock;sync.(*Mutex).Lock;[waiting: mutex];[held by: GET /, another request];main.work", 6e8},
		stack{"main.lock;sync.(*Mutex).Lock;[waiting: mutex];[held by: GET /, another request];main.save;[syscall]", 3e8},
		stack{"main.price", 1e8})
	g := New(side, true, "", 0)
	if len(g.Shares) != 2 || g.Shares[0].Class != "running" || g.Shares[0].Value != "100 ms" || g.Shares[1].Class != "waiting" || g.Shares[1].Value != "900 ms" {
		t.Errorf("the shares are %+v", g.Shares)
	}
	if len(g.Top) != 2 || g.Top[0].Name != "sync.(*Mutex).Lock" || g.Top[0].In != "main.lock" || g.Top[0].State != "waiting: mutex" || g.Top[0].Value != "900 ms" {
		t.Errorf("the table is %+v", g.Top)
	}
	for name, class := range map[string]string{"main.lock": "waiting", "[waiting: mutex]": "waiting", "main.work": "running", "main.save": "syscall"} {
		if i := slices.IndexFunc(g.Frames, func(f Frame) bool { return f.Name == name }); i < 0 || g.Frames[i].Class != class {
			t.Errorf("%s is not %s", name, class)
		}
	}
	for _, c := range Changes(sideOf("nanoseconds", stack{"main.price", 1e8}), side) {
		if c.Name != "sync.(*Mutex).Lock" || c.In != "main.lock" || c.State != "[waiting: mutex]" {
			t.Errorf("changed: %+v", c)
		}
	}
}

// A profile from a server has no files.
func TestFilesDoNotMatter(t *testing.T) {
	side := sideOf("nanoseconds", stack{"main.main;main.load;net/http.Get;golang.org/x/sync/singleflight.(*Group).doCall;sync.(*Mutex).Lock", 6e8})
	with := New(side, false, "", 0)
	for _, s := range side.Profile.Sample {
		for _, l := range s.Location {
			l.Line[0].Function.Filename = ""
		}
	}
	if without := New(side, false, "", 0); !reflect.DeepEqual(with, without) {
		t.Errorf("with files %+v\nwithout %+v", with, without)
	}
}

// Without the functions of others, their time is that of the service's own function that called them, and a callback is below it.
func TestOwnCode(t *testing.T) {
	side := sideOf("nanoseconds",
		stack{"runtime.goexit;span: GET /;net/http.serve;main.handle;golang.org/x/sync/errgroup.Wait;sync.(*WaitGroup).Wait;[waiting: WaitGroup]", 600},
		stack{"runtime.goexit;span: GET /;net/http.serve;main.handle;sort.Slice;main.less", 300}, stack{"runtime.gcBgMarkWorker", 100})
	side.OwnCode = true
	g := New(side, true, "", 0)
	want := []string{
		"all 0%+100% 0 waiting", "span: GET / 0%+90% 1 waiting", "main.handle 0%+90% 2 waiting", "[waiting: WaitGroup] 0%+60% 3 waiting",
		"main.less 60%+30% 3 running",
	}
	if got := titles(g.Frames); !slices.Equal(got, want) {
		t.Errorf("frames %q, want %q", got, want)
	}
	var top []string
	for _, f := range g.Top {
		top = append(top, f.Name+" "+f.State+" "+f.Value)
	}
	if want := []string{"main.handle waiting: WaitGroup 600 ns", "main.less running 300 ns"}; !slices.Equal(top, want) {
		t.Errorf("the table is %q, want %q", top, want)
	}
}

// A frame names the line at which most of its time was, and the table that at which it ended.
func TestLines(t *testing.T) {
	side := sideOf("nanoseconds", stack{"main.a;main.b", 500}, stack{"main.a", 200}, stack{"main.a", 300})
	for i, lines := range [][]int64{{7, 10}, {20}, {30}} { // innermost first
		for j, line := range lines {
			at := *side.Profile.Sample[i].Location[j]
			function := *at.Line[0].Function
			function.Filename = "/src/shop/a.go"
			at.Line = []profile.Line{{Function: &function, Line: line}}
			side.Profile.Sample[i].Location[j] = &at
		}
	}
	g := New(side, false, "", 0)
	if title, want := g.Frames[1].Title, "main.a: 1 µs, 100 %, at a.go:10"; title != want {
		t.Errorf("title %q, want %q", title, want)
	}
	if len(g.Top) != 2 || g.Top[0].Line+" "+g.Top[1].Line != "a.go:7 a.go:30" && g.Top[0].Line+" "+g.Top[1].Line != "a.go:30 a.go:7" {
		t.Errorf("the table is %+v", g.Top)
	}
}

// Pyroscope leaves the type parameters of shapes out.
func TestShapesAreLeftOut(t *testing.T) {
	whole := New(sideOf("nanoseconds", stack{"main.f[go.shape.int]", 1}, stack{"main.f[go.shape.map[string]int].func1", 2}), false, "", 0)
	if len(whole.Frames) != 3 || len(whole.Top) != 2 || whole.Top[0].Name != "main.f.func1" || whole.Top[1].Name != "main.f" {
		t.Errorf("the graph is %+v", whole)
	}
}

// In a profile of a whole trace, the time of another service is that of its functions, also below a wait.
func TestWholeTrace(t *testing.T) {
	const all = "span: GET / of a;main.all;sync.(*WaitGroup).Wait;[waiting: WaitGroup];[done by: the same request];"
	g := New(sideOf("nanoseconds",
		stack{all + "main.ask;span: GET /b of b;main.work", 6e8},
		stack{all + "main.ask;[network, or the queue before GET /b]", 1e8},
		stack{all + "main.ask;span: GET /c of c;main.lock;[waiting: mutex];[held by: GET /, another request];main.hold", 3e8}), true, "", 0)
	var got []string
	for _, f := range g.Top {
		got = append(got, f.Name+" "+f.State+" "+f.Value)
	}
	want := []string{"main.work running 600 ms", "main.lock waiting: mutex 300 ms", "sync.(*WaitGroup).Wait waiting: WaitGroup 100 ms"}
	if !slices.Equal(got, want) {
		t.Errorf("the table is %q, want %q", got, want)
	}
	if len(g.Shares) != 2 || g.Shares[0].Value != "600 ms" || g.Shares[1].Value != "400 ms" {
		t.Errorf("the shares are %+v", g.Shares)
	}
}
