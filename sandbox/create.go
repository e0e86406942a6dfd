package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
	"naru/sandbox/image"
	"naru/sandbox/runtime"
	"naru/sandbox/volume"
)

// pending is a container that was created here and waits for Start. Holding
// its lock tells every other process that its creator lives.
type pending struct {
	rt   *runtime.Container
	lock *lock
	live bool // its output is copied by this process as long as rt is open
}

// cleanupTime bounds what is undone after an error or a cancelled context.
const cleanupTime = 30 * time.Second

// afterwards returns a context for cleaning up: ctx may have ended already.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
}

// Create makes a container up to the point where only Start is missing:
// nothing of its image has run. If this process ends before Start, the
// container ends with it. The error is image.ErrNotFound where the image is
// missing, and ErrNameTaken where the name is not free.
func (e *Engine) Create(ctx context.Context, c ContainerConfig, stdio Stdio) (Container, error) {
	r, p, err := e.create(ctx, c, stdio)
	if err != nil {
		return Container{}, err
	}
	if err := e.syncIntent(r); err != nil {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		return Container{}, errors.Join(fmt.Errorf("create container: %w", err), p.rt.Close(), e.destroy(cleanup, r, p.lock))
	}
	e.mu.Lock()
	e.pending[r.ID] = p
	e.mu.Unlock()
	return e.view(r)
}

// Define makes a container without a process: Start, from any process and after
// any boot, lets it run. The errors are those of Create.
func (e *Engine) Define(ctx context.Context, c ContainerConfig) (Container, error) {
	r, err := e.define(ctx, c)
	if err != nil {
		return Container{}, fmt.Errorf("create container: %w", err)
	}
	return e.view(r)
}

func (e *Engine) define(ctx context.Context, c ContainerConfig) (*record, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	if err := e.dropStaleClaim(ctx, c.Name); err != nil {
		return nil, err
	}
	b, err := e.begin(ctx)
	if err != nil {
		return nil, err
	}
	r, err := e.plan(b.id, c)
	if err != nil {
		return nil, errors.Join(err, e.abandon(ctx, b))
	}
	r.Idle = true
	if err := e.intend(ctx, r, b); err != nil {
		return nil, err
	}
	defer b.lock.Unlock()
	cleanup, cancel := afterwards(ctx)
	defer cancel()
	if err := errors.Join(b.monitor.Close(cleanup), e.syncIntent(r)); err != nil {
		return nil, errors.Join(err, e.delete(cleanup, r))
	}
	e.emit(r, "create")
	return r, nil
}

// Run is Create and Start. A container that cannot start is removed again.
//
// The record becomes durable after the start and before Run returns. A power cut
// in between takes the process with it: the container, which nobody was told of,
// was then never there, or it is one that ended with the machine. One that is
// removed at its end never becomes durable.
func (e *Engine) Run(ctx context.Context, c ContainerConfig, stdio Stdio) (Container, error) {
	r, p, err := e.create(ctx, c, stdio)
	if err != nil {
		return Container{}, err
	}
	err = e.goOn(ctx, r.ID, p)
	if err != nil {
		err = fmt.Errorf("start container %s: %w", short(r.ID), err)
	} else if err = e.syncIntent(r); errors.Is(err, fs.ErrNotExist) {
		err = nil // it has ended, and somebody removed it
	}
	if err != nil {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		return Container{}, errors.Join(err, e.Remove(cleanup, r.ID, true))
	}
	return e.view(r)
}

// create is Create without the disk: a kill leaves what was written, synced or
// not, and a power cut leaves nothing in the kernel.
func (e *Engine) create(ctx context.Context, c ContainerConfig, stdio Stdio) (*record, *pending, error) {
	if err := c.complete(); err != nil {
		return nil, nil, fmt.Errorf("create container: %w", err)
	}
	if err := e.dropStaleClaim(ctx, c.Name); err != nil {
		return nil, nil, fmt.Errorf("create container: %w", err)
	}
	b, err := e.begin(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("create container: %w", err)
	}
	r, err := e.plan(b.id, c)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("create container: %w", err), e.abandon(ctx, b))
	}
	if err := e.intend(ctx, r, b); err != nil {
		return nil, nil, fmt.Errorf("create container: %w", err)
	}
	rt, err := e.prepare(ctx, r, stdio, runtime.Overlay{Lower: r.Lower, Upper: e.upper(r.ID), Work: e.work(r.ID), Volatile: r.passing()}, b.monitor)
	if err != nil {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		return nil, nil, errors.Join(fmt.Errorf("create container: %w", err), e.destroy(cleanup, r, b.lock))
	}
	e.emit(r, "create")
	return r, &pending{rt, b.lock, stdio.Stdout != nil || stdio.Stderr != nil}, nil
}

