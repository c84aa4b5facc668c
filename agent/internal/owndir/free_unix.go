//go:build darwin || freebsd || linux

package owndir

import (
	"os"
	"syscall"
)

// Free returns how many bytes a user without privileges can still write to the file system of the directory. It returns
// false if the system does not tell.
func Free(root *os.Root) (int64, bool) {
	d, err := root.Open(".")
	if err != nil {
		return 0, false
	}
	defer d.Close()
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(d.Fd()), &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true
}
