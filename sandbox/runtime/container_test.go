package runtime

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

type outcome struct {
	name, script, want string
	code               int
}

// outcomes are what a shell in a default container sees of the kernel.
func outcomes() []outcome {
	return []outcome{
		{"the exit code is the program's", `exit 7`, "", 7},
		{"a killed child gives 128 + n", `sh -c 'kill -9 $$'; echo $?`, "137\n", 0},
		{"it is pid 1", `echo $$`, "1\n", 0},
		{"capabilities are nine", `grep CapEff /proc/self/status`, "CapEff:\t00000000000005fb\n", 0},
		{"the bounding set is as small", `grep CapBnd /proc/self/status`, "CapBnd:\t00000000000005fb\n", 0},
		{"nothing is inheritable", `grep -E 'CapInh|CapAmb' /proc/self/status`, "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n", 0},
		{"no_new_privs and a filter are on", `grep -E 'NoNewPrivs|Seccomp:' /proc/self/status`, "NoNewPrivs:\t1\nSeccomp:\t2\n", 0},
		{"no signal is blocked", `grep SigBlk /proc/1/status`, "SigBlk:\t0000000000000000\n", 0},
		{"only the standard streams are open", `ls /proc/1/fd; true`, "0\n1\n2\n", 0},
		{"mount is refused", `mount -t tmpfs none /tmp 2>/dev/null; echo $?`, "1\n", 0},
		{"unshare is refused", `unshare -U true 2>/dev/null; echo $?`, "1\n", 0},
		{"chroot is refused", `chroot / true 2>/dev/null; echo $?`, "1\n", 0},
		{"device nodes cannot be made", `mknod /tmp/sda b 8 0 2>/dev/null; echo $?`, "1\n", 0},
		{"/proc/sys is read-only", `(echo x > /proc/sys/kernel/hostname) 2>/dev/null; echo $?`, "1\n", 0},
		{"/proc/sysrq-trigger is read-only", `(echo h > /proc/sysrq-trigger) 2>/dev/null; echo $?`, "1\n", 0},
		{"/sys is read-only", `mkdir /sys/fs/cgroup/x 2>/dev/null; echo $?`, "1\n", 0},
		{"masked files are empty", `cat /proc/timer_list /proc/interrupts /proc/keys | wc -c`, "0\n", 0},
		{"a mask cannot be changed", `chmod 0 /proc/interrupts 2>/dev/null; echo $?`, "1\n", 0},
		{"masked directories are empty", `ls -A /proc/acpi; ls -A /sys/firmware`, "", 0},
		{"the devices are few", `cd /dev; echo *`, "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n", 0},
		{"/dev/null takes everything", `echo x > /dev/null; cat /dev/null; head -c 3 /dev/zero | wc -c`, "3\n", 0},
		{"stdin is the container's own null device", `cat; [ /proc/self/fd/0 -ef /dev/null ] && echo own`, "own\n", 0},
		{"standard streams can be opened again", `echo a > /dev/stdout; echo b > /dev/fd/1`, "a\nb\n", 0},
		{"the host's mounts are gone", `grep -E 'ext4|/work |/etc/host' /proc/mounts`, "", 1},
		{"the cgroup root is its own", `grep -E ':(memory|pids|cpu|devices|cpuacct|):/.' /proc/self/cgroup`, "", 1},
		{"only lo is there", `ls /sys/class/net`, "lo\n", 0},
		{"low ports are free", `cat /proc/sys/net/ipv4/ip_unprivileged_port_start`, "0\n", 0},
		{"files can be chowned", `touch /tmp/f; chown 1000:1000 /tmp/f; stat -c %u:%g /tmp/f`, "1000:1000\n", 0},
		{"setuid bits hold", `cp /bin/busybox /tmp/s; chmod 4755 /tmp/s; stat -c %a /tmp/s`, "4755\n", 0},
		{"layers can be changed", `rm -r /root; mkdir /root; echo x > /etc/passwd; mv /etc/passwd /tmp; ls /root /etc`, "/etc:\n\n/root:\n", 0},
		{"umask is 022", `umask`, "0022\n", 0},
	}
}

func TestOutcomes(t *testing.T) {
	for _, userns := range []bool{false, true} {
		name := "host ids/"
		if userns {
			name = "user namespace/"
		}
		for _, o := range outcomes() {
			t.Run(name+o.name, func(t *testing.T) {
				if userns {
					needUserNS(t)
				}
				out, errs, e := newBox(t, userns, "sh", "-c", o.script).run(t)
				if out != o.want || e.Code != o.code || !e.Known {
					t.Errorf("got %q, exit %+v, stderr %q; want %q, exit %d", out, e, errs, o.want, o.code)
				}
			})
		}
	}
}

func TestNoSignalIsIgnored(t *testing.T) {
	signal.Ignore(unix.SIGHUP)
	defer signal.Reset(unix.SIGHUP)
	out, _, _ := newBox(t, true, "grep", "SigIgn", "/proc/self/status").run(t)
	if out != "SigIgn:\t0000000000000000\n" {
		t.Errorf("got %q", out)
	}
}

func TestStartErrorsHaveShellCodes(t *testing.T) {
	for _, c := range []struct {
		args []string
		cwd  string
		code int
	}{
		{[]string{"no-such-program"}, "/", 127},
		{[]string{"/no/such/program"}, "/", 127},
		{[]string{"/etc/passwd"}, "/", 126},
		{[]string{"/etc"}, "/", 126},
		{[]string{"true"}, "/etc/passwd", 125},
	} {
		b := newBox(t, true, c.args...)
		b.Spec.Process.Cwd = c.cwd
		ctx := testContext(t)
		made, err := Create(ctx, b.Config)
		if err == nil {
			defer made.Close()
			err = made.Start(ctx)
		}
		var start *StartError
		if !errors.As(err, &start) || start.Code() != c.code {
			t.Errorf("%v in %s: got %v, want a start error with code %d", c.args, c.cwd, err, c.code)
			continue
		}
		if made != nil {
			if e, err := made.Wait(ctx); err != nil || e.Code != c.code {
				t.Errorf("%v: exit %+v, %v, want %d", c.args, e, err, c.code)
			}
		}
	}
}

