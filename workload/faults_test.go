package workload

import (
	"bytes"
	"context"
	"debug/elf"
	"debug/gosym"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"spanflame/internal/docsection"
	"spanflame/internal/postgrestest"
	"spanflame/internal/wallprofile"
	"spanflame/viewer"
	"spanflame/workload/faults"
)

// listed returns the faults that a service lists, by name.
func (s *services) listed(t *testing.T, url string) map[string]faults.Fault {
	t.Helper()
	resp, err := s.client.Get(url + "/faults")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var list []faults.Fault
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	byName := map[string]faults.Fault{}
	for _, f := range list {
		byName[f.Name] = f
	}
	if len(byName) != len(list) {
		t.Errorf("two faults have the same name: %+v", list)
	}
	return byName
}

// all calls check for each fault of both services, with the URL that switches it.
func (s *services) all(check func(f *fault, url string)) {
	for url, service := range map[string]*Service{s.storefrontURL: s.storefront, s.inventoryURL: s.inventory} {
		for _, f := range service.faults {
			check(f, url+"/faults/"+f.is.Name)
		}
	}
}

// Each fault is switched on with its defaults and with the ends of the ranges of its knobs, and repaired, repeatedly.
func TestFaultsAreSwitched(t *testing.T) {
	s := newServices(t, Config{})
	s.all(func(f *fault, url string) {
		service := strings.TrimSuffix(url, "/faults/"+f.is.Name)
		settings := []string{"", ""}
		want := []map[string]int{{}, {}}
		for _, k := range f.is.Knobs {
			settings = append(settings, fmt.Sprintf("%s=%d", k.Name, k.Min), fmt.Sprintf("%s=%d", k.Name, k.Max))
			want = append(want, map[string]int{k.Name: k.Min}, map[string]int{k.Name: k.Max})
		}
		for i, query := range settings {
			for _, k := range f.is.Knobs {
				if _, set := want[i][k.Name]; !set {
					want[i][k.Name] = k.Default
				}
			}
			got := s.do(t, "PUT", url+"?"+query, nil)
			if got.status != 200 || got.fields["name"] != f.is.Name || got.fields["on"] != true {
				t.Errorf("PUT %s?%s: %d %s", url, query, got.status, got.body)
			}
			for name, is := range s.listed(t, service) {
				if is.On != (name == f.is.Name) || is.On && !maps.Equal(is.Settings, want[i]) {
					t.Errorf("after PUT %s?%s, %s is on: %v with %v, want only %s with %v", url, query, name, is.On, is.Settings, f.is.Name, want[i])
				}
			}
		}
		for range 2 {
			if got := s.do(t, "DELETE", url, nil); got.status != 200 || got.fields["on"] != false || got.fields["settings"] != nil {
				t.Errorf("DELETE %s: %d %s", url, got.status, got.body)
			}
		}
	})
}

// A refused parameter leaves the fault as it was.
func TestWrongSettingsOfFaults(t *testing.T) {
	s := newServices(t, Config{})
	s.all(func(f *fault, url string) {
		wrong := map[string]string{"on=maybe": "on", "%zz": ""}
		for _, k := range f.is.Knobs {
			for _, value := range []string{"", "-5", strconv.Itoa(k.Min - 1), strconv.Itoa(k.Max + 1), strings.Repeat("9", 30), "much", "1.5"} {
				wrong[k.Name+"="+value] = fmt.Sprintf("%s=%q", k.Name, value)
			}
			wrong[fmt.Sprintf("%s=%d&%s=%d", k.Name, k.Min, k.Name, k.Min)] = "is given 2 times"
		}
		for _, r := range []*faults.Request{&f.is.Victim, f.is.Offender} {
			if r == nil {
				continue
			}
			path := r.Route()
			if got := s.do(t, r.Method, s.storefrontURL+path+"?much=1", nil); got.status != 400 || got.fields["parameter"] != "much" {
				t.Errorf("%s %s with an unknown parameter: %d %s, want 400", r.Method, path, got.status, got.body)
			}
		}
		for query, want := range wrong {
			got := s.do(t, "PUT", url+"?"+query, nil)
			if message, _ := got.fields["error"].(string); got.status != 400 || !strings.Contains(message, want) {
				t.Errorf("PUT %s?%s: %d %s, want 400 with %q", url, query, got.status, got.body, want)
			}
		}
		if f.on() {
			t.Errorf("%s is on after refused requests", f.is.Name)
		}
		if got := s.do(t, "DELETE", url+"?ms=1", nil); got.status != 400 {
			t.Errorf("DELETE %s with a parameter: %d %s, want 400", url, got.status, got.body)
		}
		if got := s.do(t, "POST", url, nil); got.status != 405 {
			t.Errorf("POST %s: %d %s, want 405", url, got.status, got.body)
		}
	})
	for _, url := range []string{s.storefrontURL, s.inventoryURL} {
		if got := s.do(t, "GET", url+"/healthz", nil); got.status != 200 {
			t.Errorf("the service is not alive: %d", got.status)
		}
	}
}

