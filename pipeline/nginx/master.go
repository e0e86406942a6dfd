package nginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var errNoMaster = errors.New("no nginx master of ours is running")

// reloadLimit is the longest a reload may take to be proven; 3,000 apps take
// about one second.
const reloadLimit = 30 * time.Second

// findMaster returns the running master. What the pid file says is only a guess:
// the process must execute the binary, call itself master and, in managed mode,
// hold the socket that listens at our path.
func (r *Router) findMaster() (*handle, error) {
	if b, err := os.ReadFile(r.pid); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 0 {
			if h := r.openMaster(pid); h != nil {
				return h, nil
			}
		}
	}
	if !r.house.Managed {
		return nil, fmt.Errorf("%w (pid file %s)", errNoMaster, r.pid)
	}
	// An agent killed while nginx started, or a pid file removed by hand.
	all, err := pids()
	if err != nil {
		return nil, err
	}
	for _, pid := range all {
		if h := r.openMaster(pid); h != nil {
			return h, nil
		}
	}
	return nil, errNoMaster
}

func (r *Router) openMaster(pid int) *handle {
	if same, _ := runs(pid, r.house.build.path); !same || !strings.HasPrefix(title(pid), masterTitle) {
		return nil
	}
	h, err := openProcess(pid)
	if err != nil {
		return nil // gone meanwhile
	}
	// Again, now that the pid is held fast.
	same, _ := runs(pid, r.house.build.path)
	if same && strings.HasPrefix(title(pid), masterTitle) && (!r.house.Managed || r.listens(pid)) {
		return h
	}
	h.close()
	return nil
}

// listens reports whether pid holds the socket that listens at our status path.
func (r *Router) listens(pid int) bool {
	inode, ok := unixListener(r.house.Status)
	if !ok {
		return false
	}
	_, held := sockets(pid)[inode]
	return held
}

// workers returns the workers that accept and those that are shutting down. In
// managed mode they are known by their working directory, so that also those
// count whose master died.
func (r *Router) workers() (serving, lingering []process, err error) {
	var master *handle
	if !r.house.Managed {
		if master, err = r.findMaster(); err != nil {
			return nil, nil, err
		}
		defer master.close()
	}
	all, err := pids()
	if err != nil {
		return nil, nil, err
	}
	places := workDirs(r.dir) // both: an earlier agent may have seen other permissions
	for _, pid := range all {
		if r.house.Managed {
			dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
			if err != nil || !slices.Contains(places[:], dir) {
				continue
			}
		}
		p, parent, ok := procStat(pid)
		if !ok || master != nil && parent != master.pid {
			continue
		}
		switch t := title(pid); {
		case strings.HasPrefix(t, quittingTitle):
			lingering = append(lingering, p)
		case strings.HasPrefix(t, workerTitle):
			serving = append(serving, p)
		}
	}
	return serving, lingering, nil
}

// allStopped reports whether none of the workers accepts any more.
func allStopped(workers []process) bool {
	for _, w := range workers {
		if w.alive() && !strings.HasPrefix(title(w.pid), quittingTitle) {
			return false
		}
	}
	return true
}

// reload sends SIGHUP and returns when the files are proven: some worker answers
// with their gens, and no worker from before accepts. The first alone would prove
// nothing, since for about 100 ms both generations accept. The turn is held.
func (r *Router) reload(ctx context.Context, files []edit) error {
	m, err := r.findMaster()
	if err != nil {
		return err
	}
	defer m.close()
	before, _, err := r.workers()
	if err != nil {
		return err
	}
	log := r.tailErrors()
	if err := m.signal(syscall.SIGHUP); err != nil {
		return err
	}
	if len(files) == 0 {
		files = r.everything()
	}
	ctx, cancel := context.WithTimeout(ctx, reloadLimit)
	defer cancel()
	for !allStopped(before) || !r.loaded(ctx, files) {
		if why := log.emergency(); why != "" {
			return fmt.Errorf("nginx refuses the reload: %s", why)
		}
		if !m.alive() {
			return errors.New("nginx master died during the reload")
		}
		if err := sleep(ctx, tick); err != nil {
			return fmt.Errorf("reload is not proven: %w", err)
		}
	}
	r.setReloaded(time.Now())
	return nil
}

