package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Control files are read and written by plain system calls. Package os would offer
// each to its poller, which takes them, as kernfs files can be polled: eight calls for
// a value instead of three, and a start writes thirty values.

// openFile opens a control file; it never creates one.
func openFile(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// readFile returns what a control file says, of any length.
func readFile(path string) ([]byte, error) {
	fd, err := openFile(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 512)
	for {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return b, nil
		}
		if b = b[:len(b)+n]; len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
}

// write puts a value into a cgroup file; it never creates one.
func write(dir, name, value string) error { return writeAll(dir, name, []string{value}) }

// writeAll puts several values into a file, each by a write of its own, as the kernel
// takes one at a time.
func writeAll(dir, name string, values []string) error {
	if len(values) == 0 {
		return nil
	}
	fd, err := openFile(filepath.Join(dir, name), unix.O_WRONLY)
	if errors.Is(err, fs.ErrNotExist) && exists(dir, "cgroup.procs") {
		return fmt.Errorf("this kernel has no %s: %w", name, err)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, value := range values {
		_, err := unix.Write(fd, []byte(value))
		for errors.Is(err, unix.EINTR) {
			_, err = unix.Write(fd, []byte(value))
		}
		if err != nil {
			return fmt.Errorf("write %q: %w", value, &os.PathError{Op: "write", Path: filepath.Join(dir, name), Err: err})
		}
	}
	return nil
}
