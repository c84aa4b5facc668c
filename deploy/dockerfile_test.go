package deploy_test

import (
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
)

var (
	continued = regexp.MustCompile(`\\\n\s*`)
	fullTag   = regexp.MustCompile(`^golang:\d+\.\d+\.\d+-[a-z]+`)
)

// checkDockerfile checks that the image is one static binary, run by a numeric user that is not root.
func checkDockerfile(fsys fs.FS) (errs []error) {
	content, err := fs.ReadFile(fsys, dockerfile)
	if err != nil {
		return []error{err}
	}
	report := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", dockerfile, fmt.Errorf(format, args...)))
	}

	// The instructions of the last stage, those of all stages, and each stage's base image.
	var final, all []string
	var bases []string
	for line := range strings.Lines(continued.ReplaceAllString(string(content), " ")) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		all = append(all, line)
		final = append(final, line)
		if args, ok := strings.CutPrefix(line, "FROM "); ok {
			words := slices.DeleteFunc(strings.Fields(args), func(w string) bool { return strings.HasPrefix(w, "--") })
			bases, final = append(bases, words[0]), nil
		}
	}
	if len(bases) < 2 {
		report("stages %q: must build in one and ship in another", bases)
		return errs
	}
	last := len(bases) - 1
	for _, base := range bases[:last] {
		// The Collector's image is named in the compose file, where its tag is checked.
		if base != "${COLLECTOR}" && !fullTag.MatchString(base) {
			report("FROM %s must be a Go image pinned to a full version", base)
		}
	}
	if bases[last] != "scratch" {
		report("the last stage is FROM %s, must be scratch", bases[last])
	}

	build := slices.IndexFunc(all, func(line string) bool { return strings.Contains(line, "go build") })
	for _, want := range []string{"CGO_ENABLED=0", "-trimpath", "--mount=type=cache"} {
		if build < 0 || !strings.Contains(all[build], want) {
			report("go build must be run with %s", want)
		}
	}

	user := argument(final, "USER ")
	if !numeric.MatchString(user) {
		report("USER %q must be numeric and not root", user)
	}
	if project, err := loadProject(fsys); err != nil {
		report("%w", err)
	} else if got := project.Services["storefront"].User; got != user {
		report("USER %q, but %s runs it as %q", user, compose, got)
	}
	if !slices.Contains(final, "COPY --from=build --chown="+user+" /out/data /data") {
		report("/data must be copied with --chown=%s: a new volume gets its owner from there", user)
	}
	if got := argument(final, "ENTRYPOINT "); got != `["/spanflame"]` {
		report(`ENTRYPOINT %s must be ["/spanflame"]: there is no shell`, got)
	}
	if !slices.ContainsFunc(final, func(l string) bool { return strings.HasSuffix(l, " /etc/ssl/certs/ca-certificates.crt") }) {
		report("no CA certificates: TLS connections to servers would fail")
	}
	if !strings.Contains(argument(final, "LABEL "), "org.opencontainers.image.version=") {
		report("no label org.opencontainers.image.version")
	}
	return errs
}

// argument returns the argument of the last instruction of that name, which is the effective one, or "".
func argument(instructions []string, name string) (last string) {
	for _, line := range instructions {
		if args, ok := strings.CutPrefix(line, name); ok {
			last = strings.TrimSpace(args)
		}
	}
	return last
}
