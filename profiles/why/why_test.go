package why_test

import (
	"bytes"
	"encoding/json"
	"fmt"
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

// stack is functions, outermost first and joined by semicolons, and milliseconds.
type stack struct {
	functions string
	ms        int64
}

// answer is the end of a stack that waits for the answer of another service.
const answer = "net/http.(*persistConn).roundTrip;[waiting: select];[for: the answer of an HTTP call];" +
	"[woken by: net/http.(*persistConn).readLoop, no request];net/http.(*persistConn).readLoop;[waiting: network]"

// shop is a trace of three services: the storefront calls the inventory, and that the warehouse.
type shop struct {
	spans  []traces.Span
	stacks map[string][]stack // by span
}

func newShop() *shop {
	at := time.Unix(1_700_000_000, 0)
	span := func(id, parent, service, kind, name string, ms int) traces.Span {
		return traces.Span{TraceID: strings.Repeat("a", 32), ID: id, ParentID: parent, Service: service, Kind: kind, Name: name,
			Start: at, End: at.Add(time.Duration(ms) * time.Millisecond), Attributes: map[string]string{wallprofile.ProfileIDAttribute: id}}
	}
	return &shop{
		spans: []traces.Span{
			span("1", "", "storefront", "server", "POST /checkout", 1000),
			span("2", "1", "storefront", "client", "HTTP POST", 640),
			span("3", "2", "inventory", "server", "POST /reserve", 600),
			span("4", "3", "inventory", "client", "HTTP GET", 300),
			span("5", "4", "warehouse", "server", "GET /stock", 250),
		},
		stacks: map[string][]stack{
			"1": {
				{"span: POST /checkout;main.price", 100},
				{"span: POST /checkout;main.settle;sync.(*Mutex).Lock;[waiting: mutex];[held by: POST /audit, another request];main.audit;[waiting: sleep]", 250},
				{"span: POST /checkout;main.settle;sync.(*Mutex).Lock;[waiting: mutex];[held by: POST /audit, another request];main.audit", 10},
				{"span: POST /checkout;span: HTTP POST;main.ask;" + answer, 640},
				{"span: POST /checkout;[other goroutines working for this span];main.prefetch", 5000},
			},
			"3": {
				{"span: POST /reserve;main.reserve;[syscall]", 300},
				{"span: POST /reserve;span: HTTP GET;main.stock;" + answer, 300},
			},
		},
	}
}

func (s *shop) read(of traces.Span) (*profile.Profile, error) {
	stacks, ok := s.stacks[of.ID]
	if !ok {
		return nil, fmt.Errorf("span %s: %w", of.ID, profiles.ErrNone)
	}
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "wall", Unit: "nanoseconds"}}}
	for _, st := range stacks {
		sample := &profile.Sample{Value: []int64{st.ms * 1e6}}
		for _, f := range slices.Backward(strings.Split(st.functions, ";")) {
			sample.Location = append(sample.Location, &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: f}}}})
		}
		p.Sample = append(p.Sample, sample)
	}
	return p, nil
}

