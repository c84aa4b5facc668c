package source

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"spanflame/internal/incidentfile"
)

// maxBundles limits the incident bundles that are listed, of each service.
const maxBundles = 100

// Bundles has incident bundles. [Directory] is one.
type Bundles interface {
	// Bundles returns them, the latest first.
	Bundles(ctx context.Context) ([]Bundle, error)
	// Bundle opens one by the name of its folder and its ID. The error wraps fs.ErrNotExist if it is not there.
	Bundle(folder, id string) (*OpenBundle, error)
}

// Bundle is an incident bundle, by its name alone.
type Bundle struct {
	Folder string // of its service
	ID     incidentfile.ID
}

// OpenBundle is one that is open, and must be closed.
type OpenBundle struct {
	*zip.Reader
	io.Closer
	Path string
}

var _ Bundles = (*Directory)(nil)

// Bundles implements [Bundles].
func (d *Directory) Bundles(ctx context.Context) ([]Bundle, error) {
	folders, err := d.entries(incidentfile.Dir)
	if err != nil {
		return nil, err
	}
	var all []Bundle
	for _, folder := range folders {
		if !folder.IsDir() {
			continue
		}
		files, err := d.entries(path.Join(incidentfile.Dir, folder.Name()))
		if err != nil {
			return nil, err
		}
		listed := 0
		for _, f := range slices.Backward(files) {
			id, err := incidentfile.ParseFile(f.Name())
			if err != nil || !f.Type().IsRegular() {
				continue
			}
			if listed++; listed > maxBundles || ctx.Err() != nil {
				break
			}
			all = append(all, Bundle{folder.Name(), id})
		}
	}
	slices.SortStableFunc(all, func(a, b Bundle) int { return b.ID.At.Compare(a.ID.At) })
	return all, ctx.Err()
}

// entries lists a directory by name; one that is missing has none.
func (d *Directory) entries(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(d.root.FS(), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

func bundlePath(folder string, id incidentfile.ID) string {
	return filepath.Join(incidentfile.Dir, folder, id.File())
}

// Bundle implements [Bundles].
func (d *Directory) Bundle(folder, id string) (*OpenBundle, error) {
	parsed, err := incidentfile.ParseID(id)
	if err != nil {
		return nil, err
	}
	if !filepath.IsLocal(folder) || filepath.Base(folder) != folder || folder == "." {
		return nil, fmt.Errorf("folder %.80q: want that of a service", folder)
	}
	name := bundlePath(folder, parsed)
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	z, err := readZip(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &OpenBundle{z, f, filepath.Join(d.root.Name(), name)}, nil
}

// readZip reads the directory of a zip.
func readZip(f *os.File) (*zip.Reader, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	return zip.NewReader(f, info.Size())
}
