package build

import (
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
)

// vars are variables in the order in which they were first set.
type vars struct{ list []string } // KEY=value

// Get returns a variable (shell.EnvGetter).
func (v vars) Get(name string) (string, bool) {
	for _, kv := range v.list {
		if k, value, _ := strings.Cut(kv, "="); k == name {
			return value, true
		}
	}
	return "", false
}

// Keys returns the names (shell.EnvGetter).
func (v vars) Keys() []string {
	names := make([]string, len(v.list))
	for i, kv := range v.list {
		names[i], _, _ = strings.Cut(kv, "=")
	}
	return names
}

// set sets a variable; one that was there keeps its place.
func (v *vars) set(name, value string) { v.list = setEnv(v.list, name, value) }

// setEnv returns list with a variable set. It never changes list's own array.
func setEnv(list []string, name, value string) []string {
	list = slices.Clone(list)
	for i, kv := range list {
		if k, _, _ := strings.Cut(kv, "="); k == name {
			list[i] = name + "=" + value
			return list
		}
	}
	return append(list, name+"="+value)
}

// defaultPath is the PATH of an image that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// isProxy tells whether a build argument needs no ARG. It is looked at in any
// case, as in BuildKit.
func isProxy(name string) bool {
	switch strings.ToLower(name) {
	case "http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy":
		return true
	}
	return false
}

// proxies are the proxy variables that RUN gets, in both spellings, except
// those that env has already.
func (b *build) proxies(env vars) []string {
	given := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(b.o.Args)) {
		if isProxy(name) { // given in both spellings, the lower one counts
			b.takenArgs.add(name)
			given[strings.ToUpper(name)] = b.o.Args[name]
		}
	}
	var list []string
	for name, value := range given {
		for _, spelling := range []string{name, strings.ToLower(name)} {
			if _, ok := env.Get(spelling); !ok {
				list = append(list, spelling+"="+value)
			}
		}
	}
	sort.Strings(list)
	return list
}

// speaksToBuilder tells of ARGs that are no variables of a stage.
func speaksToBuilder(name string) bool {
	return name == "BUILDKIT_SBOM_SCAN_CONTEXT" || name == "BUILDKIT_SBOM_SCAN_STAGE"
}

// hostname is that of RUN steps.
func (b *build) hostname() string {
	if name, ok := b.buildArg("BUILDKIT_SANDBOX_HOSTNAME"); ok && name != "" {
		return name
	}
	return "build"
}

// nameSet is a set of names that several goroutines add to.
type nameSet struct {
	mu   sync.Mutex
	list []string
}

func (s *nameSet) add(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.list, name) {
		s.list = append(s.list, name)
	}
}

func (s *nameSet) has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.list, name)
}

// globalArgs are the variables of FROM: those of the platform, and the ARGs
// before the first FROM with their values.
func (b *build) globalArgs() (vars, error) {
	g := vars{b.platformArgs()}
	for _, cmd := range b.file.args {
		for _, arg := range cmd.Args {
			if value, ok := b.buildArg(arg.Key); ok {
				g.set(arg.Key, value)
				continue
			}
			if arg.Value == nil {
				continue
			}
			value, _, err := b.file.lex.ProcessWord(*arg.Value, g)
			if err != nil {
				return g, b.file.at(cmd.Location(), err)
			}
			g.set(arg.Key, value)
		}
	}
	return g, nil
}

// platformArgs are the predefined ARGs, KEY=value; a build argument of the name
// wins.
func (b *build) platformArgs() []string {
	target := b.o.Target
	if target == "" {
		target = b.file.stages[len(b.file.stages)-1].Name
	}
	if target == "" {
		target = "default"
	}
	here := native()
	var list []string
	for _, kv := range [][2]string{
		{"BUILDPLATFORM", here.String()}, {"BUILDOS", here.os}, {"BUILDOSVERSION", ""},
		{"BUILDARCH", here.arch}, {"BUILDVARIANT", here.variant},
		{"TARGETPLATFORM", b.platform.String()}, {"TARGETOS", b.platform.os}, {"TARGETOSVERSION", ""},
		{"TARGETARCH", b.platform.arch}, {"TARGETVARIANT", b.platform.variant}, {"TARGETSTAGE", target},
	} {
		if value, ok := b.buildArg(kv[0]); ok {
			kv[1] = value
		}
		list = append(list, kv[0]+"="+kv[1])
	}
	return list
}

// buildArg returns the caller's value of a declared ARG.
func (b *build) buildArg(name string) (string, bool) {
	value, ok := b.o.Args[name]
	if ok {
		b.takenArgs.add(name)
	}
	return value, ok
}

// warnUnused names the build arguments that nothing asked for: often a typo.
func (b *session) warnUnused() {
	var names []string
	for name := range b.o.Args {
		if !b.takenArgs.has(name) && !isProxy(name) && !strings.HasPrefix(name, "BUILDKIT_") {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		sort.Strings(names)
		b.out.warn("build arguments that no ARG declares: " + strings.Join(names, ", "))
	}
}
