package wallprofile

import "strings"

// The frames of a profile of a whole trace, in which a wait for another service's answer is replaced by what that service did.

// ServiceFrame returns the frame of a span by which a request entered a service.
func ServiceFrame(span, service string) string { return SpanPrefix + span + " of " + service }

const (
	networkPrefix   = "[network, or the queue before "
	noProfilePrefix = "[no profile: "
)

// NetworkFrame returns the frame of the time in which a service waited for an answer, and the span that answered did not run.
func NetworkFrame(span string) string { return networkPrefix + span + "]" }

// NoProfileFrame returns the frame of the time of a span without a profile.
func NoProfileFrame(why string) string { return noProfilePrefix + why + "]" }

// IsSameRequest reports whether a frame says that the wait above it, which was not for a CPU, was for a goroutine that worked for the same request.
func IsSameRequest(frame string) bool {
	return IsCause(frame) && !strings.HasPrefix(frame, "["+links[BusyWith]) && strings.HasSuffix(frame, ": "+sameRequest+"]")
}

// Marked reports whether the agent marked the span with these attributes as one that has a profile of its own.
func Marked(attributes map[string]string, spanID string) bool {
	return attributes[ProfileIDAttribute] == spanID
}
