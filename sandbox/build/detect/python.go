package detect

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// pythonData is what python.tmpl needs.
type pythonData struct {
	Build, Run string
	Tool       string // requirements, uv, poetry, pipenv, project
	Lock       string // file that says what to install, beside pyproject.toml or Pipfile
	Version    string // of the tool
	Extra      string // packages that are installed besides
	Libraries  string // Debian packages with libraries that packages link
	Before     string // a command at the end of the build
	Path       string // PYTHONPATH
	Command    []string
	Port       int
}

// pyproject is what is read of pyproject.toml.
type pyproject struct {
	Project struct {
		Dependencies   []string `toml:"dependencies"`
		RequiresPython string   `toml:"requires-python"`
	} `toml:"project"`
	BuildSystem map[string]any `toml:"build-system"`
	Tool        struct {
		Poetry struct {
			Dependencies map[string]any `toml:"dependencies"`
		} `toml:"poetry"`
	} `toml:"tool"`
}

type pipfile struct {
	Packages map[string]any `toml:"packages"`
	Requires struct {
		Version string `toml:"python_version"`
	} `toml:"requires"`
}

// pythonTree is a tree with what its files say.
type pythonTree struct {
	tree
	project pyproject
	pipfile pipfile
	needs   map[string]bool // names of packages, as PyPI writes them
}

func python(t tree) (*Plan, error) {
	if t.first("requirements.txt", "pyproject.toml", "Pipfile", "setup.py", "manage.py") == "" {
		return nil, nil
	}
	p := &Plan{Kind: "Python", Port: 8000}
	y := pythonTree{tree: t, needs: map[string]bool{}}
	if err := toml.Unmarshal([]byte(t.read("pyproject.toml")), &y.project); err != nil {
		return nil, fmt.Errorf("read pyproject.toml: %w", err)
	}
	if err := toml.Unmarshal([]byte(t.read("Pipfile")), &y.pipfile); err != nil {
		return nil, fmt.Errorf("read Pipfile: %w", err)
	}
	d := pythonData{Port: p.Port}
	y.installer(p, &d)
	line := y.version(p)
	d.Build, d.Run = image(pyBuild, line), image(pyRun, line)
	if t.hasDir("src") {
		d.Path = "/app/src"
	}
	if err := y.start(p, &d); err != nil {
		return nil, err
	}
	for _, l := range nativeLibraries {
		if y.needs[l.name] {
			d.Libraries = strings.TrimSpace(d.Libraries + " " + l.debian)
			p.because("%s links %s", l.name, l.debian)
		}
	}
	return p.fill("python.tmpl", d)
}

// nativeLibraries are what well-known packages without wheels link.
var nativeLibraries = []struct{ name, debian string }{
	{"psycopg2", "libpq5"}, {"mysqlclient", "libmariadb3"}, {"pyodbc", "unixodbc"}, {"python-ldap", "libldap-2.5-0"}, {"weasyprint", "libpango-1.0-0 libpangoft2-1.0-0"},
}

