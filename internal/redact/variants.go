package redact

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
)

// minEncoded is the length in bytes from which a secret is looked for in base64
// and hexadecimal. The encoding of three letters, cut at its ends, is two letters
// long, and those are in every output.
const minEncoded = 6

// variants returns the texts under which the secrets may show up.
func variants(secrets []string) []string {
	var all []string
	for _, s := range secrets {
		trimmed := strings.TrimSpace(s)
		if trimmed == "" {
			continue
		}
		all = append(all, trimmed)
		all = append(all, escaped(trimmed)...)
		all = append(all, encoded(trimmed)...)
		if s != trimmed {
			all = append(all, encoded(s)...) // with the newline, its last letters differ
		}
		if !strings.ContainsAny(trimmed, "\r\n") {
			continue
		}
		for line := range strings.Lines(trimmed) {
			if line = strings.TrimSpace(line); len(line) >= minLine {
				all = append(all, line)
				all = append(all, encoded(line)...)
			}
		}
	}
	return all
}

// escaped returns the forms in URLs and in JSON strings: Go's (the fewest
// characters are escaped in a path, more in a query), that of programs that
// escape all but RFC 3986's unreserved characters, in both cases of the digits, and
// JSON with and without the escapes for HTML.
func escaped(s string) []string {
	all := []string{url.QueryEscape(s), url.PathEscape(s)}
	for _, digits := range []string{"0123456789ABCDEF", "0123456789abcdef"} {
		var b strings.Builder
		for i := range len(s) {
			if c := s[i]; unreserved(c) {
				b.WriteByte(c)
			} else {
				b.WriteString("%" + digits[c>>4:c>>4+1] + digits[c&15:c&15+1])
			}
		}
		all = append(all, b.String())
	}
	for _, html := range []bool{true, false} {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(html)
		if e.Encode(s) == nil { // a string can always be encoded
			quoted := strings.TrimSuffix(b.String(), "\n")
			all = append(all, quoted[1:len(quoted)-1])
		}
	}
	return all
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// encoded returns the forms in hexadecimal and base64, both alphabets.
func encoded(s string) []string {
	if len(s) < minEncoded {
		return nil
	}
	lower := hex.EncodeToString([]byte(s))
	all := []string{lower, strings.ToUpper(lower)}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		all = append(all, enc.EncodeToString([]byte(s)))
		for before := range 3 {
			all = append(all, inside(enc, s, before))
		}
	}
	return append(all, lines(s)...)
}

// lines returns the lines into which programs break the encoding of a long secret
// that stands alone, by how many bytes they hold: base64(1), openssl(1), xxd(1).
func lines(s string) []string {
	var all []string
	for width, encode := range map[int]func([]byte) string{
		57: base64.StdEncoding.EncodeToString, 48: base64.StdEncoding.EncodeToString, 30: hex.EncodeToString,
	} {
		if len(s) <= width {
			continue
		}
		for line := range slices.Chunk([]byte(s), width) {
			if len(line) >= minEncoded {
				all = append(all, encode(line))
			}
		}
	}
	return all
}

// inside returns what a longer text's base64 surely holds if s stands in the text
// after so many bytes, modulo 3: the letters that hold bits of s alone.
func inside(enc *base64.Encoding, s string, before int) string {
	padded := strings.Repeat("\x00", before) + s
	first := (8*before + 5) / 6 // the letter that begins at or after the first bit
	end := 8 * len(padded) / 6  // the letter that begins before the last
	return enc.WithPadding(base64.NoPadding).EncodeToString([]byte(padded))[first:end]
}
