package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
	"naru/sandbox/runtime"
)

// record is config.json: what a container is, written before anything of it
// exists in the kernel and never changed afterwards.
type record struct {
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	Config   ContainerConfig `json:"config"`
	ImageID  string          `json:"image_id"`
	Command  []string        `json:"command"` // entrypoint and arguments, as they run
	Lower    []string        `json:"lower"`   // the image's layers, bottom first
	Process  *specs.Process  `json:"process"` // what runs; Exec starts from it too
	Signal   int             `json:"signal"`  // asks the container to end
	Block    int             `json:"block"`   // of user ids; -1: the host's
	Created  time.Time       `json:"created"`
	Boot     string          `json:"boot"` // id of the boot it was created in
	Warnings []string        `json:"warnings,omitempty"`

	// Idle marks a container that was created without a process, for a later Start.
	Idle bool `json:"idle,omitempty"`

	// Step marks the container of one build step. Its builder holds the lock as
	// long as it lives, so one that can be locked has lost its builder.
	Step bool `json:"step,omitempty"`

	mounts  *stepMounts // of a Step that is being run here; written down nowhere
	damaged bool        // it is not what was written, but what look found out
}

// ending is ended.json: the container has ended and holds nothing in the
// kernel any more.
type ending struct {
	Started time.Time    `json:"started,omitzero"`
	Exit    runtime.Exit `json:"exit"`
}

// starting is started.json on tmpfs: Start has been called.
type starting struct {
	Started time.Time `json:"started"`
	// Last is how the container ended before, while another start is prepared: until
	// Start is called that is its end, whatever becomes of the preparations.
	Last *runtime.Exit `json:"last,omitempty"`
}

const (
	configFile = "config.json"
	endedFile  = "ended.json"

	newMark  = ".new-" // a container directory being filled
	goneMark = ".rm-"  // a container directory being deleted
)

// Host ids of containers: the part below 2^31 that neither distributions nor
// systemd-nspawn hand out (systemd, UIDS-GIDS.md), in blocks of 65536.
const (
	idBase   = 0x70000000
	idSize   = 65536
	idBlocks = 0x0ffe
)

// newID returns 64 random hexadecimal digits.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

func (e *Engine) load(id string) (*record, error) {
	data, err := os.ReadFile(filepath.Join(e.dir(id), configFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, short(id))
	}
	if err != nil {
		return nil, fmt.Errorf("read container: %w", err)
	}
	r := new(record)
	if err := decode("container "+short(id), data, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := r.check(id); err != nil {
		return nil, fmt.Errorf("%w: container %s: %w", ErrDamaged, short(id), err)
	}
	return r, nil
}

// loadJSON reads a file that may be missing.
func loadJSON(path string, v any) (found bool, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, decode(path, data, v)
}

func saveJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(path, data, 0o600)
}

// saveRun is saveJSON for the run directory. What stands there is about
// processes, which a power cut ends as well, so nothing waits for a disk, should
// the directory lie on one.
func saveRun(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.Replace(path, data, 0o600)
}

// loadRun is loadJSON for the run directory. A file that is cut off can only be
// from before a power cut, and then what it tells of is gone too; one that is
// damaged otherwise tells nothing either.
func loadRun(path string, v any) (found bool, err error) {
	found, err = loadJSON(path, v)
	if found && err != nil {
		return false, nil
	}
	return found, err
}

// ended returns how the container ended, once that is settled. That it has is what
// the file says by being there; what it holds may be damaged.
func (e *Engine) ended(id string) (end ending, ok bool, err error) {
	path := filepath.Join(e.dir(id), endedFile)
	ok, err = loadJSON(path, &end)
	if ok && err != nil {
		at := modified(path)
		end, err = ending{Started: at, Exit: runtime.Exit{Code: 255, At: at}}, nil
	}
	return end, ok, err
}

// passing tells that the container goes with its end, and that nobody starts it a
// second time. A power cut ends it too, so nothing of it waits for the disk: what is
// left of it, record, claims or neither, is for Recover to remove. One that was only
// defined waits for its start, also over a boot.
func (r *record) passing() bool { return (r.Config.Remove || r.Step) && !r.Idle }

