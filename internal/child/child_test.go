package child

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// roleVariable makes the test binary one of two programs: a parent that starts a child and does nothing more,
// or that child, which says so if it lives for long.
const roleVariable = "CHILD_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "parent":
		beParent()
	case "child":
		time.Sleep(20 * time.Second)
		os.Stdout.WriteString("outlived\n")
	default:
		goleak.VerifyTestMain(m)
	}
}

// beParent starts a child that has the same standard output, says so, and waits to be killed.
func beParent() {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"=child")
	cmd.Stdout = os.Stdout
	if _, err := Start(cmd); err != nil {
		panic(err)
	}
	os.Stdout.WriteString("started\n")
	select {}
}

// script starts a shell script that prints to a log and waits for its line "ready".
func script(t *testing.T, text string) *Process {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if _, err := log.WriteString("of the run before\n"); err != nil {
		t.Fatal(err)
	}
	p, err := StartLogged(exec.Command("sh", "-c", text), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	for {
		lines, err := Tail(log.Name(), p.logStart)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(lines, "ready") {
			return p
		}
		if p.Ended() {
			t.Fatal(p.WithLog(errors.New(p.Status())))
		}
	}
}

const (
	obedient = `trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done`
	deaf     = `trap '' TERM; echo ready; while :; do sleep 0.01; done`
)

func TestStopLetsTheProcessEndInOrder(t *testing.T) {
	p := script(t, obedient)
	if p.Ended() || p.Err() != nil || p.Status() != "" {
		t.Errorf("while it runs: ended %v, error %v, status %q", p.Ended(), p.Err(), p.Status())
	}
	if group, err := syscall.Getpgid(p.PID()); err != nil || group != p.PID() {
		t.Errorf("its process group is %d (%v), want its own, %d", group, err, p.PID())
	}
	for range 2 {
		if err := p.Stop(t.Context()); err != nil {
			t.Errorf("Stop: %v", err)
		}
	}
	<-p.Done()
	if p.Err() == nil || p.Status() != "exit status 3" {
		t.Errorf("it ended with %v, %q, want its own exit status", p.Err(), p.Status())
	}
	cause := errors.New("cause")
	said := p.WithLog(cause)
	if !errors.Is(said, cause) || !strings.Contains(said.Error(), "ready\nbye") || strings.Contains(said.Error(), "the run before") {
		t.Errorf("WithLog: %v, want the cause and the lines of this run alone", said)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("Kill of a process that has ended: %v", err)
	}
}

func TestStopKillsWhatDoesNotEnd(t *testing.T) {
	p := script(t, deaf)
	impatient := errors.New("no patience")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(impatient)
	if err := p.Stop(ctx); !errors.Is(err, impatient) || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Stop: %v, want that it was killed, and why", err)
	}
	if !p.Ended() || p.Status() != "signal: killed" {
		t.Errorf("ended %v, status %q", p.Ended(), p.Status())
	}
}

func TestStopReachesAPausedProcess(t *testing.T) {
	p := script(t, obedient)
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(t.Context()); err != nil || p.Status() != "exit status 3" {
		t.Errorf("Stop: %v, status %q", err, p.Status())
	}
}

func TestStartReportsWhatCannotBeStarted(t *testing.T) {
	if _, err := Start(exec.Command(filepath.Join(t.TempDir(), "nothing"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Start: %v, want that the program does not exist", err)
	}
}

func TestTail(t *testing.T) {
	long := strings.Repeat("some line\n", 1000)
	for name, tt := range map[string]struct {
		text string
		from int64
		want string
	}{
		"empty":           {"", 0, ""},
		"short":           {"one\ntwo\n", 0, "one\ntwo"},
		"from the middle": {"one\ntwo\n", 4, "two"},
		"from its end":    {"one\n", 4, ""},
		"beyond its end":  {"one\n", 40, ""},
		"long":            {long, 0, strings.TrimSuffix(long[:tailLimit/10*10], "\n")},
		"a single line":   {strings.Repeat("x", 2*tailLimit), 0, ""},
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := Tail(path, tt.from); err != nil || got != tt.want {
			t.Errorf("%s: %d bytes (%v), want %d", name, len(got), err, len(tt.want))
		}
	}
	if _, err := Tail(filepath.Join(t.TempDir(), "none"), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}
