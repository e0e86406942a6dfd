// Package volume keeps named volumes: directories that outlive the containers
// that write into them.
//
// A volume is the directory <root>/<name> with volume.json (labels, creation
// time) and data (what a container sees). The ids on disk are container ids
// (0..65535); the runtime maps them when it mounts data, so that two
// containers with different host ids share a volume. The life of one volume:
// Create makes it under a temporary name and renames it into place, containers
// mount the path that Path returns, Remove renames it away and deletes it.
// A crash in between leaves a temporary name, which Sweep deletes.
//
// Export and Import carry the data as a tar (archive.go).
//
// The package does not know which container uses a volume: its caller does.
package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
)

// Errors a caller can branch on.
var (
	// ErrNotFound says that no volume has the name.
	ErrNotFound = errors.New("no such volume")
	// ErrExists says that a volume has the name already.
	ErrExists = errors.New("volume exists")
)

// AnonymousLabel marks a volume that nobody named: one container has it, and it
// goes with it where that is asked for.
const AnonymousLabel = "naru.anonymous"

// Anonymous says whether nobody named the volume.
func (v Volume) Anonymous() bool {
	_, yes := v.Labels[AnonymousLabel]
	return yes
}

// Volume is one named volume.
type Volume struct {
	Name    string            `json:"Name"`
	Path    string            `json:"Mountpoint"` // the data directory on the host
	Labels  map[string]string `json:"Labels"`
	Created time.Time         `json:"CreatedAt"`
}

// Store is the directory of all volumes of one data root.
type Store struct{ dir string }

const (
	metaFile = "volume.json"
	dataDir  = "data"
	tempMark = "." // no valid name begins with a dot
)

// Open returns the store at dir and makes the directory when it is missing.
// Only root may enter it: the data's own modes are made for container ids.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create volume directory: %w", err)
	}
	return &Store{dir: dir}, nil
}

// CheckName refuses what cannot be a volume's name; the pattern is Docker's.
func CheckName(name string) error {
	ok, err := regexp.MatchString(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`, name)
	if err != nil {
		return fmt.Errorf("internal error: volume name pattern: %w", err)
	}
	if !ok {
		return fmt.Errorf("volume name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-] is allowed, at most 128 characters", name)
	}
	return nil
}

// Create makes the volume, or returns the one that has the name already. A new
// one is handed to fill, if given, before anybody can see it: what fill puts
// into the data directory is there whole or, after a crash, not at all.
func (s *Store) Create(name string, labels map[string]string, fill func(data string) error) (Volume, error) {
	v, err := s.Get(name)
	if err == nil || !errors.Is(err, ErrNotFound) {
		return v, err
	}
	tmp, unlock, err := s.temp()
	if err != nil {
		return Volume{}, fmt.Errorf("create volume %s: %w", name, err)
	}
	defer unlock()
	err = s.make(tmp, Volume{Name: name, Labels: labels, Created: time.Now().UTC()}, fill)
	if err != nil {
		return Volume{}, errors.Join(fmt.Errorf("create volume %s: %w", name, err), os.RemoveAll(tmp))
	}
	// Of two creators of one name the first wins and the second gets its volume.
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, filepath.Join(s.dir, name), unix.RENAME_NOREPLACE)
	if err != nil {
		if rm := os.RemoveAll(tmp); rm != nil || !errors.Is(err, fs.ErrExist) {
			return Volume{}, errors.Join(fmt.Errorf("create volume %s: %w", name, err), rm)
		}
	}
	if err := atomicfile.SyncDir(s.dir); err != nil {
		return Volume{}, err
	}
	return s.Get(name)
}

// temp makes a temporary directory. Its lock tells Sweep that somebody is filling
// it, which may take long.
func (s *Store) temp() (dir string, unlock func(), err error) {
	if dir, err = os.MkdirTemp(s.dir, tempMark+"new-*"); err != nil {
		return "", nil, err
	}
	f, err := os.Open(dir)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	return dir, func() { _ = f.Close() }, nil // read only: nothing can be lost
}

// filling says whether a process holds the lock of a temporary directory.
func filling(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close() // gives the lock back too
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

func (s *Store) make(dir string, v Volume, fill func(string) error) error {
	if err := makeData(filepath.Join(dir, dataDir), fill); err != nil {
		return err
	}
	meta, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, metaFile), meta, 0o600)
}

// makeData makes the data directory. What is filled in is on disk before the
// volume gets its name: after a power cut it is there whole or not at all.
func makeData(data string, fill func(string) error) error {
	if err := os.Mkdir(data, 0o755); err != nil || fill == nil {
		return err
	}
	if err := fill(data); err != nil {
		return err
	}
	d, err := os.Open(data)
	if err != nil {
		return err
	}
	if _, err = d.Readdirnames(1); err == nil {
		err = unix.Syncfs(int(d.Fd()))
	} else if errors.Is(err, io.EOF) {
		err = nil // nothing to wait for
	}
	return errors.Join(err, d.Close())
}

// Get returns the volume of that name, or ErrNotFound.
func (s *Store) Get(name string) (Volume, error) {
	if err := CheckName(name); err != nil {
		return Volume{}, err
	}
	data, err := os.ReadFile(filepath.Join(s.dir, name, metaFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Volume{}, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return Volume{}, fmt.Errorf("read volume %s: %w", name, err)
	}
	var v Volume
	if err := json.Unmarshal(data, &v); err != nil {
		return Volume{}, fmt.Errorf("read volume %s: %w", name, err)
	}
	v.Path = filepath.Join(s.dir, name, dataDir)
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	return v, nil
}

// List returns all volumes by name.
func (s *Store) List() ([]Volume, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	volumes := []Volume{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempMark) {
			continue
		}
		v, err := s.Get(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue // removed since the directory was read
		}
		if err != nil {
			return nil, err
		}
		volumes = append(volumes, v)
	}
	slices.SortFunc(volumes, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return volumes, nil
}

// Remove deletes the volume with its data. The caller has made sure that no
// container mounts it.
func (s *Store) Remove(name string) error {
	if _, err := s.Get(name); err != nil {
		return err
	}
	gone, err := os.MkdirTemp(s.dir, tempMark+"rm-*")
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	if err := os.Rename(filepath.Join(s.dir, name), filepath.Join(gone, name)); err != nil {
		return errors.Join(fmt.Errorf("remove volume %s: %w", name, err), os.Remove(gone))
	}
	if err := atomicfile.SyncDir(s.dir); err != nil {
		return err
	}
	return Discard(gone)
}

// Sweep deletes what a crash left of volumes that were half made or half
// removed. One that a living process is making is locked, or was begun a moment ago.
func (s *Store) Sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("sweep volumes: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempMark) {
			continue
		}
		info, err := e.Info()
		if err != nil || (strings.HasPrefix(e.Name(), tempMark+"new-") && time.Since(info.ModTime()) < time.Minute) {
			continue
		}
		if filling(filepath.Join(s.dir, e.Name())) {
			continue
		}
		errs = append(errs, Discard(filepath.Join(s.dir, e.Name())))
	}
	return errors.Join(errs...)
}
