package pyroscopewire

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"
)

// The wanted bytes follow the servers' message definitions, field by field.
func TestRequestsAreWhatPyroscopeReads(t *testing.T) {
	for name, tt := range map[string]struct {
		got  []byte
		want string // hexadecimal, a line a field
	}{
		"push": {Push([]Label{{"a", "bc"}, {"d", ""}}, []byte{1, 2, 3}), `
			0a 17
				0a 07   0a 01 61   12 02 62 63
				0a 05   0a 01 64   12 00
				12 05   0a 03 01 02 03`},
		"select merge profile": {SelectMergeProfile("cpu", "{}", time.UnixMilli(1), time.UnixMilli(300)), `
			0a 03 63 70 75
			12 02 7b 7d
			18 01
			20 ac 02`},
	} {
		want, err := hex.DecodeString(strings.Join(strings.Fields(tt.want), ""))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tt.got, want) {
			t.Errorf("%s: got %x, want %x", name, tt.got, want)
		}
	}
}

func TestReadPush(t *testing.T) {
	labels := []Label{{"__name__", "process_cpu"}, {"service_name", `shop,"{größe}"`}}
	profile := bytes.Repeat([]byte("profile"), 100)
	request := Push(labels, profile)
	if cap(request) != len(request) {
		t.Errorf("the request has %d bytes, and %d were allocated", len(request), cap(request))
	}
	gotLabels, gotProfile, err := ReadPush(request)
	if err != nil || !slices.Equal(gotLabels, labels) || !bytes.Equal(gotProfile, profile) {
		t.Errorf("got %v, %d bytes, %v", gotLabels, len(gotProfile), err)
	}
	for name, b := range map[string][]byte{
		"cut off":                  request[:len(request)-1],
		"a field of another type":  {0x08, 1},
		"an unknown field":         {0x12, 0},
		"an unknown field, deeper": {0x0a, 2, 0x1a, 0},
	} {
		if _, _, err := ReadPush(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
