// Package settingtest compares a table of settings with the configuration that it describes, and with the
// documentation. The tests of packages with settings use it.
package settingtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"slices"
	"strings"
	"testing"

	"spanflame/agent/internal/setting"
	"spanflame/internal/docsection"
)

// Package is a package with settings.
type Package struct {
	Path  string // from the module's root, like "agent"
	Root  string // of the module, from the package, like ".."
	Table setting.Table

	// Config is the configuration's type. Its source is in config.go.
	Config reflect.Type

	// MostUsed are the variables that README.md has.
	MostUsed []string

	// Elsewhere are fields of Config that are not in the table.
	Elsewhere []string
}

// Documentation compares the tables of settings in README.md and docs/configuration.md with those of the code, or
// writes them there.
func (p Package) Documentation(t *testing.T, update bool) {
	docs := p.fieldComments(t)
	var all, most strings.Builder
	all.WriteString("| Variable | Field | What it sets | Default | Allowed |\n|---|---|---|---|---|\n")
	most.WriteString("| Variable | What it sets | Default |\n|---|---|---|\n")
	for _, s := range p.Table {
		r := s.Row()
		if r.Variable == "" {
			continue
		}
		meaning := meaning(docs, r)
		fmt.Fprintf(&all, "| `%s` | `%s` | %s | %s | %s |\n", strings.Join(r.Names(), "`, `"), r.Field, meaning, r.Default, r.Allowed)
		if slices.Contains(p.MostUsed, r.Variable) {
			fmt.Fprintf(&most, "| `%s` | %s | %s |\n", r.Variable, meaning, r.Default)
		}
	}
	section := "settings of " + p.Path + ", written by go test ./" + p.Path + " -update"
	docsection.Check(t, p.Root+"/docs/configuration.md", section, all.String(), update)
	docsection.Check(t, p.Root+"/README.md", section, most.String(), update)
}

// FieldComments checks that the comment of each field ends with its variable, its default and what is allowed.
func (p Package) FieldComments(t *testing.T) {
	docs := p.fieldComments(t)
	for _, s := range p.Table {
		r := s.Row()
		if r.Variable == "" {
			continue
		}
		want := strings.Join(r.Names(), " or ")
		if r.Default != "" {
			want += "; default: " + r.Default
		}
		if r.Allowed != "" {
			want += "; allowed: " + r.Allowed
		}
		want += "."
		if signal, field, ok := strings.Cut(r.Field, "."); ok {
			if field == "Exporter" && signal == "Metrics" {
				continue // it has one more exporter
			}
			want = strings.ReplaceAll(strings.ReplaceAll(want, strings.ToUpper(signal), "SIGNAL"), "/v1/"+strings.ToLower(signal), "/v1/signal")
		}
		if got := comment(docs, r.Field); !strings.HasSuffix(got, " "+want) {
			t.Errorf("the comment of %s is\n%s\nwant it to end with\n%s", r.Field, got, want)
		}
	}
}

// EveryField checks that the table has every field: one that it lacks is not read, merged or checked.
func (p Package) EveryField(t *testing.T) {
	var fields, rows []string
	var walk func(typ reflect.Type, path string)
	walk = func(typ reflect.Type, path string) {
		for f := range typ.Fields() {
			switch {
			case slices.Contains(p.Elsewhere, path+f.Name):
			case f.Type.Kind() == reflect.Struct:
				walk(f.Type, path+f.Name+".")
			default:
				fields = append(fields, path+f.Name)
			}
		}
	}
	walk(p.Config, "")
	for _, s := range p.Table {
		rows = append(rows, s.Row().Field)
	}
	slices.Sort(fields)
	slices.Sort(rows)
	if !slices.Equal(fields, rows) {
		t.Errorf("the fields of Config are\n%v\nthe settings are\n%v", fields, rows)
	}
}

// fieldComments returns the comments of the fields of all structures in config.go, each as one line.
func (p Package) fieldComments(t *testing.T) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	docs := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		typ, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if s, ok := typ.Type.(*ast.StructType); ok {
			for _, field := range s.Fields.List {
				for _, name := range field.Names {
					docs[typ.Name.Name+"."+name.Name] = strings.Join(strings.Fields(field.Doc.Text()), " ")
				}
			}
		}
		return false
	})
	return docs
}

// comment returns the comment of a field, which may be one of a signal.
func comment(docs map[string]string, field string) string {
	if _, nested, ok := strings.Cut(field, "."); ok {
		return docs["Signal."+nested]
	}
	return docs["Config."+field]
}

// meaning returns the first sentence of a field's comment without the field's name.
func meaning(docs map[string]string, r setting.Row) string {
	doc, name := comment(docs, r.Field), r.Field
	if signal, nested, ok := strings.Cut(r.Field, "."); ok {
		signal = strings.ToLower(signal)
		doc, name = strings.NewReplacer("the signal", signal, "this signal", signal).Replace(doc), nested
	}
	sentence, _, _ := strings.Cut(doc, ". ")
	sentence = strings.TrimPrefix(sentence, name+" ")
	sentence = strings.TrimPrefix(strings.TrimPrefix(sentence, "is "), "are ")
	return strings.ToUpper(sentence[:1]) + sentence[1:]
}