// installer finds what installs the packages, and which there are.
func (y pythonTree) installer(p *Plan, d *pythonData) {
	for _, spec := range y.project.Project.Dependencies {
		y.need(spec)
	}
	for name := range y.project.Tool.Poetry.Dependencies {
		y.need(name)
	}
	for name := range y.pipfile.Packages {
		y.need(name)
	}
	y.requirements("requirements.txt", 0)
	switch {
	case y.has("uv.lock"):
		d.Tool, d.Version = "uv", uvImage
		p.because("uv.lock: packages by uv")
	case y.has("poetry.lock"), len(y.project.Tool.Poetry.Dependencies) > 0:
		d.Tool, d.Version = "poetry", poetry
		if y.has("poetry.lock") {
			d.Lock = "poetry.lock"
		}
		p.because("pyproject.toml and %s: packages by Poetry", first(d.Lock, "no lock file"))
	case y.has("requirements.txt"):
		d.Tool = "requirements"
		if text := y.read("requirements.txt"); !regexp.MustCompile(`(?m)^\s*(-[rce]|\.|--(requirement|constraint|editable))|file:`).MatchString(text) {
			d.Lock = "requirements.txt"
		}
		p.because("requirements.txt: packages by pip")
	case y.has("Pipfile"):
		d.Tool, d.Version = "pipenv", pipenv
		if y.has("Pipfile.lock") {
			d.Lock = "Pipfile.lock"
		}
		p.because("Pipfile: packages by Pipenv")
	case y.has("pyproject.toml") && (len(y.project.Project.Dependencies) > 0 || len(y.project.BuildSystem) > 0), y.has("setup.py"):
		d.Tool = "project"
		p.because("%s: the project is a package, and installed", y.tree.first("pyproject.toml", "setup.py"))
	default:
		p.because("no list of packages: only what the start needs is installed")
	}
}

// packageName is the begin of a requirement.
var packageName = regexp.MustCompile(`^[A-Za-z0-9][\w.-]*`)

func (y pythonTree) need(spec string) {
	name := strings.ToLower(packageName.FindString(strings.TrimSpace(spec)))
	y.needs[regexp.MustCompile(`[-_.]+`).ReplaceAllString(name, "-")] = true
}

func (y pythonTree) requirements(file string, depth int) {
	for line := range strings.Lines(y.read(file)) {
		line = strings.TrimSpace(line)
		if other, ok := strings.CutPrefix(line, "-r "); ok && depth < 4 {
			y.requirements(path.Join(path.Dir(file), strings.TrimSpace(other)), depth+1)
		} else if line != "" && line[0] != '#' && line[0] != '-' {
			y.need(line)
		}
	}
}

// version is the line of Python that the tree asks for.
func (y pythonTree) version(p *Plan) string {
	for _, file := range []string{".python-version", "runtime.txt"} {
		want := strings.TrimPrefix(strings.TrimSpace(y.read(file)), "python-")
		if v, ok := parseVersion(want); ok && len(v) > 1 {
			p.because("%s: Python %d.%d", file, v[0], v[1])
			return fmt.Sprintf("%d.%d", v[0], v[1])
		}
	}
	want := first(y.project.Project.RequiresPython, y.pipfile.Requires.Version)
	if s, ok := y.project.Tool.Poetry.Dependencies["python"].(string); ok && want == "" {
		want = s
	}
	if want == "" {
		p.because("no version asked for: Python %s", pythonVersions[0])
		return pythonVersions[0]
	}
	line := choose(pythonVersions, want, 2)
	p.because("Python %q is asked for: %s", want, line)
	return line
}

// application finds where an app is made: app = FastAPI(...).
var application = regexp.MustCompile(`(?m)^(\w+)\s*(?::[^=\n]+)?=\s*(?:\w+\.)?(FastAPI|Starlette|Litestar|Quart|Flask|Sanic)\(`)

// start finds the command that serves.
func (y pythonTree) start(p *Plan, d *pythonData) error {
	if command := y.procfile(); command != "" {
		d.Command = started(command)
		p.because("Procfile: started by %s", command)
		return nil
	}
	if y.has("manage.py") {
		return y.django(p, d)
	}
	files := y.walk(".py", 3)
	slices.SortStableFunc(files, func(a, b string) int { return rank(a) - rank(b) })
	for _, file := range files {
		text := y.read(file)
		if m := application.FindStringSubmatch(text); m != nil {
			y.serve(p, d, file, m[1], m[2])
			return nil
		}
		if y.needs["flask"] && regexp.MustCompile(`(?m)^def create_app\(\s*(\)|\w+\s*=)`).MatchString(text) {
			y.serve(p, d, file, "create_app()", "Flask")
			return nil
		}
	}
	if y.needs["streamlit"] {
		if main := y.first("streamlit_app.py", "app.py", "main.py"); main != "" {
			d.Command = []string{"sh", "-c", "exec streamlit run " + main + " --server.address=0.0.0.0 --server.port=$PORT"}
			p.because("%s: Streamlit", main)
			return nil
		}
	}
	main := y.first("main.py", "app.py", "server.py", "run.py", "src/main.py", "bot.py")
	if main == "" {
		return fmt.Errorf("python, but nothing says how to start: no Procfile, no manage.py, no app of FastAPI, Flask or the like, no main.py or app.py")
	}
	d.Command = []string{"python", main}
	p.because("no framework that is known: started by python %s", main)
	return nil
}

