package network

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The whole test binary runs in a network namespace of its own, whose uplink
// leads to one more namespace ("outside"): nothing leaves the machine and
// nothing of the machine's network is touched.
//
//	container ns ── nv… ─ nr… ─ this ns ─ eth0 192.0.2.2/24 ── 192.0.2.1 outside ns
const (
	envNamespace = "NARU_NETWORK_TEST_NAMESPACE"
	envCrash     = "NARU_NETWORK_TEST_CRASH" // step;call;root;arguments
	uplinkMTU    = 1400
)

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files anew")
	switch {
	case os.Getenv(envCrash) != "":
		crash(os.Getenv(envCrash))
	case os.Getuid() != 0:
		fmt.Println("SKIP: network tests need root")
	case os.Getenv(envNamespace) == "":
		os.Exit(again())
	default:
		os.Exit(m.Run())
	}
}

func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), envNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Run(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// namespace is a process in a network namespace of its own.
type namespace struct {
	cmd *exec.Cmd
	fd  int
}

func (n *namespace) pid() int { return n.cmd.Process.Pid }

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := &namespace{cmd: cmd}
	t.Cleanup(n.end)
	var err error
	if n.fd, _, err = openNetns(n.pid()); err != nil {
		t.Fatal(err)
	}
	return n
}

// end kills the process and lets go of the namespace.
func (n *namespace) end() {
	if n.cmd.ProcessState != nil {
		return
	}
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
	_ = unix.Close(n.fd)
}

func (n *namespace) do(t *testing.T, f func(h *netlink.Handle) error) {
	t.Helper()
	if err := inNetns(n.fd, f); err != nil {
		t.Fatal(err)
	}
}

// serve answers every TCP connection in the namespace with the peer's address.
func serve(t *testing.T, fd int, addr string) netip.AddrPort {
	t.Helper()
	var l net.Listener
	listen := func(*netlink.Handle) (err error) { l, err = net.Listen(tcp(addr), addr); return err }
	var err error
	if fd < 0 {
		err = listen(nil)
	} else {
		err = inNetns(fd, listen)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintln(c, host)
			_ = c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// tcp keeps a listener to the family of its address.
func tcp(addr string) string {
	if strings.HasPrefix(addr, "[") {
		return "tcp6"
	}
	return "tcp4"
}

// call connects from a namespace (-1: this one) and returns whom the server saw.
func call(fd int, to netip.AddrPort) (seen string, err error) {
	dial := func(*netlink.Handle) error {
		c, err := net.DialTimeout("tcp", to.String(), 400*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		seen, err = bufio.NewReader(c).ReadString('\n')
		seen = strings.TrimSpace(seen)
		return err
	}
	if fd < 0 {
		return seen, dial(nil)
	}
	return seen, inNetns(fd, dial)
}

func mustCall(t *testing.T, fd int, to netip.AddrPort, want string) {
	t.Helper()
	seen, err := call(fd, to)
	for end := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(end); {
		seen, err = call(fd, to) // the first packet may get lost while neighbours look for each other
	}
	if err != nil {
		t.Fatalf("call %s: %v", to, err)
	}
	if seen != want {
		t.Errorf("call %s: the server saw %s, want %s", to, seen, want)
	}
}

func mustNotCall(t *testing.T, fd int, to netip.AddrPort) {
	t.Helper()
	if seen, err := call(fd, to); err == nil {
		t.Errorf("call %s got through, seen as %s", to, seen)
	}
}

// uplink gives this namespace a way out, to a namespace of ours, for one test.
func uplink(t *testing.T) (outside *namespace) {
	t.Helper()
	outside = newNamespace(t)
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "eth0", uplinkMTU
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(outside.fd)
	must(t, h.LinkAdd(v))
	// Deleted at once and not with the namespace, for the next test's sake.
	t.Cleanup(func() { _ = deleteLink(h, "eth0") })
	must(t, configure(h, "192.0.2.2/24", "192.0.2.1"))
	outside.do(t, func(h *netlink.Handle) error { return configure(h, "192.0.2.1/24", "") })
	// The kernel switches a link on a moment later; hostState shows whether.
	eventually(t, "the uplink is up", func() bool {
		l, err := h.LinkByName("eth0")
		return err == nil && l.Attrs().OperState == netlink.OperUp
	})
	return outside
}

func configure(h *netlink.Handle, cidr, gateway string) error {
	for _, name := range []string{"lo", "eth0"} {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		if name == "eth0" {
			a, err := netlink.ParseAddr(cidr)
			if err != nil {
				return err
			}
			if err := sysctl("ipv6/conf/eth0/disable_ipv6", "1"); err != nil {
				return err
			}
			if err := h.AddrAdd(l, a); err != nil {
				return err
			}
		}
		if err := h.LinkSetUp(l); err != nil {
			return err
		}
		if name == "eth0" && gateway != "" {
			r := netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gateway)}
			if err := h.RouteAdd(&r); err != nil {
				return err
			}
		}
	}
	return nil
}

// manager opens a root whose kernel state is taken down after the test.
func manager(t *testing.T, root string) *Manager {
	t.Helper()
	m := openRoot(t, root)
	t.Cleanup(func() { must(t, m.Teardown(context.Background())) })
	return m
}

func openRoot(t testing.TB, root string) *Manager {
	t.Helper()
	m, err := Open(root, filepath.Join(root, "run"))
	if err != nil {
		t.Fatal(err)
	}
	m.machine = filepath.Join(os.TempDir(), "naru-network-test.lock")
	m.resolv = nil
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func attach(t testing.TB, m *Manager, network, container string, n *namespace) Attachment {
	t.Helper()
	a, err := m.Attach(t.Context(), Endpoint{Network: network, Container: container, Hostname: container, Pid: n.pid()})
	must(t, err)
	return a
}

// hostState is what Teardown must leave as it was.
func hostState(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	commands := []string{"ip -o link show", "ip -o addr show", "ip route show table all", "nft -s list ruleset"}
	for _, c := range append(commands, iptablesListings(t)...) {
		f := strings.Fields(c)
		out, err := exec.Command(f[0], f[1:]...).Output()
		if err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		fmt.Fprintf(&b, "# %s\n%s", c, out)
	}
	for _, key := range []string{forwardKey, redirectsKey} {
		v, err := readSysctl(key)
		must(t, err)
		fmt.Fprintf(&b, "%s=%s\n", key, v)
	}
	b.WriteString(sysctls6(t))
	return b.String()
}

// iptablesListings are the commands for the backends in use: listing through
// another would load its table.
func iptablesListings(t *testing.T) (commands []string) {
	t.Helper()
	active, err := activeIptables()
	must(t, err)
	for _, a := range active {
		commands = append(commands, a.program+" -S")
	}
	return commands
}

func sameState(t *testing.T, before string) {
	t.Helper()
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("the host is not as before (-before +after):\n%s", diff)
	}
}

// eventually polls, because namespaces die in the kernel's own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
		<-tick.C
	}
}

