package mcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/pprof/profile"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"spanflame/internal/traces"
	"spanflame/profiles"
	"spanflame/viewer/source"
)

// broken is a source that finds many slow traces, none of which it can read.
type broken struct {
	source.Source
	wait <-chan struct{} // before a search ends
}

func (b broken) Search(context.Context, source.Filter) (found source.Found, err error) {
	if b.wait != nil {
		<-b.wait
	}
	for i := range 2 * shownRows {
		found.Traces = append(found.Traces, source.Summary{TraceID: fmt.Sprintf("%032x", i), Service: strings.Repeat("ü", 200),
			Name: fmt.Sprint(i, strings.Repeat("ü", 500)), Duration: time.Second})
	}
	found.Notes = []string{"Older traces are missing."}
	return found, nil
}

func (broken) Trace(context.Context, string) ([]traces.Span, error) {
	return nil, errors.New("it is damaged")
}

// TestSlowTracesUnread: traces that cannot be read are answered without a cause, and a long answer says what is missing.
func TestSlowTracesUnread(t *testing.T) {
	text, err := server{Options{Source: broken{}, SlowSpan: 100 * time.Millisecond}}.slowTraces(t.Context(), Slow{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"the cause is known of 0 of them", "Missing: Older traces are missing.", "why explains the trace"} {
		if !strings.Contains(short(text), want) {
			t.Errorf("%q is not in:\n%s", want, short(text))
		}
	}
}

// unread is a source of a service whose traces are not read yet.
type unread struct{ source.Source }

func (unread) Services(context.Context, time.Time, time.Time) ([]string, error) {
	return []string{"shop"}, nil
}

func (unread) Requests(context.Context, source.Filter) ([]traces.Span, error) {
	return nil, source.ErrReading
}

func (unread) Series(context.Context, source.Selection, int) iter.Seq2[profiles.Window, error] {
	wall := &profile.ValueType{Type: "wall", Unit: "nanoseconds"}
	p := &profile.Profile{SampleType: []*profile.ValueType{wall}, Sample: []*profile.Sample{{Value: []int64{1}}}}
	return func(yield func(profiles.Window, error) bool) { yield(profiles.Window{Profile: p}, nil) }
}

// TestCompareUnread: wall-clock profiles are compared before all requests are read, and the answer says what is missing.
func TestCompareUnread(t *testing.T) {
	text, err := server{Options{Source: unread{}}}.compare(t.Context(), Sides{Type: "wall", AfterFrom: "1h"})
	if want := "Missing: older traces"; err != nil || !strings.HasPrefix(text, want) || !strings.Contains(text, "1 window before") {
		t.Errorf("%v, want %q in\n%s", err, want, text)
	}
}

// input calls a function at its end.
type input struct {
	io.Reader
	ended func()
}

func (i input) Read(b []byte) (int, error) {
	n, err := i.Reader.Read(b)
	if err == io.EOF {
		i.ended()
	}
	return n, err
}

const began = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":` +
	`{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}` + "\n" +
	`{"jsonrpc":"2.0","method":"notifications/initialized"}` + "\n"

// TestEndOfInput: the end of the input is no error even if an answer is still being made, and a message that is too long is one.
func TestEndOfInput(t *testing.T) {
	call := `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"slow_traces","arguments":{}}}` + "\n"
	end, ended := context.WithCancel(t.Context())
	in := input{strings.NewReader(began + call), ended}
	if err := Run(t.Context(), Options{Source: broken{wait: end.Done()}}, in, io.Discard); err != nil {
		t.Errorf("at the end of the input: %v", err)
	}
	long := strings.NewReader(began + `{"jsonrpc":"` + strings.Repeat("x", maxRequest+1) + "\n")
	if err := Run(t.Context(), Options{Source: broken{}}, long, io.Discard); err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Errorf("after a message that is too long: %v", err)
	}
}

// panicking panics when a trace is read.
type panicking struct{ broken }

func (panicking) Trace(context.Context, string) ([]traces.Span, error) { panic("planted") }

// TestAPanicIsAnError: a tool that panics answers with an error, and the server goes on.
func TestAPanicIsAnError(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	toServer, toClient := sdk.NewInMemoryTransports()
	ended := make(chan error)
	go func() { ended <- New(Options{Source: panicking{}}).Run(ctx, toServer) }()
	session, err := sdk.NewClient(&sdk.Implementation{Name: "t"}, nil).Connect(ctx, toClient, nil)
	if err != nil {
		t.Fatal(err)
	}
	span := map[string]any{"trace": strings.Repeat("1", 32), "span": strings.Repeat("1", 16)}
	for range 2 {
		got, err := session.CallTool(ctx, &sdk.CallToolParams{Name: "top_functions", Arguments: span})
		if err != nil {
			t.Fatal(err)
		}
		if text := got.Content[0].(*sdk.TextContent).Text; !got.IsError || !strings.Contains(text, "planted") {
			t.Errorf("an error: %t, %q", got.IsError, text)
		}
	}
	cancel()
	<-ended
}

// TestTimes: a time that is not one is an error that names the argument.
func TestTimes(t *testing.T) {
	_, err := side("shop", "cpu", "", given{"after_from", "1h"}, given{"after_to", "soon"})
	if err == nil || !strings.Contains(err.Error(), `after_to: time "soon"`) {
		t.Errorf("got %v", err)
	}
}

// TestShort: an answer is cut after a line, and says so.
func TestShort(t *testing.T) {
	for _, line := range []string{"x\n", "äöü\n", strings.Repeat("y", MaxAnswer-1) + "\n", strings.Repeat("ü", MaxAnswer)} {
		long := strings.Repeat(line, MaxAnswer/len(line)+2)
		got := short(long)
		if len(got) > MaxAnswer || !utf8.ValidString(got) || !strings.HasSuffix(got, "a shorter time.\n") {
			t.Errorf("%d bytes of lines like %.5q: %d bytes that end in %q", len(long), line, len(got), got[max(0, len(got)-40):])
		}
	}
	if got := short("a\nb\n"); got != "a\nb\n" {
		t.Errorf("got %q", got)
	}
}

// TestLongMessages: a message that is too long ends the input, and those before it are read.
func TestLongMessages(t *testing.T) {
	whole := strings.Repeat(strings.Repeat("x", 999)+"\n", 2*maxRequest/1000)
	if got, err := io.ReadAll(&lines{from: strings.NewReader(whole)}); err != nil || string(got) != whole {
		t.Errorf("%d bytes, %v, want all %d", len(got), err, len(whole))
	}
	if got, err := io.ReadAll(&lines{from: strings.NewReader("a\n" + strings.Repeat("x", maxRequest+1))}); err == nil || !strings.HasPrefix(string(got), "a\n") {
		t.Errorf("%d bytes, %v, want an error", len(got), err)
	}
}
