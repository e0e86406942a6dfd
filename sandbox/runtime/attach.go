package runtime

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
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
// is for one goroutine, the other methods for any. When the container's monitor is
// killed, Copy connects to the one that takes its place, and takes what was written
// meanwhile from the log: nothing is missing and nothing comes twice.
type Attachment struct {
	stateDir, dir string
	once          bool
	patience      time.Duration
	code          int
	over          bool

	seen  [2]monitor.Position // up to where each stream was written
	exact bool                // the monitor says positions; an older one does not

	mu     sync.Mutex
	client *client
	next   chan struct{} // closed when client is another one
	done   chan struct{} // closed when Copy has returned
	closed bool
}

// Attach connects to the container's output from now on, and to its standard input
// if it was made with OpenStdin or a terminal. Several may be attached.
func (c *Container) Attach(ctx context.Context, o AttachOptions) (*Attachment, error) {
	if c.State() == Stopped {
		return nil, fmt.Errorf("attach to container %s: %w", c.rec.ID, ErrNotRunning)
	}
	m, err := reach(c.stateDir, c.dir)
	if err != nil {
		return nil, fmt.Errorf("attach to container %s: %w", c.rec.ID, err)
	}
	a := newAttachment(c.stateDir, c.dir, m)
	a.once = o.Once
	if o.Patience > 0 {
		a.patience = o.Patience
	}
	if err := a.ask(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("attach to container %s: %w", c.rec.ID, tooOld(err)), m.close())
	}
	return a, nil
}

func newAttachment(stateDir, dir string, m *client) *Attachment {
	return &Attachment{stateDir: stateDir, dir: dir, patience: DefaultPatience, client: m, next: make(chan struct{}), done: make(chan struct{})}
}

// ask attaches.
func (a *Attachment) ask(ctx context.Context) error {
	msg := []byte{monitor.OpAttach, monitor.AttachAt}
	if a.once {
		msg[1] |= monitor.AttachOnce
	}
	msg = binary.LittleEndian.AppendUint32(msg, uint32(min(a.patience.Milliseconds(), 1<<31)))
	r, err := a.client.call(ctx, msg, monitor.ReplyOK)
	if err == nil && len(r.body) >= monitor.PositionSize {
		a.begins(r.body)
	}
	return err
}

// begins takes note of where the output begins.
func (a *Attachment) begins(position []byte) {
	at := monitor.PositionOf(position)
	a.seen, a.exact = [2]monitor.Position{at, at}, true
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
	defer close(a.done)
	to := [2]io.Writer{stdout, stderr}
	for {
		err := a.copy(to)
		if err == nil && !a.over && !a.isClosed() { // its monitor was killed
			err = a.again(to)
		}
		if err != nil || a.over || a.isClosed() {
			return err
		}
	}
}

// copy writes what one connection brings until its end.
func (a *Attachment) copy(to [2]io.Writer) error {
	const head = 2 + monitor.PositionSize
	buf := make([]byte, head+monitor.MaxData)
	for {
		n, err := a.client.conn.Read(buf)
		if err != nil || n == 0 {
			if a.exact {
				return nil
			}
			return a.unless(ErrDropped)
		}
		msg := buf[:n]
		switch {
		case msg[0] == monitor.ReplyExited && n >= 5:
			a.code, a.over = monitor.ExitCode(syscall.WaitStatus(binary.LittleEndian.Uint32(msg[1:]))), true
			return nil
		case msg[0] == monitor.ReplyDropped:
			return a.unless(ErrDropped)
		case msg[0] == monitor.ReplyOK && n > monitor.PositionSize:
			a.begins(msg[1:])
		case msg[0] == monitor.ReplyData && n > 2:
			err = write(to, msg[1], msg[2:])
		case msg[0] == monitor.ReplyAt && n > head:
			err = write(to, msg[1], msg[head:])
			a.seen[index(msg[1])] = monitor.PositionOf(msg[2:])
		}
		if err != nil {
			return err
		}
	}
}

// unless is err, or nil where we have closed the attachment.
func (a *Attachment) unless(err error) error {
	if a.isClosed() {
		return nil
	}
	return err
}

func (a *Attachment) isClosed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closed
}

// index is the place of a stream's writer.
func index(stream byte) int {
	if stream == monitor.StreamOut {
		return 0
	}
	return 1
}

func write(to [2]io.Writer, stream byte, data []byte) error {
	if _, err := to[index(stream)].Write(data); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// Write sends p to the container's standard input. It waits while the container
// does not take it.
func (a *Attachment) Write(p []byte) (int, error) {
	done := 0
	for part := range chunksOf(p, monitor.MaxInput) {
		if err := a.send(append([]byte{monitor.OpInput}, part...)); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}

// send sends a request, to the next monitor where this one was killed.
func (a *Attachment) send(msg []byte) error {
	for {
		a.mu.Lock()
		m, next := a.client, a.next
		a.mu.Unlock()
		err := m.send(msg)
		if !lost(err) || !a.exact {
			return err
		}
		select {
		case <-next:
		case <-a.done:
			return err
		}
	}
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
func (a *Attachment) CloseInput() error { return a.send([]byte{monitor.OpEOF}) }

// Resize sets the size of the container's terminal in characters.
func (a *Attachment) Resize(rows, columns uint16) error {
	return a.send(resizeMessage(rows, columns))
}

func resizeMessage(rows, columns uint16) []byte {
	msg := binary.LittleEndian.AppendUint16([]byte{monitor.OpResize}, rows)
	return binary.LittleEndian.AppendUint16(msg, columns)
}

// Close lets the container go on without this attachment.
func (a *Attachment) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	return a.client.close()
}

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
