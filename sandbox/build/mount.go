package build

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"
)

// StepMount is one --mount of a RUN, for the Executor. What it shows is a stack of
// layers, a directory, a tmpfs, a file in memory or a socket; exactly one is set.
// Nothing in it is a path that could be made to lead elsewhere: the Executor
// resolves Stack.Path below the stack's own root, and takes Dir by descriptor.
type StepMount struct {
	// Target is absolute and clean. It exists in the layers, of the right kind,
	// unless it lies in another mount.
	Target   string
	ReadOnly bool

	Stack  *StepStack
	Dir    *os.File // ids in it are the container's
	Tmpfs  *StepTmpfs
	File   *StepFile
	Socket *StepSocket

	dir bool // what it shows is a directory
}

// StepStack is what is at Path in layers, bottom first. With Upper, changes go there.
type StepStack struct {
	Lower       []string
	Upper, Work string
	Path        string // absolute
}

// StepTmpfs is an empty file system in memory. Size is in bytes; 0: the kernel's default.
type StepTmpfs struct{ Size int64 }

// StepFile is a file that lies in memory only, as long as its step runs.
type StepFile struct {
	Data     []byte
	Mode     uint32
	UID, GID int // in the step
}

// StepSocket is a unix socket that the builder serves as long as its step runs.
type StepSocket struct {
	Serve    func(net.Conn) // on a goroutine of its own; it closes the connection
	Mode     uint32
	UID, GID int // in the step
}

// runMount is a --mount with all that is known before its step runs.
type runMount struct {
	*instructions.Mount
	text   string // for messages: --mount=type=bind,target=/x
	target string
	layers []digest.Digest // from=
	stage  bool            // they are a stage's
	have   bool            // the caller gave the secret or agent
	src    *source         // of files of a context, this build's or a named one
	tree   *contextTree    // bind of such
}

// errorf names the mount.
func (m *runMount) errorf(format string, args ...any) error {
	return fmt.Errorf("RUN "+m.text+": "+format, args...)
}

