package runtime

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
)

const (
	fileSocket = "monitor.sock"
	fileState  = "state.json"
	fileLock   = "lock"
)

// errLost says that a monitor (or helper) has gone: it has ended, or was killed.
var errLost = errors.New("monitor has ended")

// lost says whether a connection ended from the other side.
func lost(err error) bool {
	return errors.Is(err, errLost) || errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// client talks to a monitor or exec helper.
type client struct{ conn *net.UnixConn }

// reply is one message from a monitor.
type reply struct {
	op    byte
	body  []byte // all behind op
	value uint32
	text  string
	fds   []int
}

// socketPair returns our end as a client and the other end for a child.
func socketPair() (*client, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	c, err := newClient(fds[0])
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return c, theirs, nil
}

func newClient(fd int) (*client, error) {
	f := os.NewFile(uintptr(fd), "control")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("internal error: control socket is not a unix socket"), conn.Close())
	}
	return &client{u}, nil
}

// dial connects to monitor.sock; the way over the directory's descriptor keeps
// the name below the 108 bytes of a socket address.
func dial(stateDir string) (*client, error) {
	dir, err := os.Open(stateDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: viaFD(dir, fileSocket)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to monitor: %w", err)
	}
	return newClient(fd)
}

func viaFD(dir *os.File, name string) string {
	return filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), name)
}

// send writes one request.
func (c *client) send(msg []byte, files ...*os.File) error {
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.conn.WriteMsgUnix(msg, oob, nil); err != nil {
		return fmt.Errorf("ask monitor: %w", err)
	}
	return nil
}

// receive waits for one reply until ctx ends.
func (c *client) receive(ctx context.Context) (reply, error) {
	stop := context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			c.conn.SetReadDeadline(time.Time{})
		}
	}()
	buf, oob := make([]byte, 512), make([]byte, unix.CmsgSpace(4*8))
	n, oobn, _, _, err := c.conn.ReadMsgUnix(buf, oob)
	if err == nil && n == 0 {
		err = errLost
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return reply{}, fmt.Errorf("wait for monitor: %w", err)
	}
	r := reply{op: buf[0], body: buf[1:n]}
	if n >= 5 {
		r.value, r.text = binary.LittleEndian.Uint32(buf[1:]), string(buf[5:n])
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	for i := range msgs {
		if fds, e := unix.ParseUnixRights(&msgs[i]); e == nil {
			r.fds = append(r.fds, fds...)
		}
	}
	return r, err
}

// expect waits for the reply op; the monitor's refusals become errors.
func (c *client) expect(ctx context.Context, op byte) (reply, error) {
	r, err := c.receive(ctx)
	if err != nil || r.op == op {
		return r, err
	}
	for _, fd := range r.fds {
		unix.Close(fd)
	}
	switch r.op {
	case monitor.ReplyFailed:
		return r, &StartError{Step: r.text, Err: unix.Errno(r.value)}
	case monitor.ReplyErrno:
		return r, fmt.Errorf("monitor: %w", unix.Errno(r.value))
	}
	return r, fmt.Errorf("internal error: monitor replied %q, want %q", r.op, op)
}

// call is send and expect.
func (c *client) call(ctx context.Context, msg []byte, op byte) (reply, error) {
	if err := c.send(msg); err != nil {
		return reply{}, err
	}
	return c.expect(ctx, op)
}

// launch sends a record with the descriptors that it names.
func (c *client) launch(op byte, l *monitor.Launch, files []*os.File) error {
	if len(files)+1 > monitor.MaxFDs {
		return fmt.Errorf("launch: %d descriptors, one message carries %d", len(files), monitor.MaxFDs)
	}
	fd, err := unix.MemfdCreate("launch", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("launch: %w", err)
	}
	record := os.NewFile(uintptr(fd), "launch")
	defer record.Close()
	if _, err := record.Write(l.Encode()); err != nil {
		return fmt.Errorf("launch: %w", err)
	}
	return c.send([]byte{op}, append([]*os.File{record}, files...)...)
}

func (c *client) close() error { return c.conn.Close() }
