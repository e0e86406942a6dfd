package source

import (
	"bytes"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"naru/internal/redact"
)

// maxProgress bounds what a server may write into a deployment's log, in bytes.
const maxProgress = 64 << 10

// printable makes one line of at most limit bytes of s, without control characters.
func printable(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) <= limit {
		return s
	}
	cut := limit
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// progress writes the server's messages as lines of a log. Lines that the server
// wants overwritten, the percentages that end in a carriage return, are left
// out.
type progress struct {
	out  *redact.Writer
	line []byte
	left int
}

func newProgress(w io.Writer, secrets []string) *progress {
	return &progress{out: redact.NewWriter(w, secrets...), left: maxProgress}
}

// Write never fails: a log that cannot be written must not end a fetch.
func (p *progress) Write(data []byte) (int, error) {
	for _, b := range data {
		switch {
		case b == '\r':
			p.line = p.line[:0]
		case b == '\n':
			p.flush()
		case len(p.line) < 1000:
			p.line = append(p.line, b)
		}
	}
	return len(data), nil
}

func (p *progress) flush() {
	line := "remote: " + printable(string(bytes.TrimSpace(p.line)), 1000) + "\n"
	if len(bytes.TrimSpace(p.line)) > 0 && len(line) <= p.left {
		p.left -= len(line)
		_, _ = io.WriteString(p.out, line)
	}
	p.line = p.line[:0]
}

func (p *progress) close() {
	p.flush()
	_ = p.out.Close()
}