// errorTail reads what is added to the error log.
type errorTail struct {
	path string
	from int64
}

// tailErrors begins at the present end. The machine's nginx logs elsewhere; there
// nothing is ever found and a refused reload runs into its time limit.
func (r *Router) tailErrors() errorTail {
	t := errorTail{path: r.errorLog()}
	if info, err := os.Stat(t.path); err == nil {
		t.from = info.Size()
	}
	return t
}

func (r *Router) errorLog() string { return filepath.Join(r.house.Work, "log", "error.log") }

func (t errorTail) emergency() string {
	f, err := os.Open(t.path)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, t.from, 64<<10))
	if err != nil || !bytes.Contains(b, []byte("[emerg]")) {
		return ""
	}
	return worst(string(b))
}

// ensureMaster starts the managed nginx with the installed files if it does not
// run. The turn is held.
func (r *Router) ensureMaster(ctx context.Context) error {
	m, err := r.findMaster()
	if err == nil {
		m.close()
		return nil
	}
	if !r.house.Managed || !errors.Is(err, errNoMaster) {
		return err
	}
	if orphans := r.orphans(); len(orphans) > 0 {
		r.opts.Log("nginx master is gone, its workers serve: a new master takes their sockets", "workers", len(orphans))
		err := r.takeOver(ctx, orphans)
		if err == nil {
			return nil
		}
		r.opts.Log("sockets could not be taken over: restarting with a gap", "error", err)
		if err := r.quit(ctx, orphans); err != nil {
			return err
		}
	}
	return r.launch(ctx)
}

// checkPorts says who holds an address before anything else is touched.
func (r *Router) checkPorts() error {
	for _, l := range r.house.Listen {
		if who := portOwner(l); who != "" {
			return fmt.Errorf("cannot listen on %v: %s has it", l, who)
		}
	}
	return nil
}

// launch starts a master on free ports; nginx itself goes into the background.
func (r *Router) launch(ctx context.Context) error {
	if err := r.checkPorts(); err != nil {
		return err
	}
	if err := r.removeSockets(); err != nil {
		return err
	}
	// A file, not a pipe: a daemon that kept a pipe open would keep us waiting.
	out, err := os.Create(filepath.Join(r.dir, "stage", "start.log"))
	if err != nil {
		return fmt.Errorf("start nginx: %w", err)
	}
	defer out.Close()
	// No ctx: a start that is cancelled half-way would leave an unknown state.
	cmd := r.command(context.WithoutCancel(ctx), r.errorLog(), "-c", r.conf)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name()) // better without than not at all
		return fmt.Errorf("start nginx: %w: %s", err, worst(string(said)))
	}
	return r.awaitMaster(ctx, nil)
}

// removeSockets removes what a killed nginx left at the paths of our sockets: it
// refuses to start over them.
func (r *Router) removeSockets() error {
	for _, path := range []string{r.house.Status, r.house.Verify} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a stale socket: %w", err)
		}
	}
	return nil
}

// awaitMaster returns when the new master answers with the main file's gen and has
// all its workers; not counts the processes whose answers prove nothing.
func (r *Router) awaitMaster(ctx context.Context, not []process) error {
	ctx, cancel := context.WithTimeout(ctx, reloadLimit)
	defer cancel()
	for {
		serving, _, err := r.workers()
		if err != nil {
			return err
		}
		m, err := r.findMaster()
		if err == nil {
			m.close()
			if len(serving) >= r.house.Workers+countAlive(not) && r.loadedGen(ctx, mainName) == r.mainNow.gen {
				r.setReloaded(time.Now())
				return nil
			}
		}
		if serr := sleep(ctx, tick); serr != nil {
			return fmt.Errorf("started nginx does not answer: %w", errors.Join(err, serr))
		}
	}
}

func countAlive(list []process) int {
	n := 0
	for _, p := range list {
		if p.alive() {
			n++
		}
	}
	return n
}

// running waits for a master that is our child, so that it does not stay a zombie.
func running(cmd *exec.Cmd) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return ended
}