// The inventory refuses parameters that its routes do not have, or that are out of range.
func TestWrongParametersOfTheInventory(t *testing.T) {
	s := newServices(t, Config{})
	values := []string{"", "0", "-1", strings.Repeat("9", 30), "much", "1.5"}
	for _, route := range []struct{ method, path, param string }{
		{"GET", "/api/warehouse", "ms"}, {"GET", "/api/ratings", "version"}, {"GET", "/api/balance", ""}, {"POST", "/api/pack", ""},
	} {
		if got := s.do(t, route.method, s.inventoryURL+route.path, nil); got.status != 200 {
			t.Errorf("%s %s without a parameter: %d %s, want 200", route.method, route.path, got.status, got.body)
		}
		queries := map[string]string{"much=1": "much"}
		for _, value := range values {
			if route.param != "" {
				queries[route.param+"="+value] = route.param
			}
		}
		for query, param := range queries {
			got := s.do(t, route.method, s.inventoryURL+route.path+"?"+query, nil)
			if got.status != 400 || got.fields["parameter"] != param {
				t.Errorf("%s %s?%s: %d %s, want 400 that names %s", route.method, route.path, query, got.status, got.body, param)
			}
		}
	}
	if got := s.do(t, "GET", s.inventoryURL+"/healthz", nil); got.status != 200 {
		t.Errorf("the inventory is not alive: %d", got.status)
	}
}

func TestUnknownFault(t *testing.T) {
	s := newServices(t, Config{})
	for _, method := range []string{"PUT", "DELETE"} {
		for _, name := range []string{"earthquake", strings.Repeat("%3Cscript%3E", 1000)} {
			got := s.do(t, method, s.storefrontURL+"/faults/"+name, nil)
			if got.status != 404 || !strings.Contains(got.body, "slow-pricing, lock-convoy") || len(got.body) > 3000 {
				t.Errorf("%s %.20s: %d %s, want a short 404 that lists what there is", method, name, got.status, got.body)
			}
		}
	}
	if got := s.do(t, "PUT", s.inventoryURL+"/faults/slow-pricing", nil); got.status != 404 {
		t.Errorf("the inventory has no prices, but switches slow-pricing: %d %s", got.status, got.body)
	}
}

// Each description is complete, and blames a function that exists, whose frame the compiler keeps.
func TestDescriptionsOfFaults(t *testing.T) {
	s := newServices(t, Config{})
	functions := functionsOf(t)
	s.all(func(f *fault, _ string) {
		is := f.describe()
		if is.Kind == "" || is.Does == "" || is.Repair == "" || is.Victim.Path == "" || is.Victim.PerSecond == 0 {
			t.Errorf("the description is not complete: %+v", is)
		}
		if functions.LookupFunc(is.Function) == nil {
			t.Errorf("%s: there is no function %s", is.Name, is.Function)
		}
		for _, k := range is.Knobs {
			if k.Unit == "" || k.Min < 1 || k.Min > k.Default || k.Default > k.Max {
				t.Errorf("%s: the knob is not complete: %+v", is.Name, k)
			}
		}
		if is.Predicted != nil && (is.Predicted.AddsMS <= 0 || is.Predicted.HalvedSavesMS <= 0) {
			t.Errorf("%s does not hurt: %+v", is.Name, is.Predicted)
		}
	})
}

var update = flag.Bool("update", false, "write the faults into docs/faults.md")

// The documentation lists the faults as the services describe them.
func TestDocumentationOfFaults(t *testing.T) {
	var list strings.Builder
	s := newServices(t, Config{})
	for _, f := range slices.Concat(s.storefront.faults, s.inventory.faults) {
		document(&list, f.describe())
	}
	docsection.Check(t, "../docs/faults.md", "faults, written by go test ./workload -update", list.String(), *update)
}

