// Package bomb makes what the tests of the packages that read profiles must not let explode.
package bomb

import (
	"bytes"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// MemberBytes is what a member of a bomb decompresses to; it is about a thousandth of that itself.
const MemberBytes = 4 << 20

// New is a file of gzip, of so many members of zeros.
func New(t testing.TB, members int) []byte {
	t.Helper()
	var member bytes.Buffer
	zw := gzip.NewWriter(&member)
	if _, err := zw.Write(make([]byte, MemberBytes)); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.Repeat(member.Bytes(), members)
}
