package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// read returns a file of the repository.
func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../..", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// quoted matches what a page has between backquotes.
var quoted = regexp.MustCompile("`([^`\n]+)`")

// TestContributingNamesThePackages checks that a newcomer finds every package that has a rule in the table of packages.
func TestContributingNamesThePackages(t *testing.T) {
	page := read(t, "CONTRIBUTING.md")
	for _, r := range rules {
		if r.pkg != "cmd" && !strings.Contains(page, "`"+r.pkg+"`") {
			t.Errorf("CONTRIBUTING.md does not name the package %s: add it to the table of packages", r.pkg)
		}
	}
}

// TestContributingNamesFilesThatExist checks the paths of CONTRIBUTING.md's tables.
func TestContributingNamesFilesThatExist(t *testing.T) {
	paths := 0
	for row := range strings.Lines(read(t, "CONTRIBUTING.md")) {
		if !strings.HasPrefix(row, "| ") {
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(row, -1) {
			if path := m[1]; strings.Contains(path, "/") && !strings.Contains(path, " ") {
				paths++
				if found, err := filepath.Glob(filepath.Join("../..", path)); err != nil || len(found) == 0 {
					t.Errorf("CONTRIBUTING.md names %s, which does not exist (%v)", path, err)
				}
			}
		}
	}
	if paths < 30 {
		t.Errorf("CONTRIBUTING.md names %d paths, fewer than it has packages", paths)
	}
}

// TestReadmeHasTheSizes checks that README.md gives the numbers of packages that docs/sizes.md has.
func TestReadmeHasTheSizes(t *testing.T) {
	readme, sizes := read(t, "README.md"), read(t, "docs/sizes.md")
	for _, program := range []string{programs[0].what, "with profiles alone, by `agent`", "with everything by one call, by `otelsetup`"} {
		_, row, found := strings.Cut(sizes, "| "+program+" | ")
		number, _, _ := strings.Cut(row, " |")
		if !found || !strings.Contains(readme, number+" packages") {
			t.Errorf("README.md does not say that the program %q has %q packages, as docs/sizes.md does", program, number)
		}
	}
}
