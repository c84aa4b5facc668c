package record

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// A service's profiles are saved in a directory of its own, with one below it for each day, and in that one for each
// hour of the windows' starts, so that a reader who looks for a time lists few files.

// RunsDir is the directory, in that to which agents save, of what they keep for their next start.
const RunsDir = "runs"

// maxDirName limits DirName, in bytes: file systems accept 255.
const maxDirName = 200

// DirName is the name of a service's directory: letters, digits and "._-" of ASCII as they are, every other
// byte as %XX, so that it contains no path and url.PathUnescape returns the service. A name that would be longer than
// 200 bytes is cut and ends in "~" and a hash of the service; that of an empty service is "%".
func DirName(service string) string {
	var b strings.Builder
	whole := len(service) > 0 && strings.Trim(service, ".") == "" // "." and ".." are directories already
	for i := range len(service) {
		c := service[i]
		plain := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._-", c) >= 0
		if plain && !whole {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	switch name := b.String(); {
	case name == "":
		return "%"
	case len(name) > maxDirName:
		sum := sha256.Sum256([]byte(service))
		tail := "~" + hex.EncodeToString(sum[:8])
		head := name[:maxDirName-len(tail)]
		if i := strings.LastIndexByte(head, '%'); i >= len(head)-2 {
			head = head[:i] // no half of a %XX
		}
		return head + tail
	default:
		return name
	}
}

// SavedPath returns the path that a record is saved at, below the directory of profiles and with slashes: by service,
// day and hour (UTC), with a new file name.
func (m Meta) SavedPath() string {
	start := m.Start.UTC()
	return path.Join(DirName(m.Service), start.Format("2006-01-02"), start.Format("15"), m.FileName())
}

// DefaultDir returns the directory that the services of a user save profiles and traces below if no other is named. It
// is one for all services, so that a trace across services is in one place.
func DefaultDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no directory to save profiles in: %w", err)
	}
	return filepath.Join(cache, "spanflame", "saved"), nil
}
