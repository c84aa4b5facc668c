// Package examples holds recorded profiles of the workload, a page that leads through them (README.md), and the test that
// runs every command of that page and of docs/ci.md. It has no code of its own.
package examples

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"spanflame/profiles"
	"spanflame/workload/processes"
)

var update = flag.Bool("update", false, "write into README.md what its commands print")

// program is the directory of the spanflame program.
var program string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "spanflame-examples-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := processes.Build(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	program = dir
	return m.Run()
}

// script is a shell script as its reader runs it, with spanflame on the path and times in UTC.
func script(ctx context.Context, text string, env ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "bash", "-e", "-c", text)
	cmd.Env = append(os.Environ(), append(env, "PATH="+program+":"+os.Getenv("PATH"), "TZ=UTC", "GOMEMLIMIT=")...)
	return cmd
}

// claims are patterns for what the page says in words about the output of its commands, by a part of the command that no
// other command has. Recording the profiles again must not make the words untrue.
var claims = map[string][]string{
	"-cum -show=workload slow-pricing/before": {row("[89]", "priceBasket"), row("[345]", "compileTariff"), row("[345]", "bestOffer")},
	"-focus=compileTariff":                    {`regexp\.[cC]ompile`},
	"-lines":                                  {`(?m) [345]\d\.\d+%  spanflame/workload\.\(\*Service\)\.handlingFee spanflame/workload/checkout\.go:\d+`},
	"-tagfocus=":                              {`tagfocus=span_id=[0-9a-f]{16}`, `workload\.priceBasket`},
	"-tags ":                                  {`span_id: Total`, `: [0-9a-f]{16}`},
	"-show=workload -diff_base":               {`(?m) -\d\S*s +\d\S*%  spanflame/workload\.compileTariff`},
	"grep -e '  function'":                    {`(?m)^  total .* -[3-7]\d\.\d % \[-\S+ %, -\S+ %\] +<?0\.00\d$`, `workload\.compileTariff .* gone `},
	"slow-pricing/before --top 1 --fail-on":   {`gate failed: cpu:\+10%@p<0\.01: total changed by \+`, `exit code 1\n`},
	"--format html":                           {`^$`},
	`-show=workload -unit=s "${TMPDIR:-/tmp}/diff.pb.gz"`: {`(?m) -\d\S*s +\d\S*%  spanflame/workload\.compileTariff`},
	"before/mutex-":                     {row("(9|100)", `settleHoldingTill`)},
	"before/block-":                     {row("(9|100)", `settleHoldingTill`), `sync\.\(\*Mutex\)\.Lock`},
	"-comments":                         {`POST /api/checkout: \d+ ms \([5-9]\d %\) waiting for a mutex in workload\.\(\*Service\)\.settleHoldingTill`},
	"-unit=ms lock-convoy/before/wall-": {`[5-9]\d\.\d+%  \[waiting: mutex\]`},
	"--type wall":                       {`(?m)^wall, per span: `, `(?m)^  \[waiting: mutex\] .* 0 ns `},
	"-sample_index=inuse_space leak/":   {row(`\d`, `\(\*leak\)\.grow`)},
	"-diff_base=leak/":                  {`(?m)^ +\d\S*MB .*workload\.\(\*leak\)\.grow$`},
	"spanflame leaks": {
		`1\. spanflame/workload\.\(\*leak\)\.grow: memory, (4|5)\d(\.\d)? MiB/min`,
		`limit of 512 MiB is reached by`, `exit code 1\n`,
	},
}

// row is a pattern for a row of go tool pprof's table: a function of the shop with a percentage that begins so.
func row(percent, function string) string {
	return `(?m)\s` + percent + `\S*%  spanflame/workload\.\S*` + function
}

// consoles are the blocks of the page that show a command and what it prints.
var consoles = regexp.MustCompile("(?s)```console\n\\$ (.*?)\n(.*?)```\n")

// shells are the blocks that show a command alone.
var shells = regexp.MustCompile("(?s)```sh\n(.*?)\n```")

