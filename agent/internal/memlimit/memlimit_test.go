package memlimit

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

// tree writes files below a directory of its own.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCgroups(t *testing.T) {
	for _, test := range []struct {
		name        string
		files       map[string]string
		used, limit uint64
		killed      uint64
	}{
		{name: "version 2, own group", files: map[string]string{
			"self": "0::/pod/one\n", "pod/one/memory.max": "1000\n", "pod/one/memory.current": "900\n", "pod/one/memory.stat": "anon 1\ninactive_file 100\n",
			"pod/one/memory.events": "oom 3\noom_kill 2\noom_group_kill 7\n",
		}, used: 800, limit: 1000, killed: 2},
		{name: "version 2, the nearest limit is the parent's", files: map[string]string{
			"self": "0::/pod/one\n", "pod/one/memory.max": "max\n", "pod/one/memory.current": "10\n", "pod/memory.max": "1000\n", "pod/memory.current": "990\n",
		}, used: 990, limit: 1000},
		{name: "version 2, in a container with the host's path", files: map[string]string{
			"self": "0::/../../kubepods/x\n", "memory.max": "500\n", "memory.current": "400\n",
		}, used: 400, limit: 500},
		{name: "version 1", files: map[string]string{
			"self": "5:cpu,memory:/a\n0::/\n", "memory/a/memory.limit_in_bytes": "2000\n", "memory/a/memory.usage_in_bytes": "1500\n",
			"memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n", "memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
			"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "1\n",
		}, used: 1000, limit: 2000, killed: 4},
		{name: "far from the limit the cache is not looked at", files: map[string]string{
			"self": "0::/\n", "memory.max": "1000\n", "memory.current": "400\n", "memory.stat": "inactive_file 399\n",
		}, used: 400, limit: 1000},
		{name: "files that are no numbers", files: map[string]string{"self": "0::/\nx\n1:\n", "memory.max": "x\n", "memory.current": "\n"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := tree(t, test.files)
			m := newMeter(dir, filepath.Join(dir, "self"))
			used, limit := m.Read()
			if limit != test.limit || limit > 0 && used != test.used || m.Killed() != test.killed {
				t.Errorf("%d of %d, %d killed: want %d of %d, %d", used, limit, m.Killed(), test.used, test.limit, test.killed)
			}
		})
	}
}

// TestGOMEMLIMIT: without a cgroup, or with one whose limit is further away, it is the limit.
func TestGOMEMLIMIT(t *testing.T) {
	before := debug.SetMemoryLimit(1 << 30)
	defer debug.SetMemoryLimit(before)
	dir := tree(t, map[string]string{"self": "0::/\n", "memory.max": "1000000000000\n", "memory.current": "1000\n"})
	for _, self := range []string{"self", "none"} {
		if used, limit := newMeter(dir, filepath.Join(dir, self)).Read(); limit != 1<<30 || used == 0 || used > 1<<30 {
			t.Errorf("%d of %d", used, limit)
		}
	}
}
