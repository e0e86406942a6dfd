package lint

import (
	"maps"
	"slices"
	"strings"
)

// env are variables (shell.EnvGetter).
type env map[string]string

func (e env) Get(name string) (string, bool) {
	value, ok := e[name]
	return value, ok
}

// Keys are sorted, so that suggestions do not change from run to run.
func (e env) Keys() []string { return slices.Sorted(maps.Keys(e)) }

func (e env) set(name, value string) { e[name] = value }

func (e env) add(kv string) {
	name, value, _ := strings.Cut(kv, "=")
	e[name] = value
}
