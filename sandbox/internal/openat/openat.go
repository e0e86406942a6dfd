// Package openat opens paths that the kernel keeps below a directory, however busy
// the machine is.
package openat

import (
	"errors"

	"golang.org/x/sys/unix"
)

// tries end the repeating should there be no end to renames.
const tries = 1000

// Open is openat2(2) with O_CLOEXEC. The kernel gives up with EAGAIN at a ".." when
// anything on the machine is renamed or mounted meanwhile: it is asked again.
func Open(dir int, path string, flags, resolve uint64) (fd int, err error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve}
	for range tries {
		fd, err = unix.Openat2(dir, path, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}
