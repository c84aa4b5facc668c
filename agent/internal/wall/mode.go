package wall

import "time"

// Mode is when the flight recorder runs.
type Mode uint8

// The modes.
const (
	AlwaysOn  Mode = iota // all the time: each slow span is recorded from its start
	Armed                 // while a span runs that may become slow
	DutyCycle             // like Armed, or with pauses, as far as the budget goes: some slow spans are not recorded
	NumModes              // how many there are
)

// String returns the mode's name.
func (m Mode) String() string { return [NumModes]string{"always on", "armed", "duty cycle"}[m] }

const (
	// minStay is how long the recorder stays armed at least. Each return to always-on that did not last doubles it, up to maxStay.
	minStay = 5 * time.Second
	maxStay = 10 * time.Minute

	// lasted is how long always-on lasts that was worth the return to it.
	lasted = 5 * time.Minute
)

// chooser chooses the mode by what recording costs. It changes its mind only if that differs clearly from what it was
// when it made up its mind, so that no load has it go back and forth.
type chooser struct {
	mode  Mode
	since time.Time     // of always-on, or of the others together
	stay  time.Duration // how long to stay armed
	short time.Time     // when the budget was last too small for a slow span
}

// finding is what the chooser knows.
type finding struct {
	always float64 // how many cores recording all the time takes
	share  float64 // … and how many it may take
	left   float64 // the part of the budget that is left, at most 1
	short  bool    // the budget was too small for a slow span
}

// choose returns the mode. Always-on ends when it takes more than its share and has used up half of the budget that was
// saved, so that a short burst does not end it. It begins again when it would take at most half of its share.
func (c *chooser) choose(now time.Time, f finding) Mode {
	if f.short {
		c.short = now
	}
	switch {
	case c.mode == AlwaysOn:
		if f.always > f.share && f.left < 0.5 {
			if now.Sub(c.since) < lasted {
				c.stay = min(maxStay, max(minStay, 2*c.stay))
			} else {
				c.stay = minStay
			}
			c.mode, c.since = Armed, now
		}
	case f.always < f.share/2 && f.left > 0.5 && now.Sub(c.since) >= c.stay:
		c.mode, c.since = AlwaysOn, now
	case f.short:
		c.mode = DutyCycle
	case f.left > 0.5 && now.Sub(c.short) >= budgetWindow:
		c.mode = Armed
	}
	return c.mode
}
