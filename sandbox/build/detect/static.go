package detect

import "strings"

// siteData is what the templates of sites need.
type siteData struct {
	Build, Run string
	Dir        string // where the site is, in the tree or in the stage that builds it
	Tool       string // version of the generator
	Single     bool   // one page answers for every path
	Port       int
}

// static is a site that needs no build.
func static(t tree) (*Plan, error) {
	p := &Plan{Kind: "static site", Port: 8080}
	d := siteData{Run: nginxRun, Port: p.Port}
	switch {
	case t.has("index.html"):
		d.Dir = "."
	case t.has("public/index.html"):
		d.Dir = "public"
	case t.has("dist/index.html"):
		d.Dir = "dist"
	default:
		return nil, nil
	}
	p.because("%s, and nothing that builds it: served by nginx as it is", strings.TrimPrefix(d.Dir+"/index.html", "./"))
	return p.fill("static.tmpl", d)
}

// hugo is a site for the generator of that name.
func hugo(t tree) (*Plan, error) {
	file := t.first("hugo.toml", "hugo.yaml", "hugo.yml", "hugo.json", "config/_default/hugo.toml", "config/_default/config.toml")
	if file == "" && t.hasDir("content") && (t.hasDir("themes") || t.hasDir("layouts") || t.hasDir("archetypes")) {
		file = t.first("config.toml", "config.yaml", "config.yml")
	}
	if file == "" {
		return nil, nil
	}
	p := &Plan{Kind: "static site", Port: 8080}
	p.because("%s: built by Hugo %s, served by nginx", file, hugoGo)
	if t.has(".gitmodules") {
		p.because(".gitmodules: a theme that is a submodule has to be checked out")
	}
	return p.fill("hugo.tmpl", siteData{Build: image(goBuild, goNewest), Run: nginxRun, Dir: "/src/public", Tool: hugoGo, Port: p.Port})
}
