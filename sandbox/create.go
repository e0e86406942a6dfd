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
	"naru/sandbox/network"
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
	r, err := e.plan(c)
	if err != nil {
		return Container{}, fmt.Errorf("create container: %w", err)
	}
	l, err := e.intend(ctx, r)
	if err != nil {
		return Container{}, fmt.Errorf("create container: %w", err)
	}
	// A kill leaves what was written, synced or not, and a power cut leaves
	// nothing in the kernel: so the disk may take its time while the runtime
	// works. Before Create returns all of it is durable.
	durable := make(chan error, 1)
	go func() { durable <- e.syncIntent(r.ID) }()
	rt, err := e.prepare(ctx, r, stdio, runtime.Overlay{Lower: r.Lower, Upper: e.upper(r.ID), Work: e.work(r.ID)})
	if syncErr := <-durable; syncErr != nil {
		err = errors.Join(err, syncErr)
		if rt != nil {
			err = errors.Join(err, rt.Close())
		}
	}
	if err != nil {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		return Container{}, errors.Join(fmt.Errorf("create container: %w", err), e.destroy(cleanup, r, l))
	}
	e.mu.Lock()
	e.pending[r.ID] = &pending{rt, l, stdio.Stdout != nil || stdio.Stderr != nil}
	e.mu.Unlock()
	return e.view(r)
}

// Run is Create and Start. A container that cannot start is removed again.
func (e *Engine) Run(ctx context.Context, c ContainerConfig, stdio Stdio) (Container, error) {
	made, err := e.Create(ctx, c, stdio)
	if err != nil {
		return Container{}, err
	}
	if err := e.Start(ctx, made.ID); err != nil {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		return Container{}, errors.Join(err, e.Remove(cleanup, made.ID, true))
	}
	return e.Get(ctx, made.ID)
}

// plan resolves the configuration to a record. It changes nothing.
func (e *Engine) plan(c ContainerConfig) (*record, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	img, err := e.images.Get(c.Image)
	if err != nil {
		return nil, err
	}
	lower, err := e.images.Lower(img)
	if err != nil {
		return nil, err
	}
	r := &record{ID: newID(), Name: c.Name, ImageID: img.ID.String(), Lower: lower, Created: time.Now().UTC(), Boot: e.boot}
	if c.Hostname == "" {
		c.Hostname = short(r.ID)
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
	case c.Network == NetworkHost:
		// sysfs of the host's network namespace can only be mounted by its owner.
		return -1, []string{"network host: the container runs without a user namespace"}
	case !e.userNS():
		return -1, []string{"no user namespace: " + runtime.FeatureUserNS + " is missing here, root in the container is root on the host"}
	}
	return 0, nil
}

// intend claims a name and ids and writes down what will be made, before
// anything of it exists in the kernel. The directory appears whole or not at
// all. The lock it returns is held.
func (e *Engine) intend(ctx context.Context, r *record) (*lock, error) {
	tmp := filepath.Join(e.containersDir(), newMark+r.ID)
	l, err := e.claims(ctx, r, tmp)
	if err == nil {
		e.step("claimed")
		err = e.fillDir(r, tmp)
	}
	if err != nil {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		err = errors.Join(err, e.discard(r, tmp), e.releaseClaims(cleanup, r))
		l.Unlock()
		return nil, err
	}
	e.step("intended")
	return l, nil
}

// claims makes the new directory, locks it, and claims in its name. The root's
// lock is shared meanwhile, so that Recover never sees a directory without its
// lock or a claim without its directory.
func (e *Engine) claims(ctx context.Context, r *record, tmp string) (*lock, error) {
	if err := e.dropStaleClaim(ctx, r.Name); err != nil {
		return nil, err
	}
	root, err := e.lockRoot(ctx, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer root.Unlock()
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return nil, err
	}
	l, err := tryLock(filepath.Join(tmp, lockFile), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	if !r.Step {
		if r.Name, err = e.claimName(r.Name, r.ID); err != nil {
			return l, err
		}
		r.Config.Name = r.Name
	}
	if r.Block >= 0 {
		r.Block, err = e.claimBlock(r.ID)
	}
	return l, err
}

// fillDir writes the container's files and gives the directory its name.
func (e *Engine) fillDir(r *record, tmp string) error {
	if err := e.makeVolumes(r); err != nil {
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

// syncIntent makes the record and its claims survive a power cut.
func (e *Engine) syncIntent(id string) error {
	f, err := os.OpenFile(filepath.Join(e.dir(id), configFile), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = errors.Join(f.Sync(), f.Close())
	for _, dir := range []string{e.dir(id), e.containersDir(), e.namesDir(), e.idsDir()} {
		err = errors.Join(err, atomicfile.SyncDir(dir))
	}
	return err
}

// prepare lets the runtime make the container and plugs in its network.
func (e *Engine) prepare(ctx context.Context, r *record, stdio Stdio, root runtime.Overlay) (*runtime.Container, error) {
	spec, err := e.spec(r)
	if err != nil {
		return nil, err
	}
	rt, err := runtime.Create(ctx, runtime.Config{
		ID: r.ID, Spec: spec, Root: root, StateDir: e.stateDir(r.ID), Dir: e.dir(r.ID), Cgroup: e.cgroup(r.ID),
		Stdin: stdio.Stdin, Stdout: stdio.Stdout, Stderr: stdio.Stderr,
	})
	if err != nil {
		return nil, err
	}
	e.step("created")
	if err := e.attach(ctx, r, rt.Pid()); err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	e.step("attached")
	return rt, nil
}

func (e *Engine) attach(ctx context.Context, r *record, pid int) error {
	if r.Config.Network == NetworkNone || r.Config.Network == NetworkHost {
		return nil
	}
	at, err := e.networks.Attach(ctx, network.Endpoint{
		Network: r.Config.Network, Container: r.ID, Hostname: r.Name, Pid: pid,
	})
	if err != nil {
		return err
	}
	if err := saveJSON(e.addressFile(r.ID), at); err != nil {
		return err
	}
	if err := writeInPlace(filepath.Join(e.dir(r.ID), "hosts"), hosts(r, at, nil)); err != nil {
		return err
	}
	return e.introduce(r.Config.Network)
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

// discard deletes the container's directory under both of its names.
func (e *Engine) discard(r *record, tmp string) error {
	return errors.Join(volume.Discard(tmp), volume.Discard(e.dir(r.ID)))
}

func (e *Engine) upper(id string) string { return filepath.Join(e.dir(id), "upper") }
func (e *Engine) work(id string) string  { return filepath.Join(e.dir(id), "work") }
