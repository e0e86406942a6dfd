package sandbox

import (
	"errors"
	"os"
	"path/filepath"
)

// writeEtc writes hostname, hosts and resolv.conf. They are bind mounted, so
// later changes must be made in place.
func (e *Engine) writeEtc(r *record, dir string) error {
	resolv, warn := e.resolvConf(r)
	if warn != "" {
		r.Warnings = append(r.Warnings, warn)
	}
	for name, data := range map[string][]byte{
		"hostname":    []byte(r.Config.Hostname + "\n"),
		"hosts":       hosts(r, nil, nil),
		"resolv.conf": resolv,
	} {
		if err := writeInPlace(filepath.Join(dir, name), data); err != nil {
			return err
		}
	}
	return nil
}

// writeInPlace keeps the inode, which a container has mounted.
func writeInPlace(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644) // whatever the umask says: every user inside reads it
	}
	return errors.Join(err, f.Close())
}
