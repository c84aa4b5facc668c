package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// TestComposeCommands parses every command line of docker-compose.yml that runs this program, so that the
// file cannot name a command or a flag that is not there.
func TestComposeCommands(t *testing.T) {
	b, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct {
			Image       string
			Command     []string
			Healthcheck struct{ Test []string }
		}
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	var seen []string
	check := func(service string, args []string) {
		cmd, rest, err := newRootCommand().Find(args)
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil && cmd.Args != nil {
			err = cmd.Args(cmd, cmd.Flags().Args())
		}
		if err != nil || !cmd.Runnable() {
			t.Errorf("%s: spanflame %s: %v", service, strings.Join(args, " "), err)
		}
		seen = append(seen, args[0])
	}
	for name, s := range file.Services {
		if strings.HasPrefix(s.Image, "spanflame:") {
			check(name, s.Command)
		}
		if i := slices.Index(s.Healthcheck.Test, "/spanflame"); i >= 0 {
			check(name, s.Healthcheck.Test[i+1:])
		}
	}
	for _, want := range []string{"workload", "load", "health"} {
		if !slices.Contains(seen, want) {
			t.Errorf("no service runs spanflame %s: found %v", want, seen)
		}
	}
}
