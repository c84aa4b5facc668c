package spool

import (
	"log/slog"
	"sync"
	"time"
)

// logEvery is the minimum interval between two log lines for one reason. Refused or damaged profiles often come in
// thousands.
const logEvery = time.Minute

// rareLog logs each reason at most once every logEvery, with the number of profiles that the line stands for.
type rareLog struct {
	log *slog.Logger

	mu   sync.Mutex
	last map[string]logged // by reason
}

// logged is the last line of one reason.
type logged struct {
	message string
	at      time.Time
	more    int // profiles since
}

func (l *rareLog) warn(reason, message string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last, before := l.last[reason]
	if before && time.Since(last.at) < logEvery {
		last.more++
		l.last[reason] = last
		return
	}
	if l.last == nil {
		l.last = map[string]logged{}
	}
	l.log.Warn(message, append(args, "reason", reason, "profiles", last.more+1)...)
	l.last[reason] = logged{message: message, at: time.Now()}
}

// rest logs what was held back for the given time, if no later line included it.
func (l *rareLog) rest(directory string, held time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for reason, last := range l.last {
		if last.more > 0 && time.Since(last.at) >= held {
			l.log.Warn(last.message, "directory", directory, "reason", reason, "profiles", last.more)
			l.last[reason] = logged{message: last.message, at: time.Now()}
		}
	}
}

// health records whether the directory can be written, and since when it cannot. It logs each change.
type health struct {
	opt Options

	mu    sync.Mutex
	err   error // nil while it can be written
	since time.Time
	slot  string // the process's directory
}

func (h *health) failed(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.since = time.Now()
		h.opt.Logger.Warn("profiles cannot be written to disk and are kept in memory",
			"directory", h.opt.Dir, "limit_bytes", h.opt.MemoryBytes, "error", err)
	}
	h.err = err
}

func (h *health) works() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		h.opt.Logger.Info("profiles can be written to disk again", "directory", h.opt.Dir, "after", time.Since(h.since))
	}
	h.err = nil
}

// at notes the slot that the process has.
func (h *health) at(dir string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slot = dir
}

func (h *health) state() (slot string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.slot, h.err
}

func (h *health) error() error {
	_, err := h.state()
	return err
}
