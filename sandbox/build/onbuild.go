package build

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"golang.org/x/sync/errgroup"
)

// loadBases finds out what the stages that are needed are FROM, and puts the
// triggers of that before their own commands. more: a trigger takes from other
// stages, which may now be needed too.
func (b *build) loadBases(ctx context.Context, all []*stage, need map[*stage]bool) (more bool, err error) {
	var fresh []*stage
	for _, st := range all {
		if need[st] && !st.loaded {
			fresh = append(fresh, st)
		}
	}
	triggers := make([][]string, len(fresh))
	group, ctx := errgroup.WithContext(ctx)
	for i, st := range fresh {
		st.loaded = true
		if st.image == "" {
			continue
		}
		group.Go(func() error {
			cfg, err := b.baseConfig(ctx, baseKey{st.image, st.platform})
			triggers[i] = cfg.Config.OnBuild
			return b.file.at(st.def.Location, err)
		})
	}
	if err := group.Wait(); err != nil {
		return false, err
	}
	for i, st := range fresh { // in their order, so that a base has its triggers before who is FROM it
		list := append(slices.Clone(triggers[i]), st.base.onbuild()...)
		if len(list) == 0 {
			continue
		}
		more = true
		if err := b.addTriggers(st, list); err != nil {
			return false, b.file.at(st.def.Location, err)
		}
		if err := b.resolveFrom(st, all); err != nil {
			return false, err
		}
	}
	return more, nil
}

// onbuild are the ONBUILDs of a stage, which are done in the stages FROM it.
func (st *stage) onbuild() []string {
	if st == nil {
		return nil
	}
	var list []string
	for _, cmd := range st.def.Commands {
		if c, ok := cmd.(*instructions.OnbuildCommand); ok {
			list = append(list, c.Expression)
		}
	}
	return list
}

// addTriggers parses triggers. Their place in the Dockerfile is the FROM.
func (b *build) addTriggers(st *stage, list []string) error {
	var cmds []instructions.Command
	for _, text := range list {
		cmd, err := parseTrigger(text, st.def.Location)
		if err != nil {
			return fmt.Errorf("ONBUILD %s: %w", text, err)
		}
		cmds = append(cmds, cmd)
	}
	st.triggers = len(cmds)
	st.def.Commands = append(cmds, st.def.Commands...)
	st.countParts()
	return nil
}

func parseTrigger(text string, from []parser.Range) (instructions.Command, error) {
	ast, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	if len(ast.AST.Children) != 1 {
		return nil, errors.New("it is more than one instruction")
	}
	node := ast.AST.Children[0]
	if len(from) > 0 {
		node.StartLine, node.EndLine = from[0].Start.Line, from[len(from)-1].End.Line
	}
	cmd, err := instructions.ParseCommand(node)
	if err != nil {
		return nil, err
	}
	if _, chained := cmd.(*instructions.OnbuildCommand); chained {
		return nil, errors.New("an ONBUILD cannot bring another one")
	}
	return cmd, nil
}
