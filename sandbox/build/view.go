package build

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/overlay"
)

// mountView stacks directories, bottom first, into an overlay that is mounted
// nowhere: only the returned descriptor leads to it, and it ends with Close or
// with this process. With an upper directory it can be written to, otherwise it
// is read only. Nothing in it can be executed or opened as a device.
func mountView(lower []string, upper, work string) (r *root, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("mount layers: %w", err)
		}
	}()
	if !overlay.Appends() {
		return mountViewOld(overlay.Dirs{Lower: lower, Upper: upper, Work: work})
	}
	o := mounting{}
	defer o.close()
	if o.fs, err = unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC); err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	for i := len(lower) - 1; i >= 0; i-- { // the kernel wants the top first
		o.dir("lowerdir+", lower[i])
	}
	attrs := unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	if upper == "" {
		attrs |= unix.MOUNT_ATTR_RDONLY
	} else {
		o.dir("upperdir", upper)
		o.dir("workdir", work)
		o.set("volatile") // the store syncs what it commits
	}
	for _, name := range plainOptions() {
		o.option(name, "off")
	}
	if o.err != nil {
		return nil, o.err
	}
	if err := unix.FsconfigCreate(o.fs); err != nil {
		return nil, errors.Join(err, o.log())
	}
	mnt, err := unix.Fsmount(o.fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return &root{mnt}, nil
}

// plainOptions are turned off: layers are moved and packed by plain walks, so
// nothing in them may refer to a place or an inode of the layers below.
func plainOptions() []string { return []string{"redirect_dir", "metacopy", "index", "xino"} }

// mountViewOld is for kernels before Linux 6.7.
func mountViewOld(d overlay.Dirs) (*root, error) {
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC)
	var options []string
	for _, name := range plainOptions() {
		options = append(options, name+"=off")
	}
	if d.Upper == "" {
		flags |= unix.MS_RDONLY
	} else {
		options = append(options, "volatile")
	}
	mnt, err := overlay.MountDirs(d, options, flags)
	if err != nil {
		return nil, err
	}
	return &root{mnt}, nil
}

// mounting is an overlay that is being configured. The first error stays.
type mounting struct {
	fs   int
	dirs []int
	err  error
}

// dir gives a directory to the kernel by descriptor: fsconfig(2) takes no
// string over 255 bytes, and no name has to be escaped.
func (o *mounting) dir(key, path string) {
	if o.err != nil {
		return
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		o.err = &os.PathError{Op: "open", Path: path, Err: err}
		return
	}
	o.dirs = append(o.dirs, fd)
	o.option(key, fmt.Sprintf("/proc/self/fd/%d", fd))
}

func (o *mounting) option(key, value string) {
	if o.err != nil {
		return
	}
	if err := unix.FsconfigSetString(o.fs, key, value); err != nil {
		o.err = fmt.Errorf("%s: %w", key, errors.Join(err, o.log()))
	}
}

func (o *mounting) set(key string) {
	if o.err != nil {
		return
	}
	if err := unix.FsconfigSetFlag(o.fs, key); err != nil {
		o.err = fmt.Errorf("%s: %w", key, errors.Join(err, o.log()))
	}
}

// log is what the kernel has to say about the last error, if anything.
func (o *mounting) log() error {
	buf := make([]byte, 1024)
	n, err := unix.Read(o.fs, buf)
	if err != nil || n <= 0 {
		return nil
	}
	return errors.New(strings.TrimSpace(string(buf[:n])))
}

func (o *mounting) close() {
	for _, fd := range o.dirs {
		unix.Close(fd)
	}
	if o.fs > 0 {
		unix.Close(o.fs)
	}
}
