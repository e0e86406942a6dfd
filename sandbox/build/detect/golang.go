package detect

import (
	"fmt"
	"go/build/constraint"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// goData is what go.tmpl needs.
type goData struct {
	Build, Run string
	Cgo        bool
	Download   string   // files of the modules; "": vendored, or not known before the sources are there
	Package    string   // of main
	Assets     []string // directories that the program reads when it runs
	Port       int
}

var (
	goDirective = regexp.MustCompile(`(?m)^\s*(?:go|toolchain)\s+(?:go)?(\d+\.\d+)`)
	goModule    = regexp.MustCompile(`(?m)^module\s+"?([^\s"]+)`)
	goMain      = regexp.MustCompile(`(?m)^func main\(\)`)
	goPackage   = regexp.MustCompile(`(?m)^package\s+(\w+)`)
	goImportC   = regexp.MustCompile(`(?m)^\s*(?:import\s+)?"C"\s*$`)
)

func golang(t tree) (*Plan, error) {
	mod := t.read("go.mod")
	if mod == "" {
		return nil, nil
	}
	p := &Plan{Kind: "Go", Port: 8080}
	name := "it"
	if m := goModule.FindStringSubmatch(mod); m != nil {
		name = m[1]
	}
	p.because("go.mod: module %s", name)
	d := goData{Port: p.Port, Run: goRun, Build: image(goBuild, goVersion(p, mod))}
	mains, cgo := t.mains()
	pkg, err := mainOf(p, mains, path.Base(name))
	if err != nil {
		return nil, err
	}
	d.Package = pkg
	switch {
	case cgo != "", strings.Contains(mod, "github.com/mattn/go-sqlite3 "):
		d.Cgo, d.Run = true, goRunC
		if cgo == "" {
			cgo = "github.com/mattn/go-sqlite3"
		}
		p.because("%s needs cgo: built with a C compiler, run with the C library", cgo)
	default:
		p.because("no cgo: a static program, on an image that holds nothing else; it is compiled here for any platform")
	}
	d.Download = t.goDownload(p)
	for _, dir := range []string{"templates", "views", "static", "assets", "public", "web", "migrations", "configs", "config", "locales"} {
		if t.hasDir(dir) && !t.onlyGo(dir) {
			d.Assets = append(d.Assets, dir)
		}
	}
	if len(d.Assets) > 0 {
		p.because("%s: taken along, next to the program", strings.Join(d.Assets, ", "))
	}
	if t.has("package.json") {
		p.because("package.json is there too: what it builds has to be in the repository, or the Dockerfile changed")
	}
	return p.fill("go.tmpl", d)
}

// goVersion is the newest of what the module asks for and what we have: newer
// compilers build older modules.
func goVersion(p *Plan, mod string) string {
	version := goNewest
	for _, m := range goDirective.FindAllStringSubmatch(mod, -1) {
		v, _ := parseVersion(m[1])
		ours, _ := parseVersion(version)
		if slices.Compare(v, ours) > 0 {
			version = m[1]
			p.because("go.mod wants Go %s", version)
		}
	}
	return version
}

// goDownload are the files that say which modules there are.
func (t tree) goDownload(p *Plan) string {
	switch {
	case t.has("vendor/modules.txt"):
		p.because("vendor/: the modules are in the tree")
		return ""
	case t.has("go.work"):
		p.because("go.work: several modules, downloaded when the sources are there")
		return ""
	case strings.Contains(t.read("go.mod"), "=> ."):
		p.because("go.mod replaces modules by directories: downloaded when the sources are there")
		return ""
	case t.has("go.sum"):
		return "go.mod go.sum"
	}
	return "go.mod"
}

// mains are the directories with a program, and a file that uses cgo.
func (t tree) mains() (dirs []string, cgo string) {
	for _, name := range t.walk(".go", 4) {
		text := t.read(name)
		if strings.HasSuffix(name, "_test.go") || !builds(text) {
			continue
		}
		if goImportC.MatchString(text) && cgo == "" {
			cgo = name
		}
		m := goPackage.FindStringSubmatch(text)
		if dir := path.Dir(name); m != nil && m[1] == "main" && goMain.MatchString(text) && !slices.Contains(dirs, dir) && !t.ownModule(dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs, cgo
}

// ownModule tells whether a directory belongs to another module than the tree.
func (t tree) ownModule(dir string) bool {
	for ; dir != "."; dir = path.Dir(dir) {
		if t.has(dir + "/go.mod") {
			return true
		}
	}
	return false
}

// builds tells whether a file is for linux, and not left out by "ignore".
func builds(text string) bool {
	head, _, _ := strings.Cut(text, "\npackage ")
	for line := range strings.Lines(head) {
		if !constraint.IsGoBuild(line) {
			continue
		}
		expr, err := constraint.Parse(strings.TrimSpace(line))
		return err == nil && expr.Eval(func(tag string) bool {
			return tag == "linux" || tag == "unix" || tag == "cgo" || tag == "amd64" || strings.HasPrefix(tag, "go1.")
		})
	}
	return true
}

// mainOf chooses the program to build.
func mainOf(p *Plan, mains []string, module string) (string, error) {
	if len(mains) == 0 {
		return "", fmt.Errorf("go.mod, but no program in the tree: no package main with a func main")
	}
	choice, why := "", ""
	pick := func(reason string, fits func(dir string) bool) {
		if i := slices.IndexFunc(mains, fits); i >= 0 && choice == "" {
			choice, why = mains[i], reason
		}
	}
	pick("the only program", func(string) bool { return len(mains) == 1 })
	pick("the program in the root", func(dir string) bool { return dir == "." })
	pick("named like the module", func(dir string) bool { return path.Base(dir) == module })
	pick("named like a server", func(dir string) bool {
		return slices.Contains([]string{"server", "web", "api", "app", "main"}, path.Base(dir)) && strings.Count(dir, "/") < 2
	})
	pick("the first one in cmd", func(dir string) bool { return strings.HasPrefix(dir, "cmd/") })
	pick("the first one", func(string) bool { return true })
	pkg := "./" + choice
	if choice == "." {
		pkg = "."
	}
	others := ""
	if len(mains) > 1 {
		rest := slices.DeleteFunc(slices.Clone(mains), func(dir string) bool { return dir == choice })
		others = "; there are also " + strings.Join(rest[:min(5, len(rest))], ", ")
	}
	p.because("package %s is %s%s", pkg, why, others)
	return pkg, nil
}

// onlyGo tells whether a directory holds Go files alone.
func (t tree) onlyGo(dir string) bool {
	only := true
	err := fs.WalkDir(t.FS, dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !strings.HasSuffix(d.Name(), ".go") {
			only = false
			return fs.SkipAll
		}
		return nil
	})
	return err == nil && only
}
