// Package bomb makes small gzip files that decompress to large ones. Tests of packages that read profiles use them.
package bomb

import (
	"bytes"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// MemberBytes is the decompressed size of a member of a bomb. Its compressed size is about a thousandth of that.
const MemberBytes = 4 << 20

// New returns a gzip file with the given number of members, which contain zeros.
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
