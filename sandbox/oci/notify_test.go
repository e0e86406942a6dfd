package oci_test

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/oci"
)

// notification and answer are struct seccomp_notif and seccomp_notif_resp of
// seccomp_unotify(2).
type notification struct {
	ID         uint64
	PID, Flags uint32
	Number     int32
	Arch       uint32
	Pointer    uint64
	Args       [6]uint64
}

type answer struct {
	ID    uint64
	Value int64
	Error int32
	Flags uint32
}

// agent is the program at listenerPath: it takes one listener and answers one call
// with an error that no file system here would give.
func agent(l *net.UnixListener, pid *uint32) (s specs.ContainerProcessState, err error) {
	if err := l.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return s, err
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		return s, err
	}
	defer conn.Close()
	text, rights := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*4))
	n, oob, _, _, err := conn.ReadMsgUnix(text, rights)
	if err != nil {
		return s, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:oob])
	if err != nil {
		return s, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return s, err
	}
	defer unix.Close(fds[0])
	if err := json.Unmarshal(text[:n], &s); err != nil {
		return s, err
	}
	if err := again(func() error {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLIN}}, 10_000)
		if err == nil && n != 1 {
			err = os.ErrDeadlineExceeded
		}
		return err
	}); err != nil {
		return s, err
	}
	var call notification
	if err := notify(fds[0], unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&call)); err != nil {
		return s, err
	}
	*pid = call.PID
	reply := answer{ID: call.ID, Error: -int32(unix.EDQUOT)}
	return s, notify(fds[0], unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&reply))
}

// again repeats what a signal, here those of the Go scheduler, has cut short.
func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func notify(fd int, request uintptr, value unsafe.Pointer) error {
	return again(func() error {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(value)); e != 0 {
			return e
		}
		return nil
	})
}

// TestSeccompNotify shows that a listener and the container process state reach the
// agent of the policy, and that the agent's answer reaches the program.
func TestSeccompNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent")
	b := newBed(t, sh("busybox mkdir /made"))
	b.config.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, ListenerPath: path, ListenerMetadata: "of the test",
		Flags:    []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActNotify}},
	}
	b.write()
	if err := b.create(); err == nil || !strings.Contains(err.Error(), "linux.seccomp.listenerPath") {
		t.Errorf("without an agent: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	b.must(err)
	defer l.Close()
	var state specs.ContainerProcessState
	var caller uint32
	answered := make(chan error, 1)
	go func() {
		var err error
		state, err = agent(l, &caller)
		answered <- err
	}()
	code := b.run()
	if err := <-answered; err != nil {
		t.Fatal("agent:", err)
	}
	if code == 0 || !strings.Contains(b.output(), "Disk quota exceeded") {
		t.Errorf("the answer did not arrive: exit code %d, output %q", code, b.output())
	}
	if state.Metadata != "of the test" || !slices.Equal(state.Fds, []string{specs.SeccompFdName}) || state.Pid == 0 || state.State.ID != "c" ||
		state.State.Status != specs.StateCreating || state.State.Pid != state.Pid || state.State.Bundle != b.bundle || caller == 0 {
		t.Errorf("the agent got %+v, and a call of %d", state, caller)
	}
}

func TestFeaturesOfSeccomp(t *testing.T) {
	s := oci.Features().Linux.Seccomp
	for _, list := range []struct {
		have []string
		want string
	}{
		{s.Actions, "SCMP_ACT_NOTIFY"}, {s.Operators, "SCMP_CMP_MASKED_EQ"}, {s.Archs, "SCMP_ARCH_X86_64"},
		{s.KnownFlags, "SECCOMP_FILTER_FLAG_LOG"}, {s.SupportedFlags, "SECCOMP_FILTER_FLAG_LOG"},
	} {
		if !slices.Contains(list.have, list.want) && (list.want != "SCMP_ARCH_X86_64" || len(list.have) == 0) {
			t.Errorf("%q lacks %s", list.have, list.want)
		}
	}
}