// document writes the section of one fault.
func document(w io.Writer, f faults.Fault) {
	fmt.Fprintf(w, "\n## %s, in the %s\n\n", f.Name, f.Service)
	fmt.Fprintf(w, "- mistake: %s\n- repair: %s\n- kind: %s\n- to blame: `%s`\n", f.Does, f.Repair, f.Kind, f.Function)
	fmt.Fprintf(w, "- victim: `%s %s`, %g/s\n", f.Victim.Method, f.Victim.Path, f.Victim.PerSecond)
	if f.Offender != nil {
		fmt.Fprintf(w, "- offender: `%s %s`, %g/s\n", f.Offender.Method, f.Offender.Path, f.Offender.PerSecond)
	}
	for _, k := range f.Knobs {
		fmt.Fprintf(w, "- knob: `%s`, %d %s by default, from %d to %d\n", k.Name, k.Default, k.Unit, k.Min, k.Max)
	}
	if f.Predicted != nil {
		fmt.Fprintf(w, "- adds to the victim's median: %.0f ms, of which half of `%s` saves %.0f ms\n",
			f.Predicted.AddsMS, f.Knobs[0].Name, f.Predicted.HalvedSavesMS)
	}
	if f.Cap != "" {
		fmt.Fprintf(w, "- limit: %s\n", f.Cap)
	}
	fmt.Fprintf(w, "\n```\ngo run ./cmd/spanflame load --fault %s/%s\n%s\n```\n\n", f.Service, f.Name, pprofCommand(f))
	page, query := viewer.NamePath(f.Service, f.Span), fmt.Sprintf("Tempo → `{resource.service.name=%q && name=%q}`", f.Service, f.Span)
	if f.Kind == faults.Leak {
		page, query = "/memory?service="+f.Service, fmt.Sprintf("Pyroscope → memory or goroutines of `{service_name=%q}`", f.Service)
	}
	fmt.Fprintf(w, "In the viewer: <http://127.0.0.1:7070%s>. In Grafana: Explore → %s.\n", page, query)
}

// pprofCommand returns the command that shows a fault in a terminal.
func pprofCommand(f faults.Fault) string {
	span, focus := f.Span, regexp.QuoteMeta(wallprofile.Short(f.Function))
	switch f.Kind {
	case faults.Leak:
		for _, leak := range leaks {
			if leak.name == f.Name && leak.goroutines > 0 {
				return "go tool pprof -top http://127.0.0.1:16060/debug/pprof/goroutine"
			}
		}
		return fmt.Sprintf("go tool pprof -top -focus='%s' 'http://127.0.0.1:16060/debug/pprof/heap?gc=1'", focus)
	case faults.Machine: // the victims only wait
		return fmt.Sprintf("go tool pprof -top -focus='%s' %s-cpu.pb.gz", focus, f.Service)
	case faults.Outside:
		if f.Offender != nil { // no profile shows whom the victims wait for
			span = f.Offender.Method + " " + f.Offender.Route()
		}
	}
	return fmt.Sprintf("go tool pprof -top -show_from='^span: %s$' -focus='%s' %s-wall.pb.gz", span, focus, f.Service)
}

// functionsOf reads the symbols of the test's own program.
func functionsOf(t *testing.T) *gosym.Table {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("programs have another format")
	}
	program, err := elf.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	lines, err := program.Section(".gopclntab").Data()
	if err != nil {
		t.Fatal(err)
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(lines, program.Section(".text").Addr))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// The bytes allocated show how often the tariff is compiled, regardless of the speed.
func TestSlowPricingCompilesForEachItem(t *testing.T) {
	s := newServices(t, Config{}).storefront
	compile := testing.AllocsPerRun(1, func() {
		if _, err := compileTariff(tariffText); err != nil {
			t.Fatal(err)
		}
	})
	basket := fillBasket(4)
	price := func() (cents int64, compilations float64) {
		allocs := testing.AllocsPerRun(1, func() {
			var err error
			if cents, err = priceBasket(t.Context(), basket, s.handlingFee); err != nil {
				t.Fatal(err)
			}
		})
		return cents, allocs / compile
	}
	repaired, n := price()
	if n > 0.5 {
		t.Errorf("repaired, the tariff is compiled %.1f times for a basket, want never", n)
	}
	s.slowPricing.switchOn()
	faulty, n := price()
	if n < 3.5 || n > 4.5 {
		t.Errorf("with the fault, the tariff is compiled %.1f times for a basket of 4", n)
	}
	if faulty != repaired {
		t.Errorf("the basket costs %d cents with the fault and %d without", faulty, repaired)
	}
}

