// Package setting holds the table from which a configuration is read, merged, completed and checked: each setting
// is one row, with its field, its environment variable, its default and what is allowed. The documentation's table of
// variables is made from the same rows. Package agent and the packages that add settings to its own use it. Rules
// that involve more than one setting are not for this package: they belong to the configuration.
package setting

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
)

// Setting is one row of a [Table], an [Of].
type Setting interface {
	// Row returns what the documentation shows.
	Row() Row

	read(config any) error
	merge(config, from any)
	setDefault(config any)
	check(config any) []error
	show(config any) string
}

// Row is the part of a setting that people read.
type Row struct {
	Field    string // in the configuration; that of a nested struct has its path, like "Traces.Exporter"
	Variable string // empty if the setting has none
	File     bool   // whether the variable with _FILE appended names a file that holds the value
	Default  string // empty if there is none
	Allowed  string // empty if any value is
}

// Names returns the variables that the setting is read from.
func (r Row) Names() []string {
	switch {
	case r.Variable == "":
		return nil
	case r.File:
		return []string{r.Variable, r.Variable + fileSuffix}
	}
	return []string{r.Variable}
}

// Wrong returns the error for a value that the setting does not allow.
func (r Row) Wrong(value any) error {
	return fmt.Errorf("%s %q: want %s", r.name(), fmt.Sprint(value), r.Allowed)
}

func (r Row) name() string {
	if r.Variable == "" {
		return r.Field
	}
	return r.Field + " (" + r.Variable + ")"
}

// Of is a setting whose field has type T. The compiler makes its methods for each T, so they leave to functions what does
// not depend on it.
type Of[T any] struct {
	Field    string
	Variable string

	// Parse reads the variable's text, which is never empty. Its error completes "VARIABLE=TEXT: want". A value that is
	// returned with a [Partly] is used. Without Parse the variable is read elsewhere.
	Parse func(text string) (T, error)

	// Secret values are not shown in errors.
	Secret bool

	// File also allows VARIABLE_FILE, which names a file that holds the value. The value keeps its spaces.
	File bool

	// Default is the value if neither the caller nor the environment sets one. DefaultText describes it in the
	// documentation where it is computed elsewhere, or where Default does not print well.
	Default     T
	DefaultText string

	// Valid reports whether a value, or its default, is allowed. Allowed says what is, and completes "want".
	Valid   func(T) bool
	Allowed string

	// Show returns the text of a value for an error, by default as fmt prints it.
	Show func(T) string

	// Union has a map's entries from the environment added to those of the caller, whose own win.
	Union bool
}

// Row returns the documented part of s.
func (s Of[T]) Row() Row {
	r := Row{Field: s.Field, Variable: s.Variable, File: s.File, Default: s.DefaultText, Allowed: s.Allowed}
	if v := reflect.ValueOf(&s.Default).Elem(); r.Default == "" && !empty(v) {
		r.Default = fmt.Sprint(s.Default)
	}
	return r
}

// fieldOf returns a field of config, a pointer to the configuration.
func fieldOf(config any, field string) reflect.Value {
	v := reflect.ValueOf(config).Elem()
	for name := range strings.SplitSeq(field, ".") {
		v = v.FieldByName(name)
	}
	return v
}

func (s Of[T]) read(config any) error {
	if s.Variable == "" || s.Parse == nil {
		return nil
	}
	text, err := textOf(s.Variable, s.File)
	if text == "" || err != nil {
		return err
	}
	value, err := s.Parse(text)
	if err == nil && s.Valid != nil && !s.Valid(value) {
		err = errors.New(s.Allowed)
	}
	if _, partly := err.(Partly); err == nil || partly {
		fieldOf(config, s.Field).Set(reflect.ValueOf(&value).Elem())
	}
	if err != nil && s.Show != nil {
		text = s.Show(value)
	}
	return wrong(s.Variable, text, s.Secret, err)
}

// wrong returns the error for the text of a variable, nil if err is.
func wrong(variable, text string, secret bool, err error) error {
	switch {
	case err == nil:
		return nil
	case secret:
		return fmt.Errorf("%s: want %w", variable, err)
	}
	return fmt.Errorf("%s=%q: want %w", variable, text, err)
}

// Partly is the error of a variable whose value is used in part.
type Partly string

// Error completes "VARIABLE=TEXT: want".
func (p Partly) Error() string { return string(p) }

