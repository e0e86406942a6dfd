package layer

import (
	"archive/tar"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	paxXattr       = "SCHILY.xattr."
	overlayPrefix  = "trusted.overlay."
	overlayOpaque  = "trusted.overlay.opaque"
	capabilityAttr = "security.capability"
	accessACL      = "system.posix_acl_access"
	defaultACL     = "system.posix_acl_default"
)

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
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
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !keepXattr(name) || name == defaultACL { // see dirEnd
			continue
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// keepXattr says which extended attributes belong to a layer, in both
// directions. trusted.overlay.* from outside would let a layer redirect
// overlayfs to other directories, user.overlay.* the same for an unprivileged
// mount; security.selinux, ima and evm are the machine's, not the image's.
func keepXattr(name string) bool {
	switch name {
	case capabilityAttr, accessACL, defaultACL:
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}