func TestTariff(t *testing.T) {
	tariff, err := compileTariff(tariffText)
	if err != nil {
		t.Fatal(err)
	}
	for sku, want := range map[string]int64{
		"coffee-beans-1kg": 60, "coffee-beans-old-refurbished": 40, "mug-tin-set-of-6": 240, "gift-card-50": 0, "spoon": 100, "": 100,
		"MUG-Öland": 150, "coffee-beans-1kg\n": 0, "two words": 0,
	} {
		if got := tariff.feeFor(sku); got != want {
			t.Errorf("fee for %q: %d, want %d", sku, got, want)
		}
	}
	for want, text := range map[string]string{
		"must be a pattern and a fee": "mug-* 5 6",
		`"mug-*": must be`:            "mug-*",
		`"mug-* free": fee`:           "mug-* free",
	} {
		if _, err := compileTariff(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", text, err, want)
		}
	}
}

// While the inventory has a reservation to answer, the till is free, unless the fault is on.
func TestLockConvoyHoldsTheTillOverTheInventorysAnswer(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	inventory := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		asked <- struct{}{}
		<-answer
	}))
	defer inventory.Close()
	s := newServices(t, Config{InventoryURL: inventory.URL})
	for number, on := range []bool{false, true} {
		set(s.storefront.lockConvoy, on)
		var checkout sync.WaitGroup
		checkout.Go(func() {
			if got := s.get(t, "/api/checkout?items=1"); got.status != 200 || got.fields["order_number"] != float64(number+1) {
				t.Errorf("%d %s, want order %d", got.status, got.body, number+1)
			}
		})
		<-asked
		if held := !tryLock(&s.storefront.till.mu); held != on {
			t.Errorf("fault on: %v; the till is locked: %v", on, held)
		}
		answer <- struct{}{}
		checkout.Wait()
	}
}

// A failed order uses no number: the next order gets it.
func TestOrderNumbersHaveNoGaps(t *testing.T) {
	s := newServices(t, Config{})
	for _, on := range []bool{false, true} {
		set(s.storefront.lockConvoy, on)
		before := s.storefront.till.last
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.storefront.settle(ctx, order{id: "cancelled", lines: []line{{catalogue[0].sku, 1}}}); err == nil {
			t.Error("a cancelled order was settled")
		}
		var orders sync.WaitGroup
		for range 5 {
			orders.Go(func() { s.get(t, "/api/checkout?items=1") })
		}
		orders.Wait()
		if n := s.storefront.till.last - before; n != 5 {
			t.Errorf("fault on: %v; 5 orders took %d numbers", on, n)
		}
	}
}

// While the warehouse has a reservation to confirm, the stock is free, unless the fault is on.
func TestLockConvoyHoldsTheStockOverTheWarehousesAnswer(t *testing.T) {
	away := errors.New("the warehouse is unreachable")
	for _, on := range []bool{false, true} {
		for _, answer := range []error{nil, away} {
			s := newConfirmedStock()
			set(s.lockConvoy, on)
			s.confirm = func(context.Context, time.Duration) error {
				if held := !tryLock(&s.mu); held != on {
					t.Errorf("fault on: %v; the stock is locked: %v", on, held)
				}
				return answer
			}
			_, err := s.reserve(t.Context(), []line{{catalogue[0].sku, 3}})
			left := fullShelf - 3
			if answer != nil {
				left = fullShelf
			}
			if !errors.Is(err, answer) || s.shelves[catalogue[0].sku] != left {
				t.Errorf("fault on: %v, the warehouse says %v: %v with %d left, want %d", on, answer, err, s.shelves[catalogue[0].sku], left)
			}
		}
	}
}

// set switches a fault on or off.
func set(f *fault, on bool) {
	if on {
		f.switchOn()
	} else {
		f.repair()
	}
}

func tryLock(mu *sync.Mutex) bool {
	if !mu.TryLock() {
		return false
	}
	mu.Unlock()
	return true
}

// warehouse is an inventory whose warehouse answers when the test says so.
type warehouse struct {
	*httptest.Server
	asked  chan string   // the number of milliseconds, once for each question
	answer chan struct{} // closed to answer all
}

func newWarehouse(t *testing.T) *warehouse {
	w := &warehouse{asked: make(chan string, 1000), answer: make(chan struct{})}
	w.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		w.asked <- r.URL.Query().Get("ms")
		<-w.answer
	}))
	t.Cleanup(w.Close)
	return w
}

