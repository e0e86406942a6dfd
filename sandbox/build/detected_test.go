package build

import (
	"errors"
	"strings"
	"testing"

	"naru/sandbox/build/detect"
	"naru/sandbox/image"
)

// TestDetected: a context without a Dockerfile is built by one that the log
// shows, and nothing secret gets into the image.
func TestDetected(t *testing.T) {
	w := newWorld(t)
	w.importTar("nginxinc/nginx-unprivileged:1.29-alpine", image.Config{OS: "linux"}, baseTar(t))
	files := map[string]string{"index.html": "hello", "css/x.css": "x", ".env": "SECRET=1", ".git/config": "x"}
	dir := w.context(files)
	if _, _, err := w.build(Options{Context: dir}); err == nil {
		t.Error("built without being allowed to detect")
	}
	img, log := w.mustBuild(Options{Context: dir, Detect: true})
	for _, want := range []string{"#1 [internal] no Dockerfile: find out how to build this\n", " static site: index.html, and nothing that builds it", " FROM nginxinc/nginx-unprivileged:1.29-alpine\n", "naru build --print-dockerfile"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in\n%s", want, log)
		}
	}
	for p, want := range map[string]string{"index.html": "f 644 0:0 hello", "css/x.css": "f 644 0:0 x", ".env": "-", ".git": "-"} {
		if got := w.look(img, "usr/share/nginx/html/"+p); got != want {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
	if c := img.Config.Config; c.User != "101:101" || len(c.ExposedPorts) != 1 {
		t.Errorf("%+v", c)
	}
	img, _ = w.mustBuild(Options{Context: w.context(with(files, ".dockerignore", "css")), Detect: true})
	if got := w.look(img, "usr/share/nginx/html/.env") + w.look(img, "usr/share/nginx/html/css"); got != "f 644 0:0 SECRET=1-" {
		t.Errorf("with its own .dockerignore: %s", got)
	}
	_, log, err := w.build(Options{Context: w.context(map[string]string{"README": ""}), Detect: true})
	if !errors.Is(err, detect.ErrUnknown) || !strings.Contains(log, "#1 ERROR: ") {
		t.Errorf("%v\n%s", err, log)
	}
	for name, files := range map[string]map[string]string{
		"of its own": {"Dockerfile": "FROM base\nLABEL own=1\n", "index.html": ""}, "in lower case": {"dockerfile": "FROM base\nLABEL own=1\n", "index.html": ""},
	} {
		img, log := w.mustBuild(Options{Context: w.context(files), Detect: true})
		if img.Config.Config.Labels["own"] != "1" || strings.Contains(log, "no Dockerfile") {
			t.Errorf("%s: %v", name, img.Config.Config.Labels)
		}
	}
	if _, _, err := w.build(Options{Context: w.context(map[string]string{"Dockerfile@link": "/etc/passwd", "index.html": ""}), Detect: true}); err == nil {
		t.Error("a link out of the context was taken for no Dockerfile")
	}
}
