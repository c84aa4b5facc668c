package main

import (
	"strings"
	"testing"
)

func TestSlow(t *testing.T) {
	dir := t.TempDir()
	id := saveTrace(t, dir, true)
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{nil, []string{"1 problem of 1 slow trace; the cause is known of 1", "1. shop, GET /cart: 1 s in all", "main.cart", "slowest trace " + id}},
		{[]string{"--service", "nobody"}, []string{"0 problems of 0 slow traces"}},
		{[]string{"--without", "cart"}, []string{"0 problems of 0 slow traces"}},
		{[]string{"--last", "1h"}, []string{"0 problems of 0 slow traces"}}, // it is older
	} {
		stdout, _, err := execute(t, append([]string{"slow", "--dir", dir}, tt.args...)...)
		if err != nil {
			t.Errorf("%v: %v", tt.args, err)
		}
		for _, want := range tt.want {
			if !strings.Contains(stdout, want) {
				t.Errorf("%v: no %q in\n%s", tt.args, want, stdout)
			}
		}
	}
	for _, args := range [][]string{{"--last", "-1h"}, {"--slow-span", "0"}, {"--dir", dir + "/none"}, {"one"}} {
		if _, _, err := execute(t, append([]string{"slow", "--dir", dir}, args...)...); err == nil || exitCode(err) != codeUse {
			t.Errorf("%v: %v, want exit code 2", args, err)
		}
	}
}
