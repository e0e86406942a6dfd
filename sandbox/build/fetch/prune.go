package fetch

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// keptDir is the directory of one URL.
type keptDir struct {
	path string
	size int64
	used int64 // when it was asked for, nanoseconds
}

// look measures a directory. What cannot be read counts nothing.
func look(dir string) keptDir {
	k := keptDir{path: dir}
	list, err := os.ReadDir(dir)
	if err != nil {
		return k
	}
	for _, e := range list {
		info, err := e.Info()
		if err != nil {
			continue
		}
		k.size += info.Size()
		k.used = max(k.used, info.ModTime().UnixNano())
	}
	return k
}

// removeOldest removes directories until so many bytes are gone.
func removeOldest(all []keptDir, excess int64) error {
	slices.SortFunc(all, func(a, b keptDir) int { return cmp.Compare(a.used, b.used) })
	var errs []error
	for _, k := range all {
		if excess <= 0 {
			break
		}
		d, err := lockDir(k.path, unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // in use
		}
		// The meta data first: without it the rest is nothing.
		err = errors.Join(os.RemoveAll(filepath.Join(k.path, metaFile)), os.RemoveAll(k.path), d.Close())
		if err != nil {
			errs = append(errs, fmt.Errorf("prune fetched files: %w", err))
			continue
		}
		excess -= k.size
	}
	return errors.Join(errs...)
}
