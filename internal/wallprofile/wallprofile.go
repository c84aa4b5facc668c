// Package wallprofile has the conventions of wall-clock profiles: the frames that are not functions, the states of a
// goroutine, the labels that link samples to spans, the diagnosis of a span and its comment, and the rule that determines
// which function of a stack is to blame. The agent writes profiles with it; package profiles, the viewer and the commands
// read them with it. It neither records nor stores profiles.
package wallprofile

import "strings"

// Labels of samples, of all types of profiles: they link a sample to its span. The log has the first and the last
// under the same names.
const (
	SpanID    = "span_id"    // 16 hexadecimal digits
	ProfileID = "profile_id" // the older name of SpanID, which other tools write
	SpanName  = "span_name"
	TraceID   = "trace_id" // 32 hexadecimal digits
)

// SpanScope is the series label of a wall-clock profile that tells profiles of local root spans (ScopeRoot) from those
// of the spans below them (ScopeChild), whose time is in their root's profile as well, and from those of a sparse sample of
// fast local root spans (ScopeFast), with which slow ones are compared.
const (
	SpanScope  = "span_scope"
	ScopeRoot  = "root"
	ScopeChild = "child"
	ScopeFast  = "fast"
)

// ProfileIDAttribute is the attribute of a span from which Grafana and the viewer link to its profile. Its value is
// the span's own ID.
const ProfileIDAttribute = "pyroscope.profile.id"

// UnsampledAttribute is an attribute of spans that the sampler decided against: of such a trace there is only the span of
// a request that was slow.
const UnsampledAttribute = "spanflame.unsampled"

const (
	// SpanPrefix begins the frame of a span; the span's name follows. Stacks begin with the frames of their spans.
	SpanPrefix = "span: "
	// Others is the frame above the time that other goroutines spent for the profile's span.
	Others = "[other goroutines working for this span]"
	// OthersType is the sample type that has this time. The sample type of the span's own time has none of it.
	OthersType = "others"
)

// IsBracketed reports whether a frame is a state or Others rather than a function or a span.
func IsBracketed(frame string) bool { return strings.HasPrefix(frame, "[") }

// IsMarker reports whether a frame is not a function.
func IsMarker(frame string) bool {
	return IsBracketed(frame) || strings.HasPrefix(frame, SpanPrefix) || IsCall(frame)
}
