package nginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

const (
	accessLogMax = 64 << 20
	errorLogMax  = 8 << 20
	watchEvery   = 200 * time.Millisecond // a dead master is seen after this
	houseEvery   = 10 * time.Second
	// systemPatience is how long Start waits for the machine's nginx.
	systemPatience = 3 * time.Second
)

// Check refuses what Start would refuse, such as a taken port, and changes
// nothing.
func (r *Router) Check(ctx context.Context) error {
	if err := r.takeTurn(ctx); err != nil {
		return err
	}
	defer r.giveTurn()
	m, err := r.look(ctx)
	if m != nil {
		m.close()
	}
	return err
}

// look finds the running master, nil when there is none, and makes sure that
// one can be started.
func (r *Router) look(ctx context.Context) (*handle, error) {
	m, err := r.findMaster()
	// At boot both start at once: nginx writes its pid a moment before it is ready.
	for until := time.Now().Add(systemPatience); err != nil && !r.house.Managed && time.Now().Before(until); {
		if err := sleep(ctx, 3*tick); err != nil {
			return nil, err
		}
		m, err = r.findMaster()
	}
	switch {
	case err == nil:
	case !errors.Is(err, errNoMaster) || !r.house.Managed:
		return nil, fmt.Errorf("start nginx: %w", err)
	case len(r.orphans()) == 0:
		if err := r.checkPorts(); err != nil {
			return nil, fmt.Errorf("start nginx: %w", err)
		}
	}
	if err := r.checkInclude(); err != nil {
		if m != nil {
			m.close()
		}
		return nil, err
	}
	return m, nil
}

// Start makes nginx run with the installed routes: it adopts a master of ours that
// runs, with every connection it has, or starts one. What an agent that was killed
// had begun is undone. A taken port, a missing binary or a configuration that nginx
// refuses is an error, before anything is changed.
func (r *Router) Start(ctx context.Context) error {
	if err := r.takeTurn(ctx); err != nil {
		return err
	}
	defer r.giveTurn()
	m, err := r.look(ctx)
	if err != nil {
		return err
	}
	if m != nil {
		defer m.close()
	}
	if err := r.makeDirs(); err != nil {
		return err
	}
	if err := r.restore(); err != nil {
		return fmt.Errorf("undo an unfinished route: %w", err)
	}
	if err := r.load(ctx); err != nil {
		return fmt.Errorf("start nginx: %w", err)
	}
	if err := r.converge(ctx, m); err != nil {
		return fmt.Errorf("start nginx: %w", err)
	}
	r.mu.Lock()
	r.started, r.stopped = true, false
	r.dropFlags() // of the killed agent
	r.mu.Unlock()
	r.publish()
	return nil
}

// checkInclude refuses to write over a file that is not ours.
func (r *Router) checkInclude() error {
	text, err := os.ReadFile(r.main)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (len(text) == 0 || bytes.HasPrefix(text, []byte(mark))) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the former configuration: %w", err)
	}
	return fmt.Errorf("%s exists and was not written by naru", r.main)
}

// load reads the installed apps, writes their files as this binary and this nginx
// want them, and sets aside what nginx refuses. The turn is held.
func (r *Router) load(ctx context.Context) error {
	if err := r.test(ctx, nil); err != nil {
		return err
	}
	found, err := r.loadApps()
	if err != nil {
		return err
	}
	good, refused := r.accepted(ctx, map[string]app{}, found)
	for i, why := range refused {
		if err := r.setAside(r.path(found[i].route.App), why); err != nil {
			return err
		}
	}
	r.live = apply(map[string]app{}, good)
	r.size = r.size.cover(routesOf(r.live))
	if r.mainNow, err = r.house.renderMain(r.size); err != nil {
		return err
	}
	return r.install(r.everything())
}

// converge brings the process to what is installed. The turn is held.
func (r *Router) converge(ctx context.Context, m *handle) error {
	last := r.lastProof()
	r.setReloaded(last.Reload)
	if m == nil {
		if err := r.ensureMaster(ctx); err != nil {
			return err
		}
		return r.confirm()
	}
	if _, replaced := runs(m.pid, r.house.build.path); replaced && r.house.Managed {
		r.opts.Log("the nginx binary was replaced: a new master takes the sockets of the old one", "version", r.house.build.version)
		// SIGKILL, since a master that quits would remove the sockets' names.
		if err := m.signal(syscall.SIGKILL); err != nil {
			return err
		}
		if err := m.wait(ctx); err != nil {
			return err
		}
		if err := r.ensureMaster(ctx); err != nil {
			return err
		}
		return r.confirm()
	}
	if r.matches(last) && r.loaded(ctx, r.everything()) {
		r.opts.Log("running nginx is adopted", "pid", m.pid, "apps", len(r.live))
		return nil
	}
	r.hold()
	defer r.release()
	r.waitQuiet(ctx)
	if err := r.reload(ctx, nil); err != nil {
		return err
	}
	return r.confirm()
}

