package workload

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// faultStates asks a service which of its faults are on.
func (s *services) faultStates(t *testing.T, url string) map[string]bool {
	t.Helper()
	resp, err := s.client.Get(url + "/faults")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var list []struct {
		Name, Does, Repair string
		On                 bool
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	on := map[string]bool{}
	for _, f := range list {
		if f.Does == "" || f.Repair == "" {
			t.Errorf("fault %q does not say what it does and how it is repaired: %+v", f.Name, f)
		}
		on[f.Name] = f.On
	}
	return on
}

func TestFaultsAreSwitched(t *testing.T) {
	s := newServices(t, Config{})
	for _, tt := range []struct {
		method, name string
		storefront   map[string]bool
	}{
		{"", "", map[string]bool{"slow-pricing": false, "lock-convoy": false}},
		{"PUT", "slow-pricing", map[string]bool{"slow-pricing": true, "lock-convoy": false}},
		{"PUT", "slow-pricing", map[string]bool{"slow-pricing": true, "lock-convoy": false}},
		{"PUT", "lock-convoy", map[string]bool{"slow-pricing": true, "lock-convoy": true}},
		{"DELETE", "slow-pricing", map[string]bool{"slow-pricing": false, "lock-convoy": true}},
		{"DELETE", "slow-pricing", map[string]bool{"slow-pricing": false, "lock-convoy": true}},
	} {
		if tt.method != "" {
			got := s.do(t, tt.method, s.storefrontURL+"/faults/"+tt.name, nil)
			if got.status != 200 || got.fields["name"] != tt.name || got.fields["on"] != (tt.method == "PUT") {
				t.Errorf("%s %s: %d %s", tt.method, tt.name, got.status, got.body)
			}
		}
		if got := s.faultStates(t, s.storefrontURL); !maps.Equal(got, tt.storefront) {
			t.Errorf("after %s %s: %v, want %v", tt.method, tt.name, got, tt.storefront)
		}
	}
	if got := s.faultStates(t, s.inventoryURL); !maps.Equal(got, map[string]bool{"lock-convoy": false}) {
		t.Errorf("the inventory's faults: %v, want one of its own, which is off", got)
	}
}

func TestUnknownFault(t *testing.T) {
	s := newServices(t, Config{})
	for _, method := range []string{"PUT", "DELETE"} {
		for _, name := range []string{"earthquake", strings.Repeat("%3Cscript%3E", 1000)} {
			got := s.do(t, method, s.storefrontURL+"/faults/"+name, nil)
			if got.status != 404 || !strings.Contains(got.body, "slow-pricing, lock-convoy") || len(got.body) > 1000 {
				t.Errorf("%s %.20s: %d %s, want a short 404 that lists what there is", method, name, got.status, got.body)
			}
		}
		if got := s.do(t, method, s.storefrontURL+"/faults/lock-convoy?on=maybe", nil); got.status != 400 {
			t.Errorf("%s with a parameter: %d %s, want 400", method, got.status, got.body)
		}
	}
	if got := s.do(t, "POST", s.storefrontURL+"/faults/lock-convoy", nil); got.status != 405 {
		t.Errorf("POST: %d %s, want 405", got.status, got.body)
	}
	if got := s.do(t, "PUT", s.inventoryURL+"/faults/slow-pricing", nil); got.status != 404 {
		t.Errorf("the inventory has no prices, but switches slow-pricing: %d %s", got.status, got.body)
	}
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
	s.slowPricing.on.Store(true)
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
		s.storefront.lockConvoy.on.Store(on)
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
		s.storefront.lockConvoy.on.Store(on)
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
			s.lockConvoy.on.Store(on)
			s.confirm = func(context.Context) error {
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

func tryLock(mu *sync.Mutex) bool {
	if !mu.TryLock() {
		return false
	}
	mu.Unlock()
	return true
}
