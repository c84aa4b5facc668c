package spool

import "time"

// sayEvery is how often the log hears of one reason. What is refused or damaged often is so by the thousand.
const sayEvery = time.Minute

// said is what the log was told of one reason.
type said struct {
	message string
	at      time.Time // of the last line
	more    int       // profiles since
}

// say logs that a profile is out of the queue, for each reason at most once every sayEvery, with the number of
// profiles that the line stands for. It is called with mu held.
func (s *Spool) say(reason, message string, args ...any) {
	last := s.said[reason]
	if !last.at.IsZero() && time.Since(last.at) < sayEvery {
		last.more++
		s.said[reason] = last
		return
	}
	s.opt.Logger.Warn(message, append(args, "reason", reason, "profiles", last.more+1)...)
	s.said[reason] = said{message: message, at: time.Now()}
}

// sayRest logs what was held back for the time given, where nothing has followed that would have.
func (s *Spool) sayRest(held time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for reason, last := range s.said {
		if last.more > 0 && time.Since(last.at) >= held {
			s.opt.Logger.Warn(last.message, "directory", s.opt.Dir, "reason", reason, "profiles", last.more)
			s.said[reason] = said{message: last.message, at: time.Now()}
		}
	}
}