// plan resolves a complete configuration to a record. It changes nothing.
func (e *Engine) plan(id string, c ContainerConfig) (*record, error) {
	img, err := e.images.Get(c.Image)
	if err != nil {
		return nil, err
	}
	lower, err := e.images.Lower(img)
	if err != nil {
		return nil, err
	}
	r := &record{ID: id, Name: c.Name, ImageID: img.ID.String(), Lower: lower, Created: time.Now().UTC(), Boot: e.boot}
	if c.Hostname == "" {
		c.Hostname = short(r.ID)
	}
	if c.Net.PublishAll {
		more, err := exposed(img.Config.Config.ImageConfig, c.Net.Ports)
		if err != nil {
			return nil, err
		}
		c.Net.Ports = append(c.Net.Ports, more...)
	}
	if err := addVolumes(&c, img.Config.Config); err != nil {
		return nil, err
	}
	c.Labels = labels(img.Config.Config, c.Labels)
	sig, err := ParseSignal(firstOf(c.StopSignal, img.Config.Config.StopSignal, "TERM"))
	if err != nil {
		return nil, fmt.Errorf("stop signal: %w", err)
	}
	if r.Process, err = newProcess(c, img.Config.Config, lower); err != nil {
		return nil, err
	}
	r.Config, r.Signal, r.Command = c, int(sig), r.Process.Args
	r.Block, r.Warnings = e.userNamespace(c)
	r.enliven(img.Config.Config)
	return r, nil
}

// labels are the image's under the container's own. An image cannot set those
// that begin with "naru.": whoever manages containers by them would take a
// stranger's for his own.
func labels(img image.RunConfig, own map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, img.Labels)
	maps.DeleteFunc(all, func(key, _ string) bool { return strings.HasPrefix(key, "naru.") })
	maps.Copy(all, own)
	return all
}

// userNamespace decides whether the container gets ids of its own: 0 stands
// for a block that is still to be claimed, -1 for none. What was asked for and
// is not there comes back as a warning, never silently.
func (e *Engine) userNamespace(c ContainerConfig) (block int, warnings []string) {
	switch {
	case c.UserNS == UserNSHost:
		return -1, nil
	case c.Runtime != "":
		return -1, []string{"runtime " + c.Runtime + ": the container runs without a user namespace, unless the runtime makes one of its own"}
	case c.Namespaces.shared() != "":
		// What a namespace's owner may, only processes of its own user namespace may.
		return -1, []string{c.Namespaces.shared() + ": the container runs without a user namespace"}
	case c.Network == NetworkHost || strings.HasPrefix(c.Network, NetworkContainer):
		// Only its owner may enter a network namespace, and mount sysfs for it.
		return -1, []string{"network " + c.Network + ": the container runs without a user namespace"}
	case !e.userNS():
		return -1, []string{"no user namespace: " + runtime.FeatureUserNS + " is missing here, root in the container is root on the host"}
	}
	return 0, nil
}

// birth is a container that has an id and nothing else: a directory under a
// temporary name, locked, and a monitor on its way. The directory says to Recover
// that there may be a monitor.
type birth struct {
	id, tmp string
	lock    *lock
	monitor *runtime.Monitor
}

