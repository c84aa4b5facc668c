package agent

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"spanflame/agent/internal/setting"
)

var update = flag.Bool("update", false, "write the tables of settings into README.md and docs/configuration.md")

// mostUsed are the settings that README.md has.
var mostUsed = []string{
	"PYROSCOPE_SERVER_ADDRESS", "PYROSCOPE_AUTH_TOKEN", "PYROSCOPE_UPLOAD_INTERVAL", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES",
	"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "SPANFLAME_DIR", "SPANFLAME_SLOW_SPAN", "SPANFLAME_ADMIN_ADDRESS",
}

// TestDocumentedSettings: the tables of settings in the documentation are those of the code.
func TestDocumentedSettings(t *testing.T) {
	docs := fieldComments(t)
	var all, most strings.Builder
	all.WriteString("| Variable | Field | What it sets | Default | Allowed |\n|---|---|---|---|---|\n")
	most.WriteString("| Variable | What it sets | Default |\n|---|---|---|\n")
	for _, s := range settings {
		r := s.Row()
		if r.Variable == "" {
			continue
		}
		meaning := meaning(docs, r)
		fmt.Fprintf(&all, "| `%s` | `%s` | %s | %s | %s |\n", strings.Join(r.Names(), "`, `"), r.Field, meaning, r.Default, r.Allowed)
		if slices.Contains(mostUsed, r.Variable) {
			fmt.Fprintf(&most, "| `%s` | %s | %s |\n", r.Variable, meaning, r.Default)
		}
	}
	section(t, "../docs/configuration.md", all.String())
	section(t, "../README.md", most.String())
}

// section compares the part of a file between the marks of the settings with what it should be, or writes it there.
func section(t *testing.T, file, want string) {
	t.Helper()
	const begin, end = "<!-- settings, written by go test ./agent -update -->\n", "<!-- end of settings -->\n"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no section between %q and %q", file, begin, end)
	}
	if got == want {
		return
	}
	if !*update {
		t.Errorf("the settings in %s are not those of the code; write them with go test ./agent -run TestDocumentedSettings -update", file)
		return
	}
	if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestFieldComments: the comment of each field ends with its variable, its default and what is allowed.
func TestFieldComments(t *testing.T) {
	docs := fieldComments(t)
	for _, s := range settings {
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
		struct_, field, nested := strings.Cut(r.Field, ".")
		if !nested {
			struct_, field = "Config", r.Field
		} else {
			if r.Field == "Metrics.Exporter" {
				continue // it has one more exporter
			}
			want = strings.ReplaceAll(strings.ReplaceAll(want, strings.ToUpper(struct_), "SIGNAL"), "/v1/"+strings.ToLower(struct_), "/v1/signal")
			struct_ = "Signal"
		}
		if got := docs[struct_+"."+field]; !strings.HasSuffix(got, " "+want) {
			t.Errorf("the comment of %s.%s is\n%s\nwant it to end with\n%s", struct_, field, got, want)
		}
	}
}

// TestEveryFieldIsASetting: a field that is forgotten in the table is not read, merged or checked.
func TestEveryFieldIsASetting(t *testing.T) {
	var fields, rows []string
	var walk func(typ reflect.Type, path string)
	walk = func(typ reflect.Type, path string) {
		for f := range typ.Fields() {
			if f.Type.Kind() == reflect.Struct {
				walk(f.Type, path+f.Name+".")
				continue
			}
			fields = append(fields, path+f.Name)
		}
	}
	walk(reflect.TypeFor[Config](), "")
	for _, s := range settings {
		rows = append(rows, s.Row().Field)
	}
	slices.Sort(fields)
	slices.Sort(rows)
	if !slices.Equal(fields, rows) {
		t.Errorf("the fields of Config are\n%v\nthe settings are\n%v", fields, rows)
	}
}

// fieldComments returns the comments of the fields of Config and Signal, each as one line.
func fieldComments(t *testing.T) map[string]string {
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

// meaning returns the first sentence of a field's comment without the field's name.
func meaning(docs map[string]string, r setting.Row) string {
	field, nested, ok := strings.Cut(r.Field, ".")
	doc := docs["Config."+field]
	if ok {
		signal := strings.ToLower(field)
		doc, field = strings.NewReplacer("the signal", signal, "this signal", signal).Replace(docs["Signal."+nested]), nested
	}
	sentence, _, _ := strings.Cut(doc, ". ")
	sentence = strings.TrimPrefix(sentence, field+" ")
	sentence = strings.TrimPrefix(strings.TrimPrefix(sentence, "is "), "are ")
	return strings.ToUpper(sentence[:1]) + sentence[1:]
}
