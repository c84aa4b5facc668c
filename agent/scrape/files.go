package scrape

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"spanflame/internal/record"
)

// The labels of Prometheus and of its relatives that say where a target's profiles are.
const (
	labelScheme = "__scheme__"
	labelPath   = "__profile_path__"
)

// maxFile limits what is read of a file of targets, in bytes.
const maxFile = 16 << 20

// file is a file of targets as it was last read.
type file struct {
	modified time.Time
	size     int64
	targets  []Target // as they were when it could be read
	err      error    // why the file cannot be read as it is now
}

// group is what Prometheus' file_sd_configs have in a list.
type group struct {
	Targets []string          `yaml:"targets"`
	Labels  map[string]string `yaml:"labels"`
}

// read returns the targets of all files. A file that cannot be read has those that it had before.
func (s *Scraper) read() (targets []Target) {
	s.mu.Lock()
	before := maps.Clone(s.files)
	s.mu.Unlock()
	now := map[string]file{}
	for _, name := range s.paths() {
		f := before[name].again(name, s.cfg.Agent.ProfileLabels)
		if f.err != nil && (before[name].err == nil || before[name].err.Error() != f.err.Error()) {
			s.log.Warn("targets cannot be read; those that were there before are scraped", "file", name, "error", f.err)
		}
		now[name] = f
		targets = append(targets, f.targets...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = now
	return targets
}

// paths returns the files that the configuration names, each once. Its last element may be a pattern.
func (s *Scraper) paths() (paths []string) {
	for _, name := range s.cfg.Files {
		if !isPattern(name) {
			paths = append(paths, name)
			continue
		}
		found, _ := filepath.Glob(name) // the pattern was checked
		paths = append(paths, found...)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

func isPattern(name string) bool {
	return strings.ContainsAny(path.Base(filepath.ToSlash(name)), "*?[")
}

// again returns the file as it is now. All targets have the labels, too.
func (f file) again(name string, labels map[string]string) file {
	info, err := os.Stat(name)
	if err != nil {
		f.err = err
		return f
	}
	if f.err == nil && info.ModTime().Equal(f.modified) && info.Size() == f.size {
		return f
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait for its writer
		f.err = errors.New("it is not a regular file")
		return f
	}
	targets, err := readFile(name, labels)
	if err != nil {
		f.err = err
		return f
	}
	return file{modified: info.ModTime(), size: info.Size(), targets: targets}
}

func readFile(name string, labels map[string]string) ([]Target, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxFile:
		return nil, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	return parseTargets(text, labels)
}

// shown finds what YAML's errors show of a value, which may be the password of a misplaced address.
var shown = regexp.MustCompile("`.*`")

// parseTargets reads the list of a file, which is YAML or JSON. All targets have the labels, too.
func parseTargets(text []byte, labels map[string]string) (targets []Target, err error) {
	var groups []group
	if len(bytes.TrimSpace(text)) > 0 {
		if err := yaml.Unmarshal(text, &groups); err != nil {
			return nil, errors.New(shown.ReplaceAllString(err.Error(), "`…`"))
		}
	}
	for _, g := range groups {
		for _, address := range g.Targets {
			t, err := g.target(address).complete(labels)
			if err != nil {
				return nil, err
			}
			targets = append(targets, t)
		}
	}
	return targets, nil
}

func (g group) target(address string) Target {
	scheme := "http"
	if s := g.Labels[labelScheme]; s != "" {
		scheme = s
	}
	t := Target{URL: scheme + "://" + address, Labels: map[string]string{}}
	if p := g.Labels[labelPath]; p != "" {
		t.URL += "/" + strings.TrimLeft(p, "/")
	}
	for _, name := range []string{record.ServiceLabel, "service", "job"} { // the first is the usual one
		if t.Service == "" {
			t.Service = g.Labels[name]
		}
	}
	for name, value := range g.Labels {
		if !strings.HasPrefix(name, "__") && name != record.ServiceLabel {
			t.Labels[name] = value
		}
	}
	return t
}