// matches reports whether s proves exactly what is installed.
func (r *Router) matches(s state) bool {
	if s.Main != r.mainNow.gen || len(s.Apps) != len(r.live) {
		return false
	}
	for name, a := range r.live {
		if s.Apps[name] != a.file.gen {
			return false
		}
	}
	return true
}

// Run restarts a managed nginx whose master died, with the last proven
// configuration, and bounds its logs, until ctx ends; nginx itself goes on. In
// system mode the master belongs to the machine: only the names of dead sockets are
// removed, over which nginx would refuse to start.
func (r *Router) Run(ctx context.Context) error {
	wait := time.Duration(0)
	var housed time.Time
	for sleep(ctx, wait) == nil {
		wait = watchEvery
		if time.Since(housed) > houseEvery {
			r.keepHouse()
			housed = time.Now()
		}
		m, err := r.findMaster()
		if err == nil {
			r.watch(ctx, m)
			continue
		}
		if err := r.revive(ctx); err != nil && ctx.Err() == nil {
			r.opts.Log("nginx does not run", "error", err)
			wait = 2 * time.Second
		}
	}
	return nil
}

// watch returns when the master died or the house needs to be kept.
func (r *Router) watch(ctx context.Context, m *handle) {
	defer m.close()
	for until := time.Now().Add(houseEvery); m.alive() && time.Now().Before(until); {
		if sleep(ctx, watchEvery) != nil {
			return
		}
	}
}

func (r *Router) revive(ctx context.Context) error {
	if err := r.takeTurn(ctx); err != nil {
		return err
	}
	defer r.giveTurn()
	r.mu.Lock()
	idle := r.stopped || !r.started
	r.mu.Unlock()
	if idle {
		return nil
	}
	if !r.house.Managed {
		if _, ok := unixListener(r.house.Status); ok {
			return errNoMaster // its workers still listen
		}
		return errors.Join(errNoMaster, r.removeSockets())
	}
	r.opts.Log("nginx master is gone: restarting it")
	return r.ensureMaster(context.WithoutCancel(ctx))
}

// keepHouse renames a log that has grown too large and has nginx reopen it.
func (r *Router) keepHouse() {
	rotated := false
	for path, limit := range map[string]int64{r.AccessLog(): accessLogMax, r.errorLog(): errorLogMax} {
		info, err := os.Stat(path)
		if err != nil || info.Size() <= limit {
			continue
		}
		if err := os.Rename(path, path+".1"); err != nil {
			r.opts.Log("log cannot be renamed", "file", path, "error", err)
			continue
		}
		rotated = true
	}
	if !rotated {
		return
	}
	m, err := r.findMaster()
	if err != nil {
		return // a new one opens new files
	}
	defer m.close()
	if err := m.signal(syscall.SIGUSR1); err != nil {
		r.opts.Log("nginx does not reopen its logs", "error", err)
	}
}

// Shutdown ends the managed nginx: gracefully for at most 5 s, then at once. The
// routes stay on disk. In system mode it does nothing.
func (r *Router) Shutdown(ctx context.Context) error {
	if err := r.takeTurn(ctx); err != nil {
		return err
	}
	defer r.giveTurn()
	if !r.house.Managed {
		return nil
	}
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
	for _, s := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGKILL} {
		if r.stop(ctx, s) {
			break
		}
	}
	serving, lingering, err := r.workers()
	if n := len(serving) + len(lingering); err != nil || n > 0 {
		return errors.Join(fmt.Errorf("stop nginx: %d workers are left", n), err)
	}
	if err := r.removeSockets(); err != nil {
		return err
	}
	if outside := workDirs(r.dir)[1]; r.house.Work == outside {
		return os.RemoveAll(outside)
	}
	return nil
}

// stop signals master and orphans and reports whether all are gone in time.
func (r *Router) stop(ctx context.Context, s syscall.Signal) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if s != syscall.SIGQUIT { // even when the caller's time is up
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
	}
	m, err := r.findMaster()
	if err == nil {
		err = m.signal(s)
		m.close()
	}
	if err != nil || s == syscall.SIGKILL {
		serving, lingering, _ := r.workers() // what is left is counted by Shutdown
		for _, w := range append(serving, lingering...) {
			if h, err := openProcess(w.pid); err == nil {
				_ = h.signal(s) // gone is as good
				h.close()
			}
		}
	}
	for {
		serving, lingering, err := r.workers()
		if err == nil && len(serving)+len(lingering) == 0 {
			if _, err := r.findMaster(); err != nil {
				return true
			}
		}
		if sleep(ctx, tick) != nil {
			return false
		}
	}
}
