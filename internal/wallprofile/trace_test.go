package wallprofile

import "testing"

func TestFramesOfWholeTraces(t *testing.T) {
	network, none := NetworkFrame("POST /reserve"), NoProfileFrame("too many spans")
	for frame, want := range map[string]Kind{network: KindWaiting, none: KindOther} {
		if KindOf(frame) != want || !IsMarker(frame) || IsCause(frame) {
			t.Errorf("%s: kind %d, want %d", frame, KindOf(frame), want)
		}
	}
	if network != "[network, or the queue before POST /reserve]" || none != "[no profile: too many spans]" ||
		ServiceFrame("POST /reserve", "inventory") != "span: POST /reserve of inventory" {
		t.Errorf("%s, %s, %s", network, none, ServiceFrame("POST /reserve", "inventory"))
	}
	if got := (Place{Leaf: network}).Phrase(); got != "network, or the queue before POST /reserve" {
		t.Errorf("in words: %q", got)
	}
}

func TestSameRequest(t *testing.T) {
	for frame, want := range map[string]bool{
		CauseFrame(DoneBy, SameRequest, ""):                 true,
		CauseFrame(StartedBy, SameRequest, ""):              true,
		CauseFrame(DoneBy, OtherRequest, "x: "+sameRequest): false,
		CauseFrame(HeldBy, NoRequest, "main.report"):        false,
		WaitedForFrame("x: " + sameRequest + "]"):           false,
		"main.f[of: the same request]":                      false,
		NotEnded.Leaf():                                     false,
		CauseFrame(WokenBy, Timer, ""):                      false,
	} {
		if IsSameRequest(frame) != want {
			t.Errorf("%s: %v", frame, !want)
		}
	}
}

func TestMarked(t *testing.T) {
	if !Marked(map[string]string{ProfileIDAttribute: "1"}, "1") || Marked(map[string]string{ProfileIDAttribute: "2"}, "1") || Marked(nil, "1") {
		t.Error("a span is marked by its own ID alone")
	}
}
