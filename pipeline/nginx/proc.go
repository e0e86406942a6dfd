package nginx

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// process is one process, told apart from a later one with the same pid by its
// start time (clock ticks since boot, proc_pid_stat(5) field 22).
type process struct {
	pid   int
	start uint64
}

// procStat returns the process and its parent; ok is false when it is gone or a
// zombie, which is as good as gone.
func procStat(pid int) (p process, parent int, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p, 0, false
	}
	// The name in parentheses may hold anything, also parentheses.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return p, 0, false
	}
	parent, _ = strconv.Atoi(f[1])
	start, err := strconv.ParseUint(f[19], 10, 64)
	return process{pid, start}, parent, err == nil
}

func (p process) alive() bool {
	now, _, ok := procStat(p.pid)
	return ok && now == p
}

func title(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone: no title
	return strings.TrimRight(string(b), "\x00 ")
}

const (
	masterTitle   = "nginx: master process"
	workerTitle   = "nginx: worker process"
	quittingTitle = "nginx: worker process is shutting down"
)

func pids() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			all = append(all, pid)
		}
	}
	return all, nil
}

// runs reports whether pid executes the binary, which a package manager may have
// replaced meanwhile.
func runs(pid int, binary string) (same, replaced bool) {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false, false
	}
	old, replaced := strings.CutSuffix(exe, " (deleted)")
	return old == binary, replaced
}

// tcpConn is one row of /proc/net/tcp (proc_pid_net(5)).
type tcpConn struct {
	local, remote netip.AddrPort
	state         uint8
	inode         uint64 // 0: not accepted yet, or in TIME_WAIT
}

const (
	tcpEstablished = 1
	tcpCloseWait   = 8
	tcpListen      = 10
)

// tcpTable reads the sockets of this network namespace.
func tcpTable() ([]tcpConn, error) {
	var all []tcpConn
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("read the socket table: %w", err)
		}
		for line := range bytes.Lines(b) {
			if c, ok := parseTCP(bytes.Fields(line)); ok {
				all = append(all, c)
			}
		}
	}
	return all, nil
}

func parseTCP(f [][]byte) (c tcpConn, ok bool) {
	if len(f) < 10 || f[0][0] == 's' {
		return c, false
	}
	var ok1, ok2 bool
	c.local, ok1 = parseAddr(string(f[1]))
	c.remote, ok2 = parseAddr(string(f[2]))
	state, err1 := strconv.ParseUint(string(f[3]), 16, 8)
	inode, err2 := strconv.ParseUint(string(f[9]), 10, 64)
	c.state, c.inode = uint8(state), inode
	return c, ok1 && ok2 && err1 == nil && err2 == nil
}

// parseAddr reads "0100007F:1F90": words of 32 bits in the machine's order.
func parseAddr(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || err2 != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	a, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok
}

// unixListener returns the inode of the socket that listens at path.
func unixListener(path string) (inode uint64, ok bool) {
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		// Flags 00010000 is __SO_ACCEPTCON: it listens.
		if len(f) == 8 && f[3] == "00010000" && f[7] == path {
			inode, err := strconv.ParseUint(f[6], 10, 64)
			return inode, err == nil
		}
	}
	return 0, false
}

// sockets maps the inodes of the sockets that pid holds to its descriptors.
func sockets(pid int) map[uint64]int {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // gone
	}
	held := make(map[uint64]int)
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || !strings.HasPrefix(link, "socket:[") {
			continue
		}
		inode, err1 := strconv.ParseUint(strings.TrimSuffix(link[len("socket:["):], "]"), 10, 64)
		fd, err2 := strconv.Atoi(e.Name())
		if err1 == nil && err2 == nil {
			held[inode] = fd
		}
	}
	return held
}

// portOwner says who listens where l wants to: "haproxy (pid 12)", or "" when
// nobody does.
func portOwner(l listener) string {
	table, err := tcpTable()
	if err != nil {
		return ""
	}
	for _, c := range table {
		if c.state != tcpListen || c.local.Port() != l.addr.Port() {
			continue
		}
		if a, b := c.local.Addr(), l.addr.Addr(); a != b && !a.IsUnspecified() && !b.IsUnspecified() {
			continue
		}
		return holder(c.inode)
	}
	return ""
}

func holder(inode uint64) string {
	all, _ := pids() // without a list nobody is found, which is said
	for _, pid := range all {
		if _, ok := sockets(pid)[inode]; ok {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return fmt.Sprintf("%s (pid %d)", strings.TrimSpace(string(comm)), pid)
		}
	}
	return "a process that cannot be seen"
}
