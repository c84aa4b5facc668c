// Command server is the entry point of the images that replace Pyroscope's and Tempo's in the test of
// docker-compose.yml, and wget in the one that replaces Jaeger's. It accepts the arguments that the compose file gives to the real servers, starts the release
// that can be built, and answers the health checks. /overlay.yaml contains the settings whose names differ in that
// release. It is for that test only.
package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"spanflame/stack/servers"
)

// Paths in the image. Only /tmp, which is in memory, can be written.
const (
	program = "/server"
	overlay = "/overlay.yaml"
	merged  = "/tmp/config.yaml"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

// run checks the health of the server that an argument names, or replaces itself by the server.
func run(args []string) error {
	if filepath.Base(os.Args[0]) == "wget" {
		return check(args[len(args)-1])
	}
	command := []string{program}
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		switch strings.TrimLeft(name, "-") {
		case "health.url", "url":
			return check(strings.TrimSuffix(value, "/ready") + "/ready")
		case "config.file":
			if err := merge(value); err != nil {
				return err
			}
			arg = "-config.file=" + merged
		}
		command = append(command, arg)
	}
	return syscall.Exec(program, command, os.Environ())
}

// check checks whether the server is ready.
func check(url string) error {
	client := &http.Client{Timeout: 4 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	resp.Body.Close() // Only the status counts.
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

// merge writes the configuration for the server.
func merge(file string) error {
	base, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	patch, err := os.ReadFile(overlay)
	if err != nil {
		return err
	}
	config, err := servers.MergeYAML(base, patch)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(merged, config, 0o644)
}
