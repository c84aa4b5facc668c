package spool

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"spanflame/internal/record"
)

// crashDir names the spool's directory to a copy of this test binary that is to be killed.
const crashDir = "SPOOL_CRASH_DIR"

// crashChild writes and reads as fast as it can, and says what it has done once it is done.
func crashChild(dir string) {
	s, err := Open(Options{Service: "shop", Dir: dir})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	base := int(time.Now().UnixMilli()) * 1000
	turn := make(chan bool, 1)
	go func() {
		for i := 0; ; i++ {
			s.Put(numbered(base + i))
			fmt.Println("put", base+i)
			if i%2 == 0 { // half of what is written is read
				turn <- true
			}
		}
	}()
	for range turn {
		it, err := s.Next(context.Background())
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		n := it.Record.Labels["n"]
		fmt.Println("delivering", n)
		s.Done(it)
		fmt.Println("delivered", n)
	}
}

// TestKilledAtAnyMoment kills a writing and reading process again and again. What was put and not delivered
// is there exactly once; what was delivered is gone.
func TestKilledAtAnyMoment(t *testing.T) {
	dir := t.TempDir()
	put, delivering, delivered := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		stopAt := 20 + rand.IntN(100) // lines, not time: the machine may be slow
		sc := bufio.NewScanner(out)
		for lines := 0; sc.Scan(); lines++ {
			what, n, _ := strings.Cut(sc.Text(), " ")
			switch what {
			case "put":
				put[n] = true
			case "delivering":
				delivering[n] = true
			case "delivered":
				delivered[n] = true
			default:
				t.Fatal(sc.Text())
			}
			if lines == stopAt {
				must(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait() // killed
	}
	s := open(t, Options{Dir: dir})
	found := map[string]int{}
	for s.Stats().Items > 0 {
		it := next(t, s)
		found[it.Record.Labels["n"]]++
		s.Done(it)
	}
	for n := range put {
		switch {
		case delivered[n] && found[n] != 0:
			t.Errorf("%s was delivered and is there again", n)
		case !delivering[n] && found[n] != 1:
			t.Errorf("%s is there %d times", n, found[n])
		}
	}
	for n, times := range found {
		if times > 1 {
			t.Errorf("%s is there %d times", n, times)
		}
	}
	if st := s.Stats(); st.Sum(SetAside).Items > 0 {
		t.Errorf("a crash left damage: %+v", st)
	}
	if len(put) == 0 || len(delivered) == 0 || len(found) == 0 {
		t.Errorf("put %d, delivered %d, found %d", len(put), len(delivered), len(found))
	}
	t.Logf("put %d, delivered %d, found %d", len(put), len(delivered), len(found))
	balance(t, s)
}

// numbered is a record of now with the number as its label.
func numbered(n int) record.Record {
	r := rec(0)
	r.Start = time.Now()
	r.End = r.Start
	r.Labels["n"] = fmt.Sprint(n)
	return r
}