// ownerFile is the symbolic link to its own id in a container's directory, of which its
// claims are further names.
const ownerFile = "owner"

// claim takes a key in a claims directory for id. Creating a symbolic link is
// atomic and carries its owner with it, so that no crash leaves a claim of
// which nobody knows whose it is. So is a hard link to the one in the container's own
// directory, if there is one: it needs no inode.
func (e *Engine) claim(dir, key, id string) (taken bool, err error) {
	path := filepath.Join(dir, key)
	err = os.Link(filepath.Join(e.containersDir(), newMark+id, ownerFile), path) // link(2) follows no symbolic link
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = os.Symlink(id, path) // it was made before, or its file system links no links
	}
	if errors.Is(err, fs.ErrExist) {
		return true, nil
	}
	return false, err
}

// release gives a key back if id still has it.
func release(dir, key, id string) error {
	path := filepath.Join(dir, key)
	owner, err := os.Readlink(path)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && owner != id) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// claimName takes the name that was asked for, or makes one up.
func (e *Engine) claimName(want, id string) (string, error) {
	if want != "" {
		taken, err := e.claim(e.namesDir(), want, id)
		if taken {
			err = fmt.Errorf("%w: %s", ErrNameTaken, want)
		}
		return want, err
	}
	for i := range 20 {
		name := madeUpName(i)
		taken, err := e.claim(e.namesDir(), name, id)
		if err != nil || !taken {
			return name, err
		}
	}
	name := "c-" + short(id)
	_, err := e.claim(e.namesDir(), name, id)
	return name, err
}

// claimBlock takes the first free block of user ids, counted from a place that
// the root's hash gives: the engines of two roots then rarely meet.
func (e *Engine) claimBlock(id string) (int, error) {
	var first int
	if _, err := fmt.Sscanf(e.hash, "%08x", &first); err != nil {
		return 0, fmt.Errorf("internal error: root hash %q: %w", e.hash, err)
	}
	for i := range idBlocks {
		n := (first + i) % idBlocks
		taken, err := e.claim(e.idsDir(), fmt.Sprint(n), id)
		if err != nil {
			return 0, err
		}
		if !taken {
			return n, nil
		}
	}
	return 0, fmt.Errorf("all %d blocks of user ids are taken", idBlocks)
}

// releaseClaims gives back what the container had claimed. The root's lock is
// shared meanwhile, so that no sweep can free a key in between, and another
// container claim it, which would then be taken away here.
func (e *Engine) releaseClaims(ctx context.Context, r *record) error {
	root, err := e.lockRoot(ctx, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer root.Unlock()
	if r.Name != "" {
		err = release(e.namesDir(), r.Name, r.ID)
	}
	if r.Block >= 0 {
		err = errors.Join(err, release(e.idsDir(), fmt.Sprint(r.Block), r.ID))
	}
	if err != nil {
		return fmt.Errorf("release claims: %w", err)
	}
	return nil
}

// resolve turns a name, an id or a unique beginning of an id into an id.
func (e *Engine) resolve(ref string) (string, error) {
	if checkName(ref) != nil {
		return "", fmt.Errorf("%w: %s", ErrNotFound, ref)
	}
	if id, err := os.Readlink(filepath.Join(e.namesDir(), ref)); err == nil {
		return id, nil
	}
	ids, err := e.ids()
	if err != nil {
		return "", err
	}
	found := ""
	for _, id := range ids {
		if !strings.HasPrefix(id, ref) {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("%w: more than one id begins with %s", ErrNotFound, ref)
		}
		found = id
	}
	if found == "" {
		return "", fmt.Errorf("%w: %s", ErrNotFound, ref)
	}
	return found, nil
}

// ids lists the ids of all containers, build steps too.
func (e *Engine) ids() ([]string, error) {
	entries, err := os.ReadDir(e.containersDir())
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	ids := make([]string, 0, len(entries))
	for _, d := range entries {
		if !strings.HasPrefix(d.Name(), ".") {
			ids = append(ids, d.Name())
		}
	}
	return ids, nil
}