// textOf returns what a variable holds or, if file is true, the file that the variable with _FILE names. A variable that
// is set to nothing counts as not set, as the OpenTelemetry specification requires.
func textOf(variable string, file bool) (string, error) {
	if !file {
		return strings.TrimSpace(os.Getenv(variable)), nil
	}
	text, name := os.Getenv(variable), variable+fileSuffix
	path := strings.TrimSpace(os.Getenv(name))
	if path == "" {
		return text, nil
	}
	if text != "" {
		return "", fmt.Errorf("%s and %s are both set: want one of them", variable, name)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", name, err)
	case len(b) > maxFile:
		return "", fmt.Errorf("%s=%q: want a file of at most %d bytes", name, path, maxFile)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// fileSuffix makes the name of a variable that of a file which holds its value.
const fileSuffix = "_FILE"

// maxFile limits what is read of such a file.
const maxFile = 64 << 10

func (s Of[T]) merge(config, from any) {
	merge(fieldOf(config, s.Field), fieldOf(from, s.Field), s.Union)
}

// merge sets a field to another one if it is empty, or to the union of both maps. It copies maps and slices.
func merge(v, other reflect.Value, union bool) {
	switch {
	case union:
		both := reflect.MakeMap(v.Type())
		for _, m := range []reflect.Value{other, v} {
			for _, k := range m.MapKeys() {
				both.SetMapIndex(k, m.MapIndex(k))
			}
		}
		v.Set(both)
		return
	case empty(v):
		v.Set(other)
	}
	switch v.Kind() { // the caller keeps its own
	case reflect.Map:
		if v.IsNil() {
			return
		}
		clone := reflect.MakeMap(v.Type())
		for _, k := range v.MapKeys() {
			clone.SetMapIndex(k, v.MapIndex(k))
		}
		v.Set(clone)
	case reflect.Slice:
		v.Set(reflect.AppendSlice(reflect.Zero(v.Type()), v))
	}
}

func (s Of[T]) setDefault(config any) {
	if v := fieldOf(config, s.Field); empty(v) {
		v.Set(reflect.ValueOf(&s.Default).Elem())
	}
}

func (s Of[T]) check(config any) []error {
	if s.Valid == nil {
		return nil
	}
	value := fieldOf(config, s.Field).Interface().(T)
	if s.Valid(value) {
		return nil
	}
	var shown any = value
	if s.Show != nil {
		shown = s.Show(value)
	}
	return []error{s.Row().Wrong(shown)}
}

func (s Of[T]) show(config any) string {
	v := fieldOf(config, s.Field)
	switch {
	case empty(v):
		return ""
	case s.Secret:
		return secret
	}
	if _, text := v.Interface().(string); text && s.Show != nil {
		return s.Show(v.Interface().(T))
	}
	return fmt.Sprint(v.Interface())
}

// secret is shown instead of a value that is one.
const secret = "(set)"

// empty reports whether a field is not set.
func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Map, reflect.Slice:
		return v.Len() == 0
	}
	return v.IsZero()
}

// Table is all settings of a configuration. Its methods accept pointers to that configuration.
type Table []Setting

// Read sets the fields of config whose variables are set, and returns an error for each that cannot be read or whose
// value is not allowed. Their fields stay as they are.
func (t Table) Read(config any) (errs []error) {
	for _, s := range t {
		if err := s.read(config); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// Merge sets the fields of config that are not set to those of from. Maps and slices are copied.
func (t Table) Merge(config, from any) {
	for _, s := range t {
		s.merge(config, from)
	}
}

// SetDefaults sets the fields of config that are not set to their defaults.
func (t Table) SetDefaults(config any) {
	for _, s := range t {
		s.setDefault(config)
	}
}

// Check returns an error for each field whose value is not allowed. It is for a configuration with its defaults.
func (t Table) Check(config any) (errs []error) {
	for _, s := range t {
		errs = append(errs, s.check(config)...)
	}
	return errs
}

// Values returns the variables of a configuration with their values as people may see them: those that are secret are not
// shown.
func (t Table) Values(config any) (values [][2]string) {
	for _, s := range t {
		if r := s.Row(); r.Variable != "" {
			values = append(values, [2]string{r.Variable, s.show(config)})
		}
	}
	return values
}

// Row returns the row of a field, which must be there.
func (t Table) Row(field string) Row {
	for _, s := range t {
		if r := s.Row(); r.Field == field {
			return r
		}
	}
	panic("setting: no row for the field " + field)
}

// Names returns the variables of all settings.
func (t Table) Names() (names []string) {
	for _, s := range t {
		names = append(names, s.Row().Names()...)
	}
	return names
}
