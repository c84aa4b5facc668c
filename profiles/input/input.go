// Package input turns what a user names on a command line into a series of windows: a file, a directory or a
// pattern of files, a running service's /debug/pprof, or a query of a Pyroscope server. The commands
// "spanflame compare" and "spanflame leaks" use it, and "spanflame merge" of saved profiles alone. It is not for
// programs that know where their profiles are: those read package profiles itself, which has no network.
package input

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"spanflame/profiles"
)

// Options choose among what there is at the place.
type Options struct {
	// Query chooses saved profiles. Its times are those of a Pyroscope query that has none, and its first type
	// is what is taken from a live address that names none.
	Query profiles.Query
	// Windows is how many profiles to take from a live address, 1 by default.
	Windows int
	// Length is how long each of them takes, 10 s by default.
	Length time.Duration
	// Step is the length of the windows that a Pyroscope query is divided into, to a tenth of a second, by default
	// a twentieth of its time range.
	Step time.Duration
	// Damaged, if it is not nil, is called for each file of a directory that cannot be used, which is left out.
	Damaged func(profiles.Damaged)
	// Listed, if it is not nil, is called with the saved profiles that were found, before any of them is read.
	Listed func([]profiles.Entry)
}

const (
	defaultLength = 10 * time.Second
	defaultSteps  = 20
	maxWindows    = 100_000
	maxLabels     = 10 // that an error names
)

// Validate says which option is wrong.
func (o Options) Validate() error {
	switch {
	case o.Windows < 0 || o.Windows > maxWindows:
		return fmt.Errorf("%d windows: want 1 to %d", o.Windows, maxWindows)
	case o.Length < 0 || o.Length > 0 && o.Length < time.Second:
		return fmt.Errorf("length %v of a window: want 1s or more", o.Length)
	case o.Step < 0 || o.Step > 0 && o.Step < time.Second:
		return fmt.Errorf("step %v: want 1s or more", o.Step)
	}
	return nil
}

// Open finds what an argument names. Windows come in the order of time; of a live address each is taken when
// it is asked for.
func Open(ctx context.Context, argument string, o Options) (iter.Seq2[profiles.Window, error], error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if argument == "" {
		return nil, errors.New("no profile is named: want a file, a directory, a pattern or an address")
	}
	if !strings.Contains(argument, "://") {
		return files(ctx, argument, o)
	}
	u, err := url.Parse(argument)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", argument, errors.Unwrap(err))
	}
	switch {
	case u.Host == "":
		return nil, fmt.Errorf("address %q has no host", argument)
	case u.Scheme == "pyroscope", isWeb(u) && u.Query().Has("query"):
		return pyroscope(ctx, u, o, time.Now())
	case isWeb(u) && strings.Contains(u.Path, debugPath):
		return live(ctx, u, o)
	}
	return nil, fmt.Errorf(`address %q: want http://HOST/debug/pprof/… for a running service, `+
		`or pyroscope://HOST/?query=TYPE{label="value"}&from=now-1h&until=now`, argument)
}

func isWeb(u *url.URL) bool { return u.Scheme == "http" || u.Scheme == "https" }

// files reads saved profiles. A file that is named by itself must be usable.
func files(ctx context.Context, argument string, o Options) (iter.Seq2[profiles.Window, error], error) {
	var unusable error
	entries, err := List(ctx, o.Query, func(d profiles.Damaged, named bool) {
		switch {
		case o.Damaged == nil || named:
			if unusable == nil {
				unusable = d
			}
		default:
			o.Damaged(d)
		}
	}, argument)
	if unusable != nil {
		return nil, fmt.Errorf("%w; %s", unusable, wantFile)
	}
	if err != nil {
		return nil, err
	}
	if services := profiles.ServiceNames(entries); len(services) > 1 {
		return nil, fmt.Errorf("%s has profiles of several services, select one with --service: %s", argument, strings.Join(services, ", "))
	}
	if o.Listed != nil {
		o.Listed(entries)
	}
	windows := profiles.Read(ctx, entries)
	if o.Damaged != nil {
		windows = profiles.WithoutDamaged(windows, o.Damaged)
	}
	return windows, nil
}

// wantFile says what a file must be.
const wantFile = "want a profile in pprof's format, as agents, /debug/pprof and go test -cpuprofile write it"

