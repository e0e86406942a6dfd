package layer

import (
	"archive/tar"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/xattr"
)

const (
	overlayPrefix = "trusted.overlay."
	overlayOpaque = "trusted.overlay.opaque"
)

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func isOpaque(fd int) bool {
	value, err := xattr.Get(fd, overlayOpaque)
	return err == nil && value == "y"
}

func setOpaque(fd int) error {
	if err := unix.Fsetxattr(fd, overlayOpaque, []byte("y"), 0); err != nil {
		return fmt.Errorf("mark opaque: %w", err)
	}
	return nil
}

// mode gives the permission bits of a header with setuid, setgid and sticky.
func mode(h *tar.Header) uint32 { return uint32(h.Mode) & 0o7777 }

func timespec(h *tar.Header) unix.Timespec {
	if h.ModTime.IsZero() {
		return unix.Timespec{}
	}
	ts, err := unix.TimeToTimespec(h.ModTime)
	if err != nil { // out of the range of this machine's time_t
		return unix.Timespec{}
	}
	return ts
}

// setTimes sets the times of the file name in the directory fd, or of fd itself if name is
// empty. The access time gets the same value: it must not tell when the layer was unpacked.
func setTimes(fd int, name string, t unix.Timespec) error {
	times := []unix.Timespec{t, t}
	if name == "" {
		return unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH)
	}
	return unix.UtimesNanoAt(fd, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

// setMeta gives an open file the owner, mode and attributes of a header. The order matters:
// chown(2) clears setuid, setgid and the file capabilities.
func setMeta(fd int, h *tar.Header) error {
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := unix.Fchmod(fd, mode(h)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	attrs := xattr.FromRecords(h.PAXRecords, keepXattr)
	delete(attrs, xattr.DefaultACL) // see dirEnd
	return xattr.Set(fd, attrs)
}

// keepXattr says which extended attributes belong to a layer, in both
// directions. user.overlay.* from outside would let a layer redirect an
// unprivileged mount of overlayfs to other directories, as trusted.overlay.*,
// which is not portable anyway, would any.
func keepXattr(name string) bool {
	return xattr.Portable(name) && !strings.HasPrefix(name, "user.overlay.")
}
