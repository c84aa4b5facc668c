package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"spanflame/cmd/spanflame/mcp"
)

// ask starts the command over a directory, and returns what calls one of its tools and whether that answered with an error.
func ask(t *testing.T, dir string) func(tool string, arguments map[string]any) (text string, failed bool) {
	t.Helper()
	in, toServer := io.Pipe()
	fromServer, out := io.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- serveMCP(context.Background(), in, out, viewOptions{dir: dir, slowSpan: defaultSlowSpan})
		out.Close()
	}()
	client, err := sdk.NewClient(&sdk.Implementation{Name: "test"}, nil).Connect(t.Context(), &sdk.IOTransport{Reader: fromServer, Writer: toServer}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := toServer.Close(); err != nil { // the input ends
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Errorf("at the end of the input: %v", err)
		}
		client.Close()
	})
	tools, err := client.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range tools.Tools {
		if tool.Annotations == nil || !tool.Annotations.ReadOnlyHint || tool.Description == "" {
			t.Errorf("the tool %s: %+v, want it described, and read-only", tool.Name, tool)
		}
	}
	return func(tool string, arguments map[string]any) (string, bool) {
		t.Helper()
		result, err := client.CallTool(t.Context(), &sdk.CallToolParams{Name: tool, Arguments: arguments})
		if err != nil {
			return err.Error(), true
		}
		text := ""
		for _, c := range result.Content {
			if c, ok := c.(*sdk.TextContent); ok {
				text += c.Text
			}
		}
		if len(text) > mcp.MaxAnswer {
			t.Errorf("%s: the answer has %d bytes, want at most %d", tool, len(text), mcp.MaxAnswer)
		}
		return text, result.IsError
	}
}

// TestMCP: a client of the same SDK has answers from a directory of traces, and from the example profiles.
func TestMCP(t *testing.T) {
	dir := t.TempDir()
	id := saveTrace(t, dir, true)
	requests, half := saveRequests(t)
	type arguments = map[string]any
	for _, tt := range []struct {
		dir, tool string
		arguments arguments
		want      []string
	}{
		{dir, "slow_traces", nil, []string{"1 problem of 1 slow trace; the cause is known of 1 of them",
			"1. shop, GET /cart: 1 s in all, 1 trace, median 1 s, slowest 1 s",
			"waiting for a mutex in main.cart: mostly in main.audit", "slowest trace " + id}},
		{dir, "slow_traces", arguments{"without": "/cart"}, []string{"0 problems of 0 slow traces"}},
		{dir, "why", nil, []string{"trace " + id, "waiting for a mutex in main.cart", "held by: POST /audit"}},
		{dir, "why", arguments{"trace": id}, []string{"trace " + id}},
		{dir, "top_functions", arguments{"trace": id}, []string{"GET /cart of shop took 1 s; its profile has 100 %",
			"1 s  100 %  waiting for a mutex in main.cart"}},
		{"../../examples/leak", "leaks", nil, []string{"workload.(*leak).grow", "MiB/min [", "p="}},
		{"../../examples/slow-pricing", "compare", arguments{"type": "cpu", "before_version": "slow-pricing", "after_version": "repaired"},
			[]string{"compileTariff", "windows"}},
		{"../../examples/lock-convoy", "compare", arguments{"type": "mutex", "before_version": "lock-convoy", "after_version": "repaired"}, []string{"settle"}},
		{requests, "compare", arguments{"type": "wall", "before_to": half, "after_from": half}, []string{"wall, per request", "main.handle"}},
	} {
		t.Run(fmt.Sprint(tt.tool, tt.arguments), func(t *testing.T) {
			text, failed := ask(t, tt.dir)(tt.tool, tt.arguments)
			if failed {
				t.Fatalf("an error: %s", text)
			}
			for _, want := range tt.want {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not in:\n%s", want, text)
				}
			}
		})
	}
}

// TestMCPRefuses: what cannot be answered is an error of the tool, and the server goes on.
func TestMCPRefuses(t *testing.T) {
	dir := t.TempDir()
	id := saveTrace(t, dir, false)
	tool := ask(t, dir)
	for _, tt := range []struct {
		tool      string
		arguments map[string]any
		want      string
	}{
		{"why", map[string]any{"trace": "../../etc/passwd"}, "is no ID"},
		{"why", map[string]any{"trace": strings.Repeat("0", 32)}, "is not found"},
		{"why", nil, "has a wall-clock profile"},
		{"why", map[string]any{"last": "soon"}, "want a duration"},
		{"why", map[string]any{"service": strings.Repeat("x", 501)}, "service has 501 bytes: want at most 500"},
		{"slow_traces", map[string]any{"unknown": 1}, "unknown"},
		{"top_functions", nil, "trace"},
		{"top_functions", map[string]any{"trace": id}, "has no wall-clock profile"},
		{"top_functions", map[string]any{"trace": id, "span": "x"}, "is no ID"},
		{"compare", map[string]any{"type": "cpu"}, "both sides are the same"},
		{"compare", map[string]any{"type": "x y", "after_from": "1h"}, "there are no profiles"},
		{"leaks", map[string]any{"service": "../shop"}, "there are no profiles"},
		{"none", nil, "none"},
	} {
		if text, failed := tool(tt.tool, tt.arguments); !failed || !strings.Contains(text, tt.want) {
			t.Errorf("%s %v: %q (an error: %t), want %q", tt.tool, tt.arguments, text, failed, tt.want)
		}
	}
	if text, failed := tool("slow_traces", nil); failed || !strings.Contains(text, "the cause is known of 0 of them") || !strings.Contains(text, "is not known") {
		t.Errorf("after these: %s", text)
	}
	for want, args := range map[string][]string{
		"want a duration above zero": {"--slow-span", "0s", "--dir", dir}, "directory not found": {"--dir", dir + "/none"}, "unknown command": {"x"},
		"require each other": {"--tempo", "http://127.0.0.1:1"},
	} {
		if _, _, err := execute(t, append([]string{"mcp"}, args...)...); err == nil || exitCode(err) != codeUse || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want code %d and %q", args, err, codeUse, want)
		}
	}
}
