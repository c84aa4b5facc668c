package instance

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// claimIn names the directory to a copy of this test binary that claims an identity and waits to be killed.
const claimIn = "INSTANCE_CLAIM_IN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(claimIn); dir != "" {
		i, err := Claim("shop", "host", dir)
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(i.ID())
		_, _ = os.Stdin.Read(make([]byte, 1))
		return
	}
	os.Exit(m.Run())
}

func claimed(t *testing.T, service, host string, dirs ...string) *Instance {
	t.Helper()
	i, err := Claim(service, host, dirs...)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestEachProcessHasAnIdentityOfItsOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	var all []*Instance
	for _, want := range []string{"host", "host-1", "host-2"} {
		i := claimed(t, "shop", "host", dir)
		if i.ID() != want {
			t.Errorf("identity %q, want %q", i.ID(), want)
		}
		all = append(all, i)
	}
	for _, other := range []*Instance{claimed(t, "other", "host", dir), claimed(t, "shop", "host", t.TempDir())} {
		if other.ID() != "host" {
			t.Errorf("identity %q of another service or directory, want %q", other.ID(), "host")
		}
		all = append(all, other)
	}
	if i := claimed(t, "shop", "pod-b", dir); i.ID() != "pod-b" {
		t.Errorf("identity %q on another host, want %q", i.ID(), "pod-b")
	} else {
		all = append(all, i)
	}
	all[1].Release()
	if all[1] = claimed(t, "shop", "host", dir); all[1].ID() != "host-1" {
		t.Errorf("identity %q after a restart, want %q", all[1].ID(), "host-1")
	}
	for _, i := range all {
		i.Release()
	}
	if left, err := os.ReadDir(filepath.Join(dir, folder)); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestADirectoryThatCannotBeUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	i := claimed(t, "shop", "host", file, "", t.TempDir())
	if i.ID() != "host" || i.file == nil {
		t.Errorf("%+v, want an identity in the directory that can be used", i)
	}
	i.Release()
	i, err := Claim("shop", "host", file)
	if err == nil || !strings.Contains(err.Error(), file) || i.ID() != "host" {
		t.Errorf("%+v, %v: want the host's name, and why other processes may have it", i, err)
	}
	i.Release()
	if _, err := Claim("shop", "host"); err == nil {
		t.Error("no error without a directory")
	}
}

// TestAKilledProcessGivesItsIdentityToTheNext kills processes at random, and starts others.
func TestAKilledProcessGivesItsIdentityToTheNext(t *testing.T) {
	dir := t.TempDir()
	type process struct {
		*exec.Cmd
		id string
	}
	start := func() process {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), claimIn+"="+dir)
		if _, err := cmd.StdinPipe(); err != nil { // which it waits for
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		id, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return process{cmd, strings.TrimSpace(id)}
	}
	stop := func(p process) {
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = p.Wait() // killed
	}
	var all []process
	defer func() {
		for _, p := range all {
			stop(p)
		}
	}()
	for range 8 {
		all = append(all, start())
	}
	for i := range 12 {
		at := i * 5 % len(all)
		stop(all[at])
		all[at] = start()
		var ids []string
		for _, p := range all {
			ids = append(ids, p.id)
		}
		slices.Sort(ids)
		if want := "host host-1 host-2 host-3 host-4 host-5 host-6 host-7"; strings.Join(ids, " ") != want {
			t.Fatalf("identities %q, want %q", ids, want)
		}
	}
}

func TestIdentify(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	first, err := Claim("svc", host, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Release()
	for name, tt := range map[string]struct {
		attributes map[string]string
		dirs       []string
		want       string
		fails      bool
	}{
		"a second process":       {map[string]string{}, []string{dir}, host + "-1", false},
		"one with a name":        {map[string]string{"service.instance.id": "a"}, []string{dir}, "a", false},
		"one that keeps nothing": {map[string]string{}, nil, host, false},
		"one with no directory":  {map[string]string{}, []string{""}, host, true},
	} {
		i, err := Identify(tt.attributes, "svc", tt.dirs...)
		if got := tt.attributes["service.instance.id"]; got != tt.want || (err != nil) != tt.fails {
			t.Errorf("%s is %q, %v: want %q, an error: %v", name, got, err, tt.want, tt.fails)
		}
		i.Release()
	}
}
