// Package redact takes secrets out of what the agent shows to people: logs, errors and health. It is for
// addresses; a secret of any other kind is not to be shown at all.
package redact

import "strings"

// URL is an address without the user and password that may stand in it. It need not be a valid URL.
func URL(address string) string {
	i := strings.LastIndexByte(address, '@')
	if i < 0 {
		return address
	}
	scheme, _, ok := strings.Cut(address[:i], "://")
	if !ok {
		return address[i+1:]
	}
	return scheme + "://" + address[i+1:]
}
