package sp

import (
	"bytes"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"wardgate/sp/registry"
)

// registryFolders are the folders that a registry's files lie in.
var registryFolders = []string{"members", "devices", "services", "contracts"}

// Export writes a registry's files into a folder, replaces those that differ, and removes those of objects
// that there are no more. Other files (hidden ones, .md, other folders) stay. It returns how many files it
// wrote and removed.
func Export(dir string, r *registry.Registry) (wrote, removed int, err error) {
	return ExportFiles(dir, r.Export())
}

// ExportFiles is Export for files at hand, by their paths in the registry.
func ExportFiles(dir string, files iter.Seq2[string, []byte]) (wrote, removed int, err error) {
	keep := map[string]bool{}
	for name, data := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		keep[path] = true
		if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, data) {
			continue
		}
		if err := replaceFile(path, data); err != nil {
			return wrote, removed, err
		}
		wrote++
	}
	for _, folder := range registryFolders {
		list, err := os.ReadDir(filepath.Join(dir, folder))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return wrote, removed, err
		}
		for _, e := range list {
			path := filepath.Join(dir, folder, e.Name())
			ours := strings.HasSuffix(e.Name(), ".toml") || folder == "devices" && strings.HasSuffix(e.Name(), ".pem")
			if !ours || keep[path] || strings.HasPrefix(e.Name(), ".") || !e.Type().IsRegular() {
				continue
			}
			if err := os.Remove(path); err != nil {
				return wrote, removed, err
			}
			removed++
		}
	}
	return wrote, removed, nil
}

// replaceFile writes a file as a whole, or not at all.
func replaceFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
