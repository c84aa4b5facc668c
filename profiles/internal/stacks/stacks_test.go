package stacks_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/pprof/profile"

	"spanflame/profiles/internal/stacks"
)

func TestIdentity(t *testing.T) {
	for name, want := range map[string]string{
		"main.f":                       "main.f",
		"main.f[...]":                  "main.f[...]",
		"main.f[go.shape.int]":         "main.f[...]",
		"main.f[go.shape.[]int].func1": "main.f[...].func1",
		"a.(*T[go.shape.struct { X map[string]int }]).M[go.shape.string]": "a.(*T[...]).M[...]",
		"main.f[go.shape.int":               "main.f[...]",
		"std::vector<int>::operator[]":      "std::vector<int>::operator[]",
		"main.f[int]":                       "main.f[int]",
		"":                                  "",
		"[waiting: mutex]":                  "[waiting: mutex]",
		"java.lang.Thread.run(Thread.java)": "java.lang.Thread.run(Thread.java)",
	} {
		if got := stacks.Identity(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add("a.(*T[go.shape.[]int]).M[go.shape.string]")
	f.Fuzz(func(t *testing.T, name string) {
		once := stacks.Identity(name)
		if again := stacks.Identity(once); again != once || strings.Contains(once, "[go.shape.") {
			t.Fatalf("%q becomes %q and then %q", name, once, again)
		}
	})
}

func TestStacks(t *testing.T) {
	line := func(name, system string) profile.Line {
		return profile.Line{Function: &profile.Function{Name: name, SystemName: system}}
	}
	outer := &profile.Location{Line: []profile.Line{line("inlined", ""), line("", "main")}}
	inner := &profile.Location{Line: []profile.Line{{}}, Address: 0x1234,
		Mapping: &profile.Mapping{Start: 0x1000, Offset: 0x10, File: "/usr/lib/libx.so"}}
	unknown := &profile.Location{Address: 0xff}
	table := stacks.NewTable()
	read := func(locations ...*profile.Location) []int32 {
		return append([]int32(nil), table.NewReader().Nodes(&profile.Sample{Location: locations})...)
	}
	first := read(inner, outer)
	if got := fmt.Sprint(table.Path(first[len(first)-1])); got != "[main inlined libx.so+0x244]" {
		t.Errorf("stack %v", got)
	}
	if again := read(inner, outer); fmt.Sprint(again) != fmt.Sprint(first) {
		t.Errorf("the same stack is %v and then %v", first, again)
	}
	if other := read(unknown, outer); other[1] != first[1] || other[2] == first[2] || table.Path(other[2])[2] != "0xff" {
		t.Errorf("stacks with the same beginning are %v and %v: %v", first, other, table.Path(other[2]))
	}
	if !table.Has("inlined") || table.Has("outlined") || len(read()) != 0 {
		t.Error("the table does not know its functions")
	}
}

func TestPrintable(t *testing.T) {
	if got := stacks.Printable("a\x1b[31m\nü b"); got != "a\uFFFD[31m\uFFFDü b" {
		t.Errorf("%q", got)
	}
}
