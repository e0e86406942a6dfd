package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// oracle masks by trying every secret at every place, slowly and plainly.
func oracle(s string, patterns []string) string {
	cover := make([]bool, len(s))
	for i := range len(s) {
		for _, p := range patterns {
			if strings.HasPrefix(s[i:], p) {
				for j := range p {
					cover[i+j] = true
				}
			}
		}
	}
	var out strings.Builder
	for i := range len(s) {
		if !cover[i] {
			out.WriteByte(s[i])
		} else if i == 0 || !cover[i-1] {
			out.WriteString(Mask)
		}
	}
	return out.String()
}

func TestString(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"no secret", "hello", "hello"},
		{"in the middle", "a hunter2 b", "a *** b"},
		{"at the end", "x=hunter2", "x=***"},
		{"twice without a gap is one mask", "hunter2hunter2", "***"},
		{"overlapping itself", "ababab", "***"},
		{"a prefix alone stays", "hunter", "hunter"},
		{"prefix, then the secret", "huhunter2", "hu***"},
		{"escaped in a URL", "https://x:p%40ss+word%2F@h", "https://x:***@h"},
		{"escaped in JSON", `{"k":"a\"b\nlong line of it"}`, `{"k":"***"}`},
		{"one line of several", "|long line of it|", "|***|"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := String(c.in, "hunter2", "abab", "p@ss word/", "a\"b\nlong line of it\n", "", " \n")
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestAnyChunking is the property: whichever way the input is cut, the output is
// that of the oracle.
func TestAnyChunking(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	text := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "abc"[r.IntN(3)] // few letters: many overlaps
		}
		return string(b)
	}
	for range 3000 {
		secrets := make([]string, 1+r.IntN(4))
		for i := range secrets {
			secrets[i] = text(1 + r.IntN(6))
		}
		in := text(r.IntN(60))
		want := oracle(in, secrets)
		var out bytes.Buffer
		w := NewWriter(&out, secrets...)
		for rest := in; rest != ""; {
			n := 1 + r.IntN(min(7, len(rest)))
			if k, err := io.WriteString(w, rest[:n]); k != n || err != nil {
				t.Fatalf("write: %d, %v", k, err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Fatalf("secrets %q, in %q: got %q, want %q", secrets, in, out.String(), want)
		}
	}
}

func TestOnlyAPossibleSecretIsHeldBack(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out, "hunter2")
	_, _ = io.WriteString(w, "a line\nhun")
	if out.String() != "a line\n" {
		t.Errorf("got %q before the tail is decided", out.String())
	}
	_, _ = io.WriteString(w, "gry\n")
	if out.String() != "a line\nhungry\n" {
		t.Errorf("got %q", out.String())
	}
}

func TestWithoutSecretsNothingIsHeld(t *testing.T) {
	var out bytes.Buffer
	if _, err := io.WriteString(NewWriter(&out), "abc"); err != nil || out.String() != "abc" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestErrorsStick(t *testing.T) {
	w := NewWriter(failing{}, "s3cret")
	for range 2 {
		if _, err := io.WriteString(w, "abc"); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("got %v", err)
		}
	}
	w = NewWriter(io.Discard, "s3cret")
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	if _, err := io.WriteString(w, "x"); err == nil {
		t.Error("write after Close went well")
	}
}

// TestEncoded: whatever stands around a secret, what is left of its encoding says
// nothing of it but a few bits at its ends.
func TestEncoded(t *testing.T) {
	const secret = "p@ss>?word/~1\xff"
	for before := range 7 {
		for after := range 4 {
			text := strings.Repeat("x", before) + secret + strings.Repeat("y", after)
			for name, encode := range map[string]func(string) string{
				"std": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
				"url": func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) },
				"hex": func(s string) string { return hex.EncodeToString([]byte(s)) },
				"HEX": func(s string) string { return fmt.Sprintf("%X", s) },
				"%":   func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") },
				"%ab": func(s string) string { return strings.ToLower(url.QueryEscape(s)) },
			} {
				// One letter of base64 at each end holds bits of the secret and of its neighbour.
				got, whole := String(encode(text), secret), encode(text)
				if !strings.Contains(got, Mask) || len(strings.ReplaceAll(got, Mask, "")) > len(whole)-len(encode(secret))+3 {
					t.Errorf("%s, %d before, %d after: %q is left of %q", name, before, after, got, whole)
				}
			}
		}
	}
	key := strings.Repeat("line of a key, 0123456789\n", 9)
	for width, encode := range map[int]func([]byte) string{76: base64.StdEncoding.EncodeToString, 64: base64.StdEncoding.EncodeToString, 60: hex.EncodeToString} {
		broken := regexp.MustCompile(fmt.Sprintf(".{%d}", width)).ReplaceAllString(encode([]byte(key)), "$0\n")
		if got := strings.Trim(String(broken, key), "*\n"); len(got) > 0 {
			t.Errorf("in lines of %d: %q is left of %q", width, got, broken)
		}
	}
	for in, want := range map[string]string{
		base64.StdEncoding.EncodeToString([]byte("hunter2\n")):    Mask, // base64 </run/secrets/x
		base64.StdEncoding.EncodeToString([]byte("user:hunter2")): "dXNlcjp" + Mask,
		"61620a": "61620a", // too short to be looked for
	} {
		if got := String(in, "hunter2\n", "ab\n"); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func FuzzMask(f *testing.F) {
	f.Add("the hunter2 text", "hunter2", uint8(3))
	f.Fuzz(func(t *testing.T, in, secret string, cut uint8) {
		if strings.ContainsAny(secret, "\r\n") {
			t.Skip("secrets of several lines are masked line by line: see the property test")
		}
		var out bytes.Buffer
		w := NewWriter(&out, secret)
		n := min(int(cut), len(in))
		_, _ = io.WriteString(w, in[:n])
		_, _ = io.WriteString(w, in[n:])
		_ = w.Close()
		if want := oracle(in, variants([]string{secret})); out.String() != want {
			t.Errorf("secret %q, in %q, cut %d: got %q, want %q", secret, in, n, out.String(), want)
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	line := []byte(strings.Repeat("step 3/9: compiling something ", 100))
	w := NewWriter(io.Discard, "ghp_0123456789abcdefghij", "another-secret-value")
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		_, _ = w.Write(line)
	}
}
