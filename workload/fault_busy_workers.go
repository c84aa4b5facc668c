package workload

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"spanflame/workload/faults"
)

// letterMS is how many milliseconds the warehouse takes for a letter of a mailing.
const letterMS = 420

// printerCount is how many workers print, and how many letters a mailing has.
const printerCount = 2

// printers are workers that print invoices and letters. They wait for jobs from the start of the service on.
type printers struct {
	fault *fault
	stock *inventoryClient
	jobs  chan job
}

// job is one document to print, and where its printer says that it is done.
type job struct {
	ctx  context.Context
	doc  printable
	done chan error
}

type printable interface {
	print(ctx context.Context) error
}

// addBusyWorkers adds the fault that all workers wait for the warehouse.
func (s *Service) addBusyWorkers() {
	const perSecond = 2
	p := &printers{stock: s.stock, jobs: make(chan job), fault: s.addFault(&fault{
		is: faults.Fault{
			Name:     "busy-workers",
			Kind:     faults.Inside,
			Does:     "letters of a mailing ask the warehouse while they are printed: all workers are busy, and invoices queue for one",
			Repair:   "a mailing asks the warehouse before it has its letters printed",
			Function: "spanflame/workload.(*incompleteLetter).print",
			Victim:   faults.Request{Method: "POST", Path: "/api/invoice", PerSecond: perSecond},
			Offender: &faults.Request{Method: "POST", Path: "/api/mailing", PerSecond: perSecond},
			Knobs:    []faults.Knob{{Name: "letter_ms", Unit: "ms", Default: letterMS, Min: 1, Max: maxWarehouseMS}},
		},
		delay: func(knobs []int) float64 { return turns(perSecond, knobs[0]) },
	})}
	for range printerCount {
		s.background(p.work)
	}
	s.handle("POST /api/invoice", p.invoiceHandler)
	s.handle("POST /api/mailing", p.mailingHandler)
}

// work prints what it is given until the service is closed.
func (p *printers) work(ctx context.Context) {
	for {
		select {
		case j := <-p.jobs:
			j.done <- j.doc.print(j.ctx)
		case <-ctx.Done():
			return
		}
	}
}

// have has a document printed and waits until it is.
//
//go:noinline
func (p *printers) have(ctx context.Context, doc printable) error {
	j := job{ctx: ctx, doc: doc, done: make(chan error, 1)} // with room, so that a printer never waits for a request
	select {
	case p.jobs <- j:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// printed is the answer to a request to print.
type printed struct {
	Documents int `json:"documents"`
}

// invoiceHandler answers POST /api/invoice.
func (p *printers) invoiceHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	return printed{Documents: 1}, p.have(r.Context(), &page{title: "Invoice"})
}

// mailingHandler answers POST /api/mailing.
func (p *printers) mailingHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	knobs, on := p.fault.settings()
	var letters sync.WaitGroup
	failures := make(chan error, printerCount)
	for range printerCount {
		letters.Go(func() {
			if on {
				failures <- p.have(r.Context(), &incompleteLetter{stock: p.stock, ms: knobs[0]})
			} else {
				failures <- p.haveComplete(r.Context())
			}
		})
	}
	letters.Wait()
	for range printerCount {
		if err := <-failures; err != nil {
			return nil, err
		}
	}
	return printed{Documents: printerCount}, nil
}

// haveComplete is the repaired code: a letter is complete before it is printed.
func (p *printers) haveComplete(ctx context.Context) error {
	if err := p.stock.warehouse(ctx, letterMS); err != nil {
		return err
	}
	return p.have(ctx, &page{title: "Letter"})
}

// incompleteLetter is a letter with the fault: the worker that prints it asks the warehouse for its text.
type incompleteLetter struct {
	stock *inventoryClient
	ms    int
}

//go:noinline
func (l *incompleteLetter) print(ctx context.Context) error {
	if err := l.stock.warehouse(ctx, l.ms); err != nil {
		return err
	}
	return (&page{title: "Letter"}).print(ctx)
}

// page is a document that has all it needs.
type page struct {
	title string
	text  string
}

func (p *page) print(context.Context) error {
	var text strings.Builder
	fmt.Fprintln(&text, p.title)
	for i, product := range catalogue {
		fmt.Fprintf(&text, "%2d  %-20s %8.2f\n", i+1, product.sku, float64(product.cents)/100)
	}
	p.text = text.String()
	return nil
}
