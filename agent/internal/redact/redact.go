// Package redact removes secrets from addresses that the agent shows to people, in logs, errors and its status.
// It is not for secrets of any other kind, which must not be shown at all.
package redact

import "strings"

// URL returns an address without its user and password. The address need not be a valid URL.
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
