package agent_test

import (
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unicode/utf8"

	"spanflame/agent"
)

// A record holds only UTF-8: one bad byte in an attribute must not cost every profile.
func TestAttributesAreMadeUTF8(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=%FF")
	labels := map[string]string{"team": "a\xff"}
	c, err := agent.Config{ServiceName: "shop\xff", ProfileLabels: labels, Dir: t.TempDir()}.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{c.ServiceName, c.ResourceAttributes["service.version"], c.ProfileLabels["team"]} {
		if text == "" || !utf8.ValidString(text) {
			t.Errorf("%q is not valid UTF-8", text)
		}
	}
	if labels["team"] != "a\xff" {
		t.Errorf("the caller's map was changed: %q", labels)
	}
}

// A service may change its working directory.
func TestSpoolDirIsMadeAbsolute(t *testing.T) {
	c, err := agent.Config{ServiceName: "shop", PyroscopeAddress: "http://127.0.0.1:1", SpoolDir: "spool", Dir: "off"}.Resolve()
	if err != nil || !filepath.IsAbs(c.SpoolDir) {
		t.Errorf("SpoolDir %q, %v", c.SpoolDir, err)
	}
}

func TestMutexFractionOfTheServiceStays(t *testing.T) {
	defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(-1))
	a, err := agent.Start(t.Context(), agent.Config{ServiceName: "shop", Dir: t.TempDir(), AdminAddress: "off", Window: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	runtime.SetMutexProfileFraction(7)
	if err := a.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := runtime.SetMutexProfileFraction(-1); got != 7 {
		t.Errorf("the fraction is %d after the shutdown, want the 7 that the service set", got)
	}
}
