package child

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"testing"
)

// A child holds the write end of its parent's output, which ends when neither runs any more.
func TestChildDiesWithItsParent(t *testing.T) {
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), roleVariable+"=parent")
	parent.Stderr = os.Stderr
	r, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	output := bufio.NewReader(r)
	if line, err := output.ReadString('\n'); err != nil || line != "started\n" {
		t.Fatalf("the parent says %q, %v", line, err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(output); err != nil || len(said) > 0 {
		t.Errorf("the child says %q after its parent was killed (%v)", said, err)
	}
	_ = parent.Wait() // killed, as expected
}
