// Package memlimit reads how much memory the process uses, and at how much it would be killed or would collect garbage all
// the time: the limits of its cgroups (version 2 and 1) and GOMEMLIMIT. Packages incident and lastrun use it. It needs no
// privileges and changes nothing.
package memlimit

import (
	"bytes"
	"math"
	"os"
	"path"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
)

// names are the runtime's metrics that are read: the limit, and what the runtime has of the system, of which all after that and
// before the last can be collected, or has been.
var names = [...]string{
	"/gc/gomemlimit:bytes", "/memory/classes/total:bytes", "/memory/classes/heap/objects:bytes", "/memory/classes/heap/unused:bytes",
	"/memory/classes/heap/free:bytes", "/memory/classes/heap/released:bytes", "/gc/heap/live:bytes",
}

// root is where cgroups are mounted.
const root = "/sys/fs/cgroup"

// Meter reads use and limit. It is for one goroutine at a time.
type Meter struct {
	groups []group
	read   [len(names)]metrics.Sample
}

// group is a cgroup that limits the memory of the process.
type group struct {
	usage, stat, inactive string // two files, and the field of the second with the cache that the kernel can free at once
	events                string
	limit                 uint64
}

// New finds the limits, which are read once.
func New() *Meter { return newMeter(root, "/proc/self/cgroup") }

func newMeter(mounted, self string) *Meter {
	m := &Meter{}
	for i, name := range names {
		m.read[i].Name = name
	}
	lines, err := os.ReadFile(self)
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(lines)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch {
		case parts[0] == "0" && parts[1] == "":
			m.climb(mounted, parts[2], version2)
		case slices.Contains(strings.Split(parts[1], ","), "memory"):
			m.climb(path.Join(mounted, "memory"), parts[2], version1)
		}
	}
	return m
}

// climb adds the groups from the process's own up to the mount that have a limit. In a container, the process's path can be
// that of the host, and the mount be the group itself: what is not there is left out.
func (m *Meter) climb(mount, own string, at func(dir string) (group, bool)) {
	for dir := path.Clean("/" + own); ; dir = path.Dir(dir) {
		if g, ok := at(path.Join(mount, dir)); ok {
			m.groups = append(m.groups, g)
		}
		if dir == "/" {
			return
		}
	}
}

func version2(dir string) (group, bool) {
	g := group{usage: dir + "/memory.current", stat: dir + "/memory.stat", inactive: "inactive_file", events: dir + "/memory.events"}
	g.limit = readNumber(dir + "/memory.max")
	_, err := os.Stat(g.usage)
	return g, g.limit > 0 && err == nil
}

func version1(dir string) (group, bool) {
	g := group{
		usage: dir + "/memory.usage_in_bytes", stat: dir + "/memory.stat", inactive: "total_inactive_file", events: dir + "/memory.oom_control",
	}
	g.limit = readNumber(dir + "/memory.limit_in_bytes")
	_, err := os.Stat(g.usage)
	return g, g.limit > 0 && g.limit < 1<<60 && err == nil // without a limit, a number near the largest
}

// Read returns the bytes that the process, or the group that it is in, uses, and the limit: those of which the part is
// largest. A limit of 0 is none. Of GOMEMLIMIT it is what no collection can free, as of the last one: a heap with garbage up to
// that limit is as it should be.
func (m *Meter) Read() (used, limit uint64) {
	metrics.Read(m.read[:])
	var v [len(names)]uint64
	for i, r := range m.read {
		if r.Value.Kind() == metrics.KindUint64 {
			v[i] = r.Value.Uint64()
		}
	}
	used = v[1] + v[6] - min(v[1]+v[6], v[2]+v[3]+v[4]+v[5])
	if v[0] < math.MaxInt64 {
		limit = v[0]
	}
	for _, g := range m.groups {
		u := g.read()
		if u > 0 && (limit == 0 || float64(u)/float64(g.limit) > float64(used)/float64(limit)) {
			used, limit = u, g.limit
		}
	}
	return used, limit
}

// read returns what the group uses, without the cache that the kernel can free at once.
func (g group) read() uint64 {
	used := readNumber(g.usage)
	if float64(used) < 0.5*float64(g.limit) {
		return used // as good: the cache makes no difference
	}
	b, err := os.ReadFile(g.stat)
	if err != nil {
		return used
	}
	return used - min(used, field(b, g.inactive))
}

// Killed returns how often the kernel has killed a process of the process's groups for memory, as far as they tell.
func (m *Meter) Killed() (n uint64) {
	for _, g := range m.groups {
		if b, err := os.ReadFile(g.events); err == nil {
			n += field(b, "oom_kill")
		}
	}
	return n
}

// readNumber returns the number in a file, 0 if there is none.
func readNumber(file string) uint64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// field returns the number of a field in a file of lines with a name and a number.
func field(b []byte, name string) uint64 {
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(rest)), 10, 64)
			return n
		}
	}
	return 0
}
