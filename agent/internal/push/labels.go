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

// Changes counts the labels of a record that could not be sent unchanged. Names has the names of these labels, at
// most maxChangedNames, for one log line.
type Changes struct {
	Dropped  int // labels left out: above the limit of 30, reserved, empty, or with the name of another after renaming
	Renamed  int // labels whose name had characters that are not allowed in one
	Cut      int // labels with values that were cut at 2048 bytes or made valid UTF-8
	Other    int // labels with more values than MaxLabelValues: the rest was sent as OtherValue
	TraceIDs int // samples whose trace_id was left out, because the server would make a series of each trace
	Names    []string
}

const maxChangedNames = 8

// Any reports whether a user may miss something. Nobody misses a trace_id.
func (c Changes) Any() bool { return c.Dropped+c.Renamed+c.Cut+c.Other > 0 }

func (c *Changes) note(counter *int, name string) {
	*counter++
	name = cut(strings.ToValidUTF8(name, "\uFFFD"), 64)
	if len(c.Names) < maxChangedNames && !slices.Contains(c.Names, name) {
		c.Names = append(c.Names, name)
	}
}

// cumulative has the types that the runtime counts since the process began, and without labels. The agent sends
// their deltas. The label __delta__ shows this to the server, which would otherwise subtract them again and
// drop the first.
var cumulative = map[record.Type]bool{record.Memory: true, record.Mutex: true, record.Block: true}

// seriesLabels returns the labels of the record's series, at most most, sorted by name, as the server's rules want them.
func seriesLabels(m record.Meta, most int) ([]pyroscopewire.Label, Changes) {
	var ch Changes
	out := []pyroscopewire.Label{
		{Name: "__name__", Value: string(m.Type)}, {Name: record.ServiceLabel, Value: ch.value(record.ServiceLabel, m.Service)},
	}
	if cumulative[m.Type] {
		out = append(out, pyroscopewire.Label{Name: "__delta__", Value: "false"})
	}
	taken := map[string]bool{record.ServiceLabel: true}
	// A label whose name needs no change wins over one that is renamed to it.
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
		if m.Labels[name] == "" || taken[sent] || strings.HasPrefix(sent, "__") || len(out) >= most {
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

// value limits a label's value and makes it valid UTF-8.
func (c *Changes) value(name, value string) string {
	fit := cut(strings.ToValidUTF8(value, "\uFFFD"), maxValueBytes)
	if fit != value {
		c.note(&c.Cut, name)
	}
	return fit
}

// labelName changes a name to follow Prometheus' rule, [a-zA-Z_][a-zA-Z0-9_]*: the server refuses the whole profile
// for one name that does not.
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
