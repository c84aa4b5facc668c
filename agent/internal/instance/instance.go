// Package instance assigns each process of a service an identity that is unique on its host: the host's name for the
// first, with a number appended for further ones. When a process ends, the next one takes over its identity, so that
// restarts create no new series. Packages agent and agent/otelsetup use it.
//
// An identity is a locked file in a directory that the processes share. Its name has the service and the host, so that
// hosts and containers that share a volume have identities of their own, on NFS too. It is not for records: the spool
// has locks of its own.
package instance

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"spanflame/agent/internal/identity"
	"spanflame/agent/internal/owndir"
	"spanflame/internal/record"
)

// folder is where the files are, below the directory.
const folder = "instances"

// maxInstances limits the processes of a service on one host.
const maxInstances = 1024

// Instance is the identity of a running process. Release gives it to other processes.
type Instance struct {
	id   string
	root *os.Root // nil if nothing is locked
	file *os.File
	name string
}

// Shared is logged, with the error of Identify, if other processes may have the same identity.
const Shared = "processes of the service on this host may have the same service.instance.id, and Pyroscope then drops profiles; " +
	"set service.instance.id, or SPANFLAME_SPOOL_DIR or SPANFLAME_DIR to a directory that the service can write to"

// Identify gives the process an identity as service.instance.id among the attributes, unless they have one. The
// directories are those of [Claim]; without any, the process delivers and saves nothing, and has the host's name. The
// instance is nil if there is nothing to release.
func Identify(attributes map[string]string, service string, dirs ...string) (*Instance, error) {
	host, err := os.Hostname()
	if err != nil || attributes[identity.ServiceInstance] != "" {
		return nil, nil
	}
	attributes[identity.ServiceInstance] = host
	if len(dirs) == 0 {
		return nil, nil
	}
	i, err := Claim(service, host, dirs...)
	attributes[identity.ServiceInstance] = i.ID()
	return i, err
}

// Claim returns the first identity that no other process has. It locks it in the first of the directories that can be
// used; those that are empty are left out. If none can be used, the identity is the host's name all the same, and the
// error has the reason why other processes may have it, too.
func Claim(service, host string, dirs ...string) (*Instance, error) {
	err := error(nil)
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		i, claimErr := claim(service, host, dir)
		if claimErr == nil {
			return i, nil
		}
		err = errors.Join(err, claimErr)
	}
	return &Instance{id: host}, cmp.Or(err, errors.New("no directory is named"))
}

func claim(service, host, dir string) (*Instance, error) {
	base, err := owndir.Base(dir)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	root, err := owndir.Make(base, folder)
	if err != nil {
		return nil, err
	}
	for n := 0; n < maxInstances; {
		name := fmt.Sprintf("%s-%d", record.DirName(service+"@"+host), n)
		file, err := owndir.Lock(root, name)
		switch {
		case errors.Is(err, owndir.ErrLocked):
			n++
			continue
		case err != nil:
			root.Close()
			return nil, err
		case !same(root, name, file):
			file.Close() // its owner has just removed it: this is a lock on nothing
			continue
		}
		id := host
		if n > 0 {
			id = fmt.Sprintf("%s-%d", host, n)
		}
		return &Instance{id: id, root: root, file: file, name: name}, nil
	}
	root.Close()
	return nil, fmt.Errorf("%s: all %d identities of %s on %s are in use", dir, maxInstances, service, host)
}

// same reports whether the open file is the one that has the name.
func same(root *os.Root, name string, file *os.File) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := root.Lstat(name)
	return err == nil && os.SameFile(opened, named)
}

// ID returns the identity.
func (i *Instance) ID() string { return i.id }

// Release gives the identity to other processes, and removes the file: hosts that share a volume come and go. A file
// that cannot be removed is used again.
func (i *Instance) Release() {
	if i == nil || i.root == nil {
		return
	}
	_ = i.root.Remove(i.name)
	i.file.Close()
	i.root.Close()
}
