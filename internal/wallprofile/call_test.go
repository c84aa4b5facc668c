package wallprofile

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
	"unsafe"
)

func TestCallOf(t *testing.T) {
	query := func(system, statement string) map[string]string {
		return map[string]string{"db.system.name": system, "db.query.text": statement}
	}
	long := "SELECT id, name, price, weight, colour, size, stock, supplier, shelf, created FROM article WHERE id = $1 AND shop = $2"
	for _, tt := range []struct {
		attributes map[string]string
		want       string
	}{
		{query("sqlite", "SELECT name FROM article WHERE id = ?"), "query: SELECT name FROM article WHERE id = ?"},
		{map[string]string{"db.statement": "SELECT 1"}, "query: SELECT ?"},
		{query("mysql", "select * from u where mail = 'a@b.c' and pin=0x1F and f > 1.5e3 -- hunter2\n and x2 = 'it''s'"),
			"query: select * from u where mail = ? and pin=? and f > ? and x2 = ?"},
		{query("mysql", "SELECT * FROM `my table` WHERE word = \"hunter2\""), "query: SELECT * FROM `my table` WHERE word = ?"},
		{query("postgresql", `SELECT "u"."mail" FROM "u" WHERE "u"."id" = $1`), `query: SELECT "u"."mail" FROM "u" WHERE "u"."id" = $1`},
		{query("postgresql", `SELECT E'a\'b', secret`), "query: SELECT ?"},
		{query("mysql", `SELECT 'a\', 'secret'`), "query: SELECT ?"},
		{query("postgresql", `SELECT "a\" = 'secret'`), "query: SELECT ?"},
		{query("mysql", "SELECT `a = 'secret'"), "query: SELECT ?"},
		{query("postgresql", "SELECT $$it's$$, $a$ $$ $a$, U&'x', N'x', x FROM t"), "query: SELECT ?, ?, U&?, ?, x FROM t"},
		{query("sqlite", "SELECT 'never closed"), "query: SELECT ?"},
		{query("sqlite", "/*traceparent='00-1'*/ SELECT\n\tx"), "query: SELECT x"},
		{query("sqlite", "SELECT x FROM t WHERE id IN (1, 2, 3) AND y IN ($1)"), "query: SELECT x FROM t WHERE id IN (…) AND y IN ($1)"},
		{query("sqlite", "INSERT INTO t (a, b) VALUES (?, ?), (?,?), (:a, @b)"), "query: INSERT INTO t (a, b) VALUES (…)"},
		{query("sqlite", "INSERT INTO t (a) VALUES (?), (?)"), "query: INSERT INTO t (a) VALUES (…)"},
		{query("sqlite", long), "query: SELECT … FROM article WHERE id = $1 AND shop = $2"},
		{query("redis", "SET session:1 hunter2"), "query: SET"},
		{query("mssql", "CREATE LOGIN x WITH PASSWORD = hunter2"), "query: CREATE"},
		{query("mongodb", `{"find": "u"}`), ""},
		{map[string]string{"db.operation.name": "findAndModify", "db.collection.name": "orders"}, "query: findAndModify orders"},
		{map[string]string{"http.request.method": "GET", "server.address": "inventory", "server.port": "8080", "url.full": "http://x/y"},
			"HTTP call: GET inventory:8080"},
		{map[string]string{"http.method": "PUT", "http.url": "https://u:secret@shop.example:8443/a?token=secret"},
			"HTTP call: PUT shop.example:8443"},
		{map[string]string{"rpc.system": "grpc", "rpc.service": "a.B", "rpc.method": "C", "server.address": "x"}, "gRPC call: a.B/C"},
		{map[string]string{"rpc.method": "a.B/C"}, "gRPC call: a.B/C"},
		{map[string]string{"messaging.system": "kafka"}, ""},
	} {
		got := CallOf(func(key string) string { return tt.attributes[key] }).Frame()
		if got != tt.want {
			t.Errorf("%v: %s, want %s", tt.attributes, got, tt.want)
		}
		if IsCall(got) != (got != "") || IsCause(got) {
			t.Errorf("%s: a call %t, a cause %t", got, IsCall(got), IsCause(got))
		}
	}
	if got := CallOf(func(string) string { return "SELECT " + strings.Repeat("é\x00", 1000) }).Frame(); utf8.RuneCountInString(got) > 112 {
		t.Errorf("%d characters: %q", utf8.RuneCountInString(got), got)
	}
}