func TestProcIsNeverASymlink(t *testing.T) {
	b := newBox(t, true, "true")
	must(t, os.Symlink("/tmp", filepath.Join(b.Root.Lower[0], "proc")))
	if _, err := Create(testContext(t), b.Config); err == nil {
		t.Error("an image with /proc as a symlink was accepted")
	}
}

// CVE-2024-21626: a working directory that is a leaked descriptor.
func TestWorkingDirectoryStaysInside(t *testing.T) {
	for fd := range 24 {
		b := newBox(t, false, "cat", "etc/shadow", "../etc/shadow", "../../../../etc/shadow")
		must(t, os.Symlink("/proc/self/fd/"+string(rune('0'+fd%10)), filepath.Join(b.Root.Lower[0], "w")))
		b.Spec.Process.Cwd = "/w"
		c, err := Create(testContext(t), b.Config)
		if err != nil {
			continue
		}
		if c.Start(testContext(t)) == nil {
			c.Wait(testContext(t))
			must(t, ReadLog(testContext(t), b.Dir, LogOptions{}, &b.out, &b.err))
		}
		must(t, c.Close())
		if strings.Contains(b.out.String(), "root:") {
			t.Fatalf("descriptor %d leads to the host", fd)
		}
	}
}

func TestVolumeTargetStaysInside(t *testing.T) {
	b := newBox(t, true, "ls", "/out")
	vol := t.TempDir()
	must(t, os.WriteFile(filepath.Join(vol, "hello"), nil, 0o644))
	must(t, os.Symlink("../../../../../../out", filepath.Join(b.Root.Lower[0], "v")))
	must(t, os.Mkdir(filepath.Join(b.Root.Lower[0], "out"), 0o755))
	b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: "/v", Source: vol, Options: []string{"rbind"}})
	if out, errs, _ := b.run(t); out != "hello\n" {
		t.Errorf("got %q %q", out, errs)
	}
}

func TestVolumesKeepContainerIDs(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "cd /v/new/deep; touch f; chown 1000:1000 f; stat -c %u /v/new/deep; cat /file; echo x > /file 2>/dev/null")
	vol, file := t.TempDir(), filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, []byte("text\n"), 0o644))
	b.Spec.Mounts = append(b.Spec.Mounts,
		specs.Mount{Destination: "/v/new/deep", Source: vol, Options: []string{"rbind"}},
		specs.Mount{Destination: "/file", Source: file, Options: []string{"bind", "ro"}})
	if out, errs, e := b.run(t); out != "0\ntext\n" || e.Code == 0 {
		t.Errorf("got %q %q %+v", out, errs, e)
	}
	if uid, gid := owner(t, filepath.Join(vol, "f")); uid != 1000 || gid != 1000 {
		t.Errorf("the file belongs to %d:%d on disk", uid, gid)
	}
}

func TestLimits(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		b := newBox(t, true, "sh", "-c", "exec tail /dev/zero")
		limit := int64(16 << 20)
		b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
		b.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_AS", Soft: 1 << 30, Hard: 1 << 30}} // should the limit fail
		if _, _, e := b.run(t); e.Code != 137 || !e.OOM {
			t.Errorf("got %+v, want 137 by OOM", e)
		}
	})
	t.Run("pids", func(t *testing.T) {
		b := newBox(t, true, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1 & done; echo no")
		limit := int64(5)
		b.Spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
		if out, errs, _ := b.run(t); out != "" || !strings.Contains(errs, "fork") {
			t.Errorf("got %q %q, want a failed fork", out, errs)
		}
	})
	t.Run("files", func(t *testing.T) {
		b := newBox(t, true, "sh", "-c", "ulimit -n")
		b.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 1 << 20}}
		if out, _, _ := b.run(t); out != "100\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("read-only root", func(t *testing.T) {
		b := newBox(t, true, "sh", "-c", "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo shm")
		b.Spec.Root.Readonly = true
		if out, _, _ := b.run(t); out != "refused\nshm\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("user", func(t *testing.T) {
		b := newBox(t, true, "sh", "-c", "id -u; id -G; grep CapEff /proc/self/status; echo x > /dev/stdout")
		b.Spec.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 6}}
		if out, errs, _ := b.run(t); out != "1000\n1001 5 6\nCapEff:\t0000000000000000\nx\n" {
			t.Errorf("got %q %q", out, errs)
		}
	})
}

// What a user namespace's root writes is on disk with the container's ids.
func TestUpperKeepsContainerIDs(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "mkdir /d; touch /d/f; chown 1000:1000 /d/f; rm /etc/passwd; rm -r /root; mkdir /root; ln /d/f /d/g")
	if _, errs, e := b.run(t); e.Code != 0 {
		t.Fatal(errs)
	}
	for name, want := range map[string][2]uint32{"d": {0, 0}, "d/f": {1000, 1000}, "d/g": {1000, 1000}, "root": {0, 0}} {
		if uid, gid := owner(t, filepath.Join(b.Root.Upper, name)); uid != want[0] || gid != want[1] {
			t.Errorf("%s belongs to %d:%d on disk, want %v", name, uid, gid, want)
		}
	}
	st, err := os.Lstat(filepath.Join(b.Root.Upper, "etc/passwd"))
	if err != nil || st.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("no whiteout for etc/passwd: %v %v", st, err)
	}
}
