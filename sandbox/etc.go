package sandbox

import (
	"errors"
	"os"
	"path/filepath"
)

// writeEtc makes hostname, hosts and resolv.conf in the directory of a container that
// is being made. They are bind mounted, so later changes are made in place: rewrite.
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
		if err := createPublic(filepath.Join(dir, name), data); err != nil {
			return err
		}
	}
	return nil
}

// createPublic makes a file that every user reads.
func createPublic(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644) // whatever the umask says
	}
	return errors.Join(err, f.Close())
}