// TestExplain stitches the spans of three services by their parents, of which the last has no profile.
func TestExplain(t *testing.T) {
	s := newShop()
	r, err := why.Explain(s.spans, s.spans[0], s.read)
	if err != nil {
		t.Fatal(err)
	}
	sum := why.Millis(0)
	var got []string
	for _, p := range r.Parts {
		sum += p.Took
		got = append(got, fmt.Sprintf("%d %s %s: %s %s", time.Duration(p.Took).Milliseconds(), p.Service, p.Request, p.Function, p.State))
	}
	want := []string{
		"300 inventory POST /reserve: main.reserve syscall",
		"260 storefront POST /checkout: main.settle waiting: mutex",
		"250 warehouse GET /stock: no profile: too fast to be recorded, or not kept",
		"100 storefront POST /checkout: main.price running",
		"50 warehouse GET /stock: network, or the queue before GET /stock",
		"40 inventory POST /reserve: network, or the queue before POST /reserve",
	}
	for i := range got {
		got[i] = strings.ReplaceAll(got[i], ":  ", ": ")
	}
	if !slices.Equal(got, want) || sum != why.Millis(time.Second) {
		t.Errorf("%v in all:\n%s\nwant\n%s", time.Duration(sum), strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if c := r.Parts[1].Causes; len(c) != 2 || c[0].Who != "held by: POST /audit, another request" || c[0].Function != "main.audit" ||
		c[0].Took != why.Millis(250*time.Millisecond) {
		t.Errorf("the causes are %+v", c)
	}
	if len(r.Missing) != 1 || r.Missing[0] != "GET /stock of warehouse (250 ms): no wall-clock profile: too fast to be recorded, or not kept." {
		t.Errorf("missing: %q", r.Missing)
	}

	var text, data bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"300 ms    30 %  inventory, POST /reserve: in a system call in main.reserve\n",
		"250 ms  held by: POST /audit, another request: sleeping in main.audit\n",
		"Without the first part it would have taken 700 ms, without the second 740 ms, without the third 750 ms.\n",
	} {
		if !strings.Contains(text.String(), line) {
			t.Errorf("%q is not in\n%s", line, &text)
		}
	}
	if err := r.WriteJSON(&data); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Took  float64 `json:"duration_ms"`
		Parts []struct {
			Ms    float64 `json:"ms"`
			State string  `json:"state"`
		} `json:"parts"`
	}
	if err := json.Unmarshal(data.Bytes(), &back); err != nil || back.Took != 1000 || len(back.Parts) != 6 || back.Parts[0].Ms != 300 ||
		back.Parts[0].State != "syscall" {
		t.Errorf("%v: %s", err, &data)
	}
}

// Answers that overlap share the time that was waited for them, and a server that took longer than its client waited is cut.
func TestAnswersFitTheWait(t *testing.T) {
	s := newShop()
	longer := s.spans[2]
	longer.ID, longer.Attributes = "6", map[string]string{wallprofile.ProfileIDAttribute: "6"}
	s.spans = append(s.spans, longer) // a retry
	s.stacks["6"] = []stack{{"span: POST /reserve;main.again", 600}}
	r, err := why.Explain(s.spans, s.spans[0], s.read)
	if err != nil {
		t.Fatal(err)
	}
	var again, sum why.Millis
	for _, p := range r.Parts {
		sum += p.Took
		if p.Function == "main.again" {
			again += p.Took
		}
	}
	if again != why.Millis(320*time.Millisecond) || sum != why.Millis(time.Second) {
		t.Errorf("the retry has %v of %v", time.Duration(again), time.Duration(sum))
	}
}

func TestTheMainSpan(t *testing.T) {
	s := newShop()
	for want, profiled := range map[string]string{"1": "1 2 3", "3": "2 3 4", "2": "2", "": "none"} {
		got, ok := why.Main(s.spans, func(s traces.Span) bool { return strings.Contains(profiled, s.ID) })
		if got.ID != want || ok != (want != "") {
			t.Errorf("of %s: %q, want %q", profiled, got.ID, want)
		}
	}
}

// Most that makes requests wait is no request: a report, a ticker, a worker.
func TestRankingOfGoroutinesWithoutARequest(t *testing.T) {
	frame := func(name string) *profile.Location {
		return &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: name}}}}
	}
	p := &profile.Profile{Sample: []*profile.Sample{{
		Location: []*profile.Location{
			frame("main.fetch"), frame("main.reportLoop"), frame(wallprofile.CauseFrame(wallprofile.HeldBy, wallprofile.NoRequest, "main.reportLoop")),
			frame(wallprofile.WaitMutex.Leaf()), frame("main.get"), frame(wallprofile.SpanPrefix + "GET /stock"),
		},
		Value: []int64{int64(time.Second)},
	}}}
	var r why.Ranking
	r.Add("shop", p)
	if len(r.Blamed) != 1 || r.Blamed[0].Alone != "main.reportLoop" || r.Blamed[0].Request != "" || r.Blamed[0].Waited != "main.get" {
		t.Fatalf("%+v", r.Blamed)
	}
	var text strings.Builder
	if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "1000 ms  shop, main.reportLoop made others wait in main.get: ") {
		t.Errorf("%v\n%s", err, &text)
	}
}

