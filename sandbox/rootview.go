package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"naru/internal/smallfile"
	"naru/sandbox/internal/openat"
	"naru/sandbox/runtime/overlay"
)

// rootView is a container's root file system for reading a few files of it: a
// directory descriptor below which every path is resolved by the kernel, so
// that no link of the image leads out (openat2(2), RESOLVE_IN_ROOT).
type rootView struct{ fd int }

// maxAccountFile bounds what is read of an image's passwd and group files.
const maxAccountFile = 4 << 20

// viewLayers stacks layers, bottom first, into a read-only overlay that is
// mounted nowhere: it ends with Close.
func viewLayers(lower []string) (*rootView, error) {
	if len(lower) == 0 {
		return nil, errors.New("view layers: image has no layers")
	}
	if len(lower) == 1 {
		fd, err := unix.Open(lower[0], unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("view layers: %w", err)
		}
		return &rootView{fd}, nil
	}
	if !overlay.Appends() {
		fd, err := overlay.MountDirs(overlay.Dirs{Lower: lower}, nil, unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC)
		if err != nil {
			return nil, fmt.Errorf("view layers: %w", err)
		}
		return &rootView{fd}, nil
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("view layers: fsopen: %w", err)
	}
	defer unix.Close(fs)
	for i := len(lower) - 1; i >= 0; i-- { // the kernel wants the top first
		if err := unix.FsconfigSetString(fs, "lowerdir+", lower[i]); err != nil {
			return nil, fmt.Errorf("view layers: lowerdir+: %w", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("view layers: create overlay: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("view layers: fsmount: %w", err)
	}
	return &rootView{fd}, nil
}

// viewProcess looks at the root directory of a running process. The caller
// makes sure afterwards that pid still is the process it meant.
func viewProcess(pid int) (*rootView, error) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/root", unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("view container's root: %w", err)
	}
	return &rootView{fd}, nil
}

// Close ends the view.
func (v *rootView) Close() error { return unix.Close(v.fd) }

// open opens a path without following it out of the root, through a magic link,
// or into waiting for the other end of a pipe.
func (v *rootView) open(path string, flags uint64) (*os.File, error) {
	fd, err := openat.Open(v.fd, path, flags|unix.O_NONBLOCK|unix.O_NOCTTY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// readFile returns a small regular file.
func (v *rootView) readFile(path string) ([]byte, error) {
	f, err := v.open(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing can be lost
	data, err := smallfile.Read(f, maxAccountFile)
	if err != nil {
		return nil, fmt.Errorf("read from the image: %w", err)
	}
	return data, nil
}
