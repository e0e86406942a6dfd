package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// openNetns opens the network namespace of a process. The inode names the
// namespace as long as the descriptor is open.
func openNetns(pid int) (fd int, inode uint64, err error) {
	fd, err = unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("open network namespace of pid %d: %w", pid, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, 0, fmt.Errorf("stat network namespace of pid %d: %w", pid, err)
	}
	return fd, st.Ino, nil
}

// netnsInode is 0 where the process, or what it was, is gone.
func netnsInode(pid int) uint64 {
	fd, inode, err := openNetns(pid)
	if err != nil {
		return 0
	}
	_ = unix.Close(fd)
	return inode
}

// inNetns runs f on a thread of its own inside the namespace. The thread is
// never unlocked: the Go runtime destroys it when f is done, and no other
// goroutine can ever run in the wrong namespace.
func inNetns(fd int, f func(*netlink.Handle) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread cannot end, and /proc/self would show its namespace
			// for ever. While it is locked here, the next goroutine gets another.
			done <- inNetns(fd, f)
			runtime.UnlockOSThread()
			return
		}
		done <- enter(fd, f)
	}()
	return <-done
}

func enter(fd int, f func(*netlink.Handle) error) error {
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	return f(h)
}

// dump repeats a netlink dump that was disturbed by a concurrent change, which
// may have left entries out (NLM_F_DUMP_INTR).
func dump[T any](list func() (T, error)) (v T, err error) {
	for range 20 {
		if v, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
	return v, err
}

// findLink returns nil if there is no link of that name.
func findLink(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return l, nil
}

// deleteLink deletes a link that may be gone already.
func deleteLink(h *netlink.Handle, name string) error {
	l, err := findLink(h, name)
	if l == nil || err != nil {
		return err
	}
	// Between the two calls the namespace at the far end may die.
	if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// sysctl writes below /proc/sys/net of the calling thread's namespace. A key
// that does not exist is skipped: the kernel has no IPv6, for example.
func sysctl(key, value string) error {
	f, err := os.OpenFile("/proc/sys/net/"+key, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set sysctl net/%s=%s: %w", key, value, err)
	}
	return nil
}

func readSysctl(key string) (string, error) {
	data, err := os.ReadFile("/proc/sys/net/" + key)
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
