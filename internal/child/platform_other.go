//go:build unix && !linux

package child

import "syscall"

// attributes puts a child into its own process group, so that Ctrl-C in a terminal reaches only this
// process, which then ends its children in order. Only Linux can also tie a child's life to its parent's:
// elsewhere a child outlives a parent that is killed outright.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// awaitStopped does not wait: only Linux lets a parent ask without taking the answer from Wait.
func awaitStopped(int) error { return nil }
