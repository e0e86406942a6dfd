package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/image"
	"naru/sandbox/network"
	"naru/sandbox/runtime"
)

func TestExitCodesAndOutput(t *testing.T) {
	e := newEngine(t)
	for _, test := range []struct {
		script string
		code   int
		out    string
	}{
		{"echo out; echo err >&2", 0, "out\nerr\n"},
		{"exit 3", 3, ""},
		{"kill -TERM $$; exit 9", 9, ""}, // the first process is deaf to signals it does not handle
		{"trap 'exit 7' TERM; kill -TERM $$", 7, ""},
		{"echo $FROM; pwd; id -u; hostname", 0, "image\n/\n0\n"},
	} {
		exit, out := runToEnd(t, e, sh(test.script))
		if !exit.Known || exit.Code != test.code || !strings.HasPrefix(out, test.out) {
			t.Errorf("%q: exit %+v, output %q; want %d, %q", test.script, exit, out, test.code, test.out)
		}
	}
}

func TestContainerSeesWhatWasAsked(t *testing.T) {
	e := newEngine(t)
	for _, test := range []struct {
		name   string
		change func(*ContainerConfig)
		script string
		want   string
	}{
		{"environment over the image's", func(c *ContainerConfig) { c.Env = []string{"FROM=flag", "A=b c"} }, "echo $FROM $A $HOME", "flag b c /root\n"},
		{"user by name with its groups", func(c *ContainerConfig) { c.User = "plain" }, "id -u; id -G; echo $HOME", "1000\n1000 2000\n/srv\n"},
		{"user by number with a group", func(c *ContainerConfig) { c.User = "1234:2000" }, "id -u; id -g; echo $HOME", "1234\n2000\n/\n"},
		{"working directory", func(c *ContainerConfig) { c.Workdir = "/srv/data" }, "pwd", "/srv/data\n"},
		{"host name", func(c *ContainerConfig) { c.Hostname = "box" }, "hostname; cat /etc/hostname; grep -c box /etc/hosts; echo $HOSTNAME", "box\nbox\n1\nbox\n"},
		{"read-only root", func(c *ContainerConfig) { c.ReadOnly = true }, "touch /x 2>/dev/null || echo no", "no\n"},
		{"entrypoint drops the command", func(c *ContainerConfig) { c.Entrypoint = []string{"echo", "hi"}; c.Args = nil }, "", "hi\n"},
		{"plain users have no capabilities", func(c *ContainerConfig) { c.User = "plain" }, "grep -E 'Cap(Eff|Prm|Amb)' /proc/self/status | grep -vc 0000000000000000", "0\n"},
		{"no new privileges", func(*ContainerConfig) {}, "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := sh(test.script)
			test.change(&c)
			exit, out := runToEnd(t, e, c)
			if out != test.want {
				t.Errorf("got %q (%+v), want %q", out, exit, test.want)
			}
		})
	}
}

func TestUserNamespace(t *testing.T) {
	e := newEngine(t)
	if !e.userNS() {
		t.Skip("no user namespaces with id-mapped layers on this machine")
	}
	first := output(t, e, sh("cat /proc/self/uid_map; touch /made; stat -c %u /made /bin/busybox"))
	second := output(t, e, sh("cat /proc/self/uid_map"))
	var inside, outside, count int
	if _, err := fmt.Sscan(first, &inside, &outside, &count); err != nil || inside != 0 || outside < idBase || count != idSize {
		t.Errorf("uid map %q: root is not a user of its own", first)
	}
	if !strings.HasSuffix(first, "\n0\n0\n") {
		t.Errorf("files belong to somebody else inside: %q", first)
	}
	if strings.Fields(first)[1] == strings.Fields(second)[1] {
		t.Error("two containers share their user ids")
	}
	c := sh("cat /proc/self/uid_map")
	c.UserNS = UserNSHost
	if host := output(t, e, c); strings.Fields(host)[1] != "0" {
		t.Errorf("user namespace host: map %q", host)
	}
	list, err := e.List(t.Context(), true, map[string]string{"made": ""})
	if err != nil || len(list) != 3 {
		t.Fatalf("list: %d, %v", len(list), err)
	}
	if _, forged := list[0].Labels["naru.app"]; forged {
		t.Error("an image set a label that naru manages containers by")
	}
}

func TestStartErrorsHaveShellCodes(t *testing.T) {
	e := newEngine(t)
	for program, code := range map[string]int{"/no/such/program": 127, "missing": 127, "/etc/notes": 126, "/etc": 126} {
		c := sh("")
		c.Args = []string{program}
		_, err := e.Run(t.Context(), c, Stdio{})
		refused := new(runtime.StartError)
		if !errors.As(err, &refused) || refused.Code() != code {
			t.Errorf("%s: %v; want code %d", program, err, code)
		}
	}
	if list, err := e.List(t.Context(), true, nil); err != nil || len(list) != 0 {
		t.Errorf("containers that never ran are left: %v, %v", list, err)
	}
	_, err := e.Create(t.Context(), ContainerConfig{Image: "nothing"}, Stdio{})
	if !errors.Is(err, image.ErrNotFound) {
		t.Errorf("missing image: %v", err)
	}
}

