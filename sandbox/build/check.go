package build

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"naru/sandbox/build/lint"
	"naru/sandbox/image"
)

// Warning is something in a Dockerfile that is legal and probably not meant.
type Warning struct {
	Rule        string `json:"ruleName"` // BuildKit's name of it
	Description string `json:"description"`
	URL         string `json:"url,omitempty"`
	Text        string `json:"detail"`
	File        string `json:"file"`
	Line        int    `json:"line"` // 0: of no line
	Excerpt     string `json:"-"`    // as in SourceError
}

// String is one line.
func (w Warning) String() string {
	if w.Line == 0 {
		return w.Rule + ": " + w.Text
	}
	return fmt.Sprintf("%s: %s (line %d)", w.Rule, w.Text, w.Line)
}

// Check reads a Dockerfile and returns what BuildKit's rules find in it,
// without building and without asking any registry: in all stages, or in those that
// Options.Target needs. An
// error in it is a *SourceError beside what was found before it.
func (b *Builder) Check(ctx context.Context, o Options) (found []Warning, err error) {
	s := &session{Builder: b, o: o, out: newReporter(Options{}), bases: &bases{}, takenArgs: &nameSet{}, offline: true}
	if err := s.open(ctx); err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	defer func() { err = errors.Join(err, s.close()) }()
	r := &build{session: s, platform: native()}
	if err := r.detect(); err != nil {
		return nil, err
	}
	if err := r.load(); err != nil {
		return nil, err
	}
	found, _, err = r.findings(o.Target == "")
	if err == nil {
		_, err = r.plan(ctx)
	}
	return found, err
}

// lint warns of what the stages of the target hold. It is an error only if the
// Dockerfile or BUILDKIT_DOCKERFILE_CHECK asks for one; nothing has run by then.
func (b *build) lint() error {
	found, failed, err := b.findings(false)
	if _, placed := errors.AsType[*SourceError](err); err != nil && !placed {
		return err // the others come again, when the build gets there
	}
	for _, w := range found {
		b.out.warn(w.String())
	}
	if failed != nil {
		return fmt.Errorf("%s: %w", b.name(), failed)
	}
	return nil
}

const checkArg = "BUILDKIT_DOCKERFILE_CHECK"

func (b *build) findings(all bool) (list []Warning, failed, err error) {
	o := lint.Options{Target: b.o.Target, All: all, Args: b.o.Args, Platform: b.platformArgs(), Base: b.lintBase, Valid: validImage}
	if value, ok := b.buildArg(checkArg); ok {
		o.Config = &value
	}
	if b.file.ignore != nil {
		o.Ignored = b.file.ignore.matcher
	}
	found, failed, err := lint.Check(b.file.text, o)
	for _, f := range found {
		list = append(list, Warning{
			f.Rule, f.Description, f.URL, f.Text, b.file.name, lineOf(f.Lines), b.file.excerpt(f.Lines, f.Text),
		})
	}
	var at *parser.LocationError
	if errors.As(err, &at) && len(at.Locations) > 0 {
		err = b.file.at(at.Locations[0], at.Unwrap())
	} else if err != nil {
		err = fmt.Errorf("%s: %w", b.name(), err)
	}
	return list, failed, err
}

// lintBase describes a base image if that costs nothing: one that has to be
// pulled is not looked at.
func (b *build) lintBase(ref string) (lint.Base, bool) {
	c, ok := b.bases.known(ref)
	if !ok {
		img, err := b.store.Get(ref)
		if err != nil {
			return lint.Base{}, false
		}
		c = img.Config
	}
	base := lint.Base{Env: c.Config.Env, Shell: c.Config.Shell, OnBuild: c.Config.OnBuild}
	if c.OS != "" && c.Architecture != "" {
		base.Platform = c.OS + "/" + c.Architecture
	}
	return base, true
}

// validImage tells whether FROM can name an image so.
func validImage(ref string) error {
	_, err := image.FullName(ref)
	return err
}