// questions returns how often the warehouse was asked for so many milliseconds, since the last call.
func (w *warehouse) questions() map[string]int {
	counts := map[string]int{}
	for len(w.asked) > 0 {
		counts[<-w.asked]++
	}
	return counts
}

// awaitGoroutine waits until a goroutine has a stack with both functions, of which the second called the first,
// directly or not. If done is closed before, the test fails.
func awaitGoroutine(t *testing.T, inner, outer string, done <-chan struct{}) {
	t.Helper()
	var text bytes.Buffer
	for {
		text.Reset()
		if err := pprof.Lookup("goroutine").WriteTo(&text, 2); err != nil {
			t.Fatal(err)
		}
		for stack := range strings.SplitSeq(text.String(), "\n\n") {
			if i := strings.Index(stack, "\n"+inner+"("); i >= 0 && strings.Contains(stack[i:], "\n"+outer+"(") {
				return
			}
		}
		select {
		case <-done:
			t.Errorf("%s did not wait in %s", outer, inner)
			return
		default:
			time.Sleep(time.Millisecond) // leaves the CPU to the others
		}
	}
}

// holder is a fault whose offender keeps something while the warehouse answers.
type holder struct {
	name      string
	questions int    // of the offender, until it holds all that it can
	waits, in string // the function of the victim that waits, and the one that it calls for that
}

var holders = []holder{
	{"report-lock", 1, "spanflame/workload.(*priceBook).read", "sync.(*RWMutex).RLock"},
	{"pool-drain", 1, "spanflame/workload.(*orderStore).last", "database/sql.(*DB).conn"},
	{"busy-workers", printerCount, "spanflame/workload.(*printers).invoiceHandler", "spanflame/workload.(*printers).have"},
	{"cache-stampede", 1, "spanflame/workload.(*recommender).getOrWait", "sync.(*WaitGroup).Wait"},
	{"slow-log", 1, "spanflame/workload.(*auditLog).writeUnbuffered", "io.(*pipe).write"},
	{"few-slots", 1, "spanflame/workload.(*labels).draw", "golang.org/x/sync/semaphore.(*Weighted).Acquire"},
	{"blocking-refresh", 1, "spanflame/workload.(*rates).read", "sync.(*Cond).Wait"},
	{"row-lock", 1, "spanflame/workload.(*likes).add", "modernc.org/sqlite.(*conn).step"},
}

// While the warehouse answers the offender, the victim waits with the fault and does not without it.
func TestOffendersHoldVictimsUp(t *testing.T) {
	for _, tt := range holders {
		for _, on := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, on: %v", tt.name, on), func(t *testing.T) { tt.hold(t, on, Config{}) })
		}
	}
}

func TestOffendersHoldVictimsUpInPostgreSQL(t *testing.T) {
	cfg := Config{DatabaseURL: postgrestest.Start(t)}
	for _, tt := range []holder{
		{"pool-drain", 16, "spanflame/workload.(*orderStore).last", "database/sql.(*DB).conn"},
		{"row-lock", 1, "spanflame/workload.(*likes).add", "internal/poll.(*FD).Read"},
	} {
		for _, on := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, on: %v", tt.name, on), func(t *testing.T) { tt.hold(t, on, cfg) })
		}
	}
}

// hold sends an offender and then a victim, for which the warehouse answers only when it waits, or is done.
func (tt holder) hold(t *testing.T, on bool, cfg Config) {
	w := newWarehouse(t)
	cfg.InventoryURL = w.URL
	s := newServices(t, cfg)
	answer := sync.OnceFunc(func() { close(w.answer) })
	defer answer() // or a test that fails would not end
	f := s.storefrontFault(t, tt.name)
	limit := f.is.Knobs[0].Max
	f.switchOn(limit)
	if !on {
		f.repair()
	}
	offends := f.is.Victim
	if f.is.Offender != nil {
		offends = *f.is.Offender
	}
	var requests sync.WaitGroup
	requests.Go(func() { s.send(t, offends) })
	for range tt.questions {
		if ms := <-w.asked; (ms == strconv.Itoa(limit)) != on {
			t.Errorf("the warehouse is asked for %s ms", ms)
		}
	}
	done := make(chan struct{})
	requests.Go(func() {
		defer close(done)
		s.send(t, f.is.Victim)
	})
	if on {
		awaitGoroutine(t, "net/http.(*persistConn).roundTrip", f.is.Function, done)
		awaitGoroutine(t, tt.in, tt.waits, done)
	} else {
		<-done // or hangs
	}
	answer()
	requests.Wait()
}
