package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// test is a package's test program.
type test struct {
	pkg     string   // import path
	dir     string   // of its sources, below the module's root
	file    string   // the program's name in the folder of programs
	pattern string   // of -test.run
	names   []string // that must run
}

// smoke is the selection of -smoke: that a container starts, sees what was
// asked, keeps to its limits, is entered, stopped and killed, on this kernel.
// No names are all tests; each that is named must run.
var smoke = map[string][]string{
	"naru/docs": nil,
	"naru/sandbox/runtime/cgroup": {
		"TestDeviceProgramDecides", "TestDevicesAreUpdated", "TestCreateWritesWhatTheSpecNames", "TestImpossibleLimitsAreErrors", "TestUpdateRaisesAndLowers",
		"TestRefusedUpdateTakesBack", "TestUsageIsCheckedBeforeUpdate", "TestUpdateJoinsAController", "TestUnifiedFiles", "TestThrottleAndWeight",
	},
	"naru/sandbox/runtime": {"TestLimits", "TestExec", "TestContainerOutlivesItsMonitor", "TestNothingLeaks"},
	"naru/sandbox":         {"TestUserNamespace", "TestLimits", "TestStop", "TestKill", "TestHostReachesContainer"},
}

// compile makes the test programs of the chosen packages in dir.
func compile(ctx context.Context, o options, dir string) ([]test, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	tests, err := choose(ctx, o)
	if err != nil {
		return nil, err
	}
	for _, t := range tests {
		if _, err := output(ctx, "env", "CGO_ENABLED=0", "go", "test", "-c", "-ldflags=-s -w", "-o", filepath.Join(dir, t.file), t.pkg); err != nil {
			return nil, err
		}
	}
	return tests, nil
}

func choose(ctx context.Context, o options) ([]test, error) {
	args := []string{"list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Module.Path}}{{end}}"}
	if o.smoke {
		args = slices.AppendSeq(args, maps.Keys(smoke))
	} else {
		args = append(args, strings.Fields(o.packages)...)
	}
	list, err := output(ctx, "go", args...)
	if err != nil {
		return nil, err
	}
	var tests []test
	for line := range strings.Lines(list) {
		pkg, module, _ := strings.Cut(strings.TrimSpace(line), " ")
		if pkg == "" {
			continue
		}
		dir := strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/")
		t := test{pkg: pkg, dir: dir, file: strings.ReplaceAll(dir, "/", "-") + ".test", pattern: "."}
		switch names := smoke[pkg]; {
		case o.run != "":
			t.pattern = o.run
		case o.smoke && names != nil:
			t.pattern, t.names = "^("+strings.Join(names, "|")+")$", names
		}
		if strings.ContainsAny(t.pattern, " \t\n\\") {
			return nil, fmt.Errorf("-run %q: no spaces and backslashes, please", t.pattern)
		}
		tests = append(tests, t)
	}
	if len(tests) == 0 {
		return nil, errors.New("no package with tests: " + strings.Join(args[3:], " "))
	}
	return tests, nil
}