// begin makes the directory and starts the monitor, which takes as long to come up
// as all that is to be written down before it is needed. The root's lock is
// shared meanwhile, so that Recover never sees a directory without its lock.
func (e *Engine) begin(ctx context.Context) (*birth, error) {
	root, err := e.lockRoot(ctx, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer root.Unlock()
	b := &birth{id: newID()}
	b.tmp = filepath.Join(e.containersDir(), newMark+b.id)
	if err := os.Mkdir(b.tmp, 0o700); err != nil {
		return nil, err
	}
	b.lock, err = tryLock(filepath.Join(b.tmp, lockFile), unix.LOCK_EX)
	if err == nil {
		err = os.Symlink(b.id, filepath.Join(b.tmp, ownerFile))
	}
	if err == nil {
		b.monitor, err = runtime.StartMonitor(e.cgroup(b.id))
	}
	if err != nil {
		return nil, errors.Join(err, e.abandon(ctx, b))
	}
	e.step("begun")
	return b, nil
}

// abandon takes begin back.
func (e *Engine) abandon(ctx context.Context, b *birth) (err error) {
	defer b.lock.Unlock()
	if b.monitor != nil {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		err = b.monitor.Close(cleanup)
	}
	return errors.Join(err, volume.Discard(b.tmp))
}

// intend claims a name and ids and writes down what will be made, before
// anything of the container exists in the kernel. The directory gets its name
// when it is whole. After an error nothing of b is left.
func (e *Engine) intend(ctx context.Context, r *record, b *birth) error {
	err := e.claims(ctx, r)
	if err == nil {
		e.step("claimed")
		err = e.fillDir(ctx, r, b.tmp)
	}
	if err != nil {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		return errors.Join(err, e.releaseClaims(cleanup, r), volume.Discard(e.dir(r.ID)), e.dropAnonymous(r), e.abandon(ctx, b))
	}
	e.step("intended")
	return nil
}

// claims takes a name and a block of ids for a container that has a directory.
func (e *Engine) claims(ctx context.Context, r *record) error {
	root, err := e.lockRoot(ctx, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer root.Unlock()
	if !r.Step {
		if r.Name, err = e.claimName(r.Name, r.ID); err != nil {
			return err
		}
		r.Config.Name = r.Name
	}
	if r.Block >= 0 {
		r.Block, err = e.claimBlock(r.ID)
	}
	return err
}

// fillDir writes the container's files and gives the directory its name.
func (e *Engine) fillDir(ctx context.Context, r *record, tmp string) error {
	if err := e.makeVolumes(ctx, r); err != nil {
		return err
	}
	for _, d := range []string{"upper", "work"} {
		// The upper directory becomes the container's "/": anyone may enter.
		if err := os.Mkdir(filepath.Join(tmp, d), 0o755); err != nil {
			return err
		}
	}
	if err := e.writeEtc(r, tmp); err != nil {
		return err
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, configFile), data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, e.dir(r.ID))
}

// syncIntent makes the record and its claims survive a power cut. The claims
// come first: a record without its claim could share its ids with another. One that
// is removed at its end need not survive.
func (e *Engine) syncIntent(r *record) error {
	if r.passing() {
		return nil
	}
	var err error
	for _, dir := range []string{e.namesDir(), e.idsDir()} {
		err = errors.Join(err, atomicfile.SyncDir(dir))
	}
	f, openErr := os.OpenFile(filepath.Join(e.dir(r.ID), configFile), os.O_WRONLY, 0)
	if err = errors.Join(err, openErr); err != nil {
		return err
	}
	err = errors.Join(f.Sync(), f.Close())
	for _, dir := range []string{e.dir(r.ID), e.containersDir()} {
		err = errors.Join(err, atomicfile.SyncDir(dir))
	}
	return err
}

// prepare lets the runtime make the container and plugs in its network. m may be
// nil; it is the runtime's from here on.
func (e *Engine) prepare(ctx context.Context, r *record, stdio Stdio, root runtime.Overlay, m *runtime.Monitor) (*runtime.Container, error) {
	spec, err := e.spec(r)
	if err == nil {
		var joined *namespaceFiles
		joined, err = e.joinNamespaces(r, spec)
		defer joined.close()
		if err == nil {
			var done func()
			if done, err = e.joinNetwork(ctx, r, spec); err == nil {
				defer done()
			}
		}
	}
	if err != nil && m != nil {
		err = errors.Join(err, m.Close(context.WithoutCancel(ctx)))
	}
	if err != nil {
		return nil, err
	}
	config := runtime.Config{
		ID: r.ID, Spec: spec, Root: root, Foreign: r.foreign(), StateDir: e.stateDir(r.ID), Dir: e.dir(r.ID), Cgroup: e.cgroup(r.ID),
		Stdin: stdio.Stdin, Stdout: stdio.Stdout, Stderr: stdio.Stderr, Monitor: m, Passing: r.passing(),
		Plug: func(ctx context.Context, pid int) error {
			e.step("cloned")
			if err := e.attach(ctx, r, pid); err != nil {
				return err
			}
			e.step("attached")
			return nil
		},
	}
	if r.Step {
		// What its monitor keeps is of no use after this process: no disk is waited for.
		config.Dir = e.stepDir(r.ID)
		if err := os.Mkdir(config.Dir, 0o700); err != nil {
			if m != nil {
				err = errors.Join(err, m.Close(context.WithoutCancel(ctx)))
			}
			return nil, err
		}
	}
	r.mounts.config(&config)
	if err := e.liveConfig(r, &config); err != nil {
		if m != nil {
			err = errors.Join(err, m.Close(context.WithoutCancel(ctx)))
		}
		return nil, err
	}
	rt, err := runtime.Create(ctx, config)
	if err == nil {
		e.step("created")
	}
	return rt, err
}

// dropStaleClaim frees a name whose owner a crash took away.
func (e *Engine) dropStaleClaim(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	owner, err := os.Readlink(filepath.Join(e.namesDir(), name))
	if errors.Is(err, fs.ErrNotExist) || (err == nil && e.exists(owner)) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.sweepClaims(ctx)
}

// exists reports whether a container, ready or being made, has the id.
func (e *Engine) exists(id string) bool {
	for _, dir := range []string{e.dir(id), filepath.Join(e.containersDir(), newMark+id)} {
		if _, err := os.Lstat(dir); err == nil {
			return true
		}
	}
	return false
}

func (e *Engine) upper(id string) string { return filepath.Join(e.dir(id), "upper") }
func (e *Engine) work(id string) string  { return filepath.Join(e.dir(id), "work") }