// A call is kept for as long as its span may get a profile: it must not keep a statement of any size alive.
func TestCallKeepsNoAttribute(t *testing.T) {
	for key, length := range map[string]int{"db.query.text": 100, "db.statement": 1 << 20, "db.operation": 1 << 20, "rpc.method": 1 << 20} {
		text := strings.Repeat("SELECT 1 ", length/9)
		c := CallOf(func(asked string) string {
			if asked == key {
				return text
			}
			return ""
		})
		if len(c.what) == 0 || len(c.what) > maxAsked || unsafe.StringData(c.what) == unsafe.StringData(text) {
			t.Errorf("%s of %d bytes: the call keeps %d bytes of it", key, len(text), len(c.what))
		}
	}
}

func FuzzStatement(f *testing.F) {
	f.Add("SELECT 'a', \"b\", $$c$$ FROM t -- d", true)
	f.Fuzz(func(t *testing.T, s string, names bool) {
		attributes := map[string]string{"db.query.text": s}
		if names {
			attributes["db.system.name"] = "postgresql"
		}
		got := CallOf(func(key string) string { return attributes[key] }).Frame()
		if !utf8.ValidString(got) || strings.ContainsAny(got, "\n\x00") || strings.Contains(got, "'") && !strings.ContainsAny(s, "\"`") {
			t.Errorf("%q", got)
		}
	})
}

func TestInCalls(t *testing.T) {
	const query, call = "query: SELECT 1", "HTTP call: GET a:1"
	for _, tt := range []struct {
		frame string
		n     int
		want  string
	}{
		{query, 48, ", in 48 queries one after the other: SELECT 1"},
		{query, 1, ", in the query SELECT 1"},
		{call, 0, ", in the HTTP call GET a:1"},
		{"[waiting: mutex]", 3, ""},
	} {
		if got := InCalls(tt.frame, tt.n); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	for _, tt := range []struct {
		at   Place
		want bool
	}{
		{Place{Leaf: WaitNetwork.Leaf(), For: dbAnswer}, true},
		{Place{Function: "sqlite.step"}, true},
		{Place{Leaf: Syscall.Leaf()}, true},
		{Place{Leaf: WaitSelect.Leaf(), For: "a free connection of database/sql's pool"}, false},
		{Place{Leaf: WaitMutex.Leaf()}, false},
		{Place{Leaf: Runnable.Leaf()}, false},
	} {
		if got := tt.at.during(query); got != tt.want {
			t.Errorf("%v: %t", tt.at, got)
		}
	}
}

func TestMemoryInADiagnosis(t *testing.T) {
	ran := Place{Function: "main.decode"}
	for _, tt := range []struct {
		ms   [3]int // running in main.decode, allocating there, helping the collector there
		want string
	}{
		{[3]int{500, 0, 0}, ""},
		{[3]int{500, 220, 0}, ", 220 ms of it allocating memory"},
		{[3]int{500, 220, 120}, ", 220 ms of it allocating memory and 120 ms more in garbage collection"},
		{[3]int{500, 20, 120}, ", with 120 ms more in garbage collection"},
	} {
		var m Memory
		took := func(i int) time.Duration { return time.Duration(tt.ms[i]) * time.Millisecond }
		m.Add(ran, ran, frames("main.decode"), took(0))
		m.Add(ran, ran, frames("runtime.mallocgc", "runtime.growslice", "main.decode"), took(1))
		m.Add(ran, Place{Function: "main.decode", Leaf: Assisting.Leaf()}, frames("runtime.gcAssistAlloc", "runtime.mallocgc", "main.decode"), took(2))
		m.Add(ran, Place{Function: "main.other", Leaf: Assisting.Leaf()}, frames("main.other"), time.Hour)
		m.Add(ran, Place{Function: "main.decode", Leaf: WaitMutex.Leaf()}, frames("main.decode"), time.Hour)
		if got := m.In(ran, 500*time.Millisecond, nil); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.ms, got, tt.want)
		}
		want := tt.want
		if strings.Contains(want, "collection") {
			want += ", while shop.load allocated most"
		}
		if got := m.In(ran, 500*time.Millisecond, func() string { return ran.Function }); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.ms, got, tt.want)
		}
		if got := m.In(ran, 500*time.Millisecond, func() string { return "example.com/shop.load" }); got != want {
			t.Errorf("%v: %q, want %q", tt.ms, got, want)
		}
	}
}

