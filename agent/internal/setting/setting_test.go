package setting

import (
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

type config struct {
	Name   string
	Token  string
	Window time.Duration
	Labels map[string]string
	Extra  map[string]string
	Nested struct{ Count int }
}

var table = Table{
	Of[string]{Field: "Name", Variable: "SETTING_NAME", Parse: Text, Default: "a name"},
	Of[string]{Field: "Token", Variable: "SETTING_TOKEN", Parse: Text, Secret: true, File: true, Valid: func(s string) bool { return s != "wrong" },
		Show: func(string) string { return "hidden" }, Allowed: "another token"},
	Of[time.Duration]{Field: "Window", Variable: "SETTING_WINDOW", Parse: Duration, Default: time.Minute},
	Of[map[string]string]{Field: "Labels", Variable: "SETTING_LABELS", Parse: Pairs},
	Of[map[string]string]{Field: "Extra", Variable: "SETTING_EXTRA", Parse: Attributes, Union: true},
	Of[int]{Field: "Nested.Count", Variable: "SETTING_COUNT", Parse: Whole, Valid: func(n int) bool { return n < 10 }, Allowed: "at most 9"},
}

func TestReadMergeAndDefaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(" a token \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SETTING_NAME", "  ") // counts as not set
	t.Setenv("SETTING_TOKEN_FILE", file)
	t.Setenv("SETTING_LABELS", "a=1, b=2,")
	t.Setenv("SETTING_EXTRA", "a=1,b=x%3Dy")
	t.Setenv("SETTING_COUNT", "7")
	var env config
	if errs := table.Read(&env); errs != nil {
		t.Fatal(errs)
	}
	mine := map[string]string{"a": "mine"}
	c := config{Labels: mine, Extra: mine}
	table.Merge(&c, &env)
	table.SetDefaults(&c)
	if c.Name != "a name" || c.Token != " a token " || c.Window != time.Minute || c.Nested.Count != 7 {
		t.Errorf("got %+v", c)
	}
	if want := map[string]string{"a": "mine"}; !maps.Equal(c.Labels, want) {
		t.Errorf("labels %v, want the caller's: %v", c.Labels, want)
	}
	if want := map[string]string{"a": "mine", "b": "x=y"}; !maps.Equal(c.Extra, want) {
		t.Errorf("extra %v, want the union: %v", c.Extra, want)
	}
	c.Labels["a"], c.Extra["a"] = "changed", "changed"
	if mine["a"] != "mine" {
		t.Error("the configuration shares a map with its caller")
	}
}

func TestErrors(t *testing.T) {
	t.Setenv("SETTING_WINDOW", "-1s")
	t.Setenv("SETTING_COUNT", "99999999999999999999")
	var c config
	errs := table.Read(&c)
	if len(errs) != 2 || !strings.Contains(errs[0].Error(), `SETTING_WINDOW="-1s": want a duration`) ||
		!strings.Contains(errs[1].Error(), `SETTING_COUNT="99999999999999999999": want a whole number`) {
		t.Errorf("errors %v", errs)
	}
	c.Token, c.Nested.Count = "wrong", 10
	errs = table.Check(&c)
	if len(errs) != 2 || errs[0].Error() != `Token (SETTING_TOKEN) "hidden": want another token` ||
		errs[1].Error() != `Nested.Count (SETTING_COUNT) "10": want at most 9` {
		t.Errorf("errors %v", errs)
	}
}

func TestUnits(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "1048576": 1 << 20, "64MiB": 64 << 20, "1 GiB": 1 << 30, "1Gi": 1 << 30, "2tib": 2 << 40, "3KB": 3000, "3k": 3000,
		"5M": 5e6, "7B": 7, "9223372036854775807": math.MaxInt64, "8388607TiB": 8388607 << 40,
		"": 0, "0": 0, "-1": 0, "1.5GiB": 0, "GiB": 0, "1 GiB2": 0, "1iB": 0, "1i": 0, "1BB": 0, "1PiB": 0, "1km": 0, "1 k b": 0, "1 B": 1,
		"8388608TiB": 0, "9223372036854775808": 0, "1e3": 0, "0x10": 0,
	} {
		if got, err := Bytes[int64](text); got != want || (err == nil) != (want > 0) {
			t.Errorf("Bytes(%q): %d, %v, want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]float64{
		"0.01": 0.01, "1": 1, "1%": 0.01, "100 %": 1, "0.5%": 0.005,
		"": 0, "%": 0, "0%": 0, "101%": 0, "2": 0, "-1%": 0, "NaN": 0, "NaN%": 0, "1%%": 0,
	} {
		if got, err := Share(text); got != want || (err == nil) != (want > 0) {
			t.Errorf("Share(%q): %v, %v, want %v", text, got, err, want)
		}
	}
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"7d": 7 * day, "1h30m": 90 * time.Minute, "65535d": 65535 * day,
		"": 0, "7": 0, "d": 0, "0d": 0, "-1d": 0, "1.5d": 0, "65536d": 0, "1d12h": 0, "0s": 0,
	} {
		if got, err := Duration(text); got != want || (err == nil) != (want > 0) {
			t.Errorf("Duration(%q): %v, %v, want %v", text, got, err, want)
		}
	}
}

// TestValues: a person sees every variable, and no secret.
func TestValues(t *testing.T) {
	c := config{Name: "shop", Token: "s3cret", Labels: map[string]string{"a": "1"}}
	want := [][2]string{
		{"SETTING_NAME", "shop"}, {"SETTING_TOKEN", secret}, {"SETTING_WINDOW", ""}, {"SETTING_LABELS", "map[a:1]"}, {"SETTING_EXTRA", ""}, {"SETTING_COUNT", ""},
	}
	if got := table.Values(&c); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	shown := Table{Of[string]{Field: "Name", Variable: "SETTING_NAME", Show: func(string) string { return "without the password" }}}
	if got := shown.Values(&c); got[0][1] != "without the password" {
		t.Errorf("got %v", got)
	}
}
