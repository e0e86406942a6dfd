package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"naru/sandbox"
)

func TestRefusedFlags(t *testing.T) {
	c := newConsole(t)
	for _, args := range [][]string{
		{"--privileged"}, {"--nonsense"}, {"--oom-kill-disable"}, {"--security-opt", "apparmor=profile"}, {"--security-opt", "seccomp=/nowhere"},
		{"--cap-add", "FLY"}, {"--ulimit", "nofile"}, {"--ulimit", "files=3"}, {"--mount", "type=npipe,target=/x"}, {"--mount", "type=bind,source=/,target=/x,bind-propagation=loud"},
		{"--tmpfs", "/t:bogus"}, {"--device", "/etc/passwd"}, {"--device-cgroup-rule", "x 1:1 r"}, {"--sysctl", "vm.swappiness=1"},
		{"--pull", "sometimes"}, {"--platform", "linux/s390x"}, {"--ipc", "ours"}, {"--pid", "container:"}, {"--label-file", "/nowhere"}, {"--memory-swap", "x"},
		{"--cidfile", "/"},
	} {
		if code := c.code(append(append([]string{"run", "--rm", "--network", "none"}, args...), "busybox", "true")...); code != 125 {
			t.Errorf("%v: exit code %d, want 125", args, code)
		}
	}
	if out := c.ok("ps", "-aq"); out != "" {
		t.Errorf("containers are left: %q", out)
	}
}

func TestCreateCopyCommit(t *testing.T) {
	c := newConsole(t)
	dir := t.TempDir()
	labels := filepath.Join(dir, "labels")
	write := func(path, data string) {
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(labels, "# note\ntier=web\nname=file\n")
	write(filepath.Join(dir, "in"), "from the host\n")
	id := strings.TrimSpace(c.ok("create", "--name", "c1", "--network", "none", "--cidfile", dir+"/cid", "--label-file", labels, "-l", "name=flag", "busybox", "cat", "/in"))
	if cid, err := os.ReadFile(dir + "/cid"); err != nil || string(cid) != id {
		t.Errorf("cidfile %q, %v", cid, err)
	}
	if code := c.code("create", "--cidfile", dir+"/cid", "busybox"); code != 125 {
		t.Errorf("a cidfile that exists: exit code %d", code)
	}
	c.ok("cp", dir+"/in", "c1:/in")
	c.ok("start", "c1")
	c.ok("wait", "c1")
	if out := c.ok("logs", "c1"); out != "from the host\n" {
		t.Errorf("logs %q", out)
	}
	if out := c.ok("diff", "c1"); out != "A /in\n" {
		t.Errorf("diff %q", out)
	}
	c.ok("cp", "c1:in", dir+"/out")
	if data, err := os.ReadFile(dir + "/out"); string(data) != "from the host\n" {
		t.Errorf("copied %q, %v", data, err)
	}
	if out := c.ok("cp", "c1:/in", "-"); !strings.Contains(out, "from the host") {
		t.Errorf("no tar: %q", out)
	}
	c.ok("commit", "-c", `CMD ["cat","/in"]`, "-c", "LABEL a=b", "c1", "made")
	if out := c.ok("run", "--rm", "--network", "none", "made"); out != "from the host\n" {
		t.Errorf("the image says %q", out)
	}
	c.ok("export", "-o", dir+"/root.tar", "c1")
	c.ok("image", "import", dir+"/root.tar", "exported")
	if code := c.code("cp", dir+"/in", dir+"/x"); code != exitUsage {
		t.Errorf("cp without a container: %d", code)
	}
	if code := c.code("commit", "-c", "RUN x", "c1"); code != exitUsage {
		t.Errorf("commit of a change that is none: %d", code)
	}
}

func TestPsFiltersAndFormats(t *testing.T) {
	c := newConsole(t)
	c.ok("run", "--name", "ended", "--network", "none", "-l", "tier=web", "-l", "x", "busybox", "true")
	c.ok("create", "--name", "idle", "--network", "none", "-v", "vol:/v", "busybox")
	c.ok("update", "--restart", "on-failure:2", "idle")
	if out := c.ok("inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", "idle"); out != "on-failure\n" {
		t.Errorf("restart policy %q", out)
	}
	c.ok("create", "--name", "checked", "--network", "none", "--health-cmd", "true", "busybox")
	names := func(args ...string) string {
		return strings.Join(strings.Fields(c.ok(append([]string{"ps", "-a", "--format", "{{.Names}}"}, args...)...)), " ")
	}
	for want, filters := range map[string][]string{
		"idle ended": {"health=none"}, "checked": {"health=starting"}, " checked": {"health=starting", "health=healthy"},
		" idle ended": {"ancestor=busybox", "health=none"}, "ended": {"exited=0"}, "idle": {"status=created", "health=none"}, "": {"label=tier=db"},
		"ended ": {"label=tier=web", "label=x"}, "idle ": {"volume=vol"}, "ended  ": {"name=^end"}, "idle ended ": {"status=created", "status=exited", "health=none"},
		" ": {"label=tier=web", "label=y"}, "checked idle ended": {"network=none"},
	} {
		var args []string
		for _, f := range filters {
			args = append(args, "--filter", f)
		}
		if got := names(args...); got != strings.TrimSpace(want) {
			t.Errorf("%v: %q, want %q", filters, got, want)
		}
	}
	if got := names("-n", "1"); got != "checked" {
		t.Errorf("the last one is %q", got)
	}
	if out := c.ok("ps", "-a", "--format", `table {{.Names}}\t{{.Label "tier"}}`, "-f", "name=ended"); out != "NAMES     tier\nended     web\n" {
		t.Errorf("table %q", out)
	}
	if out := c.ok("ps", "-as"); !strings.Contains(out, "(virtual ") {
		t.Errorf("sizes %q", out)
	}
	for _, bad := range []string{"bogus=1", "status=odd", "health=odd", "exited=x", "name=["} {
		if code := c.code("ps", "--filter", bad); code != exitUsage {
			t.Errorf("filter %s: exit code %d", bad, code)
		}
	}
	if out := c.ok("events", "--since", "10m", "--until", "0s", "--filter", "event=die", "--format", `{{.Action}} {{.Actor.Attributes.exitCode}}`); out != "die 0\n" {
		t.Errorf("events %q", out)
	}
	c.ok("rename", "ended", "other")
	if out := c.ok("container", "prune", "-f", "--filter", "label=tier"); len(strings.Fields(out)) != 1 {
		t.Errorf("pruned %q", out)
	}
	var usage sandbox.DiskUsage
	if err := json.Unmarshal([]byte(c.ok("system", "df", "--json")), &usage); err != nil || usage.Containers.Total != 2 {
		t.Errorf("usage %+v, %v", usage, err)
	}
}
