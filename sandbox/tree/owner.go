package tree

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// asOwner calls f on a thread that makes files as the tree's own root. Where root
// of the host has no id, in a tmpfs of another user namespace, the kernel refuses to
// make any (EOVERFLOW). The thread keeps all its capabilities, and is put back.
func (t *Tree) asOwner(f func() error) error {
	if t.ids.Count == 0 || t.ids.Base == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: what cannot be put back ends with the thread
		err := becomeFS(int(t.ids.Base))
		if err == nil {
			err = f()
		}
		back := becomeFS(0)
		if back == nil {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, back)
	}()
	return <-done
}

// becomeFS changes the ids that new files of this thread get (setfsuid(2)). With them
// the kernel takes the capabilities over files away, which are put back.
func becomeFS(id int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	if _, err := unix.SetfsgidRetGid(id); err != nil {
		return fmt.Errorf("setfsgid: %w", err)
	}
	if _, err := unix.SetfsuidRetUid(id); err != nil {
		return fmt.Errorf("setfsuid: %w", err)
	}
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}
