package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
	"naru/sandbox/runtime/overlay"
	"naru/sandbox/tree"
)

// openedTree is a container's root as its own processes see it, volumes included.
type openedTree struct {
	*tree.Tree
	held []interface{ Close() error } // what must stay open meanwhile
	lock *lock
}

func (o *openedTree) Close() error {
	err := o.Tree.Close()
	for _, h := range o.held {
		err = errors.Join(err, h.Close())
	}
	o.lock.Unlock()
	return err
}

// openTree opens the root of a container. One with processes is seen through their
// mount namespace, which is held so that no volume disappears from it in the
// middle; one without is mounted out of sight, and locked against a start.
func (e *Engine) openTree(ctx context.Context, r *record) (*openedTree, error) {
	rt, err := e.open(r.ID)
	if err != nil {
		return nil, err
	}
	if rt != nil {
		defer rt.Close() // the container needs no descriptor of ours
		if opened, err := e.treeOfProcess(r, rt); err != nil || opened != nil {
			return opened, err
		}
	}
	l, err := e.lockContainer(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	c, err := e.view(r)
	if err == nil && c.Pid != 0 {
		err = ErrBusy // started since we looked
	}
	fd := -1
	if err == nil {
		fd, err = e.mountIdle(r)
	}
	if err != nil {
		l.Unlock()
		return nil, err
	}
	t := tree.New(fd, tree.IDs{})
	t.Links = true
	return &openedTree{Tree: t, lock: l}, nil
}

// treeOfProcess returns nil when the container has ended.
func (e *Engine) treeOfProcess(r *record, rt *runtime.Container) (*openedTree, error) {
	if rt.State() == runtime.Stopped {
		return nil, nil
	}
	root, pid, err := viewProgram(rt)
	if err != nil {
		return nil, goneOr(rt, err)
	}
	namespace, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	if err != nil {
		return nil, errors.Join(goneOr(rt, err), root.Close())
	}
	if rt.State() == runtime.Stopped { // the pid may have been somebody else's already
		return nil, errors.Join(root.Close(), namespace.Close())
	}
	ids := tree.IDs{}
	if r.Block >= 0 {
		ids = tree.IDs{Base: r.idRange().Base, Count: r.idRange().Count}
	}
	t := tree.New(root.fd, ids)
	t.Links = true
	return &openedTree{Tree: t, held: []interface{ Close() error }{namespace}}, nil
}

// goneOr forgets the error of a look at a process that has ended.
func goneOr(rt *runtime.Container, err error) error {
	if rt.State() == runtime.Stopped {
		return nil
	}
	return err
}

// mountIdle stacks the layers of a container without processes, its own on top, and
// binds its volumes and host paths where it would see them. The mounts are
// attached nowhere and end with the descriptor. Ids are those on disk: the container's.
func (e *Engine) mountIdle(r *record) (fd int, err error) {
	dirs := overlay.Dirs{Lower: r.Lower, Upper: e.upper(r.ID), Work: e.work(r.ID)}
	options := []string{"redirect_dir=nofollow", "metacopy=off", "index=off", "xino=off"}
	root, err := overlay.MountDirs(dirs, options, unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("mount container: %w", err)
	}
	mounts, err := e.userMounts(r)
	if err != nil {
		return -1, errors.Join(err, unix.Close(root))
	}
	if len(mounts) == 0 {
		return root, nil
	}
	defer unix.Close(root)
	err = overlay.Apart(func() error {
		if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("attach container: %w", err)
		}
		for _, m := range mounts {
			if m.Type == "tmpfs" {
				continue // it is empty without processes
			}
			if err := bindIdle(root, m.Source, m.Destination, m.Options); err != nil {
				return fmt.Errorf("mount %s: %w", m.Destination, err)
			}
		}
		fd, err = unix.OpenTree(root, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}
