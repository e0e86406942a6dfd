package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
)

// answerTime bounds the wait for a monitor that was just started.
const answerTime = 10 * time.Second

// Open adopts a container of this boot from its directories; one that runs
// without monitor gets a new one. One whose end is recorded in dir opens as stopped.
// It returns ErrGone when neither the process nor a record of its end exists.
func Open(stateDir, dir string) (*Container, error) {
	c := &Container{stateDir: stateDir, dir: dir, pidfd: -1}
	err := c.open()
	if err == nil {
		return c, nil
	}
	if _, ok, exitErr := loadExit(dir); exitErr == nil && ok && errors.Is(err, ErrGone) {
		return c, nil
	}
	return nil, fmt.Errorf("open container %s: %w", filepath.Base(stateDir), err)
}

func (c *Container) open() error {
	host, err := cgroup.Detect()
	if err != nil {
		return err
	}
	if c.rec, err = loadRecord(c.stateDir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return ErrGone
		}
		return err
	}
	c.group = host.Open(c.rec.Cgroup)
	pidfd, err := c.rec.Find()
	if err != nil {
		return err
	}
	c.pidfd = pidfd
	lock, err := lockMonitor(c.stateDir)
	if errors.Is(err, errLocked) {
		return nil // its monitor lives
	}
	if err == nil {
		err = c.newMonitor(lock, host)
	}
	if err != nil {
		unix.Close(c.pidfd)
		c.pidfd = -1
	}
	return err
}

// newMonitor gives a running container whose monitor died another one, which
// goes on with the log and will record the exit. It owns lock.
func (c *Container) newMonitor(lock *os.File, host cgroup.Host) error {
	p := &program{}
	defer p.close()
	l := monitor.NewLaunch()
	l.Lock = p.index(lock)
	if ended(c.pidfd) {
		return nil // Wait asks the kernel
	}
	if c.State() == Created {
		return ErrGone // its init saw the gate close and is on its way out
	}
	l.Name, l.Started, l.LogMax, l.LogFiles = "naru:"+c.rec.ID, true, uint64(c.rec.LogMax), uint32(c.rec.LogFiles)
	l.Terminal = c.rec.Terminal
	if err := againCallback(l, p, c.stateDir, host); err != nil {
		return err
	}
	fd, err := unix.FcntlInt(uintptr(c.pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate pidfd: %w", err)
	}
	l.Pidfd = p.index(os.NewFile(uintptr(fd), "pidfd"))
	if err := keepFiles(l, p, c.dir, c.stateDir); err != nil {
		return err
	}
	if err := groupFiles(l, p, c.group); err != nil {
		return err
	}
	if err := watchOOM(l, p, c.group); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(c.stateDir, fileSocket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listen, err := listenSocket(c.stateDir)
	if err != nil {
		return err
	}
	l.Listen = p.index(listen)
	var dir *os.File
	if host.Unified != "" {
		if dir, err = os.Open(host.Open(monitorCgroup(c.rec.Cgroup)).UnifiedDir()); err != nil {
			return err
		}
		defer dir.Close()
	}
	m, err := spawn(monitor.ArgMonitor, dir)
	if err != nil {
		return err
	}
	defer m.close()
	if err := m.launch(monitor.OpAdopt, l, p.files); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	_, err = m.expect(ctx, monitor.ReplyOK)
	return err
}

// Destroy removes the cgroups, socket and state of an ended container. It may
// be repeated, and works without Create having finished. dir keeps log and exit.json.
// While the container runs it returns ErrRunning.
func Destroy(stateDir, dir, cgroupPath string) error {
	rec, err := loadRecord(stateDir)
	if err == nil {
		pidfd, findErr := rec.Find()
		if findErr == nil {
			over := ended(pidfd)
			unix.Close(pidfd)
			if !over {
				return fmt.Errorf("destroy container %s: %w", rec.ID, ErrRunning)
			}
		} else if !errors.Is(findErr, ErrGone) {
			return fmt.Errorf("destroy container %s: %w", rec.ID, findErr)
		}
	}
	if err := destroy(stateDir, cgroupPath); err != nil {
		return fmt.Errorf("destroy container: %w", err)
	}
	return nil
}

// destroy ends what a killed creator may have left in the cgroups.
func destroy(stateDir, path string) error {
	host, err := cgroup.Detect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	group, mon := host.Open(path), host.Open(monitorCgroup(path))
	if err := group.Kill(ctx); err != nil {
		return err
	}
	waitMonitor(ctx, stateDir)
	if err := mon.Kill(ctx); err != nil {
		return err
	}
	deleteForeign(ctx, stateDir)
	return errors.Join(group.Remove(), removeElsewhere(stateDir, group), mon.Remove(), removeState(stateDir))
}

// waitMonitor lets a monitor finish the log and the exit record.
func waitMonitor(ctx context.Context, stateDir string) {
	if _, err := os.Stat(filepath.Join(stateDir, fileState)); err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	began := time.Now()
	for wait := firstLook; ctx.Err() == nil; wait = nextLook(began, wait) {
		lock, err := lockMonitor(stateDir)
		if err == nil {
			lock.Close()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// removeState removes the state directory with the files that we made in it; the
// record goes first, so that a half-removed directory is no container.
func removeState(stateDir string) error {
	if err := removeBundle(stateDir); err != nil {
		return err
	}
	files := []string{fileState, monitor.FileStarted, fileSocket, fileLock, monitor.FileStdin, fileCallback}
	for _, f := range fifos() {
		files = append(files, f)
	}
	for _, name := range files {
		if err := os.Remove(filepath.Join(stateDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return removeLeftovers(stateDir)
}

// removeLeftovers takes temporary files of an interrupted write too.
func removeLeftovers(stateDir string) error {
	tmp, err := filepath.Glob(filepath.Join(stateDir, "."+fileState+".tmp-*"))
	if err != nil {
		return err
	}
	for _, t := range tmp {
		if err := os.Remove(t); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	err = os.Remove(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
