package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// floors lists the packages of each floor, from the ground up. A package may
// import packages of lower floors, and those in its own folder; those of one
// floor do not import each other, except for the arrows in beside.
var floors = [][]string{
	{"internal"},
	{"sandbox", "webhooks", "configs"},
	{"pipeline"},
	{"agent/store", "pipeline/source", "pipeline/image", "pipeline/nginx", "pipeline/target"},
	{"agent"},
	{"agent/api", "agent/dashboard"},
	{"cli"},
	{""},
	{"bench"},
	{"scripts"},
}

// beside lists the imports that are allowed inside a floor: from → to.
var beside = map[string][]string{
	"sandbox/build":                        {"sandbox/image", "sandbox/image/layer", "sandbox/runtime/overlay", "sandbox/internal/diskuse"},
	"sandbox/build/lint":                   {"sandbox/build/words"}, // what a check expands is bounded as a build is
	"sandbox/tree":                         {"sandbox/internal/xattr", "sandbox/internal/openat"},
	"sandbox/image/layer":                  {"sandbox/internal/xattr", "sandbox/internal/openat"},
	"sandbox/volume":                       {"sandbox/tree"},                                                          // a volume travels as any tree does
	"sandbox/runtime":                      {"sandbox/monitor", "sandbox/internal/openat", "sandbox/internal/loosen"}, // so that tests can take a mitigation away
	"sandbox/runtime/launch":               {"sandbox/monitor"},
	"sandbox/runtime/launch/cmd/naru-init": {"sandbox/runtime/launch"},
	"sandbox/monitor":                      {"sandbox/runtime/launch/step"},
	"sandbox/oci":                          {"sandbox/runtime", "sandbox/runtime/cgroup", "sandbox/runtime/seccomp"}, // an OCI runtime is the runtime without images and networks
}

// homes names the one folder in which a library may be imported.
var homes = map[string]string{
	"github.com/gin-gonic/gin":               "agent/api",
	"github.com/robfig/cron/v3":              "agent configs",
	"github.com/go-git/go-git/v5":            "pipeline/source",
	"golang.org/x/sys/unix":                  "sandbox cli bench",
	"github.com/vishvananda/netlink":         "sandbox",
	"github.com/google/nftables":             "sandbox",
	"modernc.org/sqlite":                     "agent/store",
	"github.com/spf13/cobra":                 "cli",
	"github.com/moby/buildkit":               "sandbox/build",
	"github.com/google/go-containerregistry": "sandbox/image bench",
}

// TestFloors parses the imports of every file. It does not ask the go command,
// whose cached answer once hid a broken rule.
func TestFloors(t *testing.T) {
	docs := map[string]int{}
	files := 0
	walk(t, func(path, pkg string, imports []string, doc bool) {
		files++
		if _, ok := docs[pkg]; !ok {
			docs[pkg] = 0
		}
		if doc {
			docs[pkg]++
		}
		for _, to := range imports {
			if own, ok := strings.CutPrefix(to, "naru/"); ok {
				if !allowed(pkg, own) {
					t.Errorf("%s: %s must not import %s", path, name(pkg), own)
				}
				continue
			}
			checkHome(t, path, pkg, to)
		}
	})
	if files < 20 {
		t.Fatalf("only %d files were looked at", files)
	}
	for pkg, n := range docs {
		if n != 1 {
			t.Errorf("package %s has %d package comments, want 1", name(pkg), n)
		}
	}
}

// walk calls f for every Go file that is not a test.
func walk(t *testing.T, f func(path, pkg string, imports []string, doc bool)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		var imports []string
		for _, i := range file.Imports {
			to, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			imports = append(imports, to)
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		if pkg == "." {
			pkg = ""
		}
		f(path, pkg, imports, file.Doc != nil)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func allowed(from, to string) bool {
	if slices.Contains(beside[from], to) || strings.HasPrefix(to, from+"/") && from != "pipeline" && from != "agent" {
		return true
	}
	return floor(to) < floor(from)
}

// floor finds the floor of the longest listed folder that holds pkg.
func floor(pkg string) int {
	best, length := len(floors), 0
	for n, list := range floors {
		for _, f := range list {
			if pkg == f || f != "" && strings.HasPrefix(pkg, f+"/") && len(f) > length {
				best, length = n, len(f)
			}
		}
	}
	return best
}

func checkHome(t *testing.T, path, pkg, to string) {
	t.Helper()
	for lib, where := range homes {
		if to != lib && !strings.HasPrefix(to, lib+"/") {
			continue
		}
		ok := slices.ContainsFunc(strings.Fields(where), func(home string) bool {
			return pkg == home || strings.HasPrefix(pkg, home+"/")
		})
		if !ok {
			t.Errorf("%s: %s has its home in %s, not in %s", path, lib, where, name(pkg))
		}
	}
	if pkg == "pipeline" && strings.Contains(strings.Split(to, "/")[0], ".") {
		t.Errorf("%s: pipeline needs the standard library only, not %s", path, to)
	}
}

func name(pkg string) string {
	if pkg == "" {
		return "main"
	}
	return pkg
}

// TestAllowed shows that the rule can say no.
func TestAllowed(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{"cli", "agent/api", true},
		{"agent", "agent/store", true},
		{"agent/store", "agent", false},
		{"agent", "agent/api", false},
		{"pipeline", "sandbox", true},
		{"pipeline", "pipeline/nginx", false},
		{"pipeline/nginx", "pipeline/source", false},
		{"sandbox", "pipeline", false},
		{"sandbox", "sandbox/image", true},
		{"sandbox/image", "sandbox", false},
		{"sandbox/image", "sandbox/build", false},
		{"sandbox/build", "sandbox/image", true},
		{"internal/atomicfile", "sandbox", false},
		{"", "cli", true},
		{"cli", "", false},
		{"sandbox", "bench/load", false},
	} {
		if got := allowed(tt.from, tt.to); got != tt.want {
			t.Errorf("%s imports %s: allowed %t, want %t", name(tt.from), name(tt.to), got, tt.want)
		}
	}
}