// mounts looks at every --mount of a RUN and adds to its key what the step can see
// of it: the content of binds, the name of a cache and what it began with, the id of
// a secret or agent and whether there is one; never a value.
func (r *stageRun) mounts(ctx context.Context, c *instructions.RunCommand, k *keyHash) ([]*runMount, error) {
	var list []*runMount
	agents := 0
	for i, im := range instructions.GetMounts(c) {
		m := &runMount{Mount: im, text: "--mount=type=" + string(im.Type)}
		if err := r.place(m, agents); err != nil {
			return nil, err
		}
		if m.Type == instructions.MountTypeSSH {
			agents++
		}
		if err := m.check(); err != nil {
			return nil, err
		}
		if o, ok := r.st.from[use{c, i}]; ok {
			if err := r.begins(ctx, m, o); err != nil {
				return nil, m.errorf("from=%s: %w", m.From, err)
			}
		}
		k.field("mount", string(m.Type), m.target, strconv.FormatBool(m.ReadOnly), m.ids())
		if err := r.mountKey(ctx, m, k); err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	// What lies in another mount is attached after it.
	slices.SortStableFunc(list, func(a, b *runMount) int { return depth(a.target) - depth(b.target) })
	return list, nil
}

func depth(p string) int { return strings.Count(p, "/") }

// place finds where the mount goes. agents are the ssh mounts before it.
func (r *stageRun) place(m *runMount, agents int) error {
	target := m.Target
	switch {
	case target != "":
	case m.Type == instructions.MountTypeSecret && m.Env == nil:
		target = "/run/secrets/" + path.Base(m.secretID())
	case m.Type == instructions.MountTypeSecret:
		m.text += ",env=" + *m.Env
		return nil
	case m.Type == instructions.MountTypeSSH:
		target = fmt.Sprintf("/run/buildkit/ssh_agent.%d", agents)
	}
	if !path.IsAbs(target) {
		target = path.Join("/", r.config.Config.WorkingDir, target)
	}
	m.target = path.Clean(target)
	m.text += ",target=" + m.target
	if m.target == "/" {
		return m.errorf("target / is the whole file system")
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if m.target == dir || dir != "/dev" && strings.HasPrefix(m.target, dir+"/") {
			return m.errorf("target: not in %s, which is the kernel's", dir)
		}
	}
	return nil
}

// check refuses options that mean nothing for the type. BuildKit ignores them.
func (m *runMount) check() error {
	only := func(set bool, option string, types ...instructions.MountType) error {
		if set && !slices.Contains(types, m.Type) {
			return m.errorf("%s has no meaning for this type", option)
		}
		return nil
	}
	const bind, cache, secret, ssh = instructions.MountTypeBind, instructions.MountTypeCache, instructions.MountTypeSecret, instructions.MountTypeSSH
	err := errors.Join(
		only(m.From != "", "from", bind, cache),
		only(m.Source != "", "source", bind, cache, secret),
		only(m.CacheID != "", "id", cache, secret, ssh),
		only(m.Env != nil, "env", secret),
	)
	if err != nil {
		return err
	}
	if m.Type == cache && m.Source != "" && m.From == "" {
		return m.errorf("source=%s: a cache begins empty without from", m.Source)
	}
	if m.Env != nil && (*m.Env == "" || strings.ContainsAny(*m.Env, "=\x00")) {
		return m.errorf("env=%q is no name of a variable", *m.Env)
	}
	for _, id := range []*uint64{m.UID, m.GID} {
		if id != nil && *id > maxID {
			return m.errorf("uid or gid %d is outside 0..%d", *id, maxID)
		}
	}
	if m.Mode != nil && *m.Mode > 0o7777 {
		return m.errorf("mode=%o is outside 0..7777", *m.Mode)
	}
	if m.SizeLimit < 0 {
		return m.errorf("size=%d is negative", m.SizeLimit)
	}
	return nil
}

// ids are mode, uid and gid as they were given.
func (m *runMount) ids() string {
	var parts []string
	for _, n := range []*uint64{m.Mode, m.UID, m.GID} {
		if n == nil {
			parts = append(parts, "-")
			continue
		}
		parts = append(parts, strconv.FormatUint(*n, 10))
	}
	return strings.Join(parts, ",")
}

// owned returns the mode and the owner of a file that the mount makes.
func (m *runMount) owned(mode uint32) (_ uint32, uid, gid int) {
	if m.Mode != nil {
		mode = uint32(*m.Mode)
	}
	if m.UID != nil {
		uid = int(*m.UID)
	}
	if m.GID != nil {
		gid = int(*m.GID)
	}
	return mode, uid, gid
}

func (r *stageRun) mountKey(ctx context.Context, m *runMount, k *keyHash) error {
	switch m.Type {
	case instructions.MountTypeBind:
		return r.bindKey(ctx, m, k)
	case instructions.MountTypeCache:
		if m.src != nil {
			if err := r.contextKey(ctx, m, k); err != nil {
				return err
			}
		}
		k.field("cache", r.cacheKey(m))
	case instructions.MountTypeTmpfs:
		k.field("tmpfs", strconv.FormatInt(m.SizeLimit, 10))
	case instructions.MountTypeSecret:
		return r.secretKey(m, k)
	case instructions.MountTypeSSH:
		return r.sshKey(m, k)
	default:
		return m.errorf("internal error: unknown type")
	}
	return nil
}

// openMounts are the mounts of a step that is about to run.
type openMounts struct {
	list    []StepMount
	secrets []string // KEY=value
	env     []string // KEY=value that is no secret
	close   []func() error
	caches  map[string]*cacheDir // by path
}

func (o *openMounts) add(m StepMount) { o.list = append(o.list, m) }

// Close gives up what the step has used.
func (o *openMounts) Close() error {
	var errs []error
	for _, f := range slices.Backward(o.close) {
		errs = append(errs, f())
	}
	o.close = nil
	return errors.Join(errs...)
}

// open makes what the mounts show. It waits for locked caches.
func (r *stageRun) openMounts(ctx context.Context, list []*runMount, v *vertex) (_ *openMounts, err error) {
	o := &openMounts{caches: map[string]*cacheDir{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Close())
		}
	}()
	if err := r.openCaches(ctx, list, o, v); err != nil {
		return nil, err
	}
	for _, m := range list {
		var err error
		switch m.Type {
		case instructions.MountTypeBind:
			err = r.openBind(ctx, m, o)
		case instructions.MountTypeCache:
			o.add(StepMount{Target: m.target, ReadOnly: m.ReadOnly, Dir: o.caches[r.cacheKey(m)].data, dir: true})
		case instructions.MountTypeTmpfs:
			o.add(StepMount{Target: m.target, ReadOnly: m.ReadOnly, Tmpfs: &StepTmpfs{Size: m.SizeLimit}, dir: true})
		case instructions.MountTypeSecret:
			r.openSecret(m, o)
		case instructions.MountTypeSSH:
			err = r.openAgent(m, o)
		}
		if err != nil {
			return nil, m.errorf("%w", err)
		}
	}
	return o, nil
}
