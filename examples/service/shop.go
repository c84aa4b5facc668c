package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/go-chi/chi/v5"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
)

// slowly is how long those take whom a request of the shop waits for.
const slowly = 200 * time.Millisecond

// shop has routes with one mistake each, such as services make. Each mistake is a function of its own: examples/README.md
// lists them, with what the diagnosis of a request says.
type shop struct {
	*service
	warehouse *warehouse

	stopping   <-chan struct{} // closed when the service begins to stop
	life       context.Context // of what runs in the background
	end        context.CancelFunc
	background sync.WaitGroup

	refresh chan struct{}
	labels  chan label
	loads   singleflight.Group
	pricing sync.RWMutex
	prices  int // guarded by pricing

	mu       sync.Mutex
	sessions [][]byte // guarded by mu
}

// printers is how many labels can be printed at the same time.
const printers = 2

func newShop(ctx context.Context, s *service) (*shop, error) {
	w, err := newWarehouse(s)
	if err != nil {
		return nil, err
	}
	p := &shop{service: s, warehouse: w, stopping: ctx.Done(), refresh: make(chan struct{}), labels: make(chan label)}
	p.life, p.end = context.WithCancel(context.Background())
	p.background.Go(p.refresher)
	for range printers {
		p.background.Go(p.printer)
	}
	return p, nil
}

func (s *shop) close() error {
	s.end()
	s.background.Wait()
	return s.warehouse.close()
}

func (s *shop) addTo(r chi.Router) {
	r.Get("/price", s.answer(s.price))
	r.Post("/prices", s.answer(s.refreshNow))
	r.Post("/label", s.answer(s.printLabel))
	r.Get("/export", s.export)
	r.Get("/count", s.answer(s.count))
	r.Get("/tariff", s.answer(s.tariff))
	r.Get("/pricelist", s.answer(s.pricelist))
	r.Get("/stock", s.answer(s.stockWithRetries))
	r.Get("/page", s.answer(s.page))
	r.Get("/rates", s.answer(s.rates))
	r.Get("/catalog", s.answer(s.catalog))
	r.Get("/report", s.answer(s.report))
	r.Get("/basket", s.answer(s.basket))
	r.Post("/reserve", s.answer(s.reserve))
	r.Get("/shipment", s.answer(s.shipment))
	r.Get("/events", s.events)
	r.Post("/session", s.answer(s.session))
	r.Get("/watch", s.answer(s.watch))
	r.Get("/partner/pricelist", s.partnersPricelist)
	r.Get("/partner/stock", s.partnersStock)
	r.Get("/partner/{what}", s.answer(s.partner))
}

// Lock queue.

// price reads a price.
func (s *shop) price(*http.Request) (any, error) {
	s.pricing.RLock()
	defer s.pricing.RUnlock()
	return s.prices, nil
}

