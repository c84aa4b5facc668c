package workload

import (
	"bytes"
	"net/http"
	"sync"

	"spanflame/workload/faults"
)

// The titles that are kept, and how many KiB a document has.
const (
	historyTitles = 2000
	titleBytes    = 32
	documentKB    = 64
)

// history has the titles of the documents that were read last.
type history struct {
	fault *fault

	mu     sync.Mutex
	titles [historyTitles][]byte
	next   int // index of the oldest title
}

// addSmallSlices adds the fault that a small slice keeps a large array.
func (s *Service) addSmallSlices() {
	h := &history{}
	h.fault = s.addFault(&fault{free: h.free, is: faults.Fault{
		Name:     "small-slices",
		Kind:     faults.Leak,
		Does:     "the title of each document is kept as a slice of the document, which stays in memory as a whole",
		Repair:   "the title is copied",
		Function: "spanflame/workload.readDocument",
		Victim:   faults.Request{Method: "GET", Path: "/api/document", PerSecond: 20},
		Knobs:    []faults.Knob{{Name: "document_kb", Unit: "KiB", Default: documentKB, Min: 1, Max: maxLeakedKB / historyTitles}},
		Cap:      "the titles of 2000 documents, or 128 MiB",
	}})
	s.handle("GET /api/document", h.handler)
}

// titled is the answer to GET /api/document.
type titled struct {
	Title string `json:"title"`
}

// handler answers GET /api/document.
func (h *history) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	kb := documentKB
	if knobs, on := h.fault.settings(); on {
		kb = knobs[0]
	}
	title := readDocument(kb)[:titleBytes]
	h.keep(title)
	return titled{string(bytes.TrimSpace(title))}, nil
}

//go:noinline
func readDocument(kb int) []byte { return bytes.Repeat([]byte(" a document "), kb<<10/12) }

// keep adds a title in the place of the oldest one.
func (h *history) keep(title []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.fault.on() {
		title = bytes.Clone(title)
	}
	h.titles[h.next] = title
	h.next = (h.next + 1) % historyTitles
}

// free copies the titles.
func (h *history) free() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.titles {
		h.titles[i] = bytes.Clone(h.titles[i])
	}
}
