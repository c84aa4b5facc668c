//go:build long

package examples

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTheJobOfThePage runs every script of the job as a runner of GitHub does, in a clone of this module: once as
// the change is, in little time, and once with a mistake in it, for as long as the page says.
func TestTheJobOfThePage(t *testing.T) { // not parallel: a gate needs a quiet machine
	j := readJob(t)
	clone, base := cloneModule(t)
	built := false
	for _, tt := range []struct {
		name  string
		env   []string // that is not the page's
		code  int
		says  string // on standard error
		table string // in the summary
	}{
		{"no fault", []string{"TURNS=3", "LENGTH=6s", "WINDOW=1s"}, 0, "", " windows before, "},
		{"a fault in the change", []string{"FAULTS_AFTER=slow-pricing"}, 1, "gate failed: cpu:+10%@p<0.01: total changed by +", "workload.compileTariff"},
	} {
		summary := filepath.Join(t.TempDir(), "summary.md")
		env := append(os.Environ(), "GITHUB_STEP_SUMMARY="+summary)
		for name, value := range j.Env {
			env = append(env, name+"="+value)
		}
		env = append(env, "STOREFRONT="+freeAddress(t), "INVENTORY="+freeAddress(t))
		env = append(env, tt.env...)
		for _, dir := range []string{"before", "after"} {
			if err := os.RemoveAll(filepath.Join(clone, dir)); err != nil {
				t.Fatal(err)
			}
		}
		for _, step := range j.Steps {
			if step.Run == "" || step.Name == "Build" && built {
				continue
			}
			begun := time.Now()
			code, output := runStep(t, clone, expand(t, step.Run, base), env)
			t.Logf("%s: %s took %v", tt.name, step.Name, time.Since(begun).Round(time.Second))
			built = true
			wantCode, wantSays := 0, ""
			if step.Name == "Compare" {
				wantCode, wantSays = tt.code, tt.says
			}
			if code == 2 && wantCode == 0 && strings.Contains(output, "the smallest change that these windows can show is") {
				t.Logf("the machine is too noisy for so little time:\n%s", output)
				continue
			}
			if code != wantCode || !strings.Contains(output, wantSays) {
				table, _ := os.ReadFile(summary) // as far as there is one
				t.Fatalf("%s: the step %s ends with %d, want %d and %q:\n%s\n%s", tt.name, step.Name, code, wantCode, wantSays, output, table)
			}
		}
		if table, err := os.ReadFile(summary); err != nil || !bytes.Contains(table, []byte(tt.table)) {
			t.Errorf("%s: the summary is without %q: %v\n%s", tt.name, tt.table, err, table)
		}
	}
}

// expression is one of GitHub Actions.
var expression = regexp.MustCompile(`\$\{\{ *([a-z_.]+) *\}\}`)

// expand puts values into a script in place of expressions, as the runner does before it runs it.
func expand(t *testing.T, script, base string) string {
	t.Helper()
	return expression.ReplaceAllStringFunc(script, func(e string) string {
		if name := expression.FindStringSubmatch(e)[1]; name != "github.event.pull_request.base.sha" {
			t.Fatalf("the job uses the expression %s, whose value is not known here", name)
		}
		return base
	})
}

// runStep runs a script as a runner does where no shell is named, and returns its exit code and what it wrote. What
// the script leaves running is ended.
func runStep(t *testing.T, dir, script string, env []string) (code int, output string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "step.sh")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-e", file)
	cmd.Dir, cmd.Env = dir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	b, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatalf("%v\n%s", err, b)
	}
	return cmd.ProcessState.ExitCode(), string(b)
}

// cloneModule makes a repository of this module's files as they are now, and returns its directory and its commit.
func cloneModule(t *testing.T) (dir, commit string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "head") // the job's other directory is its sibling
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_SYSTEM="+os.DevNull,
			"GIT_AUTHOR_NAME=test", "GIT_AUTHOR_EMAIL=test@example.com", "GIT_COMMITTER_NAME=test", "GIT_COMMITTER_EMAIL=test@example.com")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", dir)
	git("--git-dir="+filepath.Join(dir, ".git"), "--work-tree=..", "add", "-A") // what .gitignore names stays behind
	git("-C", dir, "commit", "-q", "-m", "as it is")
	git("-C", dir, "reset", "-q", "--hard")
	return dir, git("-C", dir, "rev-parse", "HEAD")
}
