// Package incidentfile describes the files of incident bundles: their names, what is in them, and their directories. The
// agent writes them and the viewer reads them. It collects nothing for a bundle, and draws no page.
package incidentfile

import (
	"archive/zip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"strings"
	"time"
)

// Dir is the directory of the bundles in that to which an agent saves. It has a directory for each service, which
// record.DirName names.
const Dir = "incidents"

// Names of entries of a bundle. The other entries are profiles, below Profiles.
const (
	Index    = "index.html"
	About    = "incident.json"
	Trace    = "trace.out"
	Metrics  = "metrics.csv"
	Slow     = "slow.csv"
	Build    = "build.txt"
	Settings = "settings.txt"
	Profiles = "profiles/"
)

// Suffix ends the name of a bundle's file.
const Suffix = ".zip"

// The triggers of bundles.
const (
	Request    = "request"    // of a person
	Signal     = "signal"     // SIGUSR1
	CPU        = "cpu"        // of the process
	Latency    = "latency"    // of goroutines that wait for a CPU
	Memory     = "memory"     // of the process, near its limit
	Goroutines = "goroutines" // many of them
	Alert      = "alert"      // of an Alertmanager
)

// ID names a bundle. Its text sorts by time.
type ID struct {
	At      time.Time
	Trigger string
	Random  uint32 // distinguishes the bundles of one moment
}

const timeLayout = "20060102T150405.000Z"

var idPattern = regexp.MustCompile(`^([0-9]{8}T[0-9]{6}\.[0-9]{3}Z)-([a-z]{1,16})-([0-9a-f]{8})$`)

// NewID returns a fresh ID.
func NewID(at time.Time, trigger string) ID {
	return ID{at.UTC().Truncate(time.Millisecond), trigger, rand.Uint32()}
}

func (id ID) String() string {
	return fmt.Sprintf("%s-%s-%08x", id.At.UTC().Format(timeLayout), id.Trigger, id.Random)
}

// File returns the name of the bundle's file.
func (id ID) File() string { return id.String() + Suffix }

// ParseID is the inverse of ID.String. It accepts nothing else: its text can be part of a path.
func ParseID(text string) (ID, error) {
	m := idPattern.FindStringSubmatch(text)
	if m == nil {
		return ID{}, fmt.Errorf("incident %.80q: want an ID like %s", text, ID{Trigger: Request})
	}
	at, err := time.Parse(timeLayout, m[1])
	if err != nil {
		return ID{}, fmt.Errorf("incident %q: %w", text, err)
	}
	id := ID{At: at, Trigger: m[2]}
	if _, err := fmt.Sscanf(m[3], "%08x", &id.Random); err != nil {
		return ID{}, fmt.Errorf("incident %q: %w", text, err)
	}
	return id, nil
}

// ParseFile returns the ID of a bundle by the name of its file.
func ParseFile(name string) (ID, error) {
	stem, ok := strings.CutSuffix(name, Suffix)
	if !ok {
		return ID{}, fmt.Errorf("file %.80q: want an incident's ID and %s", name, Suffix)
	}
	return ParseID(stem)
}

// Incident describes a bundle, in its entry About.
type Incident struct {
	ID       string    `json:"id"`
	Service  string    `json:"service"`
	Instance string    `json:"instance,omitempty"`
	Version  string    `json:"version,omitempty"`
	Trigger  string    `json:"trigger"`
	Detail   string    `json:"detail,omitempty"` // what the trigger saw
	At       time.Time `json:"at"`
	Took     string    `json:"took"`              // until everything was collected
	Missing  []string  `json:"missing,omitempty"` // what could not be collected, and why
}

// maxAbout limits the description that is read, in bytes.
const maxAbout = 1 << 20

// Read returns the description of a bundle.
func Read(z *zip.Reader) (Incident, error) {
	f, err := z.Open(About)
	if err != nil {
		return Incident{}, fmt.Errorf("not an incident bundle: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAbout+1))
	if err == nil && len(b) > maxAbout {
		err = errors.New("too large")
	}
	var i Incident
	if err == nil {
		err = json.Unmarshal(b, &i)
	}
	if err != nil {
		return Incident{}, fmt.Errorf("%s of an incident bundle: %w", About, err)
	}
	return i, nil
}
