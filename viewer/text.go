package viewer

import (
	"strings"

	"spanflame/internal/format"
)

// quoteShell quotes an argument for a POSIX shell, so that a command line can be copied as it is shown.
func quoteShell(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=:%@+,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// arguments are files for a shell; not ok where there are none, more than anybody types, or one whose name would
// deceive the eye.
func arguments(files []string) (list string, ok bool) {
	if len(files) > listedWindows {
		return "", false
	}
	for _, f := range files {
		if format.Clean(f, len(f)) != f {
			return "", false
		}
		list += " " + quoteShell(f)
	}
	return list, len(files) > 0
}