// rank orders files by how likely they make the app that is served.
func rank(file string) int {
	names := []string{"wsgi.py", "asgi.py", "main.py", "app.py", "server.py", "api.py", "__init__.py"}
	n := slices.Index(names, path.Base(file))
	if n < 0 {
		n = len(names)
	}
	return 10*strings.Count(strings.TrimPrefix(file, "src/"), "/") + n
}

// module is how Python imports a file.
func module(file string) string {
	file = strings.TrimSuffix(strings.TrimPrefix(file, "src/"), ".py")
	return strings.ReplaceAll(strings.TrimSuffix(file, "/__init__"), "/", ".")
}

// serve starts an app by a server of its interface.
func (y pythonTree) serve(p *Plan, d *pythonData, file, name, framework string) {
	target := module(file) + ":" + name
	p.because("%s: %s is made there", file, framework)
	if framework == "Flask" {
		y.byGunicorn(p, d, target)
		return
	}
	if framework == "Sanic" {
		d.Command = []string{"sh", "-c", "exec sanic " + target + " --host=0.0.0.0 --port=$PORT"}
		return
	}
	if !y.needs["uvicorn"] {
		y.extra(p, d, "uvicorn=="+uvicorn)
	}
	d.Command = []string{"sh", "-c", "exec uvicorn " + target + " --host 0.0.0.0 --port $PORT"}
}

// byGunicorn starts a WSGI app: gunicorn itself listens on $PORT of all
// addresses.
func (y pythonTree) byGunicorn(p *Plan, d *pythonData, target string) {
	if !y.needs["gunicorn"] {
		y.extra(p, d, "gunicorn=="+gunicorn)
	}
	d.Command = []string{"gunicorn", "--access-logfile=-", target}
}

func (y pythonTree) extra(p *Plan, d *pythonData, spec string) {
	d.Extra = strings.TrimSpace(d.Extra + " " + spec)
	p.because("%s is installed besides: the tree has no server for production", spec)
}

// django serves the project that manage.py names.
func (y pythonTree) django(p *Plan, d *pythonData) error {
	settings := submatch(regexp.MustCompile(`DJANGO_SETTINGS_MODULE['"]\s*,\s*['"]([\w.]+)['"]`), y.read("manage.py"))
	dir, _, _ := strings.Cut(settings, ".")
	for _, file := range y.walk("wsgi.py", 2) {
		if path.Base(file) == "wsgi.py" && (dir == "" || path.Dir(file) == dir || !y.has(dir+"/wsgi.py")) {
			dir = strings.ReplaceAll(path.Dir(file), "/", ".")
			break
		}
	}
	if dir == "" || dir == "." {
		return fmt.Errorf("manage.py, but no wsgi.py below it: nothing says which project to serve")
	}
	if !y.needs["django"] && d.Tool == "" {
		y.extra(p, d, "django")
	}
	p.because("manage.py: Django, project %s", dir)
	y.byGunicorn(p, d, dir+".wsgi:application")
	if y.needs["whitenoise"] {
		d.Before = "SECRET_KEY=only-for-collectstatic DJANGO_SECRET_KEY=only-for-collectstatic python manage.py collectstatic --noinput"
		p.because("whitenoise: static files are collected in the build")
	}
	return nil
}
