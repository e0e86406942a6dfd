package tree

import (
	"archive/tar"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/xattr"
)

// meta gives an open file or directory its mode, attributes and times, in this order:
// chown(2), before, takes setuid bits and file capabilities away, and an access list
// has a part of the mode.
func (u *unpacker) meta(fd int, h *tar.Header) error {
	if err := unix.Fchmod(fd, u.mode(h)); err != nil {
		return err
	}
	if u.o.Archive {
		attrs, err := u.t.ids.attributesOutside(h.PAXRecords)
		if err == nil {
			err = xattr.Set(fd, attrs)
		}
		if err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(fd, "", times(h.ModTime), unix.AT_EMPTY_PATH)
}

// finish sets what a link or a fifo has besides its name.
func (u *unpacker) finish(dir int, base string, h *tar.Header) error {
	uid, gid, err := u.owner(h)
	if err != nil {
		return err
	}
	kind := uint32(unix.S_IFLNK)
	if h.Typeflag == tar.TypeFifo {
		kind = unix.S_IFIFO
	}
	if err := chownNode(dir, base, expected{kind, int(u.t.ids.Base)}, uid, gid); err != nil {
		return err
	}
	if kind == unix.S_IFIFO {
		if err := chmodNode(dir, base, u.mode(h), expected{kind, uid}); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(dir, base, times(h.ModTime), unix.AT_SYMLINK_NOFOLLOW)
}

// expected is what an entry must still be, so that nothing is changed that was put in
// its place at the same time, and that the one who put it there may not change himself.
type expected struct {
	kind uint32
	uid  int
}

// made opens an entry that still is what it must be.
func made(dir int, base string, want expected) (int, error) {
	fd, err := openNode(dir, base)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != want.kind || int(st.Uid) != want.uid) {
		err = errors.New("it was replaced at the same time")
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// chmodNode goes by a descriptor: fchmodat(2) takes no flag against links before Linux 6.6.
func chmodNode(dir int, base string, mode uint32, want expected) error {
	fd, err := made(dir, base, want)
	if err != nil {
		return err
	}
	return errors.Join(unix.Chmod(selfFD(fd), mode), unix.Close(fd))
}

func chownNode(dir int, base string, want expected, uid, gid int) error {
	fd, err := made(dir, base, want)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH), unix.Close(fd))
}

func (u *unpacker) owner(h *tar.Header) (uid, gid int, err error) {
	own := [2]int{h.Uid, h.Gid}
	if u.o.Owner != nil {
		own = *u.o.Owner
	}
	if uid, err = u.t.ids.outside(own[0]); err != nil {
		return 0, 0, err
	}
	gid, err = u.t.ids.outside(own[1])
	return uid, gid, err
}

func (u *unpacker) mode(h *tar.Header) uint32 {
	if u.o.Archive {
		return uint32(h.Mode) & 0o7777
	}
	return uint32(h.Mode) & 0o1777
}

// finishDirs sets what a directory gets last: an entry that is put into one changes its
// time, inherits its access list, and may need its old mode.
func (u *unpacker) finishDirs() error {
	for name, d := range u.dirs {
		if d.header == nil {
			continue
		}
		if err := u.finishDir(name, d); err != nil {
			return pathError("unpack", name, err)
		}
	}
	return nil
}

func (u *unpacker) finishDir(name string, d dirEnd) error {
	dir, base, err := u.parent(name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := made(dir, base, expected{unix.S_IFDIR, d.uid})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	f, err := reopen(fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	return errors.Join(u.meta(int(f.Fd()), d.header), f.Close())
}

// times are the epoch where the machine cannot hold them.
func times(t time.Time) []unix.Timespec {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		ts = unix.Timespec{}
	}
	return []unix.Timespec{ts, ts}
}
