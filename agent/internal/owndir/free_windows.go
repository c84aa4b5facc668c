package owndir

import (
	"os"

	"golang.org/x/sys/windows"
)

// Free returns how many bytes the user can still write to the volume of the directory. It returns false if the system
// does not tell.
func Free(root *os.Root) (int64, bool) {
	path, err := windows.UTF16PtrFromString(root.Name())
	if err != nil {
		return 0, false
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(path, &free, nil, nil); err != nil {
		return 0, false
	}
	return int64(min(free, 1<<62)), true
}
