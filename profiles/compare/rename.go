package compare

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/internal/stacks"
)

const (
	// renameShare is the share of a metric's total from which a function that is on one side only may have another name
	// on the other side. Smaller functions are on one side only by chance.
	renameShare = 0.01
	// renameSamples is the number of samples that such a function must have, for the same reason.
	renameSamples = 20
)

// builds are the builds of a program that the windows of a side are from, as far as they say so.
type builds map[string]bool

// add adds the build of a window: its build ID, or else the version of its service.
func (b builds) add(w profiles.Window) {
	build := w.Labels[record.VersionLabel]
	if m := w.Profile.Mapping; len(m) > 0 && m[0].BuildID != "" {
		build = m[0].BuildID // of the program, which comes first
	}
	if build != "" {
		b[build] = true
	}
}

// match finds functions that have another name on the other side, and gives those of before the name that they have
// after. It is deliberately narrow, since a wrong match hides a change. Where both sides are of the same builds, nothing
// was renamed. A function that disappeared and one that appeared are the same if no others share the name within their
// packages (the package was moved or renamed). Where the builds are known to differ, they are also the same if they have
// the same caller and start at the same line of one file (another version of Go names closures in another way), or are the
// only such functions of one file (the function was renamed).
func match(t *stacks.Table, pairs [][2]*measure, before, after builds) []Rename {
	known := len(before) > 0 && len(after) > 0
	if known && maps.Equal(before, after) {
		return nil
	}
	gone, came := only(t, pairs, 0), only(t, pairs, 1)
	if len(gone) == 0 || len(came) == 0 {
		return nil
	}
	to := map[int32]int32{}
	byKey := func(key func(id int32) string, same func(old, now int32) bool) {
		olds, news := unique(gone, key), unique(came, key)
		for k, old := range olds {
			now, ok := news[k]
			if _, done := to[old]; k != "" && ok && !done && same(old, now) {
				to[old] = now
			}
		}
		gone = slices.DeleteFunc(gone, func(id int32) bool { _, done := to[id]; return done })
		came = slices.DeleteFunc(came, func(id int32) bool {
			for _, now := range to {
				if now == id {
					return true
				}
			}
			return false
		})
	}
	byKey(func(id int32) string { return withinPackage(t.Names[id]) }, func(_, _ int32) bool { return true })
	if known {
		calledBy := callers(t)
		sameCaller := func(old, now int32) bool {
			for caller := range calledBy[old] {
				if moved, ok := to[caller]; ok {
					caller = moved
				}
				if calledBy[now][caller] {
					return true
				}
			}
			return false
		}
		byKey(func(id int32) string {
			if t.Lines[id] == 0 {
				return ""
			}
			return fmt.Sprintf("%s:%d", t.Files[id], t.Lines[id])
		}, sameCaller)
		byKey(func(id int32) string { return t.Files[id] }, sameCaller)
	}
	var renamed []Rename
	for old, now := range to {
		renamed = append(renamed, Rename{t.Names[old], t.Names[now]})
	}
	slices.SortFunc(renamed, func(a, b Rename) int { return strings.Compare(a.Before, b.Before) })
	if len(to) > 0 {
		apply(t, to, pairs)
	}
	return renamed
}

// only returns the functions that one side has in at least half of its windows, with enough samples and a large enough
// share, and the other side not at all.
func only(t *stacks.Table, pairs [][2]*measure, which int) []int32 {
	var ids []int32
	for id := range int32(len(t.Names)) {
		much, other := false, false
		for _, p := range pairs {
			m := p[which]
			s := at(m.cum, id)
			much = much || 2*len(s) >= len(m.windows) && float64(s.sum()) >= max(renameShare*float64(m.total.sum()), renameSamples*m.period) && len(s) > 0
			other = other || len(at(p[1-which].cum, id)) > 0
		}
		if much && !other {
			ids = append(ids, id)
		}
	}
	return ids
}

// unique returns the functions that alone have their key.
func unique(ids []int32, key func(int32) string) map[string]int32 {
	found, twice := map[string]int32{}, map[string]bool{}
	for _, id := range ids {
		k := key(id)
		if _, ok := found[k]; ok {
			twice[k] = true
		}
		found[k] = id
	}
	for k := range twice {
		delete(found, k)
	}
	return found
}

// withinPackage is a Go function's name without its package, "" for a name of another form.
func withinPackage(name string) string {
	name = name[strings.LastIndexByte(name, '/')+1:]
	_, rest, _ := strings.Cut(name, ".")
	return rest
}

// callers are the functions that call each function.
func callers(t *stacks.Table) map[int32]map[int32]bool {
	calledBy := map[int32]map[int32]bool{}
	for _, n := range t.Nodes {
		if n.Parent == stacks.Root {
			continue
		}
		if calledBy[n.Function] == nil {
			calledBy[n.Function] = map[int32]bool{}
		}
		calledBy[n.Function][t.Nodes[n.Parent].Function] = true
	}
	return calledBy
}

// apply moves the values before from the old names to the new ones, which have none before.
func apply(t *stacks.Table, to map[int32]int32, pairs [][2]*measure) {
	known := len(t.Nodes)
	moved := make([]int32, known) // the node with the new names
	for id := range known {
		n := t.Nodes[id]
		if n.Parent != stacks.Root {
			n.Parent = moved[n.Parent]
		}
		if now, ok := to[n.Function]; ok {
			n.Function = now
		}
		moved[id] = t.Child(n.Parent, n.Function)
	}
	for _, p := range pairs {
		b := p[0]
		for old, now := range to {
			b.flat = move(b.flat, old, now)
			b.cum = move(b.cum, old, now)
		}
		for id, now := range moved {
			if int32(id) != now {
				b.self = move(b.self, int32(id), now)
				b.tree = move(b.tree, int32(id), now)
			}
		}
	}
}

func move(s []series, from, to int32) []series {
	v := at(s, from)
	if v == nil {
		return s
	}
	if int(to) >= len(s) {
		s = append(s, make([]series, int(to)+1-len(s))...)
	}
	s[from], s[to] = nil, v
	return s
}
