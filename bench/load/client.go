package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// client is one connection at a time.
type client struct {
	options Options
	tally   *tally
	random  *rand.Rand
	conn    *net.TCPConn
	reader  *bufio.Reader
	used    int // requests that were answered on conn
}

// connect dials unless a connection is open. A refused dial is a lost request.
func (c *client) connect(ctx context.Context) bool {
	if c.conn != nil {
		return true
	}
	d := net.Dialer{Timeout: c.options.Timeout}
	conn, err := d.DialContext(context.WithoutCancel(ctx), "tcp", c.options.Addr)
	if err != nil {
		c.tally.dialFailed(err)
		return false
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		panic("load: internal error: a tcp dial gave no tcp connection")
	}
	c.conn, c.reader, c.used = tcp, bufio.NewReader(tcp), 0
	c.tally.dialled()
	return true
}

func (c *client) drop() {
	if c.conn != nil {
		_ = c.conn.Close() // it is not used any more
		c.conn = nil
	}
}

// closedByServer looks, without waiting, whether the server's FIN or RST is here.
// A client that looks may then dial anew without breaking any rule (RFC 9112 §9.5).
func (c *client) closedByServer() bool {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return true
	}
	closed := false
	err = raw.Read(func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		// Bytes that nobody asked for would be taken for the next answer.
		closed = n >= 0 && err == nil || err != nil && !errors.Is(err, syscall.EAGAIN)
		return true
	})
	return closed || err != nil
}

// request sends one request and counts what became of it.
func (c *client) request(ctx context.Context) {
	if c.conn != nil && c.used > 0 && !c.options.Blind && c.closedByServer() {
		c.tally.closedIdle()
		c.drop()
	}
	if !c.connect(ctx) {
		return
	}
	head, body := c.compose()
	began := time.Now()
	_ = c.conn.SetDeadline(began.Add(c.options.Timeout)) // a dead connection shows below
	answer, err := c.exchange(append(head, body...), len(body))
	c.tally.count(outcome{answer: answer, err: err, reused: c.used > 0, took: time.Since(began), body: len(body)})
	c.used++
	if err != nil || answer.close {
		c.drop()
	}
}

// compose makes a GET, or a POST with up to 8 KiB.
func (c *client) compose() (head, body []byte) {
	method := http.MethodGet
	extra := ""
	if c.random.IntN(100) < c.options.PostPercent {
		method = http.MethodPost
		body = make([]byte, 1+c.random.IntN(8<<10))
		for i := range body {
			body[i] = 'a' + byte(i%26)
		}
		extra = fmt.Sprintf("Content-Type: text/plain\r\nContent-Length: %d\r\n", len(body))
	}
	return fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: naru-load\r\n%s\r\n", method, c.options.Path, c.options.Host, extra), body
}

// answer is what is kept of a response.
type answer struct {
	status  int
	version string
	echoed  int // X-Request-Bytes: what the server got of the body; -1 unsaid
	begun   bool
	close   bool
}

func (c *client) exchange(message []byte, sent int) (answer, error) {
	a := answer{echoed: -1}
	if _, err := c.conn.Write(message); err != nil {
		return a, err
	}
	line, err := c.reader.ReadString('\n')
	a.begun = len(line) > 0
	if err != nil {
		return a, err
	}
	proto, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	code, _, _ := strings.Cut(rest, " ")
	if a.status, err = strconv.Atoi(code); err != nil || !strings.HasPrefix(proto, "HTTP/1.") {
		return a, fmt.Errorf("%w: status line %.40q", errShort, line)
	}
	h, err := c.headers()
	if err != nil {
		return a, err
	}
	a.close = proto == "HTTP/1.0" || strings.EqualFold(h["connection"], "close")
	a.version = h["x-version"]
	if n, err := strconv.Atoi(h["x-request-bytes"]); err == nil {
		a.echoed = n
	}
	body, err := c.body(h, &a)
	if err != nil {
		return a, err
	}
	if text := strings.TrimSpace(string(body)); a.version == "" && a.status == http.StatusOK && len(text) <= 40 {
		a.version = text
	}
	if a.echoed >= 0 && a.echoed != sent {
		return a, fmt.Errorf("%w: the server got %d of %d bytes", errShort, a.echoed, sent)
	}
	return a, nil
}

func (c *client) headers() (map[string]string, error) {
	h := make(map[string]string)
	for range 100 {
		line, err := c.reader.ReadString('\n')
		if err != nil {
			return nil, err
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			return h, nil
		}
		name, value, _ := strings.Cut(line, ":")
		h[strings.ToLower(name)] = strings.TrimSpace(value)
	}
	return nil, fmt.Errorf("%w: too many headers", errShort)
}

const maxBody = 16 << 20

func (c *client) body(h map[string]string, a *answer) ([]byte, error) {
	if a.status == http.StatusNoContent || a.status == http.StatusNotModified {
		return nil, nil
	}
	if strings.EqualFold(h["transfer-encoding"], "chunked") {
		return c.chunks()
	}
	length, ok := h["content-length"]
	if !ok {
		a.close = true // the end of the connection is the end of the body
		return io.ReadAll(io.LimitReader(c.reader, maxBody))
	}
	n, err := strconv.Atoi(length)
	if err != nil || n < 0 || n > maxBody {
		return nil, fmt.Errorf("%w: content-length %q", errShort, length)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.reader, b); err != nil {
		return nil, fmt.Errorf("%w: %w", errShort, err)
	}
	return b, nil
}

func (c *client) chunks() ([]byte, error) {
	var all []byte
	for len(all) <= maxBody {
		line, err := c.reader.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errShort, err)
		}
		n, err := strconv.ParseUint(strings.TrimSpace(line), 16, 24)
		if err != nil {
			return nil, fmt.Errorf("%w: chunk %.20q", errShort, line)
		}
		b := make([]byte, n+2) // with its line end
		if _, err := io.ReadFull(c.reader, b); err != nil {
			return nil, fmt.Errorf("%w: %w", errShort, err)
		}
		if n == 0 {
			return all, nil
		}
		all = append(all, b[:n]...)
	}
	return nil, fmt.Errorf("%w: body too large", errShort)
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
