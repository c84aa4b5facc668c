package workload

import (
	"context"
	"net/http"
	"sync"

	"spanflame/workload/faults"
)

// importMB is how many MiB of rows are imported.
const importMB = 256

// rowBytes is the size of a row, which has a pointer, so that the garbage collector has to follow it.
type row struct {
	next *row
	text [120]byte
}

// importer imports rows, in one run at a time.
type importer struct {
	fault   *fault
	running sync.Mutex
}

// addMuchGarbage adds the fault that a job allocates faster than the garbage collector can follow.
func (s *Service) addMuchGarbage() {
	i := &importer{fault: s.addFault(&fault{is: faults.Fault{
		Name:     "much-garbage",
		Kind:     faults.Machine,
		Does:     "an import allocates memory for each row, in many workers: requests that allocate have to help the garbage collector",
		Repair:   "the import uses the memory of one row again and again",
		Function: "spanflame/workload.importRows",
		Victim:   faults.Request{Method: "GET", Path: "/api/thumbnails", PerSecond: 10},
		Offender: &faults.Request{Method: "POST", Path: "/api/import", PerSecond: 2},
		Knobs:    []faults.Knob{{Name: "import_mb", Unit: "MiB", Default: importMB, Min: 1, Max: 2048}},
		Cap:      "one import at a time, which keeps 16 MiB at most",
	}})}
	s.handle("GET /api/thumbnails", thumbnailsHandler)
	s.handle("POST /api/import", i.handler)
}

// thumbnails is the answer to GET /api/thumbnails.
type thumbnails struct {
	Bytes int `json:"bytes"`
}

// thumbnailsHandler answers GET /api/thumbnails. It allocates 8 MiB.
func thumbnailsHandler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	return thumbnails{8 << 20}, churnMemory(r.Context(), 8)
}

// imported is the answer to POST /api/import.
type imported struct {
	MiB int `json:"mib"`
}

// handler answers POST /api/import.
func (i *importer) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	i.running.Lock()
	defer i.running.Unlock()
	if knobs, on := i.fault.settings(); on {
		var workers sync.WaitGroup
		for range importWorkers {
			workers.Go(func() { importRows(r.Context(), knobs[0]<<20/importWorkers) })
		}
		workers.Wait()
		return imported{knobs[0]}, r.Context().Err()
	}
	return imported{importMB}, importReusing(r.Context(), importMB<<20)
}

const importWorkers = 4

// importReusing is the repaired code.
func importReusing(ctx context.Context, bytes int) error {
	var one row
	for n := 0; n < bytes; n += 128 {
		one.text[n/128%len(one.text)]++
	}
	return ctx.Err()
}

// importRows is importReusing with the fault. It keeps the last 4 MiB.
//
//go:noinline
func importRows(ctx context.Context, bytes int) {
	var last *row
	for n := 0; n < bytes; n += 128 {
		if n%(4<<20) == 0 {
			if last = nil; ctx.Err() != nil {
				return
			}
		}
		last = &row{next: last}
		last.text[0]++
	}
}
