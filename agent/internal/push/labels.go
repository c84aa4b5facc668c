package push

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"spanflame/internal/pyroscopewire"
	"spanflame/internal/record"
)

// Pyroscope's limits on the labels of a series, at their defaults.
const (
	maxLabels     = 30
	maxNameBytes  = 1024
	maxValueBytes = 2048
)

// Changes counts what of a record's labels could not be sent as it was. Names holds the labels concerned,
// at most maxChangedNames of them, so that one log line can tell which.
type Changes struct {
	Dropped  int // labels left out: above the limit of 30, reserved, empty, or named as another once renamed
	Renamed  int // labels whose name had characters that a label name cannot have
	Cut      int // labels with values cut at 2048 bytes or made valid UTF-8
	Other    int // labels with values above MaxLabelValues, sent as OtherValue
	TraceIDs int // samples that lost their trace_id, for a server that would make a series of each trace
	Names    []string
}

const maxChangedNames = 8

// Any says whether something was changed that a user may miss. The trace_id rule is not such a thing.
func (c Changes) Any() bool { return c.Dropped+c.Renamed+c.Cut+c.Other > 0 }

func (c *Changes) note(counter *int, name string) {
	*counter++
	name = cut(strings.ToValidUTF8(name, "\uFFFD"), 64)
	if len(c.Names) < maxChangedNames && !slices.Contains(c.Names, name) {
		c.Names = append(c.Names, name)
	}
}

// cumulative are the types that the runtime counts since the process began, and without labels. The agent
// has already turned them into the window's delta; unless told so by __delta__, the server would difference
// them once more and swallow the first.
var cumulative = map[record.Type]bool{record.Memory: true, record.Mutex: true, record.Block: true}

// seriesLabels returns the labels of the record's series, sorted by name, fit for the server's rules.
func seriesLabels(m record.Meta) ([]pyroscopewire.Label, Changes) {
	var ch Changes
	out := []pyroscopewire.Label{
		{Name: "__name__", Value: string(m.Type)}, {Name: record.ServiceLabel, Value: ch.value(record.ServiceLabel, m.Service)},
	}
	if cumulative[m.Type] {
		out = append(out, pyroscopewire.Label{Name: "__delta__", Value: "false"})
	}
	taken := map[string]bool{record.ServiceLabel: true}
	// A label whose name is right as it is wins over one that is renamed to it.
	names := slices.SortedFunc(maps.Keys(m.Labels), func(a, b string) int {
		if ra, rb := labelName(a) != a, labelName(b) != b; ra != rb {
			if rb {
				return -1
			}
			return 1
		}
		return cmp.Compare(a, b)
	})
	for _, name := range names {
		sent := labelName(name)
		if m.Labels[name] == "" || taken[sent] || strings.HasPrefix(sent, "__") || len(out) == maxLabels {
			ch.note(&ch.Dropped, name)
			continue
		}
		if sent != name {
			ch.note(&ch.Renamed, name)
		}
		taken[sent] = true
		out = append(out, pyroscopewire.Label{Name: sent, Value: ch.value(name, m.Labels[name])})
	}
	slices.SortFunc(out, func(a, b pyroscopewire.Label) int { return cmp.Compare(a.Name, b.Name) })
	return out, ch
}

// value bounds a label's value and makes it valid UTF-8.
func (c *Changes) value(name, value string) string {
	fit := cut(strings.ToValidUTF8(value, "\uFFFD"), maxValueBytes)
	if fit != value {
		c.note(&c.Cut, name)
	}
	return fit
}

// labelName makes a name fit for Prometheus' rules, [a-zA-Z_][a-zA-Z0-9_]*: the server refuses the whole
// profile for one name that is not.
func labelName(s string) string {
	name := []byte(cut(s, maxNameBytes-1))
	for i, b := range name {
		if (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') {
			name[i] = '_'
		}
	}
	if len(name) == 0 || name[0] >= '0' && name[0] <= '9' {
		return "_" + string(name)
	}
	return string(name)
}