// List finds the saved profiles that a query chooses among files, directories, and patterns of both, by their start.
// It calls damaged for each file that cannot be used, and says whether that one is named by itself. Where nothing
// is left, the error says what was asked for and what there is.
func List(ctx context.Context, q profiles.Query, damaged func(d profiles.Damaged, named bool), arguments ...string) ([]profiles.Entry, error) {
	var paths []string
	for _, argument := range arguments {
		_, missing := os.Stat(argument)
		if !errors.Is(missing, fs.ErrNotExist) { // a name may have characters of a pattern
			paths = append(paths, argument)
			continue
		}
		found, err := filepath.Glob(argument)
		switch {
		case err != nil:
			return nil, fmt.Errorf("pattern %q: %w", argument, err)
		case len(found) == 0 && strings.ContainsAny(argument, patternCharacters):
			return nil, fmt.Errorf("no file matches %s", argument)
		case len(found) == 0:
			return nil, fmt.Errorf("%s: %w: want a profile, a directory that has some, or a pattern such as 'saved/*.pb.gz'", argument, errors.Unwrap(missing))
		}
		paths = append(paths, found...)
	}
	entries, unusable, err := profiles.Find(ctx, q, paths...)
	if err != nil {
		return nil, err
	}
	for i := range paths {
		paths[i] = filepath.Clean(paths[i]) // as Find names them
	}
	for _, d := range unusable {
		damaged(d, slices.Contains(paths, d.Path))
	}
	if len(entries) == 0 {
		return nil, none(ctx, strings.Join(arguments, ", "), q, paths, len(unusable))
	}
	return entries, nil
}

// patternCharacters are those that make a name a pattern.
const patternCharacters = `*?[`

// none says what was asked for in vain, and what there is instead. Some files cannot be used.
func none(ctx context.Context, argument string, q profiles.Query, paths []string, unusable int) error {
	entries, _, err := profiles.Find(ctx, profiles.Query{}, paths...)
	switch {
	case err != nil:
		return err
	case len(entries) == 0 && unusable > 0:
		return fmt.Errorf("%s: %w: all files that there are (%d) cannot be used; %s", argument, profiles.ErrNone, unusable, wantFile)
	case len(entries) == 0:
		return fmt.Errorf("%s: %w: no file there is named %s", argument, profiles.ErrNone, profiles.FileNames())
	}
	var asked, types []string
	if q.Service != "" {
		asked = append(asked, fmt.Sprintf("service %q", q.Service))
	}
	for _, t := range q.Types {
		asked = append(asked, fmt.Sprintf("type %s", profiles.TypeName(t)))
	}
	for _, name := range slices.Sorted(maps.Keys(q.Labels)) {
		asked = append(asked, fmt.Sprintf("label %s=%q", name, q.Labels[name]))
	}
	for _, t := range []struct {
		name string
		at   time.Time
	}{{"from", q.From}, {"to", q.To}} {
		if !t.at.IsZero() {
			asked = append(asked, t.name+" "+t.at.UTC().Format(time.DateTime))
		}
	}
	from, to := entries[0].Start, entries[0].End
	labels := map[string]bool{} // those asked for, with the values that there are
	for _, e := range entries {
		types = append(types, profiles.TypeName(e.Type))
		if e.End.After(to) {
			to = e.End
		}
		for name := range q.Labels {
			if value, ok := e.Labels[name]; ok {
				labels[fmt.Sprintf("%s=%q", name, value)] = true
			}
		}
	}
	slices.Sort(types)
	services := cmp.Or(strings.Join(profiles.ServiceNames(entries), ", "), "no service that they name")
	there := fmt.Sprintf("there are %d from %s to %s, of %s, of the types %s", len(entries), from.UTC().Format(time.DateTime),
		to.UTC().Format(time.DateTime+" MST"),
		services, strings.Join(slices.Compact(types), ", "))
	if len(labels) > 0 {
		have := slices.Sorted(maps.Keys(labels))
		there += ", with the labels " + strings.Join(have[:min(len(have), maxLabels)], ", ")
	}
	return fmt.Errorf("%s: %w %s: %s", argument, profiles.ErrNone, strings.Join(asked, ", "), there)
}
