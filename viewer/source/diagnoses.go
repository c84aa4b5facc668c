package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Limits of the diagnoses of a directory.
const (
	maxDiagnoses     = 100_000     // those of the newest files are kept
	maxDiagnosisText = 400         // characters
	diagnosesBudget  = time.Second // of reading files, for one search; the next one continues
)

// diagnosisIndex has what agents saved about the spans of a directory with their wall-clock profiles. It reads each file once,
// newest first.
type diagnosisIndex struct {
	most   int                                             // maxDiagnoses
	budget time.Duration                                   // diagnosesBudget
	read   func(path string) ([]profiles.Diagnosed, error) // [profiles.Diagnoses]

	reading chan struct{} // holds one token, which guards reading files
	mu      sync.Mutex    // guards what follows
	files   map[string][]string
	spans   map[string]*savedDiagnosis
	unread  int       // files
	looked  time.Time // when the files were last looked at
}

// savedDiagnosis is what was saved about a span, with its cause once that was found for a name of the span.
type savedDiagnosis struct {
	profiles.Diagnosed
	name, cause string
}

func newDiagnosisIndex() *diagnosisIndex {
	x := &diagnosisIndex{
		most: maxDiagnoses, budget: diagnosesBudget, read: profiles.Diagnoses, reading: make(chan struct{}, 1),
		files: make(map[string][]string), spans: make(map[string]*savedDiagnosis),
	}
	x.reading <- struct{}{}
	return x
}

// refresh reads the files of a directory that are new, or as many of them as its time allows.
func (x *diagnosisIndex) refresh(ctx context.Context, d *Directory) error {
	select {
	case <-x.reading:
		defer func() { x.reading <- struct{}{} }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	x.mu.Lock()
	fresh := x.unread == 0 && time.Since(x.looked) < refreshEvery
	x.mu.Unlock()
	if fresh {
		return nil
	}
	entries, err := d.list(ctx, Selection{Type: record.Wall})
	if err != nil {
		return err
	}
	deadline := time.Now().Add(x.budget)
	kept, unread := 0, 0
	listed := make(map[string]bool, len(entries))
	for _, e := range slices.Backward(entries) { // they are by time
		if kept >= x.most {
			break
		}
		listed[e.Path] = true
		switch spans, known := x.files[e.Path]; {
		case known:
			kept += len(spans)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(deadline):
			unread++
		default:
			kept += x.add(d, e.Path)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for path, spans := range x.files {
		if !listed[path] {
			for _, id := range spans {
				delete(x.spans, id)
			}
			delete(x.files, path)
		}
	}
	x.unread, x.looked = unread, time.Now()
	return nil
}

// add reads a file and returns how many spans it has diagnoses of. One that cannot be read has none.
func (x *diagnosisIndex) add(d *Directory, path string) int {
	all, err := x.read(path)
	if bad, ok := errors.AsType[profiles.Damaged](err); ok && !errors.Is(err, fs.ErrNotExist) { // removed because of its age
		d.note(bad)
	}
	ids := make([]string, len(all))
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, one := range all {
		one.Text = format.Clean(one.Text, maxDiagnosisText)
		ids[i], x.spans[one.SpanID] = one.SpanID, &savedDiagnosis{Diagnosed: one}
	}
	x.files[path] = ids
	return len(ids)
}

// diagnose adds the diagnoses to what a search found.
func (x *diagnosisIndex) diagnose(found *Found) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range found.Traces {
		t := &found.Traces[i]
		if saved, ok := x.spans[t.Main.ID]; ok {
			if saved.cause == "" || saved.name != t.Main.Name {
				saved.name, saved.cause = t.Main.Name, wallprofile.WithoutNumbers(saved.Text, t.Main.Name)
			}
			t.Diagnosis, t.Cause, t.Lasts = saved.Text, saved.cause, saved.Lasts
		}
	}
	if x.unread > 0 {
		found.Notes = append(found.Notes, fmt.Sprintf("The diagnoses of %s are still being read: load the page again.", format.Count(x.unread, "older profile")))
	}
}