func TestRanking(t *testing.T) {
	s := newShop()
	p, err := s.read(s.spans[0])
	if err != nil {
		t.Fatal(err)
	}
	for i, sample := range p.Sample {
		sample.Label = map[string][]string{wallprofile.SpanID: {fmt.Sprint(i)}}
	}
	var r why.Ranking
	r.Add("storefront", p)
	r.Add("storefront", p)
	if len(r.Blamed) != 2 || r.Blamed[0].Took != why.Millis(500*time.Millisecond) || r.Blamed[0].Requests != 1 || r.Blamed[0].Request != "POST /audit" ||
		r.Blamed[0].Function != "main.audit" || r.Blamed[0].Waited != "main.settle" || r.Blamed[1].State != "running" {
		t.Errorf("%+v", r.Blamed)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if want := "500 ms  storefront, POST /audit made 1 request wait in main.settle: sleeping in main.audit\n"; !strings.Contains(text.String(), want) {
		t.Errorf("%q is not in\n%s", want, &text)
	}
}

// TestCallsOfAPart: a part says what it asked of a database, and how often if that was one after the other.
func TestCallsOfAPart(t *testing.T) {
	const waiting = "span: POST /checkout;span: sql.conn.query;query: SELECT x FROM t WHERE id = ?;main.load;database/sql.(*Rows).Next;" +
		"net.(*conn).Read;[waiting: network];[for: the database's answer]"
	for _, tt := range []struct {
		step time.Duration // from one query to the next
		want string
	}{
		{10 * time.Millisecond, "waiting for the database's answer in main.load, in 48 queries one after the other: SELECT x FROM t WHERE id = ?"},
		{time.Millisecond, "waiting for the database's answer in main.load, in the query SELECT x FROM t WHERE id = ?"},
	} {
		s := newShop()
		s.stacks["1"] = []stack{{waiting, 480}, {"span: POST /checkout;main.price", 520}}
		for i := range 48 {
			at := s.spans[0].Start.Add(time.Duration(i) * tt.step)
			s.spans = append(s.spans, traces.Span{TraceID: s.spans[0].TraceID, ID: fmt.Sprint("q", i), ParentID: "1", Service: "storefront", Kind: "client",
				Name: "sql.conn.query", Start: at, End: at.Add(9 * time.Millisecond),
				Attributes: map[string]string{"db.query.text": fmt.Sprintf("SELECT x FROM t WHERE id = %d", i)}})
		}
		r, err := why.Explain(s.spans, s.spans[0], s.read)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Parts[1].Words(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// TestSmallParts: parts of less than half a percent are one line, as are such causes, but the first part is never left out.
func TestSmallParts(t *testing.T) {
	s := newShop()
	s.spans = s.spans[:1]
	s.stacks["1"] = []stack{
		{"span: POST /checkout;main.settle;sync.(*Mutex).Lock;[waiting: mutex];[held by: POST /audit, another request];main.audit;[waiting: sleep]", 900},
		{"span: POST /checkout;main.settle;sync.(*Mutex).Lock;[waiting: mutex];[held by: GET /, another request];main.serve", 4},
		{"span: POST /checkout;main.price", 88}, {"span: POST /checkout;main.small", 4}, {"span: POST /checkout;main.smaller", 3},
		{"span: POST /checkout;main.smallest", 1},
	}
	r, err := why.Explain(s.spans, s.spans[0], s.read)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	if text := b.String(); strings.Count(text, "ms  ") != 4 || !strings.Contains(text, "     8 ms     1 %  in 3 smaller parts\n") ||
		strings.Contains(text, "GET /, another request") {
		t.Errorf("%s", text)
	}
	r.Parts[0].Took = 1
	if large := r.Large(10); len(large) == 0 || large[0].Took != 1 {
		t.Errorf("large are %v", large)
	}
}
