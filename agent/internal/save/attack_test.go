//go:build unix

package save

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"spanflame/agent/internal/owndir"
	"spanflame/agent/internal/owndir/owndirtest"
	"spanflame/internal/record"
)

// TestNothingIsRemovedThroughALinkOfAnotherUser has another user put links in the place of the agent's directories, to
// one with files that have the names of old profiles and traces.
func TestNothingIsRemovedThroughALinkOfAnotherUser(t *testing.T) {
	for name, plant := range map[string]string{
		"the directory":       `mkdir -p "$1"; ln -s "$2/profiles" "$1/profiles"; ln -s "$2/traces" "$1/traces"`,
		"a link to it":        `mkdir -p "$(dirname "$1")"; ln -s "$2" "$1"`,
		"a link on the way":   `ln -s "$(dirname "$2")" "$(dirname "$1")"`,
		"kinds in a volume":   `ln -s "$2/profiles" "$1/profiles"; ln -s "$2/traces" "$1/traces"`,
		"its own in a volume": `umask 0; mkdir -p "$1/profiles" "$1/traces"; ln -s "$2/profiles/$3" "$1/profiles/$3"; ln -s "$2/traces/$3" "$1/traces/$3"`,
	} {
		t.Run(name, func(t *testing.T) {
			tmp, victim := owndirtest.Shared(t)
			o := options(filepath.Join(tmp, "spanflame", "victim"))
			o.MaxBytes, o.MaxAge = 10_000, time.Hour
			hour := filepath.Join(victim, "profiles", record.DirName(service), "2001-02-03", "04")
			spans := filepath.Join(victim, "traces", record.DirName(service))
			for _, path := range []string{
				filepath.Join(hour, "20010203T040506.000000000Z-process_cpu-00000001.pb.gz"),
				filepath.Join(spans, traceFileName(time.Unix(1e9, 0))), filepath.Join(spans, traceFileName(time.Unix(1e9+1, 0))),
			} {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, make([]byte, 20_000), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			there, _ := files(t, victim)
			if name == "kinds in a volume" || name == "its own in a volume" {
				if err := os.MkdirAll(o.Dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(o.Dir, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			owndirtest.Attack(t, plant, o.Dir, victim, record.DirName(service))
			p, _ := openProfiles(t, o)
			p.Put(rec(t, time.Now(), 100))
			tr := OpenTraces(o)
			if _, err := tr.Write(line(t, "one", 10)); !errors.Is(err, owndir.ErrUnsafe) {
				t.Errorf("a batch of spans is written: %v, want %v", err, owndir.ErrUnsafe)
			}
			if err := p.Close(t.Context()); err == nil {
				t.Error("the profile is not reported as lost")
			}
			closeTraces(t, tr)
			for _, s := range []Stats{p.Stats(), tr.Stats()} {
				if !errors.Is(s.Degraded, owndir.ErrUnsafe) || s.Counts[Key{Failed, "write"}].Items != 1 {
					t.Errorf("%+v, want it degraded and one failure", s)
				}
			}
			if left, _ := files(t, victim); !slices.Equal(left, there) {
				t.Errorf("of %q there is %q", there, left)
			}
		})
	}
}