func TestBusy(t *testing.T) {
	other := func(name string) Ran { return Ran{Frame: CauseFrame(BusyWith, OtherRequest, name)} }
	for _, tt := range []struct {
		times map[Ran]time.Duration
		want  string
	}{
		{map[Ran]time.Duration{other("POST /report"): 71, other("GET /a"): 20}, "the CPUs busy with POST /report (71 %)"},
		{map[Ran]time.Duration{{other("POST /report").Frame, "main.compute"}: 70, other("POST /report"): 5},
			"the CPUs busy with POST /report in main.compute (75 %)"},
		{map[Ran]time.Duration{{other("POST /report").Frame, "main.compute"}: 35, {other("POST /report").Frame, "main.read"}: 35},
			"the CPUs busy with POST /report (70 %)"},
		{map[Ran]time.Duration{{other("POST in main.compute").Frame, "main.compute"}: 70}, "the CPUs busy with POST in main.compute (70 %)"},
		{map[Ran]time.Duration{other("GET /a"): 40, other("GET /b"): 40}, "the CPUs busy with others"},
		{map[Ran]time.Duration{other("GET /a"): 40}, ""},
		{map[Ran]time.Duration{{Frame: CauseFrame(BusyWith, SameRequest, "")}: 100}, "the CPUs busy with the same request (100 %)"},
		{map[Ran]time.Duration{{CauseFrame(BusyWith, NoRequest, "a/b.c"), "a/b.c"}: 100}, "the CPUs busy with b.c (100 %)"},
		{map[Ran]time.Duration{{Frame: CauseFrame(BusyWith, NoRequest, "runtime.gcBgMarkWorker")}: 60}, "the CPUs busy with the garbage collector (60 %)"},
		{nil, ""},
	} {
		if got := Busy(tt.times, 100); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.times, got, tt.want)
		}
	}
	if frame := CauseFrame(BusyWith, SameRequest, ""); IsSameRequest(frame) || !IsCause(frame) {
		t.Errorf("%s: the same request %t, a cause %t", frame, IsSameRequest(frame), IsCause(frame))
	}
}

// A call belongs to a place if nearly all of its time does, or, if it was made several times and there was no other one, a quarter.
func TestCallOfAPlace(t *testing.T) {
	const query, other = "query: SELECT 1", "query: SELECT 2"
	at := Place{Function: "main.reviews"}
	for _, tt := range []struct {
		calls  map[string]time.Duration
		counts map[string]int
		want   string
	}{
		{map[string]time.Duration{query: 95, "": 5}, nil, query},
		{map[string]time.Duration{query: 5, "": 95}, map[string]int{query: 48}, ""},
		{map[string]time.Duration{query: 45, "": 55}, map[string]int{query: 48}, query},
		{map[string]time.Duration{query: 45, "": 55}, map[string]int{query: 1}, ""},
		{map[string]time.Duration{query: 20, "": 80}, map[string]int{query: 48}, ""},
		{map[string]time.Duration{query: 45, other: 45, "": 10}, map[string]int{query: 48, other: 48}, ""},
	} {
		if got := at.Call(tt.calls, tt.counts); got != tt.want {
			t.Errorf("%v, %v: %q, want %q", tt.calls, tt.counts, got, tt.want)
		}
	}
}
