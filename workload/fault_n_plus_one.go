package workload

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"spanflame/workload/faults"
)

// reviewCount is how many reviews there are, one for each of so many products.
const reviewCount = 200

const (
	createReviews = `CREATE TABLE IF NOT EXISTS reviews (product BIGINT PRIMARY KEY, stars BIGINT NOT NULL, words TEXT NOT NULL)`
	selectReviews = `SELECT product, stars, words FROM reviews WHERE product <= $1 ORDER BY product`
	selectReview  = `SELECT product, stars, words FROM reviews WHERE product = $1`
)

// fillReviews returns a statement that adds the reviews that are missing.
func fillReviews() string {
	rows := make([]string, reviewCount)
	for i := range rows {
		rows[i] = fmt.Sprintf("(%d, %d, 'as described')", i+1, 1+i%5)
	}
	return "INSERT INTO reviews (product, stars, words) VALUES " + strings.Join(rows, ", ") + " ON CONFLICT DO NOTHING"
}

// addNPlusOne adds the fault that the reviews are read by a query each.
func (s *Service) addNPlusOne() {
	f := s.addFault(&fault{is: faults.Fault{
		Name:     "n-plus-one",
		Kind:     faults.Outside,
		Does:     "the reviews of a page are read from the database one by one",
		Repair:   "they are read by one query",
		Function: "spanflame/workload.(*orderStore).reviewsOneByOne",
		Victim:   faults.Request{Method: "GET", Path: "/api/reviews", PerSecond: 5},
		Knobs:    []faults.Knob{{Name: "reviews", Unit: "queries", Default: 100, Min: 2, Max: reviewCount}},
	}})
	s.handle("GET /api/reviews", func(r *http.Request) (any, error) {
		if _, err := queryInts(r); err != nil {
			return nil, err
		}
		if knobs, on := f.settings(); on {
			return s.orders.reviewsOneByOne(r.Context(), knobs[0])
		}
		return s.orders.reviews(r.Context(), selectReviews, f.is.Knobs[0].Default)
	})
}

// review is what a customer says about a product.
type review struct {
	Product int    `json:"product"`
	Stars   int    `json:"stars"`
	Words   string `json:"words"`
}

// reviews is the repaired code.
func (s *orderStore) reviews(ctx context.Context, query string, product int) (list []review, err error) {
	rows, err := s.db.QueryContext(ctx, query, product)
	if err != nil {
		return nil, fmt.Errorf("read reviews: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var v review
		if err := rows.Scan(&v.Product, &v.Stars, &v.Words); err != nil {
			return nil, fmt.Errorf("read reviews: %w", err)
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// reviewsOneByOne is reviews with the fault.
//
//go:noinline
func (s *orderStore) reviewsOneByOne(ctx context.Context, n int) (list []review, err error) {
	for product := range n {
		one, err := s.reviews(ctx, selectReview, product+1)
		if err != nil {
			return nil, err
		}
		list = append(list, one...)
	}
	return list, nil
}