func TestLimits(t *testing.T) {
	e := newEngine(t)
	c := sh("x=$(yes 0123456789 | head -c 100000000); echo survived")
	c.Memory = 32 << 20
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Wait(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	if out := logOf(t, e, made.ID); strings.Contains(out, "survived") {
		t.Error("100 MB fit into 32")
	}
	c = sh("exec dd if=/dev/zero of=/dev/null bs=200M count=1")
	c.Memory = 32 << 20
	if exit, _ := runToEnd(t, e, c); exit.Code != 137 || !exit.OOM {
		t.Errorf("out of memory is not told: %+v", exit)
	}
	c = sh("for i in $(seq 20); do sleep 5 & done 2>&1; true")
	c.Pids = 10
	if _, out := runToEnd(t, e, c); !strings.Contains(out, "fork") {
		t.Errorf("20 processes fit into 10: %q", out)
	}
}

func TestVolumes(t *testing.T) {
	e := newEngine(t)
	c := sh("cat /srv/data/seed; stat -c '%u %a' /srv/data; echo more > /srv/data/more")
	c.User = "plain"
	c.Mounts = []Mount{{Source: "data", Target: "/srv/data", Volume: true}}
	if out := output(t, e, c); out != "seed\n1000 750\n" {
		t.Errorf("a new volume begins with %q", out)
	}
	c.Args = []string{"sh", "-c", "cat /srv/data/more; rm /srv/data/seed"}
	if out := output(t, e, c); out != "more\n" {
		t.Errorf("the second container sees %q", out)
	}
	c.Args = []string{"sh", "-c", "ls /srv/data; touch /srv/data/x 2>/dev/null || echo read-only"}
	c.Mounts[0].ReadOnly = true
	if out := output(t, e, c); out != "more\nread-only\n" {
		t.Errorf("the third sees %q", out)
	}
	v, err := e.Volumes().Get("data")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(v.Path, "more"), &st); err != nil || st.Uid != 1000 {
		t.Errorf("on disk the file belongs to %d (%v), want the container's id", st.Uid, err)
	}
	if err := e.RemoveVolume("data"); !errors.Is(err, ErrInUse) {
		t.Errorf("a volume in use was removed: %v", err)
	}
}

