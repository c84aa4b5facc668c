package why

import (
	"slices"
	"time"

	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
)

// asked is what a request asked of a database or of another service.
type asked struct{ of, frame string }

// count notes how often a request asked it one after the other; 0 if that is not known, or calls overlap.
func (s *stitcher) count(of *traces.Span, frame string) {
	k := asked{of.ID, frame}
	if _, done := s.asked[k]; done || frame == "" {
		return
	}
	var all []*traces.Span
	seen := map[string]bool{of.ID: true}
	for own := []*traces.Span{of}; len(own) > 0; own = own[1:] {
		for _, child := range s.children[own[0].ID] {
			if seen[child.ID] || !inside(child, of) {
				continue
			}
			seen[child.ID] = true
			own = append(own, child)
			if child.Kind == "client" && wallprofile.CallOf(func(key string) string { return child.Attributes[key] }).Frame() == frame {
				all = append(all, child)
			}
		}
	}
	slices.SortFunc(all, func(a, b *traces.Span) int { return a.Start.Compare(b.Start) })
	n := len(all)
	for i := 1; i < len(all); i++ {
		if all[i].Start.Before(all[i-1].End) {
			n = 0
		}
	}
	s.asked[k] = n
}

// ask notes in which calls the time of a part was.
func (p *Part) ask(of *traces.Span, frame string, took int64, counts map[asked]int) {
	p.calls[frame] += time.Duration(took)
	k := asked{of.ID, frame}
	p.asked[k] = counts[k]
}

// sum sets the call that nearly all of the part was in.
func (p *Part) sum() {
	p.Call = p.at.Call(p.calls, nil)
	if p.Call == "" {
		return
	}
	for k, n := range p.asked {
		switch {
		case k.frame != p.Call:
		case n == 0:
			p.Calls = 0
			return
		default:
			p.Calls += n
		}
	}
}