// refreshNow does not wait until the prices are new.
func (s *shop) refreshNow(r *http.Request) (any, error) {
	select {
	case s.refresh <- struct{}{}:
		return "refreshing", nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// refresher refreshes the prices once an hour, and when it is told to.
func (s *shop) refresher() {
	for {
		select {
		case <-s.refresh:
		case <-time.After(time.Hour):
		case <-s.life.Done():
			return
		}
		if err := s.refreshPrices(s.life); err != nil && s.life.Err() == nil {
			s.log.Error("prices not refreshed", "error", err)
		}
	}
}

// refreshPrices asks the partner for prices. Its mistake: it holds the lock meanwhile, so all readers wait for the partner.
func (s *shop) refreshPrices(ctx context.Context) error {
	s.pricing.Lock()
	defer s.pricing.Unlock()
	return s.fetch(ctx, "/partner/prices", &s.prices)
}

// Worker pool.

// label is a label to print. Its printer closes printed.
type label struct{ printed chan struct{} }

// printLabel has a label printed, and waits until it is.
func (s *shop) printLabel(r *http.Request) (any, error) {
	l := label{make(chan struct{})}
	select {
	case s.labels <- l:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	<-l.printed
	return "printed", nil
}

// printer prints one label after the other.
func (s *shop) printer() {
	for {
		select {
		case l := <-s.labels:
			s.print(l)
		case <-s.life.Done():
			return
		}
	}
}

// print prints a label. Its mistake: it waits until the paper is out, and no other label can be printed meanwhile.
func (s *shop) print(l label) {
	time.Sleep(slowly)
	close(l.printed)
}

// Exhausted database pool.

// count reads from the database, which has one connection.
func (s *shop) count(r *http.Request) (any, error) {
	var n int
	err := s.db.QueryRowContext(r.Context(), `SELECT count(*) FROM quotes`).Scan(&n)
	return n, err
}

// export sends all suppliers with their rating. Its mistake: it asks the partner while it reads rows, which keeps a
// connection of the pool.
func (s *shop) export(w http.ResponseWriter, r *http.Request) {
	rows, err := s.db.QueryContext(r.Context(), `SELECT DISTINCT supplier FROM quotes`)
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	defer rows.Close()
	fmt.Fprintln(w, "supplier,rating")
	err = http.NewResponseController(w).Flush()
	for err == nil && rows.Next() {
		var supplier string
		var rating int
		if err = rows.Scan(&supplier); err == nil {
			err = s.fetch(r.Context(), "/partner/rating", &rating)
		}
		fmt.Fprintf(w, "%s,%d\n", supplier, rating)
	}
	if err := errors.Join(err, rows.Err()); err != nil {
		s.log.WarnContext(r.Context(), "export not complete", "error", err)
	}
}

// Slow HTTP header.

// tariff asks the partner, which takes long to answer. Its mistake: it asks for each request again.
func (s *shop) tariff(r *http.Request) (cents any, err error) {
	err = s.fetch(r.Context(), "/partner/tariff", &cents)
	return cents, err
}

// Slow HTTP body.

// pricelist asks the partner, which begins to answer at once, and takes long to send all of it. Its mistake is that of tariff.
func (s *shop) pricelist(r *http.Request) (cents any, err error) {
	err = s.fetch(r.Context(), "/partner/pricelist", &cents)
	return cents, err
}

// partnersPricelist sends the beginning of an answer at once.
func (s *shop) partnersPricelist(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(w, "[1,")
	if err := http.NewResponseController(w).Flush(); err != nil {
		s.log.WarnContext(r.Context(), "answer not sent", "error", err)
	}
	time.Sleep(slowly)
	fmt.Fprintln(w, "2]")
}

// Retries.

const attempts = 3

// stockWithRetries asks the partner until it has an answer. Its mistake: it waits for a fixed time before it asks again, and
// logs no failure, so nobody sees why it takes so long.
func (s *shop) stockWithRetries(r *http.Request) (any, error) {
	attempt := 0
	return backoff.Retry(r.Context(), func() (pieces int, err error) {
		attempt++
		err = s.fetch(r.Context(), "/partner/stock?attempt="+strconv.Itoa(attempt), &pieces)
		return pieces, err
	}, backoff.WithBackOff(backoff.NewConstantBackOff(slowly/2)))
}

// partnersStock answers the last attempt.
func (s *shop) partnersStock(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("attempt") != strconv.Itoa(attempts) {
		http.Error(w, "busy", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, 7)
}

// Straggler of an errgroup.

// page has parts, which are fetched at the same time.
func (s *shop) page(r *http.Request) (any, error) {
	group, ctx := errgroup.WithContext(r.Context())
	group.Go(func() error { return s.pictures(ctx) })
	group.Go(func() error { return s.reviews(ctx) })
	return "page", group.Wait()
}

func (s *shop) pictures(ctx context.Context) error {
	var pictures int
	return s.fetch(ctx, "/partner/pictures", &pictures)
}

// reviews takes longest. Its mistake: the page is not sent without the reviews, which few people read.
func (s *shop) reviews(ctx context.Context) error {
	var reviews int
	return s.fetch(ctx, "/partner/reviews", &reviews)
}

// Singleflight.

// rates has one request load the rates for all that come meanwhile.
func (s *shop) rates(r *http.Request) (any, error) {
	rates, err, _ := s.loads.Do("rates", func() (any, error) { return s.loadRates(context.WithoutCancel(r.Context())) })
	return rates, err
}

// loadRates asks the partner. Its mistake: it keeps nothing, and everybody waits for the next load as well.
func (s *shop) loadRates(ctx context.Context) (rates any, err error) {
	err = s.fetch(ctx, "/partner/rates", &rates)
	return rates, err
}

// JSON.

type article struct {
	Name  string
	Cents int
	Tags  []string
}

// catalog returns how many articles there are.
func (s *shop) catalog(*http.Request) (any, error) {
	articles := make([]article, 60_000)
	for i := range articles {
		articles[i] = article{"article", i, []string{"red", "round"}}
	}
	copied, err := copyByJSON(articles)
	return len(copied), err
}

// copyByJSON makes a deep copy. Its mistake: it encodes and decodes all of it.
func copyByJSON(articles []article) (copied []article, err error) {
	b, err := json.Marshal(articles)
	if err != nil {
		return nil, err
	}
	return copied, json.Unmarshal(b, &copied)
}

// Garbage collection.

type row struct {
	cells []*string
	next  *row
}

func (s *shop) report(*http.Request) (any, error) {
	rows := 0
	for r := allRows(300_000); r != nil; r = r.next {
		rows++
	}
	return rows, nil
}

// allRows returns a list of rows. Its mistake: it keeps all of them, in small pieces, which the garbage collector has to
// follow again and again while it makes more.
func allRows(n int) (first *row) {
	for i := range n {
		cells := make([]*string, 4)
		for c := range cells {
			text := strconv.Itoa(i + c)
			cells[c] = &text
		}
		first = &row{cells, first}
	}
	return first
}

// N+1.

const basketItems = 200

// basket finds the price of each item. Its mistake: it asks the database for one item after the other.
func (s *shop) basket(r *http.Request) (any, error) {
	sum := 0
	for i := range basketItems {
		var cents int
		err := s.db.QueryRowContext(r.Context(), `SELECT min(cents) FROM items WHERE item = $1`, i).Scan(&cents)
		if err != nil {
			return nil, err
		}
		sum += cents
	}
	return sum, nil
}

// Server-sent events.

// events sends events until the client is gone. It makes no mistake: it is meant to last.
func (s *shop) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for r.Context().Err() == nil {
		fmt.Fprint(w, "data: nothing new\n\n")
		if err := http.NewResponseController(w).Flush(); err != nil {
			return // the client is gone
		}
		select {
		case <-time.After(slowly / 2):
		case <-r.Context().Done():
		case <-s.stopping:
			return
		}
	}
}

// Leaks.

func (s *shop) session(*http.Request) (any, error) {
	session := newSession()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions = append(s.sessions, session)
	return len(s.sessions), nil
}

// newSession returns what is kept of a visitor. Its mistake: nothing ever forgets it.
func newSession() []byte { return make([]byte, 256<<10) }

// watch has a price watched for as long as the request takes.
func (s *shop) watch(*http.Request) (any, error) {
	s.background.Go(s.watchPrice)
	return "watching", nil
}

// watchPrice waits for new prices. Its mistake: it ends with the service, not with the request.
func (s *shop) watchPrice() {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.life.Done():
			return
		}
	}
}

// partner is the answer of another service, which takes its time, except for pictures.
func (s *shop) partner(r *http.Request) (any, error) {
	if chi.URLParam(r, "what") != "pictures" {
		time.Sleep(slowly)
	}
	return 1, nil
}
