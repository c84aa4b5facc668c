package deliver

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// logLines returns the messages that the packages log, and all their other texts, from their source.
func logLines(t *testing.T, dirs ...string) (messages, texts []string) {
	t.Helper()
	levels := []string{"Debug", "Info", "Warn", "Error", "warn"}
	for _, dir := range dirs {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.BasicLit:
					if n.Kind == token.STRING {
						texts = append(texts, unquoted(n))
					}
				case *ast.CallExpr:
					called, ok := n.Fun.(*ast.SelectorExpr)
					if !ok || !slices.Contains(levels, called.Sel.Name) {
						return true
					}
					at := 0
					if called.Sel.Name == "warn" { // a reason comes first
						at = 1
					}
					if len(n.Args) > at {
						if message, ok := n.Args[at].(*ast.BasicLit); ok {
							messages = append(messages, unquoted(message))
						}
					}
				}
				return true
			})
		}
	}
	return messages, texts
}

func unquoted(l *ast.BasicLit) string {
	s, err := strconv.Unquote(l.Value)
	if err != nil {
		return l.Value
	}
	return s
}

var quoted = regexp.MustCompile("`([^`]+)`")

// TestTheTroubleshootingTableHasTheLogLines compares docs/delivery.md with the messages in the source, both ways.
func TestTheTroubleshootingTableHasTheLogLines(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/delivery.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(doc), "\n## Troubleshooting\n")
	if !ok {
		t.Fatal("docs/delivery.md has no section Troubleshooting")
	}
	messages, texts := logLines(t, ".", "../spool", "../save")
	var said []string
	for row := range strings.Lines(table) {
		cells := strings.Split(row, " | ")
		if len(cells) < 2 || !strings.HasPrefix(row, "| `") {
			continue
		}
		line, _, _ := strings.Cut(cells[0], ", reason ")
		for _, q := range quoted.FindAllStringSubmatch(line, -1) {
			text := strings.ReplaceAll(q[1], `"other"`, "%q")
			said = append(said, text)
			text = strings.NewReplacer("… profiles (… bytes)", "%d profiles (%d bytes)", "in … for", "in %s for").Replace(text)
			if !slices.ContainsFunc(texts, func(s string) bool { return strings.HasPrefix(s, text) }) {
				t.Errorf("docs/delivery.md explains the log line %q, which nothing logs", q[1])
			}
		}
	}
	if len(said) < 20 || len(messages) < 20 {
		t.Fatalf("%d lines in the table, %d messages in the source: want 20 or more", len(said), len(messages))
	}
	for _, m := range messages {
		if !slices.Contains(said, m) {
			t.Errorf("docs/delivery.md does not explain the log line %q", m)
		}
	}
}
