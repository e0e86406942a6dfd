package build

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/build/words"
	"naru/sandbox/image"
)

// state is what a stage has come to.
type state struct {
	config  image.Config
	env     vars // for words and RUN: the config's Env with ARGs, later ones over earlier ones
	layers  []digest.Digest
	created time.Time // of the newest layer; zero: of nothing
}

// stageRun is a stage that is being built.
type stageRun struct {
	*build
	*state
	st     *stage
	file   *dockerfile // with words of its own
	count  int         // parts shown so far
	cmdSet bool        // CMD was given in this stage, so ENTRYPOINT leaves it

	trigger bool // the instruction comes from an ONBUILD
	fresh   bool // nothing is taken from the cache
}

// stage builds one stage; those it needs are done.
func (b *build) stage(ctx context.Context, st *stage) error {
	file := *b.file
	file.lex = file.lex.Fork()
	r := &stageRun{build: b, st: st, file: &file, fresh: b.o.fresh(st)}
	var err error
	if r.state, err = r.begin(ctx); err != nil {
		return b.file.at(st.def.Location, err)
	}
	for i, cmd := range st.def.Commands {
		if err := context.Cause(ctx); err != nil {
			return b.file.at(cmd.Location(), err)
		}
		r.trigger = i < st.triggers
		if err := r.do(ctx, cmd); err != nil {
			return b.file.at(cmd.Location(), err)
		}
	}
	*b.done[st] = *r.state
	return nil
}

// begin is FROM.
func (r *stageRun) begin(ctx context.Context) (*state, error) {
	switch {
	case r.st.base != nil:
		s := r.done[r.st.base].clone()
		s.config.Config.OnBuild = nil
		return s, nil
	case r.st.image == "":
		t := r.st.platform
		s := &state{config: image.Config{OS: t.os, Architecture: t.arch, Variant: t.variant}}
		s.config.Config.WorkingDir = "/"
		s.setEnv("PATH", defaultPath)
		if r.st.local == nil {
			return s, nil
		}
		r.state = s
		return s, r.transfer(ctx, transfer{
			name: "FROM", text: r.st.local.name, from: &origin{local: r.st.local},
			params: instructions.SourcesAndDest{SourcePaths: []string{"/"}, DestPath: "/"},
		})
	}
	v := r.out.begin(r.title(r.from()))
	img, err := r.baseImage(ctx, baseKey{r.st.image, r.st.platform}, v)
	v.end(err)
	if err != nil {
		return nil, err
	}
	s := (&state{config: img.Config, layers: img.Layers}).clone()
	s.fillHistory()
	if s.config.Created != nil {
		s.created = *s.config.Created
	}
	s.config.Config.OnBuild = nil
	if dir := s.config.Config.WorkingDir; dir != "" && !path.IsAbs(dir) {
		s.config.Config.WorkingDir = path.Join("/", dir)
	}
	s.env.list = slices.Clone(s.config.Config.Env)
	if _, ok := s.env.Get("PATH"); !ok {
		s.setEnv("PATH", defaultPath)
	}
	return s, nil
}

// from is FROM as it is shown.
func (r *stageRun) from() string {
	if r.st.platform == r.build.platform {
		return "FROM " + r.st.image
	}
	return fmt.Sprintf("FROM --platform=%s %s", r.st.platform, r.st.image)
}

// clone copies all that instructions change.
func (s *state) clone() *state {
	c := *s
	c.env.list = slices.Clone(s.env.list)
	c.layers = slices.Clone(s.layers)
	c.config.History = slices.Clone(s.config.History)
	rc := &c.config.Config
	rc.Env = slices.Clone(rc.Env)
	rc.Labels, rc.Volumes, rc.ExposedPorts = maps.Clone(rc.Labels), maps.Clone(rc.Volumes), maps.Clone(rc.ExposedPorts)
	return &c
}

// fillHistory gives every layer of a base image an entry: readers of images
// count them, and images made by import have none.
func (s *state) fillHistory() {
	missing := len(s.layers)
	for _, h := range s.config.History {
		if !h.EmptyLayer {
			missing--
		}
	}
	if missing < 0 { // nobody can tell which entry belongs to which layer
		s.config.History, missing = nil, len(s.layers)
	}
	filler := slices.Repeat([]ocispec.History{{Created: s.config.Created, Comment: "layer of the base image"}}, missing)
	s.config.History = append(filler, s.config.History...)
}

// setEnv sets a variable in the image.
func (s *state) setEnv(name, value string) {
	s.config.Config.Env = setEnv(s.config.Config.Env, name, value)
	s.env.set(name, value)
}

// title is how a part is shown: "[build 2/4] RUN make".
func (r *stageRun) title(text string) string {
	r.count++
	if r.trigger {
		text = "ONBUILD " + text
	}
	name := r.st.name
	if r.several {
		name = strings.TrimSpace(r.st.platform.String() + " " + name)
	}
	if name != "" {
		name += " "
	}
	total := strconv.Itoa(r.st.total)
	return fmt.Sprintf("[%s%*d/%s] %s", name, len(total), r.count, total, text)
}

// history notes an instruction. Values of ARGs are not in it: BuildKit puts
// them all into the history of every RUN, for everybody to read.
func (r *stageRun) history(text string, layer bool) {
	r.config.History = append(r.config.History, ocispec.History{
		CreatedBy: text, Comment: "naru.dockerfile", EmptyLayer: !layer, Created: r.stamp(r.state),
	})
}

// do carries out one instruction.
func (r *stageRun) do(ctx context.Context, cmd instructions.Command) error {
	if err := r.expand(cmd); err != nil {
		return err
	}
	switch c := cmd.(type) {
	case *instructions.RunCommand:
		return r.runCommand(ctx, c)
	case *instructions.CopyCommand:
		return r.copy(ctx, c)
	case *instructions.AddCommand:
		return r.add(ctx, c)
	case *instructions.WorkdirCommand:
		return r.workdir(ctx, c)
	case *instructions.ArgCommand:
		return r.arg(c)
	}
	return r.configure(cmd)
}

// expand puts the values of variables into an instruction's words. ARG looks at
// its own only when it needs them.
func (r *stageRun) expand(cmd instructions.Command) error {
	word := func(lex *words.Lex) instructions.SingleWordExpander {
		return func(w string) (string, error) {
			value, _, err := lex.ProcessWord(w, r.env)
			return value, err
		}
	}
	if _, isArg := cmd.(*instructions.ArgCommand); isArg {
		return nil
	}
	if c, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		if err := c.Expand(word(r.file.lex)); err != nil {
			return err
		}
	}
	c, ok := cmd.(instructions.SupportsSingleWordExpansionRaw)
	if !ok {
		return nil
	}
	return c.ExpandRaw(word(r.file.lex.Raw()))
}
