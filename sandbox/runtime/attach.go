package runtime

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
)

// ErrOldMonitor is returned where a container was started by a version whose
// monitor does not know what is asked of it. It goes on; only a restart of the
// container gives it another monitor.
var ErrOldMonitor = errors.New("the container was started by an older version: start it again for this")

// ErrDropped is returned by Attachment.Copy when the caller did not take the output
// in time. The container goes on, and its log is complete.
var ErrDropped = errors.New("output was not read for too long")

// AttachOptions says how to attach.
type AttachOptions struct {
	// Once ends the container's standard input when this attachment ends.
	Once bool
	// Patience is how long unread output may stop the container, beyond the 1 MiB
	// that is buffered, before the attachment is dropped; 0 means DefaultPatience.
	Patience time.Duration
}

// DefaultPatience is the Patience of AttachOptions that name none.
const DefaultPatience = 10 * time.Second

// Attachment is a connection to the standard streams of a running container. Copy
// is for one goroutine, the other methods for any.
type Attachment struct {
	client *client
	code   int
	over   bool
}

// Attach connects to the container's output from now on, and to its standard input
// if it was made with OpenStdin or a terminal. Several may be attached.
func (c *Container) Attach(ctx context.Context, o AttachOptions) (*Attachment, error) {
	if c.State() == Stopped {
		return nil, fmt.Errorf("attach to container %s: %w", c.rec.ID, ErrNotRunning)
	}
	m, err := dial(c.stateDir)
	if err != nil {
		return nil, fmt.Errorf("attach to container %s: %w", c.rec.ID, err)
	}
	if o.Patience <= 0 {
		o.Patience = DefaultPatience
	}
	msg := []byte{monitor.OpAttach, 0}
	if o.Once {
		msg[1] |= monitor.AttachOnce
	}
	msg = binary.LittleEndian.AppendUint32(msg, uint32(min(o.Patience.Milliseconds(), 1<<31)))
	if _, err := m.call(ctx, msg, monitor.ReplyOK); err != nil {
		return nil, errors.Join(fmt.Errorf("attach to container %s: %w", c.rec.ID, tooOld(err)), m.close())
	}
	return &Attachment{client: m}, nil
}

// tooOld explains what a monitor says to a request that it does not know.
func tooOld(err error) error {
	if errors.Is(err, unix.ENOSYS) {
		return ErrOldMonitor
	}
	return err
}

// Copy writes the output until the container has ended (nil), the attachment is
// closed (nil) or dropped (ErrDropped), or a writer fails. A terminal has one
// stream, stdout.
func (a *Attachment) Copy(stdout, stderr io.Writer) error {
	buf := make([]byte, 2+monitor.MaxData)
	for {
		n, err := a.client.conn.Read(buf)
		if errors.Is(err, io.EOF) || err == nil && n == 0 {
			return ErrDropped
		}
		if err != nil {
			return nil // closed by us
		}
		switch {
		case buf[0] == monitor.ReplyExited && n >= 5:
			a.code, a.over = monitor.ExitCode(syscall.WaitStatus(binary.LittleEndian.Uint32(buf[1:]))), true
			return nil
		case buf[0] != monitor.ReplyData || n < 3:
			continue
		}
		to := stdout
		if buf[1] != monitor.StreamOut {
			to = stderr
		}
		if _, err := to.Write(buf[2:n]); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
}

// Write sends p to the container's standard input. It waits while the container
// does not take it.
func (a *Attachment) Write(p []byte) (int, error) {
	done := 0
	for part := range chunksOf(p, monitor.MaxInput) {
		if err := a.client.send(append([]byte{monitor.OpInput}, part...)); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}

// ExitCode is the container's, once Copy has seen its end.
func (a *Attachment) ExitCode() (code int, over bool) { return a.code, a.over }

func chunksOf(p []byte, size int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(p) > 0 {
			n := min(size, len(p))
			if !yield(p[:n]) {
				return
			}
			p = p[n:]
		}
	}
}

// CloseInput ends the container's standard input; a terminal has no such end.
func (a *Attachment) CloseInput() error { return a.client.send([]byte{monitor.OpEOF}) }

// Resize sets the size of the container's terminal in characters.
func (a *Attachment) Resize(rows, columns uint16) error {
	return a.client.send(resizeMessage(rows, columns))
}

func resizeMessage(rows, columns uint16) []byte {
	msg := binary.LittleEndian.AppendUint16([]byte{monitor.OpResize}, rows)
	return binary.LittleEndian.AppendUint16(msg, columns)
}

// Close lets the container go on without this attachment.
func (a *Attachment) Close() error { return a.client.close() }

// Resize sets the size of the container's terminal in characters.
func (c *Container) Resize(ctx context.Context, rows, columns uint16) error {
	if _, err := c.ask(ctx, resizeMessage(rows, columns), monitor.ReplyOK); err != nil {
		return fmt.Errorf("resize terminal of container %s: %w", c.rec.ID, tooOld(err))
	}
	return nil
}

// Rotate begins a new log file.
func (c *Container) Rotate(ctx context.Context) error {
	if _, err := c.ask(ctx, []byte{monitor.OpRotate}, monitor.ReplyOK); err != nil {
		return fmt.Errorf("rotate log of container %s: %w", c.rec.ID, tooOld(err))
	}
	return nil
}

// MonitorStatus is what a container's monitor says of itself.
type MonitorStatus struct {
	// Protocol is the version of its messages; 0 is one that does not say it.
	Protocol int
	// Lost is how many bytes of output were not logged, as the disk was full.
	Lost int64
	// OOMKills is how many of the container's processes the kernel killed for memory.
	OOMKills int
}

// MonitorStatus asks the monitor.
func (c *Container) MonitorStatus(ctx context.Context) (MonitorStatus, error) {
	r, err := c.ask(ctx, []byte{monitor.OpStatus}, monitor.ReplyStatus)
	if err != nil {
		return MonitorStatus{}, fmt.Errorf("ask monitor of container %s: %w", c.rec.ID, err)
	}
	s := MonitorStatus{}
	// r.text begins in the pid, which one byte of state shifts: 's', state, pid, version, …
	if b := []byte(r.text); len(b) >= 17 {
		b = b[1:]
		s.Protocol = int(binary.LittleEndian.Uint32(b))
		s.Lost = int64(binary.LittleEndian.Uint64(b[4:]))
		s.OOMKills = int(binary.LittleEndian.Uint32(b[12:]))
	}
	return s, nil
}
