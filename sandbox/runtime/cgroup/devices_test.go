package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The BPF program of pure v2 works on any cgroup2 mount, so it is proven here too.
func TestDeviceProgramDecides(t *testing.T) {
	h, err := Detect()
	if err != nil || h.Unified == "" || os.Geteuid() != 0 {
		t.Skip("needs root and a cgroup2 mount:", err)
	}
	g := Host{Unified: h.Unified}.Open("naru-test-dev-" + strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(g.UnifiedDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	defer g.Remove()
	n := func(i int64) *int64 { return &i }
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Major: n(1), Minor: n(3), Access: "rwm"},
		{Allow: true, Type: "c", Major: n(1), Minor: n(5), Access: "r"},
		{Allow: true, Type: "c", Major: n(1), Access: "rwm"},
		{Allow: false, Type: "c", Major: n(1), Minor: n(9), Access: "w"},
		{Allow: false, Type: "c", Major: n(1), Minor: n(7)},
	}
	if err := g.limitDevices(rules); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(g.UnifiedDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for script, want := range map[string]bool{
		"echo > /dev/null": true, "head -c1 < /dev/zero": true, "head -c1 < /dev/urandom": true, "echo > /dev/urandom": false,
		"head -c1 < /dev/full": false, "head -c0 < /dev/tty": false, "head -c0 < /dev/kmsg": true,
		"mknod " + filepath.Join(t.TempDir(), "sda") + " b 8 0": false,
	} {
		cmd := exec.Command("sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		var exit *exec.ExitError
		if err := cmd.Run(); (err == nil) != want || err != nil && !errors.As(err, &exit) {
			t.Errorf("%q: %v, want success %v", script, err, want)
		}
	}
}

// TestLoadUnderSignals: the verifier gives up when a signal is pending, and the Go
// runtime sends many.
func TestLoadUnderSignals(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	var rules []deviceRule
	for i := range int64(120) { // long enough for the verifier to look for signals
		rules = append(rules, deviceRule{allow: i%2 == 0, kind: 'c', major: i, minor: anyNumber, bits: 6})
	}
	code := deviceProgram(rules)
	stop := make(chan struct{})
	var sender sync.WaitGroup
	sender.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = syscall.Kill(os.Getpid(), syscall.SIGURG) // what preemption uses; ignored by everybody
			}
		}
	})
	for range 20 {
		fd, err := loadBPF(code)
		if err != nil {
			t.Error(err)
			break
		}
		_ = syscall.Close(fd)
	}
	close(stop)
	sender.Wait()
}

// rulesOf reads "allow c 1:3 rwm" lines.
func rulesOf(t *testing.T, lines ...string) (list []specs.LinuxDeviceCgroup) {
	t.Helper()
	for _, l := range lines {
		f := strings.FieldsFunc(l, func(r rune) bool { return r == ' ' || r == ':' })
		d := specs.LinuxDeviceCgroup{Allow: f[0] == "allow", Type: f[1], Access: f[4]}
		for i, to := range []**int64{&d.Major, &d.Minor} {
			if n, err := strconv.ParseInt(f[2+i], 10, 64); err == nil {
				*to = &n
			}
		}
		list = append(list, d)
	}
	return list
}

func TestDeviceListOfV1(t *testing.T) {
	for _, tt := range []struct{ rules, want, hole string }{
		{"deny a *:* rwm;allow c 10:229 rwm;allow b 8:20 rw;allow b 10:200 r", "false c 10:229 rwm;b 8:20 rw;b 10:200 r", ""},
		{"allow c 1:3 r;allow c 1:3 w", "false c 1:3 rw", ""},
		{"allow a *:* rwm;deny b *:* w;deny c 1:3 rwm", "true b *:* w;c 1:3 rwm", ""},
		{"allow a *:* r", "false b *:* r;c *:* r", ""},
		{"allow a 1:3 rw", "false b 1:3 rw;c 1:3 rw", ""},
		{"allow c 1:3 rwm;allow c 1:5 rwm;deny c 1:* w", "false c 1:3 rm;c 1:5 rm", ""},
		{"allow c 1:3 rwm;deny c 1:3 rwm", "false ", ""},
		{"allow c 1:3 rwm;deny a *:* rwm", "false ", ""},
		{"allow c 1:* rwm;deny c 1:3 w", "", "[1] (c 1:3 w) makes a hole in [0] (c 1:* rwm)"},
		{"allow a *:* rwm;deny c *:* w;allow c 1:3 w", "", "[2] (c 1:3 w) makes a hole"},
		{"allow c 1:* r;deny c 1:3 w", "false c 1:* r", ""},
	} {
		var rules []deviceRule
		for i, d := range rulesOf(t, strings.Split(tt.rules, ";")...) {
			r, err := parseDevice(i, d)
			if err != nil {
				t.Fatal(err)
			}
			rules = append(rules, r)
		}
		l, err := listDevices(rules)
		if err != nil || tt.hole != "" {
			if err == nil || tt.hole == "" || !strings.Contains(err.Error(), tt.hole) {
				t.Errorf("%s: %v", tt.rules, err)
			}
			continue
		}
		var list []string
		for _, e := range l.exceptions {
			list = append(list, e.String())
		}
		if got := strconv.FormatBool(l.allow) + " " + strings.Join(list, ";"); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.rules, got, tt.want)
		}
	}
}

// tryDevices says which accesses the group's processes have.
func tryDevices(t *testing.T, g *Group, want map[string]bool) {
	t.Helper()
	for script, ok := range want {
		if err := run(t, g, script).Wait(); (err == nil) != ok {
			t.Errorf("%q: %v, want success %v", script, err, ok)
		}
	}
}

// An update widens and narrows, in a process that did not make the group, by each of
// the two means alone and by both; a rule that v1 cannot list is enforced where the
// unified hierarchy is.
func TestDevicesAreUpdated(t *testing.T) {
	real := host(t)
	for name, h := range map[string]Host{"v1": {V1: real.V1}, "program": {Unified: real.Unified, Controllers: real.Controllers}, "both": real} {
		if h.Unified == "" && h.V1["devices"] == "" {
			continue
		}
		g, err := h.Create("naru-test-devices-"+strconv.Itoa(os.Getpid())+"/"+name, &specs.LinuxResources{
			Devices: rulesOf(t, "deny a *:* rwm", "allow c 1:3 rw", "allow c 1:5 r")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(g.Kill(context.Background()), g.Remove()); err != nil {
				t.Error(err)
			}
		})
		tryDevices(t, g, map[string]bool{": > /dev/null": true, ": < /dev/zero": true, ": > /dev/zero": false, ": < /dev/urandom": false})
		for range 2 { // the second time replaces a program which a replacement is
			r := &specs.LinuxResources{Devices: rulesOf(t, "deny a *:* rwm", "allow c 1:5 rw", "allow c 1:3 r", "allow c 1:9 r")}
			if err := h.Open(g.path).Update(r); err != nil {
				t.Fatal(name, err)
			}
			tryDevices(t, g, map[string]bool{": > /dev/null": false, ": < /dev/null": true, ": > /dev/zero": true, ": < /dev/urandom": true, ": < /dev/full": false})
		}
		err = h.Open(g.path).Update(&specs.LinuxResources{Devices: rulesOf(t, "allow c 1:* rw", "deny c 1:9 r")})
		if (err != nil) != (name == "v1") {
			t.Errorf("%s: a hole: %v", name, err)
		}
		if err == nil {
			tryDevices(t, g, map[string]bool{": > /dev/null": true, ": < /dev/urandom": false, ": < /dev/full": true})
		}
	}
}
