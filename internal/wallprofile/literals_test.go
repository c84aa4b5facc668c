package wallprofile

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestWordsHaveOneHome: what writers and readers agree on is written in this package alone, and once.
func TestWordsHaveOneHome(t *testing.T) {
	words := map[string]int{SpanID: 0, SpanScope: 0, ProfileIDAttribute: 0, Others: 0}
	for s := range NumStates {
		words[strconv.Quote(s.String())] = 0
	}
	count := func(path, literal string, own bool) {
		text, err := strconv.Unquote(literal)
		if err != nil {
			t.Errorf("%s: %s: %v", path, literal, err)
		}
		for w := range words {
			state, isState := strings.CutPrefix(w, `"`)
			state = strings.TrimSuffix(state, `"`)
			switch {
			case own && isState && text == state, own && !isState && strings.Contains(text, w):
				words[w]++
			case !own && isState && (strings.Contains(text, "["+state+"]") || strings.Contains(state, ": ") && strings.Contains(text, state)),
				!own && !isState && strings.Contains(text, w):
				t.Errorf("%s has the literal %s: use package wallprofile instead", path, literal)
			}
		}
	}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != "." && !strings.HasPrefix(d.Name(), ".."):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		own := f.Name.Name == "wallprofile"
		ast.Inspect(f, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				count(path, lit.Value, own)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for w, n := range words {
		switch w {
		case strconv.Quote(Starting.String()), strconv.Quote(Ending.String()), strconv.Quote(BeforeRecording.String()), strconv.Quote(NotRecorded.String()):
			n-- // the name of the state is its phrase, too
		}
		if n != 1 {
			t.Errorf("%s is written %d times in this package, want once", w, n)
		}
	}
}
