// Package docsection keeps the parts of documents that tests write: the lines between the mark of a name, such as
// <!-- faults, written by go test ./workload -update -->, and the next <!-- end -->. Only tests use it.
package docsection

import (
	"os"
	"slices"
	"strings"
	"testing"
)

const endMark = "<!-- end -->\n"

// Read returns a section of a file.
func Read(t testing.TB, file, name string) string {
	t.Helper()
	_, section, _ := cut(t, file, name)
	return section
}

// Write replaces a section of a file.
func Write(t testing.TB, file, name, text string) {
	t.Helper()
	before, _, after := cut(t, file, name)
	if err := os.WriteFile(file, []byte(before+text+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Check compares a section of a file with what it should be, or writes it there.
func Check(t testing.TB, file, name, want string, update bool) {
	t.Helper()
	got := Read(t, file, name)
	switch {
	case got == want:
		return
	case update:
		Write(t, file, name, want)
		return
	}
	documented := strings.Split(got, "\n")
	for line := range strings.Lines(want) {
		if line = strings.TrimSuffix(line, "\n"); !slices.Contains(documented, line) {
			t.Errorf("%s lacks in %q:\n%s", file, name, line)
		}
	}
	t.Errorf("%s: %q is not what the code has; write it with -update", file, name)
}

// cut returns what is before a section, with its mark, the section, and what is after it, with the end mark.
func cut(t testing.TB, file, name string) (before, section, after string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	mark := "<!-- " + name + " -->\n"
	before, rest, found := strings.Cut(string(b), mark)
	section, after, ended := strings.Cut(rest, endMark)
	if !found || !ended {
		t.Fatalf("%s has no section between %q and %q", file, mark, endMark)
	}
	return before + mark, section, endMark + after
}
