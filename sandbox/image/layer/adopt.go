package layer

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/xattr"
)

// AdoptImplied gives the directories that a layer implies (Result.Implied) the
// owner, mode, times and attributes that the same directories have in the
// layers below, given bottom first. Without it a layer that holds only
// "tmp/x" would turn /tmp into 0755: in overlayfs the topmost directory's
// metadata counts. What no lower layer has stays as it is.
func AdoptImplied(dir string, implied, lower []string) error {
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for i := len(implied) - 1; i >= 0; i-- { // children first: no time is disturbed
		if err := adopt(int(root.Fd()), implied[i], lower); err != nil {
			return fmt.Errorf("adopt metadata of %q: %w", implied[i], err)
		}
	}
	return nil
}

func adopt(root int, path string, lower []string) error {
	for i := len(lower) - 1; i >= 0; i-- {
		src, hidden, err := findDir(lower[i], path)
		if err != nil {
			return err
		}
		if src < 0 && hidden {
			return nil
		}
		if src < 0 {
			continue
		}
		dst, err := openIn(root, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil { // a later entry replaced it
			return unix.Close(src)
		}
		return errors.Join(copyMeta(dst, src), unix.Close(dst), unix.Close(src))
	}
	return nil
}

// findDir opens path in one layer without following anything. It gives -1 if
// the layer does not have the directory; hidden then says that the layer hides it in those below.
func findDir(layerDir, path string) (fd int, hidden bool, err error) {
	at, err := unix.Open(layerDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false, err
	}
	for part := range strings.SplitSeq(path, "/") {
		opaque := isOpaque(at)
		next, err := unix.Openat(at, part, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		_ = unix.Close(at)
		switch {
		case errors.Is(err, unix.ENOENT):
			return -1, hidden || opaque, nil
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return -1, true, nil
		case err != nil:
			return -1, false, err
		}
		at, hidden = next, hidden || opaque
	}
	return at, false, nil
}

func copyMeta(dst, src int) error {
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	attrs, err := layerXattrs(src)
	if err != nil {
		return err
	}
	if err := xattr.Set(dst, attrs); err != nil {
		return err
	}
	return setTimes(dst, "", st.Mtim)
}