func TestBindMount(t *testing.T) {
	e := newEngine(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("from the host\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := sh("cat /mnt/in; echo back > /mnt/out; cat /single")
	c.Mounts = []Mount{{Source: dir, Target: "/mnt"}, {Source: filepath.Join(dir, "in"), Target: "/single", ReadOnly: true}}
	if out := output(t, e, c); out != "from the host\nfrom the host\n" {
		t.Errorf("the container reads %q", out)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || string(data) != "back\n" {
		t.Errorf("the host reads %q, %v", data, err)
	}
	c.Mounts = []Mount{{Source: filepath.Join(dir, "missing"), Target: "/mnt"}}
	if _, err := e.Create(t.Context(), c, Stdio{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing source: %v", err)
	}
}

// As in Docker: a program without a network can still talk to itself.
func TestLoopbackIsUpWithoutANetwork(t *testing.T) {
	e := newEngine(t)
	const up = "0x9\n" // IFF_UP|IFF_LOOPBACK, netdevice(7)
	for _, userns := range []string{UserNSAuto, UserNSHost} {
		c := sh("cat /sys/class/net/lo/flags")
		c.UserNS = userns
		if flags := output(t, e, c); flags != up {
			t.Errorf("user namespace %s: flags of lo are %q, want %q", userns, flags, up)
		}
	}
}

// As in Docker: ping needs no capability, and low ports need no root. (busybox's ping
// knows raw sockets only, for which a container needs NET_RAW.)
func TestPingAndLowPortsWithoutCapabilities(t *testing.T) {
	e := newEngine(t)
	const group = "/proc/sys/net/ipv4/ping_group_range"
	before, err := os.ReadFile(group)
	if err != nil {
		t.Fatal(err)
	}
	for _, userns := range []string{UserNSAuto, UserNSHost} {
		c := sh("httpd -p 80 -h /tmp && sleep 600")
		c.User, c.UserNS, c.Network, c.Security.CapDrop = "plain", userns, network.Default, []string{"ALL"}
		made, err := e.Run(t.Context(), c, Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := e.load(made.ID)
		if err != nil {
			t.Fatal(err)
		}
		gid := 1000
		if ids := r.idRange(); ids != nil {
			gid += int(ids.Base)
		}
		if err := pingInside(made.Pid, gid, made.Address.As4()); err != nil {
			t.Errorf("user namespace %s: %v", userns, err)
		}
		eventually(t, "somebody at port 80", func() bool {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(made.Address.String(), "80"), time.Second)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	c := sh("cat " + group)
	c.Network = NetworkHost
	if text := output(t, e, c); text != string(before) {
		t.Errorf("the host's groups that may ping were %q and are %q", before, text)
	}
}

// pingInside sends an echo request as a group of the container (icmp(7)).
func pingInside(pid, gid int, to [4]byte) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // and no unlocking: the thread ends in its network and group
		done <- func() error {
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
				return e
			}
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
			if err != nil {
				return fmt.Errorf("open a socket for ping: %w", err)
			}
			defer unix.Close(s)
			echo := []byte{8, 0, 0, 0, 0, 0, 0, 1}
			if err := unix.Sendto(s, echo, 0, &unix.SockaddrInet4{Addr: to}); err != nil {
				return fmt.Errorf("ping: %w", err)
			}
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(s), Events: unix.POLLIN}}, 5000); n != 1 {
				return fmt.Errorf("no answer to ping: %w", err)
			}
			return nil
		}()
	}()
	return <-done
}

func TestHostReachesContainer(t *testing.T) {
	e := newEngine(t)
	c := sh("echo hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp")
	c.Network = network.Default
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if !made.Address.IsValid() {
		t.Fatal("no address")
	}
	var answer string
	eventually(t, "the container answers", func() bool {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(made.Address.String(), "8080"), time.Second)
		if err != nil {
			return false
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET /index.html HTTP/1.0\r\n\r\n")
		data, err := io.ReadAll(conn)
		answer = string(data)
		return err == nil
	})
	if !strings.HasSuffix(answer, "hello\n") {
		t.Errorf("answer %q", answer)
	}
}

func TestContainersOfANetworkKnowEachOther(t *testing.T) {
	e := newEngine(t)
	if _, err := e.Networks().Create(t.Context(), "back", network.Options{}); err != nil {
		t.Fatal(err)
	}
	server := sh("echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp")
	server.Network, server.Name = "back", "server"
	if _, err := e.Run(t.Context(), server, Stdio{}); err != nil {
		t.Fatal(err)
	}
	client := sh("for i in $(seq 50); do wget -q -O - http://server/index.html && exit; sleep 0.1; done; exit 1")
	client.Network = "back"
	if out := output(t, e, client); out != "hello\n" {
		t.Errorf("the client got %q", out)
	}
}

func TestTwoEnginesSideBySide(t *testing.T) {
	one, two := newEngine(t), newEngine(t)
	c := sh("exec sleep 1000")
	c.Name, c.Network = "same", network.Default
	for _, e := range []*Engine{one, two} {
		if _, err := e.Run(t.Context(), c, Stdio{}); err != nil {
			t.Fatal(err)
		}
	}
	a, b := mustState(t, one, "same", "running"), mustState(t, two, "same", "running")
	if a.ID == b.ID || a.Address == b.Address {
		t.Errorf("they share id or address: %s %s, %s %s", a.ID, a.Address, b.ID, b.Address)
	}
	if err := one.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := two.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustState(t, two, "same", "running")
	mustBeGone(t, one, "same")
}

func TestForegroundStreams(t *testing.T) {
	e := newEngine(t)
	var out bytes.Buffer
	w, done, err := pipeTo(&out)
	if err != nil {
		t.Fatal(err)
	}
	in, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := sh("cat; echo end")
	c.Remove = true
	made, err := e.Run(t.Context(), c, Stdio{Stdin: in, Stdout: w, Stderr: w})
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	fmt.Fprintln(feed, "typed")
	feed.Close()
	if exit, err := e.Wait(t.Context(), made.ID); err != nil || exit.Code != 0 {
		t.Errorf("wait: %+v, %v", exit, err)
	}
	w.Close()
	<-done
	if out.String() != "typed\nend\n" {
		t.Errorf("output %q", out.String())
	}
	mustBeGone(t, e, made.ID) // Remove
}

func TestLogs(t *testing.T) {
	e := newEngine(t)
	c := sh("seq 100; trap 'exit 0' TERM; while :; do sleep 0.05; done")
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log is written", func() bool { return strings.HasSuffix(logOf(t, e, made.ID), "100\n") })
	var tail bytes.Buffer
	if err := e.Logs(t.Context(), made.ID, runtime.LogOptions{Tail: 2}, &tail, &tail); err != nil || tail.String() != "99\n100\n" {
		t.Errorf("tail: %q, %v", tail.String(), err)
	}
	follow := make(chan error, 1)
	go func() {
		follow <- e.Logs(context.WithoutCancel(t.Context()), made.ID, runtime.LogOptions{Tail: 1, Follow: true}, io.Discard, io.Discard)
	}()
	if err := e.Stop(t.Context(), made.ID, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-follow:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("following does not end with the container")
	}
}
