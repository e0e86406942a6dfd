package runtime

import (
	"errors"
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/overlay"
)

// bindStack mounts what is at Source below a stack of layers. The stack belongs to
// this mount alone and its path is resolved by the kernel below its root: neither a
// link of the image nor a step that runs beside us leads out of it (CVE-2024-1753,
// CVE-2024-23651).
func (c *creation) bindStack(m specs.Mount, o mountOptions, stack Overlay) (_ *os.File, dir bool, err error) {
	root, err := mountRoot(stack, false, c.userns)
	if err != nil {
		return nil, false, err
	}
	f, err := below(root, m.Source)
	if err != nil {
		return nil, false, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil {
		err = unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, o.change())
	}
	if err != nil {
		return nil, false, errors.Join(fmt.Errorf("mount_setattr: %w", err), f.Close())
	}
	return f, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// below returns a mount that begins at a path of root, which it closes unless it is
// the same.
func below(root *os.File, path string) (*os.File, error) {
	rel := strings.Trim(path, "/")
	if rel == "" {
		return root, nil
	}
	defer root.Close()
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(int(root.Fd()), rel, how)
	if err != nil {
		return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
	at := os.NewFile(uintptr(fd), path)
	defer at.Close()
	return overlay.CloneBelow(root, at)
}

// brought is a mount that the caller made.
func (c *creation) brought(i int) (*os.File, bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(c.Made[i].Fd()), &st); err != nil {
		return nil, false, fmt.Errorf("stat: %w", err)
	}
	f, err := duplicate(c.Made[i])
	return f, st.Mode&unix.S_IFMT == unix.S_IFDIR, err
}
