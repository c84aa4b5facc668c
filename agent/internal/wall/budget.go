package wall

import (
	"cmp"
	"slices"
	"time"
)

// budgetWindow is the time over which the recorder's CPU time is averaged.
const budgetWindow = time.Minute

// budget is a token bucket of CPU time: it holds at most share × budgetWindow and refills with time.
type budget struct {
	share  float64
	tokens time.Duration
	filled time.Time
	served map[string]time.Time // span name -> when a span of that name was last captured
	traced time.Time            // when a sampled root was last captured

	perByte float64       // ns of CPU to convert a byte of trace, learned
	fixed   time.Duration // CPU to take a snapshot, learned
}

// firstPerByte is the cost assumed before anything was measured: about 0.1 µs an event of 5 bytes.
const firstPerByte = 20

func newBudget(share float64, now time.Time) *budget {
	return &budget{
		share:   share,
		tokens:  time.Duration(share * float64(budgetWindow)),
		filled:  now,
		served:  make(map[string]time.Time),
		perByte: firstPerByte,
	}
}

func (b *budget) capacity() time.Duration { return time.Duration(b.share * float64(budgetWindow)) }

// available returns the CPU time that may be spent now on a root. Half of the bucket is reserved for names that had no
// capture within the window, so that a busy route cannot starve a rare one. Three quarters are reserved for sampled roots,
// if one was captured within the window: the profile of another one has no trace around it. Half is reserved for slow roots.
func (b *budget) available(now time.Time, t *root) time.Duration {
	left := b.left(now)
	if t.fast() {
		return left - b.capacity()/2
	}
	if !t.sampled && now.Sub(b.traced) < budgetWindow {
		return left - b.capacity()*3/4
	}
	if last, ok := b.served[t.currentName()]; ok && now.Sub(last) < budgetWindow {
		return left - b.capacity()/2
	}
	return left
}

// left returns all the CPU time that may be spent now.
func (b *budget) left(now time.Time) time.Duration {
	b.refill(now)
	return b.tokens
}

func (b *budget) refill(now time.Time) {
	if d := now.Sub(b.filled); d > 0 {
		b.tokens = min(b.capacity(), b.tokens+time.Duration(b.share*float64(d)))
		b.filled = now
	}
}

// limit changes the share.
func (b *budget) limit(now time.Time, share float64) {
	b.refill(now)
	b.share = share
	b.tokens = min(b.tokens, b.capacity())
}

// spend charges measured time; the bucket may go below zero and has to recover first, which takes a minute at most.
func (b *budget) spend(d time.Duration) { b.tokens = max(b.tokens-d, -b.capacity()) }

// visit is the CPU time that the runtime spends on each goroutine of the process when it ends a generation of the trace,
// which it does every second while anything records one.
const visit = 600 * time.Nanosecond

// visits is the share of one core that these visits take.
func visits(goroutines int) float64 { return float64(goroutines) * visit.Seconds() }

// recovered reports whether the bucket is nearly full.
func (b *budget) recovered(now time.Time) bool {
	b.refill(now)
	return b.tokens >= b.capacity()*9/10
}

// learn corrects the prediction by what converting so many bytes did cost.
func (b *budget) learn(bytes int, cost time.Duration) {
	if bytes > 0 {
		b.perByte += 0.3 * (float64(cost)/float64(bytes) - b.perByte)
	}
}

// learnFixed corrects the prediction of what taking a snapshot costs.
func (b *budget) learnFixed(cost time.Duration) {
	b.fixed += time.Duration(0.3 * float64(cost-b.fixed))
}

func (b *budget) predict(bytes int) time.Duration { return time.Duration(b.perByte * float64(bytes)) }

// maxServed bounds the names that are remembered; they come from the application.
const maxServed = 1024

// serve notes that a root is captured.
func (b *budget) serve(now time.Time, t *root) {
	if t.sampled {
		b.traced = now
	}
	if len(b.served) >= maxServed {
		for n, t := range b.served {
			if now.Sub(t) >= budgetWindow {
				delete(b.served, n)
			}
		}
		if len(b.served) >= maxServed {
			clear(b.served)
		}
	}
	b.served[t.currentName()] = now
}

// fair orders roots for service: sampled ones, then others, then fast ones; each of these in rounds, one root of each name a round,
// the slowest of its name first; within a round the name that has waited longest first.
func (b *budget) fair(roots []*root) []*root {
	byName := make(map[string][]*root)
	var names []string
	for _, t := range roots {
		name := t.currentName()
		if byName[name] == nil {
			names = append(names, name)
		}
		byName[name] = append(byName[name], t)
	}
	for _, same := range byName {
		slices.SortFunc(same, func(x, y *root) int { return cmp.Compare(y.took, x.took) })
	}
	slices.SortFunc(names, func(x, y string) int {
		return cmp.Or(b.served[x].Compare(b.served[y]), cmp.Compare(x, y))
	})
	ordered := make([]*root, 0, len(roots))
	for round := 0; len(ordered) < len(roots); round++ {
		for _, name := range names {
			if same := byName[name]; round < len(same) {
				ordered = append(ordered, same[round])
			}
		}
	}
	slices.SortStableFunc(ordered, func(x, y *root) int { return cmp.Compare(rank(x), rank(y)) })
	return ordered
}

func rank(t *root) int {
	switch {
	case t.fast():
		return 2
	case t.sampled:
		return 0
	default:
		return 1
	}
}
