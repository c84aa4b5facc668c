package redact

import "testing"

func TestURL(t *testing.T) {
	for address, want := range map[string]string{
		"https://user:hunter2@host:4040/path": "https://host:4040/path",
		"user:hunter2@host:4317":              "host:4317",
		"http://a@b:hunter2@host":             "http://host",
		"http://host:4040":                    "http://host:4040",
		"":                                    "",
		"http://host:4318/v1?token=hunter2":   "http://host:4318/v1?…",
		"http://host/?mail=a@b&token=hunter2": "http://host/?…",
		"http://host/#hunter2":                "http://host/?…",
		"http://user:hu?nter2@host/v1":        "http://host/v1",
		"host:4318/v1?token=hunter2":          "host:4318/v1?…",
		"://host?token=hunter2":               "://host?…",
	} {
		if got := URL(address); got != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
}

func TestArgument(t *testing.T) {
	for argument, want := range map[string]string{"a@b/c?d#e": "a@b/c?d#e", "http://any:hunter2@host/": "http://host/"} {
		if got := Argument(argument); got != want {
			t.Errorf("%s: %q, want %q", argument, got, want)
		}
	}
}
