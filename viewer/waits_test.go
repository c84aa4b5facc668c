package viewer

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"spanflame/internal/wallprofile"
	"spanflame/viewer/internal/fixture"
)

// TestWhoMakesOthersWait: the page ranks as the command does, links routes, and is linked from the slow traces.
func TestWhoMakesOthersWait(t *testing.T) {
	d := fixture.New(t)
	waited := func(who string, whose wallprofile.Whose) string {
		return "span: GET /pay;shop.settle;sync.(*Mutex).Lock;" + wallprofile.WaitMutex.Leaf() + ";" + wallprofile.CauseFrame(wallprofile.HeldBy, whose, who)
	}
	d.Spans(fixture.Span{ID: "a", Service: "shop", Name: "GET /pay", Took: time.Second, Profiled: true})
	d.Wall("shop", 0, time.Second,
		fixture.Sample(waited("POST /audit", wallprofile.OtherRequest)+";shop.audit;time.Sleep;"+wallprofile.WaitSleep.Leaf(), 400e6, "a"),
		fixture.Sample(waited("POST /audit", wallprofile.OtherRequest)+";shop.audit;time.Sleep;"+wallprofile.WaitSleep.Leaf(), 300e6, "b"),
		fixture.Sample(waited("shop.report", wallprofile.NoRequest)+";shop.report", 200e6, "a"),
		fixture.Sample("span: GET /pay;shop.compute", 900e6, "a"))
	h := pages(t, open(t, d.Dir), Options{})
	shows(t, page(t, h, "/"), `href="/waits"`)
	shown := page(t, h, "/waits")
	inOrder(t, shown, "700 ms", `<a href="/name?name=POST+%2Faudit&service=shop">`, "2 requests in", "shop.settle", "waiting: sleep", "shop.audit",
		"200 ms", "shop.report", "1 request in", "running")
	if strings.Contains(shown, "shop.compute") {
		t.Errorf("what nobody waited for is on the page:\n%s", shown)
	}
	for _, none := range []string{"/waits?service=other", "/waits?from=2020-01-01T00:00&to=2020-01-02T00:00"} {
		shows(t, page(t, h, none), "No slow request of this service and time waited")
	}
	if w := get(h, "/waits?x=1"); w.Code != http.StatusBadRequest {
		t.Errorf("status %d, want %d", w.Code, http.StatusBadRequest)
	}
}
