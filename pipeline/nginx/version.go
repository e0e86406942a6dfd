package nginx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// version is an nginx version: major, minor, patch.
type version [3]int

func (v version) atLeast(major, minor, patch int) bool {
	for i, want := range [3]int{major, minor, patch} {
		if v[i] != want {
			return v[i] > want
		}
	}
	return true
}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// build is what the generator has to know of an nginx binary.
type build struct {
	path     string // resolved, as /proc/<pid>/exe shows it
	version  version
	args     string // the configure arguments
	confPath string
	pidPath  string
}

// oldest is the first version with upstream keepalive_timeout (1.15.3), without
// which a stale upstream connection cannot be avoided.
var oldest = version{1, 15, 3}

var (
	versionLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`nginx version: [^/]*/(\d+)\.(\d+)\.(\d+)`) })
	confArg     = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`--conf-path=(\S+)`) })
	pidArg      = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`--pid-path=(\S+)`) })
)

// inspect runs nginx -V, which reads no configuration.
func inspect(ctx context.Context, binary string) (build, error) {
	path, err := findBinary(binary)
	if err != nil {
		return build{}, err
	}
	cmd := exec.CommandContext(ctx, path, "-V")
	cmd.Env = environment()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return build{}, fmt.Errorf("%s -V: %w: %s", path, err, strings.TrimSpace(string(out)))
	}
	b, err := parseBuild(string(out))
	b.path = path
	return b, err
}

// parseBuild reads the output of nginx -V.
func parseBuild(out string) (build, error) {
	m := versionLine().FindStringSubmatch(out)
	if m == nil {
		return build{}, fmt.Errorf("nginx -V told no version: %.100q", out)
	}
	var b build
	for i := range b.version {
		b.version[i], _ = strconv.Atoi(m[i+1]) // digits by the expression
	}
	if o := oldest; !b.version.atLeast(o[0], o[1], o[2]) {
		return build{}, fmt.Errorf("nginx %v is too old: %v or newer is needed", b.version, o)
	}
	b.args = out
	if m := confArg().FindStringSubmatch(out); m != nil {
		b.confPath = m[1]
	}
	if m := pidArg().FindStringSubmatch(out); m != nil {
		b.pidPath = m[1]
	}
	return b, nil
}

func findBinary(binary string) (string, error) {
	if binary == "" {
		binary = "nginx"
	}
	path, err := exec.LookPath(binary)
	if errors.Is(err, exec.ErrNotFound) && !strings.Contains(binary, "/") {
		// Debian keeps it in /usr/sbin, which is not in everybody's PATH.
		path, err = exec.LookPath("/usr/sbin/" + binary)
	}
	if err != nil {
		return "", fmt.Errorf("find the nginx binary %q (install the package nginx): %w", binary, err)
	}
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("resolve the nginx binary: %w", err)
	}
	return filepath.Abs(path)
}

// drainsItself reports whether an exiting worker keeps its promises to idle
// clients (keepalive_min_timeout, nginx 1.27.4), so that no announcement is needed.
func (b build) drainsItself() bool { return b.version.atLeast(1, 27, 4) }

func (b build) hasStub() bool { return strings.Contains(b.args, "--with-http_stub_status_module") }

func (b build) without(module string) bool { return strings.Contains(b.args, "--without-http_"+module) }

// logFlag is -e (nginx 1.19.5), which keeps nginx from opening the error log it
// was compiled with: that one belongs to the machine's nginx.
func (b build) logFlag(path string) []string {
	if b.version.atLeast(1, 19, 5) {
		return []string{"-e", path}
	}
	return nil
}

// environment is nginx's: nothing of the agent's own, which may hold secrets. The
// last entry is room: nginx writes its process titles over its arguments and
// environment, and the titles are read back from /proc.
func environment() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "NARU_ROOM=" + strings.Repeat("-", 64), "TZ=" + os.Getenv("TZ")}
}
