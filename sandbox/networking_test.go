package sandbox

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"naru/sandbox/network"
)

const envPrivate = "NARU_SANDBOX_TEST_NETWORK"

// privately runs the test once more in a process with a network and a mount
// namespace of its own, and says whether this is that process.
func privately(t *testing.T) bool {
	t.Helper()
	needRoot(t)
	if os.Getenv(envPrivate) != "" {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), envPrivate+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
	return false
}

const serving = "echo ready; httpd -f -p 80 -h /etc"

func inNetwork(script, name string, eps ...NetworkEndpoint) ContainerConfig {
	c := sh(script)
	c.Name, c.Network = name, ""
	c.Net.Endpoints = eps
	return c
}

func hostsOf(t *testing.T, e *Engine, id string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(e.dir(id), "hosts"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestNamesFollowWhoComesAndGoes(t *testing.T) {
	if !privately(t) {
		return
	}
	e := newEngine(t)
	for _, name := range []string{"app", "side"} {
		if _, err := e.Networks().Create(t.Context(), name, network.Options{IPv6: name == "app"}); err != nil {
			t.Fatal(err)
		}
	}
	web := NetworkEndpoint{Network: "app", Aliases: []string{"web"}}
	one := runScript(t, e, inNetwork(serving, "one", web))
	two := runScript(t, e, inNetwork(serving, "two", web))
	client := runScript(t, e, inNetwork(deaf, "client", NetworkEndpoint{Network: "app"}, NetworkEndpoint{Network: "side"}))
	far := runScript(t, e, inNetwork(deaf, "far", NetworkEndpoint{Network: "side"}))
	lines := func(name string) (n int) {
		for line := range strings.Lines(hostsOf(t, e, client.ID)) {
			if f := strings.Fields(line); len(f) > 1 && strings.Contains(" "+strings.Join(f[1:], " ")+" ", " "+name+" ") {
				n++
			}
		}
		return n
	}
	for name, want := range map[string]int{"web": 4, "one": 2, "two": 2, "far": 1, "client": 3} {
		if got := lines(name); got != want {
			t.Errorf("%d lines for %s, want %d:\n%s", got, name, want, hostsOf(t, e, client.ID))
		}
	}
	if text := hostsOf(t, e, far.ID); strings.Contains(text, "web") {
		t.Errorf("a member of another network is known:\n%s", text)
	}
	for _, name := range []string{"web", "one", "two"} {
		if code, err := e.Exec(t.Context(), client.ID, ExecOptions{Args: []string{"wget", "-q", "-O", "/dev/null", "http://" + name + "/notes"}}); err != nil || code != 0 {
			t.Errorf("the client cannot reach %s: %d, %v", name, code, err)
		}
	}
	if err := errors.Join(e.Rename(t.Context(), two.ID, "second"), e.Rename(t.Context(), client.ID, "user")); err != nil {
		t.Fatal(err)
	}
	if lines("two") != 0 || lines("second") != 2 || lines("user") != 3 || !strings.Contains(hostsOf(t, e, far.ID), "user") {
		t.Errorf("after two names have changed:\n%s\n%s", hostsOf(t, e, client.ID), hostsOf(t, e, far.ID))
	}
	if err := errors.Join(e.Rename(t.Context(), two.ID, "two"), e.Rename(t.Context(), client.ID, "client")); err != nil {
		t.Fatal(err)
	}
	if err := e.Stop(t.Context(), two.ID, -1); err != nil {
		t.Fatal(err)
	}
	if lines("two") != 0 || lines("web") != 2 {
		t.Errorf("after the end of two:\n%s", hostsOf(t, e, client.ID))
	}
	if err := e.Connect(t.Context(), one.ID, NetworkEndpoint{Network: "side", Aliases: []string{"uno"}}); err != nil {
		t.Fatal(err)
	}
	if lines("uno") != 1 || !strings.Contains(hostsOf(t, e, far.ID), "uno") {
		t.Errorf("after connect:\n%s\n%s", hostsOf(t, e, client.ID), hostsOf(t, e, far.ID))
	}
	if err := e.Disconnect(t.Context(), one.ID, "app"); err != nil {
		t.Fatal(err)
	}
	if lines("web") != 0 {
		t.Errorf("after disconnect:\n%s", hostsOf(t, e, client.ID))
	}
	// What was connected stays so after a restart.
	if err := errors.Join(e.Stop(t.Context(), one.ID, -1), e.Start(t.Context(), one.ID)); err != nil {
		t.Fatal(err)
	}
	c := mustState(t, e, one.ID, "running")
	if len(c.Networks) != 1 || c.Networks[0].Network != "side" || lines("uno") != 1 {
		t.Errorf("after a restart: %+v", c.Networks)
	}
}

func TestPublishedPortsOfAContainer(t *testing.T) {
	if !privately(t) {
		return
	}
	e := newEngine(t)
	config := sh(serving)
	config.Network, config.Name = "", "web"
	config.Net.Ports = []network.Port{{HostPort: 8080, Port: 80, Proto: "tcp"}}
	c := runScript(t, e, config)
	eventually(t, "the port answers", func() bool {
		out, err := exec.Command("busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/notes").Output()
		return err == nil && string(out) == "no program\n"
	})
	if got := mustState(t, e, c.ID, "running"); len(got.Ports) != 1 || got.Ports[0].HostPort != 8080 {
		t.Errorf("ports %v", got.Ports)
	}
	config.Name = "second"
	if _, err := e.Create(t.Context(), config, Stdio{}); !errors.Is(err, network.ErrPortInUse) {
		t.Errorf("the port was given twice: %v", err)
	}
	// The network of another container is the same loopback, and its names.
	joined := sh("wget -q -O - http://127.0.0.1/notes && cat /etc/hosts && hostname")
	joined.Network = NetworkContainer + "web"
	if out := output(t, e, joined); !strings.Contains(out, "no program") || !strings.Contains(out, "web") {
		t.Errorf("with the network of web: %s", out)
	}
	if err := e.Kill(t.Context(), c.ID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Create(t.Context(), config, Stdio{}); err != nil {
		t.Errorf("the port is not free after the end: %v", err)
	}
	joined.Network = NetworkContainer + "web"
	if _, err := e.Create(t.Context(), joined, Stdio{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("joined the network of a stopped container: %v", err)
	}
}

func TestHostsAreNeverSeenEmpty(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	long, little := []byte("begin "+strings.Repeat("x", 3000)+" end\n"), []byte("begin end\n")
	if err := os.WriteFile(path, long, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	writer.Go(func() {
		for ctx.Err() == nil {
			for _, data := range [][]byte{little, long} {
				if err := rewrite(path, data); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range 2000 {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// More cannot be promised: the kernel copies pages without a lock (ext4).
		if !bytes.HasPrefix(data, []byte("begin ")) || bytes.IndexByte(data, 0) >= 0 {
			t.Fatalf("read %q", data)
		}
	}
	stop()
	writer.Wait()
}

// C libraries return the addresses of all lines of a name; the decision of
// docs/adr/0003 rests on it.
func TestLibrariesReadAllLinesOfAName(t *testing.T) {
	needRoot(t)
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n10.1.0.1 web\n10.1.0.2 web two\nfd00::1 web\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("getent"); err != nil {
		t.Skip("needs getent (Debian: libc-bin): ", err)
	}
	programs := map[string]string{"glibc": "getent ahosts web"}
	if _, err := exec.LookPath("musl-gcc"); err == nil {
		programs["musl"] = muslLookup(t) + " web"
	} else {
		t.Log("musl-gcc is not installed (Debian: musl-tools): musl is not looked at")
	}
	for name, program := range programs {
		cmd := exec.Command("sh", "-c", "mount --bind "+hosts+" /etc/hosts && exec "+program)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		for _, a := range []string{"10.1.0.1", "10.1.0.2", "fd00::1"} {
			if !strings.Contains(string(out), a) {
				t.Errorf("%s does not return %s:\n%s", name, a, out)
			}
		}
	}
}

func muslLookup(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source := `#include <netdb.h>
#include <stdio.h>
#include <arpa/inet.h>
int main(int c, char **v) {
	struct addrinfo *r, hint = {.ai_socktype = SOCK_STREAM};
	if (getaddrinfo(v[1], 0, &hint, &r)) return 1;
	for (; r; r = r->ai_next) {
		char b[64];
		getnameinfo(r->ai_addr, r->ai_addrlen, b, sizeof b, 0, 0, NI_NUMERICHOST);
		puts(b);
	}
}`
	if err := os.WriteFile(dir+"/a.c", []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("musl-gcc", "-static", "-o", dir+"/a", dir+"/a.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir + "/a"
}

func TestResolvConfFlags(t *testing.T) {
	n := Networking{DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, DNSSearch: []string{"."}, DNSOptions: []string{"ndots:1", "rotate"}}
	host := "nameserver 192.0.2.1\nsearch a.example\noptions edns0\n"
	if got := string(n.resolv([]byte(host))); got != "nameserver 9.9.9.9\noptions ndots:1 rotate\n" {
		t.Errorf("got %q", got)
	}
	if got := string(Networking{}.resolv([]byte(host))); got != host {
		t.Errorf("without flags %q", got)
	}
	for _, bad := range []Networking{
		{AddHosts: []string{"x"}}, {AddHosts: []string{"x:y"}}, {DNSSearch: []string{"a b"}},
		{Endpoints: []NetworkEndpoint{{Network: "a"}, {Network: "a"}}}, {Endpoints: []NetworkEndpoint{{Network: "a"}, {Network: "host"}}},
		{Endpoints: []NetworkEndpoint{{Network: "a", MAC: "x"}}},
	} {
		c := ContainerConfig{Image: "x", Net: bad}
		if err := c.complete(); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}
