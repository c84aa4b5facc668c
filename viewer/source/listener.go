package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"spanflame/internal/query"
	"spanflame/internal/redact"
	"spanflame/profiles"
)

// IsAddress reports whether what a user named is the address of a listener rather than a path.
func IsAddress(name string) bool {
	return strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://")
}

// Download reads the profiles of the operator's listener of an agent, or of any server with the pages of package
// net/http/pprof, once, and its CPU profile for a time. It saves them in a directory below dir, which [Open] can read, and
// returns it. The listener has no traces. It calls missing for each profile that it cannot get, and fails if it has none.
func Download(ctx context.Context, address, dir string, cpu time.Duration, missing func(error)) (string, error) {
	u, err := url.Parse(address)
	if err != nil || !IsAddress(address) || u.Host == "" || !filepath.IsLocal(u.Host) || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("address %q: want http://HOST:PORT of an agent's listener, such as http://127.0.0.1:16060", redact.URL(address))
	}
	shown := redact.URL(address)
	dir = filepath.Join(dir, strings.ReplaceAll(u.Host, ":", "-")) // names the service
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	u.Path = strings.TrimSuffix(strings.TrimRight(u.Path, "/"), "/debug/pprof")
	listener := query.NewListener(u.String())
	var failures []error
	names := []string{"heap", "goroutine", "mutex", "block", "cpu"}
	for _, name := range names {
		var b []byte
		if name == "cpu" {
			b, err = listener.CPU(ctx, int((cpu+time.Second-1)/time.Second))
		} else {
			b, err = listener.Profile(ctx, name)
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if unreachable, ok := errors.AsType[*url.Error](err); ok && name == names[0] {
			return "", fmt.Errorf("%s cannot be reached: %w: want the address of an agent's listener, which a service logs when it starts", shown, unreachable.Err)
		}
		if err == nil {
			_, err = profiles.Parse(bytes.NewReader(b))
		}
		if err != nil {
			err = fmt.Errorf("the %s profile is missing: %w", name, err)
			failures = append(failures, err)
			missing(err)
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name+".pb.gz"), b, 0o600); err != nil {
			return "", err
		}
	}
	if len(failures) == len(names) {
		return "", fmt.Errorf("%s has no profiles: want an agent's listener with SPANFLAME_ADMIN_PAGES=all, with its token as in "+
			"http://any:TOKEN@HOST:PORT: %w", shown, failures[0])
	}
	return dir, nil
}
