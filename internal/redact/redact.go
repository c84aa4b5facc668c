// Package redact removes secrets from addresses before they are shown to people, in logs, errors and the status. Secrets
// of other kinds must not be shown at all.
package redact

import (
	"net/url"
	"strings"
)

// URL returns the address without the user, the password and the query, which may hold secrets. The address need not be
// a valid URL.
func URL(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
		return shown.String() + omitted(u.RawQuery != "" || u.Fragment != "")
	}
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		scheme, rest = "", address
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	rest, _, cut := cutAny(rest, "?#&;=")
	if rest += omitted(cut); ok {
		return scheme + "://" + rest
	}
	return rest
}

// Argument returns an argument of a command line: a path as it is, and an address as URL does.
func Argument(argument string) string {
	if !strings.Contains(argument, "://") {
		return argument
	}
	return URL(argument)
}

// omitted stands for a query that is not shown.
func omitted(query bool) string {
	if query {
		return "?…"
	}
	return ""
}

func cutAny(s, chars string) (before, after string, found bool) {
	if i := strings.IndexAny(s, chars); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}
