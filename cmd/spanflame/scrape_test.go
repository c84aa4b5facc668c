package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestScrapeRefusesEmptySecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"--token-file", "--password-file"} {
		cmd := newScrapeCommand()
		cmd.SetArgs([]string{"http://localhost:1", flag, file})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "is empty") {
			t.Errorf("%s: %v", flag, err)
		}
	}
	cmd := newScrapeCommand()
	cmd.SetArgs([]string{"http://localhost:1", "--timeout", "-1s"})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "timeout -1s") {
		t.Error(err)
	}
}
