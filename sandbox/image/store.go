package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"naru/sandbox/image/registry"
)

// Store is the images of one root directory. Its methods may be called by
// several goroutines, and several processes may open the same root.
type Store struct {
	root string
	// hosts says how registries are reached; see UseRegistries.
	hosts map[string]registry.Host
	// pause is the first pause before a registry is asked again; doubled for
	// each further one.
	pause time.Duration
	// stall is how long a transfer may stand still.
	stall time.Duration
	// step is told each point at which a crash must do no harm; tests kill
	// the process there. Never nil.
	step func(name string)
}

// Open opens the store at root, creating it if it is not there, and removes
// what killed processes left (Sweep).
func Open(root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{root: root, pause: 500 * time.Millisecond, stall: time.Minute, step: func(string) {}}
	for _, dir := range []string{"blobs/sha256", "layers", "images", "leases", "partial", "tmp", "empty"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	if err := os.Chmod(s.path("empty"), 0o755); err != nil { // it becomes the "/" of containers
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := s.Sweep(); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	return s, nil
}

// UseRegistries says how registries are reached, by host name with port:
// mirrors, certificates, plain HTTP. Call it before the store is used.
func (s *Store) UseRegistries(hosts map[string]registry.Host) { s.hosts = hosts }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// blobPath and layerPath take checked digests only (see checkDigest).
func (s *Store) blobPath(d digest.Digest) string  { return s.path("blobs", "sha256", d.Encoded()) }
func (s *Store) layerPath(d digest.Digest) string { return s.path("layers", d.Encoded()) }
func (s *Store) imagePath(d digest.Digest) string { return s.path("images", d.Encoded()+".json") }

// checkDigest accepts sha256 only. Every digest from outside passes here before
// it becomes part of a path.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", string(d), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q: %s is not supported, only sha256", string(d), d.Algorithm())
	}
	return nil
}

// locked runs f while the store is locked: how is unix.LOCK_EX for changes of
// what the package comment lists, unix.LOCK_SH to use a layer while it cannot
// go away. f must be short and must not lock again.
func (s *Store) locked(how int, f func() error) error {
	lock, err := os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lock image store: %w", err)
	}
	if err := flock(lock, how); err != nil {
		return errors.Join(fmt.Errorf("lock image store: %w", err), lock.Close())
	}
	return errors.Join(f(), lock.Close()) // closing unlocks: the description is not shared
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// syncFS makes everything that was written to the store's file system durable,
// in one call instead of an fsync for each of thousands of files (syncfs(2)).
func (s *Store) syncFS() error {
	dir, err := os.Open(s.root)
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return errors.Join(fmt.Errorf("syncfs: %w", err), dir.Close())
	}
	return dir.Close()
}
