package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"naru/pipeline/target/local"
	"naru/sandbox"
	"naru/sandbox/runtime/launch"
)

func TestMain(m *testing.M) {
	launch.Main()
	if filepath.Base(os.Args[0]) == ociName { // an engine of a test calls its OCI runtime
		os.Exit(Main(Arguments(os.Args)))
	}
	if slices.Contains(os.Args, calledName) { // a monitor calls this program back
		os.Exit(Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// console runs commands on a data directory of its own.
type console struct {
	t         *testing.T
	root, run string
}

func newConsole(t *testing.T) console {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	dir := t.TempDir()
	c := console{t, filepath.Join(dir, "root"), filepath.Join(dir, "run")}
	t.Cleanup(func() {
		if _, _, err := c.naruIn(context.Background(), nil, "system", "reset", "--force"); err != nil {
			t.Errorf("reset: %v", err)
		}
	})
	tarball := filepath.Join(dir, "busybox.tar")
	writeBusybox(t, tarball)
	c.ok("image", "import", "--change", `CMD ["sh"]`, "--change", "ENV PATH=/bin", tarball, "busybox")
	return c
}

func writeBusybox(t *testing.T, path string) {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("the tests run busybox: ", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	for _, applet := range []string{"sh", "cat", "echo", "sleep", "true", "id"} {
		add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (c console) naruIn(ctx context.Context, stdin *os.File, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	env := &Env{Stdin: stdin, Stdout: &out, Stderr: &errs}
	err = Run(ctx, append([]string{"--root", c.root, "--run", c.run}, args...), env)
	return out.String(), errs.String(), err
}

// ok runs a command that must succeed and returns its output.
func (c console) ok(args ...string) string {
	c.t.Helper()
	out, errs, err := c.naruIn(c.t.Context(), nil, args...)
	if err != nil {
		c.t.Fatalf("naru %s: %v\n%s", strings.Join(args, " "), err, errs)
	}
	return out
}

// code runs a command and returns its exit code as main would give it.
func (c console) code(args ...string) int {
	c.t.Helper()
	_, _, err := c.naruIn(c.t.Context(), nil, args...)
	var exit *ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	}
	return 1
}

func TestRunGivesOutputAndExitCode(t *testing.T) {
	c := newConsole(t)
	if out := c.ok("run", "--rm", "--network", "none", "-e", "A=1", "busybox", "sh", "-c", "echo $A; id -u"); out != "1\n0\n" {
		t.Errorf("output %q", out)
	}
	for _, test := range []struct {
		code int
		args []string
	}{
		{3, []string{"busybox", "sh", "-c", "exit 3"}},
		{137, []string{"busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"}},
		{127, []string{"busybox", "missing"}},
		{126, []string{"busybox", "/bin"}},
		{125, []string{"--no-such-flag", "busybox"}},
		{125, []string{"--pull", "never", "nothing"}},
		{125, []string{"-it", "busybox"}},
		{125, []string{"-v", "x", "busybox"}},
	} {
		args := append([]string{"run", "--rm", "--network", "none"}, test.args...)
		if got := c.code(args...); got != test.code {
			t.Errorf("%q: %d, want %d", args, got, test.code)
		}
	}
	if left := c.ok("ps", "-a", "-q"); left != "" {
		t.Errorf("containers with --rm are left: %q", left)
	}
}

func TestRunPassesInputOn(t *testing.T) {
	c := newConsole(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := write.WriteString("typed\n"); err != nil {
		t.Fatal(err)
	}
	write.Close()
	defer read.Close()
	out, _, err := c.naruIn(t.Context(), read, "run", "-i", "--rm", "--network", "none", "busybox", "cat")
	if err != nil || out != "typed\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestRunPassesSignalsOn(t *testing.T) {
	c := newConsole(t)
	ended := make(chan error, 1)
	go func() {
		_, _, err := c.naruIn(context.WithoutCancel(t.Context()), nil, "run", "--rm", "--name", "box", "--network", "none",
			"busybox", "sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done")
		ended <- err
	}()
	deadline := time.Now().Add(10 * time.Second)
	for {
		if out, _, err := c.naruIn(t.Context(), nil, "logs", "box"); err == nil && out == "ready\n" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not start")
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil { // run has asked for it
		t.Fatal(err)
	}
	var exit *ExitError
	if err := <-ended; !errors.As(err, &exit) || exit.Code != 5 {
		t.Errorf("run ended with %v", err)
	}
}

func TestLogsOfAnApp(t *testing.T) {
	c := newConsole(t)
	for _, name := range []string{"shop.web.1", "shop.web.2"} {
		c.ok("run", "--name", name, "--network", "none", "-l", local.LabelApp+"=shop", "busybox", "echo", "hello")
	}
	lines := strings.Split(strings.TrimSpace(c.ok("logs", "shop")), "\n")
	slices.Sort(lines)
	if got := strings.Join(lines, "; "); got != "shop.web.1 | hello; shop.web.2 | hello" {
		t.Errorf("logs: %q", got)
	}
	if code := c.code("logs", "nobody"); code != 1 {
		t.Errorf("logs of nobody: %d", code)
	}
}

func TestBuild(t *testing.T) {
	c := newConsole(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Dockerfile": "FROM busybox\nARG WORD=none\nCOPY page /page\nRUN echo $WORD >> /page\nCMD [\"cat\", \"/page\"]\n", "page": "page\n",
		"Bad": "FROM busybox\nRUN exit 7\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	id := c.ok("build", "-t", "site", "--build-arg", "WORD=given", "--network", "none", dir)
	if again := c.ok("build", "-q", "-t", "site", "--build-arg", "WORD=given", "--network", "none", dir); again != id {
		t.Errorf("a second build made %s, the first %s", again, id)
	}
	if out := c.ok("run", "--rm", "--network", "none", "site"); out != "page\ngiven\n" {
		t.Errorf("the image says %q", out)
	}
	if code := c.code("build", "-f", filepath.Join(dir, "Bad"), "--network", "none", dir); code != 1 {
		t.Errorf("a failing build: code %d", code)
	}
}

func TestLifeOfADetachedContainer(t *testing.T) {
	c := newConsole(t)
	id := strings.TrimSpace(c.ok("run", "-d", "--name", "box", "--network", "none", "-l", "tier=web", "-m", "64m",
		"busybox", "sh", "-c", "trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done"))
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(id) {
		t.Fatalf("id %q", id)
	}
	deadline := time.Now().Add(10 * time.Second)
	for c.ok("logs", "box") != "ready\n" {
		if time.Now().After(deadline) {
			t.Fatal("no log")
		}
	}
	table := c.ok("ps", "--filter", "label=tier=web")
	if !regexp.MustCompile(`(?m)^CONTAINER ID +IMAGE +COMMAND +CREATED +STATUS +PORTS +NAMES$`).MatchString(table) ||
		!strings.Contains(table, id[:12]+"   busybox   \"sh -c trap") || !strings.Contains(table, "   Up ") || !strings.HasSuffix(table, "   box\n") {
		t.Errorf("ps:\n%s", table)
	}
	if out := c.ok("ps", "-q", "--filter", "label=tier=db"); out != "" {
		t.Errorf("filter: %q", out)
	}
	if out := c.ok("ps", "--format", "{{.Names}} {{.State}}"); out != "box running\n" {
		t.Errorf("format: %q", out)
	}
	if out := c.ok("exec", "-e", "B=2", "box", "sh", "-c", "echo $B"); out != "2\n" {
		t.Errorf("exec: %q", out)
	}
	if code := c.code("exec", "box", "sh", "-c", "exit 9"); code != 9 {
		t.Errorf("exec: code %d", code)
	}
	var shown []inspected
	if err := json.Unmarshal([]byte(c.ok("inspect", "box")), &shown); err != nil || len(shown) != 1 {
		t.Fatalf("inspect: %v", err)
	}
	if s := shown[0]; s.Id != id || !s.State.Running || s.State.Pid == 0 || s.HostConfig.Memory != 64<<20 || s.Name != "/box" {
		t.Errorf("inspect: %+v", s)
	}
	if code := c.code("rm", "box"); code != 1 {
		t.Errorf("rm of a running container: %d", code)
	}
	if out := c.ok("stop", "-t", "5", "box"); out != "box\n" {
		t.Errorf("stop: %q", out)
	}
	if out := c.ok("ps", "-a"); !strings.Contains(out, "Exited (4) ") {
		t.Errorf("ps -a:\n%s", out)
	}
	if out := c.ok("rm", id[:12]); out != id[:12]+"\n" {
		t.Errorf("rm: %q", out)
	}
	if code := c.code("inspect", "box"); code != 1 {
		t.Errorf("inspect of nothing: %d", code)
	}
}

func TestJSONOfPs(t *testing.T) {
	c := newConsole(t)
	if out := c.ok("ps", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("nothing is %q", out)
	}
	c.ok("run", "-d", "--network", "none", "--name", "one", "busybox", "sleep", "1000")
	var list []sandbox.Container
	if err := json.Unmarshal([]byte(c.ok("ps", "--json")), &list); err != nil || len(list) != 1 || list[0].Name != "one" || list[0].State != "running" {
		t.Errorf("%+v, %v", list, err)
	}
	if out := c.ok("rm", "-f", "one"); out != "one\n" {
		t.Errorf("rm -f: %q", out)
	}
}

func TestImages(t *testing.T) {
	c := newConsole(t)
	table := c.ok("image", "ls")
	if !regexp.MustCompile(`(?m)^REPOSITORY +TAG +IMAGE ID +CREATED +SIZE$`).MatchString(table) || !regexp.MustCompile(`(?m)^busybox +latest +[0-9a-f]{12} `).MatchString(table) {
		t.Errorf("image ls:\n%s", table)
	}
	c.ok("image", "tag", "busybox", "shop/base:1")
	archive := filepath.Join(t.TempDir(), "saved.tar")
	c.ok("image", "save", "-o", archive, "shop/base:1")
	c.ok("image", "rm", "shop/base:1")
	c.ok("image", "rm", "busybox")
	if out := c.ok("image", "ls", "-q"); out != "" {
		t.Errorf("left: %q", out)
	}
	if out := c.ok("image", "load", "-i", archive); out != "Loaded image: shop/base:1\n" {
		t.Errorf("load: %q", out)
	}
	if out := c.ok("run", "--rm", "--network", "none", "shop/base:1", "echo", "hi"); out != "hi\n" {
		t.Errorf("run of a loaded image: %q", out)
	}
	if out := c.ok("image", "inspect", "-f", "{{index .RepoTags 0}} {{index .Config.Cmd 0}}", "shop/base:1"); out != "shop/base:1 sh\n" {
		t.Errorf("inspect: %q", out)
	}
	c.ok("run", "-d", "--network", "none", "--name", "user", "shop/base:1", "sleep", "1000")
	if code := c.code("image", "rm", "shop/base:1"); code != 1 {
		t.Errorf("an image in use was removed: %d", code)
	}
	c.ok("image", "prune", "-a")
	if out := c.ok("image", "ls", "-q"); out == "" {
		t.Error("an image in use was pruned")
	}
}

func TestVolumesAndPrune(t *testing.T) {
	c := newConsole(t)
	if out := c.ok("volume", "create", "data"); out != "data\n" {
		t.Errorf("create: %q", out)
	}
	c.ok("run", "--name", "w", "--network", "none", "-v", "data:/data", "busybox", "sh", "-c", "echo x > /data/f")
	if out := c.ok("run", "--rm", "--network", "none", "-v", "data:/data:ro", "busybox", "cat", "/data/f"); out != "x\n" {
		t.Errorf("read: %q", out)
	}
	if code := c.code("volume", "rm", "data"); code != 1 {
		t.Errorf("a volume in use was removed: %d", code)
	}
	if out := c.ok("system", "prune"); !strings.Contains(out, "removed container") {
		t.Errorf("prune: %q", out)
	}
	if out := c.ok("volume", "rm", "data"); out != "data\n" {
		t.Errorf("rm: %q", out)
	}
	if out := c.ok("volume", "ls", "-q"); out != "" {
		t.Errorf("ls: %q", out)
	}
}

func TestNetworks(t *testing.T) {
	c := newConsole(t)
	c.ok("network", "create", "back")
	if out := c.ok("network", "ls", "-q"); !strings.Contains(out, "back\n") {
		t.Errorf("ls: %q", out)
	}
	if out := c.ok("network", "inspect", "back"); !strings.Contains(out, `"back"`) {
		t.Errorf("inspect: %q", out)
	}
	c.ok("network", "rm", "back")
}

func TestDoctor(t *testing.T) {
	c := newConsole(t)
	out, _, err := c.naruIn(t.Context(), nil, "doctor", "--json")
	var findings []finding
	if jsonErr := json.Unmarshal([]byte(out), &findings); jsonErr != nil || len(findings) < 5 {
		t.Fatalf("%q, %v", out, jsonErr)
	}
	if err != nil {
		t.Errorf("containers run here and doctor says %v: %s", err, out)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "512": 512, "1k": 1024, "64m": 64 << 20, "1.5g": 3 << 29, "2GiB": 2 << 30, "1MB": 1 << 20, "7b": 7} {
		if got, err := parseSize(text); got != want || err != nil {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"x", "-1", "1x", "m", "1e300", "1mk"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q was taken as %d", text, got)
		}
	}
}

func TestAgo(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "Less than a second", time.Second: "1 second", 90 * time.Second: "1 minute", 3 * time.Hour: "3 hours", 72 * time.Hour: "3 days",
		21 * 24 * time.Hour: "3 weeks", 900 * 24 * time.Hour: "2 years",
	} {
		if got := ago(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestMountFlag(t *testing.T) {
	for text, want := range map[string]sandbox.Mount{
		"data:/d":      {Source: "data", Target: "/d", Volume: true},
		"/src:/d:ro":   {Source: "/src", Target: "/d", ReadOnly: true},
		"/src/../x:/d": {Source: "/x", Target: "/d"},
		"data:/d:rw":   {Source: "data", Target: "/d", Volume: true},
		"a.b:/d/e:ro":  {Source: "a.b", Target: "/d/e", Volume: true, ReadOnly: true},
	} {
		if got, err := parseMount(text); !reflect.DeepEqual(got, want) || err != nil {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x", ":/d", "a:b:c:d", "a:/b:maybe"} {
		if got, err := parseMount(text); err == nil {
			t.Errorf("%q was taken as %+v", text, got)
		}
	}
}
