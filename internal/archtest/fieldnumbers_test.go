package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestFieldNumbersHaveOnePlace checks that the field numbers of profile.proto are written in internal/pprofwire
// alone: other packages read and write messages by it, with names in place of numbers.
func TestFieldNumbersHaveOnePlace(t *testing.T) {
	files := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path == "../../internal/pprofwire" || path != "../.." && strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		files++
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return err
		}
		for _, imported := range f.Imports {
			if imported.Path.Value == `"google.golang.org/protobuf/encoding/protowire"` {
				t.Errorf("%s imports protowire: use internal/pprofwire", path)
			}
		}
		for _, at := range numberedFields(f) {
			t.Errorf("%s: a field is given as a number: use its name in internal/pprofwire", fset.Position(at))
		}
		return nil
	})
	if err != nil || files < 100 {
		t.Fatalf("%d files: %v", files, err)
	}
}

// numberedFields finds the calls of an Encoder's methods, and the comparisons and cases of a Message's field, that
// have a number in place of a name.
func numberedFields(f *ast.File) (found []token.Pos) {
	number := func(e ast.Expr) bool {
		lit, ok := e.(*ast.BasicLit)
		return ok && lit.Kind == token.INT
	}
	selects := func(e ast.Expr, names ...string) bool {
		s, ok := e.(*ast.SelectorExpr)
		return ok && slices.Contains(names, s.Sel.Name)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if len(n.Args) == 2 && number(n.Args[0]) && selects(n.Fun, "Number", "Element", "Bytes", "Text", "Head") {
				found = append(found, n.Pos())
			}
		case *ast.BinaryExpr:
			if selects(n.X, "Field") && number(n.Y) {
				found = append(found, n.Pos())
			}
		case *ast.SwitchStmt:
			for _, c := range n.Body.List {
				if selects(n.Tag, "Field") && slices.ContainsFunc(c.(*ast.CaseClause).List, number) {
					found = append(found, c.Pos())
				}
			}
		}
		return true
	})
	return found
}

func TestNumberedFields(t *testing.T) {
	const source = `package p
func f() {
	b.Number(9, 1)
	b.Number(pprofwire.ProfileTime, 1)
	if m.Field == 9 || m.Field == pprofwire.ProfileTime {
	}
	switch m.Field {
	case pprofwire.ProfileTime:
	case 9, 10:
	}
}`
	f, err := parser.ParseFile(token.NewFileSet(), "p.go", source, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(numberedFields(f)); n != 3 {
		t.Errorf("%d fields given as numbers found, want 3", n)
	}
}
