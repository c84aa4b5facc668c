//go:build unix && !linux

package child

import "syscall"

// attributes puts a child into its own process group, so that Ctrl-C in a terminal reaches only this process, which
// then ends its children. Only Linux can also kill a child when its parent dies: elsewhere a child outlives a
// killed parent.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// awaitStopped does not wait: only on Linux can a parent check without taking the status from Wait.
func awaitStopped(int) error { return nil }
