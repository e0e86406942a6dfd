package runtime

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	goruntime "runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// embedded holds the tiny program, where `make init` has built it.
//
//go:embed all:embedded
var embedded embed.FS

// tinyProgram is opened once per process: all containers share its pages.
var tinyProgram = sync.OnceValues(openTinyProgram)

// openTinyProgram puts the tiny program, or else a copy of this one, into a
// sealed memfd: whoever should ever get hold of /proc/<pid>/exe of a process
// inside a container cannot write to it (CVE-2019-5736).
func openTinyProgram() (*os.File, error) {
	fd, err := unix.MemfdCreate("naru-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC is Linux 6.3
		fd, err = unix.MemfdCreate("naru-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("create memfd: %w", err)
	}
	// A high number, out of the way of the descriptors that fork renumbers (golang.org/issue/61751).
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 128)
	unix.Close(fd)
	if err != nil {
		return nil, fmt.Errorf("duplicate memfd: %w", err)
	}
	f := os.NewFile(uintptr(high), "memfd:naru-init")
	if err := fill(f); err != nil {
		return nil, errors.Join(fmt.Errorf("fill memfd: %w", err), f.Close())
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal memfd: %w", err), f.Close())
	}
	return f, nil
}

func fill(f *os.File) error {
	src, err := openEmbedded()
	if errors.Is(err, fs.ErrNotExist) {
		var self *os.File
		if self, err = os.Open("/proc/self/exe"); err == nil {
			src = self
		}
	}
	if err != nil {
		return err
	}
	defer src.Close()
	_, err = io.Copy(f, src)
	return err
}

func openEmbedded() (fs.File, error) {
	return embedded.Open("embedded/naru-init-" + goruntime.GOARCH)
}
