package attacks

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/network"
)

// lan is the network of a box: options and what is done to it are for rows to change.
type lan struct {
	network.Options
	*network.Manager
	bare bool // without the firewall table
}

// networks are attacks by way of a bridge.
func networks() []attack {
	trusted := func(b *box) { b.lan.Untrusted = false }
	return []attack{
		{
			alone: true, needs: tools, name: "build: service of the host", what: "a build connects to what listens on the host, by the gateway's address", mitigation: "rules for untrusted networks",
			setup: func(b *box) {
				untrusted(b)
				b.reach(func() string { return listenHere(b, b.gateway("lan")) })
			},
			off: trusted,
		},
		{
			alone: true, needs: tools, name: "build: metadata service", what: "a build asks 169.254.169.254 for the machine's credentials", mitigation: "rules for untrusted networks",
			setup: func(b *box) {
				untrusted(b)
				b.reach(func() string { return metadata(b) })
			},
			off: trusted,
		},
		{
			alone: true, needs: tools, name: "build: neighbour", what: "a build connects to another build in the same network", mitigation: "rules for untrusted networks",
			setup: func(b *box) {
				untrusted(b)
				b.reach(func() string { return neighbour(b, "lan") })
			},
			off: trusted,
		},
		{
			alone: true, needs: tools, name: "another network", what: "connects to a container of another network, through the host", mitigation: "the firewall table",
			setup: func(b *box) {
				untrusted(b)
				b.lan.Untrusted = false
				b.reach(func() string {
					_, err := b.lan.Create(b.context(), "other", network.Options{})
					must(b.t, err)
					return neighbour(b, "other")
				})
			},
			off: func(b *box) { b.lan.bare = true },
		},
	}
}

func tools() string {
	for _, name := range []string{"ip", "nft", "nsenter", "sh"} {
		if _, err := exec.LookPath(name); err != nil {
			return "the test needs " + name
		}
	}
	return ""
}

// untrusted gives the box a network as builds have it.
func untrusted(b *box) {
	dir := b.t.TempDir()
	m, err := network.Open(filepath.Join(dir, "root"), filepath.Join(dir, "run"))
	must(b.t, err)
	b.lan = &lan{Manager: m, Options: network.Options{Untrusted: true}}
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		if err := m.Teardown(ctx); err != nil {
			b.t.Errorf("remove networks: %v", err)
		}
	})
}

// reach dials what target has made ready, from a container in the network.
func (b *box) reach(target func() string) {
	b.leaks()
	b.drive = func() result {
		_, err := b.lan.Create(b.context(), "lan", b.lan.Options)
		must(b.t, err)
		b.Plug = func(ctx context.Context, pid int) error {
			_, err := b.lan.Attach(ctx, network.Endpoint{Network: "lan", Container: b.ID, Pid: pid})
			if err == nil && b.lan.bare {
				return b.lan.strip(ctx)
			}
			return err
		}
		b.attack("dial", "tcp", target())
		return b.toEnd()
	}
}

// strip deletes the table of the rules; other rows have theirs.
func (l *lan) strip(ctx context.Context) error {
	n, err := l.Inspect("lan")
	if err != nil {
		return err
	}
	const script = `for t in $(nft list tables inet | grep -o "naru-.*"); do
		if nft list table inet $t | grep -qF "$0"; then nft delete table inet $t; exit; fi
	done
	exit 1`
	return exec.CommandContext(ctx, "sh", "-c", script, n.Subnet.String()).Run()
}

func (b *box) gateway(name string) string {
	n, err := b.lan.Inspect(name)
	must(b.t, err)
	return n.Gateway.String()
}

// listenHere is a service on an address of the host.
func listenHere(b *box, address string) string {
	m := b.Spec.Process.Args
	_, err := b.lan.Attach(b.context(), network.Endpoint{Network: "lan", Container: "first" + b.ID, Pid: server(b).pid()})
	must(b.t, err) // the bridge and its address come with the first member
	serve(b, "tcp", net.JoinHostPort(address, "0"))
	got := b.Spec.Process.Args[len(b.Spec.Process.Args)-1]
	b.Spec.Process.Args = m
	return got
}

// neighbour is a service of another member of the network.
func neighbour(b *box, name string) string {
	s := server(b)
	at, err := b.lan.Attach(b.context(), network.Endpoint{Network: name, Container: "second" + b.ID, Pid: s.pid()})
	must(b.t, err)
	return net.JoinHostPort(at.Address.Addr().String(), s.port)
}

// metadata is a service beyond the host's uplink.
func metadata(b *box) string {
	s := server(b)
	pid, up := strconv.Itoa(s.pid()), "up"+strings.ToLower(b.token[:8])
	for _, args := range []string{
		"ip link add " + up + " type veth peer name eth0 netns " + pid,
		"ip address add 169.254.0.1/16 dev " + up,
		"ip link set " + up + " up",
		"nsenter -n -t " + pid + " ip address add 169.254.169.254/16 dev eth0",
		"nsenter -n -t " + pid + " ip link set eth0 up",
	} {
		words := strings.Fields(args)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			b.t.Fatalf("%s: %v: %s", args, err, out)
		}
	}
	b.t.Cleanup(func() { // the namespace goes some time after its last process
		if out, err := exec.Command("ip", "link", "delete", up).CombinedOutput(); err != nil {
			b.t.Errorf("delete %s: %v: %s", up, err, out)
		}
	})
	return net.JoinHostPort("169.254.169.254", s.port)
}

// namespaced is a process that serves the token in a network namespace of its own.
type namespaced struct {
	cmd  *exec.Cmd
	port string
}

func (n namespaced) pid() int { return n.cmd.Process.Pid }

func server(b *box) namespaced {
	cmd := exec.Command("/proc/self/exe", "attack", "serve", b.token)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := cmd.StdoutPipe()
	must(b.t, err)
	must(b.t, cmd.Start())
	b.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	port, err := bufio.NewReader(out).ReadString('\n')
	must(b.t, err)
	return namespaced{cmd, strings.TrimSpace(port)}
}

// attackServe is no attack but its target: it answers with the token.
func attackServe(args []string) error {
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	if _, err := io.WriteString(os.Stdout, port+"\n"); err != nil {
		return err
	}
	time.AfterFunc(time.Minute, func() { os.Exit(0) })
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		io.WriteString(c, args[0])
		c.Close()
	}
}
