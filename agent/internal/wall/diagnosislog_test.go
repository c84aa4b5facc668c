package wall

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"
)

// logLines returns the lines of a JSON log.
func logLines(t *testing.T, b *bytes.Buffer) []map[string]any {
	t.Helper()
	var lines []map[string]any
	for d := json.NewDecoder(b); d.More(); {
		var l map[string]any
		if err := d.Decode(&l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	return lines
}

// TestDiagnosesAreLoggedWithinALimit is a service with 300 slow requests per second.
func TestDiagnosesAreLoggedWithinALimit(t *testing.T) {
	var out bytes.Buffer
	l := diagnosisLog{to: slog.New(slog.NewJSONHandler(&out, nil)), lines: 5}
	now := time.Unix(0, 0)
	for i := range 60 * 300 {
		l.add(now, &Diagnosis{Name: "GET /a", Duration: time.Duration(i) * time.Millisecond})
		if i%300 == 0 {
			l.add(now, &Diagnosis{Name: "GET /b", Duration: time.Second})
		}
		now = now.Add(time.Second / 300)
	}
	l.flush(now)
	if n := len(logLines(t, &out)); n != 10 {
		t.Errorf("%d lines before the minute is over, want 5 for each name", n)
	}
	now = now.Add(time.Second)
	l.flush(now)
	l.flush(now)
	lines := logLines(t, &out)
	if len(lines) != 2 || lines[0]["span_name"] != "GET /a" || lines[0]["further"] != 17995.0 || lines[0]["longest_ms"] != 17999.0 ||
		lines[1]["span_name"] != "GET /b" || lines[1]["further"] != 55.0 || lines[1]["longest_ms"] != 1000.0 {
		t.Errorf("after the minute: %v", lines)
	}

	// The next minute begins with the next span.
	l.add(now, &Diagnosis{Name: "GET /b"})
	l.end()
	if lines := logLines(t, &out); len(lines) != 1 || lines[0]["further"] != nil {
		t.Errorf("in the next minute: %v", lines)
	}
}

func TestDiagnosesOfManyNames(t *testing.T) {
	var out bytes.Buffer
	l := diagnosisLog{to: slog.New(slog.NewJSONHandler(&out, nil)), lines: 1}
	for i := range 1000 {
		l.add(time.Unix(0, 0), &Diagnosis{Name: fmt.Sprintf("GET /%d", i), Duration: time.Second})
	}
	if len(l.names) != maxLoggedNames+1 {
		t.Errorf("%d names are kept, want %d", len(l.names), maxLoggedNames+1)
	}
	l.end()
	lines := logLines(t, &out)
	if last := lines[len(lines)-1]; len(lines) != maxLoggedNames+2 || last["further"] != 899.0 || last["other_names"] != true {
		t.Errorf("%d lines, the last is %v", len(lines), last)
	}
}

func TestNoDiagnosesAreLogged(t *testing.T) {
	var out bytes.Buffer
	l := diagnosisLog{to: slog.New(slog.NewJSONHandler(&out, nil)), lines: -1}
	for range 10 {
		l.add(time.Unix(0, 0), &Diagnosis{Name: "GET /"})
	}
	if l.end(); out.Len() > 0 {
		t.Errorf("logged: %s", out.String())
	}
}
