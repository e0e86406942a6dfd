package cli

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ggcrregistry "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"

	"naru/sandbox/image"
)

// imageShell runs commands on one data directory.
type imageShell struct {
	t         *testing.T
	root, dir string
}

func newImageShell(t *testing.T) *imageShell {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: images hold owners and devices")
	}
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", filepath.Join(dir, "docker"))
	return &imageShell{t: t, root: filepath.Join(dir, "root"), dir: dir}
}

func (s *imageShell) try(args ...string) (stdout, stderr string, err error) {
	s.t.Helper()
	var out, errs bytes.Buffer
	run := filepath.Join(s.dir, "run")
	err = Run(s.t.Context(), append([]string{"--root", s.root, "--run", run}, args...), &Env{Stdout: &out, Stderr: &errs})
	return out.String(), errs.String(), err
}

func (s *imageShell) run(args ...string) string {
	s.t.Helper()
	out, errs, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("naru %s: %v\n%s", strings.Join(args, " "), err, errs)
	}
	return out
}

// rootfs writes a tar of one file.
func (s *imageShell) rootfs(content string) string {
	s.t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "file", Mode: 0o644, Size: int64(len(content))}); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		s.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	file := filepath.Join(s.dir, content+".tar")
	if err := os.WriteFile(file, buf.Bytes(), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

func loopbackRegistry(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(ggcrregistry.New(ggcrregistry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// A person pushes an image, removes it, pulls it back by name and by digest,
// through a mirror, and saves and loads it.
func TestImageCommands(t *testing.T) {
	s, host := newImageShell(t), loopbackRegistry(t)
	name := host + "/team/app:1"
	id := strings.TrimSpace(s.run("import", "-c", `LABEL role="the app"`, "-c", "ENV A=1 B=2", "-m", "by hand", s.rootfs("one"), name))
	pushed := strings.TrimSpace(s.run("push", name))
	if digest.Digest(pushed).Validate() != nil {
		t.Fatalf("push printed %q", pushed)
	}
	want := "Untagged: " + name + "\nUntagged: " + host + "/team/app@" + pushed + "\nDeleted: " + id + "\n"
	if diff := cmp.Diff(want, s.run("rmi", name)); diff != "" {
		t.Errorf("rmi (-want +got):\n%s", diff)
	}
	if err := os.WriteFile(filepath.Join(s.root, "registries.yaml"), []byte("mirrored.example:\n  mirrors: ["+host+"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{name, name + "@" + pushed, "mirrored.example/team/app:1"} {
		_, progress, err := s.try("pull", ref)
		if err != nil || !strings.Contains(progress, "Digest: "+pushed) || !strings.Contains(progress, "Status: ") {
			t.Errorf("pull %s: %v\n%s", ref, err, progress)
		}
	}
	if got := s.run("image", "inspect", "-f", "{{.Id}} {{index .RepoDigests 0}} {{.Comment}} {{.Config.Labels.role}}", name+"@"+pushed); got != id+" "+host+"/team/app@"+pushed+" by hand the app\n" {
		t.Errorf("inspect: %s", got)
	}
	if got := s.run("history", "--format", "{{.ID}} {{.Size}} {{.Comment}}", name); !strings.HasSuffix(got, " by hand\n") || !strings.HasPrefix(got, shortID(id)) {
		t.Errorf("history: %s", got)
	}
	var steps []image.Step
	if err := json.Unmarshal([]byte(s.run("history", "--json", name)), &steps); err != nil || len(steps) != 1 {
		t.Errorf("history --json: %v, %v", steps, err)
	}
	file, dir := filepath.Join(s.dir, "saved.tar"), filepath.Join(s.dir, "layout")+"/"
	s.run("save", "-o", file, name)
	s.run("save", "-o", dir, name)
	other := &imageShell{t: t, root: filepath.Join(s.dir, "other"), dir: s.dir}
	for _, from := range []string{file, dir} {
		if got := other.run("load", "-i", from); got != "Loaded image: "+name+"\n" {
			t.Errorf("load -i %s: %s", from, got)
		}
	}
}

func TestImageListAndPrune(t *testing.T) {
	s := newImageShell(t)
	s.run("import", "-c", "LABEL keep=yes", s.rootfs("one"), "web:1")
	s.run("import", s.rootfs("two"), "tools/web:2")
	s.run("import", s.rootfs("three"))
	for args, want := range map[string]string{
		"":                                      "<none>:<none> tools/web:2 web:1",
		"web":                                   "web:1",
		"tools/*":                               "tools/web:2",
		"--filter=dangling=true":                "<none>:<none>",
		"--filter=dangling=false":               "tools/web:2 web:1",
		"--filter=label=keep":                   "web:1",
		"--filter=label=keep=no":                "",
		"--filter=label!=keep":                  "<none>:<none> tools/web:2",
		"--filter=since=web:1":                  "<none>:<none> tools/web:2",
		"--filter=before=tools/web:2":           "web:1",
		"--filter=until=1h":                     "",
		"--filter=reference=web:*":              "web:1",
		"--filter=label=keep --filter=until=0s": "web:1",
	} {
		out := s.run(append([]string{"images", "--format", "{{.Repository}}:{{.Tag}}"}, strings.Fields(args)...)...)
		got := strings.Fields(out)
		if strings.Join(sorted(got), " ") != want {
			t.Errorf("images %s: %q, want %q", args, got, want)
		}
	}
	if got := s.run("images", "-q", "--no-trunc", "web:1"); digest.Digest(strings.TrimSpace(got)).Validate() != nil {
		t.Errorf("images -q --no-trunc: %s", got)
	}
	if got := s.run("image", "prune", "-a", "--filter", "until=1h"); got != "Total reclaimed space: 0B\n" {
		t.Errorf("prune of what is older: %s", got)
	}
	if got := s.run("image", "prune"); !strings.Contains(got, "Deleted: sha256:") || strings.Contains(got, "web") {
		t.Errorf("prune: %s", got)
	}
	if got := s.run("image", "prune", "-a", "--filter", "label!=keep"); !strings.Contains(got, "Untagged: tools/web:2") || strings.Contains(got, "web:1") {
		t.Errorf("prune -a: %s", got)
	}
}

func sorted(list []string) []string {
	out := append([]string{}, list...)
	for i := range out {
		for j := i; j > 0 && out[j] < out[j-1]; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

func TestImageMistakes(t *testing.T) {
	s := newImageShell(t)
	s.run("import", s.rootfs("one"), "web:1")
	for args, want := range map[string]string{
		"images --filter colour=red":        `filter "colour=red"`,
		"images --filter until=soon":        `"soon"`,
		"images --format {{.Nothing}}":      "Nothing",
		"image prune --filter x":            `filter "x"`,
		"push --all-platforms web:1":        "--all-platforms",
		"push --compression lz4 web:1":      `"lz4"`,
		"push 127.0.0.1:1/nothing:1":        "not found",
		"pull --platform linux a":           `platform "linux"`,
		"pull UPPER":                        `"UPPER"`,
		"save --platform linux/s390x web:1": "not linux/s390x",
		"import -c FROM=x x":                "FROM=x",
		"import -c LABEL_x=1 -c y x":        "LABEL_x",
		"load -i /nonexistent":              "/nonexistent",
		"login --password-stdin":            "--username",
		"history nothing":                   "not found",
		"tag web:1 web@sha256:0":            "digest",
	} {
		if _, _, err := s.try(strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("naru %s: %v, want %q", args, err, want)
		}
	}
	for content, want := range map[string]string{"x.example:\n  mirors: [y]\n": "mirors", "x.example:\n  ca: /nonexistent\n": "/nonexistent", "[": "registries.yaml"} {
		if err := os.WriteFile(filepath.Join(s.root, "registries.yaml"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.try("images"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("registries.yaml %q: %v, want %q", content, err, want)
		}
	}
}

func TestImportChanges(t *testing.T) {
	config, err := importConfig([]string{`CMD ["a","b"]`, "ENTRYPOINT run it", `ENV A=1 B="two words" C=x\ y`, "ENV OLD the whole rest", `LABEL l='q "d"' m=`,
		"EXPOSE 80 53/udp", `VOLUME ["/v"]`, "VOLUME /w /x", "USER me", "WORKDIR /d", "STOPSIGNAL SIGINT", "ONBUILD RUN x",
		"HEALTHCHECK --interval=5s --retries=2 CMD curl -f x"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(config.Config)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"User":"me","ExposedPorts":{"53/udp":{},"80/tcp":{}},"Env":["A=1","B=two words","C=x y","OLD=the whole rest"],"Entrypoint":["/bin/sh","-c","run it"],` +
		`"Cmd":["a","b"],"Volumes":{"/v":{},"/w":{},"/x":{}},"WorkingDir":"/d","Labels":{"l":"q \"d\"","m":""},"StopSignal":"SIGINT",` +
		`"Healthcheck":{"Test":["CMD-SHELL","curl -f x"],"Interval":5000000000,"Retries":2},"OnBuild":["RUN x"]}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, bad := range []string{"CMD", "RUN x", "EXPOSE 0", "EXPOSE 80/xyz", `LABEL a="open`, "ENV A", "HEALTHCHECK nothing", "HEALTHCHECK --when=x CMD y", "ENV A=1 B"} {
		if _, err := importConfig([]string{bad}); err == nil || !strings.Contains(err.Error(), bad[:3]) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// What is drawn replaces what was drawn, and lines stay.
func TestBars(t *testing.T) {
	var out bytes.Buffer
	b := newBars(&out)
	b.width = func() int { return 60 }
	layer := digest.FromString("x")
	b.tell(image.Event{Status: "Pulling"})
	b.tell(image.Event{Layer: layer, Status: "Downloading", Current: 1, Total: 4})
	b.last = time.Time{}
	b.tell(image.Event{Layer: layer, Status: "Downloading", Current: 2, Total: 4})
	b.tell(image.Event{Layer: layer, Status: "Pull complete"})
	b.tell(image.Event{Status: "Digest"})
	b.end()
	short := shortID(layer.String())
	up := "\x1b[1A\x1b[J"
	want := "Pulling\n" + short + ": Downloading [============>                   \n" + up + short + ": Downloading [=========================>      \n" +
		up + short + ": Pull complete\n" + up + short + ": Pull complete\nDigest\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
