package runtime

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// bundleSpec is one that is fine.
func bundleSpec() *specs.Spec {
	s := DefaultSpec(nil)
	s.Process.Args = []string{"true"}
	return s
}

func TestBadBundles(t *testing.T) {
	mount := func(m specs.Mount) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Mounts = []specs.Mount{m} }
	}
	for name, tt := range map[string]struct {
		change func(*specs.Spec)
		want   []string // field and value
	}{
		"version":        {func(s *specs.Spec) { s.Version = "invalid" }, []string{"ociVersion", "invalid"}},
		"no root":        {func(s *specs.Spec) { s.Root = nil }, []string{"root.path"}},
		"no process":     {func(s *specs.Spec) { s.Process = nil }, []string{"process"}},
		"no cwd":         {func(s *specs.Spec) { s.Process.Cwd = "" }, []string{"process.cwd"}},
		"relative cwd":   {func(s *specs.Spec) { s.Process.Cwd = "x" }, []string{"working directory", "x"}},
		"no args":        {func(s *specs.Spec) { s.Process.Args = nil }, []string{"process", "arguments"}},
		"namespace":      {func(s *specs.Spec) { s.Linux.Namespaces[0].Type = "moon" }, []string{"linux.namespaces[0].type", "moon"}},
		"twice":          {func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[0]) }, []string{"linux.namespaces", "twice"}},
		"wrong kind":     {func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/proc/self/ns/net" }, []string{"linux.namespaces[1].path", "/proc/self/ns/net"}},
		"no namespace":   {func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/dev/null" }, []string{"linux.namespaces[1].path", "/dev/null"}},
		"maps":           {func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }, []string{"linux.uidMappings"}},
		"rdt":            {func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} }, []string{"linux.intelRdt"}},
		"sysctl":         {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.panic": "1"} }, []string{"linux.sysctl", "kernel.panic"}},
		"sysctl escapes": {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.../kernel.panic": "1"} }, []string{"linux.sysctl", "kernel.panic"}},
		"personality":    {func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "SUNOS"} }, []string{"linux.personality.domain", "SUNOS"}},
		"memory policy":  {func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "MPOL_X"} }, []string{"linux.memoryPolicy.mode", "MPOL_X"}},
		"propagation":    {func(s *specs.Spec) { s.Linux.RootfsPropagation = "wild" }, []string{"linux.rootfsPropagation", "wild"}},
		"mount root":     {mount(specs.Mount{Destination: "/x/..", Type: "tmpfs"}), []string{"mounts[0].destination", "/x/.."}},
		"mount proc":     {mount(specs.Mount{Destination: "/proc/self", Type: "tmpfs"}), []string{"mounts[0].destination", "/proc/self"}},
		"mount type":     {mount(specs.Mount{Destination: "/x"}), []string{"mounts[0].type"}},
		"bind nothing":   {mount(specs.Mount{Destination: "/x", Options: []string{"bind"}}), []string{"mounts[0].source"}},
		"device":         {func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "q"}} }, []string{"linux.devices[0].type", "q"}},
		"hook":           {func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "x"}}} }, []string{"hooks.poststop[0].path", "x"}},
		"rlimit":         {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_TEST"}} }, []string{"process", "RLIMIT_TEST"}},
		"rlimits":        {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 2, Hard: 1}} }, []string{"process.rlimits[0]"}},
		"scheduler":      {func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: "X"} }, []string{"process.scheduler.policy", "X"}},
		"io class":       {func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "X"} }, []string{"process.ioPriority.class", "X"}},
		"affinity":       {func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "3-1"} }, []string{"process.execCPUAffinity.initial", "3-1"}},
		"masked": {func(s *specs.Spec) {
			s.Linux.Namespaces = s.Linux.Namespaces[1:]
			s.Mounts = nil
		}, []string{"linux.maskedPaths"}},
	} {
		s := bundleSpec()
		tt.change(s)
		_, _, err := CheckBundle(s)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not name %q", name, err, want)
			}
		}
	}
}

func TestBundleWarnings(t *testing.T) {
	s := bundleSpec()
	s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_MOON")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "rel", Type: "tmpfs"})
	got, warnings, err := CheckBundle(s)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(warnings, "\n")
	if !strings.Contains(text, "CAP_MOON") || !strings.Contains(text, `"rel"`) {
		t.Errorf("warnings %q", text)
	}
	if last := got.Mounts[len(got.Mounts)-1]; last.Destination != "/rel" {
		t.Errorf("destination %q", last.Destination)
	}
	if rules := got.Linux.Resources.Devices; rules[0].Allow || len(rules) < 5 {
		t.Errorf("device rules %+v", rules)
	}
	if s.Mounts[len(s.Mounts)-1].Destination != "rel" {
		t.Error("the caller's spec was changed")
	}
}

func TestMountOptions(t *testing.T) {
	o := parseOptions([]string{"rbind", "ro", "rw", "ro", "rnosuid", "noatime", "relatime", "rslave", "size=1k", "sync", "loud"})
	if !o.tree || o.set != 1 || o.clear&1 != 0 || o.setAll != 2 || !o.spread || o.propagation == 0 {
		t.Errorf("%+v", o)
	}
	if len(o.data) != 2 || o.data[0] != [2]string{"size", "1k"} || o.data[1] != [2]string{"sync", ""} {
		t.Errorf("data %q", o.data)
	}
}
