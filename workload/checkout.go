package workload

import (
	"context"
	"crypto/rand"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// product is something that the storefront sells.
type product struct {
	sku   string
	cents int64
}

// catalogue lists the products that the storefront sells and the inventory has in stock.
var catalogue = [...]product{
	{"coffee-beans-1kg", 2490},
	{"filter-papers-100", 450},
	{"hand-grinder", 8900},
	{"kettle-gooseneck", 6450},
	{"mug-stoneware", 1800},
	{"scale-0.1g", 3995},
	{"tea-sencha-100g", 1275},
	{"teapot-cast-iron", 7400},
}

// promotion lowers a price by a share and adds a fee.
type promotion struct{ permille, fee int64 }

// promotions can be combined freely. bestOffer tries every combination, so each additional promotion doubles its
// work. With 17 it takes about 10 ms: a basket of three is slow enough for a flame graph, and a basket of a hundred
// is slow for its user.
var promotions = [...]promotion{
	{10, 5}, {15, 9}, {20, 30}, {25, 12}, {30, 25}, {35, 60}, {40, 35}, {45, 80}, {50, 95},
	{12, 2}, {18, 22}, {22, 8}, {28, 40}, {32, 15}, {38, 70}, {42, 50}, {48, 100},
}

// minPermille is the share of the list price below which nothing is sold.
const minPermille = 700

// line is one product of an order.
type line struct {
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
}

// order is saved by a checkout.
type order struct {
	id         string
	number     int64
	created    time.Time
	items      int
	totalCents int64
	lines      []line
}

// receipt is the answer to a checkout.
type receipt struct {
	OrderID    string `json:"order_id"`
	Number     int64  `json:"order_number"` // 1, 2, 3, … since the service started
	Items      int    `json:"items"`
	TotalCents int64  `json:"total_cents"`
	TraceID    string `json:"trace_id,omitempty"`
}

// checkout prices a basket, reserves it at the inventory and saves it as an order.
func (s *Service) checkout(r *http.Request) (any, error) {
	values, err := queryInts(r, param{name: "items", fallback: 3, min: 1, max: 500})
	if err != nil {
		return nil, err
	}
	ctx := r.Context()
	o, err := s.placeOrder(ctx, values[0])
	status := "success"
	if err != nil {
		status = "error"
	}
	s.counted.Add(ctx, 1, metric.WithAttributes(attribute.String("status", status)))
	if err != nil {
		return nil, err
	}
	answer := receipt{OrderID: o.id, Number: o.number, Items: o.items, TotalCents: o.totalCents}
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		answer.TraceID = sc.TraceID().String()
	}
	return answer, nil
}

func (s *Service) placeOrder(ctx context.Context, items int) (order, error) {
	trace.SpanFromContext(ctx).SetAttributes(attribute.Int("shop.order.items", items))
	basket := fillBasket(items)
	o := order{id: rand.Text(), created: time.Now(), items: items, lines: linesOf(basket)}
	err := s.inSpan(ctx, "pricing", func(ctx context.Context) (err error) {
		o.totalCents, err = priceBasket(ctx, basket, s.handlingFee)
		return err
	})
	if err != nil {
		return o, err
	}
	o.number, err = s.settle(ctx, o)
	return o, err
}

func (s *Service) reserveAndSave(ctx context.Context, o order) error {
	if err := s.stock.reserve(ctx, o.lines); err != nil {
		return err
	}
	return s.inSpan(ctx, "database_save_transaction", func(ctx context.Context) error {
		return s.orders.save(ctx, o)
	})
}

// fillBasket returns items products, cycling through the catalogue.
func fillBasket(items int) []product {
	basket := make([]product, items)
	for i := range basket {
		basket[i] = catalogue[i%len(catalogue)]
	}
	return basket
}

// linesOf counts the basket's products, in the basket's order.
func linesOf(basket []product) []line {
	var lines []line
	at := map[string]int{}
	for _, p := range basket {
		i, ok := at[p.sku]
		if !ok {
			i = len(lines)
			at[p.sku] = i
			lines = append(lines, line{SKU: p.sku})
		}
		lines[i].Quantity++
	}
	return lines
}

// priceBasket adds up the best offers for the products and their handling fees. It is the CPU work of a checkout;
// it intentionally prices every item again, so that the cost grows with the basket.
//
//go:noinline
func priceBasket(ctx context.Context, basket []product, handlingFee func(sku string) (int64, error)) (cents int64, err error) {
	for _, p := range basket {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		fee, err := handlingFee(p.sku)
		if err != nil {
			return 0, err
		}
		cents += bestOffer(p.cents) + fee
	}
	return cents, nil
}

// bestOffer returns the lowest price that any combination of promotions gives, but not below minPermille of the
// list price. It is not inlined, so that flame graphs show it under priceBasket.
//
//go:noinline
func bestOffer(list int64) int64 {
	best, floor := list, list*minPermille/1000
	for set := range uint32(1) << len(promotions) {
		price := list
		for i, p := range promotions {
			if set&(1<<i) != 0 {
				price = price*(1000-p.permille)/1000 + p.fee
			}
		}
		if price < best && price >= floor {
			best = price
		}
	}
	return best
}
