package overlay

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Apart calls f on a thread in a private copy of the mount namespace, which ends
// with the call and takes everything that f attached with it.
//
// The thread is put back as it was and given back to the Go runtime: to let it end
// instead would kill the children that it once started with a parent-death
// signal, which the kernel sends when the thread ends (PR_SET_PDEATHSIG(2const)).
// What differs afterwards is that it no longer shares its working directory with
// the other threads; this program never changes it.
func Apart(f func() error) (err error) {
	runtime.LockOSThread()
	restored := true
	defer func() {
		if restored {
			runtime.UnlockOSThread()
		}
	}()
	back, err := remember()
	if err != nil {
		return err
	}
	defer back.close()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	defer func() {
		if backErr := back.restore(); backErr != nil {
			restored, err = false, errors.Join(err, fmt.Errorf("leave mount namespace: %w", backErr))
		}
	}()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return f()
}

// place is where a thread is: its mount namespace, root and working directory.
type place struct{ namespace, root, work *os.File }

func remember() (p place, err error) {
	open := func(path string, to **os.File) {
		if err == nil {
			*to, err = os.Open(path)
		}
	}
	open("/proc/thread-self/ns/mnt", &p.namespace)
	open("/", &p.root)
	open(".", &p.work)
	if err != nil {
		p.close()
		return place{}, fmt.Errorf("remember mount namespace: %w", err)
	}
	return p, nil
}

// restore also sets root and working directory, which setns(2) moves to the root
// of the namespace.
func (p place) restore() error {
	if err := unix.Setns(int(p.namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	if err := unix.Fchdir(int(p.root.Fd())); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := unix.Fchdir(int(p.work.Fd())); err != nil {
		return fmt.Errorf("enter working directory: %w", err)
	}
	return nil
}

func (p place) close() {
	for _, f := range []*os.File{p.namespace, p.root, p.work} {
		if f != nil {
			f.Close()
		}
	}
}
