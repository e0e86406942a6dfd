package build

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// stage is a FROM and what follows it, with all names resolved.
type stage struct {
	index int
	name  string // "" when it is the only one
	def   *instructions.Stage
	base  *stage // FROM an earlier stage
	image string // FROM an image
	local *local // FROM a directory; none of the three: from scratch
	from  map[use]origin
	total int // parts that are counted in the progress

	platform target
	triggers int  // how many of the commands come from ONBUILD
	loaded   bool // what it is FROM is known, and its triggers are in
}

// use is where a stage takes files from somewhere else than the context: a
// COPY --from, or a mount of a RUN, by its number.
type use struct {
	cmd   instructions.Command
	mount int // 0 for COPY
}

// flag is how a use is written.
func (u use) flag() string {
	if _, ok := u.cmd.(*instructions.RunCommand); ok {
		return "RUN --mount from"
	}
	return "COPY --from"
}

// origin is what a use means: a stage, an image, or a directory. An image is
// that of a platform.
type origin struct {
	stage    *stage
	image    string
	platform target
	local    *local
}

// plan is what has to be done, in order.
type plan struct {
	stages []*stage // those that the target needs
	target *stage
}

// scratch is the FROM of an image without anything below.
const scratch = "scratch"

// plan resolves the names of stages and keeps what the target needs. Base images
// can add commands to the stages FROM them, and so further stages.
func (b *build) plan(ctx context.Context) (*plan, error) {
	var all []*stage
	for i := range b.file.stages {
		st, err := b.newStage(i, all)
		if err != nil {
			return nil, b.file.at(b.file.stages[i].Location, err)
		}
		all = append(all, st)
	}
	for _, st := range all {
		if err := b.resolveFrom(st, all); err != nil {
			return nil, err
		}
	}
	target, err := b.findTarget(all)
	if err != nil {
		return nil, err
	}
	var need map[*stage]bool
	for {
		need = map[*stage]bool{}
		reach(target, need)
		more, err := b.loadBases(ctx, all, need)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	p := &plan{target: target}
	for _, st := range all {
		if !need[st] {
			continue
		}
		if err := b.check(st); err != nil {
			return nil, err
		}
		p.stages = append(p.stages, st)
	}
	return p, nil
}

func (b *build) newStage(i int, earlier []*stage) (*stage, error) {
	def := &b.file.stages[i]
	st := &stage{index: i, name: def.Name, def: def, from: map[use]origin{}, platform: b.platform}
	if st.name == "" && len(b.file.stages) > 1 {
		st.name = fmt.Sprintf("stage-%d", i)
	}
	base, _, err := b.file.lex.ProcessWord(def.BaseName, b.globals)
	if err != nil {
		return nil, err
	}
	if base == "" {
		return nil, fmt.Errorf("base name (%s) should not be blank", def.BaseName)
	}
	if err := b.readPlatform(st); err != nil {
		return nil, err
	}
	o, shadowed := b.namedContext(def.Name)
	switch {
	case shadowed: // the whole stage is somewhere else
		def.Commands = nil
	default:
		if st.base = byName(earlier, base); st.base != nil {
			st.platform = st.base.platform
		} else if o, shadowed = b.namedContext(base); !shadowed && base != scratch {
			o.image = base
		}
	}
	st.image, st.local = o.image, o.local
	if st.image == "" && st.base == nil {
		st.platform = b.platform // scratch is for whatever is built
	}
	st.countParts()
	return st, nil
}

// countParts counts what the progress shows of a stage.
func (st *stage) countParts() {
	st.total = 0
	if st.image != "" || st.local != nil {
		st.total = 1
	}
	for _, cmd := range st.def.Commands {
		switch cmd.(type) {
		case *instructions.RunCommand, *instructions.CopyCommand, *instructions.AddCommand, *instructions.WorkdirCommand:
			st.total++
		}
	}
}

// readPlatform is FROM --platform.
func (b *build) readPlatform(st *stage) error {
	word := st.def.Platform
	if word == "" {
		return nil
	}
	value, _, err := b.file.lex.ProcessWord(word, b.globals)
	if err != nil {
		return err
	}
	if value == "" {
		return fmt.Errorf("empty platform value from expression %s", word)
	}
	if st.platform, err = parseTarget(value); err != nil {
		return fmt.Errorf("FROM --platform=%s: %w", value, err)
	}
	return nil
}

// byName finds the latest stage of a name. Names know no case.
func byName(list []*stage, name string) *stage {
	for _, st := range slices.Backward(list) {
		if st.def.Name != "" && strings.EqualFold(st.def.Name, name) {
			return st
		}
	}
	return nil
}

// named are the uses of one instruction with the name that each has written.
func named(cmd instructions.Command) map[use]string {
	names := map[use]string{}
	switch c := cmd.(type) {
	case *instructions.CopyCommand:
		if c.From != "" {
			names[use{cmd: c}] = c.From
		}
	case *instructions.RunCommand:
		for i, m := range instructions.GetMounts(c) {
			if m.From != "" {
				names[use{c, i}] = m.From
			}
		}
	}
	return names
}

// resolveFrom finds out what the uses of a stage mean.
func (b *build) resolveFrom(st *stage, all []*stage) error {
	for _, cmd := range st.def.Commands {
		for u, name := range named(cmd) {
			if _, known := st.from[u]; known {
				continue
			}
			o, err := b.origin(name, all)
			if err != nil {
				return b.file.at(cmd.Location(), fmt.Errorf("%s%w", u.flag(), err))
			}
			st.from[u] = o
		}
	}
	return nil
}

// origin finds what a name in --from or from= means. Its errors go on after the flag.
func (b *build) origin(name string, all []*stage) (origin, error) {
	word, _, err := b.file.lex.ProcessWord(name, vars{})
	if err == nil && word != name {
		err = errors.New(" takes no variables: name a stage with FROM and an ARG before the first FROM, and copy from that")
	}
	if err != nil {
		return origin{}, err
	}
	if n, err := strconv.Atoi(name); err == nil {
		if n < 0 || n >= len(all) {
			return origin{}, fmt.Errorf("=%d: there are %d stages", n, len(all))
		}
		return origin{stage: all[n]}, nil
	}
	if st := byName(all, name); st != nil {
		return origin{stage: st}, nil
	}
	if o, ok := b.namedContext(name); ok {
		if o.image == "" && o.local == nil {
			return origin{}, fmt.Errorf("=%s: there is nothing in scratch", name)
		}
		o.platform = b.platform
		return o, nil
	}
	return origin{image: name, platform: b.platform}, nil
}

func (b *build) findTarget(all []*stage) (*stage, error) {
	if b.o.Target == "" {
		return all[len(all)-1], nil
	}
	if st := byName(all, b.o.Target); st != nil {
		return st, nil
	}
	if n, err := strconv.Atoi(b.o.Target); err == nil && n >= 0 && n < len(all) {
		return all[n], nil
	}
	return nil, fmt.Errorf("%s: there is no stage %q%s", b.name(), b.o.Target, b.file.near(b.o.Target))
}

// reach marks what a stage needs, itself too.
func reach(st *stage, need map[*stage]bool) {
	if st == nil || need[st] {
		return
	}
	need[st] = true
	reach(st.base, need)
	for _, o := range st.from {
		reach(o.stage, need)
	}
}

// check refuses what a stage that is going to be built may not say, before
// anything of the build has run.
func (b *build) check(st *stage) error {
	for _, cmd := range st.def.Commands {
		err := refuse(cmd)
		if c, ok := cmd.(*instructions.RunCommand); ok && err == nil {
			err = errors.Join(st.platform.runnable(), b.allowed(c))
		}
		if err != nil {
			return b.file.at(cmd.Location(), err)
		}
		for u, name := range named(cmd) {
			if o := st.from[u]; o.stage != nil && o.stage.index >= st.index {
				return b.file.at(cmd.Location(), fmt.Errorf("%s=%s: that stage must come before this one", u.flag(), name))
			}
		}
	}
	return nil
}
