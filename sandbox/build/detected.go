package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"naru/sandbox/build/detect"
)

// detected is a Dockerfile that was written for a context without one.
type detected struct {
	text   []byte
	ignore *ignore // nil: the context has its own
}

// detect writes a Dockerfile, if that is allowed and the context has none. What
// it says and why is in the build's log, for people to read and to save.
func (b *session) detect() error {
	if !b.undescribed() {
		return nil
	}
	v := b.out.begin("[internal] no Dockerfile: find out how to build this")
	plan, err := b.detectPlan()
	if err == nil {
		_, _ = fmt.Fprintf(v, "%s\nThis Dockerfile is used; save it to change it (naru build --print-dockerfile):\n\n%s", describePlan(plan), plan.Dockerfile)
	}
	v.end(err)
	return err
}

func (b *session) detectPlan() (*detect.Plan, error) {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", b.tree.fd))
	if err != nil {
		return nil, fmt.Errorf("open build context: %w", err)
	}
	defer root.Close() // read only: nothing can be lost
	plan, err := detect.Detect(root.FS())
	if err != nil {
		return nil, fmt.Errorf("build %s without a Dockerfile: %w", b.o.Context, err)
	}
	own, err := readIgnore(b.tree, ".dockerignore")
	if err == nil && own == nil {
		own, err = parseIgnore("naru's own .dockerignore", []byte(plan.Ignore))
	}
	b.detected = &detected{text: []byte(plan.Dockerfile), ignore: own}
	return plan, err
}

// describePlan is what was seen, a line each.
func describePlan(p *detect.Plan) string {
	return fmt.Sprintf("%s: %s", p.Kind, strings.Join(p.Reasons, "\n  "))
}

// undescribed tells whether a Dockerfile has to be written.
func (b *session) undescribed() bool {
	return b.o.Detect && b.o.Dockerfile == "" && b.o.Text == nil && !b.hasDockerfile()
}

// hasDockerfile tells whether the context has a file of that name, whatever it is.
func (b *session) hasDockerfile() bool {
	for _, name := range []string{defaultDockerfile, strings.ToLower(defaultDockerfile)} {
		if _, err := b.tree.lstat(name); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// parseIgnore reads the text of a .dockerignore.
func parseIgnore(name string, data []byte) (*ignore, error) {
	patterns, err := ignorefile.ReadAll(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return &ignore{file: name, data: data, matcher: m}, nil
}

// Dockerfile returns the Dockerfile that a build with these options reads, and
// how it came to be if it was written for the context.
func (b *Builder) Dockerfile(ctx context.Context, o Options) (text []byte, plan *detect.Plan, err error) {
	s := &session{Builder: b, o: o, out: newReporter(Options{}), takenArgs: &nameSet{}}
	if err := s.open(ctx); err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if s.undescribed() {
		plan, err := s.detectPlan()
		if err != nil {
			return nil, nil, err
		}
		return []byte(plan.Dockerfile), plan, nil
	}
	if text, _, err = s.readDockerfile(); err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", s.name(), err)
	}
	return text, nil, nil
}
