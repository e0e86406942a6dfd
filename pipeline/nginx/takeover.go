package nginx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// orphans are workers that accept although their master is gone: they hold our
// status socket.
func (r *Router) orphans() []process {
	serving, _, err := r.workers()
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(serving, func(w process) bool { return !r.listens(w.pid) })
}

// takeOver starts a master on the very sockets that the orphans listen on, then
// lets the orphans finish. Nobody is refused in between: to the kernel the sockets
// never close. It is nginx's own way of upgrading itself (the variable NGINX names
// inherited descriptors), with a worker in the old master's place.
func (r *Router) takeOver(ctx context.Context, orphans []process) error {
	r.hold()
	defer r.release()
	r.waitQuiet(ctx)
	files, err := r.copyListeners(orphans[0])
	defer func() {
		for _, f := range files {
			_ = f.Close() // the child has its own
		}
	}()
	if err != nil {
		return err
	}
	var variable strings.Builder
	for i := range files {
		fmt.Fprintf(&variable, "%d;", 3+i)
	}
	out, err := os.Create(filepath.Join(r.dir, "stage", "start.log"))
	if err != nil {
		return fmt.Errorf("start nginx: %w", err)
	}
	defer out.Close()
	cmd := r.command(context.WithoutCancel(ctx), r.errorLog(), "-c", r.conf)
	cmd.Env = append(cmd.Env, "NGINX="+variable.String())
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = out, out
	// With inherited sockets nginx stays in the foreground: the session is ours to make.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start nginx: %w", err)
	}
	ended := running(cmd)
	if err := r.awaitMaster(ctx, orphans); err != nil {
		select {
		case <-ended:
			said, _ := os.ReadFile(out.Name()) // better without than not at all
			err = fmt.Errorf("%w: %s", err, worst(string(said)))
		default:
			err = errors.Join(err, cmd.Process.Kill())
		}
		return err
	}
	return r.quit(ctx, orphans)
}

// copyListeners copies every listening socket of the worker.
func (r *Router) copyListeners(w process) ([]*os.File, error) {
	h, err := openProcess(w.pid)
	if err != nil {
		return nil, err
	}
	defer h.close()
	table, err := tcpTable()
	if err != nil {
		return nil, err
	}
	want := make(map[uint64]bool)
	for _, c := range table {
		if c.state == tcpListen {
			want[c.inode] = true
		}
	}
	for _, path := range []string{r.house.Status, r.house.Verify} {
		if inode, ok := unixListener(path); ok {
			want[inode] = true
		}
	}
	var files []*os.File
	for inode, fd := range sockets(w.pid) {
		if !want[inode] {
			continue
		}
		f, err := h.getfd(fd)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// quit lets workers finish what they have and returns when none accepts any more.
func (r *Router) quit(ctx context.Context, workers []process) error {
	for _, w := range workers {
		h, err := openProcess(w.pid)
		if err != nil || h.process != w {
			continue // gone
		}
		err = h.signal(syscall.SIGQUIT)
		h.close()
		if err != nil && w.alive() {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, reloadLimit)
	defer cancel()
	for !allStopped(workers) {
		if err := sleep(ctx, tick); err != nil {
			return fmt.Errorf("wait for orphaned workers: %w", err)
		}
	}
	return nil
}
