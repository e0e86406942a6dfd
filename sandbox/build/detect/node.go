package detect

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// packageJSON is what is read of package.json.
type packageJSON struct {
	Name            string            `json:"name"`
	Main            string            `json:"main"`
	Scripts         map[string]string `json:"scripts"`
	Engines         map[string]string `json:"engines"`
	PackageManager  string            `json:"packageManager"`
	Workspaces      json.RawMessage   `json:"workspaces"`
	Dependencies    map[string]string `json:"dependencies"`
	DevDependencies map[string]string `json:"devDependencies"`
}

func (p packageJSON) needs(name string) bool { return p.Dependencies[name] != "" }
func (p packageJSON) has(name string) bool {
	return p.Dependencies[name] != "" || p.DevDependencies[name] != ""
}

// manager installs packages.
type manager struct {
	name, lock string
	Setup      string // what puts it into the image; "": it is there
	Cache      string // its own directory
	Install    string // all packages, as the lock says
	Production string // those of production only
	Prune      string // makes production of all
	run        string // a script
}

func (m manager) script(name string) string { return m.run + " " + name }

// nodeData is what the templates of Node.js need.
type nodeData struct {
	manager
	Site       siteData
	Build, Run string
	Manifests  string // files that say what to install; "": all sources are needed for it
	Packages   string // the command that installs
	Script     string // the command that builds; "": nothing to build
	Copies     []string
	Command    []string
	Env        string
	Port       int
}

func node(t tree) (*Plan, error) {
	text := t.read("package.json")
	if text == "" {
		return nil, nil
	}
	pkg := packageJSON{}
	if err := json.Unmarshal([]byte(text), &pkg); err != nil {
		return nil, fmt.Errorf("read package.json: %w", err)
	}
	p := &Plan{Kind: "Node.js"}
	major := t.nodeVersion(p, pkg)
	d := nodeData{manager: t.manager(p, pkg), Build: image(nodeBuild, major), Run: image(nodeRun, major)}
	d.Manifests = t.manifests(p, pkg, d.manager)
	if pkg.Scripts["build"] != "" {
		d.Script = d.script("build")
		p.because("script build: %s", pkg.Scripts["build"])
	}
	d.Packages = d.Install
	if d.Script == "" && d.Production != "" {
		d.Packages, d.Prune = d.Production, ""
	}
	for _, framework := range []func(tree, *Plan, packageJSON, *nodeData) (string, error){nextjs, nuxt, site, server} {
		name, err := framework(t, p, pkg, &d)
		if err != nil {
			return nil, err
		}
		if name != "" {
			p.Port = d.Port
			return p.fill(name, d)
		}
	}
	return nil, fmt.Errorf("package.json, but nothing says how to start: no script start, no main, no server.js, index.js or app.js, and no generator of sites that is known")
}

// nodeVersion is the line of Node.js that the tree asks for.
func (t tree) nodeVersion(p *Plan, pkg packageJSON) string {
	for _, file := range []string{".nvmrc", ".node-version"} {
		want := strings.TrimSpace(t.read(file))
		if name, ok := strings.CutPrefix(want, "lts/"); ok {
			want = map[string]string{"hydrogen": "18", "iron": "20", "jod": "22", "krypton": "24"}[strings.ToLower(name)]
		}
		if v, ok := parseVersion(want); ok {
			line := strings.TrimPrefix(strings.TrimPrefix(number.FindString(want), "v"), "V")
			p.because("%s: Node.js %s", file, line)
			if len(v) == 2 {
				return fmt.Sprintf("%d.%d", v[0], v[1])
			}
			return line
		}
	}
	if want := pkg.Engines["node"]; want != "" {
		line := choose(nodeVersions, want, 3)
		p.because("engines.node %q: Node.js %s", want, line)
		return line
	}
	p.because("no version asked for: Node.js %s", nodeVersions[0])
	return nodeVersions[0]
}