func TestThePageIsTrue(t *testing.T) {
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		page = updateSpan(t, page)
	}
	claimed, temp := map[string]bool{}, t.TempDir()
	page = consoles.ReplaceAllFunc(page, func(block []byte) []byte {
		match := consoles.FindSubmatch(block)
		command, shown := string(match[1]), string(match[2])
		cmd := script(t.Context(), command, "TMPDIR="+temp)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("$ %s\n%v\n%s", command, err, stderr.String())
			return block
		}
		printed := trimLines(string(out))
		if printed != shown && !*update {
			t.Errorf("$ %s\nprints\n%s\nand the page shows\n%s\nupdate it with: go test ./examples -update", command, printed, shown)
		}
		found := false
		for part, patterns := range claims {
			if !strings.Contains(command, part) {
				continue
			}
			found, claimed[part] = true, true
			for _, p := range patterns {
				if !regexp.MustCompile(p).MatchString(printed) {
					t.Errorf("$ %s\nprints\n%s\nwithout %s, which the page says", command, printed, p)
				}
			}
		}
		if !found {
			t.Errorf("$ %s\nno claim of this test is about it", command)
		}
		return fmt.Appendf(nil, "```console\n$ %s\n%s```\n", command, printed)
	})
	for part := range claims {
		if !claimed[part] {
			t.Errorf("no command of the page has %q", part)
		}
	}
	if *update && !t.Failed() {
		if err := os.WriteFile("README.md", page, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// trimLines takes the blanks off the ends of lines, which tables have and pages should not.
func trimLines(s string) string {
	return regexp.MustCompile(`(?m)[ \t]+$`).ReplaceAllString(s, "")
}

var spanID = regexp.MustCompile(`\b[0-9a-f]{16}\b`)

// updateSpan puts the span that RECORDED.txt names into the page's command, whose output follows from it.
func updateSpan(t *testing.T, page []byte) []byte {
	t.Helper()
	b, err := os.ReadFile("RECORDED.txt")
	if err != nil {
		t.Fatal(err)
	}
	span := spanID.Find(b)
	if span == nil {
		t.Fatal("RECORDED.txt names no span")
	}
	return spanID.ReplaceAll(page, span)
}

func TestRecordedIsWhatIsThere(t *testing.T) {
	b, err := os.ReadFile("RECORDED.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"slow-pricing/before", "slow-pricing/after", "lock-convoy/before", "lock-convoy/after", "leak"} {
		if !strings.Contains(string(b), dir) {
			t.Errorf("RECORDED.txt does not tell how %s was recorded", dir)
		}
		entries, damaged, err := profiles.Find(t.Context(), profiles.Query{Service: "storefront"}, dir)
		if err != nil || len(damaged) > 0 || len(entries) < 8 {
			t.Errorf("%s: %d profiles of the storefront, %v damaged, %v", dir, len(entries), damaged, err)
		}
	}
}

// The page's web server shows the flame graph of what the page says.
func TestThePageServesAFlameGraph(t *testing.T) {
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := shells.FindAllSubmatch(page, -1)
	if len(blocks) != 1 {
		t.Fatalf("the page has %d commands without output, want the web server alone", len(blocks))
	}
	address := freeAddress(t)
	const shown = "-http=127.0.0.1:8090"
	command := string(blocks[0][1])
	if !strings.Contains(command, shown) {
		t.Fatalf("$ %s\nis not the web server", command)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := script(ctx, "exec "+strings.Replace(command, shown, "-no_browser -http="+address, 1))
	// go tool starts the program: both end with the group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
	})
	html := get(t, "http://"+address+"/ui/flamegraph")
	for _, function := range []string{"priceBasket", "compileTariff", "bestOffer"} {
		if !strings.Contains(html, "spanflame/workload."+function) {
			t.Errorf("the flame graph has no %s", function)
		}
	}
}

// get reads a page once its server listens.
func get(t *testing.T, url string) string {
	t.Helper()
	client, begun := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, time.Now()
	for {
		resp, err := client.Get(url)
		if errors.Is(err, syscall.ECONNREFUSED) {
			if time.Since(begun) > time.Minute {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}