func linkNames(t *testing.T) (names []string) {
	t.Helper()
	links, err := dump(netlink.LinkList)
	must(t, err)
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

// crash is the process that dies: it runs one call and kills itself at a step.
func crash(spec string) {
	runtime.LockOSThread()
	f := strings.Split(spec, ";")
	step, err := strconv.Atoi(f[0])
	if err != nil {
		panic(err)
	}
	m, err := Open(f[2], filepath.Join(f[2], "run"))
	if err != nil {
		panic(err)
	}
	m.machine = filepath.Join(os.TempDir(), "naru-network-test.lock")
	m.resolv = nil
	m.step = func(name string) {
		if !counts(f[1], name) {
			return
		}
		if step == 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {} // the signal may need a moment; nothing may run meanwhile
		}
		step--
	}
	pid, err := strconv.Atoi(f[3])
	if err != nil {
		panic(err)
	}
	if err := operation(m, f[1], pid); err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
	os.Exit(0)
}

// counts leaves the steps out that another call dies at already.
func counts(call, step string) bool {
	switch call {
	case "publish":
		return step == "record" || strings.HasPrefix(step, "publish")
	case "create6":
		return step == "bridge-address" || strings.Contains(step, "forward")
	}
	return true
}

func crashPorts() []Port {
	return []Port{{HostPort: 8080, Port: 80, Proto: "tcp"}, {HostPort: 5353, Port: 53, Proto: "udp"}}
}

// operation is a call by name, so that the dying process can be told.
func operation(m *Manager, call string, pid int) error {
	ctx := context.Background()
	switch call {
	case "attach":
		_, err := m.Attach(ctx, Endpoint{Container: "c1", Hostname: "one", Pid: pid})
		return err
	case "publish":
		_, err := m.Attach(ctx, Endpoint{Container: "c1", Hostname: "one", Pid: pid, Ports: crashPorts()})
		return err
	case "create6":
		_, err := m.Create(ctx, "extra", Options{IPv6: true})
		return err
	case "disconnect":
		return m.Disconnect(ctx, Default, "c1")
	case "detach", "unpublish":
		return m.Detach(ctx, "c1")
	case "create":
		_, err := m.Create(ctx, "extra", Options{})
		return err
	case "remove":
		return m.Remove(ctx, "extra")
	case "teardown":
		return m.Teardown(ctx)
	case "reconcile":
		return m.Reconcile(ctx, func(string) bool { return false })
	}
	return errors.New("no such call: " + call)
}

// dieAt runs the call in a process that is killed at the given step; done says
// that the call had fewer steps and ended well.
func dieAt(t *testing.T, step int, call, root string, pid int) (done bool) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d;%s;%s;%d", envCrash, step, call, root, pid))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, io.Discard
	err := cmd.Run()
	if err == nil {
		return true
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("step %d of %s: %v: %s", step, call, err, out.String())
	}
	return false
}
