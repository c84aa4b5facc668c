package workload

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"spanflame/workload/faults"
)

// The lines that a request writes, the lines that can wait, and how many milliseconds it takes to ship one.
const (
	auditLines = 3
	auditQueue = 1000
	shipMS     = 90
)

// auditLog is a log of the whole process, which a shipper sends away line by line.
type auditLog struct {
	fault   *fault
	stock   *inventoryClient
	pipe    *io.PipeWriter // to the shipper
	queue   chan string    // of lines for the pipe
	dropped atomic.Int64   // lines that found the queue full
}

// addSlowLog adds the fault that the log is written to a slow pipe.
func (s *Service) addSlowLog() {
	reader, writer := io.Pipe()
	l := &auditLog{stock: s.stock, pipe: writer, queue: make(chan string, auditQueue), fault: s.addFault(&fault{
		is: faults.Fault{
			Name:     "slow-log",
			Kind:     faults.Inside,
			Does:     "the log is written without a buffer, to a pipe whose reader ships one line after the other",
			Repair:   "the log has a buffer; lines that find it full are counted and dropped",
			Function: "spanflame/workload.(*auditLog).ship",
			Victim:   faults.Request{Method: "GET", Path: "/api/account", PerSecond: 3},
			Knobs:    []faults.Knob{{Name: "line_ms", Unit: "ms", Default: shipMS, Min: 1, Max: 100}},
		},
		// The shipper takes the first line at once, and each further one when it has shipped the one before.
		delay: func(knobs []int) float64 { return float64((auditLines - 1) * knobs[0]) },
	})}
	s.background(func(ctx context.Context) { l.shipAll(ctx, reader) })
	s.background(l.empty)
	s.handle("GET /api/account", l.handler)
}

// account is the answer to GET /api/account.
type account struct {
	Orders  int64 `json:"orders"`
	Dropped int64 `json:"dropped_log_lines"`
}

// handler answers GET /api/account.
func (l *auditLog) handler(r *http.Request) (any, error) {
	if _, err := queryInts(r); err != nil {
		return nil, err
	}
	for i := range auditLines {
		line := fmt.Sprintf("account read, step %d of %d\n", i+1, auditLines)
		if l.fault.on() {
			l.writeUnbuffered(line)
		} else {
			l.write(line)
		}
	}
	return account{Dropped: l.dropped.Load()}, nil
}

// write is the repaired code.
func (l *auditLog) write(line string) {
	select {
	case l.queue <- line:
	default:
		l.dropped.Add(1)
	}
}

// writeUnbuffered is write with the fault. It waits for the reader, which never fails while the service runs.
//
//go:noinline
func (l *auditLog) writeUnbuffered(line string) { _, _ = io.WriteString(l.pipe, line) }

// empty writes the queued lines to the pipe until the service is closed.
func (l *auditLog) empty(ctx context.Context) {
	for {
		select {
		case line := <-l.queue:
			_, _ = io.WriteString(l.pipe, line) // fails only when the service is closed
		case <-ctx.Done():
			return
		}
	}
}

// shipAll ships what is written to the pipe until the service is closed.
func (l *auditLog) shipAll(ctx context.Context, pipe *io.PipeReader) {
	stop := context.AfterFunc(ctx, func() { pipe.Close() })
	defer stop()
	for lines := bufio.NewReaderSize(pipe, 512); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		l.ship(ctx, line)
	}
}

// ship sends one line away. A line that cannot be sent is lost.
//
//go:noinline
func (l *auditLog) ship(ctx context.Context, line string) {
	ms := shipMS
	if knobs, on := l.fault.settings(); on {
		ms = knobs[0]
	}
	_ = l.stock.warehouse(ctx, ms)
}