func (t tree) manager(p *Plan, pkg packageJSON) manager {
	name, version, _ := strings.Cut(pkg.PackageManager, "@")
	version, _, _ = strings.Cut(version, "+")
	if !regexp.MustCompile(`^\d[\w.-]*$`).MatchString(version) {
		name, version = "", ""
	}
	lock := t.first("pnpm-lock.yaml", "yarn.lock", "package-lock.json", "npm-shrinkwrap.json")
	switch {
	case lock == "pnpm-lock.yaml" || lock == "" && name == "pnpm":
		p.because("%s: pnpm", first(lock, "packageManager"))
		if name != "pnpm" {
			version = pnpm
		}
		return manager{
			name: "pnpm", lock: lock, run: "pnpm run", Setup: "npm install --global pnpm@" + version, Cache: "/root/.local/share/pnpm/store",
			Install: "pnpm install" + frozen(lock, " --frozen-lockfile"), Production: "pnpm install --prod" + frozen(lock, " --frozen-lockfile"), Prune: "pnpm prune --prod --ignore-scripts",
		}
	case lock == "yarn.lock" || lock == "" && name == "yarn":
		if t.has(".yarnrc.yml") || name == "yarn" && !strings.HasPrefix(version, "1.") {
			p.because("%s: Yarn, not the classic one", first(lock, "packageManager"))
			return manager{
				name: "yarn", lock: lock, run: "yarn run", Setup: "npm install --global --force corepack@" + corepack + " && corepack enable", Cache: "/root/.yarn/berry/cache",
				Install: "yarn install" + frozen(lock, " --immutable"), Prune: "yarn workspaces focus --all --production",
			}
		}
		p.because("%s: classic Yarn", first(lock, "packageManager"))
		flags := frozen(lock, " --frozen-lockfile")
		return manager{
			name: "yarn", lock: lock, run: "yarn run", Cache: "/usr/local/share/.cache/yarn",
			Install: "yarn install" + flags, Production: "yarn install --production" + flags, Prune: "yarn install --production --ignore-scripts --prefer-offline" + flags,
		}
	}
	m := manager{name: "npm", lock: lock, run: "npm run", Cache: "/root/.npm", Install: "npm ci", Production: "npm ci --omit=dev", Prune: "npm prune --omit=dev"}
	if lock == "" {
		p.because("no lock file: npm, with whatever versions are newest (commit a lock file)")
		m.Install, m.Production = "npm install", "npm install --omit=dev"
	} else {
		p.because("%s: npm", lock)
	}
	return m
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// frozen is a flag that needs a lock file.
func frozen(lock, flag string) string {
	if lock == "" {
		return ""
	}
	return flag
}

// manifests are the files that installing needs, so that it is done again only
// when they change.
func (t tree) manifests(p *Plan, pkg packageJSON, m manager) string {
	switch {
	case len(pkg.Workspaces) > 0, t.has("pnpm-workspace.yaml"):
		p.because("workspaces: packages are installed when all sources are there")
		return ""
	case t.hasDir(".yarn"), t.hasDir("patches"):
		p.because(".yarn or patches: packages are installed when all sources are there")
		return ""
	}
	for _, script := range []string{"preinstall", "install", "postinstall", "prepare"} {
		if pkg.Scripts[script] != "" {
			p.because("script %s: packages are installed when all sources are there", script)
			return ""
		}
	}
	files := []string{"package.json"}
	for _, name := range []string{m.lock, ".npmrc", ".yarnrc", ".yarnrc.yml"} {
		if name != "" && t.has(name) {
			files = append(files, name)
		}
	}
	return strings.Join(files, " ")
}

// config is the text of a configuration in one of JavaScript's spellings.
func (t tree) config(name string) string {
	return t.read(t.first(name+".js", name+".mjs", name+".cjs", name+".ts", name+".mts"))
}

var nextOutput = regexp.MustCompile(`output\s*:\s*['"](\w+)['"]`)

func nextjs(t tree, p *Plan, pkg packageJSON, d *nodeData) (string, error) {
	if !pkg.has("next") {
		return "", nil
	}
	if d.Script == "" {
		d.Script = "npx next build"
	}
	d.Port, d.Env = 3000, "NODE_ENV=production HOSTNAME=0.0.0.0 NEXT_TELEMETRY_DISABLED=1"
	output := ""
	if m := nextOutput.FindStringSubmatch(t.config("next.config")); m != nil {
		output = m[1]
	}
	switch output {
	case "export":
		p.because("Next.js with output %q: a static site in out, served by nginx", output)
		d.site("/app/out", false)
		return "node-site.tmpl", nil
	case "standalone":
		p.because("Next.js with output %q: only what the server needs is taken along", output)
		d.Prune = ""
		d.Copies = []string{"/app/.next/standalone ./", "/app/.next/static ./.next/static"}
		if t.hasDir("public") {
			d.Copies = append(d.Copies, "/app/public ./public")
		}
		d.Command = []string{"node", "server.js"}
	default:
		p.because("Next.js without output \"standalone\": all packages of production are taken along (set it for a much smaller image)")
		d.Copies = []string{"/app ./"}
		d.Command = []string{"node", "node_modules/next/dist/bin/next", "start"}
	}
	return "node.tmpl", nil
}

func nuxt(t tree, p *Plan, pkg packageJSON, d *nodeData) (string, error) {
	if !pkg.has("nuxt") {
		return "", nil
	}
	if d.Script == "" {
		d.Script = "npx nuxt build"
	}
	if strings.Contains(pkg.Scripts["build"], "generate") {
		p.because("Nuxt, generated: a static site in .output/public, served by nginx")
		d.site("/app/.output/public", false)
		return "node-site.tmpl", nil
	}
	p.because("Nuxt: its server is in .output and needs no packages")
	d.Port, d.Env, d.Prune = 3000, "NODE_ENV=production HOST=0.0.0.0", ""
	d.Copies, d.Command = []string{"/app/.output ./.output"}, []string{"node", ".output/server/index.mjs"}
	return "node.tmpl", nil
}

// site makes the end of the Dockerfile a static site.
func (d *nodeData) site(dir string, single bool) {
	d.Site = siteData{Run: nginxRun, Dir: dir, Single: single, Port: 8080}
	d.Port = 8080
}

// servers are packages that answer requests themselves: what has them is no
// static site, whatever builds its pages.
var servers = []string{
	"express", "fastify", "koa", "@hapi/hapi", "hono", "@nestjs/core", "polka", "restify", "@sveltejs/adapter-node", "@astrojs/node",
	"@remix-run/node", "@react-router/node", "@solidjs/start", "socket.io", "@angular/ssr", "@feathersjs/feathers", "@adonisjs/core", "nitropack",
}

var outDir = regexp.MustCompile(`outDir\s*:\s*['"]\.?/?([\w./-]+)['"]`)

// generators build sites: into which directory, and whether one page answers
// for all paths.
var generators = []struct {
	name, title, dir, config string
	single                   bool
}{
	{"astro", "Astro", "dist", "astro.config", false},
	{"gatsby", "Gatsby", "public", "", false},
	{"@docusaurus/core", "Docusaurus", "build", "", false},
	{"vitepress", "VitePress", "docs/.vitepress/dist", "", false},
	{"@11ty/eleventy", "Eleventy", "_site", "", false},
	{"@angular/core", "Angular", "dist", "", true},
	{"react-scripts", "Create React App", "build", "", true},
	{"@vue/cli-service", "Vue CLI", "dist", "vue.config", true},
	{"@sveltejs/adapter-static", "SvelteKit", "build", "", false},
	{"vite", "Vite", "dist", "vite.config", true},
	{"parcel", "Parcel", "dist", "", true},
	{"webpack", "webpack", "dist", "", true},
}

func site(t tree, p *Plan, pkg packageJSON, d *nodeData) (string, error) {
	if d.Script == "" {
		return "", nil
	}
	for _, name := range servers {
		if pkg.needs(name) {
			return "", nil
		}
	}
	for _, g := range generators {
		if !pkg.has(g.name) {
			continue
		}
		if m := outDir.FindStringSubmatch(t.config(g.config)); g.config != "" && m != nil && plainName.MatchString(m[1]) && !strings.Contains(m[1], "..") {
			g.dir = m[1]
		}
		if g.name == "@angular/core" {
			g.dir = t.angular(g.dir)
		}
		if g.name == "webpack" && (pkg.Scripts["start"] != "" && !strings.Contains(pkg.Scripts["start"], "webpack")) {
			continue
		}
		p.because("%s: a static site in %s, served by nginx", g.title, g.dir)
		d.site(path.Join("/app", g.dir), g.single)
		return "node-site.tmpl", nil
	}
	return "", nil
}

// angular finds where ng build writes: since version 17 into a directory
// "browser" of the project's.
func (t tree) angular(dir string) string {
	var conf struct {
		Projects map[string]struct {
			Architect struct {
				Build struct {
					Builder string
					Options struct{ OutputPath json.RawMessage }
				}
			}
		}
	}
	if json.Unmarshal([]byte(t.read("angular.json")), &conf) != nil || len(conf.Projects) != 1 {
		return dir
	}
	for name, project := range conf.Projects {
		out, build := dir+"/"+name, project.Architect.Build
		var given string
		if json.Unmarshal(build.Options.OutputPath, &given) == nil && given != "" {
			out = given
		}
		if strings.HasSuffix(build.Builder, ":application") {
			out += "/browser"
		}
		if plainName.MatchString(out) && !strings.Contains(out, "..") {
			return out
		}
	}
	return dir
}

// server is any program that listens.
func server(t tree, p *Plan, pkg packageJSON, d *nodeData) (string, error) {
	d.Port, d.Env, d.Copies = 3000, "NODE_ENV=production", []string{"/app ./"}
	start := pkg.Scripts["start"]
	switch args := words(start); {
	case t.procfile() != "":
		d.Command = started(t.procfile())
		p.because("Procfile: started by %s", t.procfile())
	case len(args) > 1 && args[0] == "node":
		d.Command = args
		p.because("script start: %s, without npm in between", start)
	case start != "":
		d.Command = append(strings.Fields(d.run), "start")
		p.because("script start: %s", start)
		if slices.Contains(args, "vite") || strings.Contains(start, "nodemon") {
			p.because("that looks like a server for development: give a script start for production")
		}
	default:
		main := ""
		for _, name := range []string{pkg.Main, "server.js", "index.js", "app.js", "src/index.js", "src/server.js", "server.mjs", "index.mjs"} {
			if name = path.Clean(name); name != "." && plainName.MatchString(name) && t.has(name) {
				main = name
				break
			}
		}
		if main == "" {
			return "", nil
		}
		d.Command = []string{"node", main}
		p.because("no script start: started by node %s", main)
	}
	return "node.tmpl", nil
}
