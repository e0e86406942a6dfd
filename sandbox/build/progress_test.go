package build

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"
)

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	v := p.begin("[1/2] RUN x")
	for _, part := range []string{"one\ntw", "o\r\n\n", "no end"} {
		if n, err := v.Write([]byte(part)); n != len(part) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	v.end(nil)
	p.begin("[2/2] COPY y").cached()
	p.begin("bad").end(errors.New("why"))
	got := regexp.MustCompile(`\d+\.\d+`).ReplaceAllString(out.String(), "T")
	want := "#1 [1/2] RUN x\n#1 T one\n#1 T two\n#1 T \n#1 T no end\n#1 DONE Ts\n\n#2 [2/2] COPY y\n#2 CACHED\n\n#3 bad\n#3 ERROR: why\n\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestProgressBounds: a step cannot make lines or tails without end.
func TestProgressBounds(t *testing.T) {
	var out bytes.Buffer
	v := newProgress(&out).begin("x")
	long := strings.Repeat("a", 3*maxLine+5)
	if _, err := v.Write([]byte(long + "\n")); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		_, _ = v.Write([]byte("l\n"))
	}
	if tail := v.rest(); len(tail) != tailLines {
		t.Errorf("%d lines in the tail", len(tail))
	}
	if n := strings.Count(out.String(), "a"); n != len(long) {
		t.Errorf("%d of %d bytes came out", n, len(long))
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > maxLine+32 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}
