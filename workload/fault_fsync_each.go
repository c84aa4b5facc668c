package workload

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"spanflame/workload/faults"
)

// The records that a request appends to the journal, and the size in bytes above which the journal is emptied.
const (
	journalRecords = 20
	maxJournal     = 1 << 20
)

// journal is a file that is next to the order database. It is removed when the service is closed.
type journal struct {
	fault *fault
	path  string
}

// addFsyncEach adds the fault that each record is synced to the disk.
func (s *Service) addFsyncEach() {
	j := &journal{path: s.cfg.Database + ".records", fault: s.addFault(&fault{is: faults.Fault{
		Name:     "fsync-each",
		Kind:     faults.Outside,
		Does:     "each record of the journal is synced to the disk before the next one is written",
		Repair:   "the records of a request are synced together",
		Function: "spanflame/workload.appendSyncingEach",
		Victim:   faults.Request{Method: "POST", Path: "/api/journal", PerSecond: 5},
		Knobs:    []faults.Knob{{Name: "records", Unit: "syncs", Default: journalRecords, Min: 2, Max: 500}},
		Cap:      "the journal is emptied at 1 MiB",
	}})}
	s.atEnd(func() { os.Remove(j.path) }) // it may not exist
	s.handle("POST /api/journal", j.handler)
}

// recorded is the answer to POST /api/journal.
type recorded struct {
	Records int `json:"records"`
}

// handler answers POST /api/journal.
func (j *journal) handler(r *http.Request) (answer any, err error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(j.path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the journal: %w", err)
	}
	file, err := os.OpenFile(j.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if info, err := file.Stat(); err != nil {
		return nil, fmt.Errorf("the journal: %w", err)
	} else if info.Size() > maxJournal {
		if err := file.Truncate(0); err != nil {
			return nil, fmt.Errorf("empty the journal: %w", err)
		}
	}
	if knobs, on := j.fault.settings(); on {
		return recorded{knobs[0]}, appendSyncingEach(file, knobs[0])
	}
	return recorded{journalRecords}, appendRecords(file, journalRecords)
}

const record = "an order was packed, and is on its way\n"

// syncer is a file that can be synced to the disk.
type syncer interface {
	io.StringWriter
	Sync() error
}

// appendRecords is the repaired code.
func appendRecords(file syncer, n int) error {
	for range n {
		if _, err := file.WriteString(record); err != nil {
			return err
		}
	}
	return file.Sync()
}

// appendSyncingEach is appendRecords with the fault.
//
//go:noinline
func appendSyncingEach(file syncer, n int) error {
	for range n {
		if _, err := file.WriteString(record); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
	}
	return nil
}
